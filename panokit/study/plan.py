"""The plan of a study, as plain data: prompts, methods, seeds and measures."""

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
from panokit.settings import LOOPS, unknown_option

Job = dict[str, Any]
"""The options of one panorama, by name; `panokit.jobs.JOB` lists them."""
Network = str | Mapping[str, Any]
"""`module:Class`, or a mapping with this name as `plugin` and the arguments of the class."""


@final
@dataclass(frozen=True)
class Study:
    """A comparison of methods. Every method makes a panorama of each prompt with each seed; all are measured in the same way.

    Attributes:
        prompts: what to paint.
        methods: the options of each method, by its name: mostly `guidances`, `fuser` and `scheduler`.
        baselines: names of methods. The methods after a baseline are compared with it. Without any, the first method is one.
        model: the model that makes all panoramas.
        height: height of the panoramas in pixels.
        width: width of the panoramas in pixels.
        steps: number of denoising steps.
        stride: pixels from one window to the next; None for half a window.
        guidance_scale: strength of classifier-free guidance.
        panoramas: number of panoramas for each prompt and method, 1 or more.
        references: number of reference pictures for each prompt, 1 or more. The model makes them at its own size.
        reference_folder: a folder with pictures of the model's own size, which replace these references. If panokit named some
            of them after each prompt, each prompt is compared with its own; otherwise every prompt is compared with all.
        seed: seed of the first panorama and of the first reference of each prompt. The next ones have the seeds after it.
        crop: side of the squares that are compared with references, in pixels; None for the full height.
        crops: number of squares of each panorama; None for as many as lie side by side.
        features: networks for KID and FID, by their name in the report. They take uint8 pictures `n 3 H W` and return features
            `n d`.
        scores: networks that rate squares, by their name in the report. They take the squares of a panorama, uint8 `n 3 H W`,
            and its prompt, and return one number, or one for each square.
        wholes: measures that take a whole panorama, uint8 (H, W, 3), and its prompt, and return numbers by name.
        timings: how often the cost of each method is measured; methods alternate. 0 measures no costs.
        sweep: the setting and values of a sweep, if it made the methods, in the form that `swept` takes.

    Raises:
        SettingError: prompts or methods are missing or appear twice, or a value cannot work.
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
                raise SettingError(f"the study has no {name}: give at least one")
        names = [*self.methods]
        for kind, entries in (("prompts", [*self.prompts]), ("methods", [slug(name) for name in names])):
            if repeated := [entry for entry in entries if entries.count(entry) > 1]:
                raise SettingError(f"{repeated[0]} appears twice among the {kind}: remove one, or rename it")
        for method, parts in self.methods.items():
            if shared := sorted(parts.keys() & {"model", "prompt", "seed", "height", "width"}):
                raise SettingError(
                    f"the method {method} sets {shared[0]}, which is the same for all methods: set it for the whole study"
                )
            loops = {"wrap"} if parts.get("wrap") in LOOPS else set()
            if of_films := sorted(parts.keys() & {"frames", "fps", "frame_stride"} | loops):
                raise SettingError(
                    f"the method {method} sets {of_films[0]}, for films, and a study compares pictures: leave it out"
                )
        if unknown := [name for name in self.baselines if name not in self.methods]:
            raise SettingError(f"the baseline {unknown[0]} is not a method: choose from {', '.join(names)}")
        for name, least in _LEAST.items():
            if (value := getattr(self, name)) is not None and value < least:
                raise SettingError(f"{name} is {value}: it must be {least} or more")

    @classmethod
    def of(cls, data: Mapping[str, Any], **overrides: Any) -> "Study":
        """Make the study that a configuration describes.

        Args:
            data: the attributes of `Study` by name. It may also have `models`: settings that apply only to one model, by the
                name of the model or of its folder. A value of None counts as missing.
            overrides: attributes that replace those of `data` and `models`.

        Raises:
            SettingError: an option is unknown or missing, or has a wrong type or value.
        """
        data = dict(data)
        models = data.pop("models", {})
        if not isinstance(models, Mapping) or not all(isinstance(settings, Mapping) for settings in models.values()):
            raise SettingError("models must map names of models to their settings: {NAME: {height: 1024}}")
        model = str(overrides.get("model", data.get("model", cls.model)))
        by_folder = {name.rpartition("/")[-1]: settings for name, settings in models.items()}
        data |= {**models.get(model, by_folder.get(Path(model).name, {})), **overrides}
        data = {name: value for name, value in data.items() if value is not None}
        names = [entry.name for entry in fields(cls)]
        if unknown := sorted(data.keys() - {*names}):
            raise SettingError(unknown_option(unknown[0], names))
        if missing := [name for name in ("prompts", "methods") if name not in data]:
            raise SettingError(f"the study has no {' and no '.join(missing)}: add them to its configuration")
        settings = fitted(cls, data)
        for method, parts in settings["methods"].items():
            if not isinstance(parts, Mapping) or not isinstance(parts.get("guidances", []), list):
                raise SettingError(f"the method {method} came as {parts!r}: it must be a mapping such as {{guidances: [msd]}}")
        settings["methods"] = {str(method): parts for method, parts in settings["methods"].items()}
        sweep = settings.pop("sweep", "")
        return cls(**settings).swept(sweep) if sweep else cls(**settings)

    def as_data(self) -> dict[str, Any]:
        """The study as plain data."""
        return asdict(self)

    def quick(self) -> "Study":
        """A tiny version of this study: two prompts, two panoramas of each, twice as wide as high, and four steps at most."""
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
        """Replace the methods by copies of the last one, one for each value of a setting.

        Args:
            sweep: the setting and its values, such as `guidances.weight=0,1,10`.

        Returns:
            The new study. It has no baselines, so the first value is the baseline.

        Raises:
            SettingError: the text has another form, or there is no such setting.
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
        """All pairs of a baseline and a method after it."""
        names = [*self.methods]
        return [(base, other) for base in self.baselines or names[:1] for other in names[names.index(base) + 1 :]]

    def pairs(self) -> list[tuple[str, int]]:
        """The prompt and seed of each panorama, in the order that all methods share."""
        return list(product(self.prompts, range(self.seed, self.seed + self.panoramas)))

    def jobs(self, method: str) -> list[Job]:
        """The jobs of a method's panoramas, in the order of `pairs`."""
        common = {key: getattr(self, key) for key in ("model", "height", "width", "steps", "stride", "guidance_scale")}
        return [
            {**_PICTURES, **common, **self.methods[method], "prompt": prompt, "seed": seed} for prompt, seed in self.pairs()
        ]

    def reference_jobs(self, window: tuple[int, int]) -> list[Job]:
        """The jobs of the model's own pictures, prompt by prompt.

        Args:
            window: height and width of the model's window, in pixels.
        """
        common = {key: getattr(self, key) for key in ("model", "steps", "guidance_scale")}
        size = {"height": window[0], "width": window[1]}
        seeds = range(self.seed, self.seed + self.references)
        return [
            {**_PICTURES, **common, **size, "prompt": prompt, "seed": seed} for prompt, seed in product(self.prompts, seeds)
        ]


_PICTURES = {"frames": 1}
"""A study compares pictures, also those of a model of films."""
_LEAST = {"panoramas": 1, "references": 1, "steps": 1, "timings": 0, "seed": 0, "crop": 1, "crops": 1}


def slug(name: str) -> str:
    """A name as part of a file name, in lower case; `-` replaces other characters than letters, digits, `_` and `.`."""
    return re.sub(r"[^\w.]+", "-", name.lower()).strip("-")
