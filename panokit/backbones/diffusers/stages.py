"""The decoders of diffusers in stages: the calls of their `forward`, one by one, for a picture."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from diffusers.models.autoencoders.autoencoder_dc import DCUpBlock2d, EfficientViTBlock
from diffusers.models.autoencoders.autoencoder_dc import Decoder as DCDecoder
from diffusers.models.autoencoders.vae import Decoder
from torch import Tensor, nn

from panokit.denoiser import Stage


def stages_of(vae: Any) -> list[Stage]:
    """The decoder of an autoencoder in stages, from its latents to its pictures.

    Args:
        vae: an autoencoder of diffusers.

    Returns:
        The stages; empty if it is built in another way than those that are known here.
    """
    kind, decoder = type(vae).__name__, vae.decoder
    if isinstance(decoder, DCDecoder):
        return [*_deep(decoder)]
    if isinstance(decoder, Decoder) and isinstance(decoder.conv_norm_out, nn.GroupNorm):
        return [*_plain(vae, decoder)]
    if kind in ("AutoencoderKLWan", "AutoencoderKLQwenImage"):
        return [*_film(vae, decoder)]
    return []


def _plain(vae: Any, decoder: Any) -> Iterator[Stage]:
    """Stable Diffusion's, FLUX's and those of many others."""
    first = [decoder.conv_in] if vae.post_quant_conv is None else [vae.post_quant_conv, decoder.conv_in]
    yield _stage(_chain(first), first)
    yield from _levels(decoder, (None,))
    last = [decoder.conv_norm_out, decoder.conv_act, decoder.conv_out]
    yield _stage(_chain(last), last)


def _film(vae: Any, decoder: Any) -> Iterator[Stage]:
    """Wan's and Qwen-Image's, for a film of one frame."""
    first = [vae.post_quant_conv, decoder.conv_in]
    yield _stage(_chain(first), first)
    yield from _levels(decoder)
    last = [decoder.norm_out, decoder.nonlinearity, decoder.conv_out]
    yield _stage(lambda x: _chain(last)(x).clamp(-1, 1), last)


def _deep(decoder: Any) -> Iterator[Stage]:
    """Sana's."""

    def begin(x: Tensor) -> Tensor:
        y = decoder.conv_in(x)
        return y + x.repeat_interleave(decoder.in_shortcut_repeats, 1) if decoder.in_shortcut else y

    def end(x: Tensor) -> Tensor:
        normal = decoder.norm_out(x.movedim(1, -1)).movedim(-1, 1)
        return decoder.conv_out(decoder.conv_act(normal))

    yield _stage(begin, [decoder.conv_in])
    for blocks in reversed(decoder.up_blocks):
        yield from map(_of, blocks)
    yield _stage(end, [decoder.conv_out], 2 if isinstance(decoder.conv_out, DCUpBlock2d) else 1)


def _levels(decoder: Any, more: tuple[None, ...] = ()) -> Iterator[Stage]:
    """The middle and all levels; `more` are the arguments that residual blocks take beside their input."""

    def resnet(part: Any) -> Stage:
        return _stage(lambda x: part(x, *more), [part])

    middle = decoder.mid_block
    yield resnet(middle.resnets[0])
    for attention, after in zip(middle.attentions, middle.resnets[1:], strict=True):
        if attention is not None:
            yield _stage(attention, [attention], attends=True)
        yield resnet(after)
    for block in decoder.up_blocks:
        yield from map(resnet, block.resnets)
        yield from (_stage(part, [part], 2) for part in block.upsamplers or ())


def _of(part: Any) -> Stage:
    return _stage(part, [part], 2 if isinstance(part, DCUpBlock2d) else 1, isinstance(part, EfficientViTBlock))


def _chain(parts: Iterable[Callable[[Tensor], Tensor]]) -> Callable[[Tensor], Tensor]:
    def run(x: Tensor) -> Tensor:
        for part in parts:
            x = part(x)
        return x

    return run


def _stage(run: Any, parts: Iterable[nn.Module], factor: int = 1, attends: bool = False) -> Stage:
    """A stage whose convolutions follow each other. Two that lie side by side both count: a larger reach is right too."""
    modules = [module for part in parts for module in part.modules()]
    reach = sum(max(module.kernel_size[-2:]) // 2 for module in modules if isinstance(module, nn.Conv2d | nn.Conv3d))
    return Stage(run, reach, factor, attends)
