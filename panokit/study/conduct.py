"""A study from its plan to its numbers: every picture is a file named by what made it, so it goes on where it was stopped."""

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from panokit.errors import SettingError
from panokit.grid import Grid
from panokit.jobs import Worker
from panokit.painting import Output, check, paint_all
from panokit.recipe import differences
from panokit.study.cost import costs
from panokit.study.evidence import Evidence, Networks, Shown, make_folders, read_json, write
from panokit.study.measures import FEWEST, fid, kid
from panokit.study.page import page
from panokit.study.plan import Job, Study, slug
from panokit.study.references import given, grouped
from panokit.study.report import markdown
from panokit.study.statistics import interval, paired

Numbers = dict[str, Any]


class _Method(NamedTuple):
    """A method's panoramas, in the order of the study's pairs, and where their windows lie."""

    paths: list[Path]
    grid: Grid


def conduct(study: Study, out: Path, runtime: Mapping[str, Any]) -> Numbers | None:
    """Make what is missing of a study's pictures, measure them, and write `numbers.json`, `report.md` and `report.html`.

    All ranks make pictures and measure them; the first one compares, and the others have none of the numbers.

    Raises:
        PanokitError: a method cannot be, a network cannot be loaded, the folder holds another study, or there are fewer
            pictures than a measure needs.
    """
    worker = Worker(runtime)
    grids = {method: _checked(study.jobs(method)[0], worker) for method in study.methods}
    sampler, *_ = worker.prepared(study.jobs(next(iter(study.methods)))[0])
    window = (sampler.model.denoiser.window[0] * sampler.model.factor, sampler.model.denoiser.window[1] * sampler.model.factor)
    networks = worker.runtime.together(lambda: Networks(study, window))  # before hours of work
    own = worker.runtime.first(lambda: given(study.reference_folder, window) if study.reference_folder else [])
    _enough(study, own)
    worker.runtime.first(lambda: _hold(study, out))
    wanted = {out / "references": study.reference_jobs(window) if study.features and not own else []}
    wanted |= {out / "panoramas" / slug(method): study.jobs(method) for method in study.methods}
    made, *panoramas = _painted(wanted, worker)
    seeds = study.references
    beside = grouped(study.prompts, own) if own else {p: made[k * seeds : (k + 1) * seeds] for k, p in enumerate(study.prompts)}
    taken = _costs(study, out, worker) if study.timings else {}
    methods = {method: _Method(paths, grids[method]) for method, paths in zip(study.methods, panoramas, strict=True)}
    networks.to(worker.runtime.device)
    evidence = Evidence(study, out, window, networks, sampler.model.factor, worker.runtime)
    shown = {
        method: [Shown(path, prompt, each.grid) for path, (prompt, _) in zip(each.paths, study.pairs(), strict=True)]
        for method, each in methods.items()
    }
    every = [*dict.fromkeys(path for paths in beside.values() for path in paths)]
    evidence.gather([each for found in shown.values() for each in found], every)
    if worker.runtime.rank != 0:
        return None
    rows = {method: [evidence.numbers(each) for each in found] for method, found in shown.items()}
    kernel: dict[str, dict[str, NDArray[np.float64]]] = {}
    frechet: dict[str, dict[str, float]] = {}
    for name in study.features:
        reference = {prompt: torch.cat([evidence.reference(name, path) for path in beside[prompt]]) for prompt in study.prompts}
        squares = {method: [evidence.squares(name, path) for path in each.paths] for method, each in methods.items()}
        kernel[name] = {method: kid(_by_prompt(study, found), [*reference.values()]) for method, found in squares.items()}
        whole = torch.cat([evidence.reference(name, path) for path in every])
        frechet[name] = {method: fid(torch.cat(found), whole) for method, found in squares.items()}
    numbers = _compared(study, rows, kernel, frechet) | {"costs": taken}
    write(out / "numbers.json", json.dumps(numbers, indent=1) + "\n")
    write(out / "report.md", markdown(numbers))
    write(out / "report.html", page(numbers, {method: each.paths for method, each in methods.items()}, study.pairs()))
    return numbers


def _compared(
    study: Study,
    rows: Mapping[str, Sequence[Mapping[str, float]]],
    kernel: Mapping[str, Mapping[str, NDArray[np.float64]]],
    frechet: Mapping[str, Mapping[str, float]],
) -> Numbers:
    """Means of each method, and differences from the baselines."""
    spread = study.panoramas >= 2 * FEWEST
    numbers: Numbers = {
        "study": study.as_data(),
        "versions": {name: version(name) for name in ("panokit", "torch", "diffusers", "torchmetrics")},
        "methods": {},
        "differences": {base: {} for base, _ in study.compared()},
    }
    for method, found in rows.items():
        distances = {
            f"KID, {name}": {"mean": float(each[method].mean()), "deviation": float(each[method].std()) if spread else None}
            for name, each in kernel.items()
        }
        distances |= {f"FID, {name}": {"mean": each[method], "deviation": None} for name, each in frechet.items()}
        numbers["methods"][method] = {
            "n": len(found),
            "distances": distances,
            "scores": {
                name: {"mean": float(np.mean(values)), "deviation": float(np.std(values))}
                for name in found[0]
                for values in [[row[name] for row in found]]
            },
        }
    for base, method in study.compared() if len(study.pairs()) > 1 else ():
        apart = {f"KID, {name}": interval(each[method] - each[base]) for name, each in kernel.items()} if spread else {}
        apart |= {
            name: paired([row[name] for row in rows[method]], [row[name] for row in rows[base]]) for name in rows[base][0]
        }
        numbers["differences"][base][method] = {name: each._asdict() for name, each in apart.items()}
    return numbers


def _by_prompt(study: Study, found: Sequence[torch.Tensor]) -> list[Sequence[torch.Tensor]]:
    """What there is of each pair, prompt by prompt."""
    return [found[start : start + study.panoramas] for start in range(0, len(found), study.panoramas)]


def _checked(job: Job, worker: Worker) -> Grid:
    """Where the windows of a job lie, if it can be."""
    check(job, worker, Output())
    sampler, _, settings = worker.prepared(job)
    return sampler.grid(settings["height"], settings["width"], settings.get("stride"), settings.get("wrap", False))


def _enough(study: Study, own: Sequence[Path]) -> None:
    """Raise a SettingError if there will be fewer pictures than measures need."""
    beside = min(map(len, grouped(study.prompts, own).values())) if own else study.references
    if study.features and min(study.panoramas, beside) < FEWEST:
        raise SettingError(
            f"KID needs {FEWEST} panoramas and {FEWEST} references of each prompt or more: there are {study.panoramas} and "
            f"{beside}; ask for more, or leave out features"
        )


def _hold(study: Study, out: Path) -> None:
    """Make the folder this study's, if it is not another one's."""
    make_folders(out)
    kept = out / "study.json"
    mine = json.loads(json.dumps(study.as_data()))
    if kept.exists():
        theirs = read_json(kept)
        if not isinstance(theirs, dict):
            raise SettingError(f"{kept} cannot be read, so {out} may hold another study: name another folder, or remove it")
        # More of the same, and other measures of it, are the same study.
        same = ("prompts", "model", "height", "width", "steps", "stride", "guidance_scale", "seed")
        one, two = ({key: each.get(key) for key in same} for each in (mine, theirs))
        if found := differences(one, two):
            raise SettingError(
                f"{out} holds the results of another study: here and there {'; '.join(found[:6])}; name another folder"
            )
    write(kept, json.dumps(mine, indent=1) + "\n")


def _painted(wanted: Mapping[Path, Sequence[Job]], worker: Worker) -> list[list[Path]]:
    """The pictures of jobs, folder by folder, made where they are not there."""
    worker.runtime.first(lambda: make_folders(*wanted))
    jobs: list[tuple[Job, Output]] = []
    paths: list[Path] = []
    for folder, each in wanted.items():
        output = Output(out=f"{folder}/", jobs=True)
        jobs += [(job, output) for job in each]
        paths += _named(each, output, worker)
    missing = worker.runtime.first(lambda: [k for k, path in enumerate(paths) if not path.exists()])
    if missing and paint_all([jobs[k][0] for k in missing], worker, [jobs[k][1] for k in missing]):
        raise SettingError("pictures of the study could not be made: the *.error.txt where they were to be say why")
    rest = iter(paths)
    return [[*islice(rest, len(each))] for each in wanted.values()]


def _named(jobs: Sequence[Job], output: Output, worker: Worker) -> list[Path]:
    """The files of jobs that differ in prompt and seed alone."""
    if not jobs:
        return []
    check(jobs[0], worker, output)
    sampler, _, settings = worker.prepared(jobs[0])
    return [output.path(sampler.recipe(job["prompt"], **{**settings, "seed": job["seed"]})) for job in jobs]


def _costs(study: Study, out: Path, worker: Worker) -> dict[str, dict[str, Any]]:
    """What a panorama of each method costs, kept by what it is made from, where, and how often."""
    jobs = {method: study.jobs(method)[0] for method in study.methods}
    rounds = max(study.timings, worker.runtime.world_size)
    where = worker.runtime.device.type
    keys = {method: f"{_named([job], Output(), worker)[0].stem}, {where}, {rounds}" for method, job in jobs.items()}
    path = out / "costs.json"
    kept = worker.runtime.first(lambda: read_json(path))
    if not isinstance(kept, dict) or any(kept.get(method, {}).get("of") != key for method, key in keys.items()):
        if worker.runtime.writes:
            print(f"costs of {len(jobs)} methods, {rounds} times in turns", flush=True)
        found = costs([*jobs.values()], worker, rounds)  # all anew: they are compared
        kept = {
            method: {"of": keys[method], "rounds": rounds, **cost._asdict()} for method, cost in zip(jobs, found, strict=True)
        }
        worker.runtime.first(lambda: write(path, json.dumps(kept, indent=1) + "\n"))
    return {method: kept[method] for method in study.methods}
