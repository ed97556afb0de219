"""From what is told of each picture to what is told of methods: means, distances to the references, and differences."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from panokit.study.evidence import Evidence, Shown
from panokit.study.measures import FEWEST, fid, kid
from panokit.study.plan import Study
from panokit.study.statistics import interval, paired

Numbers = dict[str, Any]
Subsets = Mapping[str, NDArray[np.float64]]


def compare(
    study: Study, evidence: Evidence, shown: Mapping[str, Sequence[Shown]], references: Mapping[str, Sequence[Path]]
) -> Numbers:
    """The numbers of a study, as plain data.

    Args:
        study: what is compared.
        evidence: what is told of each picture.
        shown: panoramas by method, in the order of the study's pairs.
        references: what each prompt is compared with.
    """
    rows = {method: [evidence.numbers(each) for each in found] for method, found in shown.items()}
    found_by = {name: _distances(study, evidence, name, shown, references) for name in study.features}
    kernel = {name: subsets for name, (subsets, _) in found_by.items()}
    numbers: Numbers = {
        "study": study.as_data(),
        "versions": {name: version(name) for name in ("panokit", "torch", "diffusers", "torchmetrics")},
        "methods": {},
        "differences": {base: {} for base, _ in study.compared()},
    }
    spread = study.panoramas >= 2 * FEWEST  # of fewer there are no halves
    for method, found in rows.items():
        distances = {
            f"KID, {name}": {"mean": float(each[method].mean()), "deviation": float(each[method].std()) if spread else None}
            for name, each in kernel.items()
        }
        distances |= {f"FID, {name}": {"mean": frechet[method], "deviation": None} for name, (_, frechet) in found_by.items()}
        scores = {name: [row[name] for row in found] for name in found[0]}
        numbers["methods"][method] = {
            "n": len(found),
            "distances": distances,
            "scores": {name: {"mean": float(np.mean(each)), "deviation": float(np.std(each))} for name, each in scores.items()},
        }
    for base, method in study.compared() if len(study.pairs()) > 1 else ():
        apart = {f"KID, {name}": interval(each[method] - each[base]) for name, each in kernel.items()} if spread else {}
        apart |= {
            name: paired([row[name] for row in rows[method]], [row[name] for row in rows[base]]) for name in rows[base][0]
        }
        numbers["differences"][base][method] = {name: each._asdict() for name, each in apart.items()}
    return numbers


def _distances(
    study: Study,
    evidence: Evidence,
    name: str,
    shown: Mapping[str, Sequence[Shown]],
    references: Mapping[str, Sequence[Path]],
) -> tuple[Subsets, Mapping[str, float]]:
    """The kernel distance of each method on subsets, and the Frechet distance of all its squares, in one network's features."""
    known = {path: evidence.reference(name, path) for each in references.values() for path in each}
    beside = [torch.cat([known[path] for path in references[prompt]]) for prompt in study.prompts]
    whole = torch.cat([*known.values()])
    starts = range(0, len(study.pairs()), study.panoramas)
    found = {method: [evidence.squares(name, each.path) for each in every] for method, every in shown.items()}
    kernel = {
        method: kid([squares[start : start + study.panoramas] for start in starts], beside) for method, squares in found.items()
    }
    return kernel, {method: fid(torch.cat(squares), whole) for method, squares in found.items()}
