"""What pictures are measured by: distances to the model's own pictures, agreement with prompts, layout, grain and seams.

Distances are torchmetrics': the Frechet distance (Heusel et al. 2017) and the kernel distance (Binkowski et al. 2018), on
features of whatever networks the study names. Features are kept in files beside the pictures: nothing is computed twice.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from panokit import registry
from panokit.errors import SettingError
from panokit.grid import Grid

Pixels = NDArray[np.uint8]


class Distance(NamedTuple):
    """A distance between sets of pictures, and its deviation over subsets."""

    mean: float
    deviation: float


def pixels(path: Path) -> Pixels:
    """A picture, (H, W, 3)."""
    with Image.open(path) as image:
        return np.array(image.convert("RGB"))


def crops(picture: Pixels, window: tuple[int, int]) -> Pixels:
    """Squares of a panorama's full height, side by side, at the size of a window, (n, h, w, 3): layout shows only there."""
    height, width = picture.shape[:2]
    side = round(height * window[1] / window[0])
    squares = [picture[:, left : left + side] for left in range(0, width - side + 1, side)]
    size = (window[1], window[0])
    return np.stack([np.asarray(Image.fromarray(square).resize(size, Image.Resampling.LANCZOS)) for square in squares])


def seam(picture: Pixels, grid: Grid, factor: int) -> float:
    """The mean difference of neighbouring pixels across window borders, over that of all others; 1 where nothing shows."""
    ratios = []
    for axis in range(2):
        steps = np.abs(np.diff(picture.astype(np.float32), axis=axis)).mean(axis=(1 - axis, 2))
        edges = {edge for origin in grid.origins for edge in (origin[axis], origin[axis] + grid.window[axis])}
        borders = [edge * factor - 1 for edge in edges if 0 < edge < grid.size[axis]]
        if borders:
            ratios.append(float(steps[borders].mean() / np.delete(steps, borders).mean()))
    return float(np.mean(ratios)) if ratios else 1.0


def grain(picture: Pixels) -> float:
    """The mean square of the second differences of brightness along both axes: the power of the finest detail."""
    grey = picture.astype(np.float32).mean(-1)
    return float(np.mean([np.square(np.diff(grey, 2, axis)).mean() for axis in range(2)]))


@final
class Features:
    """The features of pictures, by one network, kept in a folder.

    Args:
        name: `module:Class` of a module that takes uint8 pictures `n 3 H W` and has `num_features`.
        folder: where they are kept, by the picture's name.

    Raises:
        SettingError: the network cannot be made, as where its weights are not to be had.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.folder = folder
        self.net = made(name)
        folder.mkdir(parents=True, exist_ok=True)

    @torch.no_grad()
    def of(self, path: Path, cut: Pixels) -> Tensor:
        """Those of a picture's crops, `n d`."""
        kept = self.folder / f"{path.stem}.npy"
        if not kept.exists():
            found = self.net(torch.from_numpy(cut).permute(0, 3, 1, 2))
            aside = kept.with_name(f".{kept.name}.npy")
            np.save(aside, found.float().numpy())
            aside.replace(kept)
        return torch.from_numpy(np.load(kept))


def made(name: str) -> Any:
    """What `module:Class` makes.

    Raises:
        SettingError: it cannot be made.
    """
    try:
        return registry.load("models", name)()
    except (OSError, RuntimeError) as cause:  # files that are not there
        raise SettingError(
            f"{name} cannot be made ({' '.join(str(cause).split())[:200]}): leave it out, or give it its files"
        ) from cause


@final
class _Given(nn.Module):
    """For torchmetrics, which wants a network: features that are there already."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.num_features = count

    def forward(self, features: Tensor) -> Tensor:
        return features


@contextmanager
def _unwarned() -> Iterator[None]:
    """Torchmetrics warns that features are kept, which they are meant to be."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*will save all extracted features", category=UserWarning)
        yield


def kid(own: Tensor, reference: Tensor, subsets: int = 50) -> Distance:
    """The kernel distance of features, `n d`, over subsets of half of the smaller set.

    Raises:
        SettingError: there are fewer than four of either.
    """
    from torchmetrics.image.kid import KernelInceptionDistance

    size = min(len(own), len(reference)) // 2
    if size < 2:
        raise SettingError(f"KID needs 4 pictures or more of each kind: there are {len(own)} and {len(reference)}")
    with _unwarned():
        # One rank measures what all have made, so there is nothing to gather.
        metric = KernelInceptionDistance(feature=_Given(own.shape[1]), subsets=subsets, subset_size=size, sync_on_compute=False)
    metric.update(reference, real=True)
    metric.update(own, real=False)
    torch.manual_seed(0)
    mean, deviation = metric.compute()
    return Distance(mean.item(), deviation.item())


def fid(own: Tensor, reference: Tensor) -> float:
    """The Frechet distance of features; biased upwards where pictures are few.

    Raises:
        SettingError: there are fewer than two of either.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    if min(len(own), len(reference)) < 2:
        raise SettingError(f"FID needs 2 pictures or more of each kind: there are {len(own)} and {len(reference)}")
    metric = FrechetInceptionDistance(feature=_Given(own.shape[1]), sync_on_compute=False)
    metric.update(reference, real=True)
    metric.update(own, real=False)
    return float(metric.compute())


def apart(ours: Sequence[Tensor], theirs: Sequence[Tensor], reference: Tensor, subsets: int = 100) -> NDArray[np.float64]:
    """Our kernel distance minus theirs, on subsets: the same half of the pairs of panoramas for both.

    Args:
        ours: features a panorama, of the same prompts and seeds as `theirs`.
        theirs: likewise.
        reference: features of the model's own pictures.
        subsets: how many.
    """
    from torchmetrics.image.kid import poly_mmd

    rng = np.random.default_rng(0)
    found = []
    for _ in range(subsets):
        chosen = rng.choice(len(ours), size=max(2, len(ours) // 2), replace=False)
        one, two = (torch.cat([features[k] for k in chosen]) for features in (ours, theirs))
        beside = reference[torch.from_numpy(rng.choice(len(reference), size=min(len(one), len(reference)), replace=False))]
        size = len(beside)
        found.append(float(poly_mmd(beside, one[:size]) - poly_mmd(beside, two[:size])))
    return np.asarray(found)


def table(rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; the first row is its head."""
    head, *rest = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([head, f"|{'---|' * len(rows[0])}", *rest])


def over(rows: Sequence[Mapping[str, float]], of: Callable[[list[float]], Any]) -> dict[str, float]:
    """The mean, or whatever it is `of`, of each number over panoramas."""
    return {name: float(of([row[name] for row in rows])) for name in rows[0]}
