"""Set the timesteps of a scheduler of diffusers, so that no step stands still."""

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from panokit.backbones.diffusers.kinds import Kind
from panokit.backbones.diffusers.levels import coordinates
from panokit.errors import SettingError

Sigmas = Callable[[int], Sequence[float]]
"""The noise of a flow at each step, for a number of steps."""


def set_steps(kind: Kind, scheduler: Any, steps: int, flow: Sigmas | None) -> None:
    """Set the timesteps for a number of steps, each of which moves the canvas.

    Some tables end at the same noise twice: those of DEIS and SA with the sigmas of Karras et al., and those of DDIM and PNDM
    that go down to timestep 0. Such a table is made for one step more, and its last call is dropped.

    Args:
        kind: how the class differs from others.
        scheduler: the object of diffusers.
        steps: number of steps.
        flow: the noise levels of a flow; None for others.

    Raises:
        SettingError: there are not so many noise levels.
    """
    _set(scheduler, steps, flow)
    *_, last, end = coordinates(kind, scheduler, flow is not None)[1]
    if not math.isclose(last, end, rel_tol=1e-4):
        return
    if steps == scheduler.config.num_train_timesteps:
        raise SettingError("its last step would not move the canvas")
    _set(scheduler, steps + 1, flow)
    *sigmas, end = coordinates(kind, scheduler, flow is not None)[1]
    calls = sum(not math.isclose(sigma, end, rel_tol=1e-4) for sigma in sigmas)
    scheduler.timesteps, scheduler.num_inference_steps = scheduler.timesteps[:calls], steps
    if hasattr(scheduler, "sigmas"):
        scheduler.sigmas = scheduler.sigmas[: calls + 1]


def _set(scheduler: Any, steps: int, flow: Sigmas | None) -> None:
    """Let diffusers set the timesteps; for a flow, of given noise levels.

    Some classes take noise levels. The others would make levels of their own, each in its own way, so theirs are replaced.
    These classes read nothing but `sigmas` in their steps. A second-order method has two calls at each level but the first.
    """
    if flow is None:
        scheduler.set_timesteps(steps, device="cpu")
        if scheduler.timesteps[-1] < 0:  # some quotients of trailing timesteps are rounded to one timestep too many
            raise SettingError(f"its last timestep would be {scheduler.timesteps[-1]:.0f}")
        return
    sigmas = flow(steps)
    if "sigmas" in inspect.signature(scheduler.set_timesteps).parameters:
        scheduler.set_timesteps(sigmas=np.array(sigmas), device="cpu")
        return
    scheduler.set_timesteps(steps, device="cpu")
    levels = torch.tensor(sigmas, dtype=torch.float32).clamp(max=1 - 1e-6)  # as in UniPC, so that log alpha is finite
    calls = torch.cat([levels[:1], levels[1:].repeat_interleave(scheduler.order)])
    scheduler.sigmas = torch.cat([calls, scheduler.sigmas[-1:]])
    scheduler.timesteps = calls * scheduler.config.num_train_timesteps
