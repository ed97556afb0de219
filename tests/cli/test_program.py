"""The command line, in this process: what it writes, prints and returns."""

import errno
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from signal import SIGINT, SIGTERM, Signals, default_int_handler, signal

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from panokit import Panorama, Regions, Runtime, Sampler, files, recipe
from panokit.cli import main
from panokit.composition import describe
from panokit.panorama import is_whole
from panokit_msd import MSDGuidance
from panokit_syncdiffusion import SyncDiffusion


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


def test_a_mistake_is_one_line_in_a_process_of_its_own(tmp_path: Path) -> None:
    """Libraries write to the streams that they found when they were imported."""
    command = [sys.executable, "-m", "panokit", "generate", "a lake", "--height", "tall"]
    wrong = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)
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
        (["--width", "0"], "below one window"),
        (["--height", "-24"], "below one window"),
        (["--width", "2000000000", "--height", "2000000000"], "more than a canvas may have"),
        (["--height", "tall"], "height came as 'tall': it must be a whole number"),
        (["--height", "1e3"], "height came as '1e3': it must be a whole number"),
        (["--devices", "1e3"], "devices came as '1e3': it must be "),
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
        (["--guidance_scale", "much"], "guidance_scale came as 'much': it must be a number"),
        (["--micro_batch", "0"], "at least 1 window"),
        (["--devices", "0"], "it must be 1 or more"),
        (["--precision", "8-true"], "precision came as '8-true': it must be "),
        (["--wrap", "sideways"], "wrap came as 'sideways': it must be "),
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


def test_help_is_there_before_torch_and_diffusers_are(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom panokit.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit as end: assert end.code == 0\n"
        "print({'torch', 'diffusers', 'transformers', 'numpy'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    *shown, modules = done.stdout.splitlines()
    assert shown[0] == "usage: panokit COMMAND ..."
    assert modules == "set()"


DDIM = ["--scheduler=ddim", "--scheduler.options.eta=1"]


def test_settings_of_parts_belong_to_what_stands_before_them(capsys: pytest.CaptureFixture[str]) -> None:
    options = "--guidances+=syncdiffusion --guidances.weight=3 --guidances.until 0.5 --guidances+=msd --guidances.weight=5"
    assert main(["generate", "a lake", *options.split(), "--fuser.spread=0.3", "--print_config", *DDIM]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["prompt"] == ["a lake"]
    assert shown["guidances"] == [describe(SyncDiffusion(3.0, until=0.5)), describe(MSDGuidance(5.0))]
    assert shown["scheduler"] == {"plugin": "ddim", "options": {"eta": 1}}
    assert shown["fuser"] == {"plugin": "multidiffusion", "weights": "gaussian", "spread": 0.3}


def test_configurations_merge_and_the_command_line_has_the_last_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("prompt: a city\nsteps: 7\nheight: 256\nguidances: [{plugin: msd, decay: 1}]\n")
    second.write_text("steps: 9\nseed: 1..3\n")
    options = ["--height", "128", "--config", str(first), "--config", str(second), "--guidances.weight=2"]
    assert main(["generate", *options, "--print_config"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert [shown[key] for key in ("prompt", "steps", "height", "seed")] == ["a city", 9, 128, "1..3"]
    assert shown["guidances"] == [describe(MSDGuidance(2.0, 1.0))]
    again = tmp_path / "again.yaml"
    again.write_text(yaml.safe_dump(shown))
    assert main(["generate", "--config", str(again), "--print_config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == shown


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hieght: 128", "there is no option hieght: did you mean --height?"),
        ("steps: five", "steps came as 'five': it must be a whole number"),
        ("steps: !!python/object/apply:os.system [ls]", "is not plain YAML in line 1"),
        ("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]", "repeats itself by aliases"),
        ("config: b.yaml", "names another one"),
        ("", "the configuration a.yaml is empty: it must map options to values"),
        ("- steps", "is a list: it must map options to values"),
        ("steps: [", "is not plain YAML in line"),
        ("[" * 10_000, "is nested more than 32 deep"),
        ("x" * 2_000_000, "is longer than"),
        ("prompt: []", "there is no prompt"),
        ("prompt: {boxes: [[[0, 0, 2, 1], a lake]]}", "leaves the canvas"),
        ("guidances: msd", "guidances came as 'msd'"),
        ("guidances: [3]", "guidances came as"),
        ("guidances: [{plugin: msd, wieght: 3}]", "did you mean 'weight'"),
    ],
)
def test_what_is_wrong_with_a_configuration_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text(text)
    assert main(["generate", "--config", "a.yaml", *([] if "prompt" in text else ["a lake"])]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a.yaml"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["generat"], "there is no command 'generat': did you mean 'generate'?"),
        (["generate"], "there is no prompt"),
        (["generate", "x", "--config", "missing.yaml"], "the configuration missing.yaml cannot be read"),
        (["generate", "x", "--prompts", "missing.txt"], "the prompts in missing.txt cannot be read"),
        (["generate", "x", "--seed", "8..1"], "it must be a whole number from 0 to 18446744073709551615, or a range"),
        (["generate", "x", "--seed", f"{(1 << 64) - 1}..{1 << 64}"], "it must be a whole number from 0"),
        (["generate", "x", "--seed", "1.." + "9" * 5000], "it must be a whole number from 0"),
        (["generate", "x", "--heigth"], "there is no option --heigth: did you mean --height?"),
        (["generate", "x", "--conf", "a.yaml"], "there is no option --conf: did you mean --"),
        (["generate", "x", "--out", "--quiet"], "--out came without a value"),
        (["generate", "x", "--guidances+=msd", "--guidances.levels=20000"], "levels is 20000: there are 32 at most"),
        (["generate", "x", "--preview", "a.webp", "--width", "20480"], "WEBP holds 16383 pixels a side"),
        (["plugins", "math:pi"], "math:pi is no subclass of panokit.Layout"),
        (["rerun"], "panokit rerun needs IMAGE"),
        (["rerun", "a.png", "b.png"], "there is one word too many, 'b.png'"),
        (["evaluate", "a.yaml", "b.yaml"], "there is one word too many, 'b.yaml'"),
        (["check", "msd", "extra"], "there is one word too many, 'extra'"),
        (
            ["generate", "x", "--seed", "1..3", "--out", "a.png"],
            "3 pictures cannot be written to one file a.png: name a folder",
        ),
        (["generate", "x", "-o", "a.png"], "there is no option -o: options have two hyphens"),
        (["generate", "x", "--print-config=no"], "--print_config takes no value, and 'no' came"),
        (["generate", "x", "--out", "nowhere/"], "cannot write to nowhere/: there is no such folder"),
        (["generate", "x", "--config", "a.png"], "the configuration a.png is no text in UTF-8: give a YAML file"),
        (["rerun", "a.png", "--seed", "3"], "panokit rerun changes an option of the recipe with --set seed=VALUE"),
        (["view", "--files", "a.png"], "there is no option --files"),
        (["generate", "x", "--part", "2/8"], "part is about the jobs of a file: give --jobs"),
        (["generate", "x", "--trust"], "trust is about the jobs of a file: give --jobs"),
        (["generate", "x", "--guidances.weight=3"], "add one before it, --guidances+=NAME"),
        (["generate", "x", "--guidances+=msd", "--guidances.norm=sum"], "msd has no setting 'norm' any more: "),
        (["generate", "x", "--guidances+=panokit_msd:MSDGuidance.paper"], "write MSDPaper, or msd_paper as a plugin's name"),
        (["generate", "x", "--guidances.weight=3", "--guidances+=msd"], "add one before it"),
        (["generate", "x", "--guidances.weight"], "came without a value"),
        (["generate", "x", "--guidances=msd"], "add one with --guidances+=NAME"),
        (["generate", "x", "--fuser.spread=wide"], "spread of multidiffusion came as 'wide'"),
        (["generate", "x", "--guidances.help", "msdd"], "did you mean 'msd'"),
        (["plugins", "msdd"], "did you mean 'msd'"),
        (["rerun", "missing.png"], "there is no picture missing.png"),
        (["rerun", "a.png", "--set", "steps"], "it must be NAME=VALUE"),
        (["rerun", "a.png", "--set", "stepps=3"], "there is no stepps in a recipe: did you mean steps?"),
        (["rerun", "a.png", "--set", "out=b.png"], "there is no out in a recipe"),
        (["rerun", "a.png", "--fuser.spread=wide"], "spread of multidiffusion came as 'wide'"),
        (["plugins", "--fuser.spread=3"], "panokit plugins takes no settings of a plugin"),
        (["generate", "x", "--guidances+=[msd,msd]"], "add them one by one"),
        (["generate", "x", "--guidances+=msd", "--guidances.weight=2024-13-45"], "weight of msd came as '2024-13-45'"),
        (["rerun", "a.png", "--set", "guidances.weight=3"], "there is no 'guidances'"),
    ],
)
def test_other_mistakes_are_one_line_and_status_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = {"prompt": "a lake", "height": 128, "width": 128, "seed": 0, "model": "landscapes", "fuser": "multidiffusion"}
    Panorama(torch.zeros(4, 2, 3), Image.new("RGB", (4, 4)), recipe).save("a.png")
    assert main(options) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_prompts_and_seeds_make_pictures_with_names_of_their_own(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prompts.txt").write_text("a city, by night\n\n")
    options = [
        "--prompts",
        str(tmp_path / "prompts.txt"),
        "--seed",
        "1..2",
        "--sheet",
        str(tmp_path / "sheet.png"),
        "--latents",
    ]
    (tmp_path / "made").mkdir()
    assert generate(folder, tmp_path / "made", *options) == 0
    names = sorted(path.name for path in (tmp_path / "made").iterdir())
    assert [re.sub(r"-[0-9a-f]{8}", "", name) for name in names if name.endswith(".png")] == [
        "a-city-by-night-1.png",
        "a-city-by-night-2.png",
        "a-lake-1.png",
        "a-lake-2.png",
    ]
    assert len({re.search(r"[0-9a-f]{8}", name) for name in names}) == len(names) == 8
    assert size(tmp_path / "sheet.png")[0] == 2048
    latents = load_file(tmp_path / "made" / next(name for name in names if name.endswith(".safetensors")))["latents"]
    assert latents.shape == (4, 12, 20)
    assert len(capsys.readouterr().out.splitlines()) == 5


def test_words_may_stand_in_any_order(folder: Path, tmp_path: Path) -> None:
    """Prompts between options, one said by --prompt, a colon in it; a switch with a value; a configuration out of a pipe."""
    pipe, end = os.pipe()
    os.write(end, b"width: 32\nsteps: 9\n")
    os.close(end)
    words = ["--config", f"/dev/fd/{pipe}", "a city", "--latents", "True", "--prompt", "night: a lake"]
    assert generate(folder, tmp_path, *words) == 0
    os.close(pipe)
    made = [recipe.read(path) for path in tmp_path.glob("*.png")]
    assert {each["prompt"] for each in made} == {"a lake", "a city", "night: a lake"}
    assert {(each["width"], each["steps"]) for each in made} == {(40, 2)}
    assert len([*tmp_path.glob("*.safetensors")]) == 3


def test_only_the_first_rank_speaks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert main(["generate"]) == 2
    assert capsys.readouterr() == ("", "")


def test_rerun_makes_the_same_picture_again_and_changes_one_thing(folder: Path, tmp_path: Path) -> None:
    out, again, changed = (tmp_path / name for name in ("lake.png", "again.png", "changed.jpg"))
    assert (
        generate(folder, out, "--guidances+=msd", "--guidances.levels=2", "--height", "32", "--width", "32", "--seed", "7") == 0
    )
    assert main(["rerun", str(out), "--trust", "--out", str(again)]) == 0
    assert again.read_bytes() == out.read_bytes()
    assert main(["rerun", str(out), "--trust", "--set", "guidances.weight=0", "--set", "seed=8", "--out", str(changed)]) == 0
    before, after = recipe.read(out), recipe.read(changed)
    before["guidances"][0]["weight"], before["seed"] = 0.0, 8
    assert after == before


@pytest.mark.parametrize("name", ["lake.dzi", "lake.tif", "lake.png"])
def test_rerun_makes_the_same_files_of_a_large_picture(
    name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pyvips", reason="TIFF and Deep Zoom pictures are written by pyvips, which is not installed")
    monkeypatch.setattr(files, "SIDE", 32)
    monkeypatch.chdir(tmp_path)
    assert generate(folder, Path(name), "--latents", "--sheet", "sheet.jpg", "--preview", "preview.png") == 0
    assert capsys.readouterr().out == f"{name}: 40 x 24 pixels\nsheet.jpg: 1 picture\n"
    assert is_whole(Path(name), Path("lake.safetensors"))
    assert size(Path("sheet.jpg"))[0] == 2048
    assert main(["rerun", name, "--trust"]) == 0

    def content(stem: str) -> dict[str, bytes]:
        made = [Path(stem).with_suffix(Path(name).suffix), *Path(f"{stem}_files").rglob("*.*")]
        return {str(path).replace(stem, ""): path.read_bytes() for path in made}

    assert content("lake") == content("lake-rerun")
    assert main(["view", name, "--no_open", "--out", "page.html"]) == 0
    assert "40 x 24 pixels" in Path("page.html").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--out", "a.dzi"],
            'a Deep Zoom picture needs pyvips, which is not installed: pip install "panokit[tiles]", or write .png',
        ),
        (
            ["--out", "a.tif", "--width", "16400", "--height", "24"],
            'a TIFF of 16400 x 24 pixels needs pyvips, which is not installed: pip install "panokit[tiles]", or write .png',
        ),
        (
            ["--out", "a.webp", "--width", "16400"],
            "WEBP holds 16383 pixels a side, and the picture is (16400, 24); try .png, .tif or .dzi",
        ),
        (["--out", "b.dzi"], "its tiles go into b_files, which panokit did not write: remove it, or choose another name"),
        (["--out", "a.png", "--preview", "a.dzi"], "its ending '.dzi' names no picture format"),
    ],
)
def test_a_large_picture_that_cannot_be_written_is_one_line_before_the_run(
    options: list[str],
    message: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    if "b.dzi" in options:
        pytest.importorskip("pyvips", reason="Deep Zoom pictures are written by pyvips, which is not installed")
    else:
        monkeypatch.setitem(sys.modules, "pyvips", None)
    Path("b_files").mkdir()
    small = ["--height", "24", "--width", "40", "--steps", "2"]
    assert main(["generate", "a lake", "--model", str(folder), *small, *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["b_files"]


@pytest.mark.filterwarnings("default")
def test_rerun_says_where_other_versions_may_make_other_bits(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "lake.png"
    sampler = Sampler(str(folder), runtime=Runtime(accelerator="cpu"))
    made = sampler("a lake", height=16, width=32, steps=2)
    Panorama(made.latents, made.image, {**made.recipe, "torch": "1.0"}).save(out)
    assert main(["rerun", str(out), "--trust", "--out", str(tmp_path / "again.png")]) == 0
    said = capsys.readouterr().err
    assert re.match(r"panokit: warning: .*lake.png was made with torch 1.0, and 2\S+ is installed: bits may differ$", said)
    assert said.count("\n") == 1


def test_regions_are_rerun(folder: Path, tmp_path: Path) -> None:
    regions = Regions((((0, 0, 0.5, 1), "a lake"), ((0.5, 0, 1, 1), "a city")), "fog")
    out, again = tmp_path / "regions.png", tmp_path / "again.png"
    Sampler(str(folder), runtime=Runtime(accelerator="cpu"))(regions, height=16, width=32, steps=2).save(out)
    assert main(["rerun", str(out), "--trust", "--out", str(again)]) == 0
    assert again.read_bytes() == out.read_bytes()


def test_an_interrupted_run_has_status_130_and_leaves_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*args: object, **options: object) -> None:
        Path(str(args[1])).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", interrupted)
    assert generate(folder, tmp_path / "a.png") == 130
    assert capsys.readouterr().err == "panokit: interrupted\n"
    assert not list(tmp_path.iterdir())


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT interrupts, also where the shell that started the tests in the background has it ignored."""
    before = signal(SIGINT, default_int_handler)
    yield
    signal(SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(("number", "status", "what"), [(SIGINT, 130, "interrupted"), (SIGTERM, 143, "terminated")])
def test_an_import_that_a_signal_breaks_is_an_interruption(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: Signals,
    status: int,
    what: str,
) -> None:
    """Libraries turn an interruption into any other error, or into half a module that fails later."""
    module = f"interrupted_by_{number.name.lower()}"
    (tmp_path / f"{module}.py").write_text(
        f"import os, time\ntry:\n    os.kill(os.getpid(), {int(number)})\n    time.sleep(5)\n"
        "except KeyboardInterrupt:\n    raise RecursionError('maximum recursion depth exceeded') from None\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["generate", "a lake", "--fuser", f"{module}:Fuser"]) == status
    assert capsys.readouterr().err == f"panokit: {what}\n"


def test_a_full_disk_is_one_line_and_leaves_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*args: object, **options: object) -> None:
        Path(str(args[1])).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    assert generate(folder, tmp_path / "a.png") == 2
    assert capsys.readouterr().err == f"panokit: cannot write {tmp_path / 'a.png'}: No space left on device\n"
    assert not list(tmp_path.iterdir())


def test_plugins_with_a_name_tells_what_there_is_to_set(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins", "msd"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("msd: Cross-scale guidance")
    assert "\n  weight: float = 10.0\n      $\\omega$, 0 or more" in shown
    assert main(["generate", "--guidances.help", "msd"]) == 0
    assert capsys.readouterr().out == shown


def test_a_class_needs_no_kind(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins", "panokit_multidiffusion:MultiDiffusion"]) == 0
    assert "\n  spread: " in capsys.readouterr().out


def test_plugins_lists_kind_name_distribution_and_state(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["kind", "name", "distribution", "version", "state"]
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
        "    def weight(self, windows, level):\n"
        "        return torch.full((1, *windows.window), self.least)\n\n"
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
        (["multidiffusion"], 10),
        (["plain"], 10),
        (["outside_fuser:Plain"], 10),
        (["ddim", "--kind", "fusers"], 10),
        (["ddim", "--kind", "schedulers"], 10),
        (["panokit.testing.toys:Pull"], 14),
        (["head_start"], 9),
        (["spotdiffusion"], 13),
        (["panokit.testing.worlds:Gaussian"], 7),
    ],
)
def test_check_prints_a_line_for_each_check(
    outside: Path, capsys: pytest.CaptureFixture[str], options: list[str], checks: int
) -> None:
    assert main(["check", *options]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert last == f"{options[0]}: {checks} checks passed"
    assert [line.split()[1:] for line in lines] == [["ok"]] * checks


def test_a_broken_plugin_and_a_name_that_two_claim_are_one_line_and_status_2(
    outside: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    info = outside / "second-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: second\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[panokit.fusers]\nplain = outside_fuser:Plain\nbroken = outside_nowhere:Plain\n")
    for name, message in (
        ("broken", "'broken' (fusers, from second 1.0) is installed and cannot be imported"),
        ("plain", "2 distributions claim"),
    ):
        assert generate(folder, outside / "a.png", "--fuser", name) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert not (outside / "a.png").exists()


@pytest.mark.parametrize("damage", ["truncated", "pickled"])
def test_damaged_weights_are_one_line_and_status_2(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (weights,) = (copy / "unet").glob("*.safetensors")
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:1000])
    else:
        weights.rename(weights.with_suffix(".bin"))
    assert generate(copy, tmp_path / "a.png") == 2
    error = capsys.readouterr().err
    assert "unet" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "a.png").exists()


def test_check_of_a_plugin_that_breaks_a_rule_says_what_to_do_and_has_status_1(
    outside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", "outside_fuser:broken"]) == 1
    out, err = capsys.readouterr()
    assert err == ""
    first, *_, last = out.splitlines()
    name, problem = first.split(maxsplit=1)
    assert name == "weights_cover"
    assert problem.startswith("failed: Plain.weight goes from 0.0 to 0.0")
    assert problem.endswith("clamp weights to a small number")
    assert last.startswith("outside_fuser:broken: ")
    assert last.endswith(" of 10 checks failed")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["ddim"], "ddim is the name of plugins of several kinds, fusers, schedulers: choose one with --kind fusers"),
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
