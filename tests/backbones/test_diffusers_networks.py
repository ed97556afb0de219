"""The networks of a driven pipeline: types, positions, and weights that hooks move away."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from panokit import Runtime, Sampler, load_model
from panokit.backbones.diffusers.networks import add_casts, cast_all, dtype_of, weights_kept
from panokit.backbones.diffusers.pipeline import PipelineDenoiser
from panokit.errors import FallbackWarning, SettingError
from panokit.runtime.placement import Placement
from panokit.testing.families import save_tiny_ip_adapter, tiny_pipeline


class Echo(nn.Module):
    """A network in half precision that notes the types of what it is given."""

    _keep_in_fp32_modules = ("norm",)

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.layer = nn.LayerNorm(4), nn.Linear(4, 4).to(torch.bfloat16)
        self.given: dict[str, Any] = {}

    def forward(self, x: Tensor, **more: Any) -> tuple[Tensor]:
        self.given = {"x": x, **more}
        return (x,)


def test_inputs_are_narrowed_but_neither_times_nor_places_and_outputs_are_widened() -> None:
    network = Echo()
    assert dtype_of(network) == torch.bfloat16  # not that of the norm, which comes first
    add_casts(network)
    places = torch.tensor([[1001.0, 1003.0]])
    more = {"time_ids": places, "text_embeds": torch.ones(1, 4)}
    (out,) = network(
        torch.ones(1, 4), timestep=torch.tensor([981.5]), img_ids=places, image_rotary_emb=(places,), added_cond_kwargs=more
    )
    given = network.given
    assert given["x"].dtype == given["added_cond_kwargs"]["text_embeds"].dtype == torch.bfloat16
    for exact in (given["timestep"], given["img_ids"], given["image_rotary_emb"][0], given["added_cond_kwargs"]["time_ids"]):
        assert exact.dtype == torch.float32
    assert out.dtype == torch.float32
    assert cast_all(out, torch.float64).dtype == torch.float64


def test_a_pipeline_in_half_precision_is_told_places_exactly() -> None:
    """In bfloat16, columns beyond 256 would be rounded to every second, beyond 512 to every fourth."""
    model = load_model(tiny_pipeline("flux").to(torch.bfloat16), window=16, positions="offset")
    denoiser, img_ids = model.denoiser, []
    assert isinstance(denoiser, PipelineDenoiser)
    denoiser._networks["transformer"].register_forward_pre_hook(
        lambda module, args, kwargs: img_ids.append(kwargs["img_ids"]), with_kwargs=True
    )
    run = Sampler(model, runtime=Runtime(accelerator="cpu")).begin("a lake", height=32, width=2400, steps=1)
    run.step()
    last = img_ids[-1][:, 2].double()
    assert last.unique().tolist() == [*range(592, 600)]


def test_in_64_bits_latents_and_texts_have_64_bits() -> None:
    sampler = Sampler(load_model(tiny_pipeline("flux"), window=16), runtime=Runtime(accelerator="cpu", precision="64-true"))
    denoiser, inputs = sampler.model.denoiser, []
    assert isinstance(denoiser, PipelineDenoiser)
    denoiser._networks["transformer"].register_forward_pre_hook(
        lambda module, args, kwargs: inputs.append(kwargs), with_kwargs=True
    )
    run = sampler.begin("a lake", height=32, width=32, steps=2)
    run.step()
    latents = inputs[-1]["hidden_states"]
    assert latents.dtype == inputs[-1]["encoder_hidden_states"].dtype == torch.float64
    assert not torch.equal(latents, latents.float().double()) or run.level.step == 1


def test_weights_that_a_hook_moves_away_are_there_for_the_backward_pass() -> None:
    """A hook puts garbage in the place of the weights after each forward pass, as offloading puts them on another device."""
    network = nn.Sequential(nn.Linear(4, 4, dtype=torch.float64), nn.GroupNorm(2, 4, dtype=torch.float64), nn.SiLU())
    for parameter in network.parameters():
        parameter.requires_grad_(False).normal_()
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(network(x).square().sum(), x)
    here = [parameter.data for parameter in network.parameters()]

    def swap(tensors: list[Tensor]) -> None:
        for parameter, tensor in zip(network.parameters(), tensors, strict=True):
            parameter.data = tensor

    network.register_forward_pre_hook(lambda *_: swap(here))
    network.register_forward_hook(lambda *_: swap([torch.full_like(tensor, torch.nan) for tensor in here]))
    with weights_kept():
        out = network(x).square().sum()
    (kept,) = torch.autograd.grad(out, x)
    assert torch.equal(kept, expected)
    (lost,) = torch.autograd.grad(network(x).square().sum(), x)
    assert not torch.equal(lost, expected)  # without it


def test_what_a_model_keeps_in_float32_stays_so() -> None:
    runtime = Runtime(accelerator="cpu", precision="bf16-true")
    network = Echo().float()
    runtime.place(network)
    assert (network.norm.weight.dtype, network.layer.weight.dtype) == (torch.float32, torch.bfloat16)
    assert runtime.placement.holds(network)
    vae = tiny_pipeline("sdxl").vae
    Runtime(accelerator="cpu", precision="16-true").place(vae)
    assert {parameter.dtype for parameter in vae.parameters()} == {torch.float32}  # force_upcast: it overflows in float16


def test_a_precision_that_a_device_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    for device, precision in (("cuda:0", "bf16-mixed"), ("mps", "64-true")):
        with pytest.raises(SettingError, match=f"device {device} does not compute in the precision {precision}: use 32-true"):
            Placement.on(torch.device(device), precision)


def test_other_attention_is_for_unets_without_an_ip_adapter(tmp_path: Any) -> None:
    runtime = Runtime(accelerator="cpu", attention="sliced")
    with pytest.warns(FallbackWarning, match="attention is sliced, and a FluxTransformer2DModel uses SDPA alone"):
        Sampler(load_model(tiny_pipeline("flux"), window=16), runtime=runtime)
    pipe = tiny_pipeline("sd")
    save_tiny_ip_adapter(pipe, tmp_path)
    pipe.load_ip_adapter(tmp_path, subfolder="", weight_name="ip-adapter.safetensors")
    with pytest.warns(FallbackWarning, match="a UNet2DConditionModel with an IP-Adapter uses SDPA alone"):
        Sampler(load_model(pipe, window=16), runtime=runtime)
