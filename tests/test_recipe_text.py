"""A recipe as a command, as YAML and as Python: each makes the picture again, and none does anything else."""

import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from panokit import Region, Regions, Sampler, recipe
from panokit.cli import main
from panokit.recipe_text import as_command, as_python, as_yaml, lacks_pictures

BOXES = {"boxes": [[[0, 0, 0.5, 1], "a lake"], [[0.5, 0, 1, 1], "a 'city': \n- \U0001f30a"]], "elsewhere": "fog"}
RECIPES: dict[str, dict[str, Any]] = {
    "plain": {"prompt": 'a lake; it\'s "blue"', "height": 128, "width": 256, "steps": 2, "seed": 7, "guidance_scale": 0.0},
    "dashes": {"prompt": "--out /etc/passwd", "negative_prompt": "-- null\n\x03"},
    "empty": {"prompt": "", "negative_prompt": "null", "wrap": True},
    "regions": {"prompt": BOXES, "wrap": "xy", "stride": 8, "checkpointing": True, "micro_batch": 2},
    "picture": {"prompt": "a lake", "image": "a b.png", "at": [-3, 4], "strength": 0.25},
    "parts": {
        "prompt": "a lake",
        "model": {"plugin": "landscapes"},
        "scheduler": {"plugin": "ddim", "options": {"eta": 1e-05}},
        "layout": {"plugin": "overlap"},
        "fuser": {"plugin": "multidiffusion", "weights": "gaussian", "spread": 0.3},
        "guidances": [{"plugin": "syncdiffusion", "weight": 3.0}, {"plugin": "msd", "weight": 1e16, "levels": None}],
        "precision": "bf16-mixed",
        "attention": "sliced",
    },
}


def options(words: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The options that `panokit generate` reads from its words."""
    command, *rest = words
    assert main([command, "--print_config", *rest]) == 0
    return yaml.safe_load(capsys.readouterr().out)


def same(read: Any, kept: Any) -> bool:
    """Whether options that were read are those of a recipe. A prompt is in a list, and parts have all their settings."""
    if isinstance(kept, dict):
        return isinstance(read, dict) and all(same(read[name], value) for name, value in kept.items())
    if isinstance(kept, list):
        return len(read) == len(kept) and all(map(same, read, kept))
    return read == kept and type(read) is type(kept)


@pytest.mark.parametrize("name", RECIPES)
def test_a_command_has_the_options_of_the_recipe(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = as_command(RECIPES[name])
    shown = subprocess.run(["bash", "-c", f"printf '%s\\0' {command}"], capture_output=True, text=True, check=True).stdout
    program, *words = shown.split("\0")[:-1]
    assert program == "panokit"
    read = options(words, capsys)
    expected = dict(RECIPES[name])
    (prompt,) = read.pop("prompt")
    assert same(prompt, expected.pop("prompt"))
    if isinstance(expected.get("model"), dict):
        assert read.pop("model") == expected.pop("model")["plugin"]
    assert same(read, expected)


@pytest.mark.parametrize("name", RECIPES)
def test_yaml_has_the_options_of_the_recipe(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.yaml").write_text(as_yaml(RECIPES[name]), encoding="utf-8")
    assert same(options(["generate", "--config", str(tmp_path / "a.yaml")], capsys), RECIPES[name])


@settings(max_examples=50)
@given(prompt=st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=20))
def test_a_command_is_one_line_that_a_terminal_only_prints(prompt: str) -> None:
    """Pasted into a terminal, a control character interrupts a line or ends it, inside quotes too."""
    command = as_command({"prompt": prompt, "negative_prompt": prompt})
    assert command.isprintable()
    shown = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {command}"], capture_output=True, check=True, env={"LC_ALL": "C.UTF-8"}
    )
    words = shown.stdout.decode().split("\0")[:-1]
    assert words.count(prompt) + words.count(f"--negative_prompt={prompt}") == (2 if prompt else 1)


def test_a_short_command_reads_as_a_person_writes_it() -> None:
    assert as_command({"prompt": "a lake", "height": 128, "scheduler": {"plugin": "ddim"}, "wrap": False, "seed": 0}) == (
        "panokit generate 'a lake' --height 128 --seed 0 --scheduler ddim"
    )
    assert shlex.split(as_command({"prompt": "a lake", "guidances": [{"plugin": "msd", "weight": 5.0}]}))[-1] == (
        "--guidances+={plugin: msd, weight: 5.0}"
    )


@pytest.mark.parametrize("junk", [None, 3, "x", [3], {"plugin": 3}, {"a": {"b": [None]}}, float("nan")])
def test_a_damaged_recipe_is_text_too(junk: Any) -> None:
    damaged = dict.fromkeys((*RECIPES["parts"], *RECIPES["picture"], *RECIPES["plain"], "prompt", "unknown"), junk)
    for text in (as_command(damaged), as_yaml(damaged), as_python(damaged)):
        assert "unknown" not in text


@pytest.mark.parametrize(
    "prompt", ['a lake; it\'s "blue"\n', Regions((Region((0, 0, 0.5, 1), "a lake", weight=1.0),), elsewhere="fog")]
)
def test_the_program_makes_the_same_picture(prompt: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    panorama = Sampler(guidances=["syncdiffusion"])(prompt, height=128, width=256, steps=2, seed=3, wrap=True)
    panorama.save(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    exec(as_python(recipe.read("a.png")), {})
    (again,) = tmp_path.glob("*-again.png")
    with Image.open(again) as image:
        assert image.tobytes() == panorama.image.tobytes()
    assert recipe.read(again) == recipe.read("a.png")


def test_file_stands_for_a_picture_that_was_in_no_file() -> None:
    regions = [{"mask": "sha256:12", "text": "sha256: a lake"}, {"box": [0, 0, 1, 1], "text": "b"}]
    kept = {"prompt": {"regions": regions, "elsewhere": "hills"}, "image": "sha256:34", "mask": "m.png", "strength": 0.5}
    assert lacks_pictures(kept)
    assert " --image FILE " in as_command(kept)
    assert " --mask m.png" in as_command(kept)
    read = yaml.safe_load(as_yaml(kept))
    assert (read["image"], read["mask"]) == ("FILE", "m.png")
    assert read["prompt"]["regions"] == [{"mask": "FILE", "text": "sha256: a lake"}, regions[1]]
    assert "image='FILE'" in as_python(kept)
    for text in (as_command(kept), as_python(kept)):
        assert "sha256:12" not in text
        assert "sha256: a lake" in text
    assert not any(map(lacks_pictures, RECIPES.values()))


def test_the_program_makes_the_same_picture_once_the_file_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image.linear_gradient("L").resize((256, 128)).convert("RGB")
    image.save(tmp_path / "start.png")
    panorama = Sampler()("a lake", image=image, strength=0.5, steps=2, seed=3)
    assert lacks_pictures(panorama.recipe)
    monkeypatch.chdir(tmp_path)
    exec(as_python(panorama.recipe).replace("'FILE'", "'start.png'"), {})
    with Image.open(tmp_path / "a-lake-again.png") as again:
        assert again.tobytes() == panorama.image.tobytes()
