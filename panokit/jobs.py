"""Many panoramas: what is to be made, as plain data, and who makes it.

A job is a mapping of the options that decide a picture: those in `JOB`. Its name is made of its prompt, its seed and a hash of
all of it, so the same job has the same name wherever it is made, and what is there need not be made again.
"""

import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, final

from panokit import registry
from panokit.composition import Plugin, build, prompt_from
from panokit.denoiser import Model, Prompt
from panokit.errors import PanokitError, SettingError
from panokit.fuser import Fuser
from panokit.guidance import Guidance
from panokit.hints import make
from panokit.moved import no_attribute
from panokit.panorama import Panorama
from panokit.recipe import embedded
from panokit.runtime import Runtime
from panokit.sampler import Plan, Sampler
from panokit.scheduler import Scheduler
from panokit.settings import SETTINGS, Composition, Settings, unknown_option

PARTS = tuple(field.name for field in fields(Composition))
JOB = ("prompt", *SETTINGS, *PARTS)


@final
@dataclass(frozen=True)
class Job:
    """A panorama that somebody wants.

    Attributes:
        prompt: what to paint.
        settings: size, steps, seed and so on.
        composition: model, scheduler, fuser and guidances, as plain data.
    """

    prompt: Prompt
    settings: Settings
    composition: Composition

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> "Job":
        """The job that a mapping describes, with the names in `JOB`; what is None or missing has its default.

        Raises:
            SettingError: there is no option of that name, or a value cannot work.
        """
        for name in data:
            if name not in JOB:
                raise SettingError(unknown_option(str(name), JOB))
        given = {name: value for name, value in data.items() if value is not None}
        if "prompt" not in given:
            raise SettingError('the job has no prompt: {"prompt": "a lake"}')
        return cls(
            prompt_from(given["prompt"]),
            make(Settings, {name: given[name] for name in SETTINGS if name in given}),
            make(Composition, {name: given[name] for name in PARTS if name in given}),
        )


@final
class Worker:
    """Makes panoramas one after another, with each model loaded once.

    It is a class that the schedulers of batches take: made once a process, and then given batches. With Ray Data,
    `dataset.map_batches(Worker, fn_constructor_args=[config])`.

    Args:
        config: options of jobs, for those that do not name them, by the names in `JOB`, and arguments of `Runtime`. The model
            may be a `Model`.
        trusted: False for jobs out of a file that somebody else may have written: see `composition.build`.

    Raises:
        SettingError: an option that neither of them has.
    """

    def __init__(self, config: Mapping[str, Any] | None = None, *, trusted: bool = True) -> None:
        given = dict(config or {})
        self.defaults = {key: given.pop(key) for key in JOB if key in given}
        self.trusted = trusted
        try:
            self.runtime = Runtime(**given)
        except TypeError as cause:
            raise SettingError(f"neither a job nor a Runtime has that option: {cause}") from cause
        self._models: dict[str, Sampler] = {}
        if isinstance(model := self.defaults.get("model"), Model):
            self._models[model.name] = Sampler(model, runtime=self.runtime)
            self.defaults["model"] = model.name
        self._samplers: dict[str, Sampler] = {}
        self._plugins: dict[str, Any] = {}

    def __call__(self, batch: Mapping[str, Iterable[Any]]) -> dict[str, Any]:
        """The batch, columns by name, with the columns `png`, the pictures' files, and `error`, empty where all went well.

        One job that fails does not fail the others.
        """
        columns = [batch[key] for key in batch]
        jobs = [dict(zip(batch, row, strict=True)) for row in zip(*columns, strict=True)]
        made = [self._attempt({key: _plain(value) for key, value in job.items() if key in JOB}) for job in jobs]
        return {**batch, "png": [png for png, _ in made], "error": [error for _, error in made]}

    def _attempt(self, job: Mapping[str, Any]) -> tuple[bytes, str]:
        try:
            panorama = self.make(job)
        except PanokitError as error:
            return b"", str(error)
        except Exception as error:  # whatever a plugin raises
            return b"", f"{type(error).__name__}: {error}"
        file = io.BytesIO()
        panorama.image.save(file, format="png", **embedded(panorama.recipe, "PNG"))
        return file.getvalue(), ""

    def make(self, job: Mapping[str, Any] | Job, *, callbacks: Sequence[object] = (), progress: bool = False) -> Panorama:
        """The panorama that a job asks for.

        Args:
            job: the job, or a mapping that describes it.
            callbacks: what is called while it is made.
            progress: whether to show a progress bar where there is a terminal.

        Raises:
            PanokitError: it asks for something that cannot be.
        """
        return self.plan(job).make(callbacks=callbacks, progress=progress)

    def plan(self, job: Mapping[str, Any] | Job) -> Plan:
        """What a job would make, if no value is wrong by itself; `Plan.check` asks the scheduler and the guidances, too.

        Raises:
            PanokitError: it asks for something that cannot be.
        """
        job = job if isinstance(job, Job) else Job.of({**self.defaults, **job})
        return self._sampler(job.composition).plan(job.prompt, **job.settings.as_data())

    if not TYPE_CHECKING:  # type checkers know the attributes

        def __getattr__(self, name: str) -> Any:
            raise no_attribute(self, name)

    def _sampler(self, composition: Composition) -> Sampler:
        """A sampler of these parts, made once. Models and plugins are shared by all samplers."""
        key = json.dumps([getattr(composition, name) for name in PARTS], default=repr)
        if key not in self._samplers:
            self._samplers[key] = Sampler(
                self._model(composition.model),
                scheduler=self._plugin(Scheduler, composition.scheduler),
                fuser=self._plugin(Fuser, composition.fuser),
                guidances=[self._plugin(Guidance, part) for part in composition.guidances],
                runtime=self.runtime,
            )
        return self._samplers[key]

    def _plugin(self, base: type[Plugin], part: object) -> Plugin:
        """A plugin as a job describes it, made once: it never changes."""
        key = f"{base.__name__} {json.dumps(part, default=repr)}"
        if key not in self._plugins:
            self._plugins[key] = build(base, part, trusted=self.trusted)
        return self._plugins[key]

    def _model(self, name: str) -> Any:
        """A model by its name, loaded and placed once."""
        if name not in self._models:
            if not self.trusted:
                require_installed(name)
            self._models[name] = Sampler(name, runtime=self.runtime)
        return self._models[name].model


def require_installed(model: object) -> None:
    """Refuse a model of a recipe that is not trusted, unless it is installed.

    Raises:
        SettingError: it is a folder, a hub id, or nothing.
    """
    if all(plugin.name != model for plugin in registry.plugins("models")):
        raise SettingError(
            f"the recipe names the model {model!r:.80}, which is not installed by that name: "
            "trust it (--trust) to load a folder or from the hub"
        )


def part_of(jobs: Sequence[Any], part: str) -> list[Any]:
    """The jobs of one part of several, `2/8`: every eighth, from the second.

    Raises:
        SettingError: it is no such part.
    """
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", part.strip())
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise SettingError(f"part is {part!r}: it must be such as 2/8, the second of eight, from 1/8 to 8/8")
    return list(jobs[int(match[1]) - 1 :: int(match[2])])


def _plain(value: Any) -> Any:
    """A cell of a column as plain data: what numpy and Arrow put there has an `item` or a `tolist`."""
    return value.tolist() if hasattr(value, "tolist") else value
