"""Joining a cluster of Ray, or starting one on this machine for as long as a command runs."""

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple, final

import psutil

from panokit.errors import SettingError, reason_of
from panokit.signals import asking
from panokit.wording import counted

_PATIENCE = 5.0
"""Seconds in which an address must answer."""
_ADVICE = "start one with `ray start --head`, or leave --address out, and panokit starts one on this machine"
_PROCESSES = ("gcs_server", "raylet")
"""The processes without which Ray waits, and then aborts the program."""
_STORE = 80 << 20
"""Bytes of memory for objects, nearly the least that Ray takes: pictures go through files, never through Ray."""
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
"""What a client of gRPC says first: the preface of HTTP/2, and a frame of settings without any."""
_SETTINGS = 4
"""The type of a frame of settings, with which each server of gRPC answers."""


@final
class Cluster(NamedTuple):
    """What a cluster lends.

    Attributes:
        kind: the devices, as Ray names them.
        devices: their number.
        own: the processes of Ray that this one has started.
    """

    kind: Literal["GPU", "CPU"]
    devices: int
    own: Sequence[psutil.Process] = ()

    @property
    def lives(self) -> bool:
        """Whether no process of it has ended that this one has started."""
        return all(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in self.own)


@contextmanager
def joined(
    address: str | None, devices: int | Literal["auto"], devices_per_picture: int, weights: Callable[[], int] = int
) -> Iterator[Cluster]:
    """Inside, this process is connected to a cluster, and standard output is closed to it.

    A cluster that was started for that ends with the context.

    Args:
        address: `auto`, `HOST:PORT` or `ray://HOST:PORT` of a cluster that runs; None starts one on this machine. If this
            program has joined a cluster before, that one is used, and kept.
        devices: number of devices that are needed; `"auto"` for all.
        devices_per_picture: number of devices that share a picture.
        weights: returns the bytes of the weights that each process is going to read, about.

    Raises:
        SettingError: Ray is not installed, there is no cluster, or it has too few devices.
    """
    require_cluster(address, devices, devices_per_picture)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    kept, own = ray.is_initialized(), list[psutil.Process]()
    asked: list[bool] = []
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        if not kept:
            with asking(lambda: asked.append(True)):  # Ray may swallow an interrupt, and puts a handler of its own in place
                if address is None:
                    cpus = devices if devices != "auto" else os.cpu_count()
                    local = {"num_cpus": cpus, "object_store_memory": _STORE, "include_dashboard": False}
                    ray.init(address="local", **local, **quiet)
                else:
                    ray.init(address=address, **quiet)
            if asked:
                raise KeyboardInterrupt("the same command goes on")
    except (Exception, SystemExit) as cause:  # Ray ends the process where it finds no cluster
        ray.shutdown()
        if address == "auto" and isinstance(cause, ConnectionError):
            raise SettingError(f"there is no cluster on this machine: {_ADVICE}") from cause
        if address is None:
            raise SettingError(f"Ray cannot be started on this machine: {reason_of(cause, 300)}") from cause
        raise SettingError(
            f"Ray cannot be used at {address}: {reason_of(cause, 300)}; if it asks for a token, set RAY_AUTH_MODE=token"
        ) from cause
    except BaseException:
        ray.shutdown()
        raise
    if kept:
        yield _lent(ray.cluster_resources(), devices, devices_per_picture, None)
        return
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):  # Ray prints there when an actor ends, and at its own end
        try:
            if address is None:
                own = [child for child in psutil.Process().children() if child.name() in _PROCESSES]
            yield _lent(ray.cluster_resources(), devices, devices_per_picture, weights if address is None else None)._replace(
                own=own
            )
        finally:
            ray.shutdown()


def require_cluster(address: str | None, devices: int | Literal["auto"], devices_per_picture: int) -> None:
    """Check what can be checked before hours of work, and before Ray is imported.

    Args:
        address: where the cluster is; see `joined`.
        devices: number of devices that are needed.
        devices_per_picture: number of devices that share a picture.

    Raises:
        SettingError: Ray is not installed, no cluster answers, or the devices cannot be shared out.
    """
    if not find_spec("ray"):
        raise SettingError('panokit on Ray needs ray, which is not installed: pip install "panokit[ray]"')
    if devices_per_picture < 1:
        raise SettingError(f"devices_per_picture is {devices_per_picture}: it must be 1 or more")
    if devices != "auto" and (devices < devices_per_picture or devices % devices_per_picture):
        better = max(devices_per_picture, devices - devices % devices_per_picture)
        raise SettingError(
            f"devices is {devices}, and devices_per_picture is {devices_per_picture}: set devices to {better}, or to another "
            f"multiple of {devices_per_picture}"
        )
    if address is not None:
        _require_answer(address)


def _lent(
    resources: dict[str, float], devices: int | Literal["auto"], devices_per_picture: int, weights: Callable[[], int] | None
) -> Cluster:
    """Choose the devices of a cluster: its GPUs if it has some.

    Args:
        resources: what the whole cluster has.
        devices: number of devices that are needed.
        devices_per_picture: number of devices that share a picture.
        weights: for a cluster on this machine alone; see `joined`.
    """
    kind: Literal["GPU", "CPU"] = "GPU" if resources.get("GPU", 0) >= 1 else "CPU"
    there = int(resources.get(kind, 0))
    needed = devices_per_picture if devices == "auto" else devices
    if needed > there:
        raise SettingError(
            f"{counted(needed, 'device')} are needed, and the cluster has {counted(there, kind)}: set devices to {there} at "
            "most, or add machines to it"
        )
    count = there - there % devices_per_picture if devices == "auto" else devices
    if weights:
        from panokit.runtime.capacity import Machine  # with all of torch

        Machine.this().require(count, weights(), on_cpu=kind == "CPU")
    return Cluster(kind, count)


def _require_answer(address: str) -> None:
    """Check that a server of gRPC answers at an address, as that of a cluster is. Ray itself would try for minutes."""
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS", "auto")
    if address == "auto":
        return  # Ray looks for its processes on this machine, which is quick
    host, _, port = address.removeprefix("ray://").partition("/")[0].rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise SettingError(f"address is {address!r:.80}: it must be auto, HOST:PORT or ray://HOST:PORT")
    if address.startswith("ray://") and not find_spec("grpc"):
        raise SettingError('an address with ray:// needs grpcio, which is not installed: pip install "panokit[ray]"')
    if os.environ.get("RAY_USE_TLS", "0") not in ("0", ""):
        return
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE) as end:
            end.settimeout(_PATIENCE)
            end.sendall(_HELLO)
            answer = end.recv(9)
    except OSError as cause:
        raise SettingError(f"there is no cluster at {address} ({cause.strerror or cause}): {_ADVICE}") from cause
    if answer[3:4] != bytes([_SETTINGS]):
        raise SettingError(f"what listens at {address} is no cluster of Ray: give the address that `ray start --head` printed")
