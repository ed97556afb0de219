"""Measures of pictures: distances to the model's own pictures, grain and seams.

torchmetrics computes the distances: the Frechet distance (Heusel et al. 2017) and the kernel distance (Binkowski et al. 2018).
They compare features of pictures, by any network that the study names. Files keep the features, so nothing is computed twice.
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
from panokit.files import written_aside
from panokit.opening import decoded, opened
from panokit.study.plan import Network
from panokit.windows import Projected, Windows

FEWEST = 2
"""KID needs at least this many panoramas and references for each prompt. Its deviation needs twice as many panoramas."""

Pixels = NDArray[np.uint8]


def pixels(path: Path) -> Pixels:
    """Read a picture, uint8 (H, W, 3).

    Raises:
        OutputError: the file cannot be read as a picture.
    """
    try:
        with opened(path) as image:
            return np.array(decoded(image, path).convert("RGB"))
    except SettingError as cause:
        raise OutputError(f"{cause}, or remove it") from cause


def corners(size: tuple[int, int], side: int, count: int | None = None) -> list[tuple[int, int]]:
    """Place squares side by side in the middle of a picture.

    Args:
        size: height and width of the picture, in pixels.
        side: side of a square, in pixels.
        count: how many of the squares to keep, evenly spread; None keeps all.

    Returns:
        The top and left edge of each square, in pixels, row by row. The list is empty if the picture holds no square.
    """
    rows, columns = size[0] // side, size[1] // side
    top, left = (size[0] - rows * side) // 2, (size[1] - columns * side) // 2
    places = [(top + row * side, left + column * side) for row in range(rows) for column in range(columns)]
    if count is None or count >= len(places):
        return places
    return [places[k * len(places) // count] for k in range(count)]


def crops(picture: Pixels, window: tuple[int, int], side: int | None = None, count: int | None = None) -> Pixels:
    """Cut squares out of a panorama and resize them to the size of a window.

    Args:
        picture: the panorama, uint8 (H, W, 3).
        window: height and width of the result, in pixels.
        side: side of a square, in pixels. None is the full height, because only there the layout shows.
        count: how many squares; None cuts as many as lie side by side.

    Returns:
        The squares, uint8 (n, h, w, 3).
    """
    side = side or len(picture)
    cut = [picture[top : top + side, left : left + side] for top, left in corners(picture.shape[:2], side, count)]
    size = (window[1], window[0])
    return np.stack([np.asarray(Image.fromarray(square).resize(size, Image.Resampling.LANCZOS)) for square in cut])


def seam(picture: Pixels, windows: Windows, factor: int) -> float:
    """How much window borders show: the mean difference of neighbouring pixels across them, divided by that of all others.

    Args:
        picture: the panorama, uint8 (H, W, 3).
        windows: where its windows lie on the canvas.
        factor: pixels along a side of one cell of the canvas.

    Returns:
        The mean of the ratios along both axes. It is 1 if borders do not show, or if there is nothing to compare.

    Raises:
        SettingError: the canvas is no plane, so the borders of its windows are not straight.
    """
    if isinstance(windows, Projected):
        raise SettingError("seams are measured along straight borders of windows, and those here are bent: leave it out")
    ratios, places = [], windows.cells().flatten(2)
    for axis in range(2):
        steps = np.abs(np.diff(picture.astype(np.float32), axis=axis)).mean(axis=(1 - axis, 2))
        edges = {*places[:, axis].amin(1).tolist(), *(places[:, axis].amax(1) + 1).tolist()}
        borders = [edge * factor - 1 for edge in sorted(edges) if 0 < edge < windows.size[axis]]
        if borders and (elsewhere := np.delete(steps, borders).mean()):  # zero in a flat picture
            ratios.append(float(steps[borders].mean() / elsewhere))
    return float(np.mean(ratios)) if ratios else 1.0


def grain(picture: Pixels, share: float = 1.0) -> float:
    """The power of the finest detail: the mean square of the second differences of brightness, the mean over both axes.

    Args:
        picture: the picture, uint8 (H, W, 3).
        share: the share of places that count, more than 0 and up to 1, where the picture is plainest. All places show mostly
            edges; a share of less than 1 shows noise.
    """
    grey = picture.astype(np.float32).mean(-1)
    squares = [np.sort(np.square(np.diff(grey, 2, axis)), axis=None) for axis in range(2)]
    return float(np.mean([square[: math.ceil(share * square.size)].mean() for square in squares]))


@final
class Features:
    """The features of pictures by one network. A folder keeps them.

    Args:
        net: a module that takes uint8 pictures `n 3 H W` and returns features `n d`.
        folder: the folder, with one file for each name.
        device: the device of the network.
    """

    def __init__(self, net: Callable[[Tensor], Tensor], folder: Path, device: torch.device | str = "cpu") -> None:
        self.net, self.folder, self.device = net, folder, device

    @torch.no_grad()
    def of(self, name: str, pictures: Callable[[], Pixels]) -> Tensor:
        """Read features from the folder, or compute them.

        Args:
            name: the name of the file, without its ending.
            pictures: makes the pictures, uint8 (n, h, w, 3). It is called only if the folder does not have their features.

        Returns:
            The features, `n d`, on the CPU.

        Raises:
            OutputError: the file cannot be written.
        """
        kept = self.folder / f"{name}.npy"
        try:
            return torch.from_numpy(np.load(kept))
        except (OSError, ValueError, EOFError):  # the file is missing or broken
            features = self.net(batch(pictures()).to(self.device)).float().cpu()
        file = io.BytesIO()
        np.save(file, features.numpy())
        with written_aside(kept) as aside:
            aside.write_bytes(file.getvalue())
        return features


def made(network: Network) -> Any:
    """Make a network or measure of a study.

    Args:
        network: `module:Class`, or a mapping with this name as `plugin` and the arguments of the class.

    Returns:
        An instance of the class.

    Raises:
        PanokitError: the name is wrong, or the class cannot be imported or raises an error.
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
    except Exception as cause:  # a missing file or an unknown setting, for example
        raise SettingError(
            f"{name} cannot be made ({type(cause).__name__}: {' '.join(str(cause).split())[:200]}): leave it out, or give it "
            "what it needs"
        ) from cause


def batch(squares: Pixels) -> Tensor:
    """Convert pictures, uint8 (n, h, w, 3), to what networks take, `n 3 h w`."""
    return torch.from_numpy(squares).permute(0, 3, 1, 2)


@final
class _Identity(nn.Module):
    """Returns features unchanged: torchmetrics asks for a network, but the features are already computed."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def kid(own: Sequence[Sequence[Tensor]], reference: Sequence[Tensor], subsets: int = 100) -> NDArray[np.float64]:
    r"""The kernel distance of panoramas to references, on random subsets (Binkowski et al. 2018); the mean over prompts.

    It is the unbiased estimate of the squared maximum mean discrepancy with the kernel $k(x, y) = (x^T y / d + 1)^3$:

    - Each prompt is compared with its own references. Prompts lie far apart in features, so the mix of prompts in a subset
      would outweigh the methods.
    - Only squares of different panoramas are compared with each other: the first ones of all panoramas, the second ones and so
      on. Squares of one panorama are alike, and pairs of them would bias the distance.
    - A subset holds half of the panoramas, drawn without replacement. Means of such halves spread as much as means of all
      panoramas do, so percentiles over subsets are an interval. The subsets are the same for all methods, so two results can be
      subtracted. If a prompt has fewer than four panoramas, a subset holds all of them, and only the references vary.

    Args:
        own: features `n d` of the squares, by prompt and by panorama. Every panorama has the same number of squares.
        reference: features `n d` of the references, by prompt.
        subsets: number of subsets.

    Returns:
        The distance on each subset, an array of `subsets` numbers.

    Raises:
        SettingError: a prompt has fewer than two panoramas, or fewer than two references.
    """
    from torchmetrics.image.kid import poly_mmd

    distances = np.zeros((len(own), subsets))
    for row, panoramas, references in zip(distances, own, reference, strict=True):
        if min(len(panoramas), len(references)) < FEWEST:
            raise SettingError(
                f"KID needs at least {FEWEST} panoramas and {FEWEST} references for each prompt, but there are "
                f"{len(panoramas)} and {len(references)}: make more"
            )
        squares = torch.stack([*panoramas], dim=1)  # the first squares, the second ones, and so on
        half = len(panoramas) // 2 if len(panoramas) >= 2 * FEWEST else len(panoramas)
        size = min(half, len(references))
        rng = np.random.default_rng(0)
        for k in range(subsets):
            chosen = rng.permutation(len(panoramas))[:size]
            parts = rng.permutation(len(references))[: len(references) // size * size].reshape(-1, size)
            row[k] = np.mean([float(poly_mmd(references[part], square[chosen])) for part in parts for square in squares])
    return np.asarray(distances.mean(0))


def fid(own: Tensor, reference: Tensor) -> float:
    r"""The Frechet distance of features (Heusel et al. 2017). With few pictures it is too large.

    $$ |\mu - \mu'|^2 + \mathrm{tr}(\Sigma + \Sigma' - 2 (\Sigma \Sigma')^{1/2}) $$
    for features with means $\mu, \mu'$ and covariances $\Sigma, \Sigma'$.

    Args:
        own: features of squares, `n d`.
        reference: features of references, `m d`.

    Raises:
        SettingError: there are fewer than two squares, or fewer than two references.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    if min(len(own), len(reference)) < 2:
        raise SettingError(
            f"FID needs at least 2 squares and 2 references, but there are {len(own)} and {len(reference)}: make more"
        )
    # One rank computes this from the features of all ranks, so torchmetrics must not gather.
    metric = FrechetInceptionDistance(feature=_Identity(own.shape[1]), sync_on_compute=False)
    metric.update(reference, real=True)
    metric.update(own, real=False)
    return float(metric.compute())
