"""Starting processes: Fabric as panokit needs it, under a launcher or without one."""

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from panokit.errors import SettingError
from panokit.settings import Precision

if TYPE_CHECKING:
    from lightning.fabric import Fabric

NOTEBOOK = (
    "{} devices need a process each, and those cannot be started from a notebook, nor by spawning or forking: write a script, "
    "or run `panokit generate --devices N`, `torchrun` or `fabric run` in a terminal"
)


def fabric_for(
    accelerator: str, devices: int | str, num_nodes: int, strategy: str, precision: Precision, timeout: float
) -> "Fabric":
    """Fabric, with processes of a launcher where there is one, in a group of ours unless `fabric run` has opened one."""
    from lightning.fabric import Fabric

    launched = _launched()
    if launched and (devices, num_nodes) == (1, 1):
        devices, num_nodes = launched
    options: dict[str, Any] = {"accelerator": accelerator, "num_nodes": num_nodes, "precision": precision}
    try:
        if devices == "auto":
            devices = Fabric(devices=devices, **options).world_size // num_nodes
        if (devices, num_nodes) == (1, 1) or strategy not in ("auto", "ddp") or os.environ.get("LT_CLI_USED", "0") != "0":
            return Fabric(devices=devices, strategy=strategy, **options)
        if hasattr(sys, "ps1") and not launched:
            raise SettingError(NOTEBOOK.format(devices))
        from panokit.strategy import WindowStrategy

        return Fabric(devices=devices, strategy=WindowStrategy(timedelta(seconds=timeout)), **options)
    except SettingError:
        raise
    except (RuntimeError, ValueError, TypeError) as cause:  # what Fabric says of devices, launchers and accelerators
        raise SettingError(
            f"{devices} devices ({accelerator}) on {num_nodes} machines cannot be used: {' '.join(str(cause).split())}"
        ) from cause


def _launched() -> tuple[int, int] | None:
    """How many processes a launcher has started on each machine, and on how many machines, if there is one."""
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
    from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

    if TorchElasticEnvironment.detect():
        here = int(os.environ["LOCAL_WORLD_SIZE"])
        return here, int(os.environ["WORLD_SIZE"]) // here
    if SLURMEnvironment.detect():
        nodes = int(os.environ.get("SLURM_NNODES", "1"))
        return int(os.environ["SLURM_NTASKS"]) // nodes, nodes
    return None


def end(children: Sequence[Any]) -> None:
    """Let the processes that this one has started end, and see to it that they do."""
    for child in children:
        with suppress(Exception):  # it takes too long, or has ended
            child.wait(timeout=2)
        child.kill()
