"""A progress bar over a run's steps."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from panokit.run import Run


@contextmanager
def steps_bar(run: Run, *, shown: bool) -> Iterator[Callable[[], None]]:
    """A bar of a run's steps on standard error, brought up to date by calling what it gives.

    It tells steps, windows, time left and peak memory: by rich in a terminal, by tqdm in a notebook, and nowhere else.
    """
    if shown and "ipykernel" in sys.modules:
        yield from _notebook(run)
    elif shown and sys.stderr.isatty():
        yield from _terminal(run)
    else:
        yield lambda: None


def _terminal(run: Run) -> Iterator[Callable[[], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    told = TextColumn("steps, {task.fields[told]},")
    columns = (TextColumn("denoising"), BarColumn(), MofNCompleteColumn(), told, TimeRemainingColumn(), TextColumn("left"))
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("denoising", total=run.level.steps, told=_told(run))
        yield lambda: bar.update(task, completed=run.level.step, told=_told(run))


def _notebook(run: Run) -> Iterator[Callable[[], None]]:
    from tqdm.auto import tqdm

    with tqdm(total=run.level.steps, desc="denoising") as bar:

        def advance() -> None:
            bar.set_postfix_str(_told(run), refresh=False)
            bar.update(run.level.step - bar.n)

        yield advance


def _told(run: Run) -> str:
    """Windows and memory."""
    windows, memory = run.level.step * len(run.grid), run.runtime.peak_memory / (1 << 30)
    return f"{windows}/{run.level.steps * len(run.grid)} windows, {memory:.1f} GiB"
