"""Swap Forward (SaFa; Dai et al. 2025): where windows overlap, they take turns, column by column. Nothing is averaged.

A mean of windows loses what differs between them: noise and fine detail. Here each cell of the fused canvas is the value of one
window. Neighbours stay alike because each of them continues from columns of the other at the next step.

Source: Dai, Wang, Li, Wang, Li, Du, Sun, Gao, Wang, Ma, "Latent Swap Joint Diffusion for 2D Long-Form Latent Generation", ICCV
2025, arXiv:2502.05130: the Self-Loop Latent Swap, eq. 9 and 10. Its mask is the same at all steps; here it alternates.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from panokit import Level, SettingError, WeightedFuser, Windows


@final
@dataclass(frozen=True)
class SaFa(WeightedFuser):
    r"""Windows that take turns where they overlap, in stripes that change hands at each step.

    Take an axis along which the windows $i$ and $i + 1$ overlap. Cell $j = 0, 1, \dots$ of the overlap has the value

    $$ z_j = v_j\, x^i_j + (1 - v_j)\, x^{i+1}_j, \qquad
       v_j = \tfrac12 \left[1 - (-1)^{\lfloor j / w \rfloor + k}\right] $$

    at step $k$, with `width` $w$. So the weights are 0 and 1. In two directions they are the products of those along both axes:
    of the four windows over a cell one has it. Where the border of a canvas pushes a third window over a cell, the three take
    turns.

    Attributes:
        width: $w$, cells of a stripe, 1 or more. The paper finds 1 the smoothest.

    Raises:
        SettingError: `width` is below 1.
    """

    constant: ClassVar[bool] = False

    width: int = 1

    def __post_init__(self) -> None:
        if self.width < 1:
            raise SettingError(f"width is {self.width}: a stripe must have 1 cell or more")

    def begin(self, windows: Windows, levels: Sequence[Level]) -> None:
        """Check that windows lie in rows and columns, and that each overlaps its two neighbours along an axis alone.

        Raises:
            SettingError: they do not.
        """
        moments = {windows, *map(windows.at, levels)}
        lines = [line for line in map(_lines, moments) if line]
        if len(lines) < len(moments):
            raise SettingError(
                "safa swaps columns between windows that lie in rows and columns, and those of this layout do not: choose "
                "another one, such as overlap"
            )
        for axis, (window, along) in enumerate(zip(windows.window, zip(*lines, strict=True), strict=True)):
            # Borders push windows together, so the largest distance is the one that was chosen.
            most, apart = max(line.most for line in along), max(line.apart for line in along)
            if most > 2 and 2 * apart < window:
                raise SettingError(
                    f"safa swaps between two windows, and {most} windows of {window} cells overlap along axis {axis}: choose "
                    f"a stride of {-(-window // 2)} cells or more"
                )

    def weight(self, windows: Windows, level: Level) -> Float[Tensor, "#n *window"]:
        """1 where a window has the cell at this step, and 0 elsewhere; see `WeightedFuser.weight`.

        Windows that do not lie in rows and columns, which `begin` refuses, count alike.
        """
        weight = torch.ones(1, *windows.window)
        for axis, line in enumerate(_lines(windows) or ()):
            turns = line.turns(self.width, level.step).to(weight)[line.index]
            weight = weight * turns.view(len(windows), *(-1 if a == axis else 1 for a in range(weight.ndim - 1)))
        return weight


@final
@dataclass(frozen=True, eq=False)
class Line:
    """The windows along one axis.

    Attributes:
        within: for each place of windows and each cell of the axis, the position of the cell in the window, `k size`; outside
            of the window it is no position of it.
        window: cells of a window.
        first: the first cell of each place, `k`, in order.
        apart: the largest distance from one place to the next, in cells; 0 if there is one place.
        index: the place of each window, `n`.
    """

    within: Int[Tensor, "k size"]
    window: int
    first: Int[Tensor, " k"]
    apart: int
    index: Int[Tensor, " n"]

    @property
    def covers(self) -> Tensor:
        """Whether a window covers a cell, `k size`."""
        return (self.within >= 0) & (self.within < self.window)

    @property
    def most(self) -> int:
        """The largest number of windows over a cell."""
        return int(self.covers.sum(0).max())

    def turns(self, width: int, step: int) -> Tensor:
        """Whether a window has a cell of its own at a step, `k window`."""
        covers, count = self.covers, self.covers.sum(0)
        order = torch.where(covers, -self.within, self.window).argsort(0).argsort(0)  # 0: the window that begins first
        since = torch.where(covers, self.within, self.window).amin(0)  # how far the cell lies in the overlap
        mine = covers & (order == (since // width + step + count - 1) % count)
        cells = (self.first[:, None] + torch.arange(self.window)) % self.within.shape[1]
        return mine.gather(1, cells)


@lru_cache(maxsize=32)
def _lines(windows: Windows) -> tuple[Line, ...] | None:
    """The windows along each axis; None if they are not all pairs of rows and columns, or have gaps."""
    whole, firsts = torch.stack(torch.meshgrid(*map(torch.arange, windows.window), indexing="ij")), []
    for i in range(len(windows)):
        (place,) = windows.cells([i])
        firsts.append(place.flatten(1).amin(1))
        if not torch.equal(place, whole + firsts[-1].view(-1, *(1,) * len(windows.window))):
            return None
    starts = torch.stack(firsts)
    lines = []
    for start, window, size, ring in zip(starts.unbind(1), windows.window, windows.size, windows.wrap, strict=True):
        first, index = start.unique(return_inverse=True)
        within = torch.arange(size) - first[:, None]
        apart = int(max((torch.cat([first, first[:1] + size]) if ring else first).diff().tolist(), default=0))
        lines.append(Line(within % size if ring else within, window, first, apart, index))
    pairs, covered = len(starts.unique(dim=0)), all(bool(line.covers.any(0).all()) for line in lines)
    return tuple(lines) if covered and pairs == len(windows) == math.prod(len(line.first) for line in lines) else None
