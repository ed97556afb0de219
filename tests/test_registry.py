"""Plugins by name, against distributions that exist only as metadata on the path."""

import sys
from pathlib import Path

import pytest

from panokit import registry
from panokit.errors import PluginLoadError, PluginNotFoundError


def distribution(folder: Path, name: str, entries: str) -> None:
    """What an installed distribution leaves behind, as far as entry points go."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[panokit.fusers]\n{entries}\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "outside_fuser.py").write_text("class Outside: pass\n")
    (tmp_path / "outside_broken.py").write_text("raise RuntimeError('no licence')\n")
    monkeypatch.syspath_prepend(tmp_path)
    for module in ("outside_fuser", "outside_broken"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    return tmp_path


def test_an_outside_plugin_is_found_and_loaded_when_asked_for(site: Path) -> None:
    distribution(site, "outside", "outside = outside_fuser:Outside")
    assert ("outside", "outside 1.0") in [(p.name, p.distribution) for p in registry.plugins("fusers")]
    assert "outside_fuser" not in sys.modules
    assert registry.load("fusers", "outside").__name__ == "Outside"


def test_a_broken_plugin_is_listed_and_raises_when_asked_for(site: Path) -> None:
    distribution(site, "broken", "broken = outside_broken:Outside")
    states = {plugin.name: plugin.state() for plugin in registry.plugins("fusers")}
    assert states["broken"] == "broken: RuntimeError: no licence"
    assert states["multidiffusion"] == "ok"
    with pytest.raises(PluginLoadError, match=r"from broken 1\.0") as error:
        registry.load("fusers", "broken")
    assert isinstance(error.value.__cause__, RuntimeError)


def test_a_name_that_two_distributions_claim_is_an_error_that_names_both(site: Path) -> None:
    distribution(site, "first", "twice = outside_fuser:Outside")
    distribution(site, "second", "twice = outside_fuser:Outside")
    with pytest.raises(PluginNotFoundError, match=r"first 1\.0 and second 1\.0"):
        registry.load("fusers", "twice")


def test_an_unknown_name_lists_what_is_installed() -> None:
    with pytest.raises(PluginNotFoundError, match=r"did you mean 'multidiffusion'.*installed are .*multidiffusion"):
        registry.load("fusers", "multidiffusio")


def test_a_module_and_attribute_work_without_an_entry_point(site: Path) -> None:
    assert registry.load("fusers", "outside_fuser:Outside").__name__ == "Outside"
    with pytest.raises(PluginLoadError, match="no_such_module"):
        registry.load("fusers", "no_such_module:Outside")
