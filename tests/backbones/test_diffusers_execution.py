"""How networks of diffusers compute: looked up on the networks, since diffusers ignores some requests without a word."""

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0, SlicedAttnProcessor, XFormersAttnProcessor

from panokit import Model, Runtime, Sampler, SettingError
from panokit.backbones.diffusers.execution import set_attention, set_checkpointing
from panokit.backbones.diffusers.model import UNetDenoiser
from panokit.errors import FallbackWarning
from panokit.testing.tiny import tiny_model
from panokit.testing.toys import ToyDenoiser

SIZE: dict[str, Any] = {"height": 16, "width": 32, "steps": 2}


def processors(model: Model) -> set[type]:
    assert isinstance(model.denoiser, UNetDenoiser)
    return {type(each) for each in model.denoiser.unet.attn_processors.values()}


@pytest.mark.parametrize(
    ("attention", "processor"), [("auto", AttnProcessor2_0), ("sdpa", AttnProcessor2_0), ("sliced", SlicedAttnProcessor)]
)
def test_what_is_asked_for_is_what_computes(tiny: Model, attention: Any, processor: type) -> None:
    sampler = Sampler(tiny, runtime=Runtime(accelerator="cpu", attention=attention))
    assert processors(sampler.model) == {processor}
    assert processors(tiny) == {AttnProcessor2_0}  # which other samplers use
    plain = Sampler(tiny, runtime=Runtime(accelerator="cpu"))("a lake", **SIZE)
    torch.testing.assert_close(sampler("a lake", **SIZE).latents, plain.latents, atol=1e-4, rtol=1e-4)
    assert sampler("a lake", **SIZE).recipe["attention"] == attention


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a CUDA device xformers is used where it is installed")
def test_xformers_that_is_not_to_be_had_is_told_and_sdpa_used(tiny: Model) -> None:
    with pytest.warns(FallbackWarning, match="there is no CUDA device|xformers cannot be imported"):
        sampler = Sampler(tiny, runtime=Runtime(accelerator="cpu", attention="xformers"))
    assert processors(sampler.model) == {AttnProcessor2_0}


def test_xformers_is_used_where_it_is(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as can be seen without its kernels: they are not called."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name in ("xformers", "xformers.ops"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    assert isinstance(tiny.denoiser, UNetDenoiser)
    unet = tiny.denoiser.unet
    set_attention(unet, "xformers")
    try:
        assert processors(tiny) == {XFormersAttnProcessor}
    finally:
        set_attention(unet, "sdpa")
    assert processors(tiny) == {AttnProcessor2_0}


def test_a_model_without_a_choice_says_so() -> None:
    model = Model(ToyDenoiser(), None, "toy")
    with pytest.warns(FallbackWarning, match="toy does not support attention, which is 'sliced': the setting has no effect"):
        Sampler(model, runtime=Runtime(accelerator="cpu", attention="sliced"))


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_checkpointing_is_for_the_finer_half_of_a_unet(levels: int) -> None:
    unet = UNet2DConditionModel(
        block_out_channels=(32,) * levels,
        down_block_types=("CrossAttnDownBlock2D",) * levels,
        up_block_types=("CrossAttnUpBlock2D",) * levels,
        layers_per_block=1,
    )
    set_checkpointing(unet, True)
    again = {name for name, part in unet.named_modules() if getattr(part, "gradient_checkpointing", False)}
    fine = {
        1: {"down_blocks.0", "up_blocks.0"},
        2: {"down_blocks.0", "up_blocks.1"},
        3: {"down_blocks.0", "down_blocks.1", "up_blocks.1", "up_blocks.2"},
    }
    assert {name.partition(".attentions")[0] for name in again} == fine[levels]
    set_checkpointing(unet, False)
    assert not any(getattr(part, "gradient_checkpointing", False) for part in unet.modules())


def test_what_one_sampler_asked_of_a_network_is_not_what_the_next_one_has() -> None:
    model = tiny_model()
    assert isinstance(model.denoiser, UNetDenoiser)
    assert Sampler(model, runtime=Runtime(accelerator="cpu")).model is model
    for asked in ({"checkpointing": True}, {"channels_last": True}, {"compile": True}):
        other = Sampler(model, runtime=Runtime(accelerator="cpu", **asked)).model
        assert other is not model  # a copy, so that the first sampler goes on as before
        assert Sampler(other, runtime=Runtime(accelerator="cpu", **asked)).model is other
        assert Sampler(other, runtime=Runtime(accelerator="cpu")).model is not other
        assert Sampler(model, runtime=Runtime(accelerator="cpu")).model is model
    compiled = [block for block in other.denoiser.unet.modules() if block._compiled_call_impl is not None]
    assert {type(block).__name__ for block in compiled} == {"BasicTransformerBlock"}
    assert not any(block._compiled_call_impl for block in model.denoiser.unet.modules())


@pytest.mark.usefixtures("unannotated")
def test_another_attention_is_told() -> None:
    unknown: Any = "flash"
    with pytest.raises(SettingError, match="it must be one of auto, sdpa, xformers, sliced"):
        Runtime(accelerator="cpu", attention=unknown)
