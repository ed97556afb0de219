"""Clusters that cannot be used: a line says so, within seconds."""

from __future__ import annotations

import importlib.util
import socket
import time
from contextlib import suppress
from threading import Thread
from typing import TYPE_CHECKING, Any

import pytest

from panokit import SettingError
from panokit.cli import main
from panokit.cluster import joining
from panokit.testing.processes import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

INSTALLED = importlib.util.find_spec
GENERATE = ["generate", "--jobs", "jobs.jsonl", "--engine", "ray"]


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray counts as installed. Nothing here starts or imports it."""
    monkeypatch.setattr(joining, "find_spec", lambda name: True)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_USE_TLS", raising=False)


@pytest.fixture
def stranger(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server that is no cluster."""
    monkeypatch.setattr(joining, "_PATIENCE", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            for words in (b"SSH-2.0-OpenSSH_9.2\r\n", b""):
                with suppress(OSError), server.accept()[0] as end:  # the other side leaves when it knows enough
                    end.sendall(words)
                    end.recv(100)
                    time.sleep(1.0)

        Thread(target=answer, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_an_address_without_a_cluster_is_told_at_once(ray: None, monkeypatch: pytest.MonkeyPatch) -> None:
    address, begun = f"127.0.0.1:{free_port()}", time.monotonic()
    for place in (address, f"ray://{address}"):
        with pytest.raises(SettingError, match=f"there is no cluster at {place} .*: start one with `ray start --head`"):
            joining.require_cluster(place, 1, 1)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(SettingError, match=f"there is no cluster at {address}"):
        joining.require_cluster("auto", 1, 1)
    assert time.monotonic() - begun < 5


def test_a_server_that_is_no_cluster_is_told(ray: None, stranger: str) -> None:
    with pytest.raises(SettingError, match=f"what listens at {stranger} is no cluster of Ray"):
        joining.require_cluster(stranger, 1, 1)
    with pytest.raises(SettingError, match=f"there is no cluster at {stranger} \\(timed out\\)"):
        joining.require_cluster(stranger, 1, 1)


@pytest.mark.parametrize("address", ["lake", "ray://lake", "host:0", "host:70000", ":6379", "http://host/a"])
def test_an_address_of_another_form_is_told(ray: None, address: str) -> None:
    with pytest.raises(SettingError, match="it must be auto, HOST:PORT or ray://HOST:PORT"):
        joining.require_cluster(address, 1, 1)


@pytest.mark.parametrize(
    ("devices", "devices_per_picture", "message"),
    [
        (1, 2, "devices is 1, and devices_per_picture is 2: set devices to 2, or to another multiple of 2"),
        (5, 2, "devices is 5, and devices_per_picture is 2: set devices to 4, or"),
        (2, 0, "devices_per_picture is 0: it must be 1 or more"),
    ],
)
def test_devices_that_cannot_be_shared_out_are_told(ray: None, devices: int, devices_per_picture: int, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        joining.require_cluster(None, devices, devices_per_picture)


@pytest.mark.parametrize(
    ("resources", "devices", "devices_per_picture", "lent"),
    [
        ({"CPU": 7.0}, 3, 1, ("CPU", 3)),
        ({"CPU": 7.0}, "auto", 2, ("CPU", 6)),
        ({"CPU": 7.0, "GPU": 2.0}, "auto", 1, ("GPU", 2)),
        ({"CPU": 7.0, "GPU": 2.0}, 4, 2, "4 devices are needed, and the cluster has 2 GPUs: set devices to 2 at most"),
        ({"CPU": 1.0}, "auto", 2, "2 devices are needed, and the cluster has 1 CPU: set devices to 1 at most"),
    ],
)
def test_gpus_come_before_cpus_and_no_more_than_there_are(
    resources: Any, devices: Any, devices_per_picture: int, lent: Any
) -> None:
    if isinstance(lent, str):
        with pytest.raises(SettingError, match=lent):
            joining._lent(resources, devices, devices_per_picture, None)
    else:
        assert joining._lent(resources, devices, devices_per_picture, None)[:2] == lent


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["generate", "a lake", "--engine", "ray"], "Ray makes the jobs of a file: write one on each line, and give the file"),
        (["generate", "a lake", "--address", "auto"], "address is about a cluster of Ray: write --engine ray too"),
        (["generate", "a lake", "--devices_per_picture", "2"], "devices_per_picture is about a cluster of Ray"),
        ([*GENERATE, "--num_nodes", "2"], "num_nodes is 2, and Ray itself finds machines: leave it out"),
        ([*GENERATE, "--preview", "a.png"], "a preview shows one picture, and actors make several at once"),
        ([*GENERATE, "--engine", "dask"], "engine came as 'dask': it must be panokit or ray"),
        ([*GENERATE, "--devices", "3", "--devices_per_picture", "2"], "set devices to 2, or to another multiple of 2"),
        ([*GENERATE, "--address", "lake"], "address is 'lake': it must be auto"),
        ([*GENERATE], "the jobs in jobs.jsonl cannot be read"),
    ],
)
def test_options_that_do_not_fit_are_told(
    ray: None,
    unannotated: None,
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_without_ray_a_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(joining, "find_spec", lambda name: None if name == "ray" else INSTALLED(name))
    assert main(GENERATE) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == 'panokit: panokit on Ray needs ray, which is not installed: pip install "panokit[ray]"'


def test_a_rank_starts_no_actors(ray: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    ranks = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "a"}
    for name, value in ranks.items():
        monkeypatch.setenv(name, value)
    assert main(GENERATE) == 2
    assert "Ray starts the actors: run the command once, without torchrun or srun" in capsys.readouterr().err
