"""Scenes: which text counts where, and pictures that lie on the canvas."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from panokit import Grid, Model, Region, Regions, Runtime, Sampler, Scene, SettingError, recipe
from panokit.cli import main
from panokit.composition import prompt_from
from panokit.testing.toys import ToyDenoiser, toy_run

LEFT, RIGHT, WHOLE = (0, 0, 0.5, 1), (0.5, 0, 1, 1), (0, 0, 1, 1)


def disc(size: int) -> Tensor:
    """A white disc on black."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, size), torch.linspace(-1, 1, size), indexing="ij")
    return (x**2 + y**2 < 0.5).float()


def test_later_boxes_lie_on_top_and_the_rest_has_the_text_elsewhere() -> None:
    maps = Regions((((0, 0, 0.75, 1), "under"), ((0.5, 0, 1, 0.5), "over")), elsewhere="rest").maps((2, 4))
    assert maps.argmax(0).tolist() == [[1, 1, 2, 2], [1, 1, 1, 0]]
    assert (maps.sum(0) == 1).all()


def test_regions_with_weights_are_mixed_where_they_overlap() -> None:
    regions = Regions((Region(LEFT, "a", weight=1), Region(WHOLE, "b", weight=3)), elsewhere="rest")
    maps = regions.maps((1, 4))
    torch.testing.assert_close(maps[:, 0], torch.tensor([[0.0] * 4, [0.25, 0.25, 0, 0], [0.75, 0.75, 1, 1]]))


def test_a_mask_may_be_finer_than_a_cell(tmp_path: Path) -> None:
    """A third of each cell is white: a third of the prediction is that of the region."""
    stripes = torch.zeros(6, 12)
    stripes[:, ::3] = 1
    maps = Regions((Region(stripes, "stripes"),)).maps((2, 4))
    torch.testing.assert_close(maps[1], torch.full((2, 4), 1 / 3))
    Image.fromarray((stripes * 255).byte().numpy()).save(tmp_path / "a.png")
    torch.testing.assert_close(Regions((Region(str(tmp_path / "a.png"), "stripes"),)).maps((2, 4)), maps)


def test_a_window_has_an_entry_for_each_of_its_texts() -> None:
    scene = Scene(Regions(((LEFT, "left"), (RIGHT, "right"))))
    windows = Grid((4, 8), (4, 4), (2, 2), (False, False))
    maps = scene.maps(windows)
    mixture = scene.mixture(maps, windows, [2, 1, 0])
    assert (mixture.rows, mixture.texts) == ([0, 1, 1, 2], [2, 1, 2, 1])
    assert mixture.shares is not None
    preds = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(-1, 1, 1, 1).expand(-1, 2, 4, 4)
    mixed = mixture.mix(preds)
    assert mixed[:, 0, 0].tolist() == [[1, 1, 1, 1], [2, 2, 3, 3], [4, 4, 4, 4]]
    assert scene.mixture(maps, windows, [2, 0]).shares is None  # each has one text: nothing is mixed


def test_a_run_with_regions_is_the_mix_of_predictions_cell_by_cell() -> None:
    """A literal loop with a mask finer than a window: all texts for all windows, mixed by the mask."""
    mask = disc(6)
    regions = Regions((Region(mask, "a lake"),), elsewhere="fog")
    run, denoiser = toy_run((6, 6), prompt=regions, steps=2), ToyDenoiser()
    canvas, levels = run.canvas, run.solver.levels
    texts = [denoiser.encode(Scene(text)) for text in ("fog", "a lake")]
    for level, below in pairwise(levels):
        value, count = torch.zeros_like(canvas), torch.zeros_like(canvas)
        for i in range(len(run.windows)):
            x, share = run.windows.crop(canvas, [i]), run.windows.crop(mask[None], [i])
            eps = (1 - share) * denoiser(x, level, texts[0]) + share * denoiser(x, level, texts[1])
            run.windows.put(value, i, eps[0])
            run.windows.put(count, i, torch.ones_like(eps[0]))
        eps = value / count
        canvas = below.alpha * (canvas - level.sigma * eps) / level.alpha + below.sigma * eps
    while not run.done:
        run.step()
    torch.testing.assert_close(run.canvas, canvas, rtol=1e-6, atol=1e-6)


def test_a_region_may_avoid_something_of_its_own(tiny: Model, cpu: Runtime) -> None:
    sampler, size = Sampler(tiny, runtime=cpu), {"height": 16, "width": 64, "steps": 2, "stride": 16, "progress": False}

    def latents(prompt: Any, **settings: Any) -> Tensor:
        return sampler(prompt, **size, **settings).latents

    mixed = latents(Regions((Region(LEFT, "a lake", "fog"), Region(RIGHT, "a lake"))), negative_prompt="rain")
    torch.testing.assert_close(mixed[..., :16], latents("a lake", negative_prompt="fog")[..., :16], rtol=0, atol=1e-4)
    torch.testing.assert_close(mixed[..., 16:], latents("a lake", negative_prompt="rain")[..., 16:], rtol=0, atol=1e-4)


@pytest.mark.parametrize("micro_batch", [1, 5])
def test_regions_do_not_depend_on_the_micro_batch(tiny: Model, micro_batch: int) -> None:
    regions = Regions((Region(disc(32), "a lake"), Region(RIGHT, "a city")), elsewhere="fog")
    made = [
        Sampler(tiny, guidances=["msd"], runtime=Runtime(accelerator="cpu", micro_batch=n))(
            regions, height=32, width=64, steps=2, seed=1, progress=False
        )
        for n in (8, micro_batch)
    ]
    torch.testing.assert_close(made[0].latents, made[1].latents, rtol=0, atol=1e-4)


def test_a_small_mask_still_counts_on_a_smaller_canvas() -> None:
    dot = torch.zeros(64, 64)
    dot[5, 5] = 1
    regions = Regions((Region(dot, "a moon"),))
    assert regions.maps((64, 64))[1].sum() == 1
    assert regions.maps((2, 2))[1].max() == 1 / 32**2


def test_masks_are_read_once_for_a_run(tiny: Model, cpu: Runtime, tmp_path: Path) -> None:
    Image.fromarray((disc(32) * 255).byte().numpy()).save(tmp_path / "disc.png")
    sampler, regions = Sampler(tiny, guidances=["msd"], runtime=cpu), Regions((Region(str(tmp_path / "disc.png"), "a lake"),))
    plan = sampler.plan(regions, height=32, width=64, steps=2, seed=1)
    (tmp_path / "disc.png").unlink()
    made = plan.make(progress=False)
    again = sampler(Regions((Region(disc(32), "a lake"),)), height=32, width=64, steps=2, seed=1, progress=False)
    torch.testing.assert_close(made.latents, again.latents, rtol=0, atol=1e-4)
    assert made.recipe["prompt"]["regions"][0]["mask"] == str(tmp_path / "disc.png")
    assert again.recipe["prompt"]["regions"][0]["mask"].startswith("sha256:")
    assert plan.passes == 2 * 2 * len(plan.windows)


def test_regions_are_values() -> None:
    mask = disc(4)
    assert Region(mask, "a") == Region(mask, "a") != Region(disc(4), "a")
    assert Regions(([[0, 0, 0.5, 1], "a"],)) == Regions(((LEFT, "a"),))
    assert len({Region(mask, "a"), Region(mask, "a"), Region(LEFT, "a")}) == 2


def test_fields_are_cropped_as_the_canvas_is() -> None:
    picture = torch.rand(3, 16, 32, generator=torch.Generator().manual_seed(0))
    scene = Scene("a lake", fields={"control": picture})
    ring = Grid((4, 8), (4, 4), (2, 2), (False, True))
    torch.testing.assert_close(scene.crop("control", ring, [3], factor=4), ring.refined(4).crop(picture, [3]))
    coarse = Grid((2, 4), (2, 2), (1, 1), (False, True))
    shrunk = torch.nn.functional.interpolate(picture[None], size=(2, 4), mode="bilinear", antialias=True)[0]
    torch.testing.assert_close(scene.crop("control", coarse, [1]), coarse.crop(shrunk, [1]))


def test_regions_go_through_plain_data_recipes_and_the_command_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray((disc(32) * 255).byte().numpy()).save(tmp_path / "disc.png")
    data = {
        "regions": [
            {"mask": str(tmp_path / "disc.png"), "text": "a lake", "weight": 2.0},
            {"box": [0, 0, 1, 1], "text": "a city", "negative_prompt": "fog", "weight": 1, "guidance_scale": 3.0},
        ],
        "elsewhere": "rain",
        "mix": "windows",
    }
    regions = prompt_from(data)
    assert isinstance(regions, Regions)
    assert prompt_from(regions.as_data({})) == regions
    out, again = tmp_path / "a.png", tmp_path / "again.png"
    made = Sampler(str(folder), runtime=Runtime(accelerator="cpu"))(regions, height=16, width=32, steps=2)
    made.save(out)
    assert list(recipe.read(out)["hashes"]) == ["prompt.regions.0.mask"]
    rerun = ["rerun", str(out), "--trust", "--out", str(again)]
    assert main(rerun) == 0
    assert again.read_bytes() == out.read_bytes()
    capsys.readouterr()
    Image.fromarray((disc(16) * 255).byte().numpy()).save(tmp_path / "disc.png")
    assert main(rerun) == 2
    assert "the prompt.regions.0.mask has changed since" in capsys.readouterr().err
    assert main([*rerun, f"--set=prompt.regions.0.mask={tmp_path / 'disc.png'}"]) == 0


@pytest.mark.usefixtures("unannotated")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Regions(()), "Regions came without a region"),
        (lambda: Region((0, 0, 2, 1), "out"), "is empty or leaves the canvas"),
        (lambda: Region([0, 0, 1], "three"), "is empty or leaves the canvas"),
        (lambda: Region(LEFT, "a", guidance_scale="5"), "the guidance_scale of the region 'a' is '5': it must be a number"),
        (lambda: Region(LEFT, "a", weight=0.0), "the weight of the region 'a' is 0.0: it must be above 0"),
        (
            lambda: Regions((Region(LEFT, "a"), Region(WHOLE, "b", weight=1))).maps((2, 4)),
            "a region with a weight overlaps one without, .*: give both a weight, or neither",
        ),
        (lambda: Regions((Region(torch.zeros(4, 4), "a"),)).maps((2, 2)), "the mask of the region 'a' is black everywhere"),
        (lambda: prompt_from({"boxes": [[WHOLE, "a"]], "mix": 3}), "mix of the regions is 3: it must be cells or windows"),
        (lambda: Regions((Region("nowhere.png", "a"),)).maps((2, 2)), "the mask of the region 'a' nowhere.png cannot be read"),
    ],
)
def test_regions_that_cannot_be_say_why(make: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        make()
