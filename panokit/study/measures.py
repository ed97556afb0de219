"""What pictures are measured by: distances to the model's own pictures, agreement with prompts, layout, grain and seams.

Distances are torchmetrics': the Frechet distance (Heusel et al. 2017) and the kernel distance (Binkowski et al. 2018), on
features of whatever networks the study names. Features are kept in files beside the pictures: nothing is computed twice.
"""

import io
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
from panokit.errors import PanokitError, SettingError
from panokit.grid import Grid
from panokit.panorama import written_aside
from panokit.study.plan import Network

FEWEST = 4
"""The fewest pictures that KID can be had from, with its deviation over halves of them."""

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
        net: a module that takes uint8 pictures `n 3 H W`.
        folder: where they are kept, by the picture's name.
        device: where the network is.
    """

    def __init__(self, net: Callable[[Tensor], Tensor], folder: Path, device: torch.device | str = "cpu") -> None:
        self.net, self.folder, self.device = net, folder, device
        folder.mkdir(parents=True, exist_ok=True)

    @torch.no_grad()
    def of(self, path: Path, cut: Pixels) -> Tensor:
        """Those of a picture's crops, `n d`."""
        kept = self.folder / f"{path.stem}.npy"
        if not kept.exists():
            found = self.net(batch(cut).to(self.device))
            file = io.BytesIO()
            np.save(file, found.float().cpu().numpy())
            with written_aside(kept) as aside:
                aside.write_bytes(file.getvalue())
        return torch.from_numpy(np.load(kept))


def made(network: Network) -> Any:
    """What a study's `module:Class`, or a mapping of that and settings, makes.

    Raises:
        PanokitError: it cannot be made.
    """
    settings = {"plugin": network} if isinstance(network, str) else dict(network)
    if not isinstance(name := settings.pop("plugin", None), str):
        raise SettingError(
            f"a network came as {network!r}: it must be module:Class, or {{plugin: module:Class, SETTING: VALUE}}"
        )
    try:
        return registry.load("models", name)(**settings)
    except PanokitError:
        raise
    except (OSError, RuntimeError, TypeError) as cause:  # files that are not there, settings that it has not
        raise SettingError(
            f"{name} cannot be made ({' '.join(str(cause).split())[:200]}): leave it out, or give it its files"
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


@contextmanager
def _unwarned() -> Iterator[None]:
    """Torchmetrics warns that features are kept, which they are meant to be."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*will save all extracted features", category=UserWarning)
        yield


def kid(own: Sequence[Tensor], reference: Sequence[Tensor], subsets: int = 50) -> Distance:
    """The kernel distance of features, `n d` a prompt: the mean over prompts, each against its own references.

    Prompts lie far apart in features, so the mix of them in a subset would outweigh what is measured. The deviation is over
    subsets of half of the smaller set.

    Raises:
        SettingError: a prompt has fewer than four of either.
    """
    from torchmetrics.image.kid import KernelInceptionDistance

    found = []
    for ours, theirs in zip(own, reference, strict=True):
        size = min(len(ours), len(theirs)) // 2
        if size < FEWEST // 2:
            raise SettingError(
                f"KID needs {FEWEST} pictures or more of each kind and prompt: there are {len(ours)} and {len(theirs)}"
            )
        with _unwarned():
            # One rank measures what all have made, so there is nothing to gather.
            metric = KernelInceptionDistance(
                feature=_Given(ours.shape[1]), subsets=subsets, subset_size=size, sync_on_compute=False
            )
        metric.update(theirs, real=True)
        metric.update(ours, real=False)
        torch.manual_seed(0)
        found.append([value.item() for value in metric.compute()])
    means, deviations = np.transpose(found)
    return Distance(float(means.mean()), float(np.sqrt(np.square(deviations).sum())) / len(found))


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


def apart(
    ours: Sequence[Sequence[Tensor]], theirs: Sequence[Sequence[Tensor]], reference: Sequence[Tensor], subsets: int = 200
) -> NDArray[np.float64]:
    """Our kernel distance minus theirs, the mean over prompts, on subsets: the same half of the panoramas for both.

    Halves drawn without replacement spread as means of all do, so percentiles of these are an interval.

    Args:
        ours: features `n d` of each panorama, by prompt; two panoramas or more.
        theirs: likewise, of the same seeds.
        reference: features of the references, by prompt.
        subsets: how many.
    """
    from torchmetrics.image.kid import poly_mmd

    rng = np.random.default_rng(0)
    found = np.zeros(subsets)
    for k in range(subsets):
        for one, two, beside in zip(ours, theirs, reference, strict=True):
            chosen = rng.choice(len(one), size=len(one) // 2, replace=False)
            a, b = (torch.cat([features[i] for i in chosen]) for features in (one, two))
            c = beside[torch.from_numpy(rng.choice(len(beside), size=min(len(a), len(beside)), replace=False))]
            found[k] += float(poly_mmd(c, a[: len(c)]) - poly_mmd(c, b[: len(c)])) / len(ours)
    return found


def table(rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; the first row is its head."""
    head, *rest = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([head, f"|{'---|' * len(rows[0])}", *rest])


def over(rows: Sequence[Mapping[str, float]], of: Callable[[list[float]], Any]) -> dict[str, float]:
    """The mean, or whatever it is `of`, of each number over panoramas."""
    return {name: float(of([row[name] for row in rows])) for name in rows[0]}
