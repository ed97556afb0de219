"""The models: the configurations of published ones with random weights, and the same families in miniature."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple, final

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from panokit.testing.families import tiny_pipeline
from panokit.testing.families.pipelines import frozen
from panokit.testing.tokenizers import clip_tokenizer, t5_tokenizer

NAMES = ("sd2", "sdxl", "flux")
"""Stable Diffusion 2.0 (base), Stable Diffusion XL 1.0, and FLUX.1 [dev] with two layers of each kind."""

PARAMETERS: Mapping[str, Mapping[str, int]] = {
    "sd2": {"unet": 865_910_724, "vae": 83_653_863, "text_encoder": 340_387_840},
    "sdxl": {"unet": 2_567_463_684, "vae": 83_653_863, "text_encoder": 123_060_480, "text_encoder_2": 694_659_840},
    "flux": {"transformer": 11_901_408_320, "vae": 83_819_683, "text_encoder": 123_060_480, "text_encoder_2": 4_762_310_656},
}
"""The parameters of the published models, all layers of FLUX.1 and of its T5 among them."""

_BETAS: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
_WINDOWS = {"sd2": 64, "sdxl": 128, "flux": 128}
_TINY = {"sd2": ("sd", 8), "sdxl": ("sdxl", 16), "flux": ("flux", 16)}
_LENGTH = 77
"""Tokens of a prompt for CLIP."""


def sd2() -> dict[str, nn.Module]:
    """The networks of Stable Diffusion 2.0, as trained on 512 x 512 pixels."""
    return {
        "unet": UNet2DConditionModel(
            sample_size=64, cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True
        ),
        "vae": _vae(sample_size=768, scaling_factor=0.18215),
        "text_encoder": CLIPTextModel(_clip(1024, layers=23, heads=16, pad="!", hidden_act="gelu", projection_dim=512)),
    }


def sdxl() -> dict[str, nn.Module]:
    """The networks of Stable Diffusion XL 1.0."""
    return {
        "unet": UNet2DConditionModel(
            sample_size=128,
            block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=2048,
            attention_head_dim=(5, 10, 20),
            use_linear_projection=True,
            transformer_layers_per_block=(1, 2, 10),
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        ),
        "vae": _vae(sample_size=1024, scaling_factor=0.13025, force_upcast=True),
        "text_encoder": CLIPTextModel(_clip(768, layers=12, heads=12)),
        "text_encoder_2": CLIPTextModelWithProjection(
            _clip(1280, layers=32, heads=20, pad="!", hidden_act="gelu", projection_dim=1280)
        ),
    }


def flux(layers: int = 2, single_layers: int = 2, text_layers: int = 1) -> dict[str, nn.Module]:
    """The networks of FLUX.1 [dev] at their real width.

    Args:
        layers: blocks with weights of their own for the text; the published model has 19.
        single_layers: blocks without; the published model has 38.
        text_layers: blocks of T5; the published model has 24.
    """
    text: dict[str, Any] = {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_heads": 64, "feed_forward_proj": "gated-gelu"}
    return {
        "transformer": FluxTransformer2DModel(num_layers=layers, num_single_layers=single_layers, guidance_embeds=True),
        "vae": _vae(
            sample_size=1024,
            latent_channels=16,
            scaling_factor=0.3611,
            shift_factor=0.1159,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ),
        "text_encoder": CLIPTextModel(_clip(768, layers=12, heads=12)),
        "text_encoder_2": T5EncoderModel(T5Config(vocab_size=32128, num_layers=text_layers, **text)),
    }


_WHOLE: Mapping[str, Callable[[], dict[str, nn.Module]]] = {"sd2": sd2, "sdxl": sdxl, "flux": lambda: flux(19, 38, 24)}


def parameters(name: str) -> dict[str, int]:
    """The parameters of each network of a whole model, which is built without weights."""
    with torch.device("meta"):
        return {part: sum(weight.numel() for weight in network.parameters()) for part, network in _WHOLE[name]().items()}


def window_of(name: str, *, tiny: bool) -> int:
    """Cells along a side of a window."""
    return _TINY[name][1] if tiny else _WINDOWS[name]


def pipeline(name: str, device: torch.device, dtype: torch.dtype, *, tiny: bool = False, seed: int = 0) -> DiffusionPipeline:
    """A pipeline of diffusers with random weights, which are made on the device.

    Args:
        name: one of `NAMES`.
        device: where its networks are.
        dtype: the dtype of the weights.
        tiny: whether it is a model of the same family in miniature.
        seed: seed of the weights.
    """
    if tiny:
        pipe = tiny_pipeline(_TINY[name][0], seed=seed).to(device, dtype)
        if name == "sd2":
            pipe.scheduler = ddim()
        return pipe
    with _made_on(device, dtype, seed):
        networks = {"sd2": sd2, "sdxl": sdxl, "flux": flux}[name]()
    tokenizer = clip_tokenizer(_LENGTH, pad="!" if name == "sd2" else "<|endoftext|>")
    if name == "sd2":
        more: dict[str, Any] = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        return frozen(StableDiffusionPipeline(**networks, tokenizer=tokenizer, scheduler=ddim(), **more))
    if name == "sdxl":
        scheduler = EulerDiscreteScheduler(timestep_spacing="leading", steps_offset=1, **_BETAS)
        second = clip_tokenizer(_LENGTH, pad="!")
        return frozen(
            StableDiffusionXLPipeline(
                **networks, tokenizer=tokenizer, tokenizer_2=second, scheduler=scheduler, add_watermarker=False
            )
        )
    flow = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, shift=3.0, base_shift=0.5, max_shift=1.15, base_image_seq_len=256, max_image_seq_len=4096
    )
    return frozen(FluxPipeline(**networks, tokenizer=tokenizer, tokenizer_2=t5_tokenizer(512), scheduler=flow))


def ddim() -> DDIMScheduler:
    """The scheduler of Stable Diffusion, for its own pipelines."""
    return DDIMScheduler(**_BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1)


@final
class Flops(NamedTuple):
    """The floating-point operations of one sample of one window, two for each multiplication and addition.

    Attributes:
        forward: of a forward pass of the network that predicts.
        backward: of its backward pass to the latents alone.
        decode: of decoding one window.
        decode_backward: of the backward pass of that.
    """

    forward: int
    backward: int
    decode: int
    decode_backward: int


@cache
def flops(name: str) -> Flops:
    """Count the operations of a real model, without weights and without a device. It takes a second or two.

    Args:
        name: one of `NAMES`.
    """
    with torch.device("meta"):
        networks: dict[str, Any] = {"sd2": sd2, "sdxl": sdxl, "flux": flux}[name]()
        side, channels = _WINDOWS[name], networks["vae"].config.latent_channels
        x = torch.empty(1, channels, side, side, requires_grad=True)
        tokens = torch.empty(1, (side // 2) ** 2, 4 * channels, requires_grad=True)
        text, pooled = torch.empty(1, _LENGTH, 2048 if name == "sdxl" else 1024), torch.empty(1, 1280)
        times = {"text_embeds": pooled, "time_ids": torch.empty(1, 6)}
        places = {"txt_ids": torch.empty(512, 3), "img_ids": torch.empty(tokens.shape[1], 3)}
        one = {"timestep": torch.empty(1), "guidance": torch.empty(1), "pooled_projections": torch.empty(1, 768)}
        long = torch.empty(1, 512, 4096)
    frozen_networks = [network.requires_grad_(False) for network in networks.values()]
    assert frozen_networks
    predict: dict[str, Callable[[], Tensor]] = {
        "sd2": lambda: networks["unet"](x, 1, text).sample,
        "sdxl": lambda: networks["unet"](x, 1, text, added_cond_kwargs=times).sample,
        "flux": lambda: networks["transformer"](tokens, long, **one, **places).sample,
    }
    return Flops(
        *_counted(predict[name], tokens if name == "flux" else x), *_counted(lambda: networks["vae"].decode(x).sample, x)
    )


def _counted(work: Callable[[], Tensor], x: Tensor) -> tuple[int, int]:
    """The operations of a forward pass, and of the backward pass to its input."""
    with FlopCounterMode(display=False) as forward:
        made = work()
    with FlopCounterMode(display=False) as backward:
        torch.autograd.grad(made, x, torch.empty_like(made))
    return int(forward.get_total_flops()), int(backward.get_total_flops())


@contextmanager
def _made_on(device: torch.device, dtype: torch.dtype, seed: int) -> Iterator[None]:
    """Inside, modules make their weights on a device, in a dtype, from a seed. Outside, nothing has changed."""
    before = torch.get_default_dtype()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        torch.set_default_dtype(dtype)
        try:
            with torch.device(device):
                yield
        finally:
            torch.set_default_dtype(before)


def _vae(**config: Any) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        **config,
    )


def _clip(width: int, *, layers: int, heads: int, pad: str = "<|endoftext|>", **config: Any) -> CLIPTextConfig:
    """The configuration of a text encoder of CLIP, whose special tokens are those of a tokenizer without a vocabulary."""
    tokenizer = clip_tokenizer(_LENGTH, pad=pad)
    return CLIPTextConfig(
        vocab_size=49408,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=_LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **config,
    )
