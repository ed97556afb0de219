"""Watching a run: what is called at its start, after each step and at its end.

A callback is any object with some of the methods `on_run_start`, `on_step_end`, `on_run_end`; each is given only the arguments
that it names, of `run`. They are called on every rank.
"""

import inspect
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, final

from PIL import Image

from panokit.output import check_output, written_aside
from panokit.panorama import to_image
from panokit.preview import preview
from panokit.run import Run

Hook = Literal["on_run_start", "on_step_end", "on_run_end"]


def call(callbacks: Iterable[object], hook: Hook, run: Run) -> None:
    """Call that method of all that have it."""
    for callback in callbacks:
        method = getattr(callback, hook, None)
        if method is not None:
            method(run=run) if "run" in inspect.signature(method).parameters else method()


def picture(run: Run) -> Image.Image | None:
    """What the canvas of a run will look like, in as many pixels as the panorama has; None before the first step."""
    if run.seen is None:
        return None
    small = to_image(preview(run.codec, run.seen.x0.float()))
    factor = run.codec.factor if run.codec else 1
    return small.resize((small.width * factor, small.height * factor), Image.Resampling.BICUBIC)


@final
class Preview:
    """Writes what the panorama will look like to a file while it is made; of many ranks' panoramas, the first rank's.

    Args:
        path: the picture to write again and again; its ending names the format.
        every: after how many steps.

    Raises:
        OutputError: it cannot be written there.
    """

    def __init__(self, path: str | os.PathLike[str], every: int = 1) -> None:
        self.path, self.every = check_output(path), every

    def on_step_end(self, run: Run) -> None:
        """Write the picture, on rank 0."""
        if run.runtime.global_rank == 0 and _due(run, self.every) and (image := picture(run)):
            with written_aside(Path(self.path)) as aside:
                image.save(aside)


@final
class Log:
    """Tells Lightning's loggers, after each step: seconds, peak memory, and each guidance's energy and gradient norm.

    Loggers that take pictures, TensorBoard's and Weights & Biases's, are given a preview now and then.

    Args:
        loggers: Lightning's, or whatever has their `log_metrics`.
        pictures: after how many steps a preview comes; 0 for none.
    """

    def __init__(self, loggers: Sequence[Any], pictures: int = 10) -> None:
        self.loggers, self.pictures = tuple(loggers), pictures
        self._before = 0.0

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
        image = picture(run) if self.pictures and _due(run, self.pictures) else None
        for logger in self.loggers:
            logger.log_metrics(scalars, step=step)
            if image is not None:
                _show(logger, image, step)

    def on_run_end(self, run: Run) -> None:
        """Have what loggers keep written down."""
        for logger in self.loggers:
            if run.runtime.global_rank == 0 and hasattr(logger, "save"):
                logger.save()


def _due(run: Run, every: int) -> bool:
    return run.done or run.level.step % every == 0


def _show(logger: Any, image: Image.Image, step: int) -> None:
    """Give a picture to a logger that takes any."""
    if hasattr(logger, "log_image"):
        logger.log_image("preview", [image], step=step)
    elif hasattr(getattr(logger, "experiment", None), "add_image"):
        import numpy as np

        logger.experiment.add_image("preview", np.asarray(image), step, dataformats="HWC")
