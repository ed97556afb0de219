"""The report of a study as one HTML file that needs no other file: tables, bars, curves and panoramas."""

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from panokit.opening import opened
from panokit.study.report import best, markdown, measured

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:1100px;margin:2em auto;padding:0 1em}table{border-collapse:collapse;"
    "font-size:13px;display:block;overflow-x:auto}td,th{border:1px solid #ccc;padding:.2em .6em;text-align:right}th{cursor:"
    "pointer}td:first-child{text-align:left}img,svg{max-width:100%;height:auto}"
    "figure{margin:1em 0}figcaption{color:#555}.figures{display:grid;grid-template-columns:1fr 1fr}.figures figure{margin:0}"
)

_SORT = """
for (const head of document.querySelectorAll("th")) head.onclick = () => {
  const rows = [...head.closest("table").rows].slice(1), down = head.dataset.down = +!+head.dataset.down
  const text = row => row.cells[head.cellIndex].textContent, number = row => parseFloat(text(row))
  const apart = (a, b) => isNaN(number(a)) ? text(a).localeCompare(text(b)) : number(a) - number(b)
  rows.sort((a, b) => down ? apart(a, b) : apart(b, a)).forEach(row => row.parentNode.append(row))
}
"""
"""A click on the head of a column sorts a table's rows by it; another click turns them round."""


def page(numbers: Mapping[str, Any], panoramas: Mapping[str, Sequence[Path]], pairs: Sequence[tuple[str, int]]) -> str:
    """Write the report: the text of `markdown`, a figure for each measure, and each method's first panorama of each prompt.

    A click on the head of a column sorts its table. If costs were measured, distances are also drawn over the windows computed.

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
    by_name = measured(numbers["methods"])
    figures = "\n".join(_figure(name, values, numbers) for name, values in by_name.items())
    if numbers["costs"] and len(numbers["methods"]) > 1:
        figures += "\n".join(frontier(name, numbers) for name in by_name if name.startswith("KID"))
    parts += ["<h2>Figures</h2>", f"<div class=figures>{figures}</div>", "<h2>Panoramas</h2>"]
    for prompt in dict.fromkeys(prompt for prompt, _ in pairs):
        k = [text for text, _ in pairs].index(prompt)
        sheet = "".join(f"<figcaption>{escape(method)}</figcaption>{_image(paths[k])}" for method, paths in panoramas.items())
        parts.append(f"<figure><h3>{escape(prompt)}, seed {pairs[k][1]}</h3>{sheet}</figure>")
    parts.append(f"<script>{_SORT}</script>")
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
    """Draw one measure with 95 % intervals as whiskers: a curve for a sweep over numbers, else a point for each method."""
    from matplotlib.figure import Figure

    methods = numbers["methods"]
    values, whiskers = [value["mean"] for value in measured], _whiskers(measured)
    figure = Figure(figsize=(5.4, 0.8 + 0.3 * max(4, len(methods))), layout="constrained")
    axes = figure.subplots()
    if (settings := _sweep_values(numbers)) is not None:
        axes.errorbar(settings, values, whiskers, marker="o", capsize=3, color="#356")
        positive = [value for value in settings if value > 0]
        if max(settings) > 30 * min(positive, default=1):
            axes.set_xscale("symlog", linthresh=min(positive))
        axes.set_xlabel(numbers["study"]["sweep"].partition("=")[0])
    else:
        axes.errorbar(values, [*methods], xerr=whiskers, fmt="o", capsize=3, color="#356")
        axes.invert_yaxis()
        axes.grid(axis="x", alpha=0.3)
        winner = best(values, numbers["better"].get(name))
        if winner is not None:
            axes.plot(winner, values.index(winner), "o", color="#c30")
    axes.set_title(name, fontsize=10)
    return _svg(figure)


def frontier(name: str, numbers: Mapping[str, Any]) -> str:
    """Draw a measure over the windows that a panorama costs, forward and backward together.

    Args:
        name: of the measure.
        numbers: those that `conduct` returns, with costs.

    Returns:
        HTML: a figure that holds an SVG.
    """
    from matplotlib.figure import Figure

    points = measured(numbers["methods"])[name]
    windows = [cost["forward"] + cost["backward"] for cost in (numbers["costs"][method] for method in numbers["methods"])]
    values = [point["mean"] for point in points]
    figure = Figure(figsize=(10.8, 6), layout="constrained")
    axes = figure.subplots()
    axes.errorbar(windows, values, _whiskers(points), fmt="o", capsize=3, color="#356", alpha=0.7)
    for method, x, y in zip(numbers["methods"], windows, values, strict=True):
        axes.annotate(method, (x, y), xytext=(5, 4), textcoords="offset points", fontsize=8)
    axes.set_title(f"{name}, over windows forward and backward", fontsize=10)
    axes.grid(alpha=0.3)
    return _svg(figure)


def _whiskers(measured: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    """The parts of 95 % intervals below and above the means; 0 where there is no interval."""
    known = [(value["mean"], value["low"], value["high"]) for value in measured]
    below = [0.0 if low is None else max(mean - low, 0.0) for mean, low, _ in known]
    return [below, [0.0 if high is None else max(high - mean, 0.0) for mean, _, high in known]]


def _svg(figure: Any) -> str:
    """A figure of matplotlib as HTML."""
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
