"""Compares methods by the measurements of their pictures: means, distances to the references, and differences."""

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
from panokit.study.statistics import Difference, interval, paired

Numbers = dict[str, Any]
Subsets = Mapping[str, NDArray[np.float64]]


def compare(
    study: Study, evidence: Evidence, shown: Mapping[str, Sequence[Shown]], references: Mapping[str, Sequence[Path]]
) -> Numbers:
    """Compare the methods of a study.

    Args:
        study: the study.
        evidence: the measurements of each picture.
        shown: the panoramas of each method, in the order of `study.pairs()`.
        references: the reference pictures of each prompt.

    Returns:
        The numbers as plain data: the study, the versions of libraries, the means of each method, and for each baseline the
        differences of the methods after it.

    Raises:
        SettingError: KID or FID needs more pictures.
    """
    rows = {method: [evidence.numbers(picture) for picture in pictures] for method, pictures in shown.items()}
    distances_by = {name: _distances(study, evidence, name, shown, references) for name in study.features}
    kernel = {name: subsets for name, (subsets, _) in distances_by.items()}
    numbers: Numbers = {
        "study": study.as_data(),
        "versions": {name: version(name) for name in ("panokit", "torch", "diffusers", "torchmetrics")},
        "methods": {},
        "differences": {base: {} for base, _ in study.compared()},
    }
    spread = study.panoramas >= 2 * FEWEST  # KID needs halves that are large enough
    for method, measured in rows.items():
        distances = {
            f"KID, {name}": _spread(kid_of[method], interval(kid_of[method])) if spread else _single(kid_of[method].mean())
            for name, kid_of in kernel.items()
        }
        distances |= {f"FID, {name}": _single(frechet[method]) for name, (_, frechet) in distances_by.items()}
        scores = {name: [row[name] for row in measured] for name in measured[0]}
        numbers["methods"][method] = {
            "n": len(measured),
            "distances": distances,
            "scores": {
                name: _spread(score, paired(score, np.zeros(len(score)))) if len(score) > 1 else _single(score[0])
                for name, score in scores.items()
            },
        }
    for base, method in study.compared() if len(study.pairs()) > 1 else ():
        differences = (
            {f"KID, {name}": interval(kid_of[method] - kid_of[base]) for name, kid_of in kernel.items()} if spread else {}
        )
        differences |= {
            name: paired([row[name] for row in rows[method]], [row[name] for row in rows[base]]) for name in rows[base][0]
        }
        numbers["differences"][base][method] = {name: difference._asdict() for name, difference in differences.items()}
    return numbers


def _single(value: float) -> Numbers:
    """A number without a deviation."""
    return {"mean": float(value), "deviation": None, "low": None, "high": None}


def _spread(values: Sequence[float] | NDArray[np.float64], interval: Difference) -> Numbers:
    """The mean of numbers, with their deviation and the 95 % interval of the mean."""
    return {"mean": float(np.mean(values)), "deviation": float(np.std(values)), "low": interval.low, "high": interval.high}


def _distances(
    study: Study,
    evidence: Evidence,
    name: str,
    shown: Mapping[str, Sequence[Shown]],
    references: Mapping[str, Sequence[Path]],
) -> tuple[Subsets, Mapping[str, float]]:
    """Compute KID and FID of each method, in the features of one network.

    Returns:
        KID on each subset, by method; and FID of all squares, by method.
    """
    reference_features = {path: evidence.reference(name, path) for paths in references.values() for path in paths}
    by_prompt = [torch.cat([reference_features[path] for path in references[prompt]]) for prompt in study.prompts]
    together = torch.cat([*reference_features.values()])
    starts = range(0, len(study.pairs()), study.panoramas)
    features = {method: [evidence.squares(name, picture.path) for picture in pictures] for method, pictures in shown.items()}
    kernel = {
        method: kid([squares[start : start + study.panoramas] for start in starts], by_prompt)
        for method, squares in features.items()
    }
    return kernel, {method: fid(torch.cat(squares), together) for method, squares in features.items()}
