"""Jobs: panoramas to make, as plain data, and the worker that makes them.

A job is a mapping of the options that decide a picture, which `JOB` names. The file of its picture is named by prompt, seed and
a hash of the whole recipe. So the same job gives the same name on every machine, and a picture that exists is not made again.
"""

import io
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, final

from panokit import films, registry
from panokit.checkpoint import Checkpoint
from panokit.composition import Plugin, build, prompt_from
from panokit.denoiser import Model
from panokit.errors import OutputError, RankError, SettingError, in_words
from panokit.fuser import Fuser
from panokit.guidance import Guidance
from panokit.hints import make
from panokit.layout import Layout
from panokit.moved import no_attribute
from panokit.output import Output, checkpoint_of
from panokit.panorama import Panorama, is_whole
from panokit.plain import check_depth
from panokit.recipe import FACTS, MODEL_FILES, VERSIONS, check_files, check_names, check_plain, embedded
from panokit.runtime import Runtime
from panokit.sampler import Plan, Sampler
from panokit.scene import Prompt
from panokit.scheduler import Scheduler
from panokit.settings import NUMERICS, SETTINGS, Composition, Part, Settings, unknown_option

PARTS = tuple(field.name for field in fields(Composition))
"""The options of a job that name its parts."""
JOB = ("prompt", *SETTINGS, *PARTS)
"""All options of a job."""
RECIPE = (*PARTS, *SETTINGS, "prompt", "precision", *NUMERICS)
"""The options that a recipe holds."""
_LINE = 1 << 20
"""The most characters of a job in a file."""
_DIGITS = 20
"""The most digits of a whole number in a job: those of the largest seed."""


@final
@dataclass(frozen=True)
class Job:
    """One panorama to make.

    Attributes:
        prompt: what to paint: a text, or `Regions`.
        settings: height, width, steps, seed and the other settings of a call.
        composition: model, scheduler, layout, fuser and guidances, as plain data.
    """

    prompt: Prompt
    settings: Settings
    composition: Composition

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> "Job":
        """Make a job from a mapping.

        Args:
            data: options by the names in `JOB`. An option that is None or missing has its default.

        Raises:
            SettingError: there is no option of a name, there is no prompt, or a value cannot work.
        """
        for name in data:
            if name not in JOB:
                raise SettingError(unknown_option(str(name), JOB))
        options = {name: value for name, value in data.items() if value is not None}
        if "prompt" not in options:
            raise SettingError('the job has no prompt: add one, {"prompt": "a lake"}')
        return cls(
            prompt_from(options["prompt"]),
            make(Settings, {name: options[name] for name in SETTINGS if name in options}),
            make(Composition, {name: options[name] for name in PARTS if name in options}),
        )


def jobs_in(text: str, defaults: Mapping[str, Any], *, trusted: bool = True) -> tuple[dict[int, Job], dict[int, str]]:
    """Read jobs, one on each line, as JSON. Empty lines are skipped.

    Args:
        text: the lines, in which bytes that are not UTF-8 are lone surrogates, as `errors="surrogateescape"` reads them.
        defaults: the options that a job does not set.
        trusted: False for lines that somebody else may have written. Then they name installed plugins alone.

    Returns:
        The jobs by line number; and what is wrong with the other lines, by line number.
    """
    jobs: dict[int, Job] = {}
    wrong: dict[int, str] = {}
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), start=1):
        try:
            if line.strip():
                options = _options(line)
                if not trusted:
                    check_names(options)
                jobs[number] = Job.of({**defaults, **options})
        except Exception as error:  # plugins raise errors of any type
            wrong[number] = in_words(error)
    return jobs, wrong


def _options(line: str) -> dict[str, Any]:
    """The options in a line of a file of jobs.

    Raises:
        SettingError: it is not strict JSON, or no mapping, or nobody can use it.
    """
    if len(line) > _LINE:
        raise SettingError(f"it has {len(line)} characters: a job has up to {_LINE}")
    _require_text(line, "save the file as UTF-8")
    try:
        data = json.loads(line, object_pairs_hook=_once, parse_int=_whole_number, parse_float=_number, parse_constant=_number)
        check_depth(data, "it")
    except json.JSONDecodeError as cause:
        raise SettingError(f"it is no JSON, at character {cause.pos + 1}: {cause.msg}") from cause
    except RecursionError as cause:
        raise SettingError("it is nested deeper than any job: panokit writes nothing like it") from cause
    if not isinstance(data, dict):
        raise SettingError(f"it is a {type(data).__name__}: a job must map options to values")
    _require_text(json.dumps(data, ensure_ascii=False), "write a whole character, of two halves")
    return data


def _require_text(text: str, advice: str) -> None:
    """Check that a text has no halves of characters, which no file and no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as cause:
        raise SettingError(f"its character {cause.start + 1}, {text[cause.start]!a}, is no Unicode: {advice}") from cause


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A mapping in JSON, in which no key may stand twice: it would be unclear which one counts."""
    data = dict(pairs)
    if len(data) < len(pairs):
        keys = [key for key, _ in pairs]
        raise SettingError(f"{next(key for key in keys if keys.count(key) > 1)!r:.80} stands twice: keep one of them")
    return data


def _whole_number(text: str) -> int:
    if len(text.lstrip("-")) > _DIGITS:
        raise SettingError(f"a number has {len(text)} digits, {text:.8}...: whole numbers have up to {_DIGITS}")
    return int(text)


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise SettingError(f"{text:.80} is not a finite number: settings are")
    return number


@final
class Worker:
    """Makes panoramas one after another, and loads each model once.

    A library for batches makes one worker in each process and calls it with batches. With Ray Data, write
    `dataset.map_batches(Worker, fn_constructor_args=[config])`.

    Args:
        config: defaults for the options in `JOB`, and arguments of `Runtime`. The model may be a `Model`.
        trusted: False for jobs from a file that somebody else may have written; see `composition.build`.
        folder: a folder for the pictures of batches, which all machines share; None returns them as bytes. In the folder a
            picture that exists is not made again, and one that was begun goes on from its checkpoint.

    Raises:
        SettingError: neither a job nor a `Runtime` has an option of that name.
        OutputError: pictures cannot be written to the folder.
    """

    def __init__(
        self,
        config: Mapping[str, Any] | None = None,
        *,
        trusted: bool = True,
        folder: str | os.PathLike[str] | None = None,
    ) -> None:
        self._output = None if folder is None else Output(out=os.path.join(folder, ""), again=True)
        if self._output:
            self._output.check(0)
        options = dict(config or {})
        self.defaults = {key: options.pop(key) for key in JOB if key in options}
        self.trusted = trusted
        try:
            self.runtime = Runtime(**options)
        except TypeError as cause:
            raise SettingError(f"neither a job nor a Runtime has that option: {cause}") from cause
        self._models: dict[str, Sampler] = {}
        if isinstance(model := self.defaults.get("model"), Model):
            self._models[model.name] = Sampler(model, runtime=self.runtime)
            self.defaults["model"] = model.name
        self._samplers: dict[str, Sampler] = {}
        self._plugins: dict[str, Any] = {}

    def __call__(self, batch: Mapping[str, Iterable[Any]]) -> dict[str, Any]:
        """Make the pictures of a batch of jobs. If one job fails, the others are still made.

        Args:
            batch: columns by name, with one row for each job. Columns that `JOB` does not name are kept, and not read.

        Returns:
            The batch with three more columns: `png`, the bytes of each picture's file, or `path`, the file, if the worker
            has a folder; `recipe`, the picture's recipe as JSON; and `error`, the message of a job that failed, or an empty
            text. The other two are then empty.

        Raises:
            OutputError: a picture cannot be written.
        """
        columns = [batch[key] for key in batch]
        jobs = [dict(zip(batch, row, strict=True)) for row in zip(*columns, strict=True)]
        made = [self._attempt({key: value for key, value in job.items() if key in JOB}) for job in jobs]
        pictures, recipes, errors = ([row[k] for row in made] for k in range(3))
        return {**batch, "png" if self._output is None else "path": pictures, "recipe": recipes, "error": errors}

    def _attempt(self, job: Mapping[str, Any]) -> tuple[bytes | str, str, str]:
        """Make the picture of a job. Return its bytes or its file, its recipe, and what went wrong."""
        try:
            check_depth(job, "the job")
            cells = {key: _cell(value) for key, value in job.items()}
            plan = self.plan({key: value for key, value in cells.items() if value is not None})
            if self._output is None and films.frames_of(plan.recipe) > 1:
                raise SettingError("the job is a film, and pictures return as PNG: give the Worker a folder for its files")
            picture = _encoded(plan.make(progress=False)) if self._output is None else _written(plan, self._output)
        except (OutputError, RankError):  # the others would probably fail too, and the library may try again elsewhere
            raise
        except Exception as error:  # plugins raise errors of any type
            return b"" if self._output is None else "", "", in_words(error)
        return picture, json.dumps(plan.recipe), ""

    def make(self, job: Mapping[str, Any] | Job, *, callbacks: Sequence[object] = (), progress: bool = False) -> Panorama:
        """Make the panorama of a job.

        Args:
            job: the job, or a mapping of its options.
            callbacks: callbacks for this run.
            progress: whether to show a progress bar where there is a terminal.

        Raises:
            PanokitError: the job cannot be done.
        """
        return self.plan(job).make(callbacks=callbacks, progress=progress)

    def plan(self, job: Mapping[str, Any] | Job) -> Plan:
        """Plan the panorama of a job, without computing anything.

        Each value is checked by itself. `Plan.check` also asks the scheduler and the guidances.

        Args:
            job: the job, or a mapping of its options.

        Raises:
            PanokitError: a value cannot work, or a model or plugin cannot be loaded.
        """
        job = job if isinstance(job, Job) else Job.of({**self.defaults, **job})
        if not self.trusted:
            regions = () if isinstance(job.prompt, str) else job.prompt.parts
            files = [{"mask": region.area} for region in regions if region.is_mask]
            files += [{"ip_adapter_image": region.ip_adapter_image} for region in regions]
            check_files({**job.settings.as_data(), "prompt": files})
        return self._sampler(job.composition).plan(job.prompt, **job.settings.as_data())

    if not TYPE_CHECKING:  # type checkers know the attributes

        def __getattr__(self, name: str) -> Any:
            raise no_attribute(self, name)

    def _sampler(self, composition: Composition) -> Sampler:
        """The sampler with these parts. It is made once, and all samplers share models and plugins."""
        key = json.dumps([getattr(composition, name) for name in PARTS], default=repr)
        if key not in self._samplers:
            self._samplers[key] = Sampler(
                self._model(composition.model),
                scheduler=None if composition.scheduler is None else self._plugin(Scheduler, composition.scheduler),
                layout=self._plugin(Layout, composition.layout),
                fuser=self._plugin(Fuser, composition.fuser),
                guidances=[self._plugin(Guidance, part) for part in composition.guidances],
                runtime=self.runtime,
            )
        return self._samplers[key]

    def _plugin(self, base: type[Plugin], part: object) -> Plugin:
        """The plugin that a job describes. It is made once, because a plugin never changes."""
        key = f"{base.__name__} {json.dumps(part, default=repr)}"
        if key not in self._plugins:
            self._plugins[key] = build(base, part, trusted=self.trusted)
        return self._plugins[key]

    def _model(self, part: Part) -> Any:
        """The model that a job describes. It is loaded and placed once."""
        key = part if isinstance(part, str) else json.dumps(part, default=repr)
        if key not in self._models:
            if not self.trusted:
                require_installed(part)
                check_plain(part)
            self._models[key] = Sampler(part, runtime=self.runtime)
        return self._models[key].model


def require_installed(model: object) -> None:
    """Check that a model is an installed one. A recipe that is not trusted may name no other.

    Args:
        model: the model as the recipe describes it: a name, or a mapping of a name and settings.

    Raises:
        SettingError: no installed model has that name. It may be a folder, a hub id, or no name at all. Or its settings read
            files.
    """
    name = model.get("plugin") if isinstance(model, Mapping) else model
    if all(plugin.name != name for plugin in registry.plugins("models")):
        raise SettingError(
            f"the recipe names the model {name!r:.80}, which is not installed by that name: "
            "trust it (--trust) to load a folder or from the hub"
        )
    if not isinstance(model, Mapping):
        return
    for setting in sorted(set(model) & MODEL_FILES):
        raise SettingError(f"the recipe sets {setting} of its model, which reads files: trust it (--trust) to read them")
    if "model" in model:  # it is made of another one
        require_installed(model["model"])


def options_in(recipe: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The options in a recipe, whose form is checked, without versions of libraries and facts. `recipe.check` checks values.

    Args:
        recipe: the recipe, as `recipe.read` returned it.
        source: what it is, for errors: `the recipe in a.png`.

    Raises:
        SettingError: the recipe is damaged, or from another version of panokit.
    """
    check_depth(recipe, source)
    if unknown := recipe.keys() - {*RECIPE, *VERSIONS, *FACTS}:
        problem = unknown_option(min(unknown)[:80], RECIPE)
        raise SettingError(f"{source} is damaged, or from another version of panokit: {problem}")
    missing = [key for key in ("prompt", "height", "width", "seed", "model") if recipe.get(key) is None]
    if missing:
        raise SettingError(f"{source} is damaged: it lacks {', '.join(missing)}")
    for package in VERSIONS:
        if not re.fullmatch(r"(\d[\w.+-]{0,63})?", str(recipe.get(package, ""))):
            raise SettingError(f"{source} is damaged: {package} came as {recipe[package]!r:.80}, which is not a version")
    hashes = recipe.get("hashes", {})
    if not isinstance(hashes, dict) or not all(
        re.fullmatch(r"[\w.]{1,64}=[0-9a-f]{64}", f"{name}={digest}") for name, digest in hashes.items()
    ):
        raise SettingError(f"{source} is damaged: hashes came as {hashes!r:.80}, and no mapping of names to SHA-256")
    return {key: recipe[key] for key in RECIPE if recipe.get(key) is not None}


def part_of(jobs: Sequence[Any], part: str) -> list[Any]:
    """Choose one part of all jobs, so that several machines can share them.

    Args:
        jobs: all jobs.
        part: which part, `K/N`: every N-th job, from the K-th on, K from 1 to N.

    Raises:
        SettingError: `part` has another form.
    """
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", part.strip())
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise SettingError(
            f"part is {part!r:.80}: it must be K/N with K from 1 to N, such as 2/8 for the second of eight parts"
        )
    return list(jobs[int(match[1]) - 1 :: int(match[2])])


def _encoded(panorama: Panorama) -> bytes:
    """The bytes of the file of a picture, with its recipe."""
    file = io.BytesIO()
    panorama.image.save(file, format="png", **embedded(panorama.recipe, "PNG"))
    return file.getvalue()


def _written(plan: Plan, output: Output) -> str:
    """Make a picture and write it, unless it is there already. Return its file."""
    path = output.path(plan.recipe)
    if not is_whole(path):
        kept = Checkpoint(checkpoint_of(path), again=True)
        plan.make(callbacks=[kept], progress=False, out=path)
        kept.clear()
    return str(path)


def _cell(value: Any) -> Any:
    """A cell of a column as plain data; None if it is empty.

    A column of numbers has NaN in empty cells, and then its whole numbers are floats.
    """
    value = _plain(value)
    if isinstance(value, float):
        return None if math.isnan(value) else int(value) if value.is_integer() else value
    return value


def _plain(value: Any) -> Any:
    """Nested data as plain data. Values of numpy and Arrow have a `tolist`, and structures have all keys of their column."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items() if item is not None}
    return [_plain(item) for item in value] if isinstance(value, list) else value
