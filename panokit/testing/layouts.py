"""Checks for layouts: the windows cover the canvas, cut it and put it together again, and are the same on every rank.

They run on canvases of two axes, flat and as rings, at several levels of a run. A layout of canvases that are no planes
(`Projected`) is asked for pictures that are twice as wide as high, without a stride and rings, which it may refuse.
"""

import pickle
from collections.abc import Callable, Iterator
from itertools import product

import torch
from torch import Tensor

from panokit.errors import SettingError
from panokit.layout import Layout
from panokit.runtime import Runtime
from panokit.scheduler import Level
from panokit.testing.demands import demand, distance
from panokit.testing.ranks import same_on_ranks
from panokit.testing.settings import pickles_and_reprs
from panokit.testing.toys import toy_run
from panokit.windows import Projected, Windows, sampled

Make = Callable[[], Layout]

WINDOW = (8, 8)
CANVASES = (((16, 24), (False, False)), ((8, 32), (False, True)), ((16, 16), (True, True)))
"""Sizes, each with the axes that are rings."""
PICTURES = (((16, 32), (False, False)), ((24, 48), (False, False)))
"""The same for canvases that are no planes: sizes of pictures."""
SEEDS = (0, 3)
LEVELS = tuple(Level(k, 1000 - 250 * k, 0.1 + 0.2 * k, 0.9 - 0.2 * k, k, 4) for k in range(4))


def checks(layout: Layout) -> tuple[Callable[[Make], None], ...]:
    """The checks for a layout. The ones whose failures explain others come first."""
    return (
        makes_windows,
        at_is_pure,
        covers,
        crop_selects,
        put_is_the_adjoint_of_crop,
        cells_say_where,
        index_chooses,
        on_keeps_the_window,
        refined_is_in_step,
        shrunk_is_the_mean,
        shows_the_picture,
        same_for_any_number_of_ranks,
        pickles_and_reprs,
    )


def makes_windows(make: Make) -> None:
    """The windows have the size and the rings that were asked for, and the model's window, with a stride and without."""
    canvases = _canvases(make)
    for (size, wrap), stride in product(canvases, (None,) if canvases is PICTURES else ((4, 4), None)):
        windows, name = make().begin(size, WINDOW, stride, wrap, 0), f"{type(make()).__name__}.begin"
        demand(
            isinstance(windows, Windows),
            f"{name} returned a {type(windows).__name__}; it must return Windows, such as a Grid",
        )
        if isinstance(windows, Projected):
            pictured, wanted = (windows.picture, windows.window), (size, WINDOW)
            demand(pictured == wanted, f"{name} made (picture, window) {pictured} of {wanted}: pass on what came")
            axes = len(windows.wrap), len(windows.size)
            demand(axes[0] == axes[1], f"{name} made a wrap of {axes[0]} and a size of {axes[1]} axes: give one each")
            continue
        came, asked = (windows.size, windows.window, windows.wrap), (size, WINDOW, wrap)
        demand(came == asked, f"{name} made (size, window, wrap) {came} of {asked}: pass on what came")


def covers(make: Make) -> None:
    """The windows cover every cell, at every level."""
    for windows, name in _laid(make):
        count = torch.zeros(windows.size)
        for i in range(len(windows)):
            windows.put(count, i, torch.ones(windows.window))
        gaps = (count == 0).nonzero()
        demand(
            not len(gaps),
            f"the windows of {name} leave {len(gaps)} of {count.numel()} cells of a canvas {windows.size} uncovered, the first "
            f"at {tuple(gaps[0].tolist()) if len(gaps) else ()}: lay windows up to the borders, and close to each other",
        )


def crop_selects(make: Make) -> None:
    """A crop holds cells of the canvas, unchanged, each of them at most once a window. So noise stays noise."""
    for windows, name in _laid(make):
        crops = windows.crop(_numbered(windows.size))[:, 0]
        demand(
            crops.shape == (len(windows), *windows.window),
            f"{name}.crop returned {tuple(crops.shape)} for a canvas of one channel; it must return (n, 1, *window)",
        )
        for i, crop in enumerate(crops):
            whole = torch.equal(crop, crop.round()) and len(crop.unique()) == crop.numel()
            demand(whole, f"window {i} of {name} mixes cells, or holds one twice: a crop selects cells, and never interpolates")


def put_is_the_adjoint_of_crop(make: Make) -> None:
    """For any canvas and any windows, the sum of crop times windows is the sum of canvas times put."""
    for windows, name in _laid(make):
        canvas, rows = _noise(2, *windows.size), _noise(len(windows), 2, *windows.window, seed=1)
        weight, added = _noise(*windows.window, seed=2), torch.zeros_like(canvas)
        for i, row in enumerate(rows):
            windows.put(added, i, row, weight)
        ahead, back = (windows.crop(canvas) * weight * rows).sum(), (canvas * added).sum()
        demand(
            distance(ahead, back) < 1e-9,
            f"{name}.put is not the adjoint of crop: it must add window i, times its weight, to the cells that crop reads",
        )


def cells_say_where(make: Make) -> None:
    """`cells` gives the place of each cell of a window, and `centre` lies among them, or in the middle of what it shows."""
    for windows, name in _laid(make):
        places, numbered = windows.cells(), windows.crop(_numbered(windows.size))[:, 0]
        demand(
            places.shape == (len(windows), len(windows.size), *windows.window),
            f"{name}.cells returned {tuple(places.shape)}; it must return (n, axes, *window)",
        )
        flat = torch.zeros_like(numbered)
        for axis, size in enumerate(windows.size):
            flat = flat * size + places[:, axis] % size
        demand(
            torch.equal(flat, numbered),
            f"{name}.cells and crop disagree about where a window lies: a cell is the remainder of its place by the size",
        )
        if isinstance(windows, Projected):
            for i in range(len(windows)):
                closest = windows.nearest(*windows.centre(i))
                demand(closest == i, f"the window of {name} that is nearest to the centre of window {i} is window {closest}")
            continue
        for i in range(len(windows)):
            middle = [at * size for at, size in zip(windows.centre(i), windows.size, strict=True)]
            off = [
                min((at - mean) % size, (mean - at) % size)
                for at, mean, size in zip(
                    middle, (places[i].flatten(1).double().mean(1) + 0.5).tolist(), windows.size, strict=True
                )
            ]
            demand(max(off) < 0.51, f"the centre of window {i} of {name} is {windows.centre(i)}, away from its cells")


def index_chooses(make: Make) -> None:
    """`crop` and `cells` of some windows are those of all windows, in the order that was asked for."""
    for windows, name in _laid(make):
        some, canvas = [len(windows) - 1, 0], _noise(2, *windows.size)
        same = torch.equal(windows.crop(canvas, some), windows.crop(canvas)[some])
        same = same and torch.equal(windows.cells(some), windows.cells()[some])
        demand(same, f"{name} returns other windows for index {some} than among all: follow the order of `index`")


def on_keeps_the_window(make: Make) -> None:
    """`on` lays the same layout on another canvas, with the same window and rings, and `at` goes on working there."""
    for (picture, wrap), level in product(_canvases(make), LEVELS):
        laid = make().begin(picture, WINDOW, None, wrap, 0)
        windows, size, twice = laid.at(level), laid.size, tuple(2 * cells for cells in picture)
        # A canvas of one axis may have the cells of a plane in it.
        larger = tuple(cells * (4 if len(size) == 1 else 2) for cells in size)
        there = windows.on(larger)
        came, asked = (there.size, there.window, there.wrap), (larger, WINDOW, laid.wrap)
        demand(came == asked, f"windows on another canvas have (size, window, wrap) {came}; it must be {asked}")
        if isinstance(there, Projected):
            demand(there.picture == twice, f"windows on a larger canvas have a picture of {there.picture}; it must be {twice}")
        demand(
            there == laid.on(larger).at(level) == laid.at(level).on(larger).at(level) and windows.on(size) == windows,
            f"{windows} lie elsewhere if they are put on another canvas before `at`, or on their own: `on` changes nothing but "
            "the size, and what `at` draws does not depend on the size",
        )


def refined_is_in_step(make: Make) -> None:
    """`refined` covers the same places with more cells, and `coarsened` undoes it. Windows may refuse both."""
    for windows, name in _laid(make):
        try:
            fine = windows.refined(2)
        except SettingError:
            continue
        if isinstance(windows, Projected) and isinstance(fine, Projected):
            picture = _smooth(*windows.picture)
            shown = fine.views(picture, 1), windows.views(picture, 2)
            demand(
                len(fine) == len(windows) and distance(*shown) < 1e-5 and fine.coarsened(2) == windows,
                f"window i of {name}.refined(2) does not show what window i shows, or coarsened(2) does not undo it",
            )
            continue
        canvas = _noise(1, *windows.size)
        doubled = canvas.repeat_interleave(2, 1).repeat_interleave(2, 2)
        expected = windows.crop(canvas).repeat_interleave(2, 2).repeat_interleave(2, 3)
        demand(
            len(fine) == len(windows) and torch.equal(fine.crop(doubled), expected) and fine.coarsened(2) == windows,
            f"window i of {name}.refined(2) does not cover the part of the scene that window i covers, or coarsened(2) does "
            "not undo it: multiply size, window, stride and shift",
        )
        for level in LEVELS:
            demand(
                fine.at(level) == windows.at(level).refined(2),
                f"{name}.refined(2) moves otherwise than {name} at level {level.index}: multiply what `at` draws, too",
            )


def shrunk_is_the_mean(make: Make) -> None:
    """`shrunk` gives a canvas of the size of `scaled`, whose cells are means of as many cells as it says."""
    for windows, name in _laid(make):
        try:
            size = windows.scaled(2).size
        except SettingError:
            continue
        noise = _noise(64, *windows.size)
        small, count = windows.shrunk(noise, 2)
        even, _ = windows.shrunk(torch.ones_like(noise), 2)
        demand(small.shape[1:] == size, f"{name}.shrunk made a canvas of {tuple(small.shape[1:])}; that of scaled has {size}")
        spread = float((small * torch.as_tensor(count) ** 0.5).square().mean())
        demand(
            distance(even, torch.ones_like(even)) < 1e-9 and abs(spread - 1) < 0.1,
            f"{name}.shrunk is no mean of as many cells as it says: {spread:.2f} of the variance of noise is left, where it "
            "should be 1",
        )


def shows_the_picture(make: Make) -> None:
    """`project` undoes `views`, and `places` says where the cells of a window lie on the picture; for `Projected` windows."""
    for windows, name in _laid(make):
        if not isinstance(windows, Projected):
            continue
        places = windows.places()
        demand(
            places.shape == (2, *windows.size) and bool(((places >= 0) & (places <= 1)).all()),
            f"{name}.places returned {tuple(places.shape)}; it must return rows and columns of all cells, from 0 to 1",
        )
        picture = _smooth(*(8 * cells for cells in windows.picture))
        views = windows.views(picture, 2)
        back = windows.project(views, (picture.shape[1], picture.shape[2]))
        demand(
            distance(back, picture) < 0.1,
            f"{name}.project does not give back the picture that views shows: it is {distance(back, picture):.2f} away",
        )
        apart = (windows.views(picture, 1) - windows.crop(sampled(picture, places))).abs().mean() / picture.std()
        demand(float(apart) < 0.1, f"windows of {name} show other places than their cells lie at, as places says")


def at_is_pure(make: Make) -> None:
    """`at` gives equal windows twice, after other levels, and in a copy. It keeps size, window and rings."""
    for size, wrap in _canvases(make):
        for seed in SEEDS:
            windows = make().begin(size, WINDOW, None, wrap, seed)
            copy = pickle.loads(pickle.dumps(windows))
            for level in LEVELS:
                here = windows.at(level)
                same = here == windows.at(level) == copy.at(level) == windows.at(LEVELS[-1]).at(level)
                came, asked = (here.size, here.window, here.wrap), (windows.size, windows.window, windows.wrap)
                demand(came == asked, f"windows at a level have (size, window, wrap) {came}; they must keep {asked}")
                demand(
                    same and hash(here) == hash(copy.at(level)),
                    f"{type(windows).__name__}.at(level) differs between two calls, after another level, or in a copy: key "
                    "what it draws with the seed and level.index alone, and make it a @dataclass(frozen=True)",
                )


def same_for_any_number_of_ranks(make: Make) -> None:
    """A run has the same bits on one, two and three ranks, and on every rank."""

    def canvas(runtime: Runtime) -> Tensor:
        run = toy_run((8, 16), layout=make(), stride=None, runtime=runtime)
        while not run.done:
            run.step()
        return run.canvas

    same_on_ranks(
        canvas,
        2,
        ": `begin` and `at` must give the same windows on every rank",
    )


def _canvases(make: Make) -> tuple[tuple[tuple[int, int], tuple[bool, bool]], ...]:
    """The canvases for a layout: planes and rings, or pictures of canvases that are no planes."""
    (size, wrap), *_ = PICTURES
    return PICTURES if isinstance(make().begin(size, WINDOW, None, wrap, 0), Projected) else CANVASES


def _laid(make: Make) -> Iterator[tuple[Windows, str]]:
    """Windows on all canvases at all levels, with their name."""
    for (size, wrap), seed in product(_canvases(make), SEEDS):
        windows = make().begin(size, WINDOW, None, wrap, seed)
        seen: list[Windows] = []
        for level in LEVELS:
            here = windows.at(level)
            if here not in seen:
                seen.append(here)
                yield here, type(here).__name__


def _smooth(high: int, wide: int) -> Tensor:
    """A smooth picture whose left and right borders meet, and whose upper and lower rows are of one colour."""
    row, column = ((torch.arange(n, dtype=torch.float64) + 0.5) / n for n in (high, wide))
    waves = torch.stack([torch.cos(2 * torch.pi * column), torch.sin(2 * torch.pi * column), torch.ones_like(column)])
    return waves[:, None] * torch.sin(torch.pi * row)[:, None] + torch.cos(torch.pi * row)[:, None]


def _numbered(size: tuple[int, ...]) -> Tensor:
    """A canvas of one channel whose cells have numbers of their own."""
    return torch.arange(torch.Size(size).numel()).view(1, *size)


def _noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
