"""The loop: one panorama from noise to latents."""

import hashlib
import weakref
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, final, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from panokit.denoiser import Codec
from panokit.errors import ContractError, NotFiniteError, SettingError
from panokit.guidance import Estimate, Guidance, Jacobian, Known
from panokit.magnifying import magnified
from panokit.memory import memory_explained
from panokit.moved import no_attribute
from panokit.passes import Checks, Guided, Partial, Parts, Pass, Passed, expect
from panokit.plain import map_leaves
from panokit.projecting import canvas_of, picture_of
from panokit.scheduler import Level
from panokit.settings import steadier
from panokit.windows import Factor, Projected, Windows, require_cover


@final
class Run:
    """Takes one canvas from noise to latents.

    A run owns everything that changes: the canvas, the solver, the memories of the guidances and the generator. The
    generator's first draw is the initial noise, `Denoiser.noise`. Later draws belong to the solver, at most one a
    step, for the whole canvas.

    Args:
        parts: the model, the maker of solvers, the fuser and the runtime.
        guidances: the guidances that move the windows, in any order.
        windows: where the windows lie; `Windows.at` says where at each level.
        seed: seed of the generator, from 0 to 2^64 - 1.
        recipe: plain data that the picture and its checkpoints carry.
        inner: whether a guidance of another run paints this canvas. Errors say so.

    Attributes:
        canvas: `c *size`, at noise level `level`.
        level: the level of the next pass; the terminal level when the run is done.
        computed: how many windows of the canvas have been computed. Those of smaller canvases do not count.
        guided: pairs of a guidance and its memory.
        start: the picture that the run starts from, encoded for its canvas; None for noise alone.
        inner: the run of another canvas that a guidance paints now (`Step.paint`); None while there is none.
        on_inner_step: called after each step of `inner`, and of runs inside it.

    Raises:
        ContractError: a guidance has a `jacobian` that the contract does not know.
        SettingError: a guidance cannot work on such a canvas, the windows leave cells uncovered, or torch is in inference mode.
    """

    def __init__(
        self,
        parts: Parts,
        *,
        guidances: Sequence[Guidance],
        windows: Windows,
        seed: int,
        recipe: Mapping[str, Any] | None = None,
        inner: bool = False,
    ) -> None:
        for guidance in guidances:
            if guidance.jacobian not in get_args(Jacobian):
                raise ContractError(
                    f"{type(guidance).__name__}.jacobian is {guidance.jacobian!r}; it must be 'full', through the denoiser, "
                    "'identity', which corrects the clean estimate, or 'none', which moves the noisy window alone"
                )
        if torch.is_inference_mode_enabled():
            raise SettingError("panokit takes gradients, which inference mode forbids: use torch.no_grad, or nothing at all")
        require_cover(windows)
        self.parts, self.windows, self.seed, self.recipe = parts, windows, seed, recipe or {}
        self.codec, self.runtime, self.solver = parts.codec, parts.runtime, parts.begin()
        self._checks, self._is_inner = Checks(), inner
        self.model_pass = Pass(parts, self.solver, self._checks)
        self.guided: Guided = [(guidance, guidance.begin(windows, self.solver.levels)) for guidance in guidances]
        self.generator = _generator(seed)
        self.canvas: Float[Tensor, "*c_size"] = self.solver.start(self._noise(self.generator))
        self.level: Level = self.solver.levels[0]
        self.start = parts.start.on(windows, parts.codec, self.canvas) if parts.start else None
        self.computed = 0
        self.inner: Run | None = None
        self.on_inner_step: Callable[[], None] = lambda: None
        self._broken_off: Mapping[str, Any] | None = None
        self._known_x0: weakref.ref[Tensor] | None = None
        self._last: tuple[Passed, Level] | None = None
        self._main: tuple[Passed, Level] | None = None

    def _noise(self, generator: torch.Generator) -> Tensor:
        """The initial noise, from a generator at its start."""
        return self.parts.denoiser.noise(self.windows.size, generator).to(self.runtime.device, self.runtime.dtype)

    def step(self) -> None:
        """Make one step, with the inner stages of the solver. If it fails on one rank, it fails on all.

        Raises:
            NotFiniteError: the model or a guidance returned NaN or infinity.
            ContractError: a plugin returned a wrong type or shape.
            SettingError: the run is done.
            OutOfMemoryError: a single window, or the canvas, does not fit the memory.
        """
        if self.done:
            raise SettingError("the run is done: begin another one")
        with self.runtime.agreeing(), memory_explained("the canvas"), torch.no_grad():
            self._stage()
            self._main = self._last
            while not (self.done or self.level.main):
                self._stage()

    def _stage(self) -> None:
        """One pass of the model, over what is not known, and one step of the solver."""
        known = self.known()
        if known is None:
            passed = self.pass_over(self.canvas, self.windows, self.guided, self.level)
            self.computed += len(self.windows.at(self.level))
        else:
            passed = self._around(known)
        self._check(passed.pred)
        canvas = self.solver.step(passed.pred, passed.x, self.level, self.generator)
        contract = "it must return the canvas one level down"
        self.canvas = expect(canvas, passed.x.shape, f"{type(self.solver).__name__}.step", contract)
        self._last = passed, self.level
        self.level = self.solver.levels[self.level.index + 1]
        if known is not None and self.done:  # the last level has a little noise still
            self.canvas = known.choose(known.x0, self.canvas)

    def _around(self, known: Known) -> Passed:
        """A pass over the windows that hold unknown cells. Where the canvas is known, the prediction leads to it."""
        x = self.canvas
        if not self.level.index:  # the first canvas is noise alone, and of some solvers a little more than its level has
            x = known.choose(self.level.alpha * known.x0 + self.level.sigma * self._noise(_generator(self.seed)), x)
        pred = self.solver.pred(known.x0, x, self.level)
        if known.where is None:
            return Passed(x, pred, None)
        unknown = ~self.windows.at(self.level).crop(known.where.cpu()[None])
        numbers = unknown.flatten(1).any(1).nonzero().flatten().tolist()
        passed = self.pass_over(x, self.windows, self.guided, self.level, partial=Partial(numbers, pred))
        self.computed += len(numbers)
        return passed._replace(x=known.choose(x, passed.x), pred=known.choose(pred, passed.pred))

    def known(self) -> Known | None:
        """What is known of the clean canvas at this level: by the picture that the run starts from, and by the guidances.

        Cells that the picture covers in the first steps stay with it. If a guidance knew them afterwards as something else, the
        difference would count as noise.
        """
        known = self.start.known(self.level) if self.start else None
        covered = self.start.covered_first(self.level.steps) if self.start else None
        for place, (guidance, memory) in enumerate(self.guided):
            if (known is not None and known.where is None) or (covered is not None and bool(covered.all())):
                break
            more = guidance.known(self.view(place, "known"), memory)
            if more is not None:
                more = self._checked(more, f"{type(guidance).__name__}.known").without(covered)
                known = more if known is None else known.joined(more)
        return known

    def _checked(self, known: Known, name: str) -> Known:
        """What a guidance knows, in the dtype and on the device of the canvas."""
        if not isinstance(known, Known):
            raise ContractError(f"{name} returned a {type(known).__name__}; it must return Known(x0, where=None), or None")
        x0 = expect(known.x0, self.canvas.shape, name, "x0 must be the clean canvas").to(self.canvas)
        if self._known_x0 is None or x0 is not self._known_x0():  # most guidances return the same canvas at each step
            message = f"the canvas that {name} returned at step {self.level.step + 1} holds NaN or infinity"
            self._checks.add(torch.stack(x0.aminmax()), lambda: NotFiniteError(message))
            self._known_x0 = weakref.ref(x0)
        if known.where is None:
            return Known(x0)
        where = expect(known.where, self.windows.size, name, "where must be one truth value for each cell").bool()
        return Known(x0, None if bool(where.all()) else where)

    def view(self, place: int, hook: "Hook") -> "CanvasStep":
        """The step that one guidance gets, on the run's own canvas.

        Args:
            place: the guidance's position in `guided`.
            hook: the method of the guidance that gets it.
        """
        windows = self.windows.at(self.level)
        return CanvasStep(self, self.canvas, windows, self.level, place, _streams(self.guided)[place], hook)

    def pass_over(
        self,
        canvas: Tensor,
        windows: Windows,
        guided: Guided,
        level: Level,
        owner: "CanvasStep | None" = None,
        partial: Partial | None = None,
    ) -> Passed:
        """Prepare the guidances that are awake, and make a pass over any canvas.

        Args:
            canvas: `c *size`, at noise level `level`.
            windows: its windows, at any level.
            guided: the guidances of this canvas, each with its memory.
            level: the noise level of the canvas.
            owner: the step of the guidance that this canvas belongs to; None for the run's own canvas.
            partial: which windows to compute; None for all.

        Returns:
            The guided canvas and the prediction for it.
        """
        windows = windows.at(level)
        prepared: list[tuple[Guidance, Any]] = []
        streams = _streams(guided) if guided else []
        for k, (guidance, memory) in enumerate(guided):
            if level.main and guidance.strength(level) != 0:
                place, stream = (owner.place, f"{owner.stream}/{streams[k]}") if owner else (k, streams[k])
                step = CanvasStep(self, canvas, windows, level, place, stream, "prepare")
                prepared.append((guidance, guidance.prepare(step, memory)))
        return self.model_pass.estimate(canvas, windows, prepared, level, partial)

    def _check(self, pred: Tensor) -> None:
        """Check that a prediction is finite. All checks of a step are read here, at once."""
        level = self.level
        where = f" of a canvas of {' x '.join(map(str, self.windows.size))} cells that a guidance paints" * self._is_inner
        # The least and the largest value are NaN if any is. This is several times as fast as a test of every value.
        self._checks.add(
            torch.stack(pred.aminmax()),
            lambda: NotFiniteError(
                f"the prediction at step {level.step + 1} of {level.steps}{where} (level {level.index}, t = {level.t}) holds "
                f"NaN or infinity, so the picture would be black: try {steadier(self.runtime.precision)}, or weaker guidance"
            ),
        )
        self._checks.read()

    def paint(
        self,
        windows: Windows,
        guidances: Sequence[Guidance],
        seed: int,
        watch: Callable[[Estimate], None] | None = None,
    ) -> Float[Tensor, "*c_size"]:
        """Make another canvas of the same scene from noise, in a run of its own; see `Step.paint`.

        Args:
            windows: the windows of the new canvas.
            guidances: the guidances of the new run.
            seed: seed of the new run.
            watch: gets the estimate of the new canvas at each step.

        Returns:
            The finished canvas, `c *size` of `windows`.

        Raises:
            KeyboardInterrupt: this run was asked to stop.
        """
        run = self.inner = Run(self.parts, guidances=guidances, windows=windows, seed=seed, inner=True)
        run.on_inner_step = self.on_inner_step
        try:
            self._continue(run)
            while not run.done:
                run.step()
                if watch and run._main:  # what inner stages of a solver see belongs to no step
                    passed, level = run._main
                    watch(run.model_pass.read(passed.x, passed.pred, level))
                if run.done:  # the step of this run goes on, and leaves a checkpoint if it is to stop
                    break
                self.on_inner_step()
                if self.stopping:
                    raise KeyboardInterrupt(f"stopped after step {run.level.step} of {run.level.steps} of a smaller canvas")
        finally:
            self.inner = None
        return run.canvas

    def _continue(self, run: "Run") -> None:
        """Continue an inner run where it was broken off, if the state that this run continues from holds it."""
        if self._broken_off is None:
            return
        seed, state = self._broken_off["seed"], self._broken_off["state"]
        came = seed, tuple(state["canvas"].shape), len(state["memories"])
        if came == (run.seed, tuple(run.canvas.shape), len(run.guided)):
            run.restore(state)
            self._broken_off = None

    if not TYPE_CHECKING:  # type checkers know the attributes

        def __getattr__(self, name: str) -> Any:
            raise no_attribute(self, name)

    @property
    def done(self) -> bool:
        """Whether the canvas is at the terminal level."""
        return self.level.index == len(self.solver.levels) - 1

    def stop(self) -> None:
        """Ask this run to end after its current step, on all ranks. A signal handler may call this."""
        self.parts.stop.asked = True

    @property
    def stopping(self) -> bool:
        """Whether the run ends now: a rank was asked to stop, and all ranks know it since the last step."""
        return self.parts.stop.agreed

    @property
    def seen(self) -> Estimate | None:
        """The denoiser's estimate of the canvas at the last level, computed on access; None before the first step."""
        if self._last is None:
            return None
        passed, level = self._last
        return self.model_pass.read(passed.x, passed.pred, level)

    @property
    def scalars(self) -> dict[str, float]:
        """The energies and gradient norms of the last step, as means over windows, of the guidances that were awake.

        The keys are `energy/NAME/K` and `gradient/NAME/K`. NAME is the name of the class, and K counts the guidances of that
        name from 0.
        """
        if self._last is None or (stats := self._last[0].stats) is None:
            return {}
        level = self._last[1]
        names = [type(guidance).__name__ for guidance, _ in self.guided]
        labels = [f"{name}/{names[:k].count(name)}" for k, name in enumerate(names)]
        awake = [label for label, (guidance, _) in zip(labels, self.guided, strict=True) if guidance.strength(level) != 0]
        return {
            f"{quantity}/{label}": mean
            for label, means in zip(awake, stats[..., :2].mean(0).tolist(), strict=True)
            for quantity, mean in zip(("energy", "gradient"), means, strict=True)
        }

    def state(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on, besides its settings.

        While a guidance paints another canvas, the state of that run belongs to it.

        Returns:
            A dict of tensors, numbers, text, and lists, tuples and dicts of them.
        """
        state: dict[str, Any] = {
            "canvas": self.canvas,
            "level": self.level.index,
            "generator": self.generator.get_state(),
            "solver": self.solver.state(),
            "memories": deepcopy([memory for _, memory in self.guided]),
        }
        if self.inner:
            state["inner"] = {"seed": self.inner.seed, "state": self.inner.state()}
        return state

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a state: later steps are those of the run that returned it.

        Args:
            state: what `state` returned, in a run with the same settings. Its tensors may be on another device.

        Raises:
            SettingError: it is that of a run with another canvas, or another number of guidances.
        """
        came = tuple(state["canvas"].shape), len(state["memories"])
        if came != (here := (tuple(self.canvas.shape), len(self.guided))):
            raise SettingError(
                f"the state is of a canvas {came[0]} with {came[1]} guidances, and this run has {here[0]} with {here[1]}: "
                "restore it in a run with the same settings"
            )
        device = self.runtime.device
        self.canvas = state["canvas"].to(device)
        self.level = self.solver.levels[state["level"]]
        self.generator.set_state(state["generator"])
        self.solver.restore(state["solver"])
        memories = map_leaves(deepcopy(state["memories"]), lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf)
        self.guided = [(guidance, memory) for (guidance, _), memory in zip(self.guided, memories, strict=True)]
        self._broken_off = state.get("inner")
        self._last = None


Hook = Literal["known", "prepare"]
"""The method of a guidance that a step is for."""


@final
@dataclass(eq=False)
class CanvasStep:
    """The `panokit.guidance.Step` that a run passes to its guidances: one canvas at one noise level."""

    run: Run
    canvas: Float[Tensor, "*c_size"]
    windows: Windows
    level: Level
    place: int
    """The guidance's position in `Run.guided`; on a canvas that belongs to another guidance, the position of that one."""
    stream: str
    """The key of the guidance's noise, unique among all guidances of the run. It begins with that of the canvas's owner."""
    hook: Hook
    _generator: torch.Generator | None = field(default=None, repr=False)

    if not TYPE_CHECKING:  # type checkers know the attributes

        def __getattr__(self, name: str) -> Any:
            raise no_attribute(self, name)

    @property
    def codec(self) -> Codec | None:
        return self.run.codec

    @property
    def others(self) -> Sequence[Guidance]:
        return [guidance for place, (guidance, _) in enumerate(self.run.guided) if place != self.place]

    @torch.no_grad()
    def decode(self, canvas: Float[Tensor, "*c_size"]) -> Float[Tensor, "*c_pixels"]:
        windows = self._holding(canvas)
        return picture_of(self.codec, _at_least_single(canvas), windows, self.run.runtime).to(canvas)

    @torch.no_grad()
    def encode(self, picture: Float[Tensor, "*c_pixels"]) -> Float[Tensor, "*c_size"]:
        return canvas_of(self.codec, _at_least_single(picture), self.windows).to(picture)

    @torch.no_grad()
    def magnify(self, canvas: Float[Tensor, "*c_size"], factor: Factor) -> Float[Tensor, "*c_large"]:
        windows = self._holding(canvas)
        return magnified(self.codec, _at_least_single(canvas), windows, self.run.runtime, factor).to(canvas)

    def _holding(self, canvas: Tensor) -> Windows:
        """The windows of a canvas of this scene, which may be smaller than the step's."""
        size = tuple(canvas.shape[-len(self.windows.size) :])
        return self.windows.on(size) if isinstance(self.windows, Projected) and size != self.windows.size else self.windows

    @torch.no_grad()
    def look(self, index: Sequence[int]) -> Estimate:
        return self.run.model_pass.look(self.windows.crop(self.canvas, index), self.windows, index, self.level)

    @torch.no_grad()
    def estimate(self, canvas: Float[Tensor, "*c_size"], windows: Windows, guided: Guided = ()) -> Estimate:
        passed = self.run.pass_over(canvas, windows, guided, self.level, self)
        return self.run.model_pass.read(passed.x, passed.pred, self.level)

    @torch.no_grad()
    def paint(
        self,
        windows: Windows,
        guidances: Sequence[Guidance] | None = None,
        watch: Callable[[Estimate], None] | None = None,
    ) -> Float[Tensor, "*c_size"]:
        if guidances is None:
            raise ContractError(
                "step.paint came without guidances, and the run's own no longer guide by themselves: write "
                "step.paint(windows, step.others) for the run's other ones, or step.paint(windows, ()) for none"
            )
        return self.run.paint(windows, guidances, _seed(self.run.seed, self.level.index, self.stream, windows.size), watch)

    def noise(self, shape: Sequence[int]) -> Float[Tensor, "*shape"]:
        if self._generator is None:
            self._generator = _generator(_seed(self.run.seed, self.level.index, self.stream, self.hook, self.windows.size))
        return torch.randn(tuple(shape), generator=self._generator).to(self.canvas)


def _at_least_single(x: Tensor) -> Tensor:
    """A tensor in float32, or in float64 if it is in that."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _streams(guided: Guided) -> list[str]:
    """The key of each guidance's noise, the same in every process: its `noise_key`, and the number of equal ones before it."""
    keys = [guidance.noise_key or f"{type(guidance).__module__}:{type(guidance).__qualname__}" for guidance, _ in guided]
    return [f"{key}/{keys[:k].count(key)}" for k, key in enumerate(keys)]


def _generator(seed: int) -> torch.Generator:
    """The generator of a seed. torch's own reads the last 32 bits alone, so a longer seed is hashed."""
    return torch.Generator().manual_seed(seed if seed < 1 << 32 else _seed(seed))


def _seed(*keys: object) -> int:
    """A seed of 32 bits that depends on all keys."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, keys)).encode()).digest()[3:7])
