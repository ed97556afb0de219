"""Every plugin that comes with panokit keeps its contract, found by its entry point as everybody's is."""

import pytest

from panokit import load_model, registry
from panokit.registry import Plugin
from panokit.testing import run_checks
from panokit.testing.families import tiny_controlnet, tiny_pipeline

OURS = [
    plugin
    for kind in ("fusers", "guidances", "schedulers")
    for plugin in registry.plugins(kind)
    if plugin.entry.dist.name == "panokit" and plugin.name != "own"  # it is the model's: test_diffusers_pipeline.py
]


@pytest.mark.parametrize("plugin", OURS, ids=lambda plugin: plugin.name)
def test_a_plugin_of_ours_keeps_its_contract(plugin: Plugin) -> None:
    assert [outcome for outcome in run_checks(plugin.load()) if outcome.problem] == []


@pytest.mark.parametrize("name", ["landscapes", "scalecrafter", "diffcollage"])
def test_an_installed_model_keeps_the_contract_of_a_denoiser(name: str) -> None:
    denoiser = load_model(name).denoiser
    assert [outcome for outcome in run_checks(lambda: denoiser) if outcome.problem] == []


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux", "klein", "z_image", "qwen_image", "sana", "wan"])
def test_a_driven_pipeline_keeps_the_contract_of_a_denoiser(name: str) -> None:
    films = {"num_frames": 5} if name == "wan" else {}
    denoiser = load_model(tiny_pipeline(name), window=16, **films).denoiser
    assert len(denoiser.window) == (3 if films else 2)
    assert [outcome for outcome in run_checks(lambda: denoiser) if outcome.problem] == []


@pytest.mark.parametrize("name", ["sd", "flux"])
def test_a_pipeline_with_a_controlnet_keeps_the_contract_of_a_denoiser(name: str) -> None:
    denoiser = load_model(tiny_controlnet(name), window=16).denoiser
    assert [outcome for outcome in run_checks(lambda: denoiser) if outcome.problem] == []
