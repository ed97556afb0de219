"""Pictures on Ray: those of the command without it, whatever happens to the actors."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from pathlib import Path
from signal import SIGINT, SIGKILL, SIGTERM
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from panokit.cli import main
from panokit.testing.processes import Command, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytest.importorskip("ray", reason="Ray is an extra, and pip install panokit[ray] brings it")
pytestmark = [
    pytest.mark.xdist_group("ray"),  # one cluster at a time: each takes seconds and memory
    pytest.mark.filterwarnings("default"),  # Ray leaves files to the garbage collector
]

SIZE = ["--height", "128", "--width", "192", "--micro_batch", "1"]
POISON = """
import os
from panokit import Guidance

class Poison(Guidance):
    jacobian = "none"

    def strength(self, level):
        return 1.0

    def energy(self, seen, index, context):
        os._exit(7)
"""


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder whose name is so short that Ray's sockets fit into it."""
    path = Path(mkdtemp(prefix="ray-", dir="/tmp"))
    monkeypatch.setenv("RAY_TMPDIR", str(path))
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # otherwise Ray writes a token into the home folder
    yield path
    shutil.rmtree(path, ignore_errors=True)


def write(path: Path, *jobs: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(job) + "\n" for job in jobs))
    return str(path)


def pictures(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.png")}


def without_ray(folder: Path, jobs: str, *options: str) -> dict[str, bytes]:
    folder.mkdir()
    main(["generate", "--jobs", jobs, "--out", f"{folder}/", *SIZE, *options])
    return pictures(folder)


def test_jobs_make_the_same_pictures_on_ray(
    tmp_path: Path, short: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # relative names mean the same to actors
    jobs = [{"prompt": "a lake", "seed": seed} for seed in (1, 2)]
    lines = write(tmp_path / "jobs.jsonl", jobs[0], {"prompt": "a lake", "width": 193}, jobs[1])
    wanted = without_ray(tmp_path / "without", lines, "--steps", "2")
    (tmp_path / "made").mkdir()
    first, second = sorted(wanted)
    (tmp_path / "made" / first).write_bytes(wanted[first])
    capsys.readouterr()
    words = ["generate", "--jobs", "jobs.jsonl", "--out", "made/", *SIZE, "--steps", "2"]
    assert main([*words, "--engine", "ray", "--progress", "json"]) == 1
    out, err = capsys.readouterr()
    events = [json.loads(line) for line in out.splitlines()]
    assert [event["event"] for event in events] == ["begin", "step", "step", "done", "end"], err
    assert {event["file"] for event in events[:-1]} == {f"made/{second}"}
    assert events[-1] == {"event": "end", "made": 1, "there already": 1, "failed": 0}
    assert "jobs.jsonl, line 2: width 193 is no multiple of 8" in err
    assert pictures(tmp_path / "made") == wanted
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == sorted(wanted)
    assert not [child for child in psutil.Process().children(recursive=True) if "ray" in child.name()]


class Running:
    """A command on Ray in a process of its own."""

    def __init__(self, folder: Path, short: Path, *options: str) -> None:
        self.folder = folder
        (folder / "made").mkdir(exist_ok=True)
        words = ["-c", "import sys; from panokit.cli import main; sys.stdout = open('events', 'a'); sys.exit(main())"]
        words += ["generate", "--jobs", "jobs.jsonl", "--out", "made/", *SIZE, "--progress", "json", "--engine", "ray"]
        self.command = Command([*words, *options], folder, {"RAY_TMPDIR": str(short)})

    def events(self, *kinds: str) -> list[dict[str, Any]]:
        path = self.folder / "events"
        lines = path.read_text().splitlines() if path.exists() else []
        return [event for event in map(json.loads, lines) if event["event"] in kinds]

    def actors(self) -> list[int]:
        """The processes of actors, oldest first."""
        return sorted(pid for pid in self.command.processes() if Path(f"/proc/{pid}/comm").read_text().startswith("ray::Mem"))

    def wait(self, patience: float = 180.0, ended: float = 20.0) -> int | None:
        """The status of the command, when all of its processes have ended."""
        assert until(lambda: self.command.parent.poll() is not None, patience), self.command.stderr()
        assert until(self.command.ended, ended), self.command.processes().keys()
        return self.command.parent.returncode


@pytest.fixture
def run(tmp_path: Path, short: Path) -> Iterator[Callable[..., Running]]:
    running: list[Running] = []

    def start(*options: str) -> Running:
        running.append(Running(tmp_path, short, *options))
        return running[-1]

    yield start
    for one in running:
        one.command.end()


LONG = ["--steps", "40", "--checkpoint_every", "1"]


@pytest.mark.parametrize("devices_per_picture", [1, 2])
@pytest.mark.sweep
def test_a_job_whose_actor_is_killed_goes_on_from_its_checkpoint(
    tmp_path: Path, run: Callable[..., Running], devices_per_picture: int
) -> None:
    jobs = write(tmp_path / "jobs.jsonl", *({"prompt": "a lake", "seed": seed} for seed in range(3)))
    wanted = without_ray(tmp_path / "without", jobs, *LONG)
    running = run("--devices", "2", "--devices_per_picture", str(devices_per_picture), *LONG)
    assert until(lambda: len(running.events("step")) > 8, 120.0), running.command.stderr()
    actors = running.actors()  # of several that work alone, one may not have begun yet
    for actor in actors[-1:] if devices_per_picture == 2 else actors:
        os.kill(actor, SIGKILL)
    assert running.wait() == 0, running.command.stderr()
    assert pictures(tmp_path / "made") == wanted
    assert Counter(event["file"] for event in running.events("done")) == {f"made/{name}": 1 for name in wanted}
    assert running.events("end") == [{"event": "end", "made": 3, "there already": 0, "failed": 0}]
    again = len(running.events("begin")) - 3
    assert again in range(1, 3 - devices_per_picture // 2)
    assert len(running.events("step")) <= 3 * 40 + 2 * again  # from checkpoints
    told = running.command.stderr().count("its picture goes on with other actors")
    assert again <= told < 3  # it may have been taken, and not begun
    assert "panokit: warning: an actor on " in running.command.stderr()
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == sorted(wanted)


@pytest.mark.parametrize(
    ("signal", "send", "status"),
    [
        (SIGINT, os.killpg, 130),  # as a terminal does
        (SIGTERM, os.kill, 143),
        (SIGTERM, os.killpg, 143),  # as SLURM does, also to the processes of Ray
    ],
)
@pytest.mark.sweep
def test_an_interrupted_command_leaves_checkpoints_and_nothing_else_and_goes_on(
    tmp_path: Path, run: Callable[..., Running], signal: int, send: Callable[[int, int], None], status: int
) -> None:
    jobs = write(tmp_path / "jobs.jsonl", *({"prompt": "a lake", "seed": seed} for seed in range(3)))
    wanted = without_ray(tmp_path / "without", jobs, *LONG)
    running = run("--devices", "2", *LONG)
    assert until(lambda: len(running.events("step")) > 8, 120.0), running.command.stderr()
    send(running.command.parent.pid, signal)
    helpers = 180.0 if (signal, send) == (SIGTERM, os.killpg) else 20.0  # of Ray, which try to tell it why they end
    assert running.wait(ended=helpers) == status, running.command.stderr()
    assert "the same command goes on" in running.command.stderr()
    assert [*(tmp_path / "made").glob("*.checkpoint")]
    before = len(running.events("step"))
    again = run("--devices", "2", *LONG)
    assert again.wait() == 0, again.command.stderr()
    assert pictures(tmp_path / "made") == wanted
    assert len(again.events("step")) - before < 3 * 40 - 8
    assert Counter(event["file"] for event in again.events("done")) == {f"made/{name}": 1 for name in wanted}


@pytest.mark.sweep
def test_a_driver_that_is_killed_leaves_no_process(tmp_path: Path, run: Callable[..., Running]) -> None:
    write(tmp_path / "jobs.jsonl", {"prompt": "a lake"})
    running = run(*LONG)
    assert until(lambda: len(running.events("step")) > 2, 120.0), running.command.stderr()
    running.command.parent.kill()
    assert until(lambda: not running.actors(), 20.0)  # which hold the devices
    assert running.wait(ended=180.0) == -SIGKILL  # helpers of Ray first try to tell it why they end


@pytest.mark.sweep
def test_a_job_that_kills_its_actors_fails_alone(tmp_path: Path, run: Callable[..., Running]) -> None:
    (tmp_path / "poison.py").write_text(POISON)
    write(tmp_path / "jobs.jsonl", {"prompt": "a lake", "guidances": ["poison:Poison"]}, {"prompt": "a lake", "seed": 1})
    running = run("--trust", "--steps", "2")
    assert running.wait() == 1, running.command.stderr()
    assert running.events("end") == [{"event": "end", "made": 1, "there already": 0, "failed": 1}]
    (failed,) = running.events("failed")
    assert "so it went 3 times with this job" in failed["error"]
    (problem,) = (tmp_path / "made").glob("*.error.txt")
    assert problem.read_text() == failed["error"] + "\n"
