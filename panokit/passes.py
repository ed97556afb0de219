"""One pass of the model over a canvas: crop its windows, guide them, denoise them, and fuse them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, final

import torch
from jaxtyping import Float
from torch import Tensor

from panokit.denoiser import Codec, Denoiser
from panokit.errors import ContractError, NotFiniteError, PanokitError
from panokit.fuser import Fuser
from panokit.guidance import Estimate, Guidance, Jacobian
from panokit.picture import Start
from panokit.runtime import Runtime
from panokit.scheduler import Level, Solver
from panokit.signals import Stop
from panokit.windows import Windows

Guided = Sequence[tuple[Guidance, Any]]
"""Pairs of a guidance and its memory, or of a guidance and the context that its `prepare` returned."""


@final
@dataclass(frozen=True, eq=False)
class Parts:
    """What the canvases of a run share: its own canvas, and the smaller ones that guidances denoise.

    Attributes:
        denoiser: makes predictions for noisy windows.
        codec: converts images to latents and back; None where the canvas is the picture.
        begin: makes a new solver at its first level. Each call returns an equal one.
        fuser: joins windows into a canvas.
        runtime: computes windows on the devices.
        embeddings: the result of `Denoiser.encode` for this run.
        stop: the request to end the run early.
        start: the picture that the canvases start from; None for noise alone.
    """

    denoiser: Denoiser
    codec: Codec | None
    begin: Callable[[], Solver]
    fuser: Fuser
    runtime: Runtime
    embeddings: Any
    stop: Stop = field(default_factory=Stop)
    start: Start | None = None


@final
class Checks:
    """Numbers that must be finite. They are read together, once a step, because each reading waits for the device."""

    def __init__(self) -> None:
        self._checks: list[tuple[Tensor, Callable[[], PanokitError | None]]] = []

    def add(self, numbers: Tensor, error: Callable[[], PanokitError | None]) -> None:
        """Remember numbers to read later.

        Args:
            numbers: a tensor of any shape, in the dtype and on the device of the canvas.
            error: makes the error to raise if one of them is not finite; None for no error. It is called only then.
        """
        self._checks.append((numbers.flatten(), error))

    def read(self) -> None:
        """Read all numbers, and forget them.

        Raises:
            PanokitError: the error of the first ones that are not finite.
        """
        checks, self._checks = self._checks, []
        if not checks:
            return
        numbers = torch.cat([numbers for numbers, _ in checks]).tolist()
        for part, error in checks:
            own, numbers = numbers[: len(part)], numbers[len(part) :]
            if not all(map(math.isfinite, own)) and (problem := error()):
                raise problem


class Passed(NamedTuple):
    """The result of a pass, the same on every rank.

    Attributes:
        x: the canvas after guidance, `c *size`. The prediction is for this canvas, and the solver steps from it.
        pred: the model's prediction for `x`, fused, `c *size`.
        stats: three numbers for each window and guidance, `n guidances 3`: the energy, the norm of its gradient, and that of
            the clean estimate that it saw, or 0. None if no guidance was awake.
    """

    x: Float[Tensor, "*c_size"]
    pred: Float[Tensor, "*c_size"]
    stats: Tensor | None


class Partial(NamedTuple):
    """The windows of a pass that are computed, where a part of the canvas is known.

    Attributes:
        numbers: their numbers, in order.
        pred: the prediction that leads to what is known, `c *size`. Windows that are not computed are crops of it.
    """

    numbers: Sequence[int]
    pred: Float[Tensor, "*c_size"]


@final
@dataclass(frozen=True, eq=False)
class Pass:
    """Computes the model's prediction for any canvas at any level, guided and fused. It is pure: it has no state.

    Attributes:
        parts: what the canvases of a run share.
        solver: the run's solver. A pass uses only its levels and its pure functions `x0` and `pred`.
        checks: gets the sizes of the guidances' gradients. Whoever makes a pass reads them.
    """

    parts: Parts
    solver: Solver
    checks: Checks = field(default_factory=Checks)

    def estimate(
        self,
        canvas: Float[Tensor, "*c_size"],
        windows: Windows,
        prepared: Guided,
        level: Level,
        partial: Partial | None = None,
    ) -> Passed:
        """Make one pass over a canvas.

        Args:
            canvas: `c *size`, at noise level `level`.
            windows: where its windows lie at this level.
            prepared: the guidances that are awake, each with the context that its `prepare` returned.
            level: the noise level of the canvas.
            partial: which windows to compute; None for all. The result counts where these lie alone.

        Returns:
            The guided canvas and the prediction for it. Without a guidance the canvas comes back as it is.

        Raises:
            ContractError: a plugin returned something of another shape.
        """
        runtime, stop = self.parts.runtime, self.parts.stop
        shape = (*canvas.shape[: -len(windows.size)], *windows.window)
        computed = range(len(windows)) if partial is None else partial.numbers
        if not prepared:
            # A lambda, because a function defined here would be made anew, with its annotations, at every step.
            (pred,) = runtime.map(
                lambda chunk: (self.predict(windows.crop(canvas, some := _chosen(computed, chunk)), windows, some, level),),
                len(computed),
                [shape],
                stop=stop,
            )
            return Passed(canvas, self._fuse(_spread(pred, windows, partial), windows, level), None)
        full = any(guidance.jacobian == "full" for guidance, _ in prepared)
        guided = self._guided(canvas, windows, prepared, level)
        x, pred, stats = runtime.map(
            lambda chunk: guided(_chosen(computed, chunk)),
            len(computed),
            [shape, shape, (len(prepared) * 3,)],
            micro_batch=runtime.guided_micro_batch if full else None,
            stop=stop,
        )
        stats = stats.unflatten(1, (-1, 3))
        guidances = [guidance for guidance, _ in prepared]
        self.checks.add(stats[..., 1].amax(), lambda: _unfinite(stats, guidances, level, computed))
        unguided = None if partial is None else partial._replace(pred=canvas)
        x = self._fuse(_spread(x, windows, unguided), windows, level)
        return Passed(x, self._fuse(_spread(pred, windows, partial), windows, level), stats)

    def predict(self, x: Tensor, windows: Windows, index: Sequence[int], level: Level) -> Tensor:
        """The denoiser's prediction for some windows.

        Args:
            x: the noisy windows, `n c *window`.
            windows: where they lie.
            index: their numbers.
            level: their noise level.

        Returns:
            The prediction, `n c *window`, in the dtype of `x`.

        Raises:
            ContractError: the denoiser returned another shape.
        """
        with self.parts.runtime.autocast():
            pred = self.parts.denoiser(x, level, self.parts.denoiser.condition(self.parts.embeddings, windows, index))
        expect(pred, x.shape, type(self.parts.denoiser).__name__, "a prediction has the shape of its windows")
        return pred.to(x.dtype)

    def look(self, x: Tensor, windows: Windows, index: Sequence[int], level: Level) -> Estimate:
        """The denoiser's estimate for some windows. It has a graph where torch records gradients.

        Args:
            x: the noisy windows, `n c *window`.
            windows: where they lie.
            index: their numbers.
            level: their noise level.

        Returns:
            The estimate, `n c *window`.
        """
        return self.read(x, self.predict(x, windows, index, level), level)

    def read(self, x: Tensor, pred: Tensor, level: Level) -> Estimate:
        """Turn a prediction into an estimate.

        Args:
            x: noisy windows or a noisy canvas.
            pred: the prediction for `x`, of the same shape.
            level: the noise level of `x`.

        Returns:
            The estimate, of the same shape.
        """
        return Estimate(x, self.solver.x0(pred, x, level), level, self.below(level))

    def below(self, level: Level) -> Level:
        """The next main level after `level`, or the terminal one."""
        levels = self.solver.levels[level.index + 1 :]
        return next((below for below in levels if below.main), levels[-1])

    def _fuse(self, rows: Tensor, windows: Windows, level: Level) -> Tensor:
        canvas = self.parts.fuser.fuse(rows, windows, level)
        expected = (*rows.shape[1 : rows.ndim - len(windows.window)], *windows.size)
        return expect(canvas, expected, f"{type(self.parts.fuser).__name__}.fuse", "it must return one canvas")

    def _guided(
        self, canvas: Tensor, windows: Windows, prepared: Guided, level: Level
    ) -> Callable[[list[int]], tuple[Tensor, Tensor, Tensor]]:
        """The function for `Runtime.map`: guidances move windows, the model denoises them, and identity ones correct them."""
        none, full, identity = (
            any(guidance.jacobian == kind for guidance, _ in prepared) for kind in ("none", "full", "identity")
        )

        def guided(index: list[int]) -> tuple[Tensor, Tensor, Tensor]:
            x = windows.crop(canvas, index)
            stats: dict[int, Sequence[Tensor]] = {}
            if none:
                unseen = Estimate(x, torch.full_like(x, math.nan), level, self.below(level))
                to_x, _ = _gradients("none", prepared, unseen, index, stats)
                x = x if to_x is None else x - to_x
            moved = True
            if full:
                with torch.enable_grad():
                    pred = self.predict(x.requires_grad_(), windows, index, level)
                    seen = self.read(x, pred, level)
                to_x, to_x0 = _gradients("full", prepared, seen, index, stats)
                x, pred = x.detach(), pred.detach()
                x = x if to_x is None else x - to_x
                x = x if to_x0 is None else x - _through(seen, to_x0)
                moved = to_x is not None or to_x0 is not None  # an anchor's energy, for one, has no gradient
            if moved:
                pred = self.predict(x, windows, index, level)
            if identity:
                seen = self.read(x, pred, level)
                _, to_x0 = _gradients("identity", prepared, seen, index, stats)
                if to_x0 is not None:
                    x0, x = seen.x0 - to_x0, x - level.alpha * to_x0
                    pred = self.solver.pred(x0, x, level)
            return x, pred, torch.stack([number for k in sorted(stats) for number in stats[k]], dim=1)

        return guided


def expect(value: Any, shape: Sequence[int], source: str, contract: str) -> Tensor:
    """Check that a plugin returned a tensor of the expected shape.

    Args:
        value: what the plugin returned.
        shape: the expected shape.
        source: the class and method that returned it, for the error.
        contract: what the method must return, for the error.

    Returns:
        The value.

    Raises:
        ContractError: it is no tensor, or a tensor of another shape.
    """
    if not isinstance(value, Tensor):
        raise ContractError(f"{source} returned {type(value).__name__}, expected a tensor {tuple(shape)}; {contract}")
    if value.shape != shape:
        raise ContractError(f"{source} returned shape {tuple(value.shape)}, expected {tuple(shape)}; {contract}")
    return value


def _gradients(
    jacobian: Jacobian, prepared: Guided, seen: Estimate, index: Sequence[int], stats: dict[int, Sequence[Tensor]]
) -> tuple[Tensor | None, Tensor | None]:
    """The sum of strength times energy gradient, with respect to x and to x0, over the guidances of one kind; None for 0.

    The gradients are taken at detached leaves, guidance by guidance. So a decoder's graph is freed before the next guidance,
    and before the one backward pass through the denoiser. The measurements go into `stats`, by the place of the guidance;
    reading them here would wait for the device at every chunk.
    """
    sums: dict[str, Tensor] = {}
    estimated = None if jacobian == "none" else _norm(seen.x0)
    for k, (guidance, context) in enumerate(prepared):
        if guidance.jacobian != jacobian:
            continue
        x = seen.x if jacobian == "identity" else seen.x.detach().requires_grad_()
        x0 = seen.x0 if jacobian == "none" else seen.x0.detach().requires_grad_()
        leaves = {"full": {"x": x, "x0": x0}, "identity": {"x0": x0}, "none": {"x": x}}[jacobian]
        with torch.enable_grad():
            energy = guidance.energy(Estimate(x, x0, seen.level, seen.below), index, context)
        _expect_energy(guidance, energy, len(index), seen.level)
        gradients = dict(zip(leaves, _gradient(energy, [*leaves.values()]), strict=True))
        norms = [_norm(gradient) for gradient in gradients.values() if gradient is not None]
        for name, gradient in gradients.items():
            if gradient is not None:
                moved = guidance.strength(seen.level) * gradient
                sums[name] = sums[name] + moved if name in sums else moved
        norm = norms[0] if len(norms) == 1 else torch.hypot(*norms) if norms else torch.zeros_like(energy)
        stats[k] = energy, norm, torch.zeros_like(energy) if estimated is None else estimated
    return sums.get("x"), sums.get("x0")


def _norm(rows: Tensor) -> Tensor:
    """The norm of each row."""
    return torch.linalg.vector_norm(rows, dim=tuple(range(1, rows.ndim)))


def _chosen(index: Sequence[int], chunk: Sequence[int]) -> list[int]:
    """The numbers of the windows of a chunk of `index`."""
    return [index[k] for k in chunk]


def _spread(rows: Tensor, windows: Windows, partial: Partial | None) -> Tensor:
    """Rows for all windows. Those that were not computed are crops of what is known."""
    if partial is None:
        return rows
    spread = windows.crop(partial.pred).to(rows)
    spread[list(partial.numbers)] = rows
    return spread


def _gradient(energy: Tensor, leaves: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    """The gradient of an energy at its leaves. A constant energy, such as an anchor's, has no graph and no gradient."""
    if not energy.requires_grad:
        return (None,) * len(leaves)
    return torch.autograd.grad(energy, leaves, torch.ones_like(energy), allow_unused=True)


def _through(seen: Estimate, to_x0: Tensor) -> Tensor:
    """The vector-Jacobian product through the denoiser: from a gradient at x0 to one at x.

    Half precision could underflow or overflow on the way. So each window's gradient is scaled by a power of two to about 1, and
    the product back. The product is linear, so this is exact.
    """
    _, scale = torch.frexp(torch.linalg.vector_norm(to_x0, torch.inf, tuple(range(1, to_x0.ndim)), keepdim=True))
    (gradient,) = torch.autograd.grad(seen.x0, seen.x, torch.ldexp(to_x0, -scale))
    return torch.ldexp(gradient, scale)


def _unfinite(stats: Tensor, guidances: Sequence[Guidance], level: Level, computed: Sequence[int]) -> NotFiniteError | None:
    """The error that names the first guidance with a gradient that is not finite, and its windows.

    Where the model's own estimate is not finite, the gradient is not the cause. None if it is the cause nowhere.

    Args:
        stats: those of a pass; see `Passed`.
        guidances: the guidances that were awake.
        level: the noise level.
        computed: the numbers of the windows of `stats`.
    """
    _, norms, estimates = torch.isfinite(stats).unbind(2)
    for k, guidance in enumerate(guidances):
        windows = [computed[row] for row in (~norms & estimates)[:, k].nonzero().flatten().tolist()]
        if windows:
            shown = ", ".join(map(str, windows[:8])) + (f" and {len(windows) - 8} more" if len(windows) > 8 else "")
            return NotFiniteError(
                f"the gradient of {type(guidance).__name__} at step {level.step + 1} of {level.steps} (level {level.index}) "
                f"holds NaN, infinity or numbers near it in {'windows' if len(windows) > 1 else 'window'} {shown}: give it "
                "less weight"
            )
    return None


def _expect_energy(guidance: Guidance, energy: Any, n: int, level: Level) -> None:
    name = type(guidance).__name__
    if not isinstance(energy, Tensor):
        raise ContractError(f"{name}.energy returned {type(energy).__name__} at level {level.index}; it must return a tensor")
    if energy.shape != (n,):
        raise ContractError(
            f"{name}.energy returned shape {tuple(energy.shape)} for {n} windows at level {level.index}; "
            f"it must return one number a window, ({n},): sum over all axes but the first"
        )
