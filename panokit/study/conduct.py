"""Conducts a study, from its plan to its report. Files keep every picture and result, so a stopped study continues."""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from panokit.errors import SettingError
from panokit.jobs import Worker
from panokit.output import Output
from panokit.painting import Task, paint_all, prepare
from panokit.plain import differences
from panokit.recipe import name_of
from panokit.study.compare import Numbers, compare
from panokit.study.cost import costs
from panokit.study.evidence import Evidence, Networks, Shown, make_folders, read_json, write
from panokit.study.measures import FEWEST
from panokit.study.page import page
from panokit.study.plan import Job, Study, slug
from panokit.study.references import given, grouped
from panokit.study.report import markdown
from panokit.windows import Windows
from panokit.wording import counted


def conduct(study: Study, out: Path, runtime: Mapping[str, Any]) -> Numbers | None:
    """Make the missing pictures of a study, measure them, and write `numbers.json`, `report.md` and `report.html`.

    All ranks make pictures and measure them. Rank 0 compares the methods and writes the report.

    Args:
        study: the study.
        out: the folder of the study. It is made if it does not exist.
        runtime: options of `Worker`, such as `devices` and `precision`.

    Returns:
        The numbers on rank 0, and None on other ranks.

    Raises:
        PanokitError: a method or a network cannot be made, the folder holds another study, or a measure needs more pictures.
    """
    worker = Worker(runtime)
    windows = {method: _windows(study.jobs(method)[0], worker) for method in study.methods}
    worker.runtime.require_same(study.as_data())  # each rank has read the file of the study
    model = worker.plan(study.jobs(next(iter(study.methods)))[0]).sampler.model
    factor, (high, wide) = model.factor, model.denoiser.window[-2:]
    window = (high * factor, wide * factor)
    networks = worker.runtime.barrier(lambda: Networks(study, window))  # before hours of work
    own = worker.runtime.broadcast(lambda: given(study.reference_folder, window) if study.reference_folder else [])
    _require_pictures(study, own)
    worker.runtime.broadcast(lambda: _claim(study, out))

    made, *panoramas = _paint(
        {
            out / "references": study.reference_jobs(window) if study.features and not own else [],
            **{out / "panoramas" / slug(method): study.jobs(method) for method in study.methods},
        },
        worker,
    )
    references = grouped(study.prompts, own) if own else dict(zip(study.prompts, _parts(made, study.references), strict=False))
    paths = dict(zip(study.methods, panoramas, strict=True))
    shown = {
        method: [Shown(path, prompt, windows[method]) for path, (prompt, _) in zip(files, study.pairs(), strict=True)]
        for method, files in paths.items()
    }
    measured_costs = _costs(study, out, worker) if study.timings else {}

    networks.to(worker.runtime.device)
    evidence = Evidence(study, out, window, networks, factor, worker.runtime)
    evidence.gather(
        [picture for pictures in shown.values() for picture in pictures],
        [path for files in references.values() for path in files],
    )
    if worker.runtime.global_rank != 0:
        return None
    numbers = {**compare(study, evidence, shown, references), "costs": measured_costs, "better": networks.better}
    write(out / "numbers.json", json.dumps(numbers, indent=1) + "\n")
    write(out / "report.md", markdown(numbers))
    write(out / "report.html", page(numbers, paths, study.pairs()))
    return numbers


def _parts(paths: Sequence[Path], count: int) -> Iterator[Sequence[Path]]:
    """Cut a list into parts of `count` items; the last part may be shorter."""
    return (paths[start : start + count] for start in range(0, len(paths), count))


def _windows(job: Job, worker: Worker) -> Windows:
    """Check that a job can be done, and return where its windows lie."""
    return worker.plan(job).check().windows


def _require_pictures(study: Study, own: Sequence[Path]) -> None:
    """Raise a SettingError if KID will have too few panoramas or references."""
    references = min(map(len, grouped(study.prompts, own).values())) if own else study.references
    if study.features and min(study.panoramas, references) < FEWEST:
        raise SettingError(
            f"KID needs at least {FEWEST} panoramas and {FEWEST} references for each prompt, but there are {study.panoramas} "
            f"and {references}: ask for more, or leave out features"
        )


def _claim(study: Study, out: Path) -> None:
    """Write the study into its folder, unless the folder holds another study."""
    make_folders(out)
    kept = out / "study.json"
    mine = json.loads(json.dumps(study.as_data()))
    if kept.exists():
        theirs = read_json(kept)
        if not isinstance(theirs, dict):
            raise SettingError(f"{kept} cannot be read, so {out} may hold another study: name another folder, or remove it")
        # Methods, measures and numbers of pictures may change: pictures that fit are used again.
        same = ("prompts", "model", "height", "width", "steps", "stride", "guidance_scale", "seed")
        one, two = ({key: data.get(key) for key in same} for data in (mine, theirs))
        if differing := differences(one, two):
            raise SettingError(
                f"{out} holds the results of another study: in this one and that one, {'; '.join(differing[:6])}; name "
                "another folder"
            )
    write(kept, json.dumps(mine, indent=1) + "\n")


def _paint(wanted: Mapping[Path, Sequence[Job]], worker: Worker) -> list[list[Path]]:
    """Make the missing pictures of jobs, and return the paths of all pictures, folder by folder."""
    worker.runtime.broadcast(lambda: make_folders(*wanted))
    tasks = [task for folder, jobs in wanted.items() for task in _tasks(jobs, Output(out=f"{folder}/", again=True), worker)]
    missing = worker.runtime.broadcast(lambda: [k for k, task in enumerate(tasks) if not task.done])
    if missing and paint_all([tasks[k] for k in missing], worker.runtime):
        raise SettingError(
            "some pictures of the study could not be made: read the *.error.txt files in its folders, which give the reasons"
        )
    rest = iter(task.path for task in tasks)
    return [[*islice(rest, len(jobs))] for jobs in wanted.values()]


def _tasks(jobs: Sequence[Job], output: Output, worker: Worker) -> list[Task]:
    """Make the tasks of jobs. The jobs differ only in prompt and seed, so the first one is checked for all."""
    if jobs:
        prepare(jobs[0], worker, output)
    plans = [worker.plan(job) for job in jobs]
    return [Task(plan, output, output.path(plan.recipe)) for plan in plans]


def _costs(study: Study, out: Path, worker: Worker) -> dict[str, dict[str, Any]]:
    """Measure what a panorama of each method costs, unless `costs.json` has it for the same recipes, device and rounds."""
    jobs = {method: study.jobs(method)[0] for method in study.methods}
    rounds = max(study.timings, worker.runtime.world_size)
    where = worker.runtime.device.type
    keys = {method: f"{name_of(worker.plan(job).recipe)}, {where}, {rounds}" for method, job in jobs.items()}
    path = out / "costs.json"
    kept = worker.runtime.broadcast(lambda: read_json(path))
    entries = kept if isinstance(kept, dict) else {}
    if any(not isinstance(cost := entries.get(method), dict) or cost.get("of") != key for method, key in keys.items()):
        if worker.runtime.writes:
            print(f"measuring the costs of {counted(len(jobs), 'method')} in turns, {counted(rounds, 'time')}", flush=True)
        measured = costs([*jobs.values()], worker, rounds)  # all of them again, because they are compared
        entries = {
            method: {"of": keys[method], "rounds": rounds, **cost._asdict()}
            for method, cost in zip(jobs, measured, strict=True)
        }
        worker.runtime.broadcast(lambda: write(path, json.dumps(entries, indent=1) + "\n"))
    return {method: entries[method] for method in study.methods}
