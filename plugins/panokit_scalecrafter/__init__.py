"""ScaleCrafter (He et al. 2023): a model paints larger pictures than those of its training, with re-dilated convolutions.

A convolution of the UNet sees a few cells of its input. In a larger picture these show less of the scene, so things repeat. In
the first steps, which decide the layout of the picture, the cells that a convolution sees lie further apart.

Source: He, Yang, Chen, Cun, Xia, Zhang, Wang, He, Chen, Shan, "ScaleCrafter: Tuning-free Higher-Resolution Visual Generation
with Diffusion Models", arXiv:2310.07702.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, final

from jaxtyping import Float
from torch import Tensor

from panokit import Denoiser, Family, Level, Model, Regions, Scene, SettingError, Windows, WrappedDenoiser, load_model
from panokit.settings import Execution
from panokit_scalecrafter.dilation import Scale, dilated, spreads

__all__ = ["Redilated", "ScaleCrafter"]


@final
@dataclass(frozen=True)
class ScaleCrafter(Family):
    r"""A model with a UNet whose windows are larger than the pictures of its training, with re-dilated convolutions.

    A convolution with the kernel $k$ becomes one whose taps are $d$ cells apart, in the first steps (section 3.2):

    $$ (h \otimes \Phi_d(k))(o) = \sum_{s + d\,t = o} h(s)\, k(t) $$

    Levels of the UNet are counted from $l = 0$, the one with the most cells. Inner levels are dilated more than outer ones, up
    to the `scale` $S$. With $q$ the number of levels that stay as they are (`outer`):

    $$ d_l = \min(S, \max(1, l + 2 - q)) $$

    Attributes:
        model: the model with the UNet: its name, or a mapping of `plugin`, the name, and settings.
        scale: $S$: how many times larger a window is than the model's own, 1 or more; for both axes, or for height and width.
        until: the share of the steps in which the convolutions are dilated, from 0 to 1. The authors take 0.6 for Stable
            Diffusion 1.5 and XL, and 0.4 for 2.1.
        outer: $q$: the number of outer levels that stay as they are, 0 or more. They remove noise, which dilation disturbs.
        noise_damped: whether the UNet as it is removes the noise, and the dilated one guides (section 3.4). It is for scales of
            4 and more, and takes about twice as long.

    Raises:
        SettingError: the scale or `outer` is too small, or `until` is outside of [0, 1].
    """

    model: str | Mapping[str, Any] = "landscapes"
    scale: int | Scale = 2
    until: float = 0.6
    outer: int = 1
    noise_damped: bool = False

    def __post_init__(self) -> None:
        if min(self.scales) < 1:
            raise SettingError(
                f"scale is {self.scale}: it must be 1 or more, such as 2 for windows of twice the height and width"
            )
        if not 0 <= self.until <= 1:
            raise SettingError(f"until is {self.until}: it must be a share of the steps, from 0 to 1")
        if self.outer < 0:
            raise SettingError(f"outer is {self.outer}: it must be a number of levels, 0 or more")

    @property
    def scales(self) -> Scale:
        """The scale of each axis."""
        return (self.scale, self.scale) if isinstance(self.scale, int) else self.scale

    @classmethod
    def reads(cls, index: Mapping[str, Any]) -> bool:
        return False

    def load(self, source: str, name: str) -> Model:
        inner = load_model(self.model)
        if isinstance(inner.denoiser, WrappedDenoiser):
            raise SettingError(f"{inner.name} is made of another model already, and ScaleCrafter takes a plain one: name that")
        return Model(Redilated(inner.denoiser, self, inner.name), inner.codec, name)


class Both(NamedTuple):
    """The conditions of noise-damped guidance: that of the scene, that of what to avoid alone, and where guidance ends."""

    scene: Any
    avoided: Any
    end: float


@final
class Redilated(WrappedDenoiser):
    """A denoiser whose UNet is re-dilated during its calls in the first steps. Elsewhere the UNet is as it was.

    Args:
        inner: the denoiser with the UNet.
        settings: scale, levels and steps.
        name: what the user calls the model, for errors.

    Raises:
        SettingError: it has no UNet, or a UNet of fewer levels.
    """

    def __init__(self, inner: Denoiser, settings: ScaleCrafter, name: str = "in hand") -> None:
        super().__init__(inner)
        # Checkpointing would compute again in the backward pass, when nothing is dilated any more. Compilation may stay: it is
        # that of transformer blocks, which have no such convolutions.
        self.choices = inner.choices - {"checkpointing"}
        self.settings = settings
        self._spreads = spreads(inner.modules(), settings.scales, settings.outer, name)  # it raises where there is no UNet
        self.window = tuple(cells * scale for cells, scale in zip(inner.window, settings.scales, strict=True))

    def configure(self, execution: Execution) -> None:
        self.inner.configure(replace(execution, checkpointing=False))

    def encode(self, scene: Scene) -> Any:
        embeddings = self.inner.encode(scene)
        if not self.settings.noise_damped or max(scene.guidance_scales) <= 1:
            return embeddings
        return Both(embeddings, self.inner.encode(_avoided(scene)), scene.guidance_end)

    def condition(self, embeddings: Any, windows: Windows, index: Sequence[int]) -> Any:
        if not isinstance(embeddings, Both):
            return self.inner.condition(embeddings, windows, index)
        scene, avoided, end = embeddings
        return Both(self.inner.condition(scene, windows, index), self.inner.condition(avoided, windows, index), end)

    def __call__(self, x: Float[Tensor, "n c h w"], level: Level, condition: Any) -> Float[Tensor, "n c h w"]:
        scene, avoided, end = condition if isinstance(condition, Both) else (condition, None, 0.0)
        if level.progress >= self.settings.until:
            return self.inner(x, level, scene)
        with dilated(self._spreads):
            pred = self.inner(x, level, scene)
            if avoided is None or level.progress >= end:  # without guidance there is nothing to damp
                return pred
            weak = self.inner(x, level, avoided)
        return pred - weak + self.inner(x, level, avoided)


def _avoided(scene: Scene) -> Scene:
    """The scene of what to avoid, without guidance."""
    first, *others = scene.negatives
    prompt = scene.prompt
    if isinstance(prompt, Regions):
        plain = [replace(region, guidance_scale=None) for region in prompt.parts]
        regions = tuple(replace(region, text=text) for region, text in zip(plain, others, strict=True))
        return replace(scene, prompt=replace(prompt, regions=regions, elsewhere=first), guidance_scale=1.0)
    return replace(scene, prompt=first, guidance_scale=1.0)
