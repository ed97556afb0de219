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
    kernel = {name: _kernel(study, evidence, name, shown, references) for name in study.features}
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
        distances |= {
            f"FID, {name}": {"mean": _frechet(evidence, name, shown[method], references), "deviation": None}
            for name in study.features
        }
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


def _kernel(
    study: Study,
    evidence: Evidence,
    name: str,
    shown: Mapping[str, Sequence[Shown]],
    references: Mapping[str, Sequence[Path]],
) -> Subsets:
    """The kernel distance of each method on subsets, in one network's features."""
    beside = [torch.cat([evidence.reference(name, path) for path in references[prompt]]) for prompt in study.prompts]
    starts = range(0, len(study.pairs()), study.panoramas)
    found = {method: [evidence.squares(name, each.path) for each in every] for method, every in shown.items()}
    return {
        method: kid([squares[start : start + study.panoramas] for start in starts], beside) for method, squares in found.items()
    }


def _frechet(evidence: Evidence, name: str, shown: Sequence[Shown], references: Mapping[str, Sequence[Path]]) -> float:
    """The Frechet distance of all squares of a method, in one network's features."""
    paths = dict.fromkeys(path for each in references.values() for path in each)
    own = torch.cat([evidence.squares(name, each.path) for each in shown])
    return fid(own, torch.cat([evidence.reference(name, path) for path in paths]))
