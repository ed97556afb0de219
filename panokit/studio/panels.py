"""Panels: the parts of the page where a picture is composed. Each draws its components and turns their values into options."""

import re
import secrets
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Literal, final

import gradio as gr
from PIL.Image import Image

from panokit import registry
from panokit.composition import BASES, build, describe
from panokit.errors import SettingError
from panokit.hints import hints_of, meanings_of
from panokit.registry import Kind
from panokit.settings import Composition, Settings
from panokit.studio.forms import Form, field, forms_of
from panokit.studio.paintings import COLOURS, SIZE, areas_of, painting

Option = Literal["scheduler", "layout", "fuser", "guidances"]
KINDS: Mapping[Option, Kind] = {
    "guidances": "guidances",
    "layout": "layouts",
    "fuser": "fusers",
    "scheduler": "schedulers",
}
"""The options that name plugins with forms."""
OWN = "the model's choice"
"""The scheduler that no option names."""


class Panel(ABC):
    """A part of the page.

    Attributes:
        components: its components, in the order of their values.
    """

    components: list[Any]

    @abstractmethod
    def options(self, values: Sequence[Any]) -> dict[str, Any]:
        """The options of a job that the panel shows.

        Args:
            values: those of the components.

        Raises:
            SettingError: a value cannot stand for an option.
        """

    @abstractmethod
    def shown(self, options: Mapping[str, Any]) -> list[Any]:
        """The values of the components that stand for options.

        Args:
            options: those of a job or a recipe.

        Raises:
            SettingError: the panel cannot show them.
        """


@final
class Texts(Panel):
    """Prompt and negative prompt, and regions with texts of their own: boxes, or painted ones."""

    HEADERS = ("left", "top", "right", "bottom", "text", "negative_prompt", "weight", "guidance_scale")

    def __init__(self) -> None:
        self.prompt = gr.Textbox(label="Prompt", lines=2, placeholder="a lake between mountains at dawn", elem_id="prompt")
        self.negative = gr.Textbox(label="Negative prompt", info="What to avoid.", elem_id="negative")
        with gr.Accordion("Regions with texts of their own", open=False):
            gr.Markdown("The prompt above is for the rest of the canvas.")
            with gr.Tab("Boxes"):
                self._draw_boxes()
            with gr.Tab("Painted"):
                self._draw_sheet()
        self.components = [self.prompt, self.negative, self.boxes, self.mix, self.sheet, *self.colours.values()]

    def _draw_boxes(self) -> None:
        gr.Markdown(
            "Each row is a box. Its borders are numbers from 0 to 1: 0 is left or top, 1 is right or bottom. "
            "Later boxes lie on earlier ones; where boxes have weights, they mix. The menu of a row, ⋮, adds another one."
        )
        self.boxes = gr.Dataframe(
            [[None] * len(self.HEADERS)],
            headers=["left", "top", "right", "bottom", "text", "negative", "weight", "guidance"],
            datatype=["number"] * 4 + ["str"] * 2 + ["number"] * 2,
            type="array",
            row_count=1,
            column_count=len(self.HEADERS),
            interactive=True,
            show_label=False,
            buttons=[],
            column_widths=["10%", "9%", "11%", "13%", "18%", "15%", "12%", "12%"],
            elem_id="boxes",
        )
        choices = [("mix them cell by cell", "cells"), ("take the one with the largest share", "windows")]
        self.mix = gr.Dropdown(choices, value="cells", label="Windows with several texts", elem_id="mix")
        sketch = gr.HTML(_sketch([]))
        self.boxes.change(_sketch, self.boxes, sketch, show_progress="hidden", api_visibility="private")

    def _draw_sheet(self) -> None:
        self.sheet = gr.ImageEditor(
            painting({}),
            label="The canvas: each colour has a text",
            type="pil",
            sources=(),
            transforms=(),
            layers=False,
            canvas_size=SIZE,
            fixed_canvas=True,
            height=260,
            brush=gr.Brush(default_size=30, colors=[*COLOURS.values()], default_color=COLOURS["red"], color_mode="fixed"),
            interactive=True,
            elem_id="sheet",
        )
        self.colours: dict[str, Any] = {}
        names = [*COLOURS]
        for pair in (names[:2], names[2:]):
            with gr.Row():
                self.colours |= {name: gr.Textbox(label=f"what is {name}", elem_id=f"colour-{name}") for name in pair}

    def areas(self, values: Sequence[Any]) -> dict[str, tuple[Image, str]]:
        """The painted regions, by colour: a picture that is white there, and its text.

        Args:
            values: those of the components.

        Raises:
            SettingError: a colour that is painted with has no text.
        """
        painted, *texts = values[4:]
        areas = areas_of(painted)
        written = dict(zip(self.colours, texts, strict=True))
        for name in areas:
            if not (written[name] or "").strip():
                raise SettingError(f"the painted region in {name} has no text: write what is {name}, or erase it")
        return {name: (area, written[name].strip()) for name, area in areas.items()}

    def painted(self, areas: Mapping[str, tuple[Image, str]]) -> dict[Any, Any]:
        """The values that show painted regions, by component.

        Args:
            areas: what `areas` returned.
        """
        sheet = painting({name: area for name, (area, _) in areas.items()})
        return {self.sheet: sheet, **{box: areas[name][1] if name in areas else "" for name, box in self.colours.items()}}

    def options(self, values: Sequence[Any]) -> dict[str, Any]:
        prompt, negative, rows, mix, sheet, *_ = values
        regions = [self._region(row) for row in rows if any(cell not in (None, "") for cell in row)]
        if not regions and not areas_of(sheet) and not (prompt or "").strip():
            raise SettingError("there is no prompt: write what to paint")
        text = (prompt or "").strip()
        own = {"regions": regions, "elsewhere": text, **({"mix": mix} if mix != "cells" else {})}
        return {"prompt": own if regions else text, "negative_prompt": negative or ""}

    def _region(self, row: Sequence[Any]) -> dict[str, Any]:
        cells = dict(zip(self.HEADERS, row, strict=True))
        try:
            box = [float(cells[side]) for side in self.HEADERS[:4]]
            numbers = {name: None if cells[name] in (None, "") else float(cells[name]) for name in self.HEADERS[6:]}
        except (TypeError, ValueError) as cause:
            raise SettingError(f"a box came as {row!r:.80}: left, top, right and bottom are numbers from 0 to 1") from cause
        region = {
            "box": box,
            "text": cells["text"] or "",
            "negative_prompt": cells["negative_prompt"] or None,
            **numbers,
        }
        return {name: value for name, value in region.items() if value is not None}

    def shown(self, options: Mapping[str, Any]) -> list[Any]:
        prompt, negative = options.get("prompt", ""), options.get("negative_prompt") or ""
        if isinstance(prompt, str):
            return [prompt, negative, [[None] * len(self.HEADERS)], "cells", *self.painted({}).values()]
        boxes = [{"box": box, "text": text} for box, text in prompt.get("boxes") or []]
        regions = [*boxes, *(prompt.get("regions") or [])]
        names = self.HEADERS[4:]
        rows = [[*region["box"], *(region.get(name) for name in names)] for region in regions]
        return [prompt.get("elsewhere", ""), negative, rows, prompt.get("mix", "cells"), *self.painted({}).values()]


def _sketch(rows: Sequence[Sequence[Any]]) -> str:
    """A picture of the boxes, as HTML."""
    boxes = []
    for row in rows:
        try:
            left, top, right, bottom = (min(max(float(cell), 0), 1) for cell in row[:4])
        except (TypeError, ValueError):
            continue
        place = f"left:{left:.1%};top:{top:.1%};width:{max(right - left, 0):.1%};height:{max(bottom - top, 0):.1%}"
        boxes.append(f'<div style="{place}">{escape(str(row[4] or ""))}</div>')
    return f'<div class="sketch">{"".join(boxes)}</div>' if boxes else ""


@final
class Sizes(Panel):
    """Size, steps and the other numbers of a picture, and its seed."""

    NAMES = ("width", "height", "steps", "stride", "guidance_scale", "guidance_end", "wrap")

    def __init__(self) -> None:
        meanings = meanings_of(Settings)
        hints, defaults = hints_of(Settings), Settings()
        fields = (field(name, hints[name], repr(getattr(defaults, name)), meanings.get(name, "")) for name in self.NAMES)
        self._form = Form("settings", "", tuple(fields))
        self.components = []
        for k in range(0, len(self.NAMES), 2):
            with gr.Row():
                self.components += [one.draw(self._form.name) for one in (self._form.fields or ())[k : k + 2]]
        with gr.Row():
            self.seed = gr.Textbox("0", label="seed", info="The same seed makes the same picture.", elem_id="seed")
            self.lock = gr.Checkbox(
                False, label="keep the seed", info="Otherwise each picture gets a new one, which is shown.", elem_id="lock"
            )
        self.components += [self.seed, self.lock]

    def options(self, values: Sequence[Any]) -> dict[str, Any]:
        *numbers, seed, locked = values
        settings = self._form.part(numbers)
        if locked and not (re.fullmatch(r"\d{1,20}", (seed or "").strip()) and int(seed) < 1 << 64):
            raise SettingError(f"seed is {seed!r:.80}: it must be a whole number from 0 to {(1 << 64) - 1}")
        chosen = {name: value for name, value in settings.items() if name != "plugin"}
        return {**chosen, "seed": int(seed) if locked else secrets.randbelow(1 << 32)}

    def shown(self, options: Mapping[str, Any]) -> list[Any]:
        return [*self._form.shown(options), str(options.get("seed", 0)), True]


@final
class Models(Panel):
    """The model: an installed one, or the one that the studio was started with.

    Args:
        offered: the name of the model that the studio was started with; None for none.
    """

    def __init__(self, offered: str | None) -> None:
        self._names = [*([offered] if offered else []), *(plugin.name for plugin in registry.plugins("models"))]
        usual = Composition().model
        first = offered or (usual if usual in self._names else self._names[0])
        self.components = [gr.Dropdown(self._names, value=first, label="Model", elem_id="model")]

    def options(self, values: Sequence[Any]) -> dict[str, Any]:
        return {"model": values[0]}

    def shown(self, options: Mapping[str, Any]) -> list[Any]:
        model = options.get("model")
        if isinstance(model, dict) and model.keys() == {"plugin"}:
            model = model["plugin"]
        if model not in self._names:
            raise SettingError(f"the model {model!r:.80} is not on this page: it has {', '.join(self._names)}")
        return [model]


@final
class Parts(Panel):
    """One plugin of a kind, or several, with forms for their settings.

    Args:
        option: the option that names the plugins.
        default: the plugin that is chosen at first; None for none.
    """

    def __init__(self, option: Option, default: str | None) -> None:
        self.option, self.kind = option, KINDS[option]
        self.several = option == "guidances"
        self._forms, self.broken = forms_of(self.kind)
        names = [*([OWN] if option == "scheduler" else []), *self._forms]
        self._first = default or (None if self.several else OWN)
        with gr.Group():
            self.chosen = gr.Dropdown(
                names,
                value=[] if self.several else self._first,
                multiselect=self.several,
                label=option.capitalize(),
                info=self._info(self._first),
                elem_id=option,
            )
            self.components: list[Any] = [self.chosen]
            self._groups: list[Any] = []
            self._spans: dict[str, slice] = {}
            for name, form in self._forms.items():
                begin = len(self.components)
                with gr.Group(visible=name == self._first) as group:
                    if self.several:
                        gr.Markdown(f"**{name}**: {form.summary}", padding=True)
                    self.components += form.draw()
                self._groups.append(group)
                self._spans[name] = slice(begin, len(self.components))
        self.chosen.change(
            self._chosen, self.chosen, [self.chosen, *self._groups], show_progress="hidden", api_visibility="private"
        )

    def _info(self, name: str | None) -> str | None:
        if self.several:
            return "They keep the windows in agreement. Choose one, several or none."
        return self._forms[name].summary if name in self._forms else "What the model was made for."

    def _chosen(self, chosen: Any) -> list[Any]:
        names = chosen if self.several else [chosen]
        info = gr.update(info=self._info(None if self.several else chosen))
        return [info, *(gr.update(visible=name in names and self._has_fields(name)) for name in self._forms)]

    def _has_fields(self, name: str) -> bool:
        return self.several or self._forms[name].fields != ()

    def options(self, values: Sequence[Any]) -> dict[str, Any]:
        chosen = (values[0] or []) if self.several else [values[0]]
        if not self.several and chosen[0] in (None, OWN) and self.option == "scheduler":
            return {}
        for name in chosen:
            if name not in self._forms:
                raise SettingError(registry.unknown_among(self.kind, str(name), set(self._forms)))
        parts = [self._forms[name].part(values[self._spans[name]]) for name in chosen]
        return {self.option: parts if self.several else parts[0]}

    def shown(self, options: Mapping[str, Any]) -> list[Any]:
        given = options.get(self.option)
        parts: list[Any] = list(given or []) if self.several else [given or self._first]
        values: list[Any] = [None] * len(self.components)
        for name, form in self._forms.items():
            values[self._spans[name]] = form.shown({})
        names: list[str] = []
        for part in parts:
            if part == OWN:
                names.append(OWN)
                continue
            whole = describe(build(BASES[self.kind], part, trusted=False))
            name = part if isinstance(part, str) else part["plugin"]
            if name not in self._forms or name in names:
                raise SettingError(f"the page has no form for {name!r:.80} here: use panokit rerun for this picture")
            names.append(name)
            values[self._spans[name]] = self._forms[name].shown({"plugin": name, **whole})
        values[0] = names if self.several else names[0]
        return values
