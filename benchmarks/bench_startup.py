"""Start-up: what an import takes, and the way from the command to the first denoised window.

A bare script of diffusers loads and calls the same network. All of them take turns, each on one thread in a process of its own.
Lightning Fabric imports torchmetrics, so the bare script is also measured with Fabric.
"""

import json
import os
import subprocess
import sys
import tempfile
from statistics import median
from typing import Any

import pytest

from measuring import Bench

BARE = """
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer
from panokit_landscapes import PATH

folder = str(PATH)
options = {"use_safetensors": True, "low_cpu_mem_usage": False}
unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", **options)
vae = AutoencoderKL.from_pretrained(folder, subfolder="vae", **options)
text_encoder = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder", use_safetensors=True)
tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")
scheduler = DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
scheduler.set_timesteps(4)
with torch.no_grad():
    tokens = tokenizer(["", "a lake"], padding="max_length", truncation=True, return_tensors="pt").input_ids
    text = text_encoder(tokens)[0]
    unet(torch.randn(2, 4, 16, 16), scheduler.timesteps[0], text)
"""

FABRIC = f"import lightning.fabric\n{BARE}"

GENERATE = """
from panokit.cli import main
from panokit.passes import Pass

predict = Pass.predict

def first(*args):
    predict(*args)
    report()

Pass.predict = first
status = main(["generate", "a lake", "--height=128", "--width=128", "--steps=4", "--quiet"])
raise SystemExit(f"no window was denoised: status {status}")
"""

REPORT = """
import json, os, sys, time

def report():
    print(json.dumps({"cpu": time.process_time(), "packages": sorted({name.partition(".")[0] for name in sys.modules})}))
    sys.stdout.flush()
    os._exit(0)
"""

LIGHT = {"PIL", "docstring_parser", "einops", "jaxtyping", "panokit", "panokit_landscapes", "panokit_multidiffusion"}
"""What a plain command imports beside diffusers and Fabric, in a fifteenth of its time: itself, and small libraries."""


def measured(code: str) -> dict[str, Any]:
    """The CPU seconds of code in a process of its own, until it calls `report`, and the packages that it has imported."""
    command = [sys.executable, "-c", f"{REPORT}\n{code}\nreport()"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, env=environment, cwd=tempfile.gettempdir(), capture_output=True, text=True, check=True, timeout=300
    )
    return json.loads(done.stdout.splitlines()[-1])


def rounds(count: int, *codes: str) -> list[list[float]]:
    """The CPU seconds of each code, in turns. A first round, which reads the disk, does not count."""
    return [[measured(code)["cpu"] for code in codes] for _ in range(count + 1)][1:]


def test_importing_panokit_imports_torch_at_most(bench: Bench) -> None:
    assert "torch" not in measured("import panokit")["packages"]
    parts = {"diffusers", "transformers", "lightning", "torchvision", "scipy"}
    assert not parts & {*measured("from panokit import Sampler")["packages"]}
    if bench.enabled:
        taken = rounds(9, "import torch", "import torch; import panokit", "from panokit import Sampler")
        torch = f"{median(times[0] for times in taken):.2f} s"
        more = median(times[1] - times[0] for times in taken)
        bench.record("P20", "`import panokit`", more, "s of CPU time over `import torch`", most=0.3, peer=torch)
        ratio = median(times[2] / times[0] for times in taken)
        what, unit = "`from panokit import Sampler`", "of the CPU time of `import torch`"
        bench.record("P20", what, ratio, unit, most=1.3, peer=torch)


@pytest.mark.measured
def test_a_command_starts_nearly_as_quickly_as_a_bare_script(bench: Bench) -> None:
    """tests/runtime looks at what a command imports."""
    packages = {code: {*measured(code)["packages"]} for code in (FABRIC, GENERATE)}
    more = packages[GENERATE] - packages[FABRIC] - LIGHT - sys.stdlib_module_names
    what = "packages that `panokit generate` imports and a bare script does not"
    bench.record("P20", what, len(more), "beside small ones", exactly=0)
    taken = rounds(9, GENERATE, BARE, FABRIC)
    for k, (name, most) in enumerate((("a bare script", 1.35), ("a bare script that imports Fabric", 1.15)), 1):
        ratio = median(times[0] / times[k] for times in taken)
        peer = f"{median(times[k] for times in taken):.1f} s"
        what = f"`panokit generate` to the first denoised window ({median(times[0] for times in taken):.1f} s)"
        bench.record("P20", what, ratio, f"of the CPU time of {name}", most=most, peer=peer)
