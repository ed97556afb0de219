"""Canvases that are no planes. A plane whose cells lie in one row gives the picture of the plane, whatever is done to it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from panokit import ContractError, Grid, Layout, Model, Panorama, Region, Regions, Runtime, Sampler, SettingError
from panokit.layout import Overlap
from panokit.magnifying import magnified
from panokit.preview import preview
from panokit.projecting import canvas_of, picture_of
from panokit.testing.toys import Pull, ToyCodec, ToyDenoiser, Unroll, Unrolled, toy_run
from panokit.windows import sampled

FLAT = (False, False)
PLANE = Grid((8, 16), (4, 4), (2, 2), FLAT)
SIZE: dict[str, Any] = {"height": 32, "width": 64, "steps": 2, "progress": False}
HALVES = Regions((((0, 0, 0.5, 1), "snow"), ((0.5, 0, 1, 1), "dunes")), elsewhere="hills")


def _both(model: Model, cpu: Runtime, prompt: Any = "a lake", **settings: Any) -> tuple[Panorama, Panorama]:
    """A picture on the plane, and with its cells in one row."""
    plane, row = (Sampler(model, layout=layout, runtime=cpu) for layout in ("overlap", Unroll()))
    return plane(prompt, **{**SIZE, **settings}), row(prompt, **{**SIZE, **settings})


def _distance(one: Panorama, other: Panorama) -> int:
    """The largest difference of two pictures, in shades of 255."""
    return int(np.abs(np.asarray(one.image).astype(int) - np.asarray(other.image).astype(int)).max())


def test_shrunk_is_the_mean_of_the_cells_that_become_one() -> None:
    canvas = torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(0))
    small, count = PLANE.shrunk(canvas, (2, 4))
    assert count == 8
    torch.testing.assert_close(small, canvas.unflatten(1, (4, 2)).unflatten(3, (4, 4)).mean((2, 4)))
    row, same = Unrolled(PLANE).shrunk(canvas.flatten(1), 2)
    assert (row.shape, same) == ((2, 4 * 8), 4)


def test_a_canvas_of_four_axes_is_not_shrunk() -> None:
    with pytest.raises(SettingError, match="a canvas of 4 axes cannot be shrunk: it must have 1, 2 or 3"):
        Grid((2,) * 4, (2,) * 4, (1,) * 4, (False,) * 4).shrunk(torch.zeros(2, 2, 2, 2), 2)


def test_a_picture_is_sampled_between_its_pixels_and_over_its_join() -> None:
    picture = torch.tensor([[[0.0, 1.0, 2.0, 3.0], [4.0, 5.0, 6.0, 7.0]]])
    places = torch.tensor([[0.25, 0.75, 0.5, 0.0, 1.0], [0.125, 0.875, 0.25, 0.0, 1.0]])
    torch.testing.assert_close(sampled(picture, places), torch.tensor([[0.0, 7.0, 2.5, 1.5, 5.5]]))


def test_the_picture_is_that_of_the_plane(tiny: Model, cpu: Runtime) -> None:
    plane, row = _both(tiny, cpu)
    assert torch.equal(plane.latents.flatten(1), row.latents)  # the same noise, and the same windows
    assert row.image.size == plane.image.size == (64, 32)
    assert row.recipe["projection"] == "plane"
    assert "projection" not in plane.recipe


def test_boxes_and_masks_lie_where_they_lie_on_the_plane(tiny: Model, cpu: Runtime) -> None:
    mask = torch.zeros(16, 32)  # a pixel for each cell, so that nothing is interpolated
    mask[:, 13:] = 1
    for prompt in (HALVES, Regions((Region(mask, "dunes"),), elsewhere="snow")):
        plane, row = _both(tiny, cpu, prompt)
        torch.testing.assert_close(plane.latents.flatten(1), row.latents)


def test_a_run_starts_from_a_picture_and_keeps_what_stays(tiny: Model, cpu: Runtime) -> None:
    picture = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
    _, row = _both(tiny, cpu, image=picture, at=(0, 0))
    kept = np.asarray(row.image)[:, :32].astype(int)
    assert np.abs(kept - (picture * 255).round().movedim(0, -1).numpy()).max() == 0


def test_a_large_picture_is_written_in_strips(
    tiny: Model, cpu: Runtime, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler = Sampler(tiny, layout=Unroll(), runtime=cpu)
    whole = sampler("a lake", **SIZE)
    monkeypatch.setattr("panokit.files.SIDE", 50)
    written = sampler("a lake", out=tmp_path / "a.png", **SIZE)
    assert written.file == tmp_path / "a.png"
    assert torch.equal(written.latents, whole.latents)


def test_decoding_and_encoding_are_those_of_the_plane(cpu: Runtime) -> None:
    canvas = torch.randn(4, 8, 16, generator=torch.Generator().manual_seed(0))
    windows, codec = Unrolled(Grid((8, 16), (8, 16), (8, 16), FLAT)), ToyCodec()
    picture = picture_of(codec, canvas, windows.plane, cpu)
    assert torch.equal(picture_of(codec, canvas.flatten(1), windows, cpu), picture)
    torch.testing.assert_close(canvas_of(codec, picture, windows), canvas_of(codec, picture, windows.plane).flatten(1))
    torch.testing.assert_close(preview(codec, canvas.flatten(1), windows), preview(codec, canvas))


def test_a_larger_canvas_holds_the_same_picture(cpu: Runtime) -> None:
    canvas = torch.randn(4, 4, 8, generator=torch.Generator().manual_seed(0)) / 4
    windows, codec = Unrolled(Grid((4, 8), (4, 8), (4, 8), FLAT)), ToyCodec()
    large = magnified(codec, canvas.flatten(1), windows, cpu, 2)
    assert large.shape == (4, 8 * 16)


def test_a_guidance_decodes_and_encodes_its_canvas_and_a_smaller_one(cpu: Runtime) -> None:
    denoiser = ToyDenoiser(channels=4)
    plane, row = (
        toy_run((8, 16), denoiser=denoiser, codec=ToyCodec(), layout=layout, guidances=[Pull()])
        for layout in (Overlap(), Unroll())
    )
    flat, step = plane.view(0, "prepare"), row.view(0, "prepare")
    picture = flat.decode(plane.canvas)
    torch.testing.assert_close(step.decode(row.canvas), picture)
    torch.testing.assert_close(step.encode(picture), flat.encode(picture).flatten(1))
    small = torch.randn(4, 4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(step.decode(small.flatten(1)), flat.decode(small))
    assert step.magnify(small.flatten(1), 2).shape == row.canvas.shape


@dataclass(frozen=True)
class Smaller(Layout):
    """Makes a picture of another size than was asked for."""

    def begin(self, size: Any, window: Any, stride: Any, wrap: Any, seed: int) -> Unrolled:
        return Unrolled(Grid((16, 24), window, window, FLAT))


def test_a_layout_that_makes_another_picture_is_refused(tiny: Model, cpu: Runtime) -> None:
    with pytest.raises(ContractError, match=r"Smaller.begin returned windows with \(size, window, wrap\) \(\(16, 24\)"):
        Sampler(tiny, layout=Smaller(), runtime=cpu).plan("a lake", height=64, width=64)
