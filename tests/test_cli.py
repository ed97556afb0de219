"""The command line, in this process: what it writes, prints and returns."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from panokit import Runtime, Sampler
from panokit.cli import main


def generate(folder: Path, out: Path, *options: str) -> int:
    small = ["--height", "24", "--width", "40", "--steps", "2"]
    return main(["generate", "a lake", "--model", str(folder), *small, "--out", str(out), *options])


def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def test_generate_writes_the_picture_it_names(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "lake.png"
    assert generate(folder, out, "--wrap", "true", "--scheduler", "euler", "--stride", "4") == 0
    assert size(out) == (40, 24)
    assert capsys.readouterr().out == f"{out}: 40 x 24 pixels\n"


def test_every_option_is_the_argument_of_its_name(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "lake.png"
    options = {
        "negative_prompt": "fog",
        "guidance_scale": "3.5",
        "steps": "3",
        "stride": "6",
        "wrap": "x",
        "seed": "4",
        "scheduler": "euler_a",
        "precision": "bf16-true",
        "micro_batch": "3",
    }
    assert generate(folder, out, *(word for name, value in options.items() for word in (f"--{name}", value))) == 0
    runtime = Runtime(accelerator="cpu", precision="bf16-true", micro_batch=3)
    sampler = Sampler(str(folder), scheduler="euler_a", runtime=runtime)
    settings = {"negative_prompt": "fog", "guidance_scale": 3.5, "steps": 3, "stride": 6, "wrap": "x", "seed": 4}
    expected = sampler("a lake", height=24, width=40, **settings)
    with Image.open(out) as image:
        assert image.tobytes() == expected.image.tobytes()


def test_a_command_of_its_own_says_what_it_wrote_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    """A process, since libraries write to the streams that they found when they were imported."""
    small = ["--height", "16", "--width", "24", "--steps", "2", "--model", str(folder), "--out", "lake.png"]
    command = [sys.executable, "-m", "panokit", "generate", "a lake", *small]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stdout, done.stderr) == (0, "lake.png: 24 x 16 pixels\n", "")
    wrong = subprocess.run([*command, "--height", "8"], cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert (wrong.returncode, wrong.stdout, wrong.stderr.count("\n")) == (2, "", 1)


def test_the_size_defaults_to_the_models_window(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "lake.png"
    assert main(["generate", "a lake", "--model", str(folder), "--steps", "2", "--out", str(out)]) == 0
    assert size(out) == (64, 16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--height", "8"], "below one window"),
        (["--width", "41"], "the nearest are 40 or 42"),
        (["--height", "tall"], "height"),
        (["--stride", "400"], "the nearest is 16"),
        (["--steps", "0"], "at least 1 denoising step"),
        (["--fuser", "multidifusion"], "did you mean 'multidiffusion'"),
        (["--scheduler", "dddim"], "did you mean 'ddim'"),
        (["--model", "landscape"], "did you mean 'landscapes'"),
        (["--guidances+=msdd"], "no guidance is called 'msdd'"),
        (["--out", "/no/such/folder/lake.png"], "make it first"),
        (["--out", "lake.xyz"], "names no picture format"),
        (["--out", "lake.mpeg"], "names no picture format"),
        (["--out", "lake.webp", "--width", "20000"], "WEBP holds 16383 pixels a side"),
        (["--fuser", "panokit:Fuser"], "panokit:Fuser cannot be made by name alone"),
        (["--guidance_scale", "nan"], "guidance_scale"),
        (["--micro_batch", "0"], "at least 1 window"),
        (["--devices", "0"], "it must be 1 or more"),
        (["--precision", "8-true"], "precision"),
        (["--wrap", "sideways"], "wrap"),
        (["--no-such-option", "1"], "no-such-option"),
    ],
)
def test_what_the_user_got_wrong_is_one_line_and_status_2(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    out = tmp_path / "lake.png"
    assert generate(folder, out, *options) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("panokit: ")
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_plugins_lists_kind_name_distribution_and_state(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["kind", "name", "distribution", "state"]
    assert ["fusers", "multidiffusion", "panokit"] in [line[:3] for line in lines]
    assert ["models", "landscapes"] in [line[:2] for line in lines]
    assert ["schedulers", "dpm++_2m"] in [line[:2] for line in lines]


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An outside distribution on the path, as metadata and a module: a sound fuser, an unsound one, and one of a taken name."""
    info = tmp_path / "outside-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[panokit.fusers]\nplain = outside_fuser:Plain\nddim = outside_fuser:Plain\nlost = outside_fuser:Settings\n"
    )
    (tmp_path / "outside_fuser.py").write_text(
        "from dataclasses import dataclass\n"
        "import torch\n"
        "from panokit import WeightedFuser\n\n"
        "@dataclass(frozen=True)\n"
        "class Plain(WeightedFuser):\n"
        "    least: float = 1.0\n"
        "    def weight(self, grid):\n"
        "        return torch.full(grid.window, self.least)\n\n"
        "class Settings:\n"
        "    pass\n\n"
        "class Needy(Plain):\n"
        "    def __init__(self, least): pass\n\n"
        "def broken():\n"
        "    return Plain(0.0)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "outside_fuser", raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("options", "checks"),
    [
        (["multidiffusion"], 9),
        (["plain"], 9),
        (["outside_fuser:Plain"], 9),
        (["ddim", "--kind", "fusers"], 9),
        (["ddim", "--kind", "schedulers"], 8),
        (["panokit.testing.toys:Pull"], 11),
        (["panokit.testing.worlds:Gaussian"], 6),
    ],
)
def test_check_prints_a_line_for_each_check(
    outside: Path, capsys: pytest.CaptureFixture[str], options: list[str], checks: int
) -> None:
    assert main(["check", *options]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert last == f"{options[0]}: {checks} checks passed"
    assert [line.split()[1:] for line in lines] == [["ok"]] * checks


def test_check_of_a_plugin_that_breaks_a_rule_says_what_to_do_and_has_status_1(
    outside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", "outside_fuser:broken"]) == 1
    out, err = capsys.readouterr()
    assert err == ""
    first, *_, last = out.splitlines()
    name, problem = first.split(maxsplit=1)
    assert name == "weights_positive"
    assert problem.startswith("failed: Plain.weight goes from 0.0 to 0.0")
    assert problem.endswith("clamp it to a small floor")
    assert last.startswith("outside_fuser:broken: ")
    assert last.endswith(" of 9 checks failed")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["ddim"], "'ddim' is a name among fusers and schedulers: choose with --kind fusers"),
        (["multidifusion"], "no plugin is called 'multidifusion': did you mean 'multidiffusion'? installed are "),
        (["plain", "--kind", "schedulers"], "no scheduler is called 'plain': installed are ddim"),
        (["plain", "--kind", "sorts"], "kind"),
        (["outside_fuser:Plane"], "write module:Class"),
        (["outside_fuser:Settings"], "the factory made a Settings, which has no checks"),
        (["outside_fuser:Needy"], "outside_fuser:Needy cannot be made without arguments"),
        (["math:pi"], "math:pi is a float: name a class"),
    ],
)
def test_check_of_what_is_not_there_is_one_line_and_status_2(
    outside: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(["check", *options]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.startswith("panokit: ")
    assert err.count("\n") == 1


def test_check_of_an_installed_plugin_of_another_kind_than_it_says(outside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "lost"]) == 1
    assert "lost is the class Settings, and fusers are subclasses of panokit.Fuser" in capsys.readouterr().err


def test_check_of_a_model_is_that_of_its_denoiser(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    info = tmp_path / "outside-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[panokit.models]\nsmall = outside_model:PATH\n")
    (tmp_path / "outside_model.py").write_text(f"PATH = {str(folder)!r}\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["check", "small"]) == 0
    assert "condition_per_window" in capsys.readouterr().out
