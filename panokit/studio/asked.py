"""What a page asks for: a job as plain data with its pictures. Whoever sends it is not trusted."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, final

from PIL.Image import Image

from panokit import recipe
from panokit.composition import prompt_from
from panokit.errors import SettingError
from panokit.jobs import Job, Worker, require_installed
from panokit.sampler import Plan
from panokit.scene import Region, Regions
from panokit.settings import SETTINGS, Settings

PIXELS = 1 << 24
"""The most pixels of a picture that is made: 1,024 x 16,384."""
STEPS = 1000
"""The most steps."""
LETTERS = 4000
"""The most letters of all texts together."""

_FORM = recipe.Source("the form", trust="")
"""Where options of a page come from."""
_WITH_PICTURE = ("strength", "at")
"""The options that a job has only with a picture to start from."""


@final
@dataclass(frozen=True, eq=False)
class Asked:
    """A picture that somebody asks for.

    Attributes:
        options: the options of a job, as plain data without pictures.
        image: the picture to start from.
        mask: white where that picture is painted anew.
        areas: painted regions, by colour: a picture that is white there, and its text.
    """

    options: Mapping[str, Any]
    image: Image | None = None
    mask: Image | None = None
    areas: Mapping[str, tuple[Image, str]] = field(default_factory=dict)

    def job(self, offered: object = None) -> Job:
        """The job without its pictures and what they need, if it keeps the limits of the studio.

        Args:
            offered: a model besides the installed ones.

        Raises:
            SettingError: a value is too large or cannot work, or the job names what is not installed.
        """
        options = {name: value for name, value in self.options.items() if value is not None}
        own = {name: options[name] for name in SETTINGS if name in options and name not in (*recipe.PICTURES, *_WITH_PICTURE)}
        _check_size(Settings.of(own).as_data())
        check(options, offered, _FORM)
        options["frames"] = 1  # the page shows pictures, also those of a model of films
        return Job.of({name: value for name, value in options.items() if name not in _WITH_PICTURE})

    def plan(self, worker: Worker, offered: object = None) -> Plan:
        """Plan the picture.

        Args:
            worker: makes the sampler. It does not trust the job.
            offered: a model besides the installed ones.

        Raises:
            PanokitError: it cannot be made, or is larger than the studio makes.
        """
        job = self.job(offered)
        settings, prompt = job.settings.as_data(), job.prompt
        plan = worker.plan(job)
        if self.image is not None or self.areas:
            regions = () if isinstance(prompt, str) else prompt.parts
            areas = tuple(Region(area, text) for area, text in self.areas.values())
            if areas:
                of_boxes = Regions(areas, prompt) if isinstance(prompt, str) else prompt
                prompt = replace(of_boxes, regions=(*regions, *areas))
            if self.image is not None:
                settings |= {name: self.options.get(name) for name in _WITH_PICTURE}
            plan = plan.sampler.plan(prompt, **settings | {"image": self.image, "mask": self.mask})
        width, height = plan.size
        if width * height > PIXELS:
            raise SettingError(f"{width} x {height} pixels are more than the studio makes, {PIXELS}: make it smaller")
        recipe.check_work(plan.passes, _FORM)
        return plan.check()


def check(options: Mapping[str, Any], offered: object = None, source: recipe.Source = recipe.RECIPE) -> None:
    """Check that options name installed parts alone, read no files, and are no larger than the studio takes.

    Args:
        options: the options of a job, or those of a recipe.
        offered: a model besides the installed ones.
        source: where they come from, for errors.

    Raises:
        SettingError: they do not.
    """
    if options.get("model") != offered:
        require_installed(options.get("model"))
        recipe.check_plain(options.get("model"), source)
    rest = {name: value for name, value in options.items() if name != "model"}
    recipe.check(rest, source)
    recipe.check_names(rest)
    _check_size(options)
    prompt = options.get("prompt")
    scene = () if prompt is None else (prompt_from(prompt),)
    texts = [text for part in scene for text in ((part,) if isinstance(part, str) else part.texts)]
    texts = [*texts, options.get("negative_prompt") or ""]
    if any("\ud800" <= letter <= "\udfff" for text in texts for letter in text):
        raise SettingError("a text holds half a character, which is no Unicode: write it again")
    letters = sum(map(len, texts))
    if letters > LETTERS:
        raise SettingError(f"the texts have {letters} letters: the studio takes up to {LETTERS}, all together")


def _check_size(options: Mapping[str, Any]) -> None:
    """Check the steps and the pixels of options whose types are right."""
    steps, height, width = (options.get(name) or 0 for name in ("steps", "height", "width"))
    if steps > STEPS:
        raise SettingError(f"steps is {steps}: the studio makes up to {STEPS}")
    if height * width > PIXELS:
        raise SettingError(f"{width} x {height} pixels are more than the studio makes, {PIXELS}: make it smaller")
