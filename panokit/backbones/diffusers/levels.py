"""The noise levels of a scheduler of diffusers, and the times that the network is told."""

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch

from panokit.backbones.diffusers.kinds import Kind
from panokit.errors import SettingError
from panokit.scheduler import Level


def levels_of(kind: Kind, scheduler: Any, flow: bool, exact: bool) -> tuple[Level, ...]:
    """A level for each model call, then the terminal one.

    A call is an inner stage if it is the second of two in a second-order method, or if the next call is at the same noise
    level. PNDM's first step calls the model again at the level that it reached, and then repeats the step with the mean.
    """
    alphas, sigmas = coordinates(kind, scheduler, flow)
    trained = _times(scheduler, alphas, sigmas, flow)
    times = trained if exact else scheduler.timesteps.tolist()
    calls = len(times)
    main = [i % scheduler.order == 0 and (i + 1 == calls or sigmas[i + 1] < sigmas[i]) for i in range(calls)]
    number = list(accumulate(map(int, main)))
    steps = number[-1]
    down = [sigma for sigma, counts in zip(sigmas, main, strict=False) if counts]
    if (
        steps != scheduler.num_inference_steps
        or any(above <= below for above, below in pairwise(down))
        or not all(0 <= value <= 1 for value in alphas + sigmas)
        or not sigmas[0] > sigmas[-1] <= down[-1]
    ):
        raise SettingError("its noise levels do not go down from step to step")
    if not begins_high(trained, scheduler):
        raise SettingError(
            f"it begins at timestep {trained[0]:.0f}, where {alphas[0]:.0%} of the picture should be there, with noise alone"
        )
    levels = [Level(i, times[i], alphas[i], sigmas[i], number[i] - 1, steps, main[i]) for i in range(calls)]
    return (*levels, Level(calls, 0, alphas[-1], sigmas[-1], steps, steps))


def begins_high(times: Sequence[int | float], scheduler: Any) -> bool:
    """Whether a first timestep is near the top of training, so that noise alone can stand for a canvas there.

    A canvas of noise alone lacks the signal of its level, which makes pictures grey. Stable Diffusion's own tables leave out a
    stride at the top, and up to half a stride by rounding. So a stride and a half may be missing, or an eighth of training,
    where 15 % of a picture should be in the canvas. A single step has no stride.

    Args:
        times: the times of the model calls, in the units of the network.
        scheduler: the object of diffusers.
    """
    trained, order = scheduler.config.num_train_timesteps, scheduler.order
    stride = times[0] - times[order] if len(times) > order else 0
    return trained - 1 - times[0] <= max(trained / 8, 1.5 * stride)


def strides(scheduler: Any) -> list[int]:
    """How many timesteps each call goes down, for a class that knows no table: DDIM and PNDM.

    A call goes to the timestep of the next one; PNDM's second call repeats the first one's step. The last call goes down as far
    as diffusers goes, and at least to timestep 0.
    """
    times = scheduler.timesteps.tolist()
    down = [above - below for above, below in pairwise(times)]
    down = [stride or down[k - 1] for k, stride in enumerate(down)]
    return [*down, max(scheduler.config.num_train_timesteps // scheduler.num_inference_steps, times[-1])]


def coordinates(kind: Kind, scheduler: Any, flow: bool) -> tuple[list[float], list[float]]:
    """Alpha and sigma at each model call, and after the last step."""
    times = scheduler.timesteps
    if hasattr(scheduler, "sigmas"):
        noise = scheduler.sigmas[: len(times) + 1].tolist()
        if hasattr(scheduler, "sigmas_interpol"):
            noise[1:-1:2] = scheduler.sigmas_interpol[kind.between :: 2].tolist()[: len(times) // 2]
        alphas = [1 - sigma if flow else 1 / math.sqrt(1 + sigma**2) for sigma in noise]
        return alphas, noise if flow else [alpha * sigma for alpha, sigma in zip(alphas, noise, strict=True)]
    cumprod = scheduler.alphas_cumprod
    if times[0] >= len(cumprod):
        raise SettingError(f"its first timestep would be {times[0]}, and the model knows 0 to {len(cumprod) - 1}")
    match kind.end:
        case "stride":
            below = times[-1] - strides(scheduler)[-1]
            end = cumprod[below] if below >= 0 else scheduler.final_alpha_cumprod
        case "clean":
            end = torch.ones(())
        case "first":
            end = cumprod[0]
    squares = torch.cat([cumprod[times], end[None]])
    # In float32, as in diffusers' own steps: so both compute the same x0, to the last bit of a float64 canvas.
    return squares.sqrt().tolist(), (1 - squares).sqrt().tolist()


def _times(scheduler: Any, alphas: Sequence[float], sigmas: Sequence[float], flow: bool) -> list[int | float]:
    """The time in training with the noise of each model call, in the units of the network.

    Where diffusers reads the noise off at its timesteps, these are the times. Where it chooses the noise first, it rounds the
    times in some classes. Its own numbers stand if none is a tenth of a timestep off: a linear interpolation between two
    timesteps, which it uses from time to noise, and one in the logarithm, which it uses back, differ by less.
    """
    rounded: list[int | float] = scheduler.timesteps.tolist()
    if not hasattr(scheduler, "sigmas"):
        return rounded  # alpha and sigma are read off at these
    calls = list(zip(alphas, sigmas, strict=True))[: len(rounded)]
    if flow:
        times = [sigma * scheduler.config.num_train_timesteps for _, sigma in calls]
    else:
        kept = scheduler.alphas_cumprod.double().numpy()
        noise = [math.log(sigma / alpha) for alpha, sigma in calls]
        times = np.interp(noise, np.log((1 - kept) / kept) / 2, np.arange(len(kept))).tolist()
    close = all(abs(time - given) < 0.1 for time, given in zip(times, rounded, strict=True))
    return rounded if close else times
