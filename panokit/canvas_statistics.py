"""Canvas statistics: what a network takes from a whole canvas, so that it computes a tile as a part of that canvas.

A group norm divides by the deviation of the whole canvas, and attention reads all of its cells. Both are measured once, and
then kept while tiles are computed. PyTorch's functions are intercepted in the calling thread alone. So the network stays as it
is, and others may use it at the same time.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, final

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

Values = tuple[Tensor, ...]
"""What one norm, or one attention, takes from the canvas."""

_PRODUCTS = (torch.matmul, Tensor.matmul, Tensor.__matmul__)
_ASKS = (functional.group_norm, functional.scaled_dot_product_attention, *_PRODUCTS)
"""The functions that may take something from the whole canvas."""

KEYS = 1 << 16
"""The most cells that attention reads. Of a larger canvas it reads so many, evenly spread: else its work would be quadratic."""


class Core(NamedTuple):
    """The part of a window that counts, and its share in the canvas. The rest is there for its neighbours."""

    rows: slice
    columns: slice
    share: float


@final
class CanvasStatistics:
    """The values that each norm and each attention of some stages takes from a canvas.

    Args:
        values: for each stage, by its number, the values in the order in which the stage asks for them.
    """

    def __init__(self, values: Mapping[int, Sequence[Values]] | None = None) -> None:
        self.values: dict[int, list[Values]] = {stage: list(asked) for stage, asked in (values or {}).items()}

    def to(self, device: torch.device) -> "CanvasStatistics":
        """The same statistics on another device."""
        return CanvasStatistics(
            {stage: [tuple(part.to(device) for part in value) for value in asked] for stage, asked in self.values.items()}
        )

    def compute(self, stage: int, run: Callable[[Tensor], Tensor], x: Tensor, cores: Sequence[Core] | None = None) -> Tensor:
        """Compute windows by one stage.

        Args:
            stage: its number.
            run: computes it.
            x: windows of one canvas, `n ... h w`.
            cores: for each window, the part that counts in a measurement. The windows are normalised together, and what the
                stage takes from them is kept. None takes what was measured before.

        Returns:
            What `run` returns.
        """
        if cores is not None:
            self.values[stage] = []
        height, width = x.shape[-2:]
        with _Intercepted(self.values.get(stage, []), (height, width), cores):
            return run(x)


@final
class _Intercepted(TorchFunctionMode):
    """Computes norms and attention with values of a whole canvas, which it measures or has.

    Args:
        values: the values in order. A measurement appends to them.
        window: height and width of the windows that a stage computes.
        cores: for each window, the part that is measured; None to use the values.
    """

    def __init__(self, values: list[Values], window: tuple[int, int], cores: Sequence[Core] | None) -> None:
        super().__init__()
        self._values, self._window, self._cores, self._asked = values, window, cores, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _ASKS and not self._is_asked(args[0] if args else next(iter(kwargs.values()))):
            return func(*args, **kwargs)
        if func is functional.group_norm:
            return self._normalise(*args, **kwargs)
        if func is functional.scaled_dot_product_attention and self._is_over_cells(args, kwargs):
            return self._attend(*args, **kwargs)
        if func in _PRODUCTS and self._sums_cells(*args):
            return self._summed(*args)
        return func(*args, **kwargs)

    def _is_asked(self, x: Tensor) -> bool:
        """Whether there are values for a batch: not if a network cuts it up, or computes a tile in more calls than a sample."""
        return self._asked < len(self._values) if self._cores is None else len(x) == len(self._cores)

    def _value(self, measure: Callable[[], Values]) -> Values:
        """The next value."""
        if self._cores is not None:
            self._values.append(measure())
        self._asked += 1
        return self._values[self._asked - 1]

    def _normalise(
        self, x: Tensor, groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
    ) -> Tensor:
        """A group norm of all windows together."""
        mean, variance = self._value(lambda: self._moments(x, groups))
        channels = x.shape[1]
        scale = (variance + eps).rsqrt().repeat_interleave(channels // groups)
        shift = -mean.repeat_interleave(channels // groups) * scale
        if weight is not None:
            scale, shift = scale * weight, shift * weight
        if bias is not None:
            shift = shift + bias
        shape = (1, channels, *(1,) * (x.ndim - 2))
        normal = torch.addcmul(shift.view(shape), x, scale.view(shape))
        return normal if torch.is_autocast_enabled(x.device.type) else normal.to(x.dtype)

    def _moments(self, x: Tensor, groups: int) -> Values:
        """The mean and the variance of each group, in float32 or wider."""
        grids = x if x.ndim > 3 else x.unflatten(-1, self._grid(x.shape[-1]))
        wide = torch.promote_types(x.dtype, torch.float32)
        parts = [torch.var_mean(grid.reshape(groups, -1).to(wide), 1, correction=0) for grid in self._of_cores(grids)]
        variances, means = (torch.stack(column, 1) for column in zip(*parts, strict=True))
        shares = torch.tensor([core.share for core in self._cores or ()]).to(means)
        mean = means @ shares
        return mean, ((variances + (means - mean[:, None]).square()) @ shares).clamp(min=0)

    def _is_over_cells(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """Whether cells attend to each other."""
        query, key = args[:2] if len(args) > 1 else (kwargs["query"], kwargs["key"])
        mask = args[3] if len(args) > 3 else kwargs.get("attn_mask")
        return mask is None and query.shape[-2] == key.shape[-2] and self._is_grid(key.shape[-2])

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Attention to the cells of the whole canvas."""
        keys, values = self._value(lambda: (self._read(key), self._read(value)))
        queries = query.movedim(0, -3).flatten(-3, -2)[None]
        attended = functional.scaled_dot_product_attention(queries, keys, values, *args, **kwargs)
        return attended[0].unflatten(-2, (len(query), -1)).movedim(-3, 0)

    def _read(self, x: Tensor) -> Tensor:
        """The keys or values of all cores, `1 heads cells d`, at most `KEYS` cells of them."""
        grids = x.unflatten(-2, self._grid(x.shape[-2])).movedim(-1, -3)
        cells = torch.cat([grid.flatten(-2) for grid in self._of_cores(grids)], -1).transpose(-1, -2)[None].contiguous()
        if (count := cells.shape[-2]) <= KEYS:
            return cells
        numbers = torch.arange(KEYS, device=x.device, dtype=torch.float64)
        uneven = (numbers * 0.6180339887498949).frac()  # so that they do not lie in columns
        return cells[..., ((numbers + uneven) * (count / KEYS)).long(), :]

    def _sums_cells(self, left: Tensor, right: Tensor) -> bool:
        """Whether a matrix product is a sum over cells, as in linear attention."""
        cells = left.shape[-1]
        return left.ndim > 2 and right.ndim > 2 and self._is_grid(cells) and right.shape[-1] != cells != left.shape[-2]

    def _summed(self, left: Tensor, right: Tensor) -> Tensor:
        """A sum over all cells of the canvas, as large as if the canvas had as many cells as a window."""

        def measure() -> Values:
            pairs = (self._of_cores(x.unflatten(-1, self._grid(x.shape[-1]))) for x in (left, right.transpose(-1, -2)))
            means = [
                a.flatten(-2) @ b.flatten(-2).transpose(-1, -2) * (core.share / (a.shape[-2] * a.shape[-1]))
                for a, b, core in zip(*pairs, self._cores or (), strict=True)
            ]
            return (torch.stack(means).sum(0)[None],)

        (mean,) = self._value(measure)
        return (mean * left.shape[-1]).expand(len(left), *mean.shape[1:])

    def _of_cores(self, grids: Tensor) -> list[Tensor]:
        """The cores of windows whose last axes are a grid of cells, or of parts of cells."""
        by = grids.shape[-1] // self._window[1]
        return [
            grid[..., rows.start * by : rows.stop * by, columns.start * by : columns.stop * by]
            for grid, (rows, columns, _) in zip(grids, self._cores or (), strict=True)
        ]

    def _is_grid(self, cells: int) -> bool:
        height, width = self._window
        by = math.isqrt(cells // (height * width))
        return cells == height * width * by * by > 1

    def _grid(self, cells: int) -> tuple[int, int]:
        """Height and width of the windows, in as many cells."""
        height, width = self._window
        by = math.isqrt(cells // (height * width))
        return height * by, width * by
