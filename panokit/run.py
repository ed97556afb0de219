"""One panorama from noise to latents: the loop."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from panokit.denoiser import Codec, Denoiser
from panokit.errors import ContractError, NotFiniteError, SettingError
from panokit.fuser import Fuser
from panokit.grid import Grid
from panokit.guidance import Estimate, Guidance
from panokit.runtime import Runtime
from panokit.scheduler import Level, Solver

Guided = Sequence[tuple[Guidance, Any]]


@final
class Run:
    """One canvas on its way from noise to latents.

    A run owns everything that changes: the canvas, the solver, the guidances' memories and the generator. Its first draw is
    the initial noise, `torch.randn((c, *size))`; later draws are the solver's, one for the canvas a step.

    Attributes:
        canvas: `c *size`, at noise level `level`.
        level: the level that the next model call is for; the terminal one when the run is done.
        recipe: what makes it: plain data that its picture and its checkpoints carry.
    """

    def __init__(
        self,
        *,
        denoiser: Denoiser,
        codec: Codec | None,
        solver: Solver,
        fuser: Fuser,
        guidances: Sequence[Guidance],
        runtime: Runtime,
        grid: Grid,
        embeddings: Any,
        seed: int,
        recipe: Mapping[str, Any] | None = None,
    ) -> None:
        self.denoiser, self.codec, self.solver, self.fuser = denoiser, codec, solver, fuser
        self.runtime, self.grid, self.embeddings, self.seed = runtime, grid, embeddings, seed
        self.recipe: Mapping[str, Any] = recipe or {}
        for guidance in guidances:
            if guidance.jacobian not in ("full", "identity"):
                raise ContractError(
                    f"{type(guidance).__name__}.jacobian is {guidance.jacobian!r}; it must be 'full', through the denoiser, or "
                    "'identity', which corrects the clean estimate"
                )
        if torch.is_inference_mode_enabled():
            raise SettingError("panokit takes gradients, which inference mode forbids: use torch.no_grad, or nothing at all")
        self.guided: Guided = [(guidance, guidance.begin(grid, solver.levels)) for guidance in guidances]
        self.generator = torch.Generator().manual_seed(seed)
        noise = torch.randn((denoiser.channels, *grid.size), generator=self.generator)
        self.canvas: Float[Tensor, "*c_size"] = solver.start(noise.to(runtime.device, runtime.dtype))
        self.level: Level = solver.levels[0]
        self._outset = deepcopy(solver.state())
        self._last: tuple[Tensor, Tensor, Level] | None = None
        self._told: tuple[list[str], Tensor] | None = None

    @property
    def seen(self) -> Estimate | None:
        """What the denoiser made of the canvas at the last level, or None before the first; computed when asked for."""
        return self.read(*self._last) if self._last else None

    @property
    def scalars(self) -> dict[str, float]:
        """What the guidances that were awake did in the last step: each one's energy and gradient norm, means over windows.

        The keys are `energy/NAME/K` and `gradient/NAME/K`, with the class's name and how many of it stand before.
        """
        if self._told is None:
            return {}
        names, told = self._told
        means = told.mean(0).tolist()
        return {
            f"{what}/{name}": mean
            for name, (_, *guided) in zip(names, means, strict=True)
            for what, mean in zip(("energy", "gradient"), guided, strict=True)
        }

    @property
    def done(self) -> bool:
        """Whether the canvas is at the terminal level."""
        return self.level.index == len(self.solver.levels) - 1

    @torch.no_grad()
    def step(self) -> None:
        """Take the canvas one step down, inner stages of the solver included.

        Raises:
            NotFiniteError: the model or a guidance returned NaN or infinity.
            ContractError: a plugin returned something of another shape.
            SettingError: the run is done.
        """
        if self.done:
            raise SettingError("the run is done: begin another one")
        self._stage()
        while not (self.done or self.level.main):
            self._stage()

    def _stage(self) -> None:
        """One model call on every window, where the canvas is not known, and one step of the solver on the canvas."""
        x0 = self.known()
        if x0 is None:
            x, pred = self.estimate(self.canvas, self.grid, self.guided, self.level)
        else:
            self._told = None
            x = self.canvas if self.level.index else self.canvas + self.level.alpha * x0  # which was noise and nothing else
            pred = self.solver.pred(x0, x, self.level)
        if not torch.isfinite(torch.stack(pred.aminmax())).all():  # NaN is both; several times as fast as looking at each
            raise NotFiniteError(
                f"the prediction at step {self.level.step + 1} of {self.level.steps} (level {self.level.index}, "
                f"t = {self.level.t}) holds NaN or infinity, so the picture would be black: "
                "try precision 32-true or bf16-mixed, or weaker guidance"
            )
        self._last = x, pred, self.level
        canvas = self.solver.step(pred, x, self.level, self.generator)
        self.canvas = _expect(canvas, x.shape, f"{type(self.solver).__name__}.step", "it must return the canvas one level down")
        self.level = self.solver.levels[self.level.index + 1]

    def known(self) -> Tensor | None:
        """The clean estimate of the canvas at its level, where a guidance knows it; see `Guidance.known`."""
        for (guidance, memory), key in zip(self.guided, _keys(self.guided), strict=True):
            x0 = guidance.known(CanvasStep(self, self.canvas, self.grid, self.level, key), memory)
            if x0 is not None:
                name = f"{type(guidance).__name__}.known"
                x0 = _expect(x0, self.canvas.shape, name, "it must return the clean canvas, or None").to(self.canvas)
                if not torch.isfinite(x0).all():
                    raise NotFiniteError(f"what {name} returned at step {self.level.step + 1} holds NaN or infinity")
                return x0
        return None

    def paint(self, grid: Grid, guidances: Sequence[Guidance], seed: int) -> Tensor:
        """A finished canvas of other windows; see `Step.paint`.

        Raises:
            KeyboardInterrupt: the runtime was asked to stop.
        """
        solver = deepcopy(self.solver)
        solver.restore(self._outset)
        run = Run(
            denoiser=self.denoiser,
            codec=self.codec,
            solver=solver,
            fuser=self.fuser,
            guidances=guidances,
            runtime=self.runtime,
            grid=grid,
            embeddings=self.embeddings,
            seed=seed,
        )
        while not run.done:
            run.step()
            if self.runtime.stopping:
                raise KeyboardInterrupt(f"stopped after step {run.level.step} of {run.level.steps} of a smaller canvas")
        return run.canvas

    def estimate(self, canvas: Tensor, grid: Grid, guided: Guided, level: Level) -> tuple[Tensor, Tensor]:
        """The guided canvas and the prediction for it, both fused: what the sampler makes of any canvas."""
        awake = [
            (g, memory, key)
            for (g, memory), key in zip(guided, _keys(guided), strict=True)
            if level.main and g.strength(level) != 0
        ]
        contexts = [(g, g.prepare(CanvasStep(self, canvas, grid, level, key), memory)) for g, memory, key in awake]
        shape = (*canvas.shape[: -len(grid.size)], *grid.window)
        self._told = None  # `prepare` may have estimated canvases of its own: what is told is told of the last one
        if not contexts:
            (pred,) = self.runtime.map(
                lambda index: (self.predict(grid.crop(canvas, index), grid, index, level),), len(grid), [shape]
            )
            return canvas, self._fuse(pred, grid)
        full = any(guidance.jacobian == "full" for guidance, _ in contexts)
        *windows, told = self.runtime.map(
            self._window(canvas, grid, contexts, level),
            len(grid),
            [shape, shape, (len(contexts), 3)],
            micro_batch=self.runtime.guided_micro_batch if full else None,
        )
        _hold(told[..., 0], [guidance for guidance, _ in contexts], level)
        self._told = [key for _, _, key in awake], told
        x, pred = (self._fuse(rows, grid) for rows in windows)
        return x, pred

    def _fuse(self, windows: Tensor, grid: Grid) -> Tensor:
        canvas = self.fuser.fuse(windows, grid)
        expected = (*windows.shape[1 : -len(grid.size)], *grid.size)
        return _expect(canvas, expected, f"{type(self.fuser).__name__}.fuse", "it must return one canvas")

    def predict(self, x: Tensor, grid: Grid, index: Sequence[int], level: Level) -> Tensor:
        """The denoiser's prediction for windows of any grid."""
        with self.runtime.autocast():
            pred = self.denoiser(x, level, self.denoiser.condition(self.embeddings, grid, index))
        _expect(pred, x.shape, type(self.denoiser).__name__, "a prediction has the shape of its windows")
        return pred.to(x.dtype)

    def look(self, x: Tensor, grid: Grid, index: Sequence[int], level: Level) -> Estimate:
        """The same, as an estimate; with a graph where grad is on."""
        return self.read(x, self.predict(x, grid, index, level), level)

    def read(self, x: Tensor, pred: Tensor, level: Level) -> Estimate:
        """The estimate that a prediction means."""
        return Estimate(x, self.solver.x0(pred, x, level), level, self.below(level))

    def _window(
        self, canvas: Tensor, grid: Grid, contexts: Guided, level: Level
    ) -> Callable[[list[int]], tuple[Tensor, Tensor, Tensor]]:
        """What happens to guided windows: moved by the full guidances, denoised, corrected by the identity ones.

        Besides window and prediction it returns three numbers for each guidance: 1 where it was finite and 0 where not, its
        energy, and the norm of its gradient. Looking at them here would wait for the device at every chunk.
        """
        full = any(guidance.jacobian == "full" for guidance, _ in contexts)
        identity = any(guidance.jacobian == "identity" for guidance, _ in contexts)

        def window(index: list[int]) -> tuple[Tensor, Tensor, Tensor]:
            x = grid.crop(canvas, index)
            told = x.new_zeros((len(index), len(contexts), 3))
            if full:
                with torch.enable_grad():
                    seen = self.look(x.requires_grad_(), grid, index, level)
                to_x, to_x0 = _gradients("full", contexts, seen, index, told)
                x = x.detach() - to_x - _through(seen, to_x0)
            pred = self.predict(x, grid, index, level)
            if identity:
                seen = self.read(x, pred, level)
                _, to_x0 = _gradients("identity", contexts, seen, index, told)
                x0, x = seen.x0 - to_x0, x - level.alpha * to_x0
                pred = self.solver.pred(x0, x, level)
            return x, pred, told

        return window

    def below(self, level: Level) -> Level:
        """The next main level down, or the terminal one."""
        levels = self.solver.levels[level.index + 1 :]
        return next((below for below in levels if below.main), levels[-1])

    def state(self) -> dict[str, Any]:
        """All that the rest of the run depends on, besides its settings: tensors, numbers, and dicts and lists of them."""
        return {
            "canvas": self.canvas,
            "level": self.level.index,
            "generator": self.generator.get_state(),
            "solver": self.solver.state(),
            "memories": deepcopy([memory for _, memory in self.guided]),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on as the run went on whose `state` this was; the settings must be the same."""
        self.canvas = state["canvas"].to(self.runtime.device)
        self.level = self.solver.levels[state["level"]]
        self.generator.set_state(state["generator"])
        self.solver.restore(state["solver"])
        memories = _moved(deepcopy(state["memories"]), self.runtime.device)
        self.guided = [(g, memory) for (g, _), memory in zip(self.guided, memories, strict=True)]
        self._last = None


@final
@dataclass(eq=False)
class CanvasStep:
    """What a guidance sees of a run (`panokit.guidance.Step`): one canvas at one noise level."""

    run: Run
    canvas: Float[Tensor, "*c_size"]
    grid: Grid
    level: Level
    guidance: str
    """Whose step it is, in one word: what keys its noise."""

    def __post_init__(self) -> None:
        self._generator = torch.Generator().manual_seed(self._seed(self.grid))

    def _seed(self, grid: Grid) -> int:
        """Of the noise for a canvas of that size, drawn by this guidance at this step."""
        key = f"{self.run.seed}/{self.level.index}/{self.guidance}/{grid.size}"
        return int.from_bytes(hashlib.sha256(key.encode()).digest()[:7])

    @property
    def codec(self) -> Codec | None:
        return self.run.codec

    @torch.no_grad()
    def look(self, index: Sequence[int]) -> Estimate:
        return self.run.look(self.grid.crop(self.canvas, index), self.grid, index, self.level)

    @torch.no_grad()
    def estimate(self, canvas: Float[Tensor, "*c_size"], grid: Grid, guided: Guided = ()) -> Estimate:
        return self.run.read(*self.run.estimate(canvas, grid, guided, self.level), self.level)

    @torch.no_grad()
    def paint(self, grid: Grid, guidances: Sequence[Guidance] = ()) -> Float[Tensor, "*c_size"]:
        taken = {self.guidance.partition("/")[0], *(type(guidance).__qualname__ for guidance in guidances)}
        others = [guidance for guidance, _ in self.run.guided if type(guidance).__qualname__ not in taken]
        return self.run.paint(grid, [*guidances, *others], self._seed(grid))

    def noise(self, shape: Sequence[int]) -> Float[Tensor, "*shape"]:
        return torch.randn(tuple(shape), generator=self._generator).to(self.canvas)


def _keys(guided: Guided) -> list[str]:
    """A name for each guidance, the same in every process: its class, and how many of that class stand before it."""
    names = [type(guidance).__qualname__ for guidance, _ in guided]
    return [f"{name}/{names[:k].count(name)}" for k, name in enumerate(names)]


def _moved(memory: Any, device: torch.device) -> Any:
    """A guidance's memory, its tensors on a device."""
    match memory:
        case Tensor():
            return memory.to(device)
        case dict():
            return {key: _moved(part, device) for key, part in memory.items()}
        case list() | tuple():
            return type(memory)(_moved(part, device) for part in memory)
    return memory


def _expect(found: Any, shape: Sequence[int], source: str, contract: str) -> Tensor:
    """What a plugin returned, if it is a tensor of this shape."""
    if not isinstance(found, Tensor):
        raise ContractError(f"{source} returned {type(found).__name__}, expected a tensor {tuple(shape)}; {contract}")
    if found.shape != shape:
        raise ContractError(f"{source} returned shape {tuple(found.shape)}, expected {tuple(shape)}; {contract}")
    return found


def _gradients(jacobian: str, contexts: Guided, seen: Estimate, index: Sequence[int], told: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of strength times energy gradient, with respect to x and to x0, over the guidances of one kind.

    They are taken at detached leaves, guidance by guidance, so that a decoder's graph is freed before the next, and before
    the one backward through the denoiser. What there is to tell of each goes into `told`, (n, guidances, 3).
    """
    to_x, to_x0 = torch.zeros_like(seen.x), torch.zeros_like(seen.x0)
    for k, (guidance, context) in enumerate(contexts):
        if guidance.jacobian != jacobian:
            continue
        x, x0 = seen.x.detach().requires_grad_(), seen.x0.detach().requires_grad_()
        with torch.enable_grad():
            energy = guidance.energy(Estimate(x, x0, seen.level, seen.below), index, context)
        _check(guidance, energy, len(index), seen.level)
        strength = guidance.strength(seen.level)
        sound, square = torch.ones(len(index), dtype=torch.bool, device=x.device), x.new_zeros(len(index))
        for total, gradient in zip((to_x, to_x0), _gradient(energy, (x, x0)), strict=True):
            if gradient is not None:
                total += strength * gradient
                sound &= _finite(gradient) | ~_finite(seen.x0)  # the prediction's fault is told as such
                square += gradient.flatten(1).square().sum(1)
        told[:, k] = torch.stack([sound, energy.detach(), square.sqrt()], dim=1)
    return to_x, to_x0


def _finite(rows: Tensor) -> Tensor:
    return torch.isfinite(rows).flatten(1).all(1)


def _gradient(energy: Tensor, leaves: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    """An energy that is constant, as an anchor's is, has no graph and no gradient."""
    if not energy.requires_grad:
        return (None,) * len(leaves)
    return torch.autograd.grad(energy, leaves, torch.ones_like(energy), allow_unused=True)


def _through(seen: Estimate, to_x0: Tensor) -> Tensor:
    """The vector-Jacobian product through the denoiser: from a gradient at x0 to one at x.

    It is linear, so each window's gradient is scaled by a power of two to about 1 and back: exact, and half precision neither
    underflows nor overflows on the way.
    """
    _, exponent = torch.frexp(to_x0.abs().flatten(1).amax(dim=1))
    scale = exponent.view(-1, *(1,) * (to_x0.ndim - 1))
    (gradient,) = torch.autograd.grad(seen.x0, seen.x, torch.ldexp(to_x0, -scale))
    return torch.ldexp(gradient, scale)


def _hold(sound: Tensor, guidances: Sequence[Guidance], level: Level) -> None:
    """Raise where a guidance's gradient was not finite, naming it and the windows."""
    if bool(sound.all()):
        return
    for k, guidance in enumerate(guidances):
        windows = (sound[:, k] == 0).nonzero().flatten().tolist()
        if windows:
            shown = ", ".join(map(str, windows[:8])) + (f" and {len(windows) - 8} more" if len(windows) > 8 else "")
            raise NotFiniteError(
                f"the gradient of {type(guidance).__name__} at step {level.step + 1} of {level.steps} (level {level.index}) "
                f"holds NaN or infinity in windows {shown}: give it less weight, or precision 32-true"
            )


def _check(guidance: Guidance, energy: Any, n: int, level: Level) -> None:
    name = type(guidance).__name__
    if not isinstance(energy, Tensor):
        raise ContractError(f"{name}.energy returned {type(energy).__name__} at level {level.index}; it must return a tensor")
    if energy.shape != (n,):
        raise ContractError(
            f"{name}.energy returned shape {tuple(energy.shape)} for {n} windows at level {level.index}; "
            f"it must return one number a window, ({n},): sum over all axes but the first"
        )
