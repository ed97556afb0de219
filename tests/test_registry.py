"""Plugins by name, against distributions that exist only as metadata on the path."""

import sys
import time
import warnings
from importlib.machinery import PathFinder
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from panokit import Fuser, registry
from panokit.composition import describe
from panokit.errors import ContractError, FallbackWarning, PluginLoadError, PluginNotFoundError
from panokit_multidiffusion import MultiDiffusion


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


def test_a_plugin_that_is_installed_later_is_found_without_a_new_process(site: Path) -> None:
    with pytest.raises(PluginNotFoundError, match="no fuser is called 'later'"):
        registry.load("fusers", "later")
    distribution(site, "later", "later = outside_fuser:Outside")
    assert registry.load("fusers", "later").__name__ == "Outside"
    assert "later" in [plugin.name for plugin in registry.plugins("fusers")]


def test_a_broken_plugin_is_listed_and_raises_when_asked_for(site: Path) -> None:
    distribution(site, "broken", "broken = outside_broken:Outside")
    found = registry.plugins("fusers")
    states = dict(zip([plugin.name for plugin in found], registry.states(found), strict=True))
    assert states["broken"] == ("broken: RuntimeError: no licence", "")
    assert states["multidiffusion"] == (
        "ok",
        "The weighted mean of the windows over each cell, the closed form of the paper's eq. 5.",
    )
    with pytest.raises(PluginLoadError, match=r"from broken 1\.0") as error:
        registry.load("fusers", "broken")
    assert isinstance(error.value.__cause__, RuntimeError)


def test_a_name_that_two_distributions_claim_is_an_error_that_names_both(site: Path) -> None:
    distribution(site, "first", "twice = outside_fuser:Outside")
    distribution(site, "second", "twice = outside_fuser:Outside")
    with pytest.raises(PluginNotFoundError, match=r"first 1\.0 and second 1\.0"):
        registry.load("fusers", "twice")
    twice = [plugin for plugin in registry.plugins("fusers") if plugin.name == "twice"]
    assert registry.states(twice) == [("broken: 2 distributions claim the name", "")] * 2


def test_an_unknown_name_lists_what_is_installed() -> None:
    with pytest.raises(PluginNotFoundError, match=r"did you mean 'multidiffusion'.*installed are .*multidiffusion"):
        registry.load("fusers", "multidiffusio")


def test_a_module_and_attribute_work_without_an_entry_point(site: Path) -> None:
    assert registry.load("fusers", "outside_fuser:Outside").__name__ == "Outside"


@pytest.mark.parametrize("name", ["no_such_module:Outside", "outside_fuser:Inside", "outside_fuser:", ":Outside"])
def test_a_module_and_attribute_that_are_not_there_are_told_the_form(site: Path, name: str) -> None:
    with pytest.raises(PluginNotFoundError, match=r"(does not exist|names no class).* write module:Class"):
        registry.load("fusers", name)


@pytest.mark.parametrize(
    ("name", "what"), [("outside_fuser:Outside", "the class Outside"), ("json:dumps", "a function"), ("math:pi", "a float")]
)
def test_what_is_no_plugin_of_the_kind_is_refused(site: Path, name: str, what: str) -> None:
    with pytest.raises(PluginNotFoundError, match=f"{name} is {what}, and fusers are subclasses of panokit.Fuser"):
        registry.maker("fusers", name, Fuser)


def test_an_installed_plugin_that_is_none_broke_its_word(site: Path) -> None:
    distribution(site, "outside", "outside = outside_fuser:Outside")
    with pytest.raises(ContractError, match="outside is the class Outside"):
        registry.maker("fusers", "outside", Fuser)


def test_a_module_that_breaks_when_imported_is_not_taken_for_one_that_is_not_there(site: Path) -> None:
    with pytest.raises(PluginLoadError, match="outside_broken cannot be imported: RuntimeError: no licence"):
        registry.load("fusers", "outside_broken:Outside")


@pytest.mark.parametrize(
    ("code", "state"),
    [
        ("print('bought?')\nclass Outside: 'Listens.'", ("ok", "Listens.")),
        ("import time\ntime.sleep(30)", ("broken: still importing after 1 s", "")),
        ("raise SystemExit(3)", ("broken: SystemExit: 3", "")),
        ("raise RuntimeError('no licence')", ("broken: RuntimeError: no licence", "")),
    ],
    ids=["prints", "sleeps", "exits", "raises"],
)
def test_a_plugin_that_misbehaves_when_imported_is_listed_quickly_and_silently(
    site: Path, capsys: pytest.CaptureFixture[str], code: str, state: tuple[str, str]
) -> None:
    name = f"outside_{abs(hash(code))}"  # a module of its own: the sleeping one is never done
    (site / f"{name}.py").write_text(code)
    distribution(site, "odd", f"odd = {name}:Outside")
    (plugin,) = [plugin for plugin in registry.plugins("fusers") if plugin.name == "odd"]
    assert registry.states([plugin], patience=1.0) == [state]
    assert capsys.readouterr() == ("", "")


def test_however_many_plugins_sleep_the_listing_waits_once(site: Path) -> None:
    for k in range(3):
        (site / f"outside_slow_{k}.py").write_text("import time\ntime.sleep(30)")
    distribution(site, "slow", "\n".join(f"slow_{k} = outside_slow_{k}:Outside" for k in range(3)))
    slow = [plugin for plugin in registry.plugins("fusers") if plugin.name.startswith("slow")]
    start = time.monotonic()
    assert registry.states(slow, patience=0.5) == [("broken: still importing after 0 s", "")] * 3
    assert time.monotonic() - start < 5


LEFT_OVERS = {
    "one-1.0.dist-info": b"",  # no entry points, as pip leaves a folder that it cannot delete
    ".dist-info": b"",
    "two-1.0.dist-info": b"[panokit.fusers]\nwithout a value\n",
    "three-1.0.dist-info": b"\xff\xfe[panokit.fusers]\nfour = five:Six\n",
    "four-1.0.dist-info": b"no section at all = \x00\n[",
    "five-1.0.egg-info": b"[panokit.fusers]\nnothing =\n",
}


@pytest.mark.parametrize("left_over", LEFT_OVERS)
@pytest.mark.parametrize("named", [True, False])
def test_what_a_package_left_behind_never_hides_the_plugins_of_others(
    site: Path, monkeypatch: pytest.MonkeyPatch, left_over: str, named: bool
) -> None:
    """It works, or a warning names it. Libraries that read all packages, as torch does, go on as well."""
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    before = registry.plugins("fusers")
    folder = site / left_over
    folder.mkdir()
    if LEFT_OVERS[left_over]:
        (folder / "entry_points.txt").write_bytes(LEFT_OVERS[left_over])
    if named:
        (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: left-over\nVersion: 1.0\n")
    distribution(site, "outside", "outside = outside_fuser:Outside")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", FallbackWarning)
        plugins = registry.plugins("fusers")
    assert {plugin.name for plugin in [*before, *plugins]} - {"nothing"} == {plugin.name for plugin in before} | {"outside"}
    assert all(str(warning.message).startswith(f"{folder} is damaged (") for warning in caught)
    assert len(caught) == (PathFinder not in sys.meta_path)
    assert set(entry_points(group="panokit.fusers")) >= {plugin.entry for plugin in before}
    assert describe(MultiDiffusion())["plugin"] == "multidiffusion"


def test_a_broken_plugin_of_a_package_leaves_its_others_their_names(site: Path) -> None:
    distribution(site, "outside", "broken = panokit_multidiffusion:Nothing\nunfinished =")
    assert describe(MultiDiffusion())["plugin"] == "multidiffusion"
