"""Forms: each installed plugin becomes fields, and the values of the fields become the same plugin again."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import pytest

from panokit import registry
from panokit.composition import BASES, build, describe
from panokit.errors import SettingError

pytest.importorskip("gradio", reason="the studio needs gradio, which is not installed")
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of gradio and what it imports
    pytest.mark.xdist_group("studio"),  # gradio takes seconds to import
]

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from panokit.registry import Kind

KINDS: tuple[Kind, ...] = ("layouts", "fusers", "guidances", "schedulers")
PLUGINS = [(plugin.kind, plugin.name) for kind in KINDS for plugin in registry.plugins(kind)]


@pytest.mark.parametrize(("kind", "name"), PLUGINS)
def test_the_fields_of_a_plugin_make_the_same_plugin_again(kind: Kind, name: str) -> None:
    from panokit.studio.forms import form

    made = form(kind, name)
    assert made.fields is not None
    assert made.part(made.shown({})) == {"plugin": name}
    default = build(BASES[kind], name)
    values = made.shown(describe(default))
    assert build(BASES[kind], made.part(values), trusted=False) == default


@pytest.mark.parametrize(
    ("kind", "part"),
    [
        ("guidances", {"plugin": "msd", "weight": 3, "until": 0.25, "levels": 3}),
        ("guidances", {"plugin": "syncdiffusion", "metric": "lpips-vgg", "checkpointing": True}),
        ("fusers", {"plugin": "multidiffusion", "weights": "uniform"}),
        ("schedulers", {"plugin": "ddim", "options": {"eta": 0.5, "timestep_spacing": "trailing"}}),
    ],
)
def test_settings_come_back_from_the_fields(kind: Kind, part: dict[str, Any]) -> None:
    from panokit.studio.forms import form

    made = form(kind, part["plugin"])
    assert made.part(made.shown(part)) == part


class Positive(NamedTuple):
    ge: float | None = None
    le: float | None = None


@pytest.mark.parametrize(
    ("hint", "default", "meaning", "sort"),
    [
        (bool, "True", "", "switch"),
        (float, "0.5", "a share, in [0, 1]", "slider"),
        (float, "0.5", "0 or more", "number"),
        (Annotated[int, Positive(1, 9)], "3", "", "slider"),
        (Annotated[float, Positive(1)], "3.0", "", "number"),
        (float | None, "0.5", "a share, in [0, 1], or None", "number"),  # a slider cannot be empty
        (int | float, "0.5", "", "number"),
        (Literal["a", "b"], "'a'", "", "choice"),
        (bool | Literal["x"], "False", "", "choice"),
        (str, "'a'", "", "text"),
        (str | dict[str, int], "'a'", "", "text"),
        (dict[str, int], "{}", "", "yaml"),
        (list[float] | None, "None", "", "yaml"),
        (complex, "1j", "", "yaml"),
        (object, "", "", "yaml"),
    ],
)
def test_the_type_of_a_setting_chooses_its_field(hint: Any, default: str, meaning: str, sort: str) -> None:
    from panokit.studio.forms import field

    assert field("weight", hint, default, meaning).sort == sort


def test_a_range_is_kept_inside_its_open_ends() -> None:
    from panokit.studio.forms import field

    one = field("decay", float, "0.95", "in (0, 1]")
    assert (one.low, one.high) == (0.01, 1)


def test_a_description_has_no_formulas() -> None:
    from panokit.studio.forms import field

    assert field("weight", float, "1.0", r"$\omega$, 0 or more; as in $x$").meaning == "0 or more; as in"


def test_an_empty_field_means_none_where_none_is_allowed_and_the_default_elsewhere() -> None:
    from panokit.studio.forms import field

    assert field("levels", int | None, "3", "").setting("") is None
    assert field("levels", int, "3", "").setting(None) == 3


@pytest.mark.parametrize(
    ("hint", "value", "line"),
    [
        (int | None, "many", "size came as 'many': it must be a whole number"),
        (float | None, "1,5", "size came as '1,5': it must be a number"),
        (Literal["a", "b"], 7, "size came as 7: it must be one of a, b"),
        (dict[str, int], "a: [", "size is not plain YAML in line 1"),
        (dict[str, int], "a: &b [1]\nc: *b", "size repeats itself by aliases"),
        (dict[str, int], "[" * 400, "size is nested more than 32 deep"),
    ],
)
def test_what_is_wrong_with_a_field_is_one_line(hint: Any, value: Any, line: str) -> None:
    from panokit.studio.forms import field

    with pytest.raises(SettingError, match=r"^[^\n]*$") as error:
        field("size", hint, "None", "").setting(value)
    assert str(error.value).startswith(line)


PLUGIN = """
from dataclasses import dataclass, field
from panokit import Fuser

@dataclass(frozen=True)
class Odd(Fuser):
    \"\"\"An odd one.

    Args:
        table: numbers by name.
        sharpness: how sharp, in [0, 2].
    \"\"\"
    table: dict[str, float] = field(default_factory=dict)
    sharpness: float = 1.5
    def begin(self, windows): ...
    def __call__(self, values): ...

class Untold(Odd):
    \"\"\"Without a signature.\"\"\"
    __signature__ = "none"
"""


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Mapping[str, str]], None]:
    """A function that installs fusers: modules by name, and their entry points."""

    def install(entries: Mapping[str, str]) -> None:
        info = tmp_path / "outside-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n")
        lines = "\n".join(f"{name} = {target}" for name, target in entries.items())
        (info / "entry_points.txt").write_text(f"[panokit.fusers]\n{lines}\n")
        (tmp_path / "outside_odd.py").write_text(PLUGIN)
        (tmp_path / "outside_broken.py").write_text("raise RuntimeError('no licence')\n")
        monkeypatch.syspath_prepend(tmp_path)
        for module in ("outside_odd", "outside_broken"):
            monkeypatch.delitem(sys.modules, module, raising=False)

    return install


def test_a_plugin_from_elsewhere_appears_by_itself_and_strange_types_are_yaml(outside: Callable[..., None]) -> None:
    from panokit.studio.forms import forms_of

    outside({"odd": "outside_odd:Odd"})
    forms, broken = forms_of("fusers")
    assert {"odd", "multidiffusion"} <= forms.keys()
    assert broken == {}
    assert [(one.name, one.sort) for one in forms["odd"].fields or ()] == [("table", "yaml"), ("sharpness", "slider")]
    assert forms["odd"].part(["{a: 1.5}", 2]) == {"plugin": "odd", "table": {"a": 1.5}, "sharpness": 2}


def test_a_plugin_without_a_signature_is_one_box_of_yaml(outside: Callable[..., None]) -> None:
    from panokit.studio.forms import forms_of

    outside({"untold": "outside_odd:Untold"})
    form = forms_of("fusers")[0]["untold"]
    assert form.fields is None
    assert form.part(["table: {a: 1}"]) == {"plugin": "untold", "table": {"a": 1}}
    assert form.part(form.shown({"plugin": "untold", "sharpness": 1})) == {"plugin": "untold", "sharpness": 1}
    with pytest.raises(SettingError, match="write NAME: VALUE, one on each line"):
        form.part(["[1]"])


def test_a_broken_plugin_is_listed_with_its_reason(outside: Callable[..., None]) -> None:
    from panokit.studio.forms import forms_of

    outside({"broken": "outside_broken:Fuser"})
    forms, broken = forms_of("fusers")
    assert "broken" not in forms
    assert broken == {"broken": "broken: RuntimeError: no licence"}
