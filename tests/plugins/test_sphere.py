"""Spheres: points without a seam, views that share them, the picture of all directions, and methods on it."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from panokit import Estimate, Fuser, Guidance, Layout, Model, Region, Regions, Run, Runtime, Sampler, SettingError, load_model
from panokit.backbones.diffusers.control import FIELD, ControlImage
from panokit.composition import build
from panokit.scene import Scene
from panokit.scheduler import CLEAN
from panokit.study.measures import seam
from panokit.testing import Check, conforms
from panokit.testing.families import tiny_pipeline
from panokit.testing.toys import ToyCodec, ToyDenoiser, toy_run
from panokit.windows import require_cover
from panokit_demofusion import DemoFusion
from panokit_hiflow import HiFlow
from panokit_msd import HeadStart, MSDGuidance, MSDPaper
from panokit_sphere import Sphere, SphereFuser, SphereLayout
from panokit_sphere.lattice import lattice
from panokit_sphere.projections import at, pixel_directions
from panokit_syncdiffusion import SyncDiffusion

FLAT = (False, False)


def sphere(size: tuple[int, int] = (16, 32), window: tuple[int, int] = (8, 8), layout: SphereLayout | None = None) -> Sphere:
    return (layout or SphereLayout()).begin(size, window, None, FLAT, 0)


SPHERE = sphere()


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def finished(run: Run) -> Tensor:
    while not run.done:
        run.step()
    return run.canvas


@conforms(SphereLayout)
def test_it_keeps_the_contract_of_a_layout(check: Check) -> None:
    check()


# --- points -------------------------------------------------------------------------------------------------


def test_points_are_spread_evenly() -> None:
    points = lattice(1000)
    torch.testing.assert_close(points.norm(dim=1), torch.ones(1000, dtype=torch.float64))
    apart = torch.cdist(points, points).fill_diagonal_(9).amin(1) / math.sqrt(4 * math.pi / 1000)
    assert 0.7 < float(apart.min()) <= float(apart.max()) < 1.05  # a square lattice has 1
    for up in (-1.0, -0.5, 0.0, 0.5):  # slices of equal height have equal areas
        assert ((points[:, 1] >= up) & (points[:, 1] < up + 0.5)).sum() == 250


# --- views --------------------------------------------------------------------------------------------------


def test_views_look_along_the_equator_and_at_the_poles() -> None:
    views = SPHERE.shown
    rows, columns = views.centres.unbind(1)
    assert rows.min() == 0
    assert rows.max() == 1
    assert (columns[rows == 0.5][0], (rows == 0).sum(), (rows == 1).sum()) == (0.5, 1, 1)
    torch.testing.assert_close(views.frames @ views.frames.mT, torch.eye(3, dtype=torch.float64).expand(len(views), 3, 3))
    upright = (rows > 0) & (rows < 1)
    assert (views.frames[upright, 1, 1] > 0).all()  # down is down
    assert (views.frames[upright, 0, 1].abs() < 1e-12).all()  # the horizon is level


def test_a_view_shows_its_centre_in_its_middle() -> None:
    for i, (row, column) in enumerate(SPHERE.shown.centres):
        inside, x, y = SPHERE.shown.inside(i, at(row, column, (1, 1)))
        assert inside
        assert abs(float(x)) + abs(float(y)) < 1e-9
    ahead = SPHERE.nearest(0.5, 0.5)
    inside, x, y = SPHERE.shown.inside(ahead, at(torch.tensor(0.4), torch.tensor(0.55), (1, 1)))  # above, and to the right
    assert inside
    assert x > 0 > y
    assert not SPHERE.shown.inside(ahead, at(torch.tensor(0.5), torch.tensor(0.0), (1, 1)))[0]


@pytest.mark.parametrize(("size", "window"), [((32, 64), (16, 16)), ((16, 32), (8, 8)), ((16, 32), (8, 12))])
def test_noise_stays_noise_and_neighbours_share_it(size: tuple[int, int], window: tuple[int, int]) -> None:
    views = sphere(size, window)
    numbers = views.cells().flatten(1)
    assert all(len(row.unique()) == row.numel() for row in numbers)
    assert len(numbers.unique()) == views.points
    crops = views.crop(noise(64, views.points)).flatten(2)
    assert float(crops.var()) == pytest.approx(1, abs=0.05)
    for crop in crops[:: len(crops) // 4]:  # no two cells of a view have anything in common
        correlation = torch.corrcoef(crop.T).fill_diagonal_(0)
        assert float(correlation.abs().max()) < 0.65
        assert abs(float(correlation.mean())) < 0.01
    shares = []
    for i, row in enumerate(numbers):
        centre = views.shown.frames[i, 2]
        j = max((j for j in range(len(views)) if j != i), key=lambda j: float(views.shown.frames[j, 2] @ centre))
        shown = views.shown.inside(j, lattice(views.points)[row])[0]
        shares.append(float(torch.isin(row[shown], numbers[j]).double().mean()))
    assert min(shares) > 0.4
    assert sum(shares) / len(shares) > 0.6


def test_a_cell_has_a_point_that_is_near() -> None:
    rays = SPHERE.shown.rays(8, 8)
    cell = 2 * SPHERE.wide / 8
    local = torch.stack(
        [lattice(SPHERE.points)[n] @ f.T for n, f in zip(SPHERE.cells()[:, 0], SPHERE.shown.frames, strict=True)]
    )
    apart = (local / local[..., 2:] - rays).norm(dim=-1) / cell
    assert float(apart.mean()) < 0.45
    assert float(apart.max()) < 1.5


def test_the_nearest_view_is_over_the_join_too() -> None:
    assert SPHERE.centre(SPHERE.nearest(0.0, 0.3)) == (0, 0.5)
    assert SPHERE.centre(SPHERE.nearest(0.5, 0.001)) == SPHERE.centre(SPHERE.nearest(0.5, 0.999))
    with pytest.raises(SettingError, match=r"the place \(0.5,\) has 1 numbers: on a sphere give two"):
        SPHERE.nearest(0.5)


# --- smaller spheres ----------------------------------------------------------------------------------------


def test_a_smaller_sphere_has_wider_views_and_a_coarser_one_the_same_on_equal_points() -> None:
    fine = sphere((32, 64))
    small, coarse = fine.scaled(2), fine.coarsened(2)
    assert small.size == coarse.size == (fine.points // 4,)
    assert small.picture == coarse.picture == (16, 32)
    assert (small.window, small.wide) == (fine.window, 2 * fine.wide)
    assert torch.equal(coarse.shown.frames, fine.shown.frames)
    assert len(small) < len(fine) == len(coarse)
    assert small.on(fine.size) == fine
    assert coarse.refined(2) == fine


def test_shrunk_means_points_that_are_near() -> None:
    fine = sphere((32, 64))
    small, count = fine.shrunk(lattice(fine.points).T, 2)
    assert int(count.sum()) == fine.points
    torch.testing.assert_close(small.T, lattice(fine.points // 4), atol=0.06, rtol=0)  # points are 0.14 apart


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda: SPHERE.scaled(2),
            "views of 76 degrees cannot be 2 times as wide on a smaller sphere: make fov .. degrees or less",
        ),
        (lambda: SPHERE.coarsened(5), "a sphere of 648 points cannot be made 5 times smaller|the picture has 16 cells"),
        (lambda: SPHERE.coarsened((1, 2)), r"a factor of \(1, 2\) cannot scale a sphere: give one whole number from 1 up"),
        (lambda: SPHERE.on((8, 16)), r"a sphere has one number of points, and \(8, 16\) came: give \(points,\)"),
        (lambda: SPHERE.crop(torch.zeros(1, 5)), "does not fit a sphere of .* points: its last axis must have as many"),
    ],
)
def test_a_change_that_cannot_be_is_refused(change: Callable[[], Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        change()


# --- settings -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fov": 0.0}, "fov is 0.0: a field of view has 1 to 150 degrees"),
        ({"fov": 170.0}, "fov is 170.0: a field of view has 1 to 150 degrees"),
        ({"spacing": 0.5}, "spacing is 0.5: it must be 1 to 180 degrees"),
        ({"density": 0.5}, "density is 0.5: it must be 1 to 100 points for each cell"),
    ],
)
def test_a_setting_out_of_range_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        SphereLayout(**settings)


@pytest.mark.parametrize(
    ("layout", "size", "stride", "wrap", "message"),
    [
        ({}, (16, 48), None, FLAT, "twice as wide as high, and this one is 16 x 48 cells: make its width 32 or height 24"),
        ({}, (3, 16, 32), None, FLAT, "a sphere is a picture, and this is a film: make a picture, with frames=1"),
        ({"fov": 1.0}, (16, 32), None, FLAT, "are [0-9]+, and a sphere takes 4096: make fov or spacing larger"),
        ({}, (16, 32), (4, 4), FLAT, "views on a sphere lie so many degrees apart, and have no stride: leave it out"),
        ({}, (16, 32), None, (False, True), "a sphere has no border in any direction: leave wrap out"),
        (
            {"fov": 40.0, "spacing": 60.0},
            (16, 32),
            None,
            FLAT,
            "views of 40 degrees that are 60 degrees apart leave holes, the first",
        ),
        ({"fov": 40.0, "density": 8.0}, (16, 32), None, FLAT, "do not reach all .* points of the sphere: make spacing or den"),
        (
            {"fov": 120.0},
            (16, 32),
            None,
            FLAT,
            "views of 120 degrees are too wide for a density of 1.[78].?, as .* work are 8. degrees",
        ),
    ],
)
def test_what_a_sphere_cannot_be_is_refused(
    layout: dict[str, Any], size: tuple[int, int], stride: Any, wrap: Any, message: str
) -> None:
    with pytest.raises(SettingError, match=message) as error:
        require_cover(SphereLayout(**layout).begin(size, (8, 8), stride, wrap, 0))
    assert "\n" not in str(error.value)


def test_the_latitude_of_a_hole_is_named() -> None:
    """Views that touch on the equator do not where their corners meet those of other rings."""
    with pytest.raises(SettingError, match=r"leave holes, the first at latitude -?[1-4]\d: make spacing smaller"):
        SphereLayout(60.0, 60.0).begin((16, 32), (8, 8), None, FLAT, 0)


def test_the_field_of_view_follows_the_picture() -> None:
    """As many cells a degree as the picture has on its equator, but never wider than 80 degrees."""
    assert sphere((32, 64)).wide == pytest.approx(math.pi * 8 / 64)
    assert sphere((8, 16)).wide == pytest.approx(math.tan(math.radians(40)))
    assert sphere(layout=SphereLayout(60.0)).wide == pytest.approx(math.tan(math.radians(30)))
    tall = SphereLayout().begin((32, 64), (32, 8), None, FLAT, 0)
    assert tall.shown.high == pytest.approx(math.tan(math.radians(40)))
    assert len(sphere(layout=SphereLayout(60.0, 20.0))) > len(sphere(layout=SphereLayout(60.0, 30.0)))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"fuser": "safa"}, "safa swaps columns between windows that lie in rows and columns"),
        ({"fuser": "twindiffusion"}, "twindiffusion fuses windows that follow each other in rows and columns"),
        ({"fuser": "demofusion"}, "demofusion fuses dilated and local windows of a plane"),
        ({"guidances": [DemoFusion()]}, "demofusion enlarges planes in phases"),
        ({"guidances": [HiFlow()]}, "hiflow enlarges planes, and this canvas is none"),
        ({"guidances": [MSDGuidance()]}, "MSDGuidance cannot have 2 levels of factor 2: views of 7. degrees cannot be 2 times"),
        ({"layout": "overlap", "fuser": "sphere"}, "the fuser sphere weighs views of a sphere, and these windows are none"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_does_not_work_on_a_sphere_is_refused(tiny: Model, cpu: Runtime, parts: dict[str, Any], message: str) -> None:
    sampler = Sampler(tiny, runtime=cpu, **{"layout": "sphere", **parts})
    high = 16 * sampler.model.factor
    with pytest.raises(SettingError, match=message) as error:
        sampler.plan("a lake", height=high, width=2 * high, steps=2).check()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("power", [-1.0, math.inf, math.nan])
def test_the_power_of_the_fuser_is_0_or_more(power: float) -> None:
    with pytest.raises(SettingError, match=f"power is {power}: it must be 0 or more"):
        SphereFuser(power)


# --- the picture --------------------------------------------------------------------------------------------


def painted(high: int) -> Tensor:
    """A picture that is smooth on the sphere: its colours are the direction."""
    return pixel_directions((high, 2 * high)).movedim(2, 0).float()


@pytest.mark.parametrize("high", [64, 128, 200])
def test_views_and_the_picture_agree_everywhere_at_the_poles_and_the_join_too(high: int) -> None:
    picture = painted(high)
    views = SPHERE.views(picture, 8)
    rays = torch.nn.functional.normalize(SPHERE.shown.rays(64, 64), dim=2)
    exact = torch.stack([rays @ frame for frame in SPHERE.shown.frames]).movedim(3, 1).float()
    torch.testing.assert_close(views, exact, atol=0.05, rtol=0)
    torch.testing.assert_close(SPHERE.project(exact, (high, 2 * high)), picture, atol=0.02, rtol=0)


def test_the_join_has_no_seam() -> None:
    """Of views that do not agree at all, the picture is as smooth across the join as elsewhere."""
    views = torch.nn.functional.interpolate(noise(len(SPHERE), 1, 4, 4), size=(64, 64), mode="bicubic")
    picture = SPHERE.project(views, (64, 128))[0]
    across = (picture[:, 0] - picture[:, -1])[16:48].abs().mean()
    columns = picture.diff(dim=1)[16:48].abs().mean(0)
    assert columns.min() < across < columns.max()  # the join is a column like any other


def test_a_box_is_longitude_and_latitude() -> None:
    top = Scene(Regions((((0, 0, 1, 0.2), "sky"), ((0.5, 0.2, 1, 1), "east")), elsewhere="west"))
    maps = top.maps(SPHERE)
    assert maps is not None
    points = lattice(SPHERE.points)
    up = -points[:, 1] > math.sin(math.radians(54))
    assert torch.equal(maps[1].bool(), up)
    assert torch.equal(maps[2].bool(), ~up & (points[:, 0] >= 0))
    zenith, nadir = (top.mixture(maps, SPHERE, [i]).texts for i in (0, len(SPHERE) - 1))
    assert (zenith, nadir) == ([0, 1, 2], [0, 2])


def test_a_field_is_shown_to_each_view_as_it_is_from_there() -> None:
    picture = painted(64)
    crops = Scene("a lake", fields={"control": picture}).crop("control", SPHERE, [3, 0], factor=4)
    assert torch.equal(crops, SPHERE.views(picture, 4)[[3, 0]])
    control = ControlImage(Scene("a lake", fields={FIELD: picture}), torch.device("cpu"))
    assert torch.equal(control.crops(SPHERE.refined(4), [3, 0]), crops)


# --- methods ------------------------------------------------------------------------------------------------


def test_the_fuser_weighs_a_cell_by_how_little_it_is_stretched() -> None:
    weight = SphereFuser(3.0).weight(SPHERE, CLEAN)[0]
    assert weight.argmax() in (27, 28, 35, 36)
    assert float(weight[0, 0]) == pytest.approx((1 + 2 * (7 / 8 * SPHERE.wide) ** 2) ** -1.5, rel=1e-5)
    plain = SphereFuser(0.0).weight(SPHERE, CLEAN)
    assert torch.equal(plain, torch.ones(1, 8, 8))


@pytest.mark.parametrize("make", [MSDGuidance, MSDPaper, HeadStart, lambda: MSDGuidance(head_start=0.0)])
def test_a_coarser_sphere_guides_a_finer_one_and_a_run_resumes(make: Callable[[], Guidance]) -> None:
    def begun() -> Run:
        return toy_run(
            (16, 32),
            denoiser=ToyDenoiser((4, 4), channels=4),
            codec=ToyCodec(),
            layout=SphereLayout(40.0),
            stride=None,
            guidances=[make()],
            steps=4,
        )

    run = begun()
    run.step()
    run.step()
    other = begun()
    other.restore(run.state())
    plain = toy_run((16, 32), denoiser=ToyDenoiser((4, 4), channels=4), layout=SphereLayout(40.0), stride=None, steps=4)
    canvas = finished(run)
    assert torch.equal(canvas, finished(other))
    assert not torch.allclose(canvas, finished(plain))


def test_full_weight_makes_windows_equal_to_the_coarse_sphere() -> None:
    guidance = MSDGuidance(math.inf, decay=0.0, head_start=0.0)
    run = toy_run((16, 32), layout=SphereLayout(40.0), stride=None, guidances=[guidance], steps=2)
    ((_, memory),) = run.guided
    target = guidance.prepare(run.view(0, "prepare"), memory)
    assert target.canvas.shape == (2, run.windows.size[0] // 4)
    x0 = noise(2, 2, 4, 4).double().requires_grad_()
    energy = guidance.energy(Estimate(x0, x0, run.level, run.level), [5, 0], target)
    (gradient,) = torch.autograd.grad(energy.sum(), x0)
    moved = torch.nn.functional.avg_pool2d(x0 - guidance.strength(run.level) * gradient, 2)
    torch.testing.assert_close(moved, target.windows.crop(target.canvas, [5, 0]))


def test_it_paints_a_picture_and_says_what_it_shows(tiny: Model, cpu: Runtime) -> None:
    sampler = Sampler(tiny, layout="sphere", fuser="sphere", guidances=[SyncDiffusion(weight=0.1)], runtime=cpu)
    high = 16 * sampler.model.factor
    prompt = Regions((Region((0, 0, 1, 0.4), "clear sky"), Region((0, 0.6, 1, 1), "flowers")), elsewhere="green hills")
    panorama = sampler(prompt, height=high, width=2 * high, steps=2, progress=False)
    assert panorama.image.size == (2 * high, high)
    assert panorama.recipe["projection"] == "equirectangular"
    assert panorama.recipe["layout"] == {"plugin": "sphere", "fov": None, "spacing": None, "density": 1.75}
    again = sampler(prompt, height=high, width=2 * high, steps=2, progress=False)
    assert torch.equal(again.latents, panorama.latents)


def test_it_starts_from_a_picture_and_keeps_what_the_mask_says(tiny: Model, cpu: Runtime) -> None:
    sampler = Sampler(tiny, layout="sphere", runtime=cpu)
    high = 16 * sampler.model.factor
    picture, mask = painted(high) / 2 + 0.5, torch.zeros(high, 2 * high)
    mask[:, : high // 2] = 1
    made = sampler("a lake", image=picture, mask=mask, height=high, width=2 * high, steps=2, progress=False)
    kept = torch.from_numpy(np.asarray(made.image).copy()).movedim(2, 0)[:, :, high:-8] / 255
    torch.testing.assert_close(kept, picture[:, :, high:-8], atol=0.01, rtol=0)
    assert float((torch.from_numpy(np.asarray(made.image).copy()).movedim(2, 0) / 255 - picture).abs().max()) > 0.1


def test_a_pipeline_is_not_told_a_place_on_a_plane() -> None:
    denoiser = load_model(tiny_pipeline("sdxl"), window=8, positions="offset").denoiser
    embeddings = denoiser.encode(Scene("a lake"))
    with pytest.raises(SettingError, match="told the places of windows on a plane, and this canvas is none: set its positions"):
        denoiser.condition(embeddings, SPHERE, [0])


def test_a_study_measures_no_straight_seams_on_it() -> None:
    with pytest.raises(SettingError, match="seams are measured along straight borders of windows, and those here are bent"):
        seam(np.zeros((16, 32, 3), np.uint8), SPHERE, 1)


def test_it_is_built_by_name() -> None:
    assert build(Layout, {"plugin": "sphere", "fov": 60}) == SphereLayout(60.0)
    assert build(Fuser, "sphere") == SphereFuser()
