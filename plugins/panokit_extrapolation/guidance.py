"""The guidance: it paints the canvas window by window, and then knows it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from panokit import Estimate, Guidance, Known, Level, SettingError, Step, Windows
from panokit_extrapolation.tiles import Tiles

Memory = dict[str, Any]


@dataclass(frozen=True)
class _Knows(Guidance):
    """A guidance that moves no window."""

    def strength(self, level: Level) -> float:
        return 0.0

    def energy(self, seen: Estimate, index: Sequence[int], context: Any) -> Float[Tensor, " n"]:
        return seen.x0.new_zeros(len(index))


@final
@dataclass(frozen=True)
class Extrapolation(_Knows):
    r"""Window by window: each is denoised in all steps, while what was painted before is known.

    Window $k$ has new cells, $m_k = 1$, which no window before it covers. In a run of its own from noise, the window's
    prediction leads there, and elsewhere the canvas is what is painted, $y$, at the noise level of the step:

    $$ x_t \leftarrow m_k\, x_t + (1 - m_k)\, (\alpha_t y + \sigma_t \epsilon) $$

    (Avrahami et al. 2023, algorithm 1). The finished new cells are put into $y$, and the next window goes on. Windows come in
    the order of their numbers: row by row, each from the left. They are painted during the steps of the run, some at each
    step, so that a run can be watched, stopped and resumed.

    Other guidances of the run guide these windows, too, but those that know a canvas of their own, which would hold the new
    cells. Every fuser gives the same picture.
    """

    @property
    def starts(self) -> bool:
        return True

    def begin(self, windows: Windows, levels: Sequence[Level]) -> Memory:
        windows = windows.at(levels[0])  # a layout that moves its windows does so from step to step, and this sweep has none
        return {"origins": [_origin(windows, k) for k in range(len(windows))], "painted": 0}

    def known(self, step: Step, memory: Memory) -> Known:
        windows, origins = step.windows, memory["origins"]
        if "canvas" not in memory:
            memory |= {"canvas": torch.zeros_like(step.canvas), "covered": torch.zeros(windows.size, dtype=torch.bool)}
        while memory["painted"] * step.level.steps < (step.level.step + 1) * len(origins):
            tiles = Tiles(windows.size, windows.window, windows.wrap, tuple(origins[memory["painted"]]))
            covered = memory["covered"].cpu()
            more = covered.clone()
            for at, _ in tiles.places(0):
                more[at] = True
            if not torch.equal(more, covered):
                # The noise of one step's windows is one canvas of noise. Each cell is new once, so none is used twice.
                others = [other for other in step.others if type(other).known is Guidance.known]
                memory["canvas"] = step.paint(tiles, [_Stage(memory["canvas"], covered | ~more), *others])
            memory |= {"covered": more, "painted": memory["painted"] + 1}
        # Cells that are not painted yet change later. No model sees them here, and the last step sets all cells.
        return Known(memory["canvas"])


@final
@dataclass(frozen=True, eq=False)
class _Stage(_Knows):
    """All but the new cells of one window.

    Attributes:
        x0: what is painted so far, `c *size`. Cells that no window has covered hold anything: no computed window sees them.
        where: the cells that are not new, `*size`.
    """

    x0: Float[Tensor, "*c_size"]
    where: Bool[Tensor, "*size"]

    def known(self, step: Step, memory: None) -> Known:
        return Known(self.x0, self.where)


def _origin(windows: Windows, k: int) -> list[int]:
    """The first cell of a window.

    Raises:
        SettingError: the window is no block of the canvas.
    """
    cells = windows.cells([k])[0]
    block = torch.stack(torch.meshgrid(*map(torch.arange, windows.window), indexing="ij"))
    origin = cells.flatten(1)[:, 0]
    if cells.shape != block.shape or not torch.equal(cells - origin.view(-1, *(1,) * len(windows.window)), block):
        raise SettingError(
            f"window {k} of this layout has gaps or is bent, and extrapolation continues blocks of cells: choose the layout "
            "overlap"
        )
    return [int(at) for at in origin]
