"""What a study compares, as plain data: methods, prompts, seeds, and what they are measured by."""

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import product
from pathlib import Path
from typing import Any, final

from panokit.errors import SettingError
from panokit.hints import fitted
from panokit.options import assign, plain
from panokit.settings import unknown_option

Job = dict[str, Any]
Network = str | Mapping[str, Any]


@final
@dataclass(frozen=True)
class Study:
    """Every method makes a panorama of each prompt with each seed, and all are measured alike.

    Attributes:
        prompts: what to paint.
        methods: by name what each is composed of: `guidances`, `fuser`, `scheduler`.
        baselines: the methods that the ones after them are compared with; the first unless given.
        model: whose panoramas they are.
        height: of panoramas, in pixels.
        width: likewise.
        steps: denoising steps.
        stride: pixels from one window to the next; half a window unless given.
        guidance_scale: of classifier-free guidance.
        panoramas: of each prompt and method.
        references: pictures of each prompt that the model makes at its own size.
        seed: of the first panorama and reference of each prompt; the others follow.
        crop: the side of the squares that are compared with references, in pixels; the full height unless given.
        crops: how many of each panorama; as many as lie side by side unless given.
        reference_folder: pictures at the model's own size that are there already, in their place. Where each prompt has some
            whose names begin with it, as panokit names them, it is compared with those; else with all.
        features: by name the networks whose features pictures are compared in: modules that take uint8 pictures `n 3 H W` and
            have `num_features`. A network is `module:Class`, or a mapping of that, `plugin`, and settings.
        scores: by name what gives squares of a panorama, uint8 `n 3 H W`, and their prompt a number, or one each.
        wholes: what tells numbers, by name, of a whole panorama, uint8 (H, W, 3), and its prompt.
        timings: how often what a panorama of each method costs is measured, in turns; 0 for not.
        sweep: the setting and the values that the methods are made of, if they are: as `swept` takes them.

    Raises:
        SettingError: there is nothing to compare, or too little to measure.
    """

    prompts: Sequence[str]
    methods: Mapping[str, Mapping[str, Any]]
    baselines: Sequence[str] = ()
    model: str = "landscapes"
    height: int = 256
    width: int = 1024
    steps: int = 50
    stride: int | None = None
    guidance_scale: float = 7.5
    panoramas: int = 4
    references: int = 32
    reference_folder: str | None = None
    seed: int = 0
    crop: int | None = None
    crops: int | None = None
    features: Mapping[str, Network] = field(default_factory=dict)
    scores: Mapping[str, Network] = field(default_factory=dict)
    wholes: Sequence[Network] = ()
    timings: int = 3
    sweep: str = ""

    def __post_init__(self) -> None:
        for name in ("prompts", "methods"):
            if not getattr(self, name):
                raise SettingError(f"the study has no {name}: there is nothing to compare")
        names = [*self.methods]
        for what, of in (("prompts", [*self.prompts]), ("methods", [slug(name) for name in names])):
            if twice := [name for name in of if of.count(name) > 1]:
                raise SettingError(f"{twice[0]} is there twice among the {what}: leave one out, or name it otherwise")
        for method, parts in self.methods.items():
            if shared := sorted(parts.keys() & {"model", "prompt", "seed", "height", "width"}):
                raise SettingError(f"the method {method} has a {shared[0]} of its own: that is the same for all of a study")
        if unknown := [name for name in self.baselines if name not in self.methods]:
            raise SettingError(f"{unknown[0]} among the baselines is no method: there are {', '.join(names)}")
        for name, least in _LEAST.items():
            if (value := getattr(self, name)) is not None and value < least:
                raise SettingError(f"{name} is {value}: it must be {least} or more")

    @classmethod
    def of(cls, data: Mapping[str, Any], **given: Any) -> "Study":
        """The study that a configuration describes.

        Args:
            data: what `Study` takes by name, and `models`: by a model's name what is different with it, or with a folder of
                the same name.
            given: what is to be in the place of both.

        Raises:
            SettingError: it has something that studies do not have, or lacks what they need.
        """
        data = dict(data)
        models = data.pop("models", {})
        if not isinstance(models, Mapping) or not all(isinstance(overrides, Mapping) for overrides in models.values()):
            raise SettingError("models maps names of models to what is different with them: {NAME: {height: 1024}}")
        model = str(given.get("model", data.get("model", cls.model)))
        same = {name.rpartition("/")[-1]: overrides for name, overrides in models.items()}
        data |= {**models.get(model, same.get(Path(model).name, {})), **given}
        data = {name: value for name, value in data.items() if value is not None}  # as if it were not there
        names = [entry.name for entry in fields(cls)]
        if unknown := sorted(data.keys() - {*names}):
            raise SettingError(unknown_option(unknown[0], names))
        if missing := [name for name in ("prompts", "methods") if name not in data]:
            raise SettingError(f"the study does not say its {' and '.join(missing)}")
        settings = fitted(cls, data)
        for method, parts in settings["methods"].items():
            if not isinstance(parts, Mapping) or not isinstance(parts.get("guidances", []), list):
                raise SettingError(
                    f"the method {method} came as {parts!r}: it maps parts to what they are, {{guidances: [msd]}}"
                )
        settings["methods"] = {str(method): parts for method, parts in settings["methods"].items()}
        sweep = settings.pop("sweep", "")
        return cls(**settings).swept(sweep) if sweep else cls(**settings)

    def as_data(self) -> dict[str, Any]:
        """The same as plain data."""
        return asdict(self)

    def quick(self) -> "Study":
        """A tiny version of all of it: two prompts, two panoramas of two windows' width, four steps."""
        return replace(
            self,
            prompts=self.prompts[:2],
            panoramas=min(self.panoramas, 2),
            references=min(self.references, 4),
            timings=min(self.timings, 1),
            width=min(self.width, 2 * self.height),
            steps=min(self.steps, 4),
        )

    def swept(self, sweep: str) -> "Study":
        """A method for each value of a setting, `guidances.weight=0,1,10`, of the last method.

        Raises:
            SettingError: there is no such setting.
        """
        path, _, values = sweep.partition("=")
        texts = [value.strip() for value in values.split(",")]
        if not path or not all(texts) or len({*texts}) < len(texts):
            raise SettingError(
                f"sweep is {sweep!r}: it must be SETTING=VALUE,VALUE with different values, such as guidances.weight=0,1,10"
            )
        name, base = list(self.methods.items())[-1]
        methods: dict[str, Mapping[str, Any]] = {}
        for value in texts:
            method = deepcopy(dict(base))
            assign(method, path, plain(value))
            methods[f"{name}, {path.rpartition('.')[2]} {value}"] = method
        return replace(self, methods=methods, baselines=(), sweep=sweep)

    def compared(self) -> list[tuple[str, str]]:
        """Baselines, each with the methods after it."""
        names = [*self.methods]
        return [(base, other) for base in self.baselines or names[:1] for other in names[names.index(base) + 1 :]]

    def pairs(self) -> list[tuple[str, int]]:
        """The prompts and seeds of every method, in the same order."""
        return list(product(self.prompts, range(self.seed, self.seed + self.panoramas)))

    def jobs(self, method: str) -> list[Job]:
        """The panoramas of a method, in the order of `pairs`."""
        common = {key: getattr(self, key) for key in ("model", "height", "width", "steps", "stride", "guidance_scale")}
        return [{**common, **self.methods[method], "prompt": prompt, "seed": seed} for prompt, seed in self.pairs()]

    def reference_jobs(self, window: tuple[int, int]) -> list[Job]:
        """The model's own pictures, of `window` pixels, height and width."""
        common = {key: getattr(self, key) for key in ("model", "steps", "guidance_scale")}
        size = {"height": window[0], "width": window[1]}
        seeds = range(self.seed, self.seed + self.references)
        return [{**common, **size, "prompt": prompt, "seed": seed} for prompt, seed in product(self.prompts, seeds)]


_LEAST = {"panoramas": 1, "references": 1, "steps": 1, "timings": 0, "seed": 0, "crop": 1, "crops": 1}


def slug(name: str) -> str:
    """A name of the study's as part of a file's."""
    return re.sub(r"[^\w.]+", "-", name.lower()).strip("-")
