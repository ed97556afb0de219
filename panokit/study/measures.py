"""What pictures are measured by: distances to the model's own pictures, agreement with prompts, layout, grain and seams.

Distances are torchmetrics': the Frechet distance (Heusel et al. 2017) and the kernel distance (Binkowski et al. 2018), on
features of whatever networks the study names. Features are kept in files beside the pictures: nothing is computed twice.
"""

import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from panokit import registry
from panokit.errors import OutputError, PanokitError, SettingError
from panokit.grid import Grid
from panokit.output import written_aside
from panokit.study.plan import Network

FEWEST = 2
"""The fewest panoramas, and references, of a prompt that KID can be had from; its deviation needs twice as many."""

Pixels = NDArray[np.uint8]


def pixels(path: Path) -> Pixels:
    """A picture, (H, W, 3).

    Raises:
        OutputError: it cannot be read.
    """
    try:
        with Image.open(path) as image:
            return np.array(image.convert("RGB"))
    except (OSError, SyntaxError) as cause:
        raise OutputError(f"{path} cannot be read as a picture: remove it") from cause


def corners(size: tuple[int, int], side: int, count: int | None = None) -> list[tuple[int, int]]:
    """Where squares lie side by side, top and left: rows from the middle of what is left over; `count` of them, evenly."""
    rows, columns = size[0] // side, size[1] // side
    top, left = (size[0] - rows * side) // 2, (size[1] - columns * side) // 2
    places = [(top + row * side, left + column * side) for row in range(rows) for column in range(columns)]
    if count is None or count >= len(places):
        return places
    return [places[k * len(places) // count] for k in range(count)]


def crops(picture: Pixels, window: tuple[int, int], side: int | None = None, count: int | None = None) -> Pixels:
    """Squares of a panorama at the size of a window, (n, h, w, 3); of full height unless given: layout shows only there."""
    side = side or len(picture)
    cut = [picture[top : top + side, left : left + side] for top, left in corners(picture.shape[:2], side, count)]
    size = (window[1], window[0])
    return np.stack([np.asarray(Image.fromarray(square).resize(size, Image.Resampling.LANCZOS)) for square in cut])


def seam(picture: Pixels, grid: Grid, factor: int) -> float:
    """The mean difference of neighbouring pixels across window borders, over that of all others; 1 where nothing shows."""
    ratios = []
    for axis in range(2):
        steps = np.abs(np.diff(picture.astype(np.float32), axis=axis)).mean(axis=(1 - axis, 2))
        edges = {edge for origin in grid.origins for edge in (origin[axis], origin[axis] + grid.window[axis])}
        borders = [edge * factor - 1 for edge in edges if 0 < edge < grid.size[axis]]
        if borders and (elsewhere := np.delete(steps, borders).mean()):  # in a flat picture there is no telling
            ratios.append(float(steps[borders].mean() / elsewhere))
    return float(np.mean(ratios)) if ratios else 1.0


def grain(picture: Pixels, share: float = 1.0) -> float:
    """The mean square of the second differences of brightness along both axes: the power of the finest detail.

    With a `share` of less than 1 the smallest squares alone count, which is that share of places where the picture is plainest:
    the power of noise rather than of edges.
    """
    grey = picture.astype(np.float32).mean(-1)
    squares = [np.sort(np.square(np.diff(grey, 2, axis)), axis=None) for axis in range(2)]
    return float(np.mean([square[: math.ceil(share * square.size)].mean() for square in squares]))


@final
class Features:
    """The features of pictures, by one network, kept in a folder.

    Args:
        net: a module that takes uint8 pictures `n 3 H W`.
        folder: where they are kept, by name.
        device: where the network is.
    """

    def __init__(self, net: Callable[[Tensor], Tensor], folder: Path, device: torch.device | str = "cpu") -> None:
        self.net, self.folder, self.device = net, folder, device

    @torch.no_grad()
    def of(self, name: str, pictures: Callable[[], Pixels]) -> Tensor:
        """Those of pictures (n, h, w, 3), `n d`; the pictures are only asked for where they are not kept."""
        kept = self.folder / f"{name}.npy"
        try:
            return torch.from_numpy(np.load(kept))
        except (OSError, ValueError, EOFError):  # not there, or broken
            features = self.net(batch(pictures()).to(self.device)).float().cpu()
        file = io.BytesIO()
        np.save(file, features.numpy())
        with written_aside(kept) as aside:
            aside.write_bytes(file.getvalue())
        return features


def made(network: Network) -> Any:
    """What a study's `module:Class`, or a mapping of that and settings, makes.

    Raises:
        PanokitError: it cannot be made.
    """
    settings = {"plugin": network} if isinstance(network, str) else dict(network)
    name = settings.pop("plugin", None)
    if not isinstance(name, str) or ":" not in name:
        raise SettingError(
            f"a network came as {network!r}: it must be module:Class, or {{plugin: module:Class, SETTING: VALUE}}"
        )
    try:
        return registry.attribute(name)(**settings)
    except PanokitError:
        raise
    except Exception as cause:  # files that are not there, settings that it has not
        raise SettingError(
            f"{name} cannot be made ({type(cause).__name__}: {' '.join(str(cause).split())[:200]}): leave it out, or give it "
            "what it needs"
        ) from cause


def batch(squares: Pixels) -> Tensor:
    """Pictures (n, h, w, 3) as networks take them, `n 3 h w`."""
    return torch.from_numpy(squares).permute(0, 3, 1, 2)


@final
class _Given(nn.Module):
    """For torchmetrics, which wants a network: features that are there already."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.num_features = count

    def forward(self, features: Tensor) -> Tensor:
        return features


def kid(own: Sequence[Sequence[Tensor]], reference: Sequence[Tensor], subsets: int = 100) -> NDArray[np.float64]:
    """The kernel distance on subsets: of half of the panoramas of each prompt, against its own references; mean over prompts.

    Prompts lie far apart in features: together, the mix of them in a subset would outweigh what is measured. And squares of
    one panorama are alike: the distance is taken between squares of different panoramas, the first of each, the second and so
    on, which leaves it without bias. The subsets are the same for whatever is measured, so two arrays can be subtracted; halves
    drawn without replacement spread as means of all do, so percentiles of the difference are an interval. With fewer than four
    panoramas of a prompt, all are taken, and only references vary.

    Args:
        own: features `n d` of each panorama's squares, as many of each, by prompt.
        reference: features `n d` of the references, by prompt.
        subsets: how many.

    Raises:
        SettingError: a prompt has fewer than two panoramas, or references.
    """
    from torchmetrics.image.kid import poly_mmd

    distances = np.zeros((len(own), subsets))
    for row, panoramas, beside in zip(distances, own, reference, strict=True):
        if min(len(panoramas), len(beside)) < FEWEST:
            raise SettingError(
                f"KID needs {FEWEST} panoramas and references of each prompt or more: there are {len(panoramas)} and "
                f"{len(beside)}"
            )
        squares = torch.stack([*panoramas], dim=1)  # the first of each, the second, and so on
        half = len(panoramas) // 2 if len(panoramas) >= 2 * FEWEST else len(panoramas)
        size = min(half, len(beside))
        rng = np.random.default_rng(0)
        for k in range(subsets):
            chosen = rng.permutation(len(panoramas))[:size]
            parts = rng.permutation(len(beside))[: len(beside) // size * size].reshape(-1, size)
            row[k] = np.mean([float(poly_mmd(beside[part], square[chosen])) for part in parts for square in squares])
    return np.asarray(distances.mean(0))


def fid(own: Tensor, reference: Tensor) -> float:
    """The Frechet distance of features; biased upwards where pictures are few.

    Raises:
        SettingError: there are fewer than two of either.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    if min(len(own), len(reference)) < 2:
        raise SettingError(f"FID needs 2 pictures or more of each kind: there are {len(own)} and {len(reference)}")
    # One rank measures what all have made, so there is nothing to gather.
    metric = FrechetInceptionDistance(feature=_Given(own.shape[1]), sync_on_compute=False)
    metric.update(reference, real=True)
    metric.update(own, real=False)
    return float(metric.compute())
