"""Callbacks: they watch a run at its start, after each step and at its end.

A callback is any object with some of the methods `on_run_start`, `on_step_end`, `on_inner_step_end` and `on_run_end`. A method
may take the argument `run`, or none. Callbacks are called on every rank.

`on_inner_step_end` is called while a guidance paints another canvas in a step of the run, as MSD does with a smaller one: after
each step of that canvas but the last. `run.inner` is the run of that canvas.
"""

import inspect
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
from PIL import Image
from torch import nn

from panokit import films
from panokit.extra import Extra
from panokit.files import write_picture
from panokit.output import check_preview
from panokit.panorama import to_image, to_rows
from panokit.png import Rows
from panokit.preview import preview
from panokit.run import Run

Hook = Literal["on_run_start", "on_step_end", "on_inner_step_end", "on_run_end"]


def call(callbacks: Iterable[object], hook: Hook, run: Run) -> None:
    """Call a method of all callbacks that have it.

    Args:
        callbacks: the callbacks, called in order.
        hook: the name of the method.
        run: passed to the methods that name it.
    """
    for callback in callbacks:
        method = getattr(callback, hook, None)
        if method is not None:
            method(run=run) if "run" in inspect.signature(method).parameters else method()


def picture(run: Run) -> Image.Image | None:
    """A preview of a run's canvas, as large as the panorama; of a film, of its middle. None before the first step."""
    if run.seen is None:
        return None
    x0 = run.seen.x0.float()
    middle = x0[:, x0.shape[1] // 2] if len(run.windows.window) == 3 else x0
    small = to_image(preview(run.codec, middle, run.windows))
    factor = run.codec.factor if run.codec else 1
    return small.resize((small.width * factor, small.height * factor), Image.Resampling.BICUBIC)


def film(run: Run) -> tuple[Rows, float] | None:
    """A preview of a run that makes a film: a frame for each latent frame, and how many there are a second.

    None before the first step, and where the run makes a picture.
    """
    if run.seen is None or len(run.windows.window) != 3:
        return None
    small = preview(run.codec, run.seen.x0.float(), run.windows)
    factor, time = (run.codec.factor, run.codec.time) if run.codec else (1, 1)
    frames = nn.functional.interpolate(small.movedim(1, 0), scale_factor=factor, mode="bilinear")
    return np.stack([to_rows(frame) for frame in frames]), films.fps_of(run.recipe) / time


@final
class Preview:
    """Writes a preview of the panorama to a file while it is made. Rank 0 alone writes. If it cannot, the run goes on.

    Args:
        path: the picture, written again each time. Its ending names the format. Of a film it is a film if its ending is that of
            one, or a sheet of frames.
        every: steps from one preview to the next, 1 or more.

    Raises:
        OutputError: the file cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], every: int = 1) -> None:
        self.path, self.every = Path(path), every
        check_preview(self.path)
        self._extra = Extra("the run goes on without a new preview")

    def on_step_end(self, run: Run) -> None:
        """Write the preview, on rank 0."""
        if run.runtime.global_rank == 0 and _due(run, self.every):
            with self._extra:
                if made := film(run):
                    films.write_preview(self.path, *made)
                elif image := picture(run):
                    write_picture(self.path, image)


@final
class Log:
    """Logs each step: its seconds, the peak memory in bytes, and the energy and gradient norm of each guidance.

    Loggers that take pictures, such as those of TensorBoard and Weights & Biases, also get a preview now and then. If a logger
    fails, the run goes on.

    Args:
        loggers: Lightning's loggers, or other objects with their method `log_metrics`.
        pictures: steps from one preview to the next; 0 for none.
    """

    def __init__(self, loggers: Sequence[Any], pictures: int = 10) -> None:
        self.loggers, self.pictures = tuple(loggers), pictures
        self._extras = [Extra(f"the run goes on without {type(logger).__name__}") for logger in self.loggers]
        self._before, self._previews = 0.0, Extra("the run goes on without previews in its loggers")

    def on_run_start(self) -> None:
        """Start the clock."""
        self._before = time.perf_counter()

    def on_step_end(self, run: Run) -> None:
        """Log the step, on rank 0."""
        now = time.perf_counter()
        scalars = {"seconds": now - self._before, "memory": float(run.runtime.peak_memory), **run.scalars}
        self._before = now
        if run.runtime.global_rank != 0:
            return
        step = run.level.step
        image = None
        if self.pictures and _due(run, self.pictures):
            with self._previews:
                image = picture(run)
        for logger, extra in zip(self.loggers, self._extras, strict=True):
            with extra:
                logger.log_metrics(scalars, step=step)
                if image is not None:
                    _show(logger, image, step)

    def on_run_end(self, run: Run) -> None:
        """Ask the loggers to write what they have buffered."""
        for logger, extra in zip(self.loggers, self._extras, strict=True):
            if run.runtime.global_rank == 0 and hasattr(logger, "save"):
                with extra:
                    logger.save()


def _due(run: Run, every: int) -> bool:
    return run.done or run.level.step % every == 0


def _show(logger: Any, image: Image.Image, step: int) -> None:
    """Log a picture, if the logger takes pictures."""
    if hasattr(logger, "log_image"):
        logger.log_image("preview", [image], step=step)
    elif hasattr(getattr(logger, "experiment", None), "add_image"):
        import numpy as np

        logger.experiment.add_image("preview", np.asarray(image), step, dataformats="HWC")
