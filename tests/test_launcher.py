"""What launchers say in the environment: damaged, incomplete, inherited; and the waiting for other ranks."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Timer

import pytest
from lightning.fabric.utilities.rank_zero import rank_zero_only

from panokit import Runtime, SettingError, launcher
from panokit.cli import main
from panokit.errors import RankError
from panokit.signals import TerminatedError, terminated

NUMBERS = [name for name in launcher._NAMES if name.endswith(("RANK", "SIZE", "ID", "NODE", "NODES", "TASKS", "PORT"))]
NUMBERS = [name for name in NUMBERS if name not in (launcher.ELASTIC, "SLURM_STEP_ID")]
TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "1",
    "RANK": "1",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "2",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}
SRUN = {
    "SLURM_NTASKS": "4",
    "SLURM_NNODES": "2",
    "SLURM_NTASKS_PER_NODE": "2",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_JOB_NAME": "panorama",
    "SLURM_STEP_ID": "0",
}


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """No launcher's variables, and those that a test sets or drops are as before after it."""
    for name in (*launcher._NAMES, launcher._OWNER, "SLURM_JOB_NAME"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", ["", "x", "-1", "1.5", "0x1", " ", "\u0663", "9" * 40, "None"])
def test_a_damaged_number_is_told_and_breaks_no_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    assert (launcher.rank(), launcher.local_rank()) == (0, 0)
    with pytest.raises(SettingError, match=f"the environment variable {name} is "):
        launcher.launched()
    if name != "LOCAL_RANK":
        monkeypatch.setenv("LOCAL_RANK", "1")  # usually silent, because the first rank says the same
    assert main(["generate", "a lake"]) == 2
    text = capsys.readouterr().err
    assert f": the environment variable {name} is " in text
    assert text.count("\n") == 1
    assert len(text) < 400


@pytest.mark.parametrize(("rank", "size"), launcher._SIZE_OF.items())
def test_a_rank_is_below_the_number_of_ranks(monkeypatch: pytest.MonkeyPatch, rank: str, size: str) -> None:
    monkeypatch.setenv(rank, "2")
    monkeypatch.setenv(size, "2")
    with pytest.raises(SettingError, match=f"variable {rank} is 2, and {size} is 2"):
        launcher.launched()


def test_a_rank_by_hand_has_a_place_among_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", rank_zero_only.rank)  # set back: Lightning's loggers write on rank 0 alone
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(SettingError, match="LOCAL_RANK is set and MASTER_PORT is not"):
        Runtime(accelerator="cpu", devices=2)
    monkeypatch.setenv("MASTER_PORT", "29500")
    assert Runtime(accelerator="cpu", devices=2).global_rank == 1
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(SettingError, match="LOCAL_RANK is 2, and there are 2 devices on each machine"):
        Runtime(accelerator="cpu", devices=2)


@pytest.mark.parametrize("missing", ["RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"])
def test_a_variable_of_torchrun_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    assert launcher.launched() == (2, 1)
    monkeypatch.delenv(missing)
    with pytest.raises(SettingError, match=f"TORCHELASTIC_RUN_ID is set and {missing} is not"):
        launcher.launched()


@pytest.mark.parametrize("missing", ["SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID"])
def test_a_variable_of_slurm_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    for name, value in SRUN.items():
        monkeypatch.setenv(name, value)
    assert launcher.launched() == (2, 2)
    monkeypatch.delenv(missing)
    with pytest.raises(SettingError, match=f"SLURM_NTASKS is set and {missing} is not"):
        launcher.launched()


@pytest.mark.parametrize("told", [{}, {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}])
def test_a_slurm_job_whose_tasks_nothing_has_started_is_told_to_use_srun(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], told: dict[str, str]
) -> None:
    """The batch script of a job is one process, whatever the job asks for."""
    for name, value in {"SLURM_NTASKS": "2", "SLURM_JOB_ID": "12", "SLURM_JOB_NAME": "panorama", **told}.items():
        monkeypatch.setenv(name, value)
    for words in ([], ["--devices", "2"], ["--devices", "auto"]):
        assert main(["generate", "a lake", *words]) == 2
        text = capsys.readouterr().err
        assert "write `srun panokit ...` in the job's script" in text
        assert text.count("\n") == 1
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert launcher.launched() == (1, 1)
    assert main(["generate", "a lake", "--devices", "2"]) == 2
    assert "ask for --nodes=1 --ntasks-per-node=2" in capsys.readouterr().err


@pytest.mark.parametrize("variables", [TORCHRUN, SRUN, {"LOCAL_RANK": "1", "MASTER_PORT": "1", launcher.PARENT: "1"}])
def test_a_program_that_a_rank_starts_is_no_rank(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert launcher.is_rank()
    launcher.mark()
    launcher.forget()  # in the rank itself
    assert launcher._variables() == {name: value for name, value in variables.items() if name in launcher._NAMES}
    program = "from panokit import launcher; launcher.forget(); print(launcher.is_rank(), launcher._variables())"
    assert answer(program) == "False {}"
    other = {"TORCHELASTIC_RUN_ID": "2", "RANK": "0", "MASTER_PORT": "2"}  # a launcher that the rank starts
    assert answer(program, other).startswith("True {")


def answer(program: str, environment: dict[str, str] | None = None) -> str:
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env={**os.environ, **(environment or {})}, capture_output=True, text=True, timeout=60)
    return done.stdout.strip()


@pytest.mark.parametrize("damage", ["", "x", "{}", "[1]", "[1, 2, 3]", "null", '["1", {}]'])
def test_a_damaged_note_of_a_launch_is_nothing(monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    monkeypatch.setenv(launcher._OWNER, damage)
    monkeypatch.setenv("LOCAL_RANK", "1")
    launcher.forget()
    assert os.environ["LOCAL_RANK"] == "1"


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_waits_for_the_others_for_the_timeout_and_obeys_signals(rank: int) -> None:
    from panokit.runtime.strategy import _met
    from panokit.testing.processes import free_port

    start = time.monotonic()
    with pytest.raises(RankError, match=f"rank {1 - rank} .*has not come .*within 0.3 s"):
        _met("127.0.0.1", free_port(), rank, 2, 0.3)
    Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
    with terminated(), pytest.raises(TerminatedError):
        _met("127.0.0.1", free_port(), rank, 2, 60.0)
    assert time.monotonic() - start < 10


def test_ranks_that_were_started_for_different_numbers_say_so() -> None:
    from panokit.runtime.strategy import _met
    from panokit.testing.processes import free_port

    port = free_port()
    with ThreadPoolExecutor() as pool:
        first = pool.submit(_met, "127.0.0.1", port, 0, 3, 1.0)
        with pytest.raises(RankError, match="rank 0 was started as one of 3 and rank 1 as one of 2"):
            _met("127.0.0.1", port, 1, 2, 60.0)
        assert "rank 2 of 3 has not come within 1 s" in str(first.exception())


def test_a_process_that_becomes_a_rank_forgets_its_own_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**SRUN, "NODE_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    launcher.become(1, 3, "127.0.0.1", 29500)
    assert launcher.launched() == (1, 3)
    assert (launcher.rank(), launcher.local_rank()) == (1, 0)
    assert not {*SRUN} & {*os.environ} - {"SLURM_JOB_NAME"}
    runtime = Runtime(accelerator="cpu")
    assert (runtime.global_rank, runtime.world_size) == (1, 3)
    launcher.become(0, 1, "127.0.0.1", 29500)
    assert not launcher.is_rank()
