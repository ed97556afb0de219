"""Every plugin that comes with panokit keeps its contract, found by its entry point as everybody's is."""

import pytest

from panokit import load_model, registry
from panokit.registry import Plugin
from panokit.testing import run_checks

OURS = [
    plugin
    for kind in ("fusers", "guidances", "schedulers")
    for plugin in registry.plugins(kind)
    if plugin.entry.dist.name == "panokit" and plugin.name != "own"  # it is the model's: test_diffusers_pipeline.py
]


@pytest.mark.parametrize("plugin", OURS, ids=lambda plugin: plugin.name)
def test_a_plugin_of_ours_keeps_its_contract(plugin: Plugin) -> None:
    assert [outcome for outcome in run_checks(plugin.load()) if outcome.problem] == []


def test_the_embedded_model_keeps_the_contract_of_a_denoiser() -> None:
    denoiser = load_model("landscapes").denoiser
    assert [outcome for outcome in run_checks(lambda: denoiser) if outcome.problem] == []
