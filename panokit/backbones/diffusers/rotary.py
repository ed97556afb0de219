r"""Rotary positions that go around a ring: attention then depends on the distance around it.

A transformer with rotary positions turns each pair of features of a token by the angle $\omega p$, for its position $p$ along
an axis and a frequency $\omega$ of the pair. Attention depends on differences of angles. Along a ring of $W$ tokens the first
one is the neighbour of the last one if $\omega W$ is a whole number of cycles. So each frequency is rounded:

$$ \omega' = \frac{2 \pi}{W} \operatorname{round}\left(\frac{\omega W}{2 \pi}\right) $$

Slow frequencies, of less than half a cycle, become 0: they cannot tell how far two tokens are apart around a ring. The idea is
that of stable-diffusion.cpp (`--circular`). No code of it is used.
"""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from panokit.rings import around

Rounding = Literal["all", "high"]
"""Which frequencies are rounded: all, or those of at least one cycle."""

_BY_IDS = {
    "BriaEmbedND",
    "ErnieImageEmbedND3",
    "Flux2PosEmbed",
    "FluxPosEmbed",
    "Krea2RotaryPosEmbed",
    "LongCatImagePosEmbed",
    "OvisImagePosEmbed",
    "RopeEmbedder",
}
"""The classes of diffusers that turn a table of positions, (..., row, column) of each token, into one of angles."""
_ATTRIBUTES = ("pos_embed", "rotary_emb", "rope", "rope_embedder")
"""The names by which networks hold them."""


def turns_around(network: nn.Module, patch: int, rounding: Rounding) -> bool:
    """Have the rotary positions of a network go around the ring that it sees. Without one they stay as they are.

    Args:
        network: a network of diffusers, which shares no module with the user's, but for one that moves itself.
        patch: cells along a side of a token.
        rounding: which frequencies are rounded.

    Returns:
        Whether its positions are of a kind that can.
    """
    if "forward" in vars(network):  # a hook that moves it between devices calls the user's own network
        return False
    for name in _ATTRIBUTES:
        part = getattr(network, name, None)
        make = _BY_CLASS.get(type(part).__name__)
        if make:
            modules = vars(network)["_modules"] = dict(network._modules)  # of a network that moves itself, the user's own
            modules.pop(name, None)
            vars(network).pop(name, None)
            setattr(network, name, _Around(part, make, patch, rounding))
            return True
    return False


@final
class _Around(nn.Module):
    """Positions that go around the ring of now, if there is one.

    Args:
        inner: diffusers' own, which it is otherwise.
        make: makes its tables with angles that go around.
        patch: cells along a side of a token.
        rounding: which frequencies are rounded.
    """

    def __init__(self, inner: Any, make: Callable[..., Any], patch: int, rounding: Rounding) -> None:
        super().__init__()
        self.inner, self._make, self._patch, self._rounding = inner, make, patch, rounding

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        ring = around()
        if ring is None:
            return self.inner(*args, **kwargs)
        sides = [cells // self._patch if wrap else None for cells, wrap in zip(ring.size, ring.wrap, strict=True)]
        return self._make(self.inner, _Turn(sides, self._rounding), *args, **kwargs)


@final
class _Turn:
    """Makes angles go around.

    Args:
        sides: tokens along the height and along the width of a ring; None for an axis that is none.
        rounding: which frequencies are rounded.
    """

    def __init__(self, sides: Sequence[int | None], rounding: Rounding) -> None:
        self.sides, self.rounding = sides, rounding

    def by_ids(self, table: Callable[[Tensor], Any], ids: Tensor) -> Any:
        """A table of angles, of a table of positions.

        The angles of the axes add up. So the axes that are rings are left out of the positions, and come back rounded.

        Args:
            table: makes the angles.
            ids: the positions, `... tokens axes`. Rows and columns are the second and third of three axes or more.
        """
        axes = [(axis, tokens) for axis, tokens in zip((1, 2), self.sides, strict=True) if tokens]
        rest = ids.clone()
        for axis, _ in axes:
            rest[..., axis] = 0
        out = _Phases(table(rest))
        for axis, tokens in axes:
            one = torch.zeros_like(ids[..., :1, :])
            one[..., axis] = 1
            step = self._rounded(_Phases(table(one)).angles, tokens)
            out.angles = out.angles + step * _beside(ids[..., axis].to(step), step, out.angles.shape)
        return out.table

    def on_grid(self, table: Any, grid: tuple[int, int, int], origins: tuple[int, int], axis: int = -2) -> Any:
        """A table of angles whose tokens lie on a grid.

        Args:
            table: the angles.
            grid: frames, height and width of the grid, in tokens.
            origins: the row and the column at position 0.
            axis: the axis of the tokens.
        """
        out = _Phases(table)
        for k, (tokens, origin) in enumerate(zip(self.sides, origins, strict=True), start=1):
            if not tokens:
                continue
            angles = out.angles.movedim(axis, -2).unflatten(-2, grid).movedim(-4 + k, -2)  # ... tokens features
            step = self._rounded(angles[..., 1:2, :] - angles[..., :1, :], tokens) if angles.shape[-2] > 1 else 0
            places = torch.arange(tokens, device=angles.device, dtype=angles.dtype)[:, None] - origin
            turned = angles[..., origin : origin + 1, :] + step * places
            out.angles = turned.movedim(-2, -4 + k).flatten(-4, -2).movedim(-2, axis)
        return out.table

    def _rounded(self, step: Tensor, tokens: int) -> Tensor:
        """The angle from one token to the next, rounded to whole cycles around the ring."""
        cycles = torch.remainder(step + math.pi, 2 * math.pi).sub(math.pi) * (tokens / (2 * math.pi))
        rounded = cycles.round()
        if self.rounding == "high":
            rounded = torch.where(cycles.abs() < 1, cycles, rounded)
        return rounded * (2 * math.pi / tokens)


@final
class _Phases:
    """A table of rotations as angles, in float64 where the device has it.

    Args:
        table: complex numbers, a pair of cosines and sines, or angles.
    """

    def __init__(self, table: Any) -> None:
        self._like = table
        if isinstance(table, tuple):
            cos, sin = (_wide(part) for part in table)
            self.angles = torch.atan2(sin, cos)
        else:
            self.angles = _wide(table.angle() if table.is_complex() else table)

    @property
    def table(self) -> Any:
        """The table, in the type that it had."""
        if isinstance(self._like, tuple):
            return self.angles.cos().to(self._like[0]), self.angles.sin().to(self._like[1])
        if self._like.is_complex():
            return torch.polar(torch.ones_like(self.angles), self.angles).to(self._like)
        return self.angles.to(self._like)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.float32 if x.device.type == "mps" else torch.float64)


def _beside(places: Tensor, step: Tensor, shape: Sequence[int]) -> Tensor:
    """The places of tokens, `... tokens`, with further axes, so that they multiply a step, which has one token."""
    axis = next((k for k in range(len(shape)) if shape[k] != step.shape[k]), len(shape) - 2)
    lead = places.shape[:-1]
    return places.view(*lead, *(1,) * (axis - len(lead)), places.shape[-1], *(1,) * (len(shape) - axis - 1))


def _by_ids(inner: Any, turn: _Turn, ids: Tensor) -> Any:
    return turn.by_ids(inner, ids)


def _lumina(inner: Any, turn: _Turn, *args: Any, **kwargs: Any) -> Any:
    """Lumina 2 makes the positions itself."""
    other = copy.copy(inner)
    vars(other)["_get_freqs_cis"] = lambda ids: turn.by_ids(inner._get_freqs_cis, ids)
    return other(*args, **kwargs)


def _qwen(inner: Any, turn: _Turn, shapes: Any, *args: Any, **kwargs: Any) -> Any:
    """Qwen-Image makes the angles of a grid around its centre. The first picture is the window; others are shown to it."""
    picture, text = inner(shapes, *args, **kwargs)
    first = shapes
    while not isinstance(first[0], int):
        first = first[0]
    frames, height, width = first
    origins = (height - height // 2, width - width // 2) if inner.scale_rope else (0, 0)
    count = frames * height * width
    window = turn.on_grid(picture[:count], (frames, height, width), origins)
    return torch.cat([window, picture[count:]]), text


def _qwen21(inner: Any, turn: _Turn, shapes: Any, is_picture: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Qwen-Image 2.1 has one row of texts and pictures, of which the last one is the window."""
    table = inner(shapes, is_picture, *args, **kwargs).clone()
    _, height, width = shapes[-1]
    at = is_picture.nonzero().flatten()[-height * width :].to(table.device)
    table[at] = turn.on_grid(table[at], (1, height, width), (height - height // 2, width - width // 2))
    return table


def _wan(inner: Any, turn: _Turn, x: Tensor) -> Any:
    """Wan reads the grid off its input."""
    grid = tuple(cells // patch for cells, patch in zip(x.shape[-3:], inner.patch_size, strict=True))
    return turn.on_grid(inner(x), grid, (0, 0), axis=1)


_BY_CLASS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(_BY_IDS, _by_ids),
    "Lumina2RotaryPosEmbed": _lumina,
    "NucleusMoEEmbedRope": _qwen,
    "QwenEmbedRope": _qwen,
    "QwenImage21Rope": _qwen21,
    "WanRotaryPosEmbed": _wan,
}
