"""The queue: one picture at a time, places, and stops that reach their owner's picture alone."""

from __future__ import annotations

from threading import Event
from typing import TYPE_CHECKING

import pytest

from panokit.errors import SettingError
from panokit.jobs import Worker
from panokit.studio.runs import LONGEST, Runs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from panokit import Model
    from panokit.sampler import Plan
    from panokit.studio.runs import State, Ticket


@pytest.fixture
def runs() -> Iterator[Runs]:
    runs = Runs()
    yield runs
    runs.close()
    assert not runs._thread.is_alive()


@pytest.fixture(scope="module")
def plan(tiny: Model) -> Callable[..., Callable[[], Plan]]:
    """A function that returns a function that plans a picture, after an event if there is one."""
    worker = Worker({"accelerator": "cpu", "model": tiny}, trusted=False)

    def planner(steps: int = 3, after: Event | None = None) -> Callable[[], Plan]:
        def planned() -> Plan:
            if after:
                after.wait(30)
            return worker.plan({"prompt": "a lake", "height": 16, "width": 32, "steps": steps})

        return planned

    return planner


def end(runs: Runs, ticket: Ticket) -> State:
    return [*runs.watch(ticket)][-1]


def test_a_picture_is_shown_step_by_step(runs: Runs, plan: Callable[..., Callable[[], Plan]]) -> None:
    states = [*runs.watch(runs.submit("ann", plan(steps=3)))]
    assert states[-1].ended
    assert states[-1].panorama
    assert states[-1].panorama.image.size == (32, 16)
    assert states[-1].words.startswith("32 x 16 pixels in ")
    assert states[-1].preview is not None
    assert [state.step for state in states] == sorted(state.step for state in states)


def test_others_wait_and_see_their_place(runs: Runs, plan: Callable[..., Callable[[], Plan]]) -> None:
    gate = Event()
    first = runs.submit("ann", plan(after=gate))
    second, third = runs.submit("ben", plan()), runs.submit("cid", plan())
    while next(runs.watch(first)).words != "the model is being prepared":
        pass
    assert next(runs.watch(second)).words == "waiting: 1 picture is before yours"
    assert next(runs.watch(third)).words == "waiting: 2 pictures are before yours"
    gate.set()
    assert all(end(runs, ticket).panorama for ticket in (first, second, third))


def test_a_stop_ends_the_owners_run_after_a_step_and_leaves_the_next_one_whole(
    runs: Runs, plan: Callable[..., Callable[[], Plan]]
) -> None:
    first = runs.submit("ann", plan(steps=400))
    second = runs.submit("ben", plan(steps=2))
    for state in runs.watch(first):
        if state.step == 2:
            runs.stop("ann")
    assert state.panorama is None
    assert not state.failed
    assert state.words.startswith("stopped after step ")
    assert end(runs, second).panorama
    assert end(runs, runs.submit("ann", plan())).panorama


def test_a_stop_of_somebody_else_takes_their_own_picture_out_of_the_queue(
    runs: Runs, plan: Callable[..., Callable[[], Plan]]
) -> None:
    gate = Event()
    first, second = runs.submit("ann", plan(after=gate)), runs.submit("ben", plan())
    runs.stop("ben")
    runs.stop("cid")  # who has none
    gate.set()
    assert end(runs, second).words == "taken out of the queue"
    assert end(runs, first).panorama


def test_a_stop_before_the_first_step_counts(runs: Runs, plan: Callable[..., Callable[[], Plan]]) -> None:
    gate = Event()
    ticket = runs.submit("ann", plan(steps=400, after=gate))
    while next(runs.watch(ticket)).words != "the model is being prepared":
        pass
    runs.stop("ann")
    gate.set()
    assert end(runs, ticket).words == "stopped after step 1 of 400"


def test_nobody_has_two_pictures_in_the_queue_and_the_queue_has_an_end(
    runs: Runs, plan: Callable[..., Callable[[], Plan]]
) -> None:
    gate = Event()
    tickets = [runs.submit("ann", plan(after=gate))]
    while next(runs.watch(tickets[0])).words != "the model is being prepared":
        pass
    with pytest.raises(SettingError, match="your last picture is still being made"):
        runs.submit("ann", plan())
    tickets += [runs.submit(f"user {k}", plan(steps=1)) for k in range(LONGEST)]
    with pytest.raises(SettingError, match=f"{LONGEST} pictures wait already"):
        runs.submit("ben", plan())
    for k in range(LONGEST):
        runs.stop(f"user {k}")
    gate.set()
    assert end(runs, tickets[0]).panorama


@pytest.mark.parametrize("error", [SettingError("the box\nis empty"), RuntimeError("a\nb"), SystemExit(3)])
def test_an_error_is_one_line_and_the_next_picture_is_made(
    runs: Runs, plan: Callable[..., Callable[[], Plan]], error: BaseException
) -> None:
    def broken() -> Plan:
        raise error

    state = end(runs, runs.submit("ann", broken))
    assert state.failed
    assert "\n" not in state.words
    assert state.words in ("the box is empty", "RuntimeError: a b", "a plugin raised SystemExit(3)")
    assert end(runs, runs.submit("ann", plan())).panorama


def test_the_end_stops_what_runs_and_what_waits(plan: Callable[..., Callable[[], Plan]]) -> None:
    runs = Runs()
    first, second = runs.submit("ann", plan(steps=10_000)), runs.submit("ben", plan())
    runs.close()
    assert end(runs, first).panorama is None
    assert end(runs, second).words == "taken out of the queue"
    with pytest.raises(SettingError, match="the studio is ending"):
        runs.submit("ann", plan())
