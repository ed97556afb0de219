"""Composition: what a call gives back, and what it says to values that cannot work."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from PIL import Image

from panokit import (
    Codec,
    ContractError,
    DiffusersScheduler,
    Model,
    PanokitError,
    Regions,
    Runtime,
    Sampler,
    SettingError,
)
from panokit.composition import BASES, build
from panokit.decoding import decode
from panokit.errors import NotFiniteError, OutputError, PluginNotFoundError
from panokit.panorama import to_image
from panokit.registry import plugins
from panokit.run import Run
from panokit.testing.toys import Pull, ToyDenoiser, ToyScheduler, toy_run
from panokit_multidiffusion import MultiDiffusion

SIZE: dict[str, Any] = {"height": 24, "width": 40, "steps": 2}


@pytest.fixture(scope="module")
def sampler(tiny: Model, cpu: Runtime) -> Sampler:
    return Sampler(tiny, runtime=cpu)


def test_a_call_gives_a_panorama_of_the_size_asked_for(sampler: Sampler) -> None:
    panorama = sampler("a lake", height=26, width=58, steps=2)
    assert panorama.image.size == (58, 26)
    assert panorama.latents.shape == (4, 13, 29)


def test_the_recipe_is_plain_data_that_says_everything(tiny: Model, cpu: Runtime) -> None:
    sampler = Sampler(tiny, runtime=cpu, scheduler=DiffusersScheduler("ddim", {"eta": 1.0}))
    made = sampler("a lake", **SIZE, seed=3, negative_prompt="fog", guidance_scale=2.0, wrap="x", stride=6)
    recipe = json.loads(json.dumps(made.recipe))
    scheduler = DiffusersScheduler(recipe["scheduler"]["plugin"], recipe["scheduler"]["options"])
    runtime = Runtime(accelerator="cpu", precision=recipe["precision"], micro_batch=recipe["micro_batch"])
    kept = ("height", "width", "negative_prompt", "steps", "guidance_scale", "stride", "wrap", "seed")
    again = Sampler(tiny, runtime=runtime, scheduler=scheduler)(recipe["prompt"], **{name: recipe[name] for name in kept})
    assert torch.equal(again.latents, made.latents)
    assert {"panokit", "torch", "diffusers"} <= set(recipe)
    assert recipe["prompt"] == "a lake"
    assert recipe["seed"] == 3
    assert recipe["scheduler"] == {"plugin": "ddim", "options": {"eta": 1.0}}
    assert recipe["fuser"] == {"plugin": "multidiffusion", "weights": "gaussian", "spread": 0.2}


def test_a_list_of_prompts_gives_what_each_alone_gives(sampler: Sampler) -> None:
    prompts = ["a lake", "a city"]
    together = sampler(prompts, **SIZE)
    assert [torch.equal(p.latents, sampler(text, **SIZE).latents) for p, text in zip(together, prompts, strict=True)] == [
        True,
        True,
    ]
    assert not torch.equal(together[0].latents, together[1].latents)


def test_the_same_seed_is_the_same_picture_and_another_is_another(sampler: Sampler) -> None:
    first, again, other = (sampler("a lake", **SIZE, seed=seed).latents for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


@pytest.mark.parametrize("seed", [-1, -(1 << 63)])
def test_a_seed_that_no_generator_takes_is_refused(sampler: Sampler, seed: int) -> None:
    with pytest.raises(SettingError, match=f"seed is {seed}: it must be from 0 to"):
        sampler("a lake", **SIZE, seed=seed)


def test_the_first_draw_of_the_seed_is_the_initial_noise(sampler: Sampler) -> None:
    run = sampler.begin("a lake", **SIZE, seed=5)
    assert torch.equal(run.canvas, torch.randn((4, 12, 20), generator=torch.Generator().manual_seed(5)))


def test_stream_gives_the_run_after_each_step(sampler: Sampler) -> None:
    steps = [run.level.step for run in sampler.stream("a lake", height=16, width=16, steps=4)]
    assert steps == [1, 2, 3, 4]


def test_a_stream_can_be_left(sampler: Sampler) -> None:
    for run in sampler.stream("a lake", height=16, width=16, steps=4):
        if run.level.step == 2:
            break
    assert not run.done
    assert run.seen is not None


def test_prompt_and_negative_prompt_and_scale_each_matter(sampler: Sampler) -> None:
    plain = sampler("a lake", **SIZE).latents
    assert not torch.allclose(plain, sampler("a city", **SIZE).latents)
    assert not torch.allclose(plain, sampler("a lake", **SIZE, negative_prompt="fog").latents)
    assert not torch.allclose(plain, sampler("a lake", **SIZE, guidance_scale=2.0).latents)


def test_without_guidance_scale_the_negative_prompt_is_not_asked(sampler: Sampler) -> None:
    plain = sampler("a lake", **SIZE, guidance_scale=1.0).latents
    assert torch.equal(plain, sampler("a lake", **SIZE, guidance_scale=1.0, negative_prompt="fog").latents)


def test_regions_that_say_the_same_everywhere_are_that_prompt(sampler: Sampler) -> None:
    regions = Regions((((0, 0, 0.5, 1), "a lake"), ((0.5, 0, 1, 1), "a lake")))
    assert torch.allclose(sampler(regions, **SIZE).latents, sampler("a lake", **SIZE).latents, atol=1e-5)


def test_each_region_has_its_own_prompt(sampler: Sampler) -> None:
    """The leftmost windows see only the left region, so far from the border its text alone decides."""
    regions = Regions((((0, 0, 0.5, 1), "a lake"), ((0.5, 0, 1, 1), "a city")))
    both = sampler(regions, height=16, width=128, steps=2, stride=16).latents
    lake, city = (sampler(text, height=16, width=128, steps=2, stride=16).latents for text in ("a lake", "a city"))
    assert torch.allclose(both[..., :32], lake[..., :32], atol=1e-4)
    assert torch.allclose(both[..., 32:], city[..., 32:], atol=1e-4)


@pytest.mark.parametrize("boxes", [(), (((0, 0, 1.2, 1), "out"),), (((0.5, 0, 0.5, 1), "empty"),)])
def test_a_box_lies_in_the_canvas(boxes: Any) -> None:
    with pytest.raises(SettingError, match=r"box|region"):
        Regions(boxes)


@pytest.mark.parametrize("wrap", ["x", "y", "xy"])
def test_a_wrapped_panorama_rolls_with_its_noise(tiny: Model, cpu: Runtime, wrap: Any) -> None:
    """Rolled by a stride, the noise of a ring gives the rolled panorama."""
    sampler = Sampler(tiny, runtime=cpu, fuser=MultiDiffusion("uniform"))
    shift = tuple(4 if axis in wrap else 0 for axis in "yx")
    plain, rolled = (sampler.begin("a lake", height=32, width=48, steps=2, wrap=wrap) for _ in range(2))
    rolled.canvas = rolled.canvas.roll(shift, (1, 2))
    for _ in range(2):
        plain.step()
        rolled.step()
    assert torch.allclose(plain.canvas.roll(shift, (1, 2)), rolled.canvas, atol=1e-4)


def test_a_wrapped_picture_has_no_seam_where_it_closes(tiny: Model, cpu: Runtime) -> None:
    """Decoding commutes with rolling away from the join only if the decoder saw round it."""
    codec = tiny.codec
    assert codec is not None
    canvas = torch.randn(4, 8, 24, generator=torch.Generator().manual_seed(0))

    def difference(wrap: tuple[bool, bool]) -> float:
        plain, rolled = (decode(codec, c, wrap, cpu) for c in (canvas, canvas.roll(12, -1)))
        seam = slice(0, 4)
        return float((plain.roll(24, -1) - rolled)[..., 24:].roll(0, -1)[..., seam].abs().max())

    assert difference((False, True)) < 0.2 * difference((False, False))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"height": 8}, "below one window: this model needs 16 pixels or more, in steps of 2"),
        ({"height": 0}, "below one window"),
        ({"width": -64}, "below one window"),
        ({"width": 41}, "the nearest are 40 or 42"),
        ({"steps": 0}, "at least 1 denoising step"),
        ({"stride": 18}, "the nearest is 16"),
        ({"stride": 0}, "the nearest is 2"),
        ({"stride": 5}, "multiple of 2"),
    ],
)
def test_values_that_cannot_work_are_told_with_what_would(sampler: Sampler, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        sampler("a lake", **{**SIZE, **settings}, progress=False)


@pytest.mark.usefixtures("unannotated")
@pytest.mark.parametrize("prediction", ["epsilon", "flow_prediction"])
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_wrong_use_of_a_model_of_any_kind_is_a_panokit_error(axes: int, prediction: Any, cpu: Runtime) -> None:
    """Whatever a canvas of so many axes, or a flow, does not go with: it works, or an error of panokit says why it does not."""
    denoiser, settings = ToyDenoiser((4,) * axes, prediction=prediction), {"height": 8, "width": 8, "steps": 2}
    size = (8,) * axes
    regions = Regions((((0, 0, 0.5, 1), "a lake"),))

    def sampled(prompt: Any = "a lake", *, scheduler: str = "ddim", **more: Any) -> Any:
        return Sampler(Model(denoiser, None, "toy"), scheduler=scheduler, runtime=cpu).begin(prompt, **settings, **more).step()

    def run(**more: Any) -> Run:
        return toy_run(size, denoiser=denoiser, **more)

    def stepped(**more: Any) -> None:
        run(**more).step()

    def named(kind: Any) -> list[Any]:
        return [build(BASES[kind], plugin.name) for plugin in plugins(kind)]

    uses: list[Callable[[], Any]] = [
        *(partial(sampled, scheduler=plugin.name) for plugin in plugins("schedulers")),
        partial(sampled, image=torch.zeros(3, 8, 8)),
        partial(sampled, regions),
        *(partial(run(prompt="a").windows.nearest, *[0.5] * k) for k in range(5)),
        *(partial(run().windows.coarsened, cast("Any", factor)) for factor in (0, 1.5, "2", (2,), (2, 2), (2, 2, 2))),
        lambda: run(guidances=[Pull()]).restore(run().state()),
        lambda: run().restore(toy_run((12,) * axes, denoiser=denoiser).state()),
        *(partial(stepped, guidances=[guidance]) for guidance in named("guidances")),
        *(partial(stepped, layout=layout) for layout in named("layouts")),
        *(partial(stepped, fuser=fuser) for fuser in named("fusers")),
        partial(stepped, prompt=regions),
    ]
    problems: list[str] = []
    for use in uses:
        try:
            use()
        except PanokitError as error:
            problems.append(str(error))
    assert 0 < len(problems) < len(uses)
    assert all(len(problem.splitlines()) == 1 for problem in problems)


def test_an_empty_list_of_prompts_is_an_error(sampler: Sampler) -> None:
    with pytest.raises(SettingError, match="list of prompts is empty"):
        sampler([], **SIZE)


@pytest.mark.parametrize(
    ("settings", "close"),
    [
        ({"fuser": "multidifusion"}, "did you mean 'multidiffusion'"),
        ({"scheduler": "dddim"}, "did you mean 'ddim'"),
        ({"guidances": ["nothing-like-it"]}, "no guidance is called 'nothing-like-it'"),
        ({"model": "landscape"}, "did you mean 'landscapes'"),
    ],
)
def test_unknown_names_are_told_the_closest_match(tiny: Model, cpu: Runtime, settings: dict[str, Any], close: str) -> None:
    with pytest.raises(PluginNotFoundError, match=close):
        Sampler(**{"model": tiny, "runtime": cpu, **settings})


def test_a_class_path_works_wherever_a_name_does(tiny: Model, cpu: Runtime) -> None:
    sampler = Sampler(tiny, runtime=cpu, fuser="panokit_multidiffusion:MultiDiffusion")
    assert sampler.fuser == MultiDiffusion()


def test_a_model_without_a_codec_paints_the_canvas(cpu: Runtime) -> None:
    sampler = Sampler(Model(ToyDenoiser((4, 4), channels=3), None, "pixels"), scheduler=ToyScheduler(), runtime=cpu)
    panorama = sampler("a lake", height=5, width=9, steps=2)
    assert panorama.image.size == (9, 5)
    assert panorama.image.tobytes() == to_image(panorama.latents.float()).tobytes()


@pytest.fixture
def pixelwise(cpu: Runtime, monkeypatch: pytest.MonkeyPatch) -> Sampler:
    """A sampler whose canvas is the picture. Pictures of more than 8 pixels a side count as large, and copies have up to 4."""
    monkeypatch.setattr("panokit.files.SIDE", 8)
    monkeypatch.setattr("panokit.sampler.SMALL", 4)
    monkeypatch.setattr("panokit.sampler._ROWS", 3)
    return Sampler(Model(ToyDenoiser((4, 4), channels=3), None, "pixels"), scheduler=ToyScheduler(), runtime=cpu)


@pytest.mark.parametrize("start", [{}, {"image": torch.rand(3, 5, 4), "at": (2, 0)}], ids=["noise", "a picture"])
def test_a_large_panorama_is_written_while_it_is_decoded(pixelwise: Sampler, start: dict[str, Any], tmp_path: Path) -> None:
    settings = {"height": 5, "width": 12, "steps": 2, **start}
    whole = pixelwise("a lake", **settings)
    large = pixelwise("a lake", **settings, out=tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.tobytes() == whole.image.tobytes()
    assert (whole.size, whole.file) == ((12, 5), None)
    assert (large.size, large.file) == ((12, 5), tmp_path / "a.png")
    assert large.image.size == (4, 2)
    assert torch.equal(large.latents, whole.latents)


def test_an_ordinary_panorama_is_written_and_kept(pixelwise: Sampler, tmp_path: Path) -> None:
    settings = {"height": 5, "width": 8, "steps": 2}
    made = pixelwise.plan("a lake", **settings).make(out=str(tmp_path / "a.png"))
    assert made.file is None
    with Image.open(tmp_path / "a.png") as image:
        assert image.tobytes() == made.image.tobytes() == pixelwise("a lake", **settings).image.tobytes()


def test_a_picture_that_is_not_finite_in_its_middle_leaves_no_file(
    pixelwise: Sampler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strips = pixelwise._strips

    def broken(run: Run) -> Iterator[torch.Tensor]:
        for k, strip in enumerate(strips(run)):
            yield pixelwise._finished(run, strip.fill_(torch.nan) if k else strip)

    monkeypatch.setattr(pixelwise, "_strips", broken)
    with pytest.raises(NotFiniteError):
        pixelwise("a lake", height=5, width=12, steps=2, out=tmp_path / "a.png")
    assert not [*tmp_path.iterdir()]


def test_out_is_tried_before_the_run_and_is_one_file(pixelwise: Sampler, tmp_path: Path) -> None:
    for prompt, path, message in [
        ("a lake", tmp_path / "missing" / "a.png", "make it first"),
        ("a lake", tmp_path / "a.xyz", "names no picture format"),
        (["a lake"], tmp_path / "a.png", "a list of prompts makes several: call with one prompt at a time"),
    ]:
        with pytest.raises((OutputError, SettingError), match=message):
            pixelwise(prompt, height=5, width=12, steps=2, out=path, callbacks=[Refusing()])
    assert not [*tmp_path.iterdir()]


class Refusing:
    """A callback that no run reaches."""

    def on_run_start(self) -> None:
        raise AssertionError("a run was started")


def test_samplers_that_share_a_model_do_not_touch_each_other(tiny: Model, cpu: Runtime) -> None:
    exact = Sampler(tiny, runtime=cpu)
    before = exact("a lake", **SIZE).latents
    half = Sampler(tiny, runtime=Runtime(accelerator="cpu", precision="bf16-true"))
    rough = half("a lake", **SIZE).latents
    assert torch.equal(exact("a lake", **SIZE).latents, before)
    assert torch.equal(Sampler(tiny, runtime=cpu)("a lake", **SIZE).latents, before)
    assert not torch.equal(rough, before)
    assert Sampler(tiny, runtime=cpu).model is tiny


def test_a_run_that_closes_is_decoded_round_its_join(sampler: Sampler) -> None:
    """Rolled by half, a ring is the same ring: so is its picture."""
    run = sampler.begin("a lake", height=16, width=64, steps=2, wrap="x")
    picture, canvas = sampler.decode(run), run.canvas
    run.canvas = canvas.roll(16, -1)
    turned = sampler.decode(run)[..., (torch.arange(64) + 32) % 64]
    flat = sampler.begin("a lake", height=16, width=64, steps=2)
    flat.canvas = canvas
    apart, cut = ((other - picture).abs().max() for other in (turned, sampler.decode(flat)))
    assert apart < 0.1 * cut


def test_a_picture_that_is_not_finite_is_no_picture(sampler: Sampler) -> None:
    run = sampler.begin("a lake", **SIZE)
    run.canvas = run.canvas * float("nan")
    with pytest.raises(NotFiniteError, match="the decoded picture holds NaN or infinity"):
        sampler.decode(run)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"guidances": "msd"}, r"guidances is 'msd': it must be a list, \['msd'\]"),
        ({"guidances": Pull()}, "it must be a list"),
        ({"guidances": [Pull]}, "the class Pull came where a Guidance was expected: give a name or an object"),
        ({"fuser": MultiDiffusion}, "the class MultiDiffusion came where a Fuser was expected"),
        ({"scheduler": 3}, "a int came where a Scheduler was expected"),
    ],
)
@pytest.mark.usefixtures("unannotated")
def test_what_is_no_plugin_is_refused(tiny: Model, cpu: Runtime, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Sampler(tiny, runtime=cpu, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt": None}, "prompt is a NoneType: it must be text, or Regions"),
        ({"prompt": ["a lake", 3]}, "prompt is a int: it must be text"),
        ({"negative_prompt": None}, "negative_prompt came as None: it must be text"),
        ({"height": 24.0}, "height came as 24.0: it must be a whole number"),
        ({"steps": 2.5}, "steps came as 2.5: it must be a whole number"),
        ({"stride": "8"}, "stride came as '8': it must be a whole number"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan"),
        ({"wrap": 2}, "wrap came as 2: it must be true, false, x, y, xy, t, xt, yt or xyt"),
    ],
)
@pytest.mark.usefixtures("unannotated")
def test_a_setting_of_another_kind_is_refused(sampler: Sampler, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        sampler(**{"prompt": "a lake", **SIZE, **settings})


@pytest.mark.parametrize(
    "guidances", [["hiflow", "msd"], ["head_start", "demofusion"], ["extrapolation", "hiflow"], ["msd", "head_start"]], ids=str
)
def test_two_guidances_that_begin_the_canvas_are_refused(tiny: Model, cpu: Runtime, guidances: list[str]) -> None:
    for order in (guidances, guidances[::-1]):
        with pytest.raises(SettingError, match=r"^\w+ and \w+ both decide what the canvas begins with: use one of them"):
            Sampler(tiny, guidances=order, runtime=cpu)
    noise = {"plugin": "msd", "head_start": 0.0}
    Sampler(tiny, guidances=["head_start", noise, "syncdiffusion"], runtime=cpu)


def test_a_jacobian_that_there_is_not_is_refused() -> None:
    pull = Pull()
    object.__setattr__(pull, "jacobian", "Full")
    with pytest.raises(ContractError, match=r"Pull\.jacobian is 'Full'; it must be 'full', .* 'identity', .* or 'none'"):
        toy_run(guidances=[pull])


def test_a_run_that_is_done_steps_no_further() -> None:
    run = toy_run(steps=1)
    run.step()
    with pytest.raises(SettingError, match="the run is done: begin another one"):
        run.step()


def test_inference_mode_is_refused_where_it_begins() -> None:
    with torch.inference_mode(), pytest.raises(SettingError, match=r"use torch\.no_grad"):
        toy_run()


def test_objects_and_names_compose_the_same_sampler(tiny: Model, cpu: Runtime) -> None:
    by_name = Sampler(tiny, scheduler="ddim", fuser="multidiffusion", runtime=cpu)
    by_object = Sampler(tiny, scheduler=DiffusersScheduler("ddim"), fuser=MultiDiffusion(), runtime=cpu)
    assert torch.equal(by_name("a lake", **SIZE).latents, by_object("a lake", **SIZE).latents)
    assert repr(by_name) == repr(by_object)


def test_every_error_is_a_panokit_error() -> None:
    from panokit import errors

    classes = [e for e in vars(errors).values() if isinstance(e, type)]
    assert all(issubclass(e, PanokitError) for e in classes if not issubclass(e, Warning))


def test_pictures_are_in_eight_bits(sampler: Sampler) -> None:
    image = sampler("a lake", **SIZE).image
    assert isinstance(image, Image.Image)
    assert image.mode == "RGB"
    assert isinstance(sampler.model.codec, Codec)
