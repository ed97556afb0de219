"""Composition: a model, a scheduler, a fuser and guidances make panoramas from prompts."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict
from importlib.metadata import version
from typing import Any, TypeVar, Unpack, final, overload

import torch
from torch import nn

from panokit.backbones.diffusers.attention import attend, attends
from panokit.callbacks import Hook, Log, call
from panokit.composition import build, describe
from panokit.decoding import decode
from panokit.denoiser import Model, Prompt, Regions
from panokit.errors import NotFiniteError, SettingError
from panokit.fuser import Fuser
from panokit.grid import Grid
from panokit.guidance import Guidance
from panokit.panorama import Panorama, to_image
from panokit.progress import steps_bar
from panokit.run import Run
from panokit.runtime import Runtime
from panokit.scheduler import Scheduler
from panokit.settings import NUMERICS, Settings, Wrap

LARGEST = 1 << 30
"""The most pixels of a canvas: beyond that neither memory nor picture formats hold it."""

Part = TypeVar("Part", Fuser, Guidance, Scheduler)


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
        if isinstance(model, Model) and not all(self._has(network) for network in _networks(model)):
            self.model = deepcopy(model)  # the caller's, and other samplers', stays what it is
        for network in _networks(self.model):
            self.runtime.place(network)
            attend(network, self.runtime.attention)

    def _has(self, network: nn.Module) -> bool:
        return self.runtime.has(network) and attends(network, self.runtime.attention)

    def __repr__(self) -> str:
        return (
            f"Sampler({self.model.name!r}, scheduler={self.scheduler!r}, fuser={self.fuser!r}, "
            f"guidances={list(self.guidances)!r}, runtime={self.runtime!r})"
        )

    def stream(self, prompt: Prompt, **settings: Unpack[Settings]) -> Iterator[Run]:
        """The run after each of its steps, with the arguments of a call; `break` ends it, without an `on_run_end`.

        Raises:
            KeyboardInterrupt: the runtime was asked to stop; the step is done, and callbacks know.
        """
        yield from self._watched(self.begin(prompt, **settings))

    def _watched(self, run: Run) -> Iterator[Run]:
        """The same, of a run that is begun."""
        self._call("on_run_start", run)
        while not run.done:
            run.step()
            self._call("on_step_end", run)
            yield run
            if self.runtime.stopping and not run.done:
                raise KeyboardInterrupt(f"stopped after step {run.level.step} of {run.level.steps}")
        self.runtime.together(lambda: self._call("on_run_end", run))

    def _call(self, hook: Hook, run: Run) -> None:
        try:
            call(self.callbacks, hook, run)
            self.runtime.fabric.call(hook, run=run)
        except Exception as error:  # of one rank alone, it may be
            self.runtime.owe(error)

    def begin(
        self,
        prompt: Prompt,
        *,
        height: int,
        width: int,
        negative_prompt: str = "",
        steps: int = 50,
        guidance_scale: float = 7.5,
        stride: int | None = None,
        wrap: Wrap = False,
        seed: int = 0,
    ) -> Run:
        """A run that has not made a step: what `stream` steps, and what a checkpoint is restored into.

        Raises:
            SettingError: the size, the stride or the number of steps cannot work.
            RankError: another rank was asked for something else, or has other versions.
        """
        settings: Settings = {
            "height": height,
            "width": width,
            "negative_prompt": negative_prompt,
            "steps": steps,
            "guidance_scale": guidance_scale,
            "stride": stride,
            "wrap": wrap,
            "seed": seed,
        }
        denoiser = self.model.denoiser
        grid = self._checked(prompt, **settings)
        recipe = self.recipe(prompt, **settings)
        self.runtime.alike(recipe)
        self.runtime.advise(len(grid))
        with torch.no_grad(), self.runtime.autocast():
            embeddings = denoiser.encode(prompt, negative_prompt, guidance_scale)
        solver = self.scheduler.begin(steps, self.runtime.device, denoiser.training)
        with self._cells_told():
            return Run(
                denoiser=denoiser,
                codec=self.model.codec,
                solver=solver,
                fuser=self.fuser,
                guidances=self.guidances,
                runtime=self.runtime,
                grid=grid,
                embeddings=embeddings,
                seed=seed,
                recipe=recipe,
            )

    def check(self, prompt: Prompt, **settings: Unpack[Settings]) -> Grid:
        """The windows of a call with these arguments, if it can work; nothing is computed.

        Raises:
            SettingError: it cannot.
        """
        grid = self._checked(prompt, **settings)
        solver = self.scheduler.begin(settings.get("steps", 50), self.runtime.device, self.model.denoiser.training)
        with self._cells_told():
            for guidance in self.guidances:
                guidance.begin(grid, solver.levels)
        return grid

    @contextmanager
    def _cells_told(self) -> Iterator[None]:
        """What guidances say of sizes, they say in cells: they know no pixels."""
        try:
            yield
        except SettingError as error:
            raise SettingError(f"{error} (a cell is {self.model.factor} x {self.model.factor} pixels)") from error

    def _checked(
        self,
        prompt: Prompt,
        *,
        height: int,
        width: int,
        negative_prompt: str = "",
        steps: int = 50,
        guidance_scale: float = 7.5,
        stride: int | None = None,
        wrap: Wrap = False,
        seed: int = 0,
    ) -> Grid:
        """The windows, if no value is wrong by itself."""
        if not isinstance(prompt, str | Regions) or not isinstance(negative_prompt, str):
            found = f"{type(prompt).__name__} and {type(negative_prompt).__name__}"
            raise SettingError(f"prompt and negative_prompt are {found}: they must be text, or the prompt Regions")
        for name, value in (("height", height), ("width", width), ("steps", steps), ("seed", seed), ("stride", stride)):
            if not isinstance(value, int) and not (name == "stride" and value is None):
                raise SettingError(f"{name} is {value!r}: it must be a whole number")
        if not math.isfinite(guidance_scale):
            raise SettingError(f"guidance_scale is {guidance_scale}: it must be a number; 1 or less turns guidance off")
        if steps < 1:
            raise SettingError(f"steps is {steps}: at least 1 denoising step is needed")
        if not 0 <= seed < 1 << 64:
            raise SettingError(f"seed is {seed}: it must be from 0 to {(1 << 64) - 1}")
        return self.grid(height, width, stride, wrap)

    def grid(self, height: int, width: int, stride: int | None = None, wrap: Wrap = False) -> Grid:
        """Where the windows lie on a canvas of `height` x `width` pixels; the stride is half a window unless given.

        Raises:
            SettingError: a size below one window or off the codec's factor (the nearest that works is offered), or beyond
                `LARGEST`; or a stride that is not from one cell to one window.
        """
        factor, window = self.model.factor, self.model.denoiser.window
        size = tuple(
            _cells(n, w, factor, name) for n, w, name in zip((height, width), window, ("height", "width"), strict=True)
        )
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
        if not isinstance(wrap, bool) and wrap not in ("x", "y", "xy"):
            raise SettingError(f'wrap is {wrap!r}: it must be False, True (the same as "x"), "x", "y" or "xy"')
        if height * width > LARGEST:
            raise SettingError(f"{width} x {height} pixels are more than a canvas may have, {LARGEST}: make it smaller")
        axes = ("x" if wrap else "") if isinstance(wrap, bool) else wrap
        return Grid(size, window, strides, ("y" in axes, "x" in axes))

    @overload  # to mypy a text is also a sequence of texts; the first overload takes it
    def __call__(  # type: ignore[overload-overlap]
        self, prompt: Prompt, *, progress: bool = True, **settings: Unpack[Settings]
    ) -> Panorama: ...
    @overload
    def __call__(self, prompt: Sequence[Prompt], *, progress: bool = True, **settings: Unpack[Settings]) -> list[Panorama]: ...
    def __call__(
        self,
        prompt: Prompt | Sequence[Prompt],
        *,
        height: int,
        width: int,
        negative_prompt: str = "",
        steps: int = 50,
        guidance_scale: float = 7.5,
        stride: int | None = None,
        wrap: Wrap = False,
        seed: int = 0,
        progress: bool = True,
    ) -> Panorama | list[Panorama]:
        """Make a panorama; from a list of prompts, a list of panoramas, each as if it had been asked for alone.

        Args:
            prompt: what to paint: a text, or `Regions`.
            height: pixels, a multiple of the codec's factor, one window or more.
            width: likewise.
            negative_prompt: what to keep away from.
            steps: denoising steps, 1 or more.
            guidance_scale: of classifier-free guidance (Ho & Salimans 2022); 1 or less turns it off.
            stride: pixels from one window to the next; half a window unless given.
            wrap: whether the panorama closes to a ring: `True` or `"x"` sideways, `"y"` up and down, `"xy"` both.
            seed: of the one generator that everything random comes from.
            progress: whether to show a progress bar where there is a terminal.

        Raises:
            SettingError: a value that cannot work; it says which, and what would.
            NotFiniteError: the model returned NaN or infinity.
        """
        settings: Settings = {
            "height": height,
            "width": width,
            "negative_prompt": negative_prompt,
            "steps": steps,
            "guidance_scale": guidance_scale,
            "stride": stride,
            "wrap": wrap,
            "seed": seed,
        }
        if isinstance(prompt, str | Regions) or not isinstance(prompt, Sequence):
            return self._panorama(prompt, settings, progress)
        if not prompt:
            raise SettingError("the list of prompts is empty: give at least one")
        prompts = list(prompt)
        return self.runtime.replicas(lambda k: self._panorama(prompts[k], settings, progress), len(prompts))

    def _panorama(self, prompt: Prompt, settings: Settings, progress: bool) -> Panorama:
        run = self.begin(prompt, **settings)
        with steps_bar(run, shown=progress and self.runtime.rank == 0) as advance:
            for _ in self._watched(run):
                advance()
        return self.runtime.together(lambda: Panorama(run.canvas, to_image(self.decode(run)), run.recipe))

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

    def recipe(self, prompt: Prompt, **settings: Unpack[Settings]) -> dict[str, Any]:
        """What a panorama is made from, with the arguments of a call: all settings of all parts and versions, in plain data."""
        return {
            "panokit": version("panokit"),
            "torch": version("torch"),
            "diffusers": version("diffusers"),
            "prompt": prompt if isinstance(prompt, str) else asdict(prompt),
            "negative_prompt": "",
            "steps": 50,
            "guidance_scale": 7.5,
            "stride": None,
            "wrap": False,
            "seed": 0,
            **settings,
            "model": self.model.name,
            "scheduler": describe(self.scheduler),
            "fuser": describe(self.fuser),
            "guidances": [describe(guidance) for guidance in self.guidances],
            "precision": self.runtime.precision,
            **{key: getattr(self.runtime, key) for key in NUMERICS},
        }


def _networks(model: Model) -> list[nn.Module]:
    parts: Iterable[Any] = filter(None, (model.denoiser, model.codec))
    return [network for part in parts for network in part.modules()]


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
