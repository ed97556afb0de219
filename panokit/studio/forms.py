"""Forms: the settings of a plugin as fields of a page, made from its signature and its docstring."""

import ast
import re
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, final, get_args, get_origin, get_type_hints

import gradio as gr
import yaml

from panokit import registry
from panokit.composition import BASES, parameters
from panokit.errors import SettingError, in_words
from panokit.hints import hints_of
from panokit.options import yaml_in
from panokit.registry import Kind

Sort = Literal["switch", "choice", "slider", "number", "text", "yaml"]

_INTERVAL = re.compile(r"in ([\[(])(-?\d+(?:\.\d+)?), (-?\d+(?:\.\d+)?)([\])])")
"""A range in a docstring: in [0, 1]."""
_FORMULA = re.compile(r"\$[^$]*\$(?:[,:.] ?)?")


@final
@dataclass(frozen=True)
class Field:
    """One setting, as a field of a page.

    Attributes:
        name: the name of the setting.
        sort: how it is drawn; `yaml` is a box for any value, for types that have no field of their own.
        default: the setting's default; None if it has none.
        meaning: its description in the docstring.
        choices: the values of a choice.
        low: the least value; None if there is none.
        high: the greatest value; None if there is none.
        whole: whether it is a whole number.
        optional: whether an empty field means None, and not the default.
    """

    name: str
    sort: Sort
    default: Any = None
    meaning: str = ""
    choices: tuple[Any, ...] = ()
    low: float | None = None
    high: float | None = None
    whole: bool = False
    optional: bool = False

    def draw(self, owner: str) -> Any:
        """Make the component.

        Args:
            owner: whose setting it is. The component's id in the page is `OWNER-NAME`.
        """
        common: dict[str, Any] = {"interactive": True, "value": self.shown(self.default), "elem_id": f"{owner}-{self.name}"}
        if self.sort == "yaml":
            return gr.Code(language="yaml", lines=1, show_line_numbers=False, label=f"{self.name}, as YAML", **common)
        common |= {"label": self.name, "info": self.meaning or None}
        if self.sort == "switch":
            return gr.Checkbox(**common)
        if self.sort == "choice":
            return gr.Dropdown(choices=[(_label(choice), k) for k, choice in enumerate(self.choices)], **common)
        if self.sort == "slider":
            step = 1 if self.whole else ((self.high or 0) - (self.low or 0)) / 100
            return gr.Slider(minimum=self.low, maximum=self.high, step=step, **common)
        if self.sort == "number" and self.optional:  # a field for numbers shows nothing as 0
            return gr.Textbox(placeholder="the default" if self.default is None else "none", **common)
        if self.sort == "number":
            step = 1 if self.whole else 0.1
            return gr.Number(precision=0 if self.whole else None, minimum=self.low, maximum=self.high, step=step, **common)
        return gr.Textbox(**common)

    def shown(self, setting: Any) -> Any:
        """The value of the component that stands for a setting."""
        if self.sort == "choice":
            same = (k for k, choice in enumerate(self.choices) if choice == setting and type(choice) is type(setting))
            return next(same, None)
        if self.sort == "yaml":
            return "" if setting in (None, {}, [], ()) else yaml.safe_dump(setting, default_flow_style=True).strip()
        if self.sort == "text" or (self.sort == "number" and self.optional):
            return "" if setting is None else str(setting)
        return setting

    def setting(self, value: Any) -> Any:
        """The setting that the value of the component stands for; the default if it is empty.

        Raises:
            SettingError: the value is not YAML, or is none of the choices.
        """
        if value is None or value == "":
            return None if self.optional else self.default
        if self.sort == "choice":
            if not isinstance(value, int) or not 0 <= value < len(self.choices):
                raise SettingError(f"{self.name} came as {value!r:.80}: it must be one of {', '.join(map(str, self.choices))}")
            return self.choices[value]
        if self.sort == "yaml":
            return yaml_in(value, self.name)
        if self.sort in ("slider", "number"):
            return self._number(value)
        return value

    def _number(self, value: Any) -> int | float:
        """A number, whole if the setting is, from what came from the page."""
        try:
            number = float(value)
            return int(number) if self.whole and number.is_integer() else number
        except (TypeError, ValueError, OverflowError) as cause:
            kind = "a whole number" if self.whole else "a number"
            raise SettingError(f"{self.name} came as {value!r:.80}: it must be {kind}") from cause


@final
@dataclass(frozen=True)
class Form:
    """The settings of one plugin, as fields.

    Attributes:
        name: the plugin's name.
        summary: the first line of its docstring.
        fields: its settings; None if its signature cannot be read: then one box takes all of them as YAML.
    """

    name: str
    summary: str
    fields: tuple[Field, ...] | None

    def draw(self) -> list[Any]:
        """Make the components, in the order of the fields."""
        if self.fields is None:
            return [gr.Code(language="yaml", lines=3, label=f"all settings of {self.name}, as YAML", interactive=True)]
        return [field.draw(self.name) for field in self.fields]

    def part(self, values: Sequence[Any]) -> dict[str, Any]:
        """The plugin as plain data, with the settings that differ from their defaults.

        Args:
            values: those of the components.

        Raises:
            SettingError: a value cannot stand for a setting.
        """
        if self.fields is None:
            settings = yaml_in(values[0] or "{}", f"the settings of {self.name}")
            if not isinstance(settings, dict):
                raise SettingError(f"the settings of {self.name} came as {settings!r:.80}: write NAME: VALUE, one on each line")
            return {"plugin": self.name, **settings}
        settings = {field.name: field.setting(value) for field, value in zip(self.fields, values, strict=True)}
        changed = {field.name: settings[field.name] for field in self.fields if settings[field.name] != field.default}
        return {"plugin": self.name, **changed}

    def shown(self, part: Mapping[str, Any]) -> list[Any]:
        """The values of the components that stand for a part.

        Args:
            part: the plugin as plain data.
        """
        settings = {name: value for name, value in part.items() if name != "plugin"}
        if self.fields is None:
            return [yaml.safe_dump(settings) if settings else ""]
        return [field.shown(settings.get(field.name, field.default)) for field in self.fields]


def forms_of(kind: Kind) -> tuple[dict[str, Form], dict[str, str]]:
    """The forms of all installed plugins of a kind.

    Args:
        kind: the kind.

    Returns:
        The forms by name, and what is wrong with the other plugins by name.
    """
    installed = registry.plugins(kind)
    forms, broken = {}, {}
    for plugin, (state, _) in zip(installed, registry.states(installed), strict=True):
        if state == "ok":
            try:
                forms[plugin.name] = form(kind, plugin.name)
            except Exception as error:  # a class of somebody else may fail at anything
                state = f"broken: {in_words(error)}"
        if state != "ok":
            broken[plugin.name] = state
    return forms, broken


def form(kind: Kind, name: str) -> Form:
    """The form of a plugin.

    Args:
        kind: its kind.
        name: its name.

    Raises:
        PluginLoadError: it cannot be imported.
        ContractError: it is no plugin of that kind.
    """
    cls = registry.made_class(registry.maker(kind, name, BASES[kind]))
    try:
        summary, settings = parameters(BASES[kind], name)
        hints = hints_of(cls) | _annotated(cls)
        return Form(name, summary, tuple(field(p.name, hints.get(p.name, Any), p.default, p.meaning) for p in settings))
    except (TypeError, ValueError):  # its signature cannot be read
        return Form(name, registry.summary(cls), None)


def field(name: str, hint: Any, default: str, meaning: str) -> Field:
    """The field for a setting.

    Args:
        name: its name.
        hint: its type; `Annotated` may hold a range, as `annotated_types` writes it.
        default: its default as Python writes it; empty if it has none.
        meaning: its description. A range such as "in [0, 1]" makes a slider.
    """
    low, high = _range(hint, meaning)
    optional = types.NoneType in get_args(hint)
    hint = _without(hint)
    try:
        value = ast.literal_eval(default) if default else None
    except (ValueError, SyntaxError):  # an object: the field stays empty, and the plugin takes its default
        value = None
    text = _FORMULA.sub("", meaning).strip()
    text = text[:1].upper() + text[1:]
    if hint is bool and not optional:
        return Field(name, "switch", value, text)
    if choices := _choices(hint):
        return Field(name, "choice", value, text, choices, optional=optional)
    if hint in (int, float):
        drawn: Sort = "slider" if low is not None and high is not None and value is not None and not optional else "number"
        return Field(name, drawn, value, text, (), low, high, hint is int, optional)
    if hint is str:
        return Field(name, "text", value, text, optional=optional)
    return Field(name, "yaml", value, text)


def _label(choice: Any) -> str:
    """A value as configurations write it."""
    return str(choice).lower() if isinstance(choice, bool) else str(choice)


def _annotated(cls: type) -> dict[str, Any]:
    """The types of a class's arguments with what `Annotated` adds to them; empty if they cannot be resolved."""
    try:
        return get_type_hints(cls, include_extras=True)
    except Exception:  # annotations of somebody else may be anything
        return {}


def _without(hint: Any) -> Any:
    """A type without `Annotated`, None, and what plain data cannot be, where one type is left then."""
    if get_origin(hint) is Annotated:
        return _without(get_args(hint)[0])
    if get_origin(hint) in (Union, types.UnionType):
        members = [_without(member) for member in get_args(hint) if member is not types.NoneType]
        members = [member for member in members if member in (bool, int, float, str) or get_origin(member) is Literal] or [hint]
        if members == [int, float] or members == [float, int]:
            return float
        return members[0] if len(members) == 1 else hint
    return hint


def _choices(hint: Any) -> tuple[Any, ...]:
    """The values of a type that has few of them: literals, or true, false and literals; empty for other types."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    if get_origin(hint) in (Union, types.UnionType):
        members = get_args(hint)
        if all(member is bool or get_origin(member) is Literal for member in members):
            return tuple(value for member in members for value in ((False, True) if member is bool else get_args(member)))
    return ()


def _range(hint: Any, meaning: str) -> tuple[float | None, float | None]:
    """The least and the greatest value, by `Annotated` or by the words of the docstring. Open ends are a hundredth inside."""
    notes = [note for part in (hint, *get_args(hint)) if get_origin(part) is Annotated for note in get_args(part)[1:]]
    bounds = {key: getattr(note, key) for note in notes for key in ("ge", "gt", "le", "lt") if hasattr(note, key)}
    bounds = {key: float(bound) for key, bound in bounds.items() if bound is not None}
    if not bounds and (match := _INTERVAL.search(meaning)):
        bounds = {"ge" if match[1] == "[" else "gt": float(match[2]), "le" if match[4] == "]" else "lt": float(match[3])}
    low, high = bounds.get("ge", bounds.get("gt")), bounds.get("le", bounds.get("lt"))
    if low is None or high is None:
        return low, high
    inside = 1 if _without(hint) is int else (high - low) / 100
    return low + inside * ("ge" not in bounds), high - inside * ("le" not in bounds)
