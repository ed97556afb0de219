"""The page of the studio: it composes a picture, shows it while it is made, and keeps those of its tab."""

import base64
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import wraps
from html import escape
from inspect import isgeneratorfunction
from typing import Any, final

import gradio as gr
from PIL import Image

from panokit.errors import SettingError
from panokit.jobs import Worker
from panokit.panorama import Panorama
from panokit.recipe_text import as_command, as_python, as_yaml, lacks_pictures
from panokit.settings import Composition
from panokit.studio.asked import Asked
from panokit.studio.forms import field
from panokit.studio.history import Entry, Session, Sessions
from panokit.studio.paintings import mask_of, painting
from panokit.studio.panels import Models, Panel, Parts, Sizes, Texts
from panokit.studio.runs import LONGEST, Runs, State, line_of
from panokit.studio.uploads import picture_of, recipe_of

_PAINTED = 1024
"""The most pixels along a side of the picture that a mask is painted on."""
CSS = """
.gradio-container {--block-info-text-color: var(--neutral-500); max-width: 1500px !important; margin: 0 auto !important}
#status {min-height: 1.6em; font-size: 1.05em}
#status .failed {color: var(--error-text-color, #b91c1c)}
#status progress {width: 100%; height: 6px; appearance: none; border: 0; border-radius: 3px; overflow: hidden;
  background: var(--border-color-primary)}
#status progress::-webkit-progress-bar {background: var(--border-color-primary)}
#status progress::-webkit-progress-value {background: var(--primary-500)}
#status progress::-moz-progress-bar {background: var(--primary-500)}
#result img {width: 100%; object-fit: contain; max-height: 70vh}
#gallery .grid-wrap {padding-top: 30px}
#gallery .thumbnail-item {aspect-ratio: 2.5}
#preview img {width: 100%; border-radius: 8px; display: block}
.nothing {border: 1px dashed var(--border-color-primary); border-radius: 8px; padding: 3.5em 1em; text-align: center;
  opacity: .7}
.sketch {position: relative; width: 100%; aspect-ratio: 4; border: 1px solid var(--border-color-primary); border-radius: 6px;
  overflow: hidden; margin-top: 6px}
.sketch div {position: absolute; border: 2px solid var(--primary-500); background: color-mix(in srgb, var(--primary-500) 18%,
  transparent); font-size: .8em; padding: 2px 5px; overflow: hidden; border-radius: 4px}
"""
NOTHING = '<div class="nothing">Your picture appears here while it is made.</div>'


@final
class Page:
    """The page, and what it does.

    Args:
        worker: makes the pictures. It does not trust its jobs.
        runs: the queue.
        sessions: the pictures of all tabs.
        offered: a model besides the installed ones; None for none.
    """

    def __init__(self, worker: Worker, runs: Runs, sessions: Sessions, offered: str | None = None) -> None:
        self.worker, self.runs, self.sessions, self.offered = worker, runs, sessions, offered

    def blocks(self) -> gr.Blocks:
        """Draw the page."""
        # Once an hour, the library removes the files in its cache that are older than a day: both numbers are seconds.
        with gr.Blocks(title="panokit studio", analytics_enabled=False, delete_cache=(3600, 86400)) as blocks:
            with gr.Row():
                with gr.Column(min_width=260):
                    gr.Markdown("# panokit studio")
                with gr.Column(scale=0, min_width=320):
                    self.open = gr.UploadButton(
                        "Open a picture, to get its settings back", file_types=["image"], size="sm", elem_id="open"
                    )
            with gr.Row():
                with gr.Column(scale=5, min_width=380):
                    self._draw_composition()
                with gr.Column(scale=7, min_width=420):
                    self._draw_picture()
            self._connect()
            blocks.unload(self._leave)
        blocks.queue(default_concurrency_limit=None, api_open=False, max_size=64)
        return blocks

    def _draw_composition(self) -> None:
        self.texts = Texts()
        with gr.Row():
            self.generate = gr.Button("Generate", variant="primary", elem_id="generate", scale=2)
            self.stop = gr.Button("Stop", variant="stop", interactive=False, elem_id="stop", scale=1)
        default = Composition()
        with gr.Tabs():
            with gr.Tab("Size and steps"):
                sizes = Sizes()
            with gr.Tab("Model and plugins"):
                models = Models(self.offered)
                parts = [
                    Parts("guidances", None),
                    Parts("layout", str(default.layout)),
                    Parts("fuser", str(default.fuser)),
                    Parts("scheduler", None),
                ]
                broken = {f"{part.kind} {name}": why for part in parts for name, why in part.broken.items()}
                if broken:
                    lines = "\n".join(f"* `{name}` is {why}" for name, why in broken.items())
                    gr.Markdown(f"**Plugins that cannot be used**\n{lines}", elem_id="broken")
            with gr.Tab("Start from a picture"):
                self._draw_start()
        self.panels: list[Panel] = [self.texts, sizes, models, *parts]
        self.inputs = [component for panel in self.panels for component in panel.components]
        self.seed, self.lock = sizes.seed, sizes.lock

    def _draw_start(self) -> None:
        gr.Markdown("The picture is varied, and enlarged if it is smaller than the canvas.")
        with gr.Row():
            self.choose = gr.UploadButton("Choose a picture", file_types=["image"], size="sm", elem_id="choose")
            self.remove = gr.Button("Remove it", size="sm", elem_id="remove")
        self.editor = gr.ImageEditor(
            label="Paint over what is made anew; paint nothing to vary all of it",
            type="pil",
            sources=(),
            transforms=(),
            layers=False,
            brush=gr.Brush(default_size=24, colors=["#ff3b30"], default_color="#ff3b30", color_mode="fixed"),
            visible=False,
            interactive=True,
            elem_id="editor",
        )
        with gr.Row():
            self._strength = field("strength", float | None, "None", "The share of the steps that paint over the picture.")
            self.strength = gr.Textbox(
                label="strength",
                placeholder="0.8, or 1 with a mask or a place",
                info=self._strength.meaning,
                elem_id="strength",
            )
            self.at = gr.Textbox(
                label="at",
                placeholder="240,48",
                info="Left and top, in pixels, at which it lies on a larger canvas. The rest is painted around it.",
                elem_id="at",
            )

    def _draw_picture(self) -> None:
        self.status = gr.HTML("", elem_id="status")
        self.preview = gr.HTML(NOTHING, elem_id="preview")
        self.result = gr.Image(
            label="Picture", visible=False, interactive=False, type="filepath", buttons=["fullscreen"], elem_id="result"
        )
        with gr.Row(visible=False) as self.actions:
            self.download = gr.DownloadButton("Download the PNG with its recipe", size="sm", elem_id="download")
            self.keep = gr.Button("Keep as A, to compare", size="sm", elem_id="keep")
        self.slider = gr.ImageSlider(
            label="A, which you kept, and B, the latest", visible=False, interactive=False, type="filepath", elem_id="slider"
        )
        self.gallery = gr.Gallery(
            label="Made here: a click brings its settings back",
            visible=False,
            columns=3,
            height=220,
            fit_columns=False,
            allow_preview=False,
            interactive=False,
            buttons=[],
            object_fit="contain",
            elem_id="gallery",
        )
        with gr.Accordion("This picture as a command, as YAML, as Python", open=False, visible=False) as self.copies:
            self.lacks = gr.Markdown(
                "`FILE` stands for a picture that the recipe does not hold, such as an upload or a painting: "
                "write the name of its file there.",
                visible=False,
                elem_id="lacks",
            )
            shown: dict[str, Any] = {"interactive": False, "wrap_lines": True, "show_label": False, "lines": 3, "max_lines": 24}
            with gr.Tabs():
                with gr.Tab("Command"):
                    self.command = gr.Code(language="shell", elem_id="command", **shown)
                with gr.Tab("YAML, for --config"):
                    self.yaml = gr.Code(language="yaml", elem_id="yaml", **shown)
                with gr.Tab("Python"):
                    self.python = gr.Code(language="python", elem_id="python", **shown)

    def _connect(self) -> None:
        """Say what each button does."""
        private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        copies = [self.copies, self.lacks, self.command, self.yaml, self.python]
        picture = [self.preview, self.result, self.slider, self.actions, self.download, *copies]
        running = [self.status, self.generate, self.stop, self.seed, self.gallery, *picture]
        gr.on(
            [self.generate.click],
            _explained(self._generate),
            [*self.inputs, self.editor, self.strength, self.at],
            running,
            concurrency_limit=LONGEST + 4,
            **private,
        )
        self.stop.click(_explained(self._stop), None, None, queue=False, **private)
        self.choose.upload(_explained(self._choose), self.choose, self.editor, **private)
        self.remove.click(_explained(self._remove), None, self.editor, **private)
        restored = [*self.inputs, self.editor, self.strength, self.at]
        self.open.upload(_explained(self._open), self.open, [self.status, *restored], **private)
        self.gallery.select(_explained(self._recall), None, [self.status, *restored, *picture], **private)
        self.keep.click(_explained(self._keep), None, [self.status, self.seed, self.lock, self.slider], **private)

    def _asked(self, values: Sequence[Any], request: gr.Request) -> Asked:
        """What the values of the page ask for."""
        *inputs, painted, strength, at = values
        options: dict[str, Any] = {}
        areas = self.texts.areas(inputs[: len(self.texts.components)])
        for panel in self.panels:
            options |= panel.options(inputs[: len(panel.components)])
            inputs = inputs[len(panel.components) :]
        image = self.sessions.of(request.session_hash).start
        if image is None:
            return Asked(options, areas=areas)
        placed = {"strength": self._strength.setting(strength), "at": _place(at)}
        return Asked({**options, **placed}, image, mask_of(painted, image.size), areas)

    def _generate(self, request: gr.Request, *values: Any) -> Iterator[dict[Any, Any]]:
        session = self.sessions.of(request.session_hash)
        asked = self._asked(values, request)
        asked.job(self.offered)  # a mistake is shown at once
        ticket = self.runs.submit(str(request.session_hash), lambda: asked.plan(self.worker, self.offered))
        seed = str(asked.options["seed"])
        begun = {self.generate: gr.update(interactive=False), self.stop: gr.update(interactive=True), self.seed: seed}
        yield begun | {self.result: gr.update(visible=False), self.actions: gr.update(visible=False)}
        try:
            for state in self.runs.watch(ticket):
                if not state.ended:
                    yield {self.status: _line(state), self.preview: gr.update(value=_preview(state.preview), visible=True)}
            shown = self._added(asked, state.panorama, session) if state.panorama else {}
        except Exception as error:  # such as a full disk; whatever it is, the buttons come back
            state, shown = State(line_of(error), ended=True, failed=True), {}
        if state.failed:  # the last picture comes back
            shown = {self.preview: gr.update(visible=session.current is None)}
            shown |= {part: gr.update(visible=session.current is not None) for part in (self.result, self.actions)}
        ended = {self.generate: gr.update(interactive=True), self.stop: gr.update(interactive=False)}
        yield {**shown, **ended, self.status: _line(state)}

    def _added(self, asked: Asked, panorama: Panorama, session: Session) -> dict[Any, Any]:
        """Keep a picture; the changes that show it, and all of its session."""
        shown = self._shown(session.add(asked, panorama), session)
        return {**shown, self.gallery: gr.update(value=[str(entry.path) for entry in session.entries], visible=True)}

    def _shown(self, entry: Entry, session: Session) -> dict[Any, Any]:
        """The changes that show a picture, and beside it the one that was kept."""
        session.current = entry
        path = str(entry.path)
        pair = (str(session.kept.path), path) if session.kept and session.kept is not entry else None
        return {
            self.preview: gr.update(visible=False),
            self.result: gr.update(value=path, visible=True),
            self.slider: gr.update(value=pair, visible=pair is not None),
            self.actions: gr.update(visible=True),
            self.download: path,
            self.copies: gr.update(visible=True),
            self.lacks: gr.update(visible=lacks_pictures(entry.recipe)),
            self.command: as_command(entry.recipe),
            self.yaml: as_yaml(entry.recipe),
            self.python: as_python(entry.recipe),
        }

    def _stop(self, request: gr.Request) -> None:
        self.runs.stop(str(request.session_hash))

    def _leave(self, request: gr.Request) -> None:
        """The tab is closed: its picture stops after its step, and its files go."""
        self.runs.stop(str(request.session_hash))
        self.sessions.leave(request.session_hash)

    def _choose(self, request: gr.Request, path: str) -> dict[Any, Any]:
        image = picture_of(path)
        self.sessions.of(request.session_hash).start = image
        return {self.editor: _editor(image)}

    def _remove(self, request: gr.Request) -> Any:
        self.sessions.of(request.session_hash).start = None
        return gr.update(value=None, visible=False)

    def _open(self, request: gr.Request, path: str) -> dict[Any, Any]:
        options, missing = recipe_of(path, self.offered)
        changes = self._restored(options)
        words = "the settings are those of the picture"
        if missing:
            words += f", but for what no file holds: {', '.join(missing)}; give it again"
        self.sessions.of(request.session_hash).start = None
        return {self.status: _words(words), self.editor: gr.update(value=None, visible=False), **changes}

    def _recall(self, request: gr.Request, event: gr.SelectData) -> dict[Any, Any]:
        session = self.sessions.of(request.session_hash)
        entries = session.entries
        if not isinstance(event.index, int) or not 0 <= event.index < len(entries):
            raise SettingError("that picture is gone: make it again")
        entry = entries[event.index]
        session.start = entry.start()
        editor = _editor(session.start) if session.start else gr.update(value=None, visible=False)
        words = f"the settings are those of this picture, seed {entry.recipe['seed']}"
        changes = self._restored({**entry.recipe, "prompt": entry.asked.options["prompt"]})
        changes |= self.texts.painted(entry.asked.areas)
        return {self.status: _words(words), self.editor: editor, **changes, **self._shown(entry, session)}

    def _restored(self, options: Mapping[str, Any]) -> dict[Any, Any]:
        """The changes that bring settings back."""
        changes: dict[Any, Any] = {}
        for panel in self.panels:
            changes |= dict(zip(panel.components, panel.shown(options), strict=True))
        at = options.get("at")
        return {
            **changes,
            self.strength: self._strength.shown(options.get("strength")),
            self.at: ",".join(map(str, at)) if isinstance(at, list | tuple) else "",
        }

    def _keep(self, request: gr.Request) -> dict[Any, Any]:
        session = self.sessions.of(request.session_hash)
        if session.current is None:
            raise SettingError("there is no picture to keep: make one")
        session.kept = session.current
        words = "kept as A: change what you like and generate B, with the same seed"
        return {
            self.status: _words(words),
            self.seed: str(session.kept.recipe["seed"]),
            self.lock: True,
            self.slider: gr.update(visible=False),
        }


def _explained(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, whose errors are one line on the page."""
    if isgeneratorfunction(function):

        @wraps(function)
        def stream(*values: Any) -> Iterator[Any]:
            try:
                yield from function(*values)
            except Exception as error:  # plugins raise errors of any type
                raise gr.Error(escape(_in_line(error)), title="panokit", print_exception=False, duration=20) from None

        return stream

    @wraps(function)
    def call(*values: Any) -> Any:
        try:
            return function(*values)
        except Exception as error:  # plugins raise errors of any type
            raise gr.Error(escape(_in_line(error)), title="panokit", print_exception=False, duration=20) from None

    return call


def _in_line(error: Exception) -> str:
    """What went wrong, in one line for this page."""
    return line_of(error).replace("(--trust)", "with panokit rerun --trust")


def _line(state: State) -> str:
    """The state of a picture, as HTML."""
    line = f'<div class="{"failed" if state.failed else "words"}">{escape(state.words)}</div>'
    line += "".join(f"<div>{escape(warning)}</div>" for warning in state.warnings)
    return line if state.ended or not state.steps else f'{line}<progress max="{state.steps}" value="{state.step}"></progress>'


def _words(text: str) -> str:
    return f'<div class="words">{escape(text)}</div>'


def _preview(image: Image.Image | None) -> str:
    """A preview as HTML. Its bytes are in the page itself, so that it leaves no file."""
    if image is None:
        return NOTHING
    file = io.BytesIO()
    image.convert("RGB").save(file, format="jpeg", quality=85)
    return f'<img alt="preview" src="data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}">'


def _editor(image: Image.Image) -> Any:
    """The change that shows a picture to paint a mask on."""
    small = image.copy()
    small.thumbnail((_PAINTED, _PAINTED))
    return gr.update(value=painting({}, small), visible=True)


def _place(text: str | None) -> list[int] | None:
    """Left and top from the text of their field."""
    if not (text or "").strip():
        return None
    numbers = [number.strip() for number in str(text).split(",")]
    if len(numbers) != 2 or not all(re.fullmatch(r"-?\d{1,6}", number) for number in numbers):
        raise SettingError(f"at is {text!r:.80}: it must be left and top in pixels, such as 240,48")
    return [int(number) for number in numbers]
