"""A study's numbers for people: tables in Markdown."""

from collections.abc import Mapping
from typing import Any

from panokit.study.measures import table
from panokit.study.statistics import Difference


def markdown(numbers: Mapping[str, Any]) -> str:
    """The report: what was compared, the means, and which differences are there."""
    study, methods = numbers["study"], numbers["methods"]
    base = next(iter(methods))
    n, crops = methods[base]["n"], methods[base].get("crops", 0)
    versions = ", ".join(f"{name} {version}" for name, version in numbers["versions"].items())
    own = study["references"] * len(study["prompts"])
    head = [
        f"# {study['model']}, {study['height']} x {study['width']} pixels",
        "",
        f"{n} panoramas a method ({len(study['prompts'])} prompts, {study['panoramas']} seeds), {study['steps']} steps;",
        f"{crops} full-height squares of them against {own} pictures that the model makes at its own size. {versions}.",
        "",
    ]
    parts = [*head, "## Means", "", _means(methods), ""]
    if numbers["differences"]:
        parts += [
            f"## Differences from {base}",
            "",
            "The same prompts and seeds, pair by pair, with 95 % intervals; of KID, on subsets of half of the pairs.",
            "Those whose interval excludes zero are in bold.",
            "",
            _differences(numbers["differences"]),
            "",
        ]
    return "\n".join(parts)


def _means(methods: Mapping[str, Mapping[str, Any]]) -> str:
    first = next(iter(methods.values()))
    distances = [name for name in first if name.startswith(("KID", "FID"))]
    rows = [["method", *distances, *first["means"]]]
    for method, told in methods.items():
        found = [
            f"{told[name]['mean']:.4f} ± {told[name]['deviation']:.4f}" if name.startswith("KID") else f"{told[name]:.1f}"
            for name in distances
        ]
        rows.append([method, *found, *(f"{value:.3f}" for value in told["means"].values())])
    return table(rows)


def _differences(differences: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    names = list(next(iter(differences.values())))
    rows = [["method", *names]]
    for method, found in differences.items():
        cells = []
        for name in names:
            difference = Difference(**found[name])
            text = f"{difference.mean:+.4f} ({difference.low:+.4f} to {difference.high:+.4f})"
            cells.append(f"**{text}**" if difference.shown else text)
        rows.append([method, *cells])
    return table(rows)
