"""Many panoramas: what is to be made, as plain data, and who makes it.

A job is a mapping of the options that decide a picture: those in `JOB`. Its name is made of its prompt, its seed and a hash of
all of it, so the same job has the same name wherever it is made, and what is there need not be made again.
"""

import hashlib
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, final

from panokit.composition import Plugin, build, prompt_from
from panokit.errors import PanokitError, SettingError
from panokit.fuser import Fuser
from panokit.guidance import Guidance
from panokit.panorama import Panorama
from panokit.recipe import embedded
from panokit.runtime import Runtime
from panokit.sampler import Sampler
from panokit.scheduler import Scheduler

PARTS = ("model", "scheduler", "fuser", "guidances")
CALL = ("height", "width", "negative_prompt", "steps", "guidance_scale", "stride", "wrap", "seed")
JOB = ("prompt", *CALL, *PARTS)

_VERSIONS = ("panokit", "torch", "diffusers")


@final
class Worker:
    """Makes panoramas one after another, with each model loaded once.

    It is a class that the schedulers of batches take: made once a process, and then given batches. With Ray Data,
    `dataset.map_batches(Worker, fn_constructor_args=[config])`.

    Args:
        config: options of jobs, for those that do not say, by the names in `JOB`, and arguments of `Runtime`.

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
        self._samplers: dict[str, Sampler] = {}
        self._parts: dict[str, Any] = {}

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
        file = io.BytesIO()
        panorama.image.save(file, format="png", **embedded(panorama.recipe, "PNG"))
        return file.getvalue(), ""

    def make(self, job: Mapping[str, Any], *, callbacks: Sequence[object] = (), progress: bool = False) -> Panorama:
        """The panorama that a job asks for.

        Raises:
            PanokitError: it asks for something that cannot be.
        """
        sampler, prompt, settings = self.prepared(job, callbacks)
        return sampler(prompt, **settings, progress=progress)

    def prepared(self, job: Mapping[str, Any], callbacks: Sequence[object] = ()) -> tuple[Sampler, Any, dict[str, Any]]:
        """A sampler for a job, and what to call it with; sizes default to one window's height and four windows' width.

        Raises:
            PanokitError: it asks for something that cannot be.
        """
        if unknown := job.keys() - {*JOB}:
            raise SettingError(f"a job has no option {sorted(unknown)[0]!r}: it has {', '.join(JOB)}")
        job = {"model": "landscapes", **self.defaults, **job}
        prompt = prompt_from(job.get("prompt"))
        scheduler = self._part(Scheduler, job.get("scheduler", "ddim"))
        fuser = self._part(Fuser, job.get("fuser", "multidiffusion"))
        if not isinstance(parts := job.get("guidances", ()), list | tuple):
            raise SettingError(f"guidances is {parts!r}: it must be a list, [{parts!r}]")
        guidances = [self._part(Guidance, part) for part in parts]
        sampler = Sampler(
            self._model(job["model"]),
            scheduler=scheduler,
            fuser=fuser,
            guidances=guidances,
            runtime=self.runtime,
            callbacks=callbacks,
        )
        high, wide = (cells * sampler.model.factor for cells in sampler.model.denoiser.window)
        settings = {key: job[key] for key in CALL if key in job}
        settings["height"] = high if settings.get("height") is None else settings["height"]
        settings["width"] = 4 * wide if settings.get("width") is None else settings["width"]
        return sampler, prompt, settings

    def _part(self, base: type[Plugin], part: object) -> Plugin:
        """A plugin as a job describes it, made once: it never changes."""
        key = f"{base.__name__} {json.dumps(part, default=repr)}"
        if key not in self._parts:
            self._parts[key] = build(base, part, trusted=self.trusted)
        return self._parts[key]

    def _model(self, name: str) -> Any:
        """A model by its name, loaded and placed once."""
        if name not in self._samplers:
            self._samplers[name] = Sampler(name, runtime=self.runtime)
        return self._samplers[name].model


def name_of(recipe: Mapping[str, Any]) -> str:
    """What a picture is called: its prompt, its seed, and a hash of all that makes it but the versions of libraries."""
    words = words_of(recipe["prompt"] if isinstance(recipe["prompt"], str) else "regions")
    told = json.dumps({key: value for key, value in recipe.items() if key not in _VERSIONS}, sort_keys=True)
    return f"{words}-{recipe['seed']}-{hashlib.sha256(told.encode()).hexdigest()[:8]}"


def words_of(prompt: str) -> str:
    """A prompt as part of a file's name."""
    return re.sub(r"[^\w]+", "-", prompt.lower()).strip("-")[:48].rstrip("-") or "panorama"


def part_of(jobs: Sequence[Any], part: str) -> list[Any]:
    """The jobs of one part of several, `2/8`: every eighth, from the second.

    Raises:
        SettingError: it is no such part.
    """
    found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", part.strip())
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise SettingError(f"part is {part!r}: it must be such as 2/8, the second of eight, from 1/8 to 8/8")
    return list(jobs[int(found[1]) - 1 :: int(found[2])])


def _plain(value: Any) -> Any:
    """A cell of a column as plain data: what numpy and Arrow put there has an `item` or a `tolist`."""
    return value.tolist() if hasattr(value, "tolist") else value
