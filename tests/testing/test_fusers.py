"""The checks of fusers: sound ones pass them all, and each is the first to fail on one that breaks its rule."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from panokit import Fuser, Level, WeightedFuser, Windows
from panokit.testing import Check, checks, conforms, fusers, run_checks
from panokit.testing.toys import Mean
from panokit_multidiffusion import MultiDiffusion


@conforms(MultiDiffusion)
def test_multidiffusion(check: Check) -> None:
    check()


@conforms(lambda: MultiDiffusion("uniform"))
def test_multidiffusion_of_the_paper(check: Check) -> None:
    check()


@conforms(lambda: Mean(0.3))
def test_a_tilted_mean(check: Check) -> None:
    check()


@dataclass(frozen=True)
class Median(Fuser):
    """The median of the windows over each cell: sound, and not linear."""

    def fuse(self, rows: Tensor, windows: Windows, level: Level) -> Tensor:
        dtype = torch.promote_types(rows.dtype, torch.float32)
        over = torch.zeros((len(windows), *rows.shape[1:-2], *windows.size), dtype=dtype)
        outside = torch.ones((len(windows), 1, *windows.size), dtype=dtype)
        for i, row in enumerate(rows.to(dtype)):
            windows.put(over[i], i, row)
            windows.put(outside[i], i, -torch.ones(1, *windows.window, dtype=dtype))
        return over.masked_fill(outside.bool(), torch.nan).nanmedian(0).values


@conforms(Median)
def test_a_fuser_that_is_not_linear(check: Check) -> None:
    check()


# --- fusers that break one rule each ------------------------------------------------------------------------


@dataclass(frozen=True)
class Narrow(WeightedFuser):
    """A bell whose feet are 0 in float32 where windows are large."""

    def weight(self, windows: Windows, level: Level) -> Tensor:
        y, x = (torch.linspace(-1, 1, cells) * cells for cells in windows.window)
        return torch.exp(-0.1 * (y[:, None] ** 2 + x**2))[None]


@dataclass(frozen=True)
class OneWeight(WeightedFuser):
    def weight(self, windows: Windows, level: Level) -> Tensor:
        return torch.ones(1)


@dataclass(frozen=True)
class Own(Fuser):
    """The plain mean, sound, for others to differ from."""

    def fuse(self, rows: Tensor, windows: Windows, level: Level) -> Tensor:
        return self.mean(rows.to(torch.promote_types(rows.dtype, torch.float32)), windows)

    def mean(self, rows: Tensor, windows: Windows) -> Tensor:
        value = rows.new_zeros((*rows.shape[1:-2], *windows.size))
        count = torch.zeros_like(value)
        for i, row in enumerate(rows):
            windows.put(value, i, row)
            windows.put(count, i, torch.ones_like(row))
        return value / count


@dataclass(frozen=True)
class Sum(Own):
    def mean(self, rows: Tensor, windows: Windows) -> Tensor:
        value = rows.new_zeros((*rows.shape[1:-2], *windows.size))
        for i, row in enumerate(rows):
            windows.put(value, i, row)
        return value


@dataclass(frozen=True)
class OneChannel(Own):
    def fuse(self, rows: Tensor, windows: Windows, level: Level) -> Tensor:
        return super().fuse(rows, windows, level)[:1]


@dataclass(frozen=True)
class Whitened(Own):
    """Keeps the mean and the spread of its windows, and finds none in windows of one number."""

    def fuse(self, rows: Tensor, windows: Windows, level: Level) -> Tensor:
        canvas = super().fuse(rows, windows, level)
        mean, spread = canvas.mean(), canvas.std()
        return mean + spread * (canvas - mean) / spread


class NotOfWeights(WeightedFuser):
    """Takes part in a contract that it does not keep, over the word `final`."""

    def weight(self, windows: Windows, level: Level) -> Tensor:
        return torch.ones(1, *windows.window)

    def fuse(self, rows: Tensor, windows: Windows, level: Level) -> Tensor:
        return Median().fuse(rows, windows, level)


@dataclass(frozen=True)
class LastOnTop(Own):
    def mean(self, rows: Tensor, windows: Windows) -> Tensor:
        canvas = rows.new_zeros((*rows.shape[1:-2], *windows.size))
        for i, row in enumerate(rows):
            windows.put(canvas, i, row - windows.crop(canvas, [i])[0])
        return canvas


@dataclass(frozen=True)
class ToFloat32(Own):
    def fuse(self, rows: Tensor, windows: Windows, level: Level) -> Tensor:
        return self.mean(rows.float(), windows)


@dataclass(frozen=True)
class AddsInHalf(Own):
    def fuse(self, rows: Tensor, windows: Windows, level: Level) -> Tensor:
        return self.mean(rows, windows).to(torch.promote_types(rows.dtype, torch.float32))


@dataclass(frozen=True)
class WritesToWindows(Own):
    def fuse(self, rows: Tensor, windows: Windows, level: Level) -> Tensor:
        canvas = super().fuse(rows, windows, level)
        rows.zero_()
        return canvas


@dataclass(frozen=True)
class Dithers(Own):
    """By as much as no other check looks at, with noise that every rank draws for itself."""

    def fuse(self, rows: Tensor, windows: Windows, level: Level) -> Tensor:
        canvas = super().fuse(rows, windows, level)
        return canvas * (1 + 8 * torch.finfo(canvas.dtype).eps * float(torch.rand(())))


@dataclass(frozen=True)
class HoldsAFunction(Own):
    by: Callable[[float], float] = field(default=lambda x: 2 * x)


@pytest.mark.parametrize(
    ("broken", "check", "advice"),
    [
        (
            Narrow,
            fusers.weights_cover,
            r"goes from 0.0 to .* windows of \(64, 64\), and sums to 0 .*clamp weights to a small number",
        ),
        (OneWeight, fusers.weights_cover, r"shape \(1,\) for 9 windows of \(6, 6\); it must return one weight for each cell"),
        (Sum, fusers.fuse_of_crops_is_the_canvas, "is not that canvas .*divide by the sum of weights over each cell"),
        (OneChannel, fusers.fuse_of_crops_is_the_canvas, r"a canvas \(3, 10, 13\) is not .* one of shape \(1, 10, 13\)"),
        (Whitened, fusers.constant_stays_constant, "windows that are 0.0 everywhere.*must sum to 1"),
        (NotOfWeights, fusers.linear, "its fuse is not linear in the windows: define only `weight`"),
        (
            LastOnTop,
            fusers.wraps,
            "the join of a ring differently from other places .*: what a window counts for must not depend on its number",
        ),
        (ToFloat32, fusers.keeps_dtype_and_device, "returned torch.float32 .* for windows in torch.float64.*windows.new_zeros"),
        (AddsInHalf, fusers.half_precision_is_added_in_float32, "in torch.float16 differs .*convert windows and weights to"),
        (WritesToWindows, fusers.leaves_windows_alone, "fuse wrote to its windows: work on a copy"),
        (Dithers, fusers.same_for_any_number_of_ranks, "rank 0 of 2 has another canvas .*it may not draw noise"),
        (HoldsAFunction, fusers.pickles_and_reprs, "cannot be pickled.*top level of a module, no lambdas"),
    ],
    ids=lambda value: getattr(value, "__name__", "says"),
)
def test_the_check_of_a_rule_is_the_first_to_fail_where_the_rule_is_broken(
    broken: Callable[[], Fuser], check: Callable[..., None], advice: str
) -> None:
    name, problem = next(outcome for outcome in run_checks(broken) if outcome.problem)
    assert name == check.__name__
    assert re.search(advice, problem), problem
    assert "\n" not in problem


def test_every_check_is_tried_by_a_broken_fuser() -> None:
    (mark,) = test_the_check_of_a_rule_is_the_first_to_fail_where_the_rule_is_broken.pytestmark
    tried = {check.__name__ for _, check, _ in mark.args[1]}
    assert tried == {check.name for check in checks(MultiDiffusion)}


def test_a_fuser_without_weights_is_not_held_to_them() -> None:
    without: Any = {check.name for check in checks(MultiDiffusion)} - {check.name for check in checks(Median)}
    assert without == {"weights_cover", "linear"}
