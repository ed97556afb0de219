"""The checks of layouts: sound ones pass them all, and each is the first to fail on one that breaks its rule."""

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from torch import Tensor

from panokit import Grid, Lattice, Layout, Level, Union, Windows
from panokit.layout import Overlap
from panokit.testing import Check, checks, conforms, layouts, run_checks
from panokit.testing.toys import Drift, Unroll, Unrolled

Cells = tuple[int, ...]


@conforms(Overlap)
def test_overlapping_windows(check: Check) -> None:
    check()


@conforms(Unroll)
def test_windows_whose_picture_is_a_projection(check: Check) -> None:
    check()


@conforms(lambda: Drift(2))
def test_windows_that_move(check: Check) -> None:
    check()


@dataclass(frozen=True)
class DilatedToo(Layout):
    """Local windows and dilated ones: sound."""

    def begin(self, size: Cells, window: Cells, stride: Cells | None, wrap: tuple[bool, ...], seed: int) -> Union:
        local = Overlap().begin(size, window, stride, wrap, seed)
        fits = tuple(2 if 2 * cells <= whole else 1 for cells, whole in zip(window, size, strict=True))
        return Union((local, Grid(size, window, (1,) * len(size), wrap, dilation=fits)))


@conforms(DilatedToo)
def test_local_and_dilated_windows(check: Check) -> None:
    check()


# --- layouts that break one rule each -----------------------------------------------------------------------


@dataclass(frozen=True)
class Broken(Layout):
    """Windows of a grid of one's own, sound, for others to differ from."""

    windows: Any = Grid

    def begin(self, size: Cells, window: Cells, stride: Cells | None, wrap: tuple[bool, ...], seed: int) -> Any:
        return self.windows(size, window, stride or window, wrap)


@dataclass(frozen=True)
class NoWindows(Broken):
    def begin(self, *args: Any) -> Any:
        return super().begin(*args).origins


@dataclass(frozen=True)
class NoRing(Broken):
    def begin(self, size: Cells, window: Cells, stride: Cells | None, wrap: tuple[bool, ...], seed: int) -> Any:
        return Grid(size, window, stride or window, (False,) * len(size))


@dataclass(frozen=True)
class EveryOther(Lattice):
    """Leaves out its last window."""

    def __len__(self) -> int:
        return len(self.origins) - 1


@dataclass(frozen=True)
class Blurred(Lattice):
    def crop(self, canvas: Tensor, index: Sequence[int] | None = None) -> Tensor:
        crop = super().crop(canvas, index)
        return (crop + crop.roll(1, -1)) / 2 if crop.is_floating_point() else (crop + crop.roll(1, -1)) // 2


@dataclass(frozen=True)
class Elsewhere(Lattice):
    def put(self, canvas: Tensor, i: int, window: Tensor, weight: Tensor | None = None) -> None:
        super().put(canvas, (i + 1) % len(self), window, weight)


@dataclass(frozen=True)
class Mistaken(Lattice):
    def cells(self, index: Sequence[int] | None = None) -> Tensor:
        return super().cells(index) + 1


@dataclass(frozen=True)
class Sorted(Lattice):
    def crop(self, canvas: Tensor, index: Sequence[int] | None = None) -> Tensor:
        return super().crop(canvas, None if index is None else sorted(index))


@dataclass(frozen=True)
class OtherWindow(Lattice):
    def on(self, size: Cells) -> Any:
        return replace(self, size=size, window=tuple(cells // 2 for cells in self.window), stride=(1,) * len(size))


@dataclass(frozen=True)
class OutOfStep(Lattice):
    def refined(self, factor: Any) -> Any:
        return replace(super().refined(factor), stride=self.stride)


@dataclass(frozen=True)
class Overcounted(Lattice):
    def shrunk(self, canvas: Tensor, factor: Any) -> Any:
        small, count = super().shrunk(canvas, factor)
        return small, 2 * count


@dataclass(frozen=True)
class Mirrored(Unrolled):
    """Shows its picture with left and right exchanged."""

    def views(self, picture: Tensor, factor: int) -> Tensor:
        return super().views(picture.flip(2), factor)


@dataclass(frozen=True)
class Mirror(Layout):
    def begin(self, *args: Any) -> Mirrored:
        return Mirrored(Overlap().begin(*args))


@dataclass(frozen=True)
class AtRandom(Lattice):
    def at(self, level: Level) -> Any:
        return replace(self, shift=tuple(random.randrange(stride) for stride in self.stride))


@dataclass(frozen=True)
class AtFirst(Layout):
    """Windows that move with each run."""

    count: list[int] = field(default_factory=list, compare=False, repr=False)

    def begin(self, size: Cells, window: Cells, stride: Cells | None, wrap: tuple[bool, ...], seed: int) -> Windows:
        self.count.append(1)
        moved = random.randrange(1, 3) if window == (4, 4) else 0
        return Grid(size, window, stride or window, wrap, shift=(moved,) * len(size))


@dataclass(frozen=True)
class HoldsAFunction(Broken):
    by: Callable[[int], int] = field(default=lambda x: 2 * x)


@pytest.mark.parametrize(
    ("broken", "check", "advice"),
    [
        (NoWindows, layouts.makes_windows, "returned a tuple; it must return Windows, such as a Grid"),
        (NoRing, layouts.makes_windows, "made .*: pass on what came"),
        (lambda: Broken(EveryOther), layouts.covers, r"leave 64 of 384 cells .*, the first at \(8, 16\): lay windows up to"),
        (lambda: Broken(Blurred), layouts.crop_selects, "mixes cells, or holds one twice: a crop selects cells"),
        (lambda: Broken(Elsewhere), layouts.put_is_the_adjoint_of_crop, "must add window i, times its weight, to the cells"),
        (lambda: Broken(Mistaken), layouts.cells_say_where, "cells and crop disagree about where a window lies"),
        (lambda: Broken(Sorted), layouts.index_chooses, "follow the order of `index`"),
        (lambda: Broken(OtherWindow), layouts.on_keeps_the_window, "windows on another canvas have .* it must be"),
        (lambda: Broken(OutOfStep), layouts.refined_is_in_step, "multiply size, window, stride and shift"),
        (
            lambda: Broken(Overcounted),
            layouts.shrunk_is_the_mean,
            "2.0. of the variance of noise is left, where it should be 1",
        ),
        (Mirror, layouts.shows_the_picture, "does not give back the picture that views shows"),
        (lambda: Broken(AtRandom), layouts.at_is_pure, "key what it draws with the seed and level.index alone"),
        (AtFirst, layouts.same_for_any_number_of_ranks, "rank . of . (has another canvas|waits for windows)"),
        (HoldsAFunction, layouts.pickles_and_reprs, "cannot be pickled"),
    ],
    ids=lambda value: getattr(value, "__name__", "says"),
)
def test_the_check_of_a_rule_is_the_first_to_fail_where_the_rule_is_broken(
    broken: Callable[[], Layout], check: Callable[..., None], advice: str
) -> None:
    name, problem = next(outcome for outcome in run_checks(broken) if outcome.problem)
    assert name == check.__name__
    assert re.search(advice, problem), problem
    assert "\n" not in problem


def test_every_check_is_tried_by_a_broken_layout() -> None:
    (mark,) = test_the_check_of_a_rule_is_the_first_to_fail_where_the_rule_is_broken.pytestmark
    tried = {check.__name__ for _, check, _ in mark.args[1]}
    assert tried == {check.name for check in checks(Overlap)}
