"""Sampler: a model, a scheduler, a fuser and guidances, composed to make panoramas from prompts."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, final, overload

import torch
from jaxtyping import Float

from panokit import models
from panokit.callbacks import Hook, Log, call
from panokit.canvas import filled, pictured, pixels_explained, windows_of
from panokit.composition import build, describe
from panokit.decoding import require_tiles, strips
from panokit.denoiser import Model
from panokit.errors import NotFiniteError, SettingError
from panokit.footage import frames_of
from panokit.fuser import Fuser
from panokit.guidance import Guidance, require_one_start
from panokit.layout import Layout
from panokit.memory import memory_explained
from panokit.moved import no_attribute
from panokit.output import check_file
from panokit.panorama import SMALL, Panorama, SmallCopy, to_rows
from panokit.passes import Parts
from panokit.picture import Start, painted_steps, require_shape, start
from panokit.pixels import label, read
from panokit.progress import steps_bar
from panokit.projecting import picture_of
from panokit.recipe import PICTURES
from panokit.run import Run
from panokit.runtime import Runtime
from panokit.runtime.placement import sharing
from panokit.scene import Prompt, Regions, Scene
from panokit.scheduler import Scheduler, Solver
from panokit.settings import NUMERICS, Settings, steadier, takes_settings
from panokit.windows import Projected, Windows, require_cover
from panokit.writing import is_streamed, writing

_ROWS = 64
"""The most rows of a picture that are rounded and written at once."""

Part = TypeVar("Part", Layout, Fuser, Guidance, Scheduler)


@final
@dataclass(frozen=True, eq=False)
class Plan:
    """A panorama that a sampler can make. Nothing is computed yet.

    Attributes:
        sampler: the sampler that makes it.
        prompt: what to paint.
        settings: the settings of the call; height, width, frames, steps and guidance scale are filled in.
        windows: where the windows lie.
        scene: the prompt, with its masks read, and how strongly it guides.
        start: the picture that the canvas starts from; None for noise alone.
        recipe: everything that is needed to make the picture again, as plain data.
    """

    sampler: "Sampler"
    prompt: Prompt
    settings: Settings
    windows: Windows
    scene: Scene
    start: Start | None
    recipe: Mapping[str, Any]

    if not TYPE_CHECKING:  # type checkers know the attributes

        def __getattr__(self, name: str) -> Any:
            raise no_attribute(self, name)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        high, wide = pictured(self.windows)
        factor = self.sampler.model.factor
        return wide * factor, high * factor

    @property
    def frames(self) -> int:
        """Frames of the film; 1 for a picture."""
        windows, model = self.windows, self.sampler.model
        return frames_of(windows.size[0], model.time, windows.wrap[0]) if len(windows.window) == 3 else 1

    @property
    def passes(self) -> int:
        """Windows times steps that paint times texts: about how many passes of the model it takes.

        Guidances may add to them, a head start takes some away, and layouts whose windows move may have more in some steps.
        """
        steps = self.settings.steps or 0
        painted = painted_steps(steps, self.start.strength) if self.start else steps
        return len(self.windows) * painted * len(self.scene.texts)

    def check(self) -> "Plan":
        """Check that the scheduler and the guidances can make this panorama.

        A pipeline of diffusers encodes an empty text for that, the first time, before it sets its own scheduler.

        Returns:
            This plan.

        Raises:
            SettingError: one of them cannot.
        """
        self.sampler._check(self)
        return self

    def begin(self) -> Run:
        """Start a run, without a step yet; see `Sampler.begin`."""
        return self.sampler._begin(self)

    def make(
        self, *, out: str | os.PathLike[str] | None = None, callbacks: Sequence[object] = (), progress: bool = True
    ) -> Panorama:
        """Make the panorama; see `Sampler.__call__`.

        Args:
            out: the file that it is written to; None for none.
            callbacks: further callbacks for this run.
            progress: whether to show a progress bar where there is a terminal or a notebook.
        """
        return self.sampler._make(self, out, callbacks, progress)


@final
class Sampler:
    """Makes panoramas. A sampler holds settings and networks; each call starts a run of its own.

    Scheduler, layout, fuser and guidances may come as objects, as names, or as names with settings. A name with settings is a
    mapping, `{"plugin": "msd", "weight": 5}`, as in a configuration.

    Args:
        model: a pipeline of diffusers, which stays as it is; the name of an installed model, a folder in diffusers' format, or
            a hub id; or a `Model`, which `load_model` returns. A mapping gives a name settings, `{"plugin": "owner/model",
            "variant": "fp16"}`.
        scheduler: takes the canvas from one noise level to the next: `"ddim"`, `"dpm++_2m"`, ...; `"own"` is the model's own,
            as its pipeline sets it; None for the model's choice, which is `"ddim"` for Stable Diffusion and `"own"` for others.
        layout: says where the windows lie.
        fuser: joins windows into a canvas.
        guidances: keep the windows in agreement, in any order.
        runtime: the devices to run on; None for one device.
        callbacks: objects with some of the methods in `panokit.callbacks`. Those of the runtime's Fabric are called too.
        loggers: Lightning's loggers, which get numbers after each step: see `panokit.callbacks.Log`.

    Raises:
        PluginNotFoundError: no plugin, or more than one, has a given name.
        PluginLoadError: a plugin cannot be imported.
        ModelError: the model cannot be loaded.
        OutOfMemoryError: the model does not fit the memory.
        SettingError: a plugin or the runtime cannot work with its settings.
    """

    def __init__(
        self,
        model: Any = "landscapes",
        *,
        scheduler: str | Mapping[str, Any] | Scheduler | None = None,
        layout: str | Mapping[str, Any] | Layout = "overlap",
        fuser: str | Mapping[str, Any] | Fuser = "multidiffusion",
        guidances: Sequence[str | Mapping[str, Any] | Guidance] = (),
        runtime: Runtime | None = None,
        callbacks: Sequence[object] = (),
        loggers: Sequence[object] = (),
    ) -> None:
        if isinstance(guidances, str | Mapping | Guidance):
            raise SettingError(f"guidances is {guidances!r}: it must be a list, [{guidances!r}]")
        self.layout: Layout = _plugin(layout, Layout)
        self.fuser: Fuser = _plugin(fuser, Fuser)
        self.guidances: tuple[Guidance, ...] = tuple(_plugin(guidance, Guidance) for guidance in guidances)
        require_one_start(self.guidances)
        named: Scheduler | None = None if scheduler is None else _plugin(scheduler, Scheduler)
        self.runtime = runtime or Runtime()
        self.callbacks = (*callbacks, Log(loggers)) if loggers else tuple(callbacks)
        self.runtime.launch(lambda: models.bytes_of(model))
        with self.runtime.working():  # one rank may have to fetch it
            self.model = _model(model)
        if len(window := self.model.denoiser.window) not in (2, 3):
            raise SettingError(
                f"the windows of {self.model.name} are {window} cells, and a panorama has two axes, or three if it is a film: "
                "use a model of pictures or films"
            )
        if isinstance(model, Model) and not all(self.runtime.placement.holds(network) for network in model.networks):
            self.model = deepcopy(model, sharing(model.networks))  # the caller, or another sampler, may still use this one
        self.scheduler: Scheduler = named or _plugin(self.model.denoiser.scheduler, Scheduler)
        with memory_explained(f"the model {self.model.name}"):
            for network in self.model.networks:
                self.runtime.place(network)
        self.model.configure(self.runtime.placement.execution)

    def __repr__(self) -> str:
        return (
            f"Sampler({self.model.name!r}, scheduler={self.scheduler!r}, layout={self.layout!r}, fuser={self.fuser!r}, "
            f"guidances={list(self.guidances)!r}, runtime={self.runtime!r})"
        )

    @takes_settings
    def plan(self, prompt: Prompt, **settings: Any) -> Plan:
        """Plan a panorama, without computing anything.

        Each value is checked by itself. `Plan.check` also asks the scheduler and the guidances.

        Args:
            prompt: what to paint: a text, or `Regions`.
            settings: see `Settings`.

        Returns:
            The plan.

        Raises:
            SettingError: a value cannot work. The message names it, and the nearest that works.
        """
        return self._plan(prompt, settings)

    @takes_settings
    def begin(self, prompt: Prompt, **settings: Any) -> Run:
        """Start a run, without a step yet. Call its `step` until it is `done`.

        Args:
            prompt: what to paint: a text, or `Regions`.
            settings: see `Settings`.

        Returns:
            The run at its first noise level.

        Raises:
            SettingError: a value cannot work.
            RankError: another rank makes another picture, or has other versions of libraries.
        """
        return self._begin(self._plan(prompt, settings))

    @takes_settings
    def stream(self, prompt: Prompt, **settings: Any) -> Iterator[Run]:
        """Make a run step by step. A `break` ends it; then no `on_run_end` is called.

        Args:
            prompt: what to paint: a text, or `Regions`.
            settings: see `Settings`.

        Yields:
            The run after each of its steps, always the same object.

        Raises:
            KeyboardInterrupt: the run was asked to stop. Its step is complete, and its callbacks were called.
        """
        yield from self._steps(self.begin(prompt, **settings), self.callbacks)

    @overload
    def __call__(
        self,
        prompt: Prompt,
        *,
        out: str | os.PathLike[str] | None = None,
        callbacks: Sequence[object] = (),
        progress: bool = True,
        **settings: Any,
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
        out: str | os.PathLike[str] | None = None,
        callbacks: Sequence[object] = (),
        progress: bool = True,
        **settings: Any,
    ) -> Panorama | list[Panorama]:
        """Make a panorama, or a list of panoramas from a list of prompts.

        Args:
            prompt: what to paint: a text, or `Regions`; or a list of them.
            out: the file of the one panorama, which rank 0 writes. A Deep Zoom picture, and a PNG or TIFF with more than 16,384
                pixels a side, are written while they are decoded: a large panorama fits the memory so, and the result has a
                smaller copy.
            callbacks: further callbacks for this call.
            progress: whether to show a progress bar where there is a terminal or a notebook.
            settings: height, width, steps and the others of `Settings`.

        Returns:
            The panorama. For a list, one panorama for each prompt, the same that a call with this prompt alone makes.

        Raises:
            SettingError: a value cannot work. The message names it, and the nearest that works.
            NotFiniteError: the model or a guidance returned NaN or infinity.
            ContractError: a plugin returned a wrong type or shape.
            OutOfMemoryError: a single window, the canvas or the picture does not fit the memory.
            OutputError: the panorama cannot be written to `out`.
            KeyboardInterrupt: the run was asked to stop.
        """
        if isinstance(prompt, str | Regions) or not isinstance(prompt, Sequence):
            return self._make(self._plan(prompt, settings), out, callbacks, progress)
        if not prompt:
            raise SettingError("the list of prompts is empty: give at least one")
        if out is not None:
            raise SettingError(
                f"out names one file, {out}, and a list of prompts makes several: call with one prompt at a time"
            )
        plans = [self._plan(text, settings) for text in prompt]
        return self.runtime.replicas(lambda k: self._make(plans[k], None, callbacks, progress), len(plans))

    def _make(self, plan: Plan, out: str | os.PathLike[str] | None, callbacks: Sequence[object], progress: bool) -> Panorama:
        path = None if out is None else Path(out)
        if path:
            self.runtime.broadcast(lambda: check_file(path, plan.size, plan.frames))
        run = plan.begin()
        with steps_bar(run, shown=progress and self.runtime.global_rank == 0) as advance:
            for _ in self._steps(run, (*self.callbacks, *callbacks)):
                advance()
        if path and plan.frames == 1 and is_streamed(path, plan.size):
            return self.runtime.barrier(lambda: self._streamed(run, path, plan.size))
        panorama = self.runtime.barrier(lambda: Panorama.of(run.canvas, self.decode(run), run.recipe))
        if path:
            self.runtime.broadcast(lambda: panorama.save(path))
        return panorama

    @memory_explained("the picture")
    @torch.no_grad()
    def _streamed(self, run: Run, path: Path, size: tuple[int, int]) -> Panorama:
        """Write the picture of a run while it is decoded. All ranks decode it, and one of them writes."""
        small = SmallCopy(size, SMALL)
        with writing(path, size, run.recipe) if self.runtime.writes else nullcontext() as write:
            for strip in self._strips(run):
                for rows in strip.split(_ROWS, dim=1):
                    small.add(rows)
                    if write:
                        write(to_rows(rows))
        return Panorama(run.canvas, small.image, run.recipe, size, path)

    def _strips(self, run: Run) -> Iterator[Float[torch.Tensor, "3 h W"]]:
        """The picture of a run in strips, from the top."""
        codec, canvas, windows, top = self.model.codec, run.canvas.float(), run.windows, 0
        if codec is None or isinstance(windows, Projected):
            parts: Iterable[torch.Tensor] = picture_of(codec, canvas, windows, self.runtime).split(_ROWS, dim=1)
        else:
            parts = strips(codec, canvas, windows.wrap, self.runtime)
        for strip in parts:
            yield self._finished(run, strip, top)
            top += strip.shape[1]

    def _steps(self, run: Run, callbacks: Sequence[object]) -> Iterator[Run]:
        """The run after each of its steps. Callbacks are called."""

        def notify(hook: Hook) -> None:
            with self.runtime.agreeing(), self.runtime.working():
                call(callbacks, hook, run)
                self.runtime.fabric.call(hook, run=run)

        run.on_inner_step = partial(notify, "on_inner_step_end")
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
        self.runtime.advise(len(plan.windows))
        return self.runtime.barrier(lambda: self._run(plan))

    @memory_explained("the canvas")
    def _run(self, plan: Plan) -> Run:
        denoiser, settings = self.model.denoiser, plan.settings
        with torch.no_grad(), self.runtime.autocast():
            embeddings = denoiser.encode(plan.scene)
        parts = Parts(denoiser, self.model.codec, self._solver(plan), self.fuser, self.runtime, embeddings, start=plan.start)
        with torch.no_grad(), self._cells_explained(plan):
            run = Run(parts, guidances=self.guidances, windows=plan.windows, seed=settings.seed, recipe=plan.recipe)
            self.fuser.begin(plan.windows, run.solver.levels)
            return run

    def _check(self, plan: Plan) -> None:
        levels = self._solver(plan)().levels
        with self._cells_explained(plan):
            for windows in {plan.windows.at(level) for level in levels}:
                require_cover(windows)
            self.fuser.begin(plan.windows, levels)
            for guidance in self.guidances:
                guidance.begin(plan.windows, levels)

    def _cells_explained(self, plan: Plan) -> AbstractContextManager[None]:
        return pixels_explained(self.model.factor, self.model.time if len(plan.windows.window) == 3 else None)

    def _solver(self, plan: Plan) -> Callable[[], Solver]:
        """A function that makes a new solver."""
        return partial(self.scheduler.begin, plan.settings.steps or 0, self.runtime.device, self.model.denoiser.training)

    def _plan(self, prompt: object, settings: Mapping[str, Any]) -> Plan:
        """Check each value by itself, and plan the panorama."""
        if not isinstance(prompt, str | Regions):
            raise SettingError(f"prompt is a {type(prompt).__name__}: it must be text, or Regions")
        given = {name: settings[name] for name in PICTURES if settings.get(name) is not None}
        sources = {name: read(source, name) for name, source in given.items() if name != "mask" or "image" in given}
        pictures = {name: pixels for name, (pixels, _) in sources.items()}
        hashes = {name: digest for name, (_, digest) in sources.items()}
        labels = {name: label(source, hashes.get(name, "")) for name, source in given.items()}
        chosen = filled(Settings.of({**settings, **labels}), self.model, pictures.get("image", pictures.get("control_image")))
        windows, read_prompt = windows_of(chosen, self.model, self.layout), prompt
        if self.model.codec:
            require_tiles(self.model.codec, self.runtime, pictured(windows))
        if len(windows.window) == 3:
            _require_no_pictures(given)
        if isinstance(prompt, Regions):
            read_prompt, masks = prompt.read()
            hashes |= masks
        ip_adapter_image = pictures.pop("ip_adapter_image", None)
        fields = self._fields(chosen, pictures)
        scene = Scene(
            read_prompt,
            chosen.negative_prompt,
            chosen.guidance_scale or 0.0,
            fields,
            ip_adapter_image,
            chosen.guidance_end,
        )
        scene.maps(windows)  # it raises if regions do not fit
        self._require_ip_adapter_images(scene)
        if "image" in pictures and not self.model.codec and self.model.denoiser.channels != len(pictures["image"]):
            raise SettingError(
                f"the model {self.model.name} has no codec, and its canvas has {self.model.denoiser.channels} channels, so it "
                "cannot start from an image: leave it out"
            )
        begins = start(chosen, pictures, self.model.factor, self.model.unit) if "image" in pictures else None
        recipe = self._recipe(prompt, chosen, hashes)
        if isinstance(windows, Projected):
            recipe["projection"] = windows.projection
        return Plan(self, prompt, chosen, windows, scene, begins, recipe)

    def _require_ip_adapter_images(self, scene: Scene) -> None:
        """Check that the pictures for an IP-Adapter are there where the model reads them, and nowhere else.

        Raises:
            SettingError: one is missing, or the model reads none.
        """
        reads, name = self.model.denoiser.has_ip_adapter, self.model.name
        if reads and any(image is None for image in scene.ip_adapter_images):
            raise SettingError(f"the model {name} has an IP-Adapter: give ip_adapter_image=FILE, how the panorama is to look")
        if not reads and any(image is not None for image in scene.ip_adapter_images):
            raise SettingError(f"the model {name} reads no ip_adapter_image: leave it out, or load an IP-Adapter")

    def _fields(self, settings: Settings, pictures: Mapping[str, Float[torch.Tensor, "3 H W"]]) -> dict[str, torch.Tensor]:
        """The pictures that lie on the canvas and that the model reads.

        Raises:
            SettingError: one is missing, the model does not read it, or it has another shape than the canvas.
        """
        reads, name = self.model.denoiser.fields, self.model.name
        given = {field: pixels for field, pixels in pictures.items() if field not in ("image", "mask")}
        for field in reads - given.keys():
            raise SettingError(f"the model {name} needs a {field}: give {field}=FILE, such as the edges of the whole canvas")
        for field, pixels in given.items():
            if field not in reads:
                raise SettingError(f"the model {name} reads no {field}: leave it out, or use a model with a ControlNet")
            canvas = (settings.height or 0, settings.width or 0)
            require_shape((pixels.shape[1], pixels.shape[2]), canvas, self.model.unit, f"the {field}")
        return given

    if not TYPE_CHECKING:  # type checkers know the attributes

        def __getattr__(self, name: str) -> Any:
            raise no_attribute(self, name)

    @memory_explained("the picture")
    @torch.no_grad()
    def decode(self, run: Run) -> torch.Tensor:
        """Decode the canvas of a run. The ranks share a large one in tiles.

        Args:
            run: a run of this sampler, finished or not.

        Returns:
            The picture, `3 H W`, in about [0, 1]; or the film, `3 T H W`.

        Raises:
            NotFiniteError: the decoder returned NaN or infinity.
            OutOfMemoryError: the picture does not fit the memory.
        """
        canvas = run.canvas.float()
        return self._finished(run, picture_of(self.model.codec, canvas, run.windows, self.runtime))

    def _finished(self, run: Run, picture: torch.Tensor, top: int = 0) -> torch.Tensor:
        """A decoded picture, or a strip of it from row `top` on, with the pixels that stay. All its numbers are finite."""
        if run.parts.start:
            picture = run.parts.start.join(picture, top)
        if not torch.isfinite(picture).all():
            raise NotFiniteError(
                f"the decoded picture holds NaN or infinity, so it would be black: try {steadier(self.runtime.precision)}"
            )
        return picture

    def _recipe(self, prompt: Prompt, settings: Settings, hashes: Mapping[str, str]) -> dict[str, Any]:
        """The settings of all parts, and the versions of the libraries, as plain data."""
        return {
            "panokit": version("panokit"),
            "torch": version("torch"),
            "diffusers": version("diffusers"),
            "prompt": prompt if isinstance(prompt, str) else prompt.as_data(hashes),
            **settings.as_data(),
            "model": self.model.part,
            "scheduler": describe(self.scheduler),
            "layout": describe(self.layout),
            "fuser": describe(self.fuser),
            "guidances": [describe(guidance) for guidance in self.guidances],
            "precision": self.runtime.precision,
            **{key: getattr(self.runtime, key) for key in NUMERICS},
            **({"hashes": dict(hashes)} if hashes else {}),
        }


def _plugin(part: str | Mapping[str, Any] | Part, base: type[Part]) -> Part:
    """The plugin itself, or the one that a name or a mapping describes."""
    if isinstance(part, str | Mapping):
        return build(base, part)
    if not isinstance(part, base):
        kind = f"the class {part.__name__}" if isinstance(part, type) else f"a {type(part).__name__}"
        raise SettingError(f"{kind} came where a {base.__name__} was expected: give a name or an object, {base.__name__}(...)")
    return part


def _model(model: Any) -> Model:
    """The model itself, one in hand, or the one that a name, or a mapping of a name and settings, describes."""
    return model if isinstance(model, Model) else models.load_model(model)


def _require_no_pictures(given: Mapping[str, Any]) -> None:
    """Check that a film is not to start from a picture.

    Raises:
        SettingError: it is.
    """
    for name in given:
        raise SettingError(f"{name} is for pictures, and this is a film: leave it out, or make a picture with frames=1")
