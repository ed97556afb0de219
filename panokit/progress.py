"""A progress bar over the steps of a run."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from panokit.run import Run


@contextmanager
def steps_bar(run: Run, *, shown: bool) -> Iterator[Callable[[], None]]:
    """Show a bar on standard error, in a terminal or a notebook and nowhere else.

    The bar shows steps, windows, time left and peak memory.

    Args:
        run: the run that it follows.
        shown: False to show nothing.

    Yields:
        A function to call after each step, which brings the bar up to date.
    """
    if not (shown and ("ipykernel" in sys.modules or sys.stderr.isatty())):
        yield lambda: None
        return
    from tqdm.auto import tqdm

    with tqdm(total=run.level.steps, desc="denoising") as bar:

        def advance() -> None:
            bar.set_postfix_str(_windows_and_memory(run), refresh=False)
            bar.update(run.level.step - bar.n)

        yield advance


def _windows_and_memory(run: Run) -> str:
    windows, memory = run.level.step * len(run.windows), run.runtime.peak_memory / (1 << 30)
    return f"{windows}/{run.level.steps * len(run.windows)} windows, {memory:.1f} GiB"
