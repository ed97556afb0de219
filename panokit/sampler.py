"""Composition: a model, a scheduler, a fuser and guidances make panoramas from prompts."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, TypeVar, final, overload

import torch

from panokit.callbacks import Hook, Log, call
from panokit.composition import build, describe
from panokit.decoding import decode
from panokit.denoiser import Model, Prompt, Regions
from panokit.errors import NotFiniteError, SettingError
from panokit.fuser import Fuser
from panokit.grid import Grid
from panokit.guidance import Guidance
from panokit.moved import no_attribute
from panokit.panorama import Panorama, to_image
from panokit.passes import Parts
from panokit.progress import steps_bar
from panokit.run import Run
from panokit.runtime import Runtime
from panokit.scheduler import Scheduler, Solver
from panokit.settings import NUMERICS, Settings, takes_settings

LARGEST = 1 << 30
"""The most pixels of a canvas: beyond that neither memory nor picture formats hold it."""

Part = TypeVar("Part", Fuser, Guidance, Scheduler)


@final
@dataclass(frozen=True, eq=False)
class Plan:
    """A panorama that can be made, before anything is computed.

    Attributes:
        sampler: what makes it.
        prompt: what to paint.
        settings: the arguments of the call, with a height and a width.
        grid: where the windows lie.
        recipe: everything that makes the picture, as plain data.
    """

    sampler: "Sampler"
    prompt: Prompt
    settings: Settings
    grid: Grid
    recipe: Mapping[str, Any]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        factor = self.sampler.model.factor
        high, wide = self.grid.size
        return wide * factor, high * factor

    @property
    def passes(self) -> int:
        """How many windows all steps take together, but for what guidances add."""
        return len(self.grid) * self.settings.steps

    def check(self) -> "Plan":
        """The same plan, when the scheduler and the guidances have agreed to it.

        Raises:
            SettingError: one of them cannot do it.
        """
        self.sampler._check(self)
        return self

    def begin(self) -> Run:
        """A run that has not made a step; see `Sampler.begin`."""
        return self.sampler._begin(self)

    def make(self, *, callbacks: Sequence[object] = (), progress: bool = True) -> Panorama:
        """The panorama; see `Sampler.__call__`."""
        return self.sampler._make(self, callbacks, progress)


@final
class Sampler:
    """Makes panoramas. It holds settings and networks; each call starts a run of its own.

    Args:
        model: the name of an installed model, a folder in diffusers' format, a hub id, or a `Model`.
        scheduler: a name such as `"ddim"` or `"dpm++_2m"`, a name with settings, or a `Scheduler`.
        fuser: likewise, or a `Fuser`.
        guidances: likewise, or `Guidance` objects, in any order. With settings a name is a mapping,
            `{"plugin": "msd", "weight": 5}`, as in a configuration.
        runtime: where to run; one device unless given.
        callbacks: objects with some of the methods `on_run_start`, `on_step_end` and `on_run_end`, each given only the
            arguments that it names, of `run`: see `panokit.callbacks`. Those of the runtime's Fabric are called too.
        loggers: Lightning's loggers, which are told of each step: see `panokit.callbacks.Log`.

    Raises:
        PluginNotFoundError: a name that nobody answers to.
        ModelError: the model cannot be loaded.
    """

    def __init__(
        self,
        model: str | Model = "landscapes",
        *,
        scheduler: str | Mapping[str, Any] | Scheduler = "ddim",
        fuser: str | Mapping[str, Any] | Fuser = "multidiffusion",
        guidances: Sequence[str | Mapping[str, Any] | Guidance] = (),
        runtime: Runtime | None = None,
        callbacks: Sequence[object] = (),
        loggers: Sequence[object] = (),
    ) -> None:
        if isinstance(guidances, str | Mapping | Guidance):
            raise SettingError(f"guidances is {guidances!r}: it must be a list, [{guidances!r}]")
        self.fuser: Fuser = _plugin(fuser, Fuser)
        self.guidances: tuple[Guidance, ...] = tuple(_plugin(guidance, Guidance) for guidance in guidances)
        self.scheduler: Scheduler = _plugin(scheduler, Scheduler)
        self.runtime = runtime or Runtime()
        self.callbacks = (*callbacks, Log(loggers)) if loggers else tuple(callbacks)
        self.runtime.launch()
        self.model = _model(model)
        if isinstance(model, Model) and not all(self.runtime.placement.holds(network) for network in model.networks):
            self.model = deepcopy(model)  # the caller's, and other samplers', stays what it is
        for network in self.model.networks:
            self.runtime.place(network)
        self.model.configure(self.runtime.placement.execution)

    def __repr__(self) -> str:
        return (
            f"Sampler({self.model.name!r}, scheduler={self.scheduler!r}, fuser={self.fuser!r}, "
            f"guidances={list(self.guidances)!r}, runtime={self.runtime!r})"
        )

    @takes_settings
    def plan(self, prompt: Prompt, **settings: Any) -> Plan:
        """What a call with these arguments would make, if no value is wrong by itself; nothing is computed.

        Args:
            prompt: what to paint: a text, or `Regions`.
            settings: see `Settings`.

        Raises:
            SettingError: a value cannot work; the error says which, and what would.
        """
        return self._plan(prompt, settings)

    @takes_settings
    def begin(self, prompt: Prompt, **settings: Any) -> Run:
        """A run that has not made a step: what `stream` steps, and what a checkpoint is restored into.

        Args:
            prompt: what to paint: a text, or `Regions`.
            settings: see `Settings`.

        Raises:
            SettingError: the size, the stride or the number of steps cannot work.
            RankError: another rank was asked for something else, or has other versions.
        """
        return self._begin(self._plan(prompt, settings))

    @takes_settings
    def stream(self, prompt: Prompt, **settings: Any) -> Iterator[Run]:
        """The run after each of its steps; `break` ends it, without an `on_run_end`.

        Args:
            prompt: what to paint: a text, or `Regions`.
            settings: see `Settings`.

        Raises:
            KeyboardInterrupt: the run was asked to stop; its step is done, and callbacks know.
        """
        yield from self._steps(self.begin(prompt, **settings), self.callbacks)

    @overload
    def __call__(
        self, prompt: Prompt, *, callbacks: Sequence[object] = (), progress: bool = True, **settings: Any
    ) -> Panorama: ...
    @overload
    def __call__(
        self, prompt: list[Prompt], *, callbacks: Sequence[object] = (), progress: bool = True, **settings: Any
    ) -> list[Panorama]: ...
    @takes_settings
    def __call__(
        self,
        prompt: Prompt | Sequence[Prompt],
        *,
        callbacks: Sequence[object] = (),
        progress: bool = True,
        **settings: Any,
    ) -> Panorama | list[Panorama]:
        """Make a panorama; from a list of prompts, a list of panoramas, each as if it had been asked for alone.

        Args:
            prompt: what to paint: a text, or `Regions`.
            callbacks: further callbacks for this call.
            progress: whether to show a progress bar where there is a terminal.
            settings: height, width, steps and whatever else `Settings` has.

        Raises:
            SettingError: a value cannot work; the error says which, and what would.
            NotFiniteError: the model returned NaN or infinity.
        """
        if isinstance(prompt, str | Regions) or not isinstance(prompt, Sequence):
            return self._make(self._plan(prompt, settings), callbacks, progress)
        if not prompt:
            raise SettingError("the list of prompts is empty: give at least one")
        plans = [self._plan(text, settings) for text in prompt]
        return self.runtime.replicas(lambda k: self._make(plans[k], callbacks, progress), len(plans))

    def _make(self, plan: Plan, callbacks: Sequence[object], progress: bool) -> Panorama:
        run = plan.begin()
        with steps_bar(run, shown=progress and self.runtime.global_rank == 0) as advance:
            for _ in self._steps(run, (*self.callbacks, *callbacks)):
                advance()
        return self.runtime.barrier(lambda: Panorama(run.canvas, to_image(self.decode(run)), run.recipe))

    def _steps(self, run: Run, callbacks: Sequence[object]) -> Iterator[Run]:
        """The run after each of its steps, with its callbacks called."""

        def notify(hook: Hook) -> None:
            try:
                call(callbacks, hook, run)
                self.runtime.fabric.call(hook, run=run)
            except Exception as error:  # it may be of this rank alone
                self.runtime.defer(error)

        notify("on_run_start")
        while not run.done:
            run.step()
            notify("on_step_end")
            yield run
            if run.stopping and not run.done:
                raise KeyboardInterrupt(f"stopped after step {run.level.step} of {run.level.steps}")
        self.runtime.barrier(lambda: notify("on_run_end"))

    def _begin(self, plan: Plan) -> Run:
        self.runtime.require_same(plan.recipe)
        self.runtime.advise(len(plan.grid))
        denoiser, settings = self.model.denoiser, plan.settings
        with torch.no_grad(), self.runtime.autocast():
            embeddings = denoiser.encode(plan.prompt, settings.negative_prompt, settings.guidance_scale)
        parts = Parts(denoiser, self.model.codec, self._solver(plan), self.fuser, self.runtime, embeddings)
        with self._pixels_explained():
            return Run(parts, guidances=self.guidances, grid=plan.grid, seed=settings.seed, recipe=plan.recipe)

    def _check(self, plan: Plan) -> None:
        with self._pixels_explained():
            levels = self._solver(plan)().levels
            for guidance in self.guidances:
                guidance.begin(plan.grid, levels)

    def _solver(self, plan: Plan) -> Callable[[], Solver]:
        """Makes a fresh solver."""
        return partial(self.scheduler.begin, plan.settings.steps, self.runtime.device, self.model.denoiser.training)

    def _plan(self, prompt: object, settings: Mapping[str, Any]) -> Plan:
        """The plan, if no value is wrong by itself."""
        if not isinstance(prompt, str | Regions):
            raise SettingError(f"prompt is a {type(prompt).__name__}: it must be text, or Regions")
        chosen = Settings.of(settings)
        high, wide = (cells * self.model.factor for cells in self.model.denoiser.window)
        height = high if chosen.height is None else chosen.height
        chosen = replace(chosen, height=height, width=4 * wide if chosen.width is None else chosen.width)
        return Plan(self, prompt, chosen, self._grid(chosen), self._recipe(prompt, chosen))

    def _grid(self, settings: Settings) -> Grid:
        """Where the windows lie.

        Raises:
            SettingError: a size below one window or off the codec's factor (the nearest that works is offered), or beyond
                `LARGEST`; or a stride that is not from one cell to one window.
        """
        factor, window, stride = self.model.factor, self.model.denoiser.window, settings.stride
        pixels = {"height": settings.height or 0, "width": settings.width or 0}
        size = tuple(_cells(n, w, factor, name) for (name, n), w in zip(pixels.items(), window, strict=True))
        if stride is None:
            strides = tuple(max(1, w // 2) for w in window)
        elif stride < factor or stride % factor or stride // factor > min(window):
            largest = min(window) * factor
            near = min(max(round(stride / factor), 1) * factor, largest)
            raise SettingError(
                f"a stride of {stride} pixels does not work with {self.model.name}: it must be a multiple of {factor} from "
                f"{factor} to {largest}, the window; the nearest is {near}"
            )
        else:
            strides = (stride // factor,) * len(window)
        if pixels["height"] * pixels["width"] > LARGEST:
            raise SettingError(
                f"{pixels['width']} x {pixels['height']} pixels are more than a canvas may have, {LARGEST}: make it smaller"
            )
        return Grid(size, window, strides, settings.wraps)

    if not TYPE_CHECKING:  # type checkers know the attributes

        def __getattr__(self, name: str) -> Any:
            raise no_attribute(self, name)

    @contextmanager
    def _pixels_explained(self) -> Iterator[None]:
        """Guidances know no pixels: what they say about sizes is in cells."""
        try:
            yield
        except SettingError as error:
            raise SettingError(f"{error} (a cell is {self.model.factor} x {self.model.factor} pixels)") from error

    @torch.no_grad()
    def decode(self, run: Run) -> torch.Tensor:
        """The picture of a run's canvas as it is, `3 H W` in about [0, 1]; large ones in tiles that the ranks share.

        Raises:
            NotFiniteError: the decoder returned NaN or infinity.
        """
        canvas = run.canvas.float()
        picture = decode(self.model.codec, canvas, run.grid.wrap, self.runtime) if self.model.codec else canvas
        if not torch.isfinite(picture).all():
            raise NotFiniteError(
                "the decoded picture holds NaN or infinity, so it would be black: try precision 32-true or bf16-mixed"
            )
        return picture

    def _recipe(self, prompt: Prompt, settings: Settings) -> dict[str, Any]:
        """All settings of all parts, and versions, as plain data."""
        return {
            "panokit": version("panokit"),
            "torch": version("torch"),
            "diffusers": version("diffusers"),
            "prompt": prompt if isinstance(prompt, str) else asdict(prompt),
            **settings.as_data(),
            "model": self.model.name,
            "scheduler": describe(self.scheduler),
            "fuser": describe(self.fuser),
            "guidances": [describe(guidance) for guidance in self.guidances],
            "precision": self.runtime.precision,
            **{key: getattr(self.runtime, key) for key in NUMERICS},
        }


def _plugin(given: str | Mapping[str, Any] | Part, base: type[Part]) -> Part:
    """The plugin that was given, or is called or described so."""
    if isinstance(given, str | Mapping):
        return build(base, given)
    if not isinstance(given, base):
        what = f"the class {given.__name__}" if isinstance(given, type) else f"a {type(given).__name__}"
        raise SettingError(f"{what} came where a {base.__name__} was expected: give a name or an object, {base.__name__}(...)")
    return given


def _model(model: str | Model) -> Model:
    if isinstance(model, Model):
        return model
    from panokit.backbones.diffusers.model import load_model

    return load_model(str(model))


def _cells(pixels: int, window: int, factor: int, name: str) -> int:
    """Pixels in cells of the canvas."""
    least = window * factor
    if pixels < least:
        raise SettingError(
            f"{name} {pixels} is below one window: this model needs {least} pixels or more, in steps of {factor}"
        )
    if pixels % factor:
        near = f"{pixels // factor * factor} or {-(-pixels // factor) * factor}"
        raise SettingError(f"{name} {pixels} is no multiple of {factor}, the pixels of a latent cell: the nearest are {near}")
    return pixels // factor
