"""From tasks to files: what is nice to have never costs the picture, and a job is done when all of it is there."""

import builtins
import errno
import io
import json
import os
import re
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import combinations, product
from pathlib import Path
from typing import Any

import pytest

from panokit.checkpoint import read
from panokit.cli import main
from panokit.run import Run

pytestmark = pytest.mark.filterwarnings("default")  # the command line prints them

CODES = [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES, errno.ENOENT, errno.ESTALE, errno.EFBIG]
STAGES = ["open", "write", "rename"]
FAULTS = [*product(CODES, STAGES)]


class HalfWritten(io.FileIO):
    """A file that takes half of what is written to it, and then fails."""

    code = errno.ENOSPC

    def write(self, data: Any) -> int:
        super().write(bytes(data)[: len(data) // 2])
        raise OSError(self.code, os.strerror(self.code))


@contextmanager
def broken(folder: Path, code: int, stage: str, when: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """No file in a folder can be written."""
    opens, renames = io.open, Path.replace

    def opened(path: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        fails = stage != "rename" and "w" in mode and Path(path).parent == folder and when()
        if not fails:
            return opens(path, mode, *args, **options)
        if stage == "open":
            raise OSError(code, os.strerror(code))
        file = HalfWritten(path, "w")
        file.code = code
        return file

    def renamed(path: Path, target: Path) -> Path:
        if stage == "rename" and target.parent == folder and when():
            raise OSError(code, os.strerror(code))
        return renames(path, target)

    with pytest.MonkeyPatch.context() as patch:
        for module in (io, builtins):  # pathlib opens with one, Pillow with the other
            patch.setattr(module, "open", opened)
        patch.setattr(Path, "replace", renamed)
        yield


@contextmanager
def after(step: int, act: Callable[[], object]) -> Iterator[list[int]]:
    """Something happens after a step of each run. The list holds the steps that are made."""
    proceed, made = Run.step, list[int]()

    def strikes(run: Run) -> None:
        proceed(run)
        made.append(run.level.step)
        if run.level.step == step:
            act()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "step", strikes)
        yield made


def generate(folder: Path, out: Path, *options: str) -> int:
    words = ["--height", "16", "--width", "24", "--steps", "3", "--scheduler", "euler_a"]
    return main(["generate", "a lake", "--model", str(folder), *words, "--out", str(out), *options])


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The picture of an undisturbed run."""
    path = tmp_path_factory.mktemp("whole") / "a.png"
    assert generate(folder, path) == 0
    return path.read_bytes()


@pytest.fixture
def faults(sweeps: bool) -> list[tuple[int, str]]:
    """Errors, and the stages at which they come. All pairs in sweeps."""
    return FAULTS if sweeps else FAULTS[::5]


EXTRAS = {
    "preview": "the run goes on without a new preview",
    "sheet": "there is no contact sheet",
    "checkpoint": "the run goes on without a new checkpoint",
}


@pytest.mark.parametrize("extra", EXTRAS)
def test_a_broken_disk_under_an_extra_costs_one_warning_and_never_the_picture(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], whole: bytes, faults: list[tuple[int, str]], extra: str
) -> None:
    """The checkpoint is in the folder of the picture: there the disk works again after the last step."""
    place = tmp_path / "extra"
    place.mkdir()
    out = (place if extra == "checkpoint" else tmp_path) / "a.png"
    options = ["--checkpoint_every", "1"] if extra == "checkpoint" else [f"--{extra}", str(place / "b.bmp")]
    for code, stage in faults:
        with after(0, int) as made, broken(place, code, stage, lambda: extra != "checkpoint" or made[-1] < 3):
            assert generate(folder, out, *options) == 0, (code, stage)
        printed = capsys.readouterr().err
        assert re.fullmatch(rf"panokit: warning: cannot write .*: {os.strerror(code)}; {EXTRAS[extra]}\n", printed), printed
        assert out.read_bytes() == whole
        assert files(tmp_path) == ["a.png"], (code, stage)
        out.unlink()


def test_a_disk_that_is_full_for_a_step_costs_a_warning_each_and_keeps_the_checkpoint_before(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], whole: bytes
) -> None:
    """A real limit: no file may hold a byte, from the end of the second step to that of the third."""
    out, kept, (soft, hard) = tmp_path / "a.png", tmp_path / "a.png.checkpoint", resource.getrlimit(resource.RLIMIT_FSIZE)
    levels: list[int] = []

    def emptied() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        levels.append(read(kept)[1]["level"])

    with after(2, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))), after(3, emptied):
        assert generate(folder, out, "--checkpoint_every", "1", "--preview", str(tmp_path / "b.png")) == 0
    printed = capsys.readouterr().err
    assert printed.count("\n") == printed.count(f": {os.strerror(errno.EFBIG)}; the run goes on without a new ") == 2
    assert levels == [1]
    assert out.read_bytes() == whole
    assert files(tmp_path) == ["a.png", "b.png"]


def test_folders_of_extras_that_are_deleted_cost_a_warning_each(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], whole: bytes
) -> None:
    options = [word for name in ("preview", "sheet") for word in (f"--{name}", str(tmp_path / name / "b.png"))]
    for name in ("preview", "sheet"):
        (tmp_path / name).mkdir()
    with after(1, lambda: [shutil.rmtree(tmp_path / name) for name in ("preview", "sheet")]):
        assert generate(folder, tmp_path / "a.png", *options) == 0
    assert capsys.readouterr().err.count("b.png: No such file or directory; ") == 2
    assert (tmp_path / "a.png").read_bytes() == whole


@pytest.mark.parametrize("target", ["a.png", "a.safetensors"])
def test_a_picture_or_latents_that_cannot_be_written_are_one_line_and_the_work_is_kept(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], whole: bytes, faults: list[tuple[int, str]], target: str
) -> None:
    out, kept = tmp_path / "a.png", tmp_path / "a.png.checkpoint"
    for code, stage in faults:
        with after(0, int) as made:
            painted = (lambda: made[-1] == 3) if target == "a.png" else out.exists
            with broken(tmp_path, code, stage, painted):
                assert generate(folder, out, "--latents", "--checkpoint_every", "1") == 2, (code, stage)
        printed = capsys.readouterr().err
        cause = f"panokit: cannot write {tmp_path / target}: {os.strerror(code)}; "
        rest = f"{'' if target == 'a.png' else f'its picture is {out}; '}--resume {kept} goes on from its checkpoint\n"
        assert printed == cause + rest
        assert files(tmp_path) == ["a.png"] * (target != "a.png") + ["a.png.checkpoint", "a.png.checkpoint.before"]
        with after(0, int) as made:
            assert generate(folder, out, "--latents", "--resume", str(kept)) == 0
        assert made == [3]
        assert out.read_bytes() == whole
        assert files(tmp_path) == ["a.png", "a.safetensors"]
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()


OPTIONS = ["--out", "--latents", "--sheet", "--preview", "the checkpoint of --out", "the checkpoint of --out before the last"]


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_any_two_options_that_name_one_file_are_refused_before_the_run(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], link: Callable[[Path, Path], None]
) -> None:
    names = ["a.png", "a.safetensors", "s.png", "p.png", "a.png.checkpoint", "a.png.checkpoint.before"]
    options = ["--latents", "--sheet", str(tmp_path / "s.png"), "--preview", str(tmp_path / "p.png")]
    for one, other in combinations(range(len(names)), 2):
        (tmp_path / names[one]).write_bytes(b"kept")
        link(tmp_path / names[one], tmp_path / names[other])
        with after(0, int) as made:
            assert generate(folder, tmp_path / "a.png", *options) == 2
        printed = capsys.readouterr().err
        assert printed.startswith(f"panokit: {OPTIONS[one]} and {OPTIONS[other]} name one file, "), printed
        assert (printed.count("\n"), made) == (1, [])
        assert {path.read_bytes() for path in tmp_path.iterdir()} == {b"kept"}
        assert files(tmp_path) == sorted([names[one], names[other]])
        for path in tmp_path.iterdir():
            path.unlink()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--preview", "./a.png"], "--out and --preview name one file"),
        (["--sheet", "{}/a.png"], "--out and --sheet name one file"),
        (["--sheet", "b.png", "--preview", "{}/./b.png"], "--sheet and --preview name one file"),
        (["a lake", "--out", "."], "2 pictures have one file, a-lake-0-"),
        (["--height", "600", "--width", "16", "--sheet", "b.jpg"], "JPEG holds 65500 pixels a side"),
        (["--out", "a" * 252 + ".png"], "File name too long"),
        (["--out", "a" * 244 + ".png", "--latents"], ".safetensors: File name too long"),
        (["--preview", "a" * 252 + ".png"], "File name too long"),
        (["--preview", "nowhere/a.png"], "make it first"),
        (["--sheet", "nowhere/a.png"], "make it first"),
        (["--out", "a/b.png"], "make it first"),
        (["--out", "\ud800.png"], "surrogates not allowed"),
    ],
)
def test_what_cannot_be_written_is_one_line_before_the_run(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    with after(0, int) as made:
        assert generate(folder, Path("a.png"), *(option.format(tmp_path) for option in options)) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert (printed.count("\n"), made) == (1, [])
    assert not [*tmp_path.iterdir()]


def test_a_name_as_long_as_any_can_be_has_checkpoints_to_go_on_from(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], whole: bytes
) -> None:
    def stopped() -> None:
        raise KeyboardInterrupt

    out = tmp_path / f"{'湖' * 83}ab.png"
    assert len(os.fsencode(out.name)) == 255
    with after(3, stopped):
        assert generate(folder, out, "--checkpoint_every", "1") == 130
    kept = re.findall(r"--resume (\S+) goes on", capsys.readouterr().err)[0]
    with after(0, int) as made:
        assert generate(folder, out, "--checkpoint_every", "1", "--resume", kept) == 0
    assert made == [3]
    assert out.read_bytes() == whole
    assert files(tmp_path) == [out.name]


def test_lines_that_nobody_can_read_end_nothing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard output and error are full disks; or they take no letter but those of ASCII."""
    jobs = "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in ("a lake", "湖"))
    (tmp_path / "jobs.jsonl").write_text(jobs, encoding="utf-8")
    words = ["--model", str(folder), "--height", "16", "--width", "24", "--steps", "2"]
    for name, place in (("full", "/dev/full"), ("ascii", str(tmp_path / "lines.txt"))):
        (tmp_path / name).mkdir()
        with suppress(OSError), open(place, "w", encoding="ascii") as out, open(place, "w", encoding="ascii") as err:
            monkeypatch.setattr(sys, "stdout", out)
            monkeypatch.setattr(sys, "stderr", err)
            status = main(["generate", "--jobs", str(tmp_path / "jobs.jsonl"), *words, "--out", f"{tmp_path / name}/"])
        monkeypatch.undo()
        assert status == 0, name
        assert len(files(tmp_path / name)) == 2
    lines = (tmp_path / "lines.txt").read_text().splitlines()
    assert [re.sub(r".*/|-[0-9a-f]{8}", "", line) for line in lines] == [
        "a-lake-0.png: 24 x 16 pixels (1 of 2)",
        "?-0.png: 24 x 16 pixels (2 of 2)",
        "2 made, 0 there already, 0 failed",
    ]


def test_a_note_that_cannot_be_written_and_a_checkpoint_that_cannot_be_deleted_are_a_warning(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "panokit_broken.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "made").mkdir()
    (tmp_path / "jobs.jsonl").write_text('{"prompt": "x", "guidances": ["panokit_broken:Breaks"]}')
    words = ["--model", str(folder), "--height", "16", "--width", "24", "--steps", "2", "--out", f"{tmp_path}/made/"]
    with broken(tmp_path / "made", errno.ENOSPC, "open"):
        assert main(["generate", "--trust", "--jobs", str(tmp_path / "jobs.jsonl"), *words]) == 1
    printed = capsys.readouterr().err
    assert re.fullmatch(
        r"panokit: warning: cannot write .*error.txt: No space .*; the files of errors are not up to date\n", printed
    )
    unlink = Path.unlink

    def kept(path: Path, **options: bool) -> None:
        if path.suffix == ".checkpoint":
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        unlink(path, **options)

    monkeypatch.setattr(Path, "unlink", kept)
    assert generate(folder, tmp_path / "made" / "a.png", "--checkpoint_every", "1") == 0
    assert (
        capsys.readouterr().err
        == "panokit: warning: OSError: [Errno 30] Read-only file system; the checkpoint is not deleted\n"
    )


def test_a_job_is_done_when_all_its_files_are_there_and_complete(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, path = tmp_path / "made", tmp_path / "jobs.jsonl"
    out.mkdir()
    path.write_text('{"prompt": "a lake"}\n{"prompt": "a city"}\n')
    command = ["generate", "--jobs", str(path), "--model", str(folder), "--height", "16", "--width", "24", "--steps", "2"]
    command += ["--latents", "--out", f"{out}/"]

    def ends() -> str:
        assert main(command) == 0
        return capsys.readouterr().out.splitlines()[-1]

    assert ends() == "2 made, 0 there already, 0 failed"
    for file in out.iterdir():
        whole = file.read_bytes()
        for damaged in (None, b"", whole[:-1]):
            file.unlink()
            if damaged is not None:
                file.write_bytes(damaged)
            assert ends() == "1 made, 1 there already, 0 failed"
            assert file.read_bytes() == whole
    assert ends() == "0 made, 2 there already, 0 failed"


PLUGIN = """
from dataclasses import dataclass
from panokit import Guidance

@dataclass(frozen=True)
class Breaks(Guidance):
    kind: str = "ValueError"
    where: str = "energy"
    jacobian = "identity"

    def __post_init__(self):
        self.reach("make")

    def reach(self, place):
        if place == self.where:
            kind = getattr(__builtins__, self.kind, None) or __builtins__[self.kind]
            raise kind(*(("utf-8", b"x", 0, 1, "no text") if "Unicode" in self.kind else ("no\\nlight",)))

    def strength(self, level):
        self.reach("strength")
        return 1.0

    def begin(self, windows, levels):
        self.reach("begin")

    def known(self, step, memory):
        self.reach("known")

    def prepare(self, step, memory):
        self.reach("prepare")

    def energy(self, seen, index, context):
        self.reach("energy")
        return seen.x0.flatten(1).square().sum(1)
"""
# The errors that a plugin of somebody else raises in a job: by mistake, for a part that it lacks, or from a file or connection.
KINDS = ["ValueError", "KeyError", "ZeroDivisionError", "TypeError", "RecursionError", "OSError"]
KINDS += ["AssertionError", "NotImplementedError", "UnicodeDecodeError", "ConnectionResetError", "EOFError", "BrokenPipeError"]
PLACES = ["make", "begin", "strength", "known", "prepare", "energy"]


def test_a_raw_error_of_a_job_ends_that_job_alone_in_one_line(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], sweeps: bool
) -> None:
    """Every class at some places, and sweeps try all pairs."""
    (tmp_path / "panokit_broken.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "made").mkdir()
    pairs = [*product(KINDS, PLACES)]
    pairs = pairs if sweeps else pairs[:: len(PLACES) - 1]
    broken = [{"prompt": "x", "guidances": [{"plugin": "panokit_broken:Breaks", "kind": k, "where": w}]} for k, w in pairs]
    jobs = [{"prompt": "a lake"}, *broken, {"prompt": "a city"}]
    (tmp_path / "jobs.jsonl").write_text("".join(json.dumps(job) + "\n" for job in jobs))
    words = ["--model", str(folder), "--height", "16", "--width", "24", "--steps", "2", "--out", f"{tmp_path}/made/"]
    assert main(["generate", "--trust", "--jobs", str(tmp_path / "jobs.jsonl"), *words]) == 1
    printed, warned = (text.splitlines() for text in capsys.readouterr())
    left_out = [int(re.findall(r", line (\d+): .*; this job is left out$", line)[0]) for line in warned]
    failed = [line for line in printed if re.search(r"/x-0-[0-9a-f]{8}\.png: failed, .* \(\d+ of \d+\)$", line)]
    assert left_out == [line for line, (_, place) in enumerate(pairs, start=2) if place in ("make", "begin")]
    ran = [kind for line, (kind, _) in enumerate(pairs, start=2) if line not in left_out]
    assert [re.findall(r"failed, (\w+):", line)[0] for line in failed] == ran
    assert len(files(tmp_path / "made")) == 2 + len(failed)
