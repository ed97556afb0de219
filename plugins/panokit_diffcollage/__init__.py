"""DiffCollage (Zhang et al. 2023): windows are the factors of one density, and what neighbours share is counted once.

MultiDiffusion takes the mean of the windows over a cell. Here their scores are added, and those of their overlaps are
subtracted, as the density of a chain is the product of its windows divided by that of its overlaps.

Source: Zhang, Song, Huang, Chen, Liu, "DiffCollage: Parallel Generation of Large Content with Diffusion Models",
arXiv:2303.17076, section 3: the chain, the loop and the grid.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any, NamedTuple, final

import torch
from jaxtyping import Float
from torch import Tensor

from panokit import Family, Lattice, Level, Model, SettingError, Windows, WrappedDenoiser, load_model
from panokit_diffcollage.overlaps import Overlaps, Piece, pieces, rows_and_columns


@final
@dataclass(frozen=True)
class DiffCollage(Family):
    r"""A model whose windows are joined as factors: the sum of their scores, less those of their overlaps.

    Along one axis, with windows $x_i$ in order, and $o_i$ the overlap of $x_i$ and $x_{i+1}$:

    $$ \nabla \log p(x) = \sum_i \nabla \log p(x_i) - \sum_i \nabla \log p(o_i) $$

    On a ring, $o_i$ of the last window is its overlap with the first one. In two directions a factor is a product of two parts,
    one along each axis, and its sign is the product of their signs: overlaps times overlaps count once again.

    The fuser must be `multidiffusion` with `weights: uniform`, whose plain mean makes these sums; see `Collage`.

    Attributes:
        model: the model that evaluates the factors: its name, or a mapping of `plugin`, the name, and settings.
    """

    model: str | Mapping[str, Any] = "landscapes"

    @classmethod
    def reads(cls, index: Mapping[str, Any]) -> bool:
        return False

    def load(self, source: str, name: str) -> Model:
        inner = load_model(self.model)
        if isinstance(inner.denoiser, WrappedDenoiser):
            raise SettingError(f"{inner.name} is made of another model already, and DiffCollage takes a plain one: name that")
        return Model(Collage(inner.denoiser), inner.codec, name)


class Factors(NamedTuple):
    """Factors of one shape that go through the inner denoiser in one batch.

    Attributes:
        rows: for each, the position of its window in the batch of windows.
        cells: for each, its place in the window.
        counts: for each axis, how often each factor counts in its cells, `n cells`.
        condition: the condition of the inner denoiser.
    """

    rows: Sequence[int]
    cells: Sequence[tuple[slice, ...]]
    counts: Sequence[Tensor]
    condition: Any


@final
class Collage(WrappedDenoiser):
    r"""A denoiser that evaluates the overlaps of windows too, so that the mean over windows is that of a factor graph.

    Let $d_a$ windows cover a cell along axis $a$, of which $b_a$ begin before this one. The prediction for the cell is

    $$ \prod_a \left( d_a W_a - b_a O_a^- - (d_a - 1 - b_a)\, O_a^+ \right) $$

    with $W_a$ for all of the window along the axis, $O_a^-$ for its overlap with the window before, and $O_a^+$ for that with
    the window after it. A product of these is a factor, and stands for what the inner denoiser predicts for it alone. In the
    mean over the $\prod_a d_a$ windows each factor of the graph counts once, with its sign. The counts of a window sum to 1. So
    this holds for predictions of the noise, the velocity and a flow, as for scores.

    A guidance moves each window by itself. So each window evaluates its overlaps itself, and a factor is evaluated twice.

    Args:
        inner: evaluates the factors.
    """

    def condition(self, embeddings: Any, windows: Windows, index: Sequence[int]) -> list[Factors]:
        lattice, starts = rows_and_columns(windows)
        by_shape: dict[tuple[int, ...], list[tuple[int, tuple[Piece, ...]]]] = defaultdict(list)
        for row, i in enumerate(index):
            axes = zip(lattice.size, lattice.window, starts, lattice.origins[i], lattice.wrap, strict=True)
            for part in product(*(pieces(*axis) for axis in axes)):
                by_shape[tuple(len(piece.counts) for piece in part)].append((row, part))
        batches = []
        for shape, parts in by_shape.items():
            most = max(1, len(index) * prod(lattice.window) // prod(shape))  # as many cells as the windows have
            batches += [self._factors(embeddings, lattice, index, parts[k : k + most]) for k in range(0, len(parts), most)]
        return batches

    def _factors(
        self, embeddings: Any, windows: Lattice, index: Sequence[int], parts: Sequence[tuple[int, tuple[Piece, ...]]]
    ) -> Factors:
        """Factors of one shape, with their condition."""
        rows, cells = [row for row, _ in parts], [tuple(piece.cells for piece in part) for _, part in parts]
        counts = [torch.stack(axis) for axis in zip(*([piece.counts for piece in part] for _, part in parts), strict=True)]
        overlaps = Overlaps.of(windows, [(index[row], place) for row, place in zip(rows, cells, strict=True)])
        if overlaps.window == windows.window:
            return Factors(rows, cells, counts, self.inner.condition(embeddings, windows, [index[row] for row in rows]))
        try:
            condition = self.inner.condition(embeddings, overlaps, range(len(overlaps)))
        except SettingError as cause:
            shape = " x ".join(map(str, overlaps.window))
            raise SettingError(
                f"DiffCollage denoises overlaps of {shape} cells, and the model refuses them ({cause}): choose another stride"
            ) from cause
        return Factors(rows, cells, counts, condition)

    def __call__(self, x: Float[Tensor, "n *c_window"], level: Level, condition: Any) -> Float[Tensor, "n *c_window"]:
        total = torch.zeros_like(x)
        for factors in condition:
            places = [(row, ..., *cells) for row, cells in zip(factors.rows, factors.cells, strict=True)]
            pred = self.inner(torch.stack([x[place] for place in places]), level, factors.condition)
            for axis, count in enumerate(factors.counts, start=2):
                pred = pred * count.to(pred).view(len(count), *(-1 if k == axis else 1 for k in range(1, pred.ndim)))
            for place, part in zip(places, pred, strict=True):
                total[place] += part
        return total
