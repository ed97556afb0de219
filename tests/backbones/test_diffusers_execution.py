"""Attention that takes effect: looked up on the processors, since diffusers ignores some requests without a word."""

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0, SlicedAttnProcessor, XFormersAttnProcessor
from panokit.backbones.diffusers.attention import attend, attends

from panokit import Model, Runtime, Sampler, SettingError
from panokit.backbones.diffusers.model import UNetDenoiser
from panokit.errors import FallbackWarning

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
    attend(unet, "xformers")
    try:
        assert processors(tiny) == {XFormersAttnProcessor}
        assert attends(unet, "xformers")
    finally:
        attend(unet, "sdpa")
    assert processors(tiny) == {AttnProcessor2_0}


def test_a_network_without_a_choice_is_left_alone() -> None:
    network = torch.nn.Linear(2, 2)
    attend(network, "sliced")
    assert attends(network, "sliced")


@pytest.mark.usefixtures("unannotated")
def test_another_attention_is_told() -> None:
    unknown: Any = "flash"
    with pytest.raises(SettingError, match="it must be one of auto, sdpa, xformers, sliced"):
        Runtime(accelerator="cpu", attention=unknown)
