"""Starting from a picture: img2img, inpainting, outpainting, upscaling; against diffusers' pipelines and by exact laws."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from panokit import DiffusersScheduler, Model, Panorama, Runtime, Sampler, SettingError, recipe
from panokit.backbones.diffusers.codec import VAECodec
from panokit.backbones.diffusers.model import UNetDenoiser
from panokit.cli import main
from panokit.decoding import encode
from panokit.jobs import Worker
from panokit.picture import JOIN, start
from panokit.pixels import read
from panokit.settings import Settings
from panokit.testing.toys import ToyCodec
from panokit_msd import HeadStart, MSDGuidance
from panokit_syncdiffusion import SyncDiffusion

SEED = 3
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SCHEDULERS: dict[str, Callable[[], Any]] = {
    "ddim": lambda: DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1),
    "euler": lambda: EulerDiscreteScheduler(**BETAS, timestep_spacing="leading", steps_offset=1),
}


def photo(height: int, width: int, seed: int = 0) -> Image.Image:
    """A smooth picture, in 8 bits."""
    small = torch.rand(1, 3, 4, 6, generator=torch.Generator().manual_seed(seed))
    pixels = torch.nn.functional.interpolate(small, size=(height, width), mode="bilinear")[0]
    return Image.fromarray((pixels * 255).byte().permute(1, 2, 0).numpy())


def pixels(image: Image.Image) -> Tensor:
    from torchvision.transforms.functional import pil_to_tensor

    return pil_to_tensor(image)


def half_mask(height: int, width: int) -> Image.Image:
    """White, to be painted anew, in the right half."""
    mask = Image.new("L", (width, height), 0)
    mask.paste(255, (width // 2, 0, width, height))
    return mask


# --- one window: diffusers' own pipelines ---------------------------------------------------------------------


def pipeline(cls: Any, model: Model, scheduler: str) -> Any:
    denoiser, codec = model.denoiser, model.codec
    assert isinstance(denoiser, UNetDenoiser)
    assert isinstance(codec, VAECodec)
    pipe = cls(
        vae=codec.vae,
        text_encoder=denoiser.text_encoder,
        tokenizer=denoiser.tokenizer,
        unet=denoiser.unet,
        scheduler=SCHEDULERS[scheduler](),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


OLD_NUMPY = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers, in set_timesteps


@OLD_NUMPY
@pytest.mark.parametrize("scale", [1.0, 5.0])
@pytest.mark.parametrize("strength", [0.3, 0.8])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_img2img_is_diffusers_own_at_one_window(
    tiny: Model, cpu: Runtime, scheduler: str, strength: float, scale: float
) -> None:
    picture = photo(16, 16)
    sampler = Sampler(tiny, scheduler=DiffusersScheduler(scheduler), runtime=cpu)
    ours = sampler("a lake", image=picture, strength=strength, steps=10, guidance_scale=scale, seed=SEED, progress=False)
    assert tiny.codec is not None
    latents = encode(tiny.codec, pixels(picture).float() / 255, (False, False))  # diffusers would draw noise to encode it
    expected = pipeline(StableDiffusionImg2ImgPipeline, tiny, scheduler)(
        "a lake",
        image=latents[None],
        strength=strength,
        num_inference_steps=10,
        guidance_scale=scale,
        generator=torch.Generator().manual_seed(SEED),
        output_type="latent",
    ).images[0]
    assert float((ours.latents - expected).abs().max() / expected.abs().max()) < 1e-5


@OLD_NUMPY
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_inpainting_is_diffusers_own_at_one_window(tiny: Model, cpu: Runtime, scheduler: str) -> None:
    picture, mask = photo(16, 16), half_mask(16, 16)
    sampler = Sampler(tiny, scheduler=DiffusersScheduler(scheduler), runtime=cpu)
    ours = sampler("a lake", image=picture, mask=mask, strength=0.8, steps=10, seed=SEED, progress=False)
    assert tiny.codec is not None
    latents = encode(tiny.codec, pixels(picture).float() / 255, (False, False))
    expected = pipeline(StableDiffusionInpaintPipeline, tiny, scheduler)(
        "a lake",
        image=latents[None],
        mask_image=pixels(mask)[None].float() / 255,
        masked_image_latents=torch.zeros(1, 4, 8, 8),
        height=16,
        width=16,
        strength=0.8,
        num_inference_steps=10,
        generator=torch.Generator().manual_seed(SEED),
        output_type="latent",
    ).images[0]
    assert float((ours.latents - expected).abs().max() / expected.abs().max()) < 1e-5


# --- canvases of many windows ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sampler(tiny: Model, cpu: Runtime) -> Sampler:
    return Sampler(tiny, runtime=cpu)


def made(sampler: Sampler, **settings: Any) -> Panorama:
    return sampler("a lake", **{"steps": 4, "seed": SEED, "progress": False, **settings})


@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("guidances", [[], [MSDGuidance()], [SyncDiffusion(weight=0.1)], [HeadStart(0.5)]], ids=str)
def test_outside_the_mask_latents_and_pixels_are_those_of_the_picture(
    tiny: Model, cpu: Runtime, guidances: list[Any], wrap: bool
) -> None:
    picture, mask = photo(32, 64), half_mask(32, 64)
    panorama = made(Sampler(tiny, guidances=guidances, runtime=cpu), image=picture, mask=mask, wrap=wrap)
    assert tiny.codec is not None
    x0 = encode(tiny.codec, pixels(picture).float() / 255, (False, wrap))
    assert torch.equal(panorama.latents[:, :, :16], x0[:, :, :16])
    assert not torch.isclose(panorama.latents[:, :, 16:], x0[:, :, 16:]).all()
    assert torch.equal(pixels(panorama.image)[:, :, :32], pixels(picture)[:, :, :32])


def test_the_edge_of_a_mask_is_soft() -> None:
    """A black canvas beside a white picture: over four pixels, the picture fades by a fifth each."""
    pictures = {"image": torch.ones(3, 16, 32), "mask": read(half_mask(16, 32), "mask")[0]}
    row = start(Settings(height=16, width=32, steps=4, image="-", mask="-"), pictures, 2).join(torch.zeros(3, 16, 32))[0, 0]
    torch.testing.assert_close(row[14 : 17 + JOIN], torch.tensor([1.0, 1.0, 0.8, 0.6, 0.4, 0.2, 0.0]))


@pytest.mark.parametrize("wrap", [False, "x", "y", "xy"])
@given(strip=st.integers(1, 16), seed=st.integers(0, 99))
def test_strips_are_joined_as_the_whole_picture_is(wrap: Any, strip: int, seed: int) -> None:
    chance = torch.Generator().manual_seed(seed)
    picture, painted = torch.rand(3, 16, 24, generator=chance), torch.rand(3, 16, 24, generator=chance)
    mask = (torch.rand(2, 3, generator=chance) < 0.5).float().repeat_interleave(8, 0).repeat_interleave(8, 1)
    mask[0, 0], mask[-1, -1] = 1, 0  # something is painted, and something stays
    begun = start(
        Settings(height=16, width=24, steps=4, image="-", mask="-", wrap=wrap),
        {"image": picture, "mask": mask.expand(3, -1, -1)},
        2,
    )
    tops = range(0, 16, strip)
    joined = [begun.join(rows, top) for top, rows in zip(tops, painted.split(strip, dim=1), strict=True)]
    assert torch.equal(torch.cat(joined, dim=1), begun.join(painted))


@pytest.mark.parametrize("guidances", [[HeadStart(0.5)], [MSDGuidance(head_start=0.5)]], ids=str)
@pytest.mark.parametrize("settings", [{"strength": 0.75}, {"mask": half_mask(32, 64), "strength": 0.75}], ids=["all", "mask"])
def test_what_the_picture_begins_a_guidance_does_not_know_otherwise(
    tiny: Model, cpu: Runtime, guidances: list[Any], settings: dict[str, Any]
) -> None:
    """Under the picture lies the run's own noise, until the model paints; then the guidance's canvas is no longer known."""
    run = Sampler(tiny, guidances=guidances, runtime=cpu).begin("a lake", image=photo(32, 64), steps=4, seed=SEED, **settings)
    assert run.start is not None
    noise = torch.randn((4, 16, 32), generator=torch.Generator().manual_seed(SEED))
    run.step()
    torch.testing.assert_close(run.canvas, run.level.alpha * run.start.x0 + run.level.sigma * noise, rtol=1e-4, atol=1e-4)
    known = run.known()
    assert (known is None) == ("mask" not in settings)
    assert known is None or torch.equal(known.x0, run.start.x0)


@pytest.mark.parametrize("layout", ["overlap", "spotdiffusion"])
@pytest.mark.parametrize("scheduler", ["heun", "dpm++_2m_sde"])
def test_a_mask_works_with_every_kind_of_solver_and_layout(tiny: Model, scheduler: str, layout: str) -> None:
    from panokit.testing.ranks import VirtualRanks

    def latents(runtime: Runtime) -> Tensor:
        return made(
            Sampler(tiny, scheduler=scheduler, layout=layout, runtime=runtime), image=photo(16, 64), mask=half_mask(16, 64)
        ).latents

    (one,) = VirtualRanks(1, 3).run(latents)
    for other in VirtualRanks(2, 3).run(latents):
        assert torch.equal(other, one)
    assert tiny.codec is not None
    x0 = encode(tiny.codec, pixels(photo(16, 64)).float() / 255, (False, False))
    assert torch.equal(one[:, :, :16], x0[:, :, :16])


def test_a_thin_stroke_of_a_larger_mask_is_not_lost(sampler: Sampler) -> None:
    mask = Image.new("L", (128, 32), 0)
    mask.paste(255, (33, 0, 34, 32))
    mask.paste(255, (61, 0, 62, 32))
    run = sampler.begin("a lake", image=photo(16, 64), mask=mask, steps=4)
    assert run.start is not None
    assert (~run.start.stays[0]).nonzero().flatten().tolist() == [8, 15]


def test_grey_with_16_bits_keeps_its_shades_and_what_is_transparent_is_black() -> None:
    grey = Image.fromarray((torch.tensor([[0, 300, 20000, 65535]]).numpy()).astype("uint16"))
    torch.testing.assert_close(read(grey, "image")[0][0, 0], torch.tensor([0, 300, 20000, 65535]) / 65535)
    clear = Image.new("RGBA", (2, 1), (255, 255, 255, 0))
    clear.putpixel((1, 0), (255, 0, 0, 255))
    assert read(clear, "image")[0].tolist() == [[[0, 1]], [[0, 0]], [[0, 0]]]


def test_pictures_of_another_shape_have_another_hash() -> None:
    sources = [Image.new("L", (4, 8)), Image.new("L", (8, 4)), torch.zeros(3, 2, 16), torch.zeros(3, 16, 2)]
    assert len({read(source, "image")[1] for source in sources}) == 4


def test_a_picture_is_placed_on_a_larger_canvas_and_painted_on(sampler: Sampler) -> None:
    picture = photo(16, 24)
    panorama = made(sampler, image=picture, at=(16, 8), height=32, width=64)
    assert panorama.image.size == (64, 32)
    assert torch.equal(pixels(panorama.image)[:, 8:24, 16:40], pixels(picture))
    again = made(sampler, image=picture, at="16,8", height=32, width=64)
    assert torch.equal(panorama.latents, again.latents)
    assert panorama.recipe["at"] == (16, 8)


def test_a_mask_and_a_place_together_keep_the_black_part_of_the_picture(sampler: Sampler) -> None:
    picture = photo(16, 32)
    panorama = made(sampler, image=picture, mask=half_mask(16, 32), at=(32, 16), height=32, width=64)
    assert torch.equal(pixels(panorama.image)[:, 16:32, 32:48], pixels(picture)[:, :, :16])
    assert not torch.equal(pixels(panorama.image)[:, 16:32, 56:], pixels(picture)[:, :, 24:])


def test_a_smaller_picture_is_enlarged_and_the_less_strength_the_more_it_stays(sampler: Sampler) -> None:
    picture, off = photo(16, 32), []
    for strength in (0.25, 0.5, 1.0):
        panorama = made(sampler, image=picture, height=32, width=64, strength=strength)
        run = sampler.begin("a lake", image=picture, height=32, width=64, strength=strength, steps=4)
        assert run.start is not None
        off.append(float((panorama.latents - run.start.x0).abs().mean()))
        assert run.start.x0.shape == (4, 16, 32)
    assert off == sorted(off)


def test_the_canvas_has_the_size_of_the_picture_unless_another_is_given(sampler: Sampler) -> None:
    assert sampler.plan("a lake", image=photo(32, 48)).size == (48, 32)
    assert sampler.plan("a lake", image=photo(33, 47)).size == (48, 32)  # whole cells
    assert sampler.plan("a lake", image=photo(8, 12)).size == (24, 16)  # at least one window
    assert sampler.plan("a lake", image=photo(8, 12), height=32, width=48).size == (48, 32)


def test_steps_before_the_strength_and_windows_that_stay_cost_no_pass(tiny: Model, cpu: Runtime) -> None:
    assert isinstance(tiny.denoiser, UNetDenoiser)
    rows: list[int] = []
    hook = tiny.denoiser.unet.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(args[0])), with_kwargs=True
    )
    sampler = Sampler(tiny, runtime=cpu)  # places the networks: no copy
    with hook:
        plan = sampler.plan("a lake", image=photo(16, 64), strength=0.5, steps=4, guidance_scale=1.0)
        made(sampler, image=photo(16, 64), strength=0.5, guidance_scale=1.0)
        assert sum(rows) == plan.passes == 2 * len(plan.windows) == 2 * 7
        rows.clear()
        mask = Image.new("L", (64, 16), 0)
        mask.paste(255, (48, 0, 64, 16))  # the last 8 columns of cells, which only the windows at 20 and 24 cover
        made(sampler, image=photo(16, 64), mask=mask, guidance_scale=1.0)
        assert sum(rows) == 4 * 2


def test_a_cell_with_a_white_pixel_is_painted_anew(sampler: Sampler) -> None:
    mask = Image.new("L", (64, 16), 0)
    mask.putpixel((33, 5), 255)
    run = sampler.begin("a lake", image=photo(16, 64), mask=mask, steps=4)
    assert run.start is not None
    assert (~run.start.stays).nonzero().tolist() == [[2, 16]]


def test_any_number_of_ranks_and_a_resumed_run_make_the_same(tiny: Model, cpu: Runtime) -> None:
    from panokit.testing.ranks import VirtualRanks

    def begin(runtime: Runtime) -> Any:
        return Sampler(tiny, guidances=[MSDGuidance()], runtime=runtime).begin(
            "a lake", image=photo(32, 64), mask=half_mask(32, 64), steps=4, seed=SEED
        )

    def finished(run: Any) -> Tensor:
        while not run.done:
            run.step()
        return run.canvas

    run, resumed = begin(cpu), begin(cpu)
    for _ in range(2):
        run.step()
    resumed.restore(run.state())
    assert torch.equal(finished(resumed), finished(run))
    (one,) = VirtualRanks(1, 3).run(lambda runtime: finished(begin(runtime)))
    for other in VirtualRanks(2, 3).run(lambda runtime: finished(begin(runtime))):
        assert torch.equal(other, one)


def test_a_picture_may_be_a_file_a_pillow_picture_or_a_tensor(sampler: Sampler, tmp_path: Path) -> None:
    picture = photo(16, 32)
    picture.save(tmp_path / "a.png")
    panoramas = [
        made(sampler, image=source, height=16, width=32)
        for source in (str(tmp_path / "a.png"), tmp_path / "a.png", picture, pixels(picture).float() / 255)
    ]
    for panorama in panoramas[1:]:
        assert torch.equal(panorama.latents, panoramas[0].latents)
    digest = hashlib.sha256((tmp_path / "a.png").read_bytes()).hexdigest()
    assert panoramas[0].recipe["hashes"] == {"image": digest}
    assert panoramas[0].recipe["image"] == str(tmp_path / "a.png")
    assert str(panoramas[2].recipe["image"]).startswith("sha256:")


def test_on_a_ring_the_picture_is_encoded_without_a_join(tiny: Model) -> None:
    codec, picture = ToyCodec(), torch.rand(3, 16, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(encode(codec, picture, (False, True)), codec.encode(picture[None])[0])
    assert tiny.codec is not None
    rolled = encode(tiny.codec, picture.roll(8, -1), (False, True))
    torch.testing.assert_close(rolled, encode(tiny.codec, picture, (False, True)).roll(4, -1), rtol=0, atol=0.05)


def test_a_large_picture_is_encoded_in_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, cells in {"WHOLE": 64, "APART": 12, "OVERLAP": 6, "PAD": 4}.items():
        monkeypatch.setattr(f"panokit.decoding.{name}", cells)
    picture = torch.rand(3, 48, 100, generator=torch.Generator().manual_seed(0))
    codec = ToyCodec()
    torch.testing.assert_close(encode(codec, picture, (False, True)), codec.encode(picture[None])[0], rtol=0, atol=1e-4)


# --- the command line, jobs and recipes -----------------------------------------------------------------------


@pytest.fixture
def words(folder: Path, tmp_path: Path) -> list[str]:
    photo(32, 64).save(tmp_path / "photo.png")
    half_mask(32, 64).save(tmp_path / "mask.png")
    return ["generate", "a lake", "--model", str(folder), "--steps", "4", "--quiet", "--image", str(tmp_path / "photo.png")]


def test_the_command_line_takes_a_picture_a_mask_and_a_place(words: list[str], tmp_path: Path) -> None:
    assert main([*words, "--mask", str(tmp_path / "mask.png"), "--strength", "0.9", "--out", str(tmp_path / "a.png")]) == 0
    with Image.open(tmp_path / "a.png") as painted:
        assert torch.equal(pixels(painted)[:, :, :32], pixels(photo(32, 64))[:, :, :32])
    place = ["--at", "16,0", "--height", "32", "--width", "96"]
    assert main([*words, *place, "--out", str(tmp_path / "b.png")]) == 0
    with Image.open(tmp_path / "b.png") as painted:
        assert torch.equal(pixels(painted)[:, :, 16:80], pixels(photo(32, 64)))


def test_a_job_may_start_from_a_picture(words: list[str], tmp_path: Path) -> None:
    worker = Worker({"accelerator": "cpu", "model": words[3], "steps": 4})
    made = worker.make({"prompt": "a lake", "image": str(tmp_path / "photo.png"), "mask": str(tmp_path / "mask.png")})
    assert torch.equal(pixels(made.image)[:, :, :32], pixels(photo(32, 64))[:, :, :32])
    stranger = Worker({"accelerator": "cpu", "model": "landscapes"}, trusted=False)
    masked = {"regions": [{"mask": str(tmp_path / "mask.png"), "text": "a lake"}]}
    for job in ({"prompt": "a lake", "image": str(tmp_path / "photo.png")}, {"prompt": masked}):
        with pytest.raises(SettingError, match=r"a file of this machine: trust it"):
            stranger.plan(job)
    batch = worker({"prompt": ["a lake"], "image": [str(tmp_path / "gone.png")]})
    assert "gone.png cannot be read" in batch["error"][0]


def test_rerun_says_when_the_picture_has_changed_or_gone(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--strength", "0.5", "--out", str(tmp_path / "a.png")]) == 0
    again = ["rerun", str(tmp_path / "a.png"), "--out", str(tmp_path / "b.png"), "--quiet"]
    capsys.readouterr()
    assert main(again) == 2
    assert "trust it (--trust)" in capsys.readouterr().err
    assert main([*again, "--trust"]) == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    photo(32, 64, seed=1).save(tmp_path / "photo.png")
    assert main([*again, "--trust"]) == 2
    error = capsys.readouterr().err
    assert f"the image {tmp_path / 'photo.png'} has changed since" in error
    assert main([*again, "--trust", f"--set=image={tmp_path / 'photo.png'}"]) == 0
    (tmp_path / "photo.png").unlink()
    assert main([*again, "--trust"]) == 2
    assert "photo.png cannot be read: No such file or directory" in capsys.readouterr().err
    assert recipe.read(tmp_path / "a.png")["strength"] == 0.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strength": 0.0}, "strength is 0.0: it must be above 0 and up to 1"),
        ({"strength": 1.5}, "strength is 1.5: it must be above 0"),
        ({"strength": 0.1}, "strength is 0.1 with 4 steps, which leaves none to paint: it must be 0.25 or more"),
        ({"image": None, "strength": 0.5}, "strength needs a picture to start from: give image, too"),
        ({"image": None, "at": (0, 0)}, "at needs a picture"),
        ({"image": None, "mask": "m.png"}, "mask needs a picture"),
        ({"image": 3}, "image came as a int: give a file, a picture of Pillow, or a tensor"),
        ({"image": torch.rand(2, 8, 8)}, r"image came as a tensor \(2, 8, 8\): it must be 3 H W"),
        ({"image": 2 * torch.ones(3, 8, 8)}, "numbers from 0 to 1"),
        ({"image": __file__}, "is no picture that can be read: give a PNG, JPEG or WebP"),
        ({"image": "nowhere.png"}, "image nowhere.png cannot be read: No such file or directory"),
        ({"mask": half_mask(64, 32)}, "the mask of 32 x 64 pixels has another shape than the picture of 64 x 32"),
        ({"mask": Image.new("L", (64, 32), 0)}, "the mask is black everywhere, so nothing would be painted"),
        ({"height": 64, "width": 64}, "another shape than the canvas of 64 x 64: make the width 128, or place"),
        ({"at": (3, 0), "width": 96}, "at is 3,0: both must be multiples of 2, the pixels of a cell; the nearest is 4,0"),
        ({"at": (40, 0), "width": 96, "height": 32}, "at 40,0 leaves the canvas of 96 x 32: at goes up to 32,0"),
        ({"at": (-2, 0), "width": 96, "height": 32}, "leaves the canvas"),
        ({"at": (0, 0), "width": 64, "height": 16}, "the canvas must be at least as large as the picture"),
        ({"at": (0, 0), "width": 64, "height": 32}, "covers the whole canvas, and nothing is left to paint"),
        ({"at": "left"}, "at is 'left': it must be left and top in pixels, such as 240,48"),
    ],
)
@pytest.mark.usefixtures("unannotated")
def test_what_does_not_fit_says_what_would(sampler: Sampler, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        sampler.plan("a lake", **{"image": photo(32, 64), "steps": 4, **settings})
