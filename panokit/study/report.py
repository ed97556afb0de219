"""The report of a study as text: tables in Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from panokit.study.statistics import ENOUGH, Difference
from panokit.wording import counted

Data = Mapping[str, Any]


def markdown(numbers: Data) -> str:
    """Write the report: the study, and the means, differences and costs of its methods.

    Args:
        numbers: the numbers that `conduct` returns.
    """
    study, methods = numbers["study"], numbers["methods"]
    n = next(iter(methods.values()))["n"]
    prompts, seeds = len(study["prompts"]), study["panoramas"]
    own = f"{counted(study['references'] * prompts, 'picture')} that the model makes at its own size"
    references = f"the pictures in {study['reference_folder']}" if study["reference_folder"] else own
    squares = f"squares of {study['crop']} pixels" if study["crop"] else "squares of full height"
    against = f"; {squares} against {references}" if study["features"] else ""
    versions = ", ".join(f"{name} {version}" for name, version in numbers["versions"].items())
    parts = [
        f"# {study['model']}, {study['height']} x {study['width']} pixels",
        f"{counted(n, 'panorama')} for each method ({counted(prompts, 'prompt')}, {counted(seeds, 'seed')}), "
        f"{counted(study['steps'], 'step')}{against}. ± is the standard "
        "deviation: over subsets for KID, over panoramas for scores. The best value of a measure is bold: the lowest, the "
        f"highest, or the one nearest to 1. {versions}.",
        "## Means",
        _means(methods, numbers["better"]),
    ]
    for baseline, differences in numbers["differences"].items():
        if differences:
            parts += [
                f"## Differences from {baseline}",
                "Panoramas of the same prompt and seed are compared in pairs, with 95 % intervals. Differences in KID are "
                "taken on subsets of half of the seeds. "
                + (
                    "A difference is bold if its interval excludes zero."
                    if n >= ENOUGH
                    else f"Fewer than {ENOUGH} pairs cannot show a difference."
                ),
                _differences(differences),
            ]
    if numbers["costs"]:
        rounds = next(iter(numbers["costs"].values()))["rounds"]
        parts += [
            "## Costs",
            "What one panorama costs: windows forward and backward through the model, and seconds, also as a ratio to the "
            f"first method. Seconds are the median of {counted(rounds, 'run')}; methods alternate.",
            _costs(numbers["costs"]),
        ]
    return "\n\n".join(parts) + "\n"


def measured(methods: Mapping[str, Data]) -> dict[str, list[Data]]:
    """Sort the numbers by measure, distances first.

    Args:
        methods: the numbers of each method.

    Returns:
        For each measure, the `mean` and `deviation` of every method. A deviation may be None.
    """
    rows = [{**method["distances"], **method["scores"]} for method in methods.values()]
    return {name: [row[name] for row in rows] for name in rows[0]}


def table(rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown. The first row is the header."""
    head, *rest = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([head, f"|{'---|' * len(rows[0])}", *rest])


def best(values: Sequence[float], better: str | None) -> float | None:
    """The best of the means of a measure.

    Args:
        values: the mean of each method.
        better: which are better: `low`, `high`, or those near `one`; None if the measure does not say.
    """
    keys = {"low": lambda value: value, "high": lambda value: -value, "one": lambda value: abs(value - 1)}
    return min(values, key=keys[better]) if better in keys and len(values) > 1 else None


def _means(methods: Mapping[str, Data], better: Mapping[str, str]) -> str:
    rows = [["", *methods]]
    for name, values in measured(methods).items():
        winner = best([value["mean"] for value in values], better.get(name))
        rows.append([name, *(f"**{_mean(value)}**" if value["mean"] == winner else _mean(value) for value in values)])
    return _lying(rows)


def _lying(rows: Sequence[Sequence[str]]) -> str:
    """A table with more rows than columns: methods are its rows if there are more of them than measures."""
    return table(rows if len(rows) >= len(rows[0]) else [*zip(*rows, strict=True)])


def _mean(value: Data) -> str:
    return _number(value["mean"]) + (f" ± {_number(value['deviation'])}" if value["deviation"] is not None else "")


def _number(value: float) -> str:
    return f"{value:.1f}" if abs(value) >= 100 else f"{value:.3f}"


def _differences(differences: Mapping[str, Mapping[str, Data]]) -> str:
    names = list(next(iter(differences.values())))
    rows = [[name, *(_difference(Difference(**method[name])) for method in differences.values())] for name in names]
    return _lying([["", *differences], *rows])


def _difference(difference: Difference) -> str:
    text = f"{difference.mean:+.3f} ({difference.low:+.3f} to {difference.high:+.3f})"
    return f"**{text}**" if difference.shown else text


def _costs(costs: Mapping[str, Data]) -> str:
    base = next(iter(costs.values()))["seconds"]
    rows = [
        [method, str(cost["forward"]), str(cost["backward"]), f"{cost['seconds']:.1f}", f"{cost['seconds'] / base:.2f}"]
        for method, cost in costs.items()
    ]
    return table([["", "forward", "backward", "seconds", "ratio"], *rows])
