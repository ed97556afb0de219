"""Old names: each is answered with the new one, which is there."""

from importlib import import_module
from pathlib import Path

import pytest

from panokit import Model, Runtime, Sampler
from panokit.jobs import Worker
from panokit.moved import ATTRIBUTES, MODULES
from panokit.testing.toys import Pull, toy_run


@pytest.mark.parametrize(("old", "new"), MODULES.items())
def test_a_module_that_has_moved_says_where_it_is(old: str, new: str) -> None:
    with pytest.raises(ModuleNotFoundError, match=f"{old} is {new} now"):
        import_module(old)
    import_module(new)


@pytest.mark.parametrize(("owner", "old"), [(owner, old) for owner, names in ATTRIBUTES.items() for old in names])
def test_an_attribute_that_is_called_otherwise_says_so(tiny: Model, cpu: Runtime, owner: str, old: str) -> None:
    objects = {
        "Runtime": cpu,
        "Run": toy_run(),
        "CanvasStep": toy_run(guidances=[Pull()]).view(0, "prepare"),
        "Plan": Sampler(tiny, runtime=cpu).plan("a lake"),
        "Sampler": Sampler(tiny, runtime=cpu),
        "Worker": Worker({"accelerator": "cpu"}),
    }
    new = ATTRIBUTES[owner][old]
    with pytest.raises(AttributeError, match=rf"{owner}\.{old} is "):
        getattr(objects[owner], old)
    target = toy_run() if new.startswith("Run.") else objects[owner]
    for name in new.removeprefix("Run.").partition(",")[0].partition("(")[0].split("."):
        target = getattr(target, name)


def test_an_attribute_that_never_was_is_the_usual_error(cpu: Runtime) -> None:
    with pytest.raises(AttributeError, match="a Runtime has no attribute 'frist'"):
        cpu.frist  # type: ignore[attr-defined]  # noqa: B018
    assert not hasattr(cpu, "__array__")


def test_a_package_without_a_file_of_its_own_is_searched_as_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its path is no sequence."""
    (tmp_path / "fileless").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'fileless\.missing'"):
        import_module("fileless.missing")
