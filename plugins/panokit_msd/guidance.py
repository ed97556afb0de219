"""The guidance: an energy that compares windows, shrunk, with a denoised coarse canvas."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple, final

from jaxtyping import Float
from torch import Tensor

from panokit import Estimate, Grid, Guidance, Level, SettingError, Step
from panokit_msd.scale import enlarged, mean, pick, renoised

Memory = dict[str, Any]


class Coarse(NamedTuple):
    """What the windows of a step share: the denoised coarse canvas, and where each window lies on it."""

    target: Tensor
    grid: Grid


@final
@dataclass(frozen=True)
class MSDGuidance(Guidance):
    r"""Cross-scale guidance: the picture that a window becomes, shrunk, is a piece of a smaller picture of the whole.

    At every step the coarse canvas is denoised by MultiDiffusion, and each fine window $x_i$ goes down the gradient of

    $$ E_i = c_t\, \lVert D(\Phi(x_i)) - F'_i(\Phi(z')) \rVert^2, \qquad x_i \leftarrow x_i - \omega_t \nabla E_i, \qquad
    \omega_t = \omega \left(\tfrac{1}{2} (1 + \cos \pi \tau)\right)^k $$

    (eq. 8 and 9, $\tau$ the share of the steps that is done), with $D$ the mean over blocks of `factor` cells, $F'_i$ the crop
    of the coarse canvas $z'$ that window $i$ covers, and $\Phi$ what the denoiser makes of either. More levels are recursion:
    the coarse canvas is guided by a coarser one in the same way. The canvas must hold one window at the coarsest level;
    `factor` to the power of `levels` - 1 must divide its cells, and `factor` the window's and the stride's.

    By default the coarse canvas is finished first, and the fine one begins with it (`head_start`); from there to `until` every
    clean estimate moves a share of the way to the coarse canvas, without a gradient through the denoiser. `paper` is the
    paper's algorithm, and `full` that with a rate for its weight; both begin with noise.

    Attributes:
        weight: $\omega$, 0 or more; 0 is MultiDiffusion bit for bit.
        decay: $k$, 0 or more: how fast the cosine takes the guidance back; 0 keeps it constant.
        until: $T'$, the share of the steps after which the guidance ends, in [0, 1]; there is none up to `head_start`.
        head_start: the share of the steps, in [0, 1], that the finer canvas is spared: it begins there, with the finished
            coarse canvas, enlarged, under noise of that level, as Meng et al. 2022 begin with strokes of paint. 0 begins with
            noise alone, as the paper does.
        levels: $S$, how many canvases there are, 2 to 32; None: as many as the canvas holds.
        factor: how much smaller each is than the one above, 2 or more.
        coarse: where the coarse canvas comes from. `bilinear`: $D z_t$, the paper's; its noise is weaker than its level says,
            which makes for an emptier picture. `strided`: every `factor`-th cell of $z_t$, whose noise is as strong as it
            should be, and whose clean estimate aliases. `renoise`: $D z_t$ with fresh noise up to its level; the two canvases
            agree. `trajectory`: so once, and from then on its own deterministic way down, which varies more along the canvas.
        space: what is compared: `prev`, one step down, as in the paper; or the clean estimate `x0`.
        norm: $c_t$. `sum` is 1, a sum of squares; `mean` divides it by the number of cells. `projection` makes one weight mean
            the same for all models, window sizes, noise levels and numbers of steps: a rate, at which a clean estimate goes
            $1 - e^{-\omega_t / T}$ of the way to the coarse canvas in one of $T$ steps. That share then stands for $\omega_t$,
            and $c_t$ for $a$ axes is $f^a / 2$ in `x0` with the identity Jacobian ($1 / 2$ for `strided`); $\alpha^2$ times
            that with the full one, where the share is exact if $\partial \hat x_0 / \partial x = 1 / \alpha$; and in `prev`,
            where the noise of both sides is taken to be that of $D z_t$, and what is compared moves $g = \alpha' - \sigma'
            \alpha / \sigma$ times as much as $x_0$, divided by $g^2$ (`identity`) or $g \alpha'$ (`full`).
        jacobian: `full`, through the denoiser to the noisy window as in the paper; or `identity`, which corrects the clean
            estimate and needs no backward and no second forward pass.
        lead: how many times the weight guides one coarse canvas by the next, 1 or more, where there are three levels or more.
            A canvas between two others must follow the one below before it can lead, and there are few steps to do it in:
            at 10 times the rate it takes on nearly all of it at once. 1 is plain recursion, which `sum` and `mean` want: theirs
            is no rate, and can go too far.
        density: how many times closer than the fine windows the windows of the coarsest canvas lie, 1 or more: there are few
            of them, and everything follows them.
        coarse_guidances: guidances for the coarsest canvas, where they cost little.

    Raises:
        SettingError: a setting out of its range.
    """

    noise_key: ClassVar[str] = "MSDGuidance"

    weight: float = 10.0
    decay: float = 2.0
    until: float = 0.5
    head_start: float = 0.3
    levels: int | None = None
    factor: int = 2
    coarse: Literal["bilinear", "strided", "renoise", "trajectory"] = "renoise"
    space: Literal["prev", "x0"] = "x0"
    norm: Literal["sum", "mean", "projection"] = "projection"
    jacobian: Literal["full", "identity"] = "identity"
    lead: float = 10.0
    density: int = 1
    coarse_guidances: tuple[Guidance, ...] = ()

    def __post_init__(self) -> None:
        for name, least in (("weight", 0), ("decay", 0), ("levels", 2), ("factor", 2), ("lead", 1), ("density", 1)):
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise SettingError(f"{name} is {value}: it must be {least} or more")
        if self.levels is not None and self.levels > 32:
            raise SettingError(f"levels is {self.levels}: there are 32 at most, of which the largest canvas holds a few")
        for name in ("until", "head_start"):
            if not 0 <= getattr(self, name) <= 1:
                raise SettingError(f"{name} is {getattr(self, name)}: it is a share of the steps, from 0 to 1")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise SettingError(f"{name} is {getattr(self, name)!r}: it must be one of {', '.join(choices)}")

    @classmethod
    def paper(cls, weight: float = 10.0, **settings: Any) -> "MSDGuidance":
        r"""Algorithm 1: the sum of squares one step down, through the denoiser, $\omega = 10$."""
        return cls(
            weight,
            **{
                "decay": 1.0,
                "head_start": 0.0,
                "coarse": "bilinear",
                "space": "prev",
                "norm": "sum",
                "jacobian": "full",
                "lead": 1.0,
                **settings,
            },
        )

    @classmethod
    def full(cls, weight: float = 15.0, **settings: Any) -> "MSDGuidance":
        """Algorithm 1 with its weight as a rate, which carries over between window sizes and numbers of steps."""
        settings = {"head_start": 0.0, "coarse": "bilinear", "space": "prev", "jacobian": "full", "lead": 1.0, **settings}
        return cls(weight, **settings)

    def begin(self, grid: Grid, levels: Sequence[Level]) -> Memory:
        """Memories of what guides the coarse canvas.

        Raises:
            SettingError: the canvas does not hold that many levels, or its cells cannot be divided so.
        """
        self._check(grid)
        below = self._below(grid)
        return {"coarse": [guidance.begin(below, levels) for guidance in self._guides(grid)]}

    def known(self, step: Step, memory: Memory) -> Float[Tensor, "*c_size"] | None:
        """In the head start, the finished coarse canvas, enlarged."""
        level = step.level
        last = level.step + 1 == level.steps and self.head_start < 1  # which is the fine canvas's own, however few there are
        if self.weight == 0 or level.progress >= self.head_start or last:
            memory.pop("painted", None)
            return None
        if "painted" not in memory:
            others = [guidance for guidance in step.others if not isinstance(guidance, MSDGuidance)]
            memory["painted"] = step.paint(self._below(step.grid), [*self._guides(step.grid), *others])
        return enlarged(memory["painted"], self.factor, step.grid.wrap)

    def prepare(self, step: Step, memory: Memory) -> Coarse:
        below = self._below(step.grid)
        guided = list(zip(self._guides(step.grid), memory["coarse"], strict=True))
        seen = step.estimate(self._canvas(step, memory), below, guided)
        if self.coarse == "trajectory":
            memory["canvas"] = seen.prev
        if self.norm == "projection":  # compare clean estimates alone, whatever noise the coarse canvas has
            seen = replace(seen, x=self._shrunk(step.canvas, len(step.grid.size)))
        return Coarse(seen.prev if self.space == "prev" else seen.x0, step.grid.coarsened(self.factor))

    def strength(self, level: Level) -> float:
        if level.progress >= self.until:
            return 0.0
        weight = self.weight * (0.5 * (1 + math.cos(math.pi * level.progress))) ** self.decay
        return -math.expm1(-weight / level.steps) if self.norm == "projection" else weight

    def energy(self, seen: Estimate, index: Sequence[int], context: Coarse) -> Float[Tensor, " n"]:
        found = seen.prev if self.space == "prev" else seen.x0
        apart = self._shrunk(found, len(context.grid.size)) - context.grid.crop(context.target, index)
        return self._scale(seen, apart[0].numel(), len(context.grid.size)) * apart.square().flatten(1).sum(1)

    def _levels(self, grid: Grid) -> int:
        """How many canvases there are."""
        return self.levels or max(2, self._room(grid))

    def _room(self, grid: Grid) -> int:
        """How many canvases there can be: each whole cells, and a window or more."""
        room, unit = 1, self.factor
        while all(size % unit == 0 and size >= window * unit for size, window in zip(grid.size, grid.window, strict=True)):
            room, unit = room + 1, unit * self.factor
        return room

    def _guides(self, grid: Grid) -> tuple[Guidance, ...]:
        """What guides the coarse canvas: the levels below it, and on the coarsest whatever the user chose."""
        levels = self._levels(grid)
        if levels == 2:
            return self.coarse_guidances
        weight = self.weight and self.weight * self.lead  # 0 stays 0, however far it leads
        return (replace(self, levels=levels - 1, weight=weight, lead=1.0),)  # once: it is the same for all of them

    def _check(self, grid: Grid) -> None:
        """Raise a SettingError unless the canvas holds all levels, in whole cells."""
        if any(window % self.factor for window in grid.window):
            fit = [str(factor) for factor in range(2, min(grid.window) + 1) if not any(w % factor for w in grid.window)]
            raise SettingError(
                f"factor is {self.factor}, which does not divide the model's window of {_by(grid.window)} cells: "
                f"choose {' or '.join(fit) or 'another model'}"
            )
        larger = tuple(window * self.factor for window in grid.window)
        replace(grid, size=larger).coarsened(self.factor)  # raises where the stride cannot be divided
        levels, room = self._levels(grid), self._room(grid)
        if room < levels:
            unit = self.factor ** (levels - 1)
            fits = (max(-(-size // unit), window) * unit for size, window in zip(grid.size, grid.window, strict=True))
            raise SettingError(
                f"MSD with {levels} levels of factor {self.factor} needs a canvas of "
                f"{_by(window * unit for window in grid.window)} cells or more, in steps of {unit}, and this one is "
                f"{_by(grid.size)}: the next that works is {_by(fits)}"
                + (f", and {room} levels fit this one" if room > 1 else "")
            )

    def _below(self, grid: Grid) -> Grid:
        """The windows of the coarse canvas."""
        below = grid.scaled(self.factor)
        if self._levels(grid) > 2:
            return below
        return replace(below, stride=tuple(max(1, stride // self.density) for stride in below.stride))

    def _canvas(self, step: Step, memory: Memory) -> Tensor:
        """The coarse canvas at this noise level."""
        axes = len(step.grid.size)
        if self.coarse == "trajectory" and "canvas" in memory:
            return memory["canvas"]
        if self.coarse in ("renoise", "trajectory"):
            return renoised(step.canvas, self.factor, axes, step.level, step.noise)
        return self._shrunk(step.canvas, axes)

    def _shrunk(self, x: Tensor, axes: int) -> Tensor:
        """D, the same on both sides of the comparison."""
        return (pick if self.coarse == "strided" else mean)(x, self.factor, axes)

    def _scale(self, seen: Estimate, cells: int, axes: int) -> float:
        """The energy's factor c_t."""
        match self.norm:
            case "sum":
                return 1.0
            case "mean":
                return 1 / cells
            case "projection":
                level, below = seen.level, seen.below
                spread = 1 if self.coarse == "strided" else self.factor**axes  # 1 / (D D^T)
                gain = below.alpha - below.sigma * level.alpha / level.sigma if self.space == "prev" else 1.0
                if self.jacobian == "identity":
                    return spread / (2 * gain**2)
                slope = below.alpha if self.space == "prev" else 1.0  # of what is compared along x, times alpha
                return spread * level.alpha**2 / (2 * gain * slope)


def _by(cells: Iterable[int]) -> str:
    return " x ".join(map(str, cells))


_CHOICES = {
    "coarse": ("bilinear", "strided", "renoise", "trajectory"),
    "space": ("prev", "x0"),
    "norm": ("sum", "mean", "projection"),
    "jacobian": ("full", "identity"),
}
