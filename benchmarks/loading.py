"""Memory and time of loading a model of real size: Stable Diffusion 2.0's own configuration, with random weights in fp16.

    python benchmarks/loading.py [FOLDER]

writes the model (2.6 GB; kept if a FOLDER is given, and used again), and loads it in processes of their own: with `load_model`,
which reads Stable Diffusion as float32, and with `load_pipeline`, which keeps the precision of the files. The script prints the
seconds, the bytes of the weights as they are held, the largest memory of the process above that of its imports, and the ratio
of the two. The last process denoises one step of two windows of 16 x 16 cells.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from panokit.testing.tiny import tiny_model

MEASURE = """
import sys, time
from pathlib import Path
import torch
from panokit import Runtime, Sampler, load_model
from panokit.backbones.diffusers.loading import load_pipeline

how, folder = sys.argv[1:]

def memory(name):
    return int(Path("/proc/self/status").read_text().partition(f"\\n{name}:")[2].split()[0]) * 1024

def report(what, networks, began):
    weights = [weight for network in networks for weight in (*network.parameters(), *network.buffers())]
    for weight in weights:
        weight.sum()  # weights of the files' own precision are read when they are first used
    held = sum(weight.nbytes for weight in weights)
    seconds, peak = time.monotonic() - began, memory("VmHWM") - before
    print(f"{what}: {seconds:.1f} s, held {held / 1e9:.2f} GB, peak {peak / 1e9:.2f} GB, ratio {peak / held:.2f}")

before, began = memory("VmRSS"), time.monotonic()
if how == "load_pipeline":
    pipe = load_pipeline(folder)
    report(how, [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)], began)
else:
    model = load_model(folder, window=16)
    report(how, model.networks, began)
    if how == "step":
        began = time.monotonic()
        run = Sampler(model, runtime=Runtime(accelerator="cpu")).begin("a lake", height=128, width=192, steps=2)
        run.step()
        report("one step", model.networks, began)
"""


def make(folder: Path) -> None:
    """Write Stable Diffusion 2.0 with random weights."""
    denoiser = tiny_model().denoiser
    with torch.device("meta"):
        parts: dict[str, nn.Module] = {
            "unet": UNet2DConditionModel(
                sample_size=64, cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True
            ),
            "vae": AutoencoderKL(
                block_out_channels=(128, 256, 512, 512),
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                layers_per_block=2,
                sample_size=768,
                latent_channels=4,
            ),
            "text_encoder": CLIPTextModel(
                CLIPTextConfig(
                    vocab_size=49408,
                    hidden_size=1024,
                    intermediate_size=4096,
                    num_hidden_layers=23,
                    num_attention_heads=16,
                    hidden_act="gelu",
                )
            ),
        }
    for part in parts.values():
        part.half().to_empty(device="cpu")
        for name, weight in part.named_parameters():
            weight.data.normal_(std=0.02) if weight.ndim > 1 else weight.data.fill_("norm" in name and "weight" in name)
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    scheduler = DDIMScheduler(**betas, steps_offset=1, clip_sample=False)
    pipe = StableDiffusionPipeline(
        **parts,
        tokenizer=denoiser.tokenizer,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder, variant="fp16")


def measure(folder: Path) -> None:
    if not (folder / "model_index.json").exists():
        make(folder)
    for how in ("load_model", "load_pipeline", "step"):
        subprocess.run([sys.executable, "-c", MEASURE, how, str(folder)], check=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measure(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as made:
            measure(Path(made))
