"""From jobs to files: pictures with names, checkpoints while they are made, a word on each, and what to do when one fails."""

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

from PIL.Image import Image

from panokit import recipe
from panokit.callbacks import Preview
from panokit.checkpoint import Checkpoint
from panokit.errors import OutputError, PanokitError, RankError, SettingError
from panokit.jobs import Worker, name_of
from panokit.panorama import Panorama, check_output, contact_sheet, written_aside
from panokit.signals import asking


@final
@dataclass(frozen=True)
class Output:
    """Where pictures go, and what else is written.

    Attributes:
        out: a picture, or a folder where pictures are named after their jobs; this one unless given.
        sheet: a contact sheet.
        latents: whether the latents go beside each picture.
        preview: a picture to write again after each step.
        quiet: whether to show no progress.
        resume: a checkpoint to go on from.
        checkpoint_every: steps from one checkpoint to the next; once a minute unless given, and never with 0.
        jobs: whether the same command, given again, leaves what is there and goes on with the rest.
    """

    out: str | None = None
    sheet: str | None = None
    latents: bool = False
    preview: str | None = None
    quiet: bool = False
    resume: str | None = None
    checkpoint_every: int | None = None
    jobs: bool = False

    @property
    def folder(self) -> Path | None:
        """Where pictures are named after their jobs, if they are."""
        return Path(self.out or ".") if self.out is None or self.out.endswith("/") or Path(self.out).is_dir() else None

    def check(self, count: int) -> None:
        """Raise a PanokitError if so many pictures cannot be written so."""
        if self.folder is None and count > 1:
            raise SettingError(
                f"{count} pictures do not go into one file {self.out}: name a folder, {Path(self.out or '.').parent}/"
            )
        if self.resume and count > 1:
            raise SettingError(f"a checkpoint is of one picture, not of {count}: --jobs takes up all of them by itself")
        if self.checkpoint_every is not None and self.checkpoint_every < 0:
            raise SettingError(f"checkpoint_every is {self.checkpoint_every}: it must be a number of steps, or 0 for never")
        for target in (self._picture, self.sheet, self.preview):
            if target:
                check_output(target)

    def check_size(self, size: tuple[int, int]) -> None:
        """Raise an OutputError if the formats do not hold such a picture."""
        for target in (self._picture, self.preview):
            if target:
                check_output(target, size)

    @property
    def _picture(self) -> str:
        return str(self.folder / "picture.png") if self.folder else str(self.out)

    def path(self, made_from: Mapping[str, Any]) -> Path:
        """The file of a picture."""
        return self.folder / f"{name_of(made_from)}.png" if self.folder else Path(str(self.out))


def paint(jobs: Sequence[Mapping[str, Any]], worker: Worker, output: Output) -> None:
    """Make a picture of each job, and write it.

    Raises:
        PanokitError: a job asks for something that cannot be, or a picture cannot be written.
    """
    painter = _Painter(jobs, worker, [output] * len(jobs))
    with _stopping(worker, output):
        made = worker.runtime.replicas(painter.one, len(jobs))
    if output.sheet:
        sheet = Path(output.sheet)
        worker.runtime.first(lambda: _write_sheet(sheet, [panorama for panorama in made if panorama]))
        _say(worker, f"{sheet}: {len(made)} pictures")


def paint_all(jobs: Sequence[Mapping[str, Any]], worker: Worker, outputs: Sequence[Output]) -> int:
    """The same for many: what is there is left, and a job that fails is written down and does not keep the others.

    Args:
        jobs: what to make.
        worker: who makes them.
        outputs: where each goes.

    Returns:
        How many failed.
    """
    painter = _Painter(jobs, worker, outputs)
    with _stopping(worker, *outputs):
        ends = worker.runtime.replicas(painter.attempt, len(jobs))
    counts = {end: ends.count(end) for end in ("made", "there already", "failed")}
    _say(worker, ", ".join(f"{count} {end}" for end, count in counts.items()))
    return counts["failed"]


def check(job: Mapping[str, Any], worker: Worker, output: Output) -> Path:
    """The file that a job ends in.

    Raises:
        PanokitError: the job cannot be.
    """
    sampler, prompt, settings = worker.prepared(job)
    grid = sampler.check(prompt, **settings)
    output.check_size((settings["width"], settings["height"]))
    if not worker.trusted:
        recipe.check_work(len(grid) * settings.get("steps", 50))
    return output.path(sampler.recipe(prompt, **settings))


def check_all(
    path: str, jobs: Mapping[int, Mapping[str, Any]], wrong: Mapping[int, str], worker: Worker, output: Output
) -> None:
    """Raise a SettingError if jobs cannot be, or are the same; with those that are known to be wrong, by their lines."""
    found = dict(wrong)
    lines: dict[Path, int] = {}
    for line, job in jobs.items():
        try:
            target = check(job, worker, output)
        except PanokitError as error:
            found[line] = str(error)
            continue
        if target in lines:
            found[line] = f"it is the same job as line {lines[target]}: keep one of them"
        lines.setdefault(target, line)
    if found:
        told = "; ".join(f"line {line}: {found[line]}" for line in sorted(found)[:5])
        raise SettingError(f"{path}, {told}" + (f"; and {len(found) - 5} more" if len(found) > 5 else ""))


_RESTARTS = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
"""Where launchers say how often they have started the same again."""


@final
class _Painter:
    """Makes one job's picture, on whichever ranks."""

    def __init__(self, jobs: Sequence[Mapping[str, Any]], worker: Worker, outputs: Sequence[Output]) -> None:
        self._jobs, self._worker, self._outputs = jobs, worker, outputs
        self._start, self._done, self._painted = time.monotonic(), 0, 0
        runtime = worker.runtime
        shared = len(jobs) < runtime.world_size
        self._own = range(len(jobs)) if shared else range(runtime.rank, len(jobs), runtime.world_size)
        self._left = sum(_pixels(jobs[k]) for k in self._own)

    def one(self, k: int) -> Panorama | None:
        """Make it and write it; what a contact sheet needs of it, if there is to be one."""
        sampler, prompt, settings = self._worker.prepared(self._jobs[k])
        again = any(os.environ.get(name, "0") != "0" for name in _RESTARTS)
        return self._made(k, self._outputs[k].path(sampler.recipe(prompt, **settings)), again)

    def attempt(self, k: int) -> str:
        """Make it and write it, unless it is there; how that ended."""
        runtime = self._worker.runtime
        sampler, prompt, settings = self._worker.prepared(self._jobs[k])
        path = self._outputs[k].path(sampler.recipe(prompt, **settings))
        note = path.with_suffix(".error.txt")
        if runtime.first(path.exists):
            self._passed(k)
            return "there already"
        try:
            self._made(k, path, again=True)
        except (RankError, OutputError):  # no other job would fare better
            raise
        except Exception as error:  # whatever a plugin does
            what = f"{type(error).__name__}: {error}"
            runtime.first(lambda: _write_note(note, what))
            self._tell(k, f"{path}: failed, {' '.join(what.split())}")
            return "failed"
        runtime.first(lambda: note.unlink(missing_ok=True))
        return "made"

    def _made(self, k: int, path: Path, again: bool) -> Panorama | None:
        worker, output = self._worker, self._outputs[k]
        kept = Checkpoint(path.with_name(f"{path.name}.checkpoint"), output.checkpoint_every, output.resume, again)
        callbacks: list[object] = [kept, *([Preview(output.preview)] if output.preview else [])]
        try:
            panorama = worker.make(self._jobs[k], callbacks=callbacks, progress=not output.quiet)
        except (KeyboardInterrupt, RankError) as error:
            if not (kept.useful and worker.runtime.writes):
                raise
            how = "the same command goes on" if output.jobs else f"--resume {kept.path} goes on"
            ended = type(error)(f"{str(error) or 'stopped'}; {how} from its checkpoint")
            raise ended from error
        worker.runtime.first(lambda: self._write(panorama, path, latents=output.latents))
        worker.runtime.first(kept.clear)
        self._tell(k, f"{path}: {panorama.image.width} x {panorama.image.height} pixels")
        return replace(panorama, image=_thumbnail(panorama.image)) if output.sheet else None

    def _write(self, panorama: Panorama, path: Path, *, latents: bool) -> None:
        panorama.save(path)
        if latents:
            panorama.save_latents(path.with_suffix(".safetensors"))

    def _tell(self, k: int, what: str) -> None:
        """A line; with many jobs, how far they are and how long the rest will take."""
        self._passed(k)
        self._painted += _pixels(self._jobs[k])
        left = (time.monotonic() - self._start) / self._painted * self._left
        count = len(self._own)
        many = f" ({self._done} of {count}{f', {left / 60:.0f} min left' * (left >= 60)})" if count > 1 else ""
        _say(self._worker, what + many)

    def _passed(self, k: int) -> None:
        self._done += 1
        self._left -= _pixels(self._jobs[k])


def _pixels(job: Mapping[str, Any]) -> int:
    """How much work a job is, beside others."""
    return (job.get("height") or 1) * (job.get("width") or 1)


def _write_sheet(path: Path, panoramas: Sequence[Panorama]) -> None:
    with written_aside(path) as aside:
        contact_sheet(panoramas).save(aside)


def _write_note(path: Path, what: str) -> None:
    with written_aside(path) as aside:
        aside.write_text(what + "\n", encoding="utf-8")


def _thumbnail(image: Image) -> Image:
    """As much of a picture as a contact sheet needs."""
    small = image.copy()
    small.thumbnail((2048, 2048))
    return small


def _say(worker: Worker, what: str) -> None:
    if worker.runtime.writes:
        print(what, flush=True)


def _stopping(worker: Worker, *outputs: Output) -> AbstractContextManager[None]:
    """Where checkpoints were asked for, the first signal asks all ranks to write one and end."""
    return asking(worker.runtime.stop) if any(output.checkpoint_every for output in outputs) else nullcontext()
