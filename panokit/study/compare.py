"""From numbers of pictures to numbers of methods: means, distances to the references, and differences."""

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
    rows = {method: [evidence.numbers(picture) for picture in pictures] for method, pictures in shown.items()}
    found_by = {name: _distances(study, evidence, name, shown, references) for name in study.features}
    kernel = {name: subsets for name, (subsets, _) in found_by.items()}
    numbers: Numbers = {
        "study": study.as_data(),
        "versions": {name: version(name) for name in ("panokit", "torch", "diffusers", "torchmetrics")},
        "methods": {},
        "differences": {base: {} for base, _ in study.compared()},
    }
    spread = study.panoramas >= 2 * FEWEST  # of fewer there are no halves
    for method, measured in rows.items():
        distances = {
            f"KID, {name}": {"mean": float(kid_of[method].mean()), "deviation": float(kid_of[method].std()) if spread else None}
            for name, kid_of in kernel.items()
        }
        distances |= {f"FID, {name}": {"mean": frechet[method], "deviation": None} for name, (_, frechet) in found_by.items()}
        scores = {name: [row[name] for row in measured] for name in measured[0]}
        numbers["methods"][method] = {
            "n": len(measured),
            "distances": distances,
            "scores": {
                name: {"mean": float(np.mean(score)), "deviation": float(np.std(score))} for name, score in scores.items()
            },
        }
    for base, method in study.compared() if len(study.pairs()) > 1 else ():
        apart = {f"KID, {name}": interval(kid_of[method] - kid_of[base]) for name, kid_of in kernel.items()} if spread else {}
        apart |= {
            name: paired([row[name] for row in rows[method]], [row[name] for row in rows[base]]) for name in rows[base][0]
        }
        numbers["differences"][base][method] = {name: difference._asdict() for name, difference in apart.items()}
    return numbers


def _distances(
    study: Study,
    evidence: Evidence,
    name: str,
    shown: Mapping[str, Sequence[Shown]],
    references: Mapping[str, Sequence[Path]],
) -> tuple[Subsets, Mapping[str, float]]:
    """The kernel distance of each method on subsets, and the Frechet distance of all its squares, in one network's features."""
    known = {path: evidence.reference(name, path) for paths in references.values() for path in paths}
    beside = [torch.cat([known[path] for path in references[prompt]]) for prompt in study.prompts]
    whole = torch.cat([*known.values()])
    starts = range(0, len(study.pairs()), study.panoramas)
    features = {method: [evidence.squares(name, picture.path) for picture in pictures] for method, pictures in shown.items()}
    kernel = {
        method: kid([squares[start : start + study.panoramas] for start in starts], beside)
        for method, squares in features.items()
    }
    return kernel, {method: fid(torch.cat(squares), whole) for method, squares in features.items()}
