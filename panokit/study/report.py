"""A study's numbers for people: tables in Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from panokit.study.statistics import ENOUGH, Difference

Data = Mapping[str, Any]


def markdown(numbers: Data) -> str:
    """The report: the study, the means, the differences, and the costs of each method."""
    study, methods = numbers["study"], numbers["methods"]
    n = next(iter(methods.values()))["n"]
    prompts, seeds = len(study["prompts"]), study["panoramas"]
    own = f"{study['references'] * prompts} pictures that the model makes at its own size"
    beside = f"the pictures in {study['reference_folder']}" if study["reference_folder"] else own
    squares = f"squares of {study['crop']} pixels" if study["crop"] else "squares of full height"
    against = f"; {squares} against {beside}" if study["features"] else ""
    versions = ", ".join(f"{name} {version}" for name, version in numbers["versions"].items())
    parts = [
        f"# {study['model']}, {study['height']} x {study['width']} pixels",
        f"{n} panoramas a method ({prompts} prompts, {seeds} seeds), {study['steps']} steps{against}. ± is the deviation over "
        f"subsets for KID, and over panoramas. {versions}.",
        "## Means",
        _means(methods),
    ]
    for baseline, differences in numbers["differences"].items():
        if differences:
            parts += [
                f"## Differences from {baseline}",
                "The same prompts and seeds, pair by pair, with 95 % intervals; of KID, on subsets of half of the seeds. "
                + (
                    "Those whose interval excludes zero are in bold."
                    if n >= ENOUGH
                    else f"Fewer than {ENOUGH} pairs show nothing."
                ),
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


def measured(methods: Mapping[str, Data]) -> dict[str, list[Data]]:
    """Each measure's numbers, distances first: for every method a mean, and a deviation if there is one."""
    rows = [{**method["distances"], **method["scores"]} for method in methods.values()]
    return {name: [row[name] for row in rows] for name in rows[0]}


def table(rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; the first row is its head."""
    head, *rest = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([head, f"|{'---|' * len(rows[0])}", *rest])


def _means(methods: Mapping[str, Data]) -> str:
    return table([["", *methods], *([name, *map(_mean, values)] for name, values in measured(methods).items())])


def _mean(value: Data) -> str:
    return _number(value["mean"]) + (f" ± {_number(value['deviation'])}" if value["deviation"] is not None else "")


def _number(value: float) -> str:
    return f"{value:.1f}" if abs(value) >= 100 else f"{value:.3f}"


def _differences(differences: Mapping[str, Mapping[str, Data]]) -> str:
    names = list(next(iter(differences.values())))
    rows = [[name, *(_difference(Difference(**method[name])) for method in differences.values())] for name in names]
    return table([["", *differences], *rows])


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
