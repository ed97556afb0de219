"""Start-up: the time from the command to the first denoised window, compared with a bare script that calls the same network.

    python benchmarks/startup.py [ROUNDS]

The bare script uses diffusers alone. The commands take turns, each on one thread in a process of its own. The script prints the
medians of CPU seconds and seconds over all rounds, the modules that each command imports, and the ratio of the CPU times.
`import Sampler` and `--help` are measured too.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

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

PANOKIT = """
from panokit.cli import main
try:
    from panokit.passes import Pass as Asks
except ImportError:  # an older panokit, without passes
    from panokit.run import Run as Asks

predict = Asks.predict

def first(*args):
    predict(*args)
    report()

Asks.predict = first
status = main(["generate", "a lake", "--height=128", "--width=128", "--steps=4", "--quiet"])
raise SystemExit(f"no window was denoised: status {status}")
"""

REPORT = """
import json, os, sys, time

def report():
    known = "torch torchvision diffusers transformers lightning rich scipy timm matplotlib".split()
    libraries = [name for name in known if name in sys.modules]
    print(json.dumps({"cpu": time.process_time(), "modules": len(sys.modules), "libraries": libraries}))
    sys.stdout.flush()
    os._exit(0)
"""


def measured(code: str) -> dict[str, float]:
    """Run Python code in a process, and measure CPU seconds and seconds until it calls `report`."""
    start = time.perf_counter()
    command = [sys.executable, "-c", f"{REPORT}\n{code}\nreport()"]
    environment: dict[str, str] = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, env=environment, cwd=tempfile.gettempdir(), capture_output=True, text=True, check=True, timeout=300
    )
    return {"seconds": time.perf_counter() - start, **json.loads(done.stdout.splitlines()[-1])}


def main() -> None:
    """Measure all commands in turns, and print the results."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    commands = {
        "bare diffusers": BARE,
        "bare, and Fabric": f"import lightning.fabric\n{BARE}",  # it imports torchmetrics
        "panokit generate": PANOKIT,
        "import Sampler": "from panokit import Sampler",
        "panokit --help": "from panokit.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass",
    }
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
    for _ in range(rounds + 1):  # the first round reads the disk
        for name, code in commands.items():
            taken[name].append(measured(code))
    for name, runs in taken.items():
        cpu, seconds = (statistics.median(run[key] for run in runs[1:]) for key in ("cpu", "seconds"))
        last = runs[-1]
        print(f"{name:<18}{cpu:6.2f} CPU s {seconds:6.2f} s {last['modules']:5} modules  {' '.join(last['libraries'])}")
    ours, bare = (statistics.median(run["cpu"] for run in taken[name][1:]) for name in ("panokit generate", "bare diffusers"))
    print(f"panokit generate / bare diffusers: {ours / bare:.2f} of the CPU time")


if __name__ == "__main__":
    main()
