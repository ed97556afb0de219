"""Films of Wan in miniature: one window is the pipeline's own film, and longer ones are MultiDiffusion over time."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SkyReelsV2Pipeline, SkyReelsV2Transformer3DModel
from PIL import Image
from torch import Tensor

from panokit import Checkpoint, Model, Regions, Runtime, Sampler, SettingError, films, footage, forecast, load_model
from panokit.callbacks import Preview, picture
from panokit.decoding import PAD
from panokit.errors import ModelError, OutputError
from panokit.footage import decode, encode
from panokit.jobs import JOB, Worker, options_in
from panokit.output import Output
from panokit.painting import paint, prepare
from panokit.testing.families import tiny_pipeline
from panokit.testing.ranks import VirtualRanks
from panokit_msd import HeadStart, MSDGuidance, MSDPaper
from panokit_syncdiffusion import SyncDiffusion

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from panokit.run import Run

SEED, SIDE, FRAMES, CLIP = 3, 8, 9, 3
"""The seed, cells along a side of a window, frames of the model's own film, and its latent frames."""


@pytest.fixture(scope="module")
def pipe(pipeline: Callable[[str], Any]) -> Any:
    return pipeline("wan")


@pytest.fixture(scope="module")
def model(pipe: Any) -> Model:
    return load_model(pipe, window=SIDE, num_frames=FRAMES)


@pytest.fixture(scope="module")
def sampler(model: Model) -> Sampler:
    return Sampler(model, runtime=Runtime(accelerator="cpu"))


def finished(sampler: Sampler, prompt: Any = "a lake", **settings: Any) -> Run:
    *_, run = sampler.stream(prompt, **{"steps": 3, "seed": SEED, **settings})
    return run


def error(x: Tensor, y: Tensor) -> float:
    return float((x - y).abs().max() / y.abs().max())


# --- one window ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [FRAMES, 5])
def test_one_window_is_the_pipelines_own_film(frames: int, pipe: Any, sampler: Sampler) -> None:
    """Also a film that is shorter than the model's own."""

    def own(kind: str) -> Tensor:
        options = {"height": 32, "width": 32, "num_frames": frames, "num_inference_steps": 3}
        return pipe("a lake", output_type=kind, generator=torch.Generator().manual_seed(SEED), **options).frames[0]

    plan = sampler.plan("a lake", frames=frames, steps=3, seed=SEED)
    assert (plan.size, plan.frames, len(plan.windows), plan.passes) == ((32, 32), frames, 1, 3)
    made = plan.make(progress=False)
    assert error(made.latents, own("latent")) < 1e-5
    assert made.frames is not None
    assert made.frames.shape == (frames, 32, 32, 3)
    pixels = own("pt").permute(0, 2, 3, 1) * 255
    assert float((torch.from_numpy(made.frames).float() - pixels).abs().max()) < 0.51
    assert (made.frames[frames // 2] == made.image).all()


def test_the_pipelines_frames_are_the_models(sampler: Sampler, model: Model, pipe: Any) -> None:
    plan = sampler.plan("a lake", steps=3)
    assert (plan.frames, plan.settings.frames, plan.settings.fps, plan.recipe["frames"]) == (FRAMES, FRAMES, 16, FRAMES)
    assert load_model(pipe, window=SIDE).denoiser.window == (21, SIDE, SIDE)
    assert model.denoiser.window == (CLIP, SIDE, SIDE)


def test_one_frame_is_the_picture_of_a_model_of_pictures(pipe: Any, sampler: Sampler) -> None:
    pictures = Sampler(load_model(pipe, window=SIDE, num_frames=1), runtime=Runtime(accelerator="cpu"))
    one, other = finished(sampler, frames=1, width=48), finished(pictures, width=48)
    assert one.canvas.shape == (4, SIDE, 12)
    assert torch.equal(one.canvas, other.canvas)
    assert "fps" not in one.recipe


def test_a_film_of_two_networks_changes_at_the_boundary(pipe: Any) -> None:
    """Wan 2.2 has a second network for little noise."""
    both = type(pipe)(**{**pipe.components, "transformer_2": tiny_pipeline("wan", seed=1).transformer}, boundary_ratio=0.8)
    both.set_progress_bar_config(disable=True)
    options = {"height": 32, "width": 32, "num_frames": FRAMES, "num_inference_steps": 3, "output_type": "latent"}
    own = both("a lake", generator=torch.Generator().manual_seed(SEED), **options).frames[0]
    run = finished(Sampler(load_model(both, window=SIDE, num_frames=FRAMES), runtime=Runtime(accelerator="cpu")))
    assert error(run.canvas, own) < 1e-5


def test_skyreels_makes_its_own_film(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """SkyReels V2 is called as Wan is, and has its autoencoder."""
    plain = SimpleNamespace(fix_text=str)  # for a package that diffusers needs there
    monkeypatch.setattr(sys.modules[SkyReelsV2Pipeline.__module__], "ftfy", plain, raising=False)
    config = {name: value for name, value in pipe.transformer.config.items() if not name.startswith("_")}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = SkyReelsV2Transformer3DModel(**{**config, "text_dim": pipe.text_encoder.config.d_model}).eval()
    skyreels = SkyReelsV2Pipeline(**{**parts_of(pipe), "transformer": network.requires_grad_(False)})
    skyreels.set_progress_bar_config(disable=True)
    model = load_model(skyreels, window=SIDE, num_frames=FRAMES)
    assert (model.denoiser.fps, model.denoiser.guidance_scale) == (24, 6.0)
    options = {"height": 32, "width": 32, "num_frames": FRAMES, "num_inference_steps": 3, "output_type": "latent"}
    own = skyreels("a lake", generator=torch.Generator().manual_seed(SEED), **options).frames[0]
    assert error(finished(Sampler(model, runtime=Runtime(accelerator="cpu"))).canvas, own) < 1e-5


def parts_of(pipe: Any) -> dict[str, Any]:
    return {name: pipe.components[name] for name in ("tokenizer", "text_encoder", "transformer", "vae", "scheduler")}


# --- longer films -------------------------------------------------------------------------------------------------


def test_a_longer_film_is_literal_multidiffusion_over_time(pipe: Any) -> None:
    euler = type(pipe)(**{**pipe.components, "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0)})
    plain = {"plugin": "multidiffusion", "weights": "uniform"}
    model = load_model(euler, window=SIDE, num_frames=FRAMES)
    run = finished(Sampler(model, fuser=plain, runtime=Runtime(accelerator="cpu")), frames=21)
    assert run.canvas.shape == (4, 6, SIDE, SIDE)
    assert error(run.canvas, literal_multidiffusion(euler, 6, [0, 1, 2, 3])) < 1e-5


@torch.no_grad()
def literal_multidiffusion(pipe: Any, frames: int, starts: list[int]) -> Tensor:
    """Each window steps by itself, and the results are averaged."""
    texts = pipe.encode_prompt("a lake", "", do_classifier_free_guidance=True, max_sequence_length=512)
    scheduler = pipe.scheduler
    scheduler.set_timesteps(3)
    x = torch.randn(1, 4, frames, SIDE, SIDE, generator=torch.Generator().manual_seed(SEED))
    for k, t in enumerate(scheduler.timesteps):
        total, count = torch.zeros_like(x), torch.zeros(frames)
        for start in starts:
            at = slice(start, start + CLIP)
            toward, away = (pipe.transformer(x[:, :, at], t.expand(1), text, return_dict=False)[0] for text in texts)
            guided = away + 5.0 * (toward - away)
            total[:, :, at] += x[:, :, at] + (scheduler.sigmas[k + 1] - scheduler.sigmas[k]) * guided
            count[at] += 1
        x = total / count[:, None, None]
    return x[0]


def test_windows_lie_over_time_and_space(sampler: Sampler) -> None:
    plan = sampler.plan("a lake", frames=17, frame_stride=8, width=48, stride=16, steps=2)
    windows: Any = plan.windows
    assert (windows.size, windows.window, windows.stride) == ((5, SIDE, 12), (CLIP, SIDE, SIDE), (2, 4, 4))
    assert (len(plan.windows), plan.passes) == (4, 8)
    made = plan.make(progress=False)
    assert made.frames is not None
    assert made.frames.shape == (17, 32, 48, 3)


def test_regions_are_those_of_all_frames(sampler: Sampler) -> None:
    halves = Regions((((0, 0, 0.5, 1), "a lake"),), elsewhere="a city")
    settings: dict[str, Any] = {"frames": 13, "width": 64, "stride": 32}
    both, lake, city = (finished(sampler, prompt, **settings).canvas for prompt in (halves, "a lake", "a city"))
    assert error(both[..., :SIDE], lake[..., :SIDE]) < 1e-5
    assert error(both[..., SIDE:], city[..., SIDE:]) < 1e-5
    assert error(both[..., SIDE:], lake[..., SIDE:]) > 1e-3


# --- loops --------------------------------------------------------------------------------------------------------


def test_a_loop_has_no_first_frame(sampler: Sampler) -> None:
    """Noise that begins one latent frame later makes a canvas that does, and a film that begins four frames later."""
    run, later = (sampler.begin("a lake", frames=16, wrap="t", frame_stride=4, steps=2, seed=SEED) for _ in range(2))
    assert run.windows.wrap == (True, False, False)
    assert len(sampler.plan("a lake", frames=12, wrap="t").windows) == CLIP  # one window would have two ends
    later.canvas = run.canvas.roll(1, 1)
    for one in (run, later):
        while not one.done:
            one.step()
    assert error(later.canvas, run.canvas.roll(1, 1)) < 1e-5
    film, later_film = sampler.decode(run), sampler.decode(later)
    assert film.shape == (3, 16, 32, 32)
    assert error(later_film, film.roll(4, 1)) < 1e-5


def test_the_first_frames_of_a_loop_follow_its_last(model: Model, sampler: Sampler) -> None:
    """Without a loop the first frame is one of a picture, and the film does not return to it."""
    latents = torch.randn(4, 6, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    assert model.codec
    ninth = model.codec.decode(torch.cat([latents] * 9, 1)[None])[0, :, -24:]
    loop = decode(model.codec, latents, (True, False, False), sampler.runtime)
    assert error(loop, ninth) < 1e-5
    assert error(decode(model.codec, latents, (False, False, False), sampler.runtime), ninth[:, 3:]) > 1e-2


def test_a_loop_is_encoded_as_one(model: Model) -> None:
    film = torch.rand(3, 16, 32, 32, generator=torch.Generator().manual_seed(0))
    assert model.codec
    latents = encode(model.codec, film, (True, False, True))
    assert latents.shape == (4, 4, SIDE, SIDE)
    assert error(encode(model.codec, film.roll(4, 1), (True, False, True)), latents.roll(1, 1)) < 1e-5


def test_a_ring_of_a_film_has_no_border(model: Model, sampler: Sampler) -> None:
    """The decoder attends to all of a frame, also to what is repeated at its ends: so a turned film is a little different."""
    latents = torch.randn(4, 2, SIDE, 2 * PAD, generator=torch.Generator().manual_seed(0))
    assert model.codec

    def apart(ring: bool) -> float:
        film, turned = (
            decode(model.codec, canvas, (False, False, ring), sampler.runtime) for canvas in (latents, latents.roll(5, 3))
        )
        return float((turned - film.roll(20, 3)).abs().mean())

    assert apart(ring=True) < 0.004
    assert apart(ring=False) > 0.012


def test_a_film_in_tiles_is_nearly_that_in_one_piece(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks share the tiles, and make the same bits."""
    latents = torch.randn(4, 2, SIDE, 64, generator=torch.Generator().manual_seed(0))

    def film(runtime: Runtime) -> Tensor:
        assert model.codec
        return decode(model.codec, latents, (False, False, False), runtime)

    whole = film(Runtime(accelerator="cpu"))
    monkeypatch.setattr(footage, "APART", 24)
    monkeypatch.setattr(footage, "WHOLE", 64)
    tiled = film(Runtime(accelerator="cpu"))
    assert tiled.shape == whole.shape == (3, 5, 32, 256)
    assert float((tiled - whole).abs().mean()) < 0.02
    for other in VirtualRanks(2, 1).run(film):
        assert torch.equal(other, tiled)


# --- MSD ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "guidance", [MSDGuidance(head_start=0.4), MSDGuidance(head_start=0.0, factor=(1, 2, 2)), HeadStart(until=0.5), MSDPaper()]
)
def test_msd_keeps_the_time_of_a_film(guidance: Any, model: Model) -> None:
    sizes: list[tuple[int, ...]] = []

    class Watch:
        def on_inner_step_end(self, run: Run) -> None:
            assert run.inner
            sizes.append(run.inner.windows.size)

    sampler = Sampler(model, guidances=[guidance], runtime=Runtime(accelerator="cpu"), callbacks=[Watch()])
    run = finished(sampler, frames=13, height=64, width=64)
    assert run.canvas.isfinite().all()
    assert run.canvas.shape == (4, 4, 16, 16)
    assert set(sizes) <= {(4, SIDE, SIDE)}
    assert bool(sizes) == guidance.starts
    assert error(run.canvas, finished(Sampler(model, runtime=sampler.runtime), frames=13, height=64, width=64).canvas) > 1e-4


@pytest.mark.parametrize(
    ("guidance", "message"),
    [
        (MSDGuidance(factor=(2, 2)), r"factor is \(2, 2\), and the canvas has 3 axes: give one number, or one for each axis"),
        (
            MSDGuidance(factor=(3, 1, 1)),
            r"a head start enlarges height and width alike, and no time: make it \(1, 2, 2\), or let it begin",
        ),
        (HeadStart(factor=(1, 1, 2)), r"enlarges height and width alike, and no time: make it \(1, 2, 2\), or let it begin"),
        (SyncDiffusion(), "compares pictures, and a window of this canvas is a film: leave it out"),
        (MSDGuidance(levels=2), r"needs a canvas of 3 x 16 x 16 cells or more, in steps of 2, and this one is 4 x 8 x 8"),
    ],
)
def test_guidances_say_which_films_they_take(guidance: Any, message: str, model: Model) -> None:
    plan = Sampler(model, guidances=[guidance], runtime=Runtime(accelerator="cpu")).plan("a lake", frames=13, steps=2)
    with pytest.raises(SettingError, match=message):
        plan.check()


# --- ranks, checkpoints and files ---------------------------------------------------------------------------------


def test_ranks_make_the_same_bits(model: Model) -> None:
    def canvas(runtime: Runtime) -> Tensor:
        sampler = Sampler(model, guidances=[MSDGuidance()], runtime=runtime)
        run = finished(sampler, frames=13, height=64, width=64, steps=2)
        return torch.cat([run.canvas.flatten(), sampler.decode(run).flatten()])

    (one,) = VirtualRanks(1, 2).run(canvas)
    for other in VirtualRanks(2, 2).run(canvas):
        assert torch.equal(other, one)


def test_a_resumed_film_has_the_same_bits(model: Model, tmp_path: Path) -> None:
    runtime, settings = Runtime(accelerator="cpu"), {"frames": 16, "wrap": "t", "steps": 4, "seed": SEED}
    for run in Sampler(model, runtime=runtime, callbacks=[Checkpoint(tmp_path / "a", 1)]).stream("a lake", **settings):
        if run.level.step == 2:
            break
    kept = Checkpoint(tmp_path / "a", resume=tmp_path / "a")
    steps = list(Sampler(model, runtime=runtime, callbacks=[kept]).stream("a lake", **settings))
    assert len(steps) < 4
    assert torch.equal(steps[-1].canvas, finished(Sampler(model, runtime=runtime), **settings).canvas)


def test_a_film_is_written_and_its_recipe_makes_it_again(sampler: Sampler, tmp_path: Path) -> None:
    from panokit.recipe import read

    made = sampler("a lake", out=tmp_path / "a.webp", frames=5, fps=8, steps=2, progress=False)
    with Image.open(tmp_path / "a.webp") as film:
        assert film.n_frames == 5
    options = options_in(read(tmp_path / "a.webp"), "the recipe")
    assert (options["frames"], options["fps"]) == (5, 8)
    job = {name: value for name, value in options.items() if name in JOB}
    again = Worker({"model": sampler.model}).make({**job, "model": sampler.model.name})
    assert torch.equal(again.latents, made.latents)
    with pytest.raises(OutputError, match=r"its ending '.png' .* this is one of 5 frames: use .mp4, .webm or .webp"):
        made.save(tmp_path / "a.png")
    with pytest.raises(OutputError, match=r"its ending '.png' .* this is one of 5 frames: use .mp4, .webm or .webp"):
        sampler("a lake", out=tmp_path / "a.png", frames=5, steps=2)


def test_a_task_makes_a_film_of_a_films_ending(sampler: Sampler, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    worker, output = Worker({"model": sampler.model}), Output(out=f"{tmp_path}/", sheet=str(tmp_path / "sheet.png"), quiet=True)
    task = prepare({"prompt": "a lake", "frames": 5, "steps": 2}, worker, output)
    assert task.path.suffix == films.ending()
    assert task.pixels == 5 * 32 * 32
    assert "32 x 32 pixels, 5 frames, 1 window a step" in forecast.words(task.path, task.plan)
    assert forecast.data(task.path, task.plan)["frames"] == 5
    assert not task.done
    paint([task], worker.runtime)
    assert task.done
    assert len(films.read_frames(task.path)) == 5
    assert "32 x 32 pixels, 5 frames" in capsys.readouterr().out
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width == 2048
        assert sheet.height > 3000  # frames in three rows, not the one in the middle


def test_a_preview_of_a_film_has_a_frame_for_each_latent_frame(sampler: Sampler, tmp_path: Path) -> None:
    previews = [Preview(tmp_path / name) for name in ("a.webp", "a.png")]
    sampler("a lake", callbacks=previews, steps=2, progress=False)
    frames = films.read_frames(tmp_path / "a.webp")
    assert frames.shape == (CLIP, 32, 32, 3)
    assert (tmp_path / "a.png").exists()
    run = next(sampler.stream("a lake", steps=2))
    image = picture(run)
    assert image
    assert image.size == (32, 32)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"frames": 12}, "frames is 12, which .* cannot make: it makes 1, 5, 9, ... frames; the nearest are 9 and 13"),
        ({"frames": 3}, "frames is 3, .* the nearest is 5"),
        ({"frames": 0}, "frames is 0: it must be 1 or more"),
        ({"frames": 9, "wrap": "t"}, "frames is 9, .* a loop needs a multiple of 4; the nearest are 8 and 12"),
        ({"frames": 1, "wrap": "xt"}, "frames is 1, .* a loop needs a multiple of 4; the nearest is 4"),
        ({"frames": 1, "frame_stride": 4}, "frame_stride is 4, and frames is 1, a picture: leave one of them out"),
        ({"fps": 5000}, "fps is 5000: it must be from 1 to 1000 frames a second"),
        ({"frame_stride": 6}, "a frame_stride of 6 .* a multiple of 4 from 4 to 12, the window; the nearest is 8"),
        ({"frame_stride": 16, "frames": 21}, "a frame_stride of 16 .* the nearest is 12"),
        ({"frames": 4_000_001}, "32 x 32 pixels in 4000001 frames are more than a canvas may have"),
        ({"image": torch.zeros(3, 32, 32)}, "image is for pictures, and this is a film: leave it out, or .* frames=1"),
    ],
)
def test_wrong_settings_of_a_film_are_explained(settings: dict[str, Any], message: str, sampler: Sampler) -> None:
    with pytest.raises(SettingError, match=message) as caught:
        sampler.plan("a lake", **settings)
    assert "\n" not in str(caught.value)


def test_wrong_frames_of_a_model_are_explained(pipe: Any) -> None:
    with pytest.raises(SettingError, match=r"num_frames of the model came as 8: it must be 1, 5, 9, \.\.\.; try 9"):
        load_model(pipe, num_frames=8)
    with pytest.raises(ModelError, match="cannot be driven one noise level at a time, for it makes films"):
        load_model(type("CogVideoXPipeline", (type(pipe),), {})(**pipe.components))
