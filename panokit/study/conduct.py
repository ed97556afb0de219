"""A study from its plan to its numbers: every picture is a file named by what made it, so it goes on where it was stopped."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from itertools import islice
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
from panokit.study.cost import costs
from panokit.study.measures import FEWEST, Features, apart, batch, crops, fid, kid, made, over, pixels, seam
from panokit.study.page import page
from panokit.study.plan import Job, Study
from panokit.study.references import Window, given, grouped
from panokit.study.report import markdown
from panokit.study.statistics import paired

Numbers = dict[str, Any]


def conduct(study: Study, out: Path, runtime: Mapping[str, Any]) -> Numbers | None:
    """Make what is missing of a study's pictures, measure them, and write `numbers.json`, `report.md` and `report.html`.

    All ranks make pictures; the first one measures them, and the others have none of the numbers.

    Raises:
        PanokitError: a method cannot be, a network cannot be loaded, the folder holds another study, or there are fewer
            pictures than a measure needs.
    """
    worker = Worker(runtime)
    for method in study.methods:
        check(study.jobs(method)[0], worker, Output())
    sampler, *_ = worker.prepared(study.jobs(next(iter(study.methods)))[0])
    high, wide = (cells * sampler.model.factor for cells in sampler.model.denoiser.window)
    networks: list[_Networks] = []  # before hours of work; of the first rank alone
    worker.runtime.first(lambda: networks.append(_Networks(study)))
    own = worker.runtime.first(lambda: given(study.reference_folder, (high, wide)) if study.reference_folder else [])
    _enough(study, (high, wide), own)
    worker.runtime.first(lambda: _hold(study, out))
    made_from = {out / "references": [] if own else study.reference_jobs((high, wide))}
    made_from |= {out / "panoramas" / _slug(method): study.jobs(method) for method in study.methods}
    references, *panoramas = _painted(made_from, worker)
    taken = _costs(study, out, worker) if study.timings else {}
    if worker.runtime.rank != 0:
        return None
    grid = sampler.grid(study.height, study.width, study.stride)
    measure = _Measures(study, out, (high, wide), networks[0].to(worker.runtime.device))
    paths = dict(zip(study.methods, panoramas, strict=True))
    rows = {
        method: [
            {**measure.told(path, prompt), "seam": seam(pixels(path), grid, sampler.model.factor)}
            for path, (prompt, _) in zip(found, study.pairs(), strict=True)
        ]
        for method, found in paths.items()
    }
    numbers: Numbers = {
        "study": study.as_data(),
        "versions": {name: version(name) for name in ("panokit", "torch", "diffusers", "torchmetrics")},
        "methods": {
            method: {"n": len(found), "means": over(found, np.mean), "deviations": over(found, np.std)}
            for method, found in rows.items()
        },
        "differences": {base: {} for base, _ in study.compared()},
        "costs": taken,
    }
    for base, method in study.compared() if len(study.pairs()) > 1 else ():
        numbers["differences"][base][method] = {
            name: paired([row[name] for row in rows[method]], [row[name] for row in rows[base]])._asdict()
            for name in rows[base][0]
        }
    for name in study.features:
        measure.distances(name, paths, own or references, numbers)
    _write(out / "numbers.json", json.dumps(numbers, indent=1))
    _write(out / "report.md", markdown(numbers))
    _write(out / "report.html", page(numbers, paths, study.pairs()))
    return numbers


def _enough(study: Study, window: Window, own: Sequence[Path]) -> None:
    """Raise a SettingError if there will be fewer pictures than measures need."""
    squares = study.width * window[0] // (study.height * window[1])
    if squares < 1:
        raise SettingError(
            f"panoramas of {study.width} x {study.height} pixels hold no square of full height to measure: make them wider"
        )
    count = study.panoramas * squares
    beside = min(map(len, grouped(study.prompts, own).values())) if own else study.references
    if study.features and min(count, beside) < FEWEST:
        raise SettingError(
            f"KID needs {FEWEST} squares and {FEWEST} references of each prompt or more: {study.panoramas} panoramas with "
            f"{squares} squares each are {count}, and there are {beside} references; ask for more, or leave out features"
        )


def _hold(study: Study, out: Path) -> None:
    """Make the folder this study's, if it is not another one's."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as cause:
        raise SettingError(f"{out} cannot be made: {cause.strerror}; name another folder") from cause
    kept = out / "study.json"
    mine = json.loads(json.dumps(study.as_data()))
    if kept.exists():
        # More of the same, and other measures of it, are the same study.
        free = (
            "panoramas",
            "references",
            "reference_folder",
            "features",
            "scores",
            "wholes",
            "methods",
            "baselines",
            "timings",
            "sweep",
        )
        theirs = json.loads(kept.read_text(encoding="utf-8"))
        one, two = ({key: value for key, value in each.items() if key not in free} for each in (mine, theirs))
        if found := differences(one, two):
            raise SettingError(
                f"{out} holds the results of another study: here and there {'; '.join(found[:6])}; name another folder"
            )
    _write(kept, json.dumps(mine, indent=1))


def _painted(made_from: Mapping[Path, Sequence[Job]], worker: Worker) -> list[list[Path]]:
    """The pictures of jobs, folder by folder, made where they are not there."""
    worker.runtime.first(lambda: _made_folders(made_from))
    outputs = [Output(out=f"{folder}/", jobs=True) for folder in made_from]
    jobs = [(job, output) for each, output in zip(made_from.values(), outputs, strict=True) for job in each]
    paths = [check(job, worker, output) for job, output in jobs]
    missing = worker.runtime.first(lambda: [k for k, path in enumerate(paths) if not path.exists()])
    if missing and paint_all([jobs[k][0] for k in missing], worker, [jobs[k][1] for k in missing]):
        where = next(note for folder in made_from for note in folder.glob("*.error.txt"))
        raise SettingError(f"pictures of the study could not be made: {where} and others like it say why")
    rest = iter(paths)
    return [[*islice(rest, len(each))] for each in made_from.values()]


def _made_folders(folders: Iterable[Path]) -> None:
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)


def _costs(study: Study, out: Path, worker: Worker) -> dict[str, dict[str, Any]]:
    """What a panorama of each method costs, kept by what it is made from."""
    jobs = {method: study.jobs(method)[0] for method in study.methods}
    keys = {method: check(job, worker, Output(out=f"{out}/")).stem for method, job in jobs.items()}
    path = out / "costs.json"
    kept = worker.runtime.first(lambda: json.loads(path.read_text(encoding="utf-8")) if path.exists() else {})
    if not keys.items() <= {method: each["of"] for method, each in kept.items()}.items():  # all anew: they are compared
        found = costs([*jobs.values()], worker, study.timings)
        kept = {
            method: {"of": keys[method], "rounds": max(study.timings, worker.runtime.world_size), **cost._asdict()}
            for method, cost in zip(jobs, found, strict=True)
        }
        worker.runtime.first(lambda: _write(path, json.dumps(kept, indent=1)))
    return {method: kept[method] for method in study.methods}


@final
class _Networks:
    """What a study measures with."""

    def __init__(self, study: Study) -> None:
        self.features = {name: made(network) for name, network in study.features.items()}
        self.scores = {name: made(network) for name, network in study.scores.items()}
        self.wholes = [made(network) for network in study.wholes]

    def to(self, device: torch.device) -> "_Networks":
        """The same there, as far as they are networks."""
        for each in (*self.features.values(), *self.scores.values()):
            if isinstance(each, torch.nn.Module):
                each.eval().to(device)
        self.device = device
        return self


@final
class _Measures:
    """What is told of pictures; of each by itself it is kept."""

    def __init__(self, study: Study, out: Path, window: Window, networks: _Networks) -> None:
        self._study, self._out, self._window, self._networks = study, out, window, networks
        self._key = json.dumps([*study.scores.items(), *study.wholes])
        (out / "told").mkdir(exist_ok=True)

    def told(self, path: Path, prompt: str) -> dict[str, float]:
        """The numbers of one panorama."""
        kept = self._out / "told" / f"{path.parent.name}-{path.stem}.json"
        if kept.exists():
            said = json.loads(kept.read_text(encoding="utf-8"))
            if said["key"] == self._key:
                return dict(said["numbers"])
        picture = pixels(path)
        squares = batch(crops(picture, self._window)).to(self._networks.device)
        numbers = {name: float(score(squares, prompt).mean()) for name, score in self._networks.scores.items()}
        for whole in self._networks.wholes:
            numbers |= {name: float(number) for name, number in whole(picture, prompt).items()}
        _write(kept, json.dumps({"key": self._key, "numbers": numbers}))
        return numbers

    def distances(
        self, name: str, panoramas: Mapping[str, Sequence[Path]], references: Sequence[Path], numbers: Numbers
    ) -> None:
        """Distances to the references, in one network's features."""
        network = json.dumps(self._study.features[name])
        features = Features(
            self._networks.features[name], self._out / "features" / _slug(f"{name} {network}"), self._networks.device
        )
        prompts = [*self._study.prompts]
        beside = grouped(prompts, references)
        reference = [torch.cat([features.of(path, pixels(path)[None]) for path in beside[prompt]]) for prompt in prompts]
        own = {method: self._by_prompt(features, paths) for method, paths in panoramas.items()}
        every = torch.cat([features.of(path, pixels(path)[None]) for path in references])
        for method, found in own.items():
            told, squares = numbers["methods"][method], [torch.cat(each) for each in found]
            told[f"KID, {name}"] = kid(squares, reference)._asdict()
            told[f"FID, {name}"] = fid(torch.cat(squares), every)
            told["crops"] = len(torch.cat(squares))
        for base, method in self._study.compared() if self._study.panoramas > 1 else ():
            low, high = np.percentile(apart(own[method], own[base], reference), [2.5, 97.5])
            ours, theirs = (numbers["methods"][each][f"KID, {name}"]["mean"] for each in (method, base))
            apart_by = {"mean": ours - theirs, "low": float(low), "high": float(high)}
            numbers["differences"][base][method][f"KID, {name}"] = apart_by

    def _by_prompt(self, features: Features, paths: Sequence[Path]) -> list[list[Tensor]]:
        """Features of panoramas' squares, prompt by prompt."""
        seeds = self._study.panoramas
        found = [features.of(path, crops(pixels(path), self._window)) for path in paths]
        return [found[start : start + seeds] for start in range(0, len(found), seeds)]


def _slug(name: str) -> str:
    return re.sub(r"[^\w.]+", "-", name.lower()).strip("-")


def _write(path: Path, text: str) -> None:
    with written_aside(path) as aside:
        aside.write_text(text + "\n", encoding="utf-8")
