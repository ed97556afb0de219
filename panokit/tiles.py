"""Tiles: parts of a canvas that pass through the stages of a decoder, each with as many neighbouring cells as it needs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple, final

import torch
from torch import Tensor

from panokit.canvas_statistics import CanvasStatistics, Core
from panokit.denoiser import Stage


class Span(NamedTuple):
    """Cells along one axis, from `start` up to `stop`. On a ring they may go over the join: then `stop` is larger than it."""

    start: int
    stop: int

    @property
    def length(self) -> int:
        return self.stop - self.start


Box = tuple[Span, Span]
"""Rows and columns of a tile, in cells of the latents."""


@final
@dataclass(frozen=True)
class Chain:
    """Stages of a decoder that follow each other, on a canvas of some size.

    Attributes:
        stages: the stages.
        size: height and width of the canvas in cells of the latents.
        wrap: for each axis, whether the canvas is a ring along it.
        first: the number of the first stage in the decoder.
        scale: cells of the first stage's input along a side of a cell of the latents.
        multiple: a window of the first stage begins at multiples of so many cells.
        most: the most cells of the latents that a window has around its tile; None for as many as it needs.
        free: how many stages, from the first, have as many as they need all the same.
    """

    stages: Sequence[Stage]
    size: tuple[int, ...]
    wrap: tuple[bool, ...]
    first: int = 0
    scale: int = 1
    multiple: int = 1
    most: int | None = None
    free: int = 0

    @property
    def halos(self) -> list[int]:
        """Cells around a tile that are needed before each stage, and at last none, in cells of that place."""
        halos, need = [0], 0
        for k, (stage, scale) in reversed(list(enumerate(zip(self.stages, self.scales[:-1], strict=True)))):
            need = -(-need // stage.factor) + stage.reach
            if self.most is not None and k >= self.free:
                need = min(need, self.most * scale)
            halos.append(need)
        halos[-1] = -(-halos[-1] // self.multiple) * self.multiple
        return halos[::-1]

    @property
    def around(self) -> int:
        """Cells of the latents around a tile that are needed."""
        return max(-(-halo // scale) for halo, scale in zip(self.halos, self.scales, strict=True))

    @property
    def scales(self) -> list[int]:
        """Cells before each stage, and after the last, along a side of a cell of the latents."""
        scales = [self.scale]
        for stage in self.stages:
            scales.append(scales[-1] * stage.factor)
        return scales

    def compute(
        self, source: Tensor, boxes: Sequence[Box], statistics: CanvasStatistics, shares: Sequence[float] | None = None
    ) -> Tensor:
        """Compute tiles of the canvas.

        Args:
            source: the canvas, or what the stages before these made of it, `... h w`.
            boxes: where the tiles lie. They have one shape.
            statistics: what the stages take from the whole canvas.
            shares: the share of each tile in the canvas, to measure that first, on these tiles together; None to use it.

        Returns:
            The tiles, `n ... h w`, in the cells that the last stage returns.
        """
        halos, scales, measure = self.halos, self.scales, shares is not None
        windows = [self._window(box, scales[0], halos[0], measure) for box in boxes]
        x = torch.stack([_taken(source, window) for window in windows])  # some networks need their input in one piece
        for k, stage in enumerate(self.stages):
            cores = None
            if shares is not None:
                parts = zip(boxes, windows, shares, strict=True)
                cores = [Core(*_within(box, window, scales[k]), share) for box, window, share in parts]
            y = statistics.compute(self.first + k, stage.run, x, cores)
            inner = [self._window(box, scales[k + 1], halos[k + 1], measure) for box in boxes]
            kept = [row[(..., *_inside(new, old, stage.factor))] for row, new, old in zip(y, inner, windows, strict=True)]
            x, windows = kept[0][None].contiguous() if len(kept) == 1 else torch.stack(kept), inner
        return x

    def _window(self, box: Box, scale: int, halo: int, alike: bool) -> Box:
        """A tile with its halo, in cells of a scale. At a border there is no more canvas: it ends there, or is moved back."""
        spans = []
        for span, cells, ring in zip(box, self.size, self.wrap, strict=True):
            start, stop, end = span.start * scale - halo, span.stop * scale + halo, cells * scale
            if not ring and alike:
                length = min(stop - start, end)
                start = min(max(start, 0), end - length)
                stop = start + length
            elif not ring:
                start, stop = max(start, 0), min(stop, end)
            spans.append(Span(start, stop))
        rows, columns = spans
        return rows, columns


def _within(box: Box, window: Box, scale: int) -> tuple[slice, slice]:
    """Where a tile lies in its window."""
    rows, columns = (
        slice(span.start * scale - outer.start, span.stop * scale - outer.start)
        for span, outer in zip(box, window, strict=True)
    )
    return rows, columns


def _inside(new: Box, old: Box, factor: int) -> tuple[slice, slice]:
    """Where a window lies in what a stage made of a larger one."""
    rows, columns = (
        slice(inner.start - outer.start * factor, inner.stop - outer.start * factor)
        for inner, outer in zip(new, old, strict=True)
    )
    return rows, columns


def _taken(source: Tensor, window: Box) -> Tensor:
    """A window of a canvas. Where it goes over the join of a ring, it goes on at the other end."""
    for axis, span in zip((-2, -1), window, strict=True):
        cells = source.shape[axis]
        if span.start >= 0 and span.stop <= cells:
            source = source.narrow(axis, span.start, span.length)
        else:
            source = source.index_select(axis, torch.arange(*span, device=source.device) % cells)
    return source


def sample(size: Sequence[int], side: int, count: int) -> list[Box]:
    """Small tiles that are spread evenly over a canvas, to measure statistics on.

    The canvas is cut into squares, and every k-th one is taken, in each row at other places.

    Args:
        size: height and width of the canvas.
        side: of a square.
        count: how many there are, about. A canvas that has no more is one tile.
    """
    whole = (Span(0, size[0]), Span(0, size[1]))
    sides = [min(side, length) for length in size]
    rows, columns = (
        [Span(min(start, length - of), min(start, length - of) + of) for start in range(0, length, of)]
        for length, of in zip(size, sides, strict=True)
    )
    every = -(-len(rows) * len(columns) // count)
    step = max(1, round(every * 0.382))  # of the golden section, so that rows far apart differ, too
    while math.gcd(step, every) > 1:
        step += 1
    return (
        [whole]
        if every == 1
        else [
            (rows[j], columns[k])
            for j, k in product(range(len(rows)), range(len(columns)))
            if (k + j * step) % every == every // 2 % len(columns)
        ]
    )


def shares(canvas: Tensor, boxes: Sequence[Box]) -> list[float]:
    """The share that each tile of a sample has in a canvas, so that the sample has the means of the canvas.

    The shares are as equal as they can be while the means of the latents, and of their squares, are those of the whole canvas.
    What depends on the latents then is nearer to the whole, too: calibration of a sample (Deville & Särndal 1992). No tile has
    less than a fifth of the equal share, so that no variance comes out negative.

    Args:
        canvas: the latents, `c h w`.
        boxes: where the tiles lie.
    """
    whole, *tiles = (_means(x) for x in (canvas, *(_taken(canvas, box) for box in boxes)))
    known = torch.stack(tiles)
    apart = (known - whole) / known.std(0, correction=0).clamp(min=1e-12)
    ones = torch.ones(len(boxes), 1, dtype=torch.float64)
    design = torch.cat([ones, apart], 1)
    target = torch.zeros(design.shape[1], dtype=torch.float64)
    target[0] = 1
    ridge = 1e-3 * len(boxes) * torch.eye(len(target), dtype=torch.float64)
    equal = ones[:, 0] / len(boxes)
    fitted = equal + design @ torch.linalg.solve(design.T @ design + ridge, target - design.T @ equal)
    fitted = fitted.clamp(min=0.2 / len(boxes))
    return (fitted / fitted.sum()).tolist()


def _means(x: Tensor) -> Tensor:
    """The means of the channels and of their squares."""
    mean = x.flatten(1).mean(1)
    return torch.cat([mean, x.flatten(1).var(1, correction=0) + mean.square()]).double().cpu()
