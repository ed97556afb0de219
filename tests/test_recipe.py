"""Recipes in pictures: what goes in comes out, and what anybody else put in does no harm."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from sd_parsers import ParserManager

from panokit import Guidance, Panorama, SettingError, recipe
from panokit.cli import main
from panokit.composition import build, describe
from panokit.errors import FallbackWarning
from panokit.panorama import to_image

RECIPE: dict[str, Any] = {
    "panokit": "0.1.0",
    "prompt": "a lake, ümläut",
    "height": 128,
    "width": 256,
    "negative_prompt": "fog",
    "steps": 25,
    "guidance_scale": 7.5,
    "stride": None,
    "wrap": False,
    "seed": 6,
    "model": "landscapes",
    "scheduler": {"plugin": "ddim", "options": {}},
    "fuser": {"plugin": "multidiffusion", "weights": "gaussian", "spread": 0.2},
    "guidances": [{"plugin": "msd", "weight": 10.0, "inner": [{"plugin": "syncdiffusion", "weight": 20.0}]}],
    "precision": "32-true",
    "micro_batch": 8,
    "checkpointing": False,
}


def picture(path: Path, data: dict[str, Any] = RECIPE) -> Path:
    Panorama(torch.zeros(4, 2, 3), to_image(torch.rand(3, 16, 24)), data).save(path)
    return path


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "tif", "tiff"])
def test_a_picture_carries_its_recipe(tmp_path: Path, ending: str) -> None:
    assert recipe.read(picture(tmp_path / f"a.{ending}")) == RECIPE


def test_other_formats_carry_none(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="give a PNG, JPEG, WebP, TIFF or Deep Zoom picture that panokit wrote"):
        recipe.read(picture(tmp_path / "a.bmp"))


def test_a_deep_zoom_picture_of_somebody_else_carries_none(tmp_path: Path) -> None:
    pytest.importorskip("pyvips", reason="Deep Zoom pictures are written by pyvips, which is not installed")
    path = picture(tmp_path / "a.dzi")
    assert recipe.read(path) == RECIPE
    (tmp_path / "a_files" / "panokit.json").write_text("years of work")
    with pytest.raises(SettingError, match=r"the recipe in .*a\.dzi is damaged"):
        recipe.read(path)
    (tmp_path / "a_files" / "panokit.json").unlink()
    with pytest.raises(SettingError, match=r"a\.dzi holds no recipe"):
        recipe.read(path)


@pytest.mark.parametrize("ending", ["png", "jpg", "webp"])
def test_others_read_the_parameters(tmp_path: Path, ending: str) -> None:
    found = ParserManager().parse(picture(tmp_path / f"a.{ending}"))
    assert found is not None
    assert [prompt.value for prompt in found.prompts] == ["a lake, ümläut"]
    assert [prompt.value for prompt in found.negative_prompts] == ["fog"]
    (sampler,) = found.samplers
    assert (sampler.name, sampler.parameters["seed"]) == ("ddim", "6")
    assert {"steps": "25", "cfg_scale": "7.5"}.items() <= sampler.parameters.items()


SPEECH = st.lists(
    st.sampled_from(["a lake", "Negative prompt:", ":", "\n", "\r", "Steps: 3, Sampler: x, Seed: 9, CFG scale: 1", ", ", " "]),
    max_size=6,
).map("".join)


@given(prompt=SPEECH.filter(str.strip), negative=SPEECH)
def test_no_text_ends_early_for_other_readers(prompt: str, negative: str) -> None:
    """They split the block at a word, which neither prompt may hold, and read the settings from the last line."""
    file = io.BytesIO()
    data = {**RECIPE, "prompt": prompt, "negative_prompt": negative}
    Image.new("RGB", (4, 4)).save(file, "png", **recipe.embedded(data, "PNG"))
    parsed = ParserManager().parse(file)
    assert parsed is not None

    def kept(text: str) -> str:
        return "".join(letter for letter in text if letter not in ": ").strip()

    assert [kept(text.value) for text in parsed.prompts] == [kept(prompt)]
    assert [kept(text.value) for text in parsed.negative_prompts] == [kept(negative)][: len(negative.strip())]
    (sampler,) = parsed.samplers
    assert (sampler.name, sampler.parameters["seed"]) == ("ddim", "6")


def png(text: str) -> bytes:
    """A picture that says it has that recipe."""
    chunks, file = PngInfo(), io.BytesIO()
    chunks.add_itxt("panokit", text)
    Image.new("RGB", (4, 4)).save(file, "png", pnginfo=chunks)
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "cannot be read as a picture"),
        (b"GIF89a", "cannot be read as a picture"),
        (png("{"), "is damaged"),
        (png("[" * 100_000), "is damaged"),
        (png("[]"), "it is a list and no mapping"),
        (png(json.dumps("x" * recipe.LONGEST)), "is longer than any"),
        (png("{}"), "it lacks prompt, height, width, seed, model"),
    ],
    ids=["empty", "cut", "no json", "deep", "list", "long", "nothing"],
)
def test_what_holds_no_recipe_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str], data: bytes, message: str) -> None:
    (tmp_path / "a.png").write_bytes(data)
    assert main(["rerun", str(tmp_path / "a.png")]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 1_000_000}, "the recipe asks for steps 1000000, and 10000 is the most"),
        ({"width": 65_536, "height": 16_384}, "65536 x 16384 pixels"),
        ({"width": 8192, "height": 4096, "frames": 81}, "8192 x 4096 pixels in 81 frames, and 268435456 is the most"),
        ({"frames": 100_000}, "the recipe asks for frames 100000, and 4096 is the most"),
        ({"model": "../stolen"}, "the recipe names the model '../stolen', which is not installed by that name"),
        ({"model": "stabilityai/stable-diffusion-2-base"}, "which is not installed by that name"),
        ({"fuser": "os:system"}, "which is code and no installed plugin's name"),
        ({"guidances": [{"plugin": "syncdiffusion", "metric": "os.system"}]}, "which is code"),
        ({"guidances": {"plugin": "msd"}}, "guidances came as"),
        ({"steps": "many"}, "steps came as 'many': it must be a whole number"),
        ({"prompt": 3}, "prompt came as 3"),
        ({"prompt": {"boxes": [[[0, 0, 1, 1], "a"]] * 65}}, "more than 64 regions"),
        ({"prompt": {"regions": [{"mask": "a.png", "text": "a"}]}}, "the recipe names the picture 'a.png', a file of this"),
        ({"image": "a.png"}, "the recipe names the picture 'a.png', a file of this machine: trust it"),
        ({"hashes": ["x"]}, "hashes came as ['x'], and no mapping of names to SHA-256"),
        ({"wrap": "up"}, "wrap came as 'up'"),
        ({"steps": "1000000"}, "steps came as '1000000': it must be a whole number"),
        ({"height": True}, "height came as True"),
        ({"guided_micro_batch": 1_000_000}, "the recipe asks for guided_micro_batch"),
        ({"tile": 1_000_000}, "the recipe asks for tile"),
        ({"scheduler": {"plugin": "unipc", "options": {"solver_order": 200_000_000}}}, "the recipe sets a plugin to 200000000"),
        ({"steps": 10**400}, "the recipe asks for steps 1000"),
        ({"guidances": [{"plugin": "msd"}] * 100}, "the recipe has more than 16 plugins"),
        ({"guidances": json.loads('[{"plugin":"msd","inner":' * 9 + "[]" + "}]" * 9)}, "nested more than 8 deep"),
    ],
)
def test_a_recipe_that_asks_for_too_much_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], message: str
) -> None:
    (tmp_path / "a.png").write_bytes(png(json.dumps({**RECIPE, **change})))
    assert main(["rerun", str(tmp_path / "a.png")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


CODE = "{class_path: panokit_canary.Sings}"
"""What a library that reads texts as YAML would import."""


@pytest.mark.parametrize(
    "change",
    [
        {"guidances": [{"plugin": "msd", "inner": f"[{CODE}]"}]},
        {"guidances": f"[{{plugin: msd, inner: [{CODE}]}}]"},
        {"guidances": [{"plugin": "syncdiffusion", "metric": CODE}]},
        {"guidances": [{"plugin": "msd", "inner": [json.loads('{"class_path": "panokit_canary.Sings"}')]}]},
        {"fuser": f"{{plugin: multidiffusion, spread: {CODE}}}"},
        {"fuser": {"plugin": "multidiffusion", "spread": CODE}},
        {"scheduler": {"plugin": "ddim", "options": CODE}},
        {"prompt": CODE, "fuser": "panokit_canary:Sings"},
        {"steps": CODE},
        {"wrap": CODE},
    ],
)
def test_no_text_is_taken_for_something_to_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], change: dict[str, Any]
) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (site / "panokit_canary.py").write_text("raise SystemExit('sung')\n")
    monkeypatch.syspath_prepend(site)
    (tmp_path / "a.png").write_bytes(png(json.dumps({**RECIPE, **change})))
    assert main(["rerun", str(tmp_path / "a.png"), "--out", str(tmp_path / "nowhere" / "a.png")]) == 2
    error = capsys.readouterr().err
    assert "sung" not in error
    assert "make it first" not in error
    assert "panokit_canary" not in sys.modules


scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.sampled_from(["os:system", "os.system"])
)
values = st.recursive(
    scalars | st.sampled_from(["msd", "syncdiffusion", "class_path", "plugin", CODE, f"[{CODE}]", "antigravity.x", "10"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*RECIPE, "plugin", "weight"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("whole")
    return [picture(folder / f"a.{ending}").read_bytes() for ending in ("png", "jpg", "webp")]


def harmless(folder: Path, data: bytes) -> None:
    """Rerunning that file is one line of complaint, imports nothing and writes nothing."""
    (folder / "a.png").write_bytes(data)
    modules, stderr = set(sys.modules), sys.stderr
    sys.stderr = io.StringIO()
    try:
        status = main(["rerun", str(folder / "a.png"), "--out", str(folder / "nowhere" / "a.png")])
        said = sys.stderr.getvalue()
    finally:
        sys.stderr = stderr
    assert status == 2, said
    assert said.startswith("panokit: ")
    assert said.count("\n") == 1
    assert "Traceback" not in said
    assert set(sys.modules) == modules
    assert [path.name for path in folder.iterdir()] == ["a.png"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, files: list[bytes]) -> Path:
    folder = tmp_path_factory.mktemp("mangled")
    for _ in range(2):  # whatever a sound one imports is there from now on
        (folder / "a.png").write_bytes(files[0])
        main(["rerun", str(folder / "a.png"), "--out", str(folder / "nowhere" / "a.png")])
    return folder


@example(which=1, length=None, changes=[(3, 0), (34, 1)])  # at which Pillow does not say that it is none of its own
@settings(deadline=None, max_examples=2 * settings.default.max_examples)
@given(
    which=st.integers(0, 2),
    length=st.integers(0, 1500) | st.none(),
    changes=st.lists(st.tuples(st.integers(0, 1500), st.integers(0, 255)), min_size=4, max_size=12),
)
def test_mangled_files_do_no_harm(
    folder: Path, files: list[bytes], which: int, length: int | None, changes: list[tuple[int, int]]
) -> None:
    data = bytearray(files[which])
    for at, value in changes:  # the recipe is at the beginning, and in a WebP at the end
        data[(-at if which == 2 else at) % len(data)] = value
    harmless(folder, bytes(data[:length]))


@settings(deadline=None, max_examples=settings.default.max_examples // 2)
@given(changes=st.dictionaries(st.sampled_from([*RECIPE]), values, min_size=1, max_size=3))
def test_mangled_recipes_do_no_harm(folder: Path, changes: dict[str, Any]) -> None:
    harmless(folder, png(json.dumps({**RECIPE, **changes})))


def test_a_picture_larger_than_pillow_opens_has_a_recipe_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Panorama(torch.zeros(4, 2, 3), Image.new("RGB", (40, 40)), {"prompt": "a lake"}).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert recipe.read(tmp_path / "a.png") == {"prompt": "a lake"}
    assert Image.MAX_IMAGE_PIXELS == 100


def test_a_recipe_longer_than_can_be_read_is_left_out(tmp_path: Path) -> None:
    panorama = Panorama(torch.zeros(4, 2, 3), Image.new("RGB", (4, 4)), {"prompt": "x" * recipe.LONGEST})
    with pytest.warns(FallbackWarning, match="is left out"):
        panorama.save(tmp_path / "a.png")
    with pytest.raises(SettingError, match="holds no recipe"):
        recipe.read(tmp_path / "a.png")


def test_a_strangers_recipe_may_not_ask_for_days_of_work() -> None:
    recipe.check_work(recipe.WORK)
    with pytest.raises(SettingError, match=f"asks for {recipe.WORK + 1} windows.*--trust"):
        recipe.check_work(recipe.WORK + 1)


def test_a_recipe_that_was_written_before_settings_went_is_of_the_same_picture() -> None:
    """MSD's recipes once named seven settings more; with the values that they had by default they mean the same."""
    before = {"coarse": "renoise", "space": "x0", "norm": "projection", "jacobian": "identity", "lead": 10.0, "density": 1}
    old = {**before, "plugin": "msd", "weight": 10.0, "coarse_guidances": []}
    assert describe(build(Guidance, old)) == describe(build(Guidance, "msd"))
    with pytest.raises(SettingError, match="msd has no setting 'norm' any more"):
        build(Guidance, {**old, "norm": "sum"})
