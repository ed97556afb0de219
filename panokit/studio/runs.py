"""Runs: one picture is made at a time, and the others wait in a queue. Each has an owner, who alone can stop it."""

import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from threading import Condition, Thread
from typing import NamedTuple, final

from PIL.Image import Image

from panokit.callbacks import picture
from panokit.errors import FallbackWarning, PromptWarning, SettingError, ShardingWarning, in_words
from panokit.panorama import Panorama
from panokit.run import Run
from panokit.sampler import Plan
from panokit.wording import counted

LONGEST = 16
"""The most pictures that wait."""
_SIDE = 768
"""The most pixels along a side of a preview."""
_LETTERS = 600
"""The most letters of a line about an error."""


class State(NamedTuple):
    """What has become of a picture that somebody asked for.

    Attributes:
        words: one line for people.
        preview: a small picture of the canvas; None before the first step.
        step: how many steps are done.
        steps: how many there are; 0 before they are known.
        ended: whether nothing more will happen.
        failed: whether it ended with an error, which `words` names.
        panorama: the picture, once it is made.
        warnings: what its maker should know about it.
    """

    words: str
    preview: Image | None = None
    step: int = 0
    steps: int = 0
    ended: bool = False
    failed: bool = False
    panorama: Panorama | None = None
    warnings: tuple[str, ...] = ()


@final
class Ticket:
    """A place in the queue.

    Attributes:
        owner: who asked for the picture.
        plan: plans it; called when its turn has come.
        state: what has become of it.
        stopped: whether its owner stopped it.
    """

    def __init__(self, owner: str, plan: Callable[[], Plan]) -> None:
        self.owner, self.plan = owner, plan
        self.state = State("waiting")
        self.stopped = False


@final
class Runs:
    """Makes the pictures of a queue one after another, in a thread of its own."""

    def __init__(self) -> None:
        self._waiting: deque[Ticket] = deque()
        self._current: Ticket | None = None
        self._run: Run | None = None
        self._closed = False
        self._changed = Condition()
        self._thread = Thread(target=self._work, name="panokit studio", daemon=True)
        self._thread.start()

    def submit(self, owner: str, plan: Callable[[], Plan]) -> Ticket:
        """Ask for a picture.

        Args:
            owner: who asks. Nobody has two pictures in the queue.
            plan: plans the picture, in the thread that makes it.

        Raises:
            SettingError: the owner has another picture in the queue, the queue is full, or the studio is ending.
        """
        with self._changed:
            if any(ticket.owner == owner for ticket in self._tickets()):
                raise SettingError("your last picture is still being made: wait for it, or stop it")
            if self._closed:
                raise SettingError("the studio is ending, and makes no more pictures: start it again")
            if len(self._waiting) >= LONGEST:
                raise SettingError(f"{counted(LONGEST, 'picture')} wait already: try again when some of them are made")
            ticket = Ticket(owner, plan)
            self._waiting.append(ticket)
            self._changed.notify_all()
        return ticket

    def stop(self, owner: str) -> None:
        """Stop the picture of one owner. If it is being made, its current step is finished; if it waits, it leaves the queue.

        Args:
            owner: who asked for the picture. Those of others go on.
        """
        with self._changed:
            for ticket in self._tickets():
                if ticket.owner != owner:
                    continue
                ticket.stopped = True
                if ticket is not self._current:
                    self._waiting.remove(ticket)
                    ticket.state = State("taken out of the queue", ended=True)
                elif self._run:
                    self._run.stop()
            self._changed.notify_all()

    def watch(self, ticket: Ticket) -> Iterator[State]:
        """The states of a picture, as they change, until it has ended.

        Args:
            ticket: what `submit` returned.
        """
        last: State | None = None

        def is_new() -> bool:
            return self._state(ticket) != last

        while last is None or not last.ended:
            with self._changed:
                self._changed.wait_for(is_new)
                last = self._state(ticket)
            yield last

    def close(self, patience: float = 10.0) -> None:
        """Stop all pictures, and wait for the thread.

        Args:
            patience: the most seconds to wait for the current step.
        """
        with self._changed:
            self._closed = True
            for owner in {ticket.owner for ticket in self._tickets()}:
                self.stop(owner)
            self._changed.notify_all()
        self._thread.join(patience)

    def _tickets(self) -> list[Ticket]:
        return [*([self._current] if self._current else []), *self._waiting]

    def _state(self, ticket: Ticket) -> State:
        """The state of a picture; if it waits, with its place."""
        if ticket in self._waiting:
            before = self._tickets().index(ticket)
            words = f"waiting: {counted(before, 'picture')} {'is' if before == 1 else 'are'} before yours"
            return State(words if before else "waiting")
        return ticket.state

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return
                self._current = ticket = self._waiting.popleft()
                ticket.state = State("the model is being prepared")
                self._changed.notify_all()
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                end = self._make(ticket)
            messages = tuple(
                str(w.message) for w in caught if issubclass(w.category, PromptWarning | FallbackWarning | ShardingWarning)
            )
            with self._changed:
                ticket.state = end._replace(warnings=tuple(dict.fromkeys(messages)))
                self._current = self._run = None
                self._changed.notify_all()

    def _make(self, ticket: Ticket) -> State:
        begun = time.monotonic()
        try:
            panorama = ticket.plan().make(callbacks=[_Watch(self, ticket)], progress=False)
        except KeyboardInterrupt as interrupt:  # a run that is stopped ends so, and nobody else raises it in this thread
            return State(str(interrupt) or "stopped", ticket.state.preview, ended=True)
        except (Exception, SystemExit) as error:  # plugins raise errors of any type
            return State(line_of(error), ended=True, failed=True)
        width, height = panorama.image.size
        words = f"{width} x {height} pixels in {time.monotonic() - begun:.1f} s, seed {panorama.recipe['seed']}"
        steps = ticket.state.steps
        return State(words, ticket.state.preview, steps, steps, ended=True, panorama=panorama)

    def _show(self, ticket: Ticket, run: Run) -> None:
        """Note what a run has come to."""
        image = picture(run)
        if image:
            image.thumbnail((_SIDE, _SIDE))
        step, steps = run.level.step, run.level.steps
        words = "the picture is being finished" if run.done else f"step {step} of {steps}" if step else f"{steps} steps to go"
        with self._changed:
            self._run = run
            if ticket.stopped:
                run.stop()
                words = f"{words}: stopping"
            ticket.state = State(words, image, step, steps)
            self._changed.notify_all()


def line_of(error: BaseException) -> str:
    """What went wrong, in one line.

    Args:
        error: the error, of panokit or of anybody.
    """
    line = " ".join((in_words(error) if isinstance(error, Exception) else f"a plugin raised {error!r}").split())
    return line if len(line) <= _LETTERS else f"{line[: _LETTERS // 2]} ... {line[-_LETTERS // 2 :]}"


@final
class _Watch:
    """The callback that shows a run to its owner."""

    def __init__(self, runs: Runs, ticket: Ticket) -> None:
        self._runs, self._ticket = runs, ticket

    def on_run_start(self, run: Run) -> None:
        self._runs._show(self._ticket, run)

    def on_step_end(self, run: Run) -> None:
        self._runs._show(self._ticket, run)
