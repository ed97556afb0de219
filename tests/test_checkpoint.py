"""Checkpoints: what goes in comes out, another panorama is refused, and a damaged one falls back to the one before."""

import errno
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from panokit import DiffusersScheduler, Guidance, Model, Run, Runtime, Sampler, SettingError, checkpoint
from panokit.backbones.diffusers.model import UNetDenoiser
from panokit.checkpoint import Checkpoint, read
from panokit.errors import FallbackWarning, OutputError
from panokit.testing.toys import Pull, ToyScheduler, toy_run
from panokit_demofusion import DemoFusion
from panokit_extrapolation import Extrapolation
from panokit_hiflow import HiFlow
from panokit_msd import HeadStart, MSDGuidance

SIZE = {"height": 16, "width": 32, "steps": 4}


def sampler(tiny: Model, *callbacks: object) -> Sampler:
    runtime = Runtime(accelerator="cpu")
    return Sampler(tiny, scheduler=DiffusersScheduler("euler_a"), runtime=runtime, callbacks=callbacks)


def interrupted(tiny: Model, path: Path, after: int = 3, every: int = 1) -> None:
    for run in sampler(tiny, Checkpoint(path, every)).stream("a lake", **SIZE):
        if run.level.step == after:
            break


def test_a_resumed_run_makes_the_steps_that_are_left_and_the_same_picture(tiny: Model, tmp_path: Path) -> None:
    interrupted(tiny, tmp_path / "a")
    kept = Checkpoint(tmp_path / "a", resume=tmp_path / "a")
    steps = [(run.level.step, run.canvas) for run in sampler(tiny, kept).stream("a lake", **SIZE)]
    whole = sampler(tiny)("a lake", **SIZE)
    assert [step for step, _ in steps] == [4]
    assert torch.equal(steps[-1][1], whole.latents)
    kept.clear()
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_that_is_not_there_is_told(tiny: Model, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"there is no checkpoint .*: give a checkpoint of this panorama, or start without"):
        next(sampler(tiny, Checkpoint(tmp_path / "a", resume=tmp_path / "a")).stream("a lake", **SIZE))


@pytest.mark.parametrize(("changed", "message"), [({"steps": 5}, "steps is 5 and 4"), ({"seed": 3}, "seed is 3 and 0")])
def test_a_checkpoint_of_another_panorama_is_refused_with_the_difference(
    tiny: Model, tmp_path: Path, changed: dict[str, int], message: str
) -> None:
    interrupted(tiny, tmp_path / "a")
    with pytest.raises(SettingError, match=f"is of another panorama: .*{message}: give a checkpoint of this panorama"):
        next(sampler(tiny, Checkpoint(tmp_path / "a", resume=tmp_path / "a")).stream("a lake", **{**SIZE, **changed}))


@pytest.mark.parametrize("length", [0, 4, 100, -10])
def test_a_truncated_checkpoint_falls_back_to_the_one_before(tiny: Model, tmp_path: Path, length: int) -> None:
    interrupted(tiny, tmp_path / "a")
    whole = (tmp_path / "a").read_bytes()
    (tmp_path / "a").write_bytes(whole[:length])
    runs = sampler(tiny, Checkpoint(tmp_path / "a", resume=tmp_path / "a")).stream("a lake", **SIZE)
    with pytest.warns(FallbackWarning, match="is damaged, or is no checkpoint .*; the one before it is used"):
        assert next(runs).level.step == 3
    (tmp_path / "a.before").write_bytes(b"")
    with pytest.raises(SettingError, match=r"is damaged, or is no checkpoint .*: give a checkpoint"):
        next(sampler(tiny, Checkpoint(tmp_path / "a", resume=tmp_path / "a")).stream("a lake", **SIZE))


def test_one_comes_once_a_minute_unless_told_otherwise(tiny: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now)
    for run in sampler(tiny, Checkpoint(tmp_path / "a")).stream("a lake", **SIZE):
        assert (tmp_path / "a").exists() == (run.level.step >= 3), run.level.step
        now += 30.0


def test_a_run_that_is_asked_to_stop_leaves_one(tiny: Model, tmp_path: Path) -> None:
    made = sampler(tiny, Checkpoint(tmp_path / "a"))
    runs = made.stream("a lake", **SIZE)
    next(runs).stop()
    next(runs)  # the step after which it hears of it
    with pytest.raises(KeyboardInterrupt, match="stopped after step 2 of 4"):
        next(runs)
    assert read(tmp_path / "a")[1]["level"] == 2


def test_a_place_that_cannot_be_written_to_is_told(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write"):
        Checkpoint(tmp_path / "nowhere" / "a").write(toy_run())


def test_a_checkpoint_comes_after_some_steps() -> None:
    with pytest.raises(SettingError, match="every is -1: it must be a number of steps, 0 for never"):
        Checkpoint("a", -1)


class Stops:
    """Asks the run to end after its first step."""

    def on_run_start(self, run: Run) -> None:
        run.stop()


def test_one_that_is_never_written_is_for_going_on_alone(tiny: Model, tmp_path: Path) -> None:
    interrupted(tiny, tmp_path / "a")
    made = sampler(tiny, Checkpoint(tmp_path / "b", 0, resume=tmp_path / "a"), Stops())
    runs = made.stream("a lake", **SIZE)
    assert next(runs).level.step == 4
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("what", ["another", "damaged", "nothing"])
def test_a_program_that_starts_itself_again_begins_afresh_where_it_cannot_go_on(tiny: Model, tmp_path: Path, what: str) -> None:
    if what == "another":
        interrupted(tiny, tmp_path / "a", after=2)
    elif what == "damaged":
        (tmp_path / "a").write_bytes(b"half")
    runs = sampler(tiny, Checkpoint(tmp_path / "a", 1, again=True)).stream("a city", **SIZE)
    if what == "nothing":
        assert next(runs).level.step == 1
        return
    with pytest.warns(FallbackWarning, match="is of another panorama|is damaged, or is no checkpoint.*it is not used"):
        assert next(runs).level.step == 1


def test_it_goes_on_from_its_own_and_not_from_where_it_was_first_taken_up(tiny: Model, tmp_path: Path) -> None:
    interrupted(tiny, tmp_path / "first", after=1)
    interrupted(tiny, tmp_path / "own", after=3)
    kept = Checkpoint(tmp_path / "own", 1, resume=tmp_path / "first", again=True)
    assert next(sampler(tiny, kept).stream("a lake", **SIZE)).level.step == 4
    kept = Checkpoint(tmp_path / "other", 1, resume=tmp_path / "first", again=True)
    assert next(sampler(tiny, kept).stream("a lake", **SIZE)).level.step == 2


def test_a_damaged_one_does_not_take_the_place_of_the_one_before(tiny: Model, tmp_path: Path) -> None:
    interrupted(tiny, tmp_path / "a", after=2)
    (tmp_path / "a").write_bytes(b"half")
    before = (tmp_path / "a.before").read_bytes()
    with pytest.warns(FallbackWarning):
        next(sampler(tiny, Checkpoint(tmp_path / "a", 1, resume=tmp_path / "a")).stream("a lake", **SIZE))
    assert (tmp_path / "a.before").read_bytes() == before
    assert read(tmp_path / "a")[1]["level"] == 2


def test_a_memory_that_is_no_data_is_told(tmp_path: Path) -> None:
    run = toy_run()
    run.guided = [(object(), {"net": object()})]  # what a plugin might remember
    with pytest.raises(SettingError, match="a checkpoint cannot hold a object"):
        Checkpoint(tmp_path / "a").write(run)


class KilledError(Exception):
    """The end of a process, as far as a test in one process can make it."""


class Dies:
    """Counts the steps of canvases that guidances paint, and ends the process after one of them."""

    def __init__(self, after: int | None) -> None:
        self.after, self.count = after, 0

    def on_inner_step_end(self) -> None:
        self.count += 1
        if self.count == self.after:
            raise KilledError


PAINTERS: dict[str, Guidance] = {
    "MSD": MSDGuidance(levels=3),
    "HeadStart": HeadStart(levels=2),
    "HiFlow": HiFlow(),  # it watches the smaller canvas at each step
    "DemoFusion": DemoFusion(),
    "Extrapolation": Extrapolation(),  # it paints one canvas after another
}


def windows_of(tiny: Model, guidance: Guidance, *callbacks: object) -> tuple[Tensor, int]:
    """The latents of a panorama, and how many windows the network computed."""
    rows: list[int] = []
    denoiser = tiny.denoiser
    assert isinstance(denoiser, UNetDenoiser)
    made = Sampler(
        tiny,
        scheduler=DiffusersScheduler("euler_a"),
        guidances=[guidance],
        runtime=Runtime(accelerator="cpu", micro_batch=1),
        callbacks=callbacks,
    )
    side = 64 if isinstance(guidance, MSDGuidance) else 32
    with denoiser.unet.register_forward_pre_hook(lambda module, args, kwargs: rows.append(1), with_kwargs=True):
        try:
            return made("a lake", height=side, width=side, steps=4, seed=1).latents, len(rows)
        except KilledError:
            return torch.empty(0), len(rows)


@pytest.mark.parametrize("name", PAINTERS)
def test_a_run_that_ends_while_a_smaller_canvas_is_painted_loses_one_step(tiny: Model, tmp_path: Path, name: str) -> None:
    guidance, counter = PAINTERS[name], Dies(None)
    whole, windows = windows_of(tiny, guidance, counter)
    assert counter.count >= 3
    _, before = windows_of(tiny, guidance, Checkpoint(tmp_path / "a", 1), Dies(counter.count // 2))
    latents, rest = windows_of(tiny, guidance, Checkpoint(tmp_path / "a", 1, resume=tmp_path / "a"))
    assert torch.equal(latents, whole)
    assert before + rest == windows, "what was painted before the checkpoint is not painted again"


def test_a_run_that_is_asked_to_stop_while_a_smaller_canvas_is_painted_leaves_one(tiny: Model, tmp_path: Path) -> None:
    kept = Checkpoint(tmp_path / "a", None)
    with pytest.raises(KeyboardInterrupt, match="stopped after step 1 of 4 of a smaller canvas"):
        windows_of(tiny, PAINTERS["HeadStart"], kept, Stops())
    state = read(tmp_path / "a")[1]
    assert (state["level"], state["inner"]["state"]["level"]) == (0, 1)
    assert kept.useful


@pytest.fixture(scope="module")
def last(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last checkpoint of a run with a random solver, and the one before it."""
    path = tmp_path_factory.mktemp("last") / "a"
    run, kept = random_run(), Checkpoint(path)
    for _ in range(2):
        run.step()
        kept.write(run)
    return path


def random_run() -> Run:
    return toy_run(scheduler=ToyScheduler(eta=1.0), guidances=[Pull("identity")])


def resumed(path: Path) -> tuple[int, Tensor]:
    """The step from which a run goes on from a checkpoint, and its canvas at the end."""
    run = random_run()
    Checkpoint(path, resume=path).on_run_start(run)
    step = run.level.step
    while not run.done:
        run.step()
    return step, run.canvas


@pytest.fixture(scope="module")
def undisturbed() -> Tensor:
    run = random_run()
    while not run.done:
        run.step()
    return run.canvas


def check_damaged(last: Path, damaged: bytes, undisturbed: Tensor, folder: Path) -> None:
    """A damaged checkpoint is noticed, in one line, and the one before is used. Or what counts is not damaged."""
    path = folder / "a"
    path.write_bytes(damaged)
    (folder / "a.before").write_bytes((last.parent / "a.before").read_bytes())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        step, canvas = resumed(path)
    assert torch.equal(canvas, undisturbed)
    assert step == (1 if caught else 2)
    assert all("the one before it is used" in str(warning.message) for warning in caught)
    if caught:
        with pytest.raises(SettingError, match=r"^the checkpoint .* is damaged, or is no checkpoint \(.*\)$"):
            read(path)


@given(st.data())
def test_a_flipped_bit_is_noticed_anywhere_and_the_picture_is_never_another(
    last: Path, undisturbed: Tensor, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray(last.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    check_damaged(last, content, undisturbed, tmp_path_factory.getbasetemp())


def test_any_byte_of_a_checkpoint_may_change(last: Path, undisturbed: Tensor, tmp_path: Path, sweeps: bool) -> None:
    """Every byte in sweeps; otherwise some of the header, and some of the tensors. The bits take turns."""
    content = last.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    places = [*range(len(content))] if sweeps else [*range(0, header, 40), *range(header, len(content), 500)]
    for turn, place in enumerate(places):
        damaged = content[:place] + bytes([content[place] ^ 1 << turn % 8]) + content[place + 1 :]
        check_damaged(last, damaged, undisturbed, tmp_path)


def test_tensors_of_another_checkpoint_are_noticed(last: Path, undisturbed: Tensor, tmp_path: Path) -> None:
    """The same header over other tensors, all sound: as a disk leaves it that wrote half of the blocks."""
    new, old = last.read_bytes(), (last.parent / "a.before").read_bytes()
    header = 8 + int.from_bytes(new[:8], "little")
    check_damaged(last, new[:header] + old[header:], undisturbed, tmp_path)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("turn", range(4))
def test_one_that_cannot_be_written_leaves_the_one_before_to_go_on_from(
    undisturbed: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, turn: int, code: int
) -> None:
    """Of two checkpoints three renames are made; one of them fails, or none. The next is written as ever."""
    renames, made = Path.replace, list[int]()

    def renamed(path: Path, target: Path) -> Path:
        made.append(len(made))
        if made[-1] == turn:
            raise OSError(code, os.strerror(code))
        return renames(path, target)

    run, kept = random_run(), Checkpoint(tmp_path / "a", 1)
    with monkeypatch.context() as patch, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        patch.setattr(Path, "replace", renamed)
        for _ in range(2):
            run.step()
            kept.on_step_end(run)
        assert [str(warning.message) for warning in caught] == (turn < 3) * [
            f"cannot write {tmp_path / 'a'}: {os.strerror(code)}; the run goes on without a new checkpoint"
        ]
        step, canvas = resumed(tmp_path / "a")
    assert step == (1 if turn in (1, 2) else 2)
    assert torch.equal(canvas, undisturbed)
    kept.write(run)
    assert resumed(tmp_path / "a")[0] == 2


leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.builds(torch.arange, st.integers(0, 3))
)
data = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.integers(), inner, max_size=3)
)


@given(data)
@settings(max_examples=50)
def test_any_nested_data_come_back(value: Any) -> None:
    def same(one: Any, two: Any) -> bool:
        if isinstance(one, torch.Tensor):
            return torch.equal(one, two)
        if isinstance(one, dict):
            return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
        if isinstance(one, list):
            return len(one) == len(two) and all(map(same, one, two))
        return type(one) is type(two) and one == two

    tensors: dict[str, torch.Tensor] = {}
    assert same(value, checkpoint._whole(checkpoint._plain(value, tensors), tensors))
