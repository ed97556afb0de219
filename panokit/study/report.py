"""A study's numbers for people: tables in Markdown."""

from collections.abc import Mapping
from typing import Any

from panokit.study.measures import table
from panokit.study.statistics import Difference

Told = Mapping[str, Any]


def markdown(numbers: Told) -> str:
    """The report: what was compared, the means, which differences are there, and what each method costs."""
    study, methods = numbers["study"], numbers["methods"]
    first = next(iter(methods.values()))
    n, squares = first["n"], first.get("crops", 0)
    prompts, seeds = len(study["prompts"]), study["panoramas"]
    own = f"{study['references'] * prompts} pictures that the model makes at its own size"
    beside = f"the pictures in {study['reference_folder']}" if study["reference_folder"] else own
    versions = ", ".join(f"{name} {version}" for name, version in numbers["versions"].items())
    parts = [
        f"# {study['model']}, {study['height']} x {study['width']} pixels",
        f"{n} panoramas a method ({prompts} prompts, {seeds} seeds), {study['steps']} steps; {squares} full-height squares of "
        f"them against {beside}. {versions}.",
        "## Means",
        _means(methods),
    ]
    for baseline, differences in numbers["differences"].items():
        if differences:
            parts += [
                f"## Differences from {baseline}",
                "The same prompts and seeds, pair by pair, with 95 % intervals; of KID, on subsets of half of the seeds. Those "
                "whose interval excludes zero are in bold.",
                _differences(differences),
            ]
    if numbers["costs"]:
        rounds = next(iter(numbers["costs"].values()))["rounds"]
        parts += [
            "## Costs",
            "Of a panorama: windows forward and backward through the model, and seconds, also as a ratio to the first "
            f"method's; medians of {rounds} in turns.",
            _costs(numbers["costs"]),
        ]
    return "\n\n".join(parts) + "\n"


def measures(methods: Mapping[str, Told]) -> list[str]:
    """What there are numbers of: distances first."""
    first = next(iter(methods.values()))
    return [*(name for name in first if name.startswith(("KID", "FID"))), *first["means"]]


def _means(methods: Mapping[str, Told]) -> str:
    return table([["", *methods], *([name, *(_mean(told, name) for told in methods.values())] for name in measures(methods))])


def _mean(told: Told, name: str) -> str:
    if name.startswith("KID"):
        return f"{told[name]['mean']:.3f} ± {told[name]['deviation']:.3f}"
    return f"{told[name]:.1f}" if name.startswith("FID") else f"{told['means'][name]:.3f}"


def _differences(differences: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    names = list(next(iter(differences.values())))
    rows = [[name, *(_difference(Difference(**found[name])) for found in differences.values())] for name in names]
    return table([["", *differences], *rows])


def _difference(difference: Difference) -> str:
    text = f"{difference.mean:+.3f} ({difference.low:+.3f} to {difference.high:+.3f})"
    return f"**{text}**" if difference.shown else text


def _costs(costs: Mapping[str, Told]) -> str:
    base = next(iter(costs.values()))["seconds"]
    rows = [
        [method, str(cost["forward"]), str(cost["backward"]), f"{cost['seconds']:.1f}", f"{cost['seconds'] / base:.2f}"]
        for method, cost in costs.items()
    ]
    return table([["", "forward", "backward", "seconds", "ratio"], *rows])
