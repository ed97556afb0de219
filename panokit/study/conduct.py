"""A study from its plan to its numbers: every picture is a file named by what made it, so it goes on where it was stopped."""

import json
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from panokit.errors import SettingError
from panokit.jobs import Worker
from panokit.painting import Output, check, paint_all
from panokit.panorama import written_aside
from panokit.recipe import differences
from panokit.study.measures import Features, apart, crops, fid, grain, kid, made, over, pixels, seam
from panokit.study.page import page
from panokit.study.plan import Job, Study
from panokit.study.report import markdown
from panokit.study.statistics import paired

Numbers = dict[str, Any]


def conduct(study: Study, out: Path, runtime: Mapping[str, Any]) -> Numbers | None:
    """Make what is missing of a study's pictures, measure them, and write `numbers.json`, `report.md` and `report.html`.

    All ranks make pictures; the first one measures them, and the others have none of the numbers.

    Raises:
        SettingError: the folder holds another study, or there are fewer pictures than a measure needs.
    """
    worker = Worker(runtime)
    for method in study.methods:
        check(study.jobs(method)[0], worker, Output())
    _hold(study, out)
    sampler, *_ = worker.prepared(study.jobs(next(iter(study.methods)))[0])
    high, wide = (cells * sampler.model.factor for cells in sampler.model.denoiser.window)
    references = _painted(study.reference_jobs((high, wide)), out / "references", worker)
    panoramas = {method: _painted(study.jobs(method), out / "panoramas" / _slug(method), worker) for method in study.methods}
    if worker.runtime.rank != 0:
        return None
    grid = sampler.grid(study.height, study.width, study.stride)
    tell = _Tells(study, out, (high, wide))
    rows = {
        method: [
            {**tell.of(path, prompt), "seam": seam(pixels(path), grid, sampler.model.factor), "grain": grain(pixels(path))}
            for path, (prompt, _) in zip(paths, study.pairs(), strict=True)
        ]
        for method, paths in panoramas.items()
    }
    numbers: Numbers = {
        "study": study.as_data(),
        "versions": {name: version(name) for name in ("panokit", "torch", "diffusers", "torchmetrics")},
        "methods": {
            method: {"n": len(found), "means": over(found, np.mean), "deviations": over(found, np.std)}
            for method, found in rows.items()
        },
        "differences": {},
    }
    base = next(iter(study.methods))
    for method, found in rows.items():
        if method != base and len(found) > 1:
            numbers["differences"][method] = {
                name: paired([row[name] for row in found], [row[name] for row in rows[base]])._asdict() for name in found[0]
            }
    for name, source in study.features.items():
        _distances(name, Features(source, out / "features" / _slug(name)), panoramas, references, (high, wide), numbers)
    _write(out / "numbers.json", json.dumps(numbers, indent=1))
    _write(out / "report.md", markdown(numbers))
    _write(out / "report.html", page(numbers, panoramas, study.pairs()))
    return numbers


def _hold(study: Study, out: Path) -> None:
    """Make the folder this study's, if it is not another one's."""
    out.mkdir(parents=True, exist_ok=True)
    kept = out / "study.json"
    mine = json.loads(json.dumps(study.as_data()))
    if not kept.exists():
        _write(kept, json.dumps(mine, indent=1))
        return
    # More of the same, and other measures of it, are the same study.
    free = ("panoramas", "references", "features", "similarity", "layout", "methods", "sweep")
    theirs = json.loads(kept.read_text(encoding="utf-8"))
    one, two = ({key: value for key, value in each.items() if key not in free} for each in (mine, theirs))
    if found := differences(one, two):
        raise SettingError(
            f"{out} holds the results of another study: here and there {'; '.join(found[:6])}; name another folder"
        )
    _write(kept, json.dumps(mine, indent=1))


def _painted(jobs: Sequence[Job], folder: Path, worker: Worker) -> list[Path]:
    """The pictures of jobs, made where they are not there."""
    folder.mkdir(parents=True, exist_ok=True)
    output = Output(out=f"{folder}/", jobs=True, quiet=False)
    paths = [check(job, worker, output) for job in jobs]
    if not all(path.exists() for path in paths) and paint_all(jobs, worker, output):
        raise SettingError(f"pictures of the study could not be made: {folder} says why, in *.error.txt")
    return paths


@final
class _Tells:
    """What is told of each panorama by itself, and kept."""

    def __init__(self, study: Study, out: Path, window: tuple[int, int]) -> None:
        self._folder, self._window = out / "told", window
        self._folder.mkdir(parents=True, exist_ok=True)
        self._similar = {name: made(source) for name, source in study.similarity.items()}
        self._layout = made(study.layout) if study.layout else None
        self._key = json.dumps([*study.similarity.items(), study.layout])

    def of(self, path: Path, prompt: str) -> dict[str, float]:
        """The numbers of one panorama."""
        kept = self._folder / f"{path.parent.name}-{path.stem}.json"
        if kept.exists():
            said = json.loads(kept.read_text(encoding="utf-8"))
            if said["key"] == self._key:
                return dict(said["numbers"])
        picture = pixels(path)
        cut = torch.from_numpy(crops(picture, self._window)).permute(0, 3, 1, 2)
        numbers = {f"similarity, {name}": float(score(cut, prompt).mean()) for name, score in self._similar.items()}
        if self._layout:
            layout = self._layout(picture)
            numbers |= {"stacked horizons": max(0.0, layout.horizons - 1), "lights": float(layout.lights)}
        _write(kept, json.dumps({"key": self._key, "numbers": numbers}))
        return numbers


def _distances(
    name: str,
    features: Features,
    panoramas: Mapping[str, Sequence[Path]],
    references: Sequence[Path],
    window: tuple[int, int],
    numbers: Numbers,
) -> None:
    """Distances to the model's own pictures, in one network's features."""
    reference = torch.cat([features.of(path, pixels(path)[None]) for path in references])
    own: dict[str, list[Tensor]] = {
        method: [features.of(path, crops(pixels(path), window)) for path in paths] for method, paths in panoramas.items()
    }
    base, first = next(iter(own.items()))
    for method, found in own.items():
        told = numbers["methods"][method]
        told[f"KID, {name}"] = kid(torch.cat(found), reference)._asdict()
        told[f"FID, {name}"] = fid(torch.cat(found), reference)
        told["crops"] = len(torch.cat(found))
        if method != base and len(found) > 1:
            differences = apart(found, first, reference)
            low, high = np.percentile(differences, [2.5, 97.5])
            numbers["differences"][method][f"KID, {name}"] = {
                "mean": float(differences.mean()),
                "low": float(low),
                "high": float(high),
            }


def _slug(name: str) -> str:
    return re.sub(r"[^\w.]+", "-", name.lower()).strip("-")


def _write(path: Path, text: str) -> None:
    with written_aside(path) as aside:
        aside.write_text(text + "\n", encoding="utf-8")
