"""The report of a study as one HTML file that needs no other file: tables, bars, curves and panoramas."""

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from panokit.opening import opened
from panokit.study.report import markdown, measured

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:1100px;margin:2em auto;padding:0 1em}table{border-collapse:collapse;"
    "font-size:13px}td,th{border:1px solid #ccc;padding:.2em .6em;text-align:right}img,svg{max-width:100%;height:auto}"
    "figure{margin:1em 0}figcaption{color:#555}.figures{display:grid;grid-template-columns:1fr 1fr}.figures figure{margin:0}"
)


def page(numbers: Mapping[str, Any], panoramas: Mapping[str, Sequence[Path]], pairs: Sequence[tuple[str, int]]) -> str:
    """Write the report: the text of `markdown`, a figure for each measure, and each method's first panorama of each prompt.

    Args:
        numbers: the numbers that `conduct` returns.
        panoramas: the files of each method's panoramas, in the order of `pairs`.
        pairs: the prompt and seed of each panorama.

    Returns:
        HTML.
    """
    parts = [
        f"<!doctype html><meta charset=utf-8><title>{escape(str(numbers['study']['model']))}</title><style>{_STYLE}</style>"
    ]
    parts += [_html(line) for line in _blocks(markdown(numbers))]
    figures = "\n".join(_figure(name, values, numbers) for name, values in measured(numbers["methods"]).items())
    parts += ["<h2>Figures</h2>", f"<div class=figures>{figures}</div>", "<h2>Panoramas</h2>"]
    for prompt in dict.fromkeys(prompt for prompt, _ in pairs):
        k = [text for text, _ in pairs].index(prompt)
        sheet = "".join(f"<figcaption>{escape(method)}</figcaption>{_image(paths[k])}" for method, paths in panoramas.items())
        parts.append(f"<figure><h3>{escape(prompt)}, seed {pairs[k][1]}</h3>{sheet}</figure>")
    return "\n".join(parts) + "\n"


def _blocks(text: str) -> list[list[str]]:
    """Split text at empty lines into paragraphs, as lists of lines."""
    return [block.splitlines() for block in text.split("\n\n") if block.strip()]


def _html(block: Sequence[str]) -> str:
    """Convert a paragraph of `markdown` to HTML: a heading, a table or text."""
    if block[0].startswith("#"):
        level = len(block[0]) - len(block[0].lstrip("#"))
        return f"<h{level}>{escape(block[0].lstrip('# '))}</h{level}>"
    if block[0].startswith("|"):
        rows = [[_cell(cell) for cell in row[2:-2].split(" | ")] for row in block if not row.startswith("|---")]
        head, *rest = ["".join(f"<{'td' if k else 'th'}>{cell}" for cell in row) for k, row in enumerate(rows)]
        return f"<table><tr>{head}<tr>{'<tr>'.join(rest)}</table>"
    return f"<p>{escape(' '.join(block))}</p>"


def _cell(text: str) -> str:
    return f"<b>{escape(text.strip('*'))}</b>" if text.startswith("**") else escape(text)


def _figure(name: str, measured: Sequence[Mapping[str, Any]], numbers: Mapping[str, Any]) -> str:
    """Draw one measure with its deviations: a curve for a sweep over numbers, else bars."""
    from matplotlib.figure import Figure

    methods = numbers["methods"]
    values = [value["mean"] for value in measured]
    deviations = [value["deviation"] or 0.0 for value in measured]
    figure = Figure(figsize=(5.4, 0.8 + 0.3 * max(4, len(methods))), layout="constrained")
    axes = figure.subplots()
    if (settings := _sweep_values(numbers)) is not None:
        axes.errorbar(settings, values, deviations, marker="o", capsize=3, color="#356")
        positive = [value for value in settings if value > 0]
        if max(settings) > 30 * min(positive, default=1):
            axes.set_xscale("symlog", linthresh=min(positive))
        axes.set_xlabel(numbers["study"]["sweep"].partition("=")[0])
    else:
        axes.barh(list(methods)[::-1], values[::-1], xerr=deviations[::-1], capsize=3, color="#689")
    axes.set_title(name, fontsize=10)
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return f"<figure>{file.getvalue()[file.getvalue().index('<svg') :]}</figure>"


def _sweep_values(numbers: Mapping[str, Any]) -> list[float] | None:
    """The values of the sweep; None if they are not numbers, or if there is no sweep."""
    if not numbers["study"]["sweep"]:
        return None
    try:
        return [float(value) for value in numbers["study"]["sweep"].partition("=")[2].split(",")]
    except ValueError:
        return None


def _image(path: Path, width: int = 1024) -> str:
    """A small version of a panorama, as an `img` element that holds a JPEG."""
    with opened(path) as image:
        small = image.convert("RGB")
    small.thumbnail((width, width))
    file = io.BytesIO()
    small.save(file, format="jpeg", quality=85)
    return f"<img alt='' src='data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}'>"
