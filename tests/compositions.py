"""Twenty compositions of everything that decides a picture, and the latents that they make.

A change that should not alter pictures is held against a record of the code before it, on the same machine:

    python tests/compositions.py record before.safetensors
    python tests/compositions.py compare before.safetensors

Every tensor must then be equal to the last bit. `tests/test_compositions.py` keeps the quick ones as a test.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from panokit import Regions, Runtime, Sampler
from panokit.checkpoint import Checkpoint

PROMPT = "a mountain lake at dusk"
REGIONS = Regions((((0, 0, 0.5, 1), "a city at night"), ((0.5, 0, 1, 1), PROMPT)), elsewhere="a pine forest")


class Composition(NamedTuple):
    """What is made, of which parts, and where."""

    height: int
    width: int
    steps: int = 6
    parts: Mapping[str, Any] = {}
    call: Mapping[str, Any] = {}
    runtime: Mapping[str, Any] = {}
    prompt: str | Regions = PROMPT
    resume: bool = False
    """Whether the run is ended half way and taken up again from a checkpoint."""
    devices: int = 1
    """How many processes the command line starts."""


GAUSSIAN = "multidiffusion"
UNIFORM = {"plugin": "multidiffusion", "weights": "uniform"}
PAPER = "msd_paper"
COMPOSITIONS: dict[str, Composition] = {
    "plain": Composition(128, 256),
    "ring": Composition(128, 256, parts={"scheduler": "dpm++_2m"}, call={"wrap": "x"}),
    "torus": Composition(256, 256, steps=4, parts={"scheduler": "unipc"}, call={"wrap": "xy"}),
    "uniform_stochastic": Composition(128, 192, parts={"fuser": UNIFORM, "scheduler": "euler_a"}, call={"stride": 32}),
    "pndm": Composition(128, 192, parts={"scheduler": "pndm"}),
    "lcm_without_guidance": Composition(128, 192, steps=4, parts={"scheduler": "lcm"}, call={"guidance_scale": 1.0}),
    "regions": Composition(128, 384, call={"negative_prompt": "fog", "guidance_scale": 3.0}, prompt=REGIONS),
    "options": Composition(128, 192, parts={"scheduler": {"plugin": "ddim", "options": {"eta": 0.5}}}, call={"seed": 7}),
    "karras_sliced": Composition(128, 192, parts={"scheduler": "euler_karras"}, runtime={"attention": "sliced"}),
    "float64": Composition(128, 192, steps=3, runtime={"precision": "64-true"}),
    "msd": Composition(256, 384, parts={"guidances": ["msd"]}),
    "msd_ring_sde": Composition(256, 256, parts={"guidances": ["msd"], "scheduler": "dpm++_2m_sde"}, call={"wrap": "x"}),
    "msd_resumed": Composition(256, 256, parts={"guidances": ["msd"], "scheduler": "dpm++_2m_sde"}, resume=True),
    "msd_heun": Composition(256, 256, parts={"guidances": ["msd"], "scheduler": "heun"}),
    "msd_bf16": Composition(256, 256, parts={"guidances": ["msd"]}, runtime={"precision": "bf16-mixed"}),
    "msd_three_levels": Composition(512, 512, steps=4, parts={"guidances": ["msd"]}),
    "msd_paper": Composition(256, 256, steps=4, parts={"guidances": [PAPER]}),
    "sync_micro_batches": Composition(
        128,
        256,
        parts={"guidances": ["syncdiffusion"]},
        runtime={"micro_batch": 3, "guided_micro_batch": 2, "checkpointing": True},
    ),
    "both": Composition(256, 256, parts={"guidances": ["syncdiffusion", "msd"]}),
    "both_reversed": Composition(256, 256, parts={"guidances": ["msd", "syncdiffusion"]}),
    "two_ranks": Composition(256, 256, parts={"guidances": ["msd"], "scheduler": "euler_a"}, call={"wrap": "x"}, devices=2),
}


def latents(made: Composition) -> Tensor:
    """The finished canvas of a composition, on one thread, whose number decides the last bits."""
    torch.set_num_threads(1)
    if made.devices > 1:
        return _latents_of_the_command_line(made)
    runtime = Runtime(accelerator="cpu", **made.runtime)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "run.checkpoint"
        call = {"height": made.height, "width": made.width, "steps": made.steps, "seed": 3, **made.call}
        sampler = Sampler(**made.parts, runtime=runtime, callbacks=[Checkpoint(path, every=1)])
        for run in sampler.stream(made.prompt, **call):
            if made.resume and run.level.step == made.steps // 2:
                break
        if made.resume:
            sampler = Sampler(**made.parts, runtime=runtime, callbacks=[Checkpoint(path, every=0, resume=path)])
            *_, run = sampler.stream(made.prompt, **call)
    return run.canvas.clone()


def _latents_of_the_command_line(made: Composition) -> Tensor:
    with TemporaryDirectory() as folder:
        options = {"height": made.height, "width": made.width, "steps": made.steps, "seed": 3, **made.call}
        words = [f"--{name}={value}" for name, value in {**options, "devices": made.devices}.items()]
        words += [f"--scheduler={made.parts['scheduler']}", *(f"--guidances+={name}" for name in made.parts["guidances"])]
        command = [sys.executable, "-m", "panokit", "generate", str(made.prompt), *words]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run([*command, "--latents", "--quiet", f"--out={folder}/a.png"], check=True, timeout=300, env=environment)
        return load_file(f"{folder}/a.safetensors")["latents"]


def main() -> int:
    """Record the latents, or compare them with a record."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=["record", "compare"])
    parser.add_argument("path", type=Path)
    parser.add_argument("names", nargs="*", help="some of them; all unless given")
    given = parser.parse_args()
    names = given.names or [*COMPOSITIONS]
    if given.what == "record":
        save_file({name: latents(COMPOSITIONS[name]) for name in names}, given.path)
        return 0
    record, differ = load_file(given.path), 0
    for name in names:
        canvas = latents(COMPOSITIONS[name])
        equal = torch.equal(canvas, record[name])
        differ += not equal
        apart = "" if equal else f", {float((canvas - record[name]).abs().max()):.3g} apart"
        print(f"{name:<24}{'equal' if equal else 'DIFFERENT'}{apart}", flush=True)
    print(f"{len(names) - differ} of {len(names)} are equal to the last bit")
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
