"""The commands: one function each, whose arguments are the options. They import heavy modules when they are called."""

import json
import logging
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from panokit import launcher, registry
from panokit.cli.groups import Devices, Engine, Prompts, text_of
from panokit.errors import ContractError, FallbackWarning, OutputError, PluginNotFoundError, SettingError
from panokit.hints import make
from panokit.options import assign, configuration, plain
from panokit.output import Output
from panokit.registry import Kind
from panokit.settings import NUMERICS, Composition, Part, Precision, Settings

if TYPE_CHECKING:
    from panokit.jobs import Job, Worker


def generate(
    prompts: Prompts,
    settings: Settings,
    composition: Composition,
    devices: Devices,
    engine: Engine,
    output: Output,
) -> int:
    """Make panoramas from prompts and write them to files.

    Args:
        prompts: what to paint, and the seeds.
        settings: size, steps and so on. The seed of `prompts` replaces the one here.
        composition: model, scheduler, fuser and guidances.
        devices: where and how the networks run.
        engine: what starts the processes.
        output: the files to write.

    Returns:
        The exit status: 1 if a job failed or was left out.
    """
    from panokit.jobs import part_of
    from panokit.painting import announce, paint, paint_all, prepare, prepare_all

    options = {**settings.as_data(), **vars(composition)}
    engine.check(prompts, devices, output)
    if engine.engine == "ray" and not output.dry_run:
        return _on_ray(lambda: _asked(prompts, options, output), devices, engine)
    asked, worker = _once(lambda: _asked(prompts, options, output), devices)
    if asked.file is None:
        tasks = [prepare(job, worker, asked.output) for job in asked.jobs.values()]
        (announce if output.dry_run else paint)(tasks, worker.runtime)
        return 0
    tasks = prepare_all(asked.file, asked.jobs, asked.wrong, worker, asked.output)
    left_out = len(tasks) < len(asked.jobs) + len(asked.wrong)
    if output.dry_run:
        announce(part_of(tasks, asked.part), worker.runtime)
        return int(left_out)
    failed = paint_all(part_of(tasks, asked.part), worker.runtime)
    return 1 if failed or left_out else 0


def _on_ray(read: Callable[[], "_Asked"], devices: Devices, engine: Engine) -> int:
    """Make the pictures of a file of jobs on a cluster of Ray. Return the exit status."""
    from panokit.cluster.joining import require_cluster

    if launcher.is_rank() and launcher.launched() not in (None, (1, 1)):
        raise SettingError("Ray starts the actors: run the command once, without torchrun or srun")
    require_cluster(engine.address, devices.devices, engine.devices_per_picture)
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")  # a call after its end would start another cluster
    asked = read()
    from panokit.cluster.painting import paint_jobs

    _hush()
    made = paint_jobs(
        asked.file or "",
        asked.jobs,
        asked.wrong,
        asked.output,
        runtime=devices.as_data(),
        devices=devices.devices,
        devices_per_picture=engine.devices_per_picture,
        address=engine.address,
        part=asked.part,
    )
    return int(None in made.values())


class _Asked(NamedTuple):
    """What a command asks for, after its files are read.

    Attributes:
        file: the file of jobs, if there is one.
        jobs: the jobs, by line number or place.
        wrong: what is wrong with other lines of the file of jobs.
        output: where the pictures go.
        part: which part of the jobs to run.
    """

    file: str | None
    jobs: "dict[int, Job]"
    wrong: dict[int, str]
    output: Output
    part: str


def _asked(prompts: Prompts, options: Mapping[str, Any], output: Output) -> _Asked:
    """Read the files of prompts or jobs, and check what can be checked without a model."""
    from panokit.jobs import Job, jobs_in, part_of

    if prompts.jobs is None:
        jobs = {k: Job.of({**options, "prompt": prompt, "seed": seed}) for k, (prompt, seed) in enumerate(prompts.all)}
        output.check(len(jobs))
        return _Asked(None, jobs, {}, output, prompts.part)
    if prompts.prompt or prompts.prompts:
        raise SettingError("the file of --jobs contains the prompts: leave out the others, or add them to the file")
    output = replace(output, again=True)
    if output.folder is None:
        raise SettingError(f"the pictures of jobs go into a folder, and {output.out} is a file: write --out FOLDER/")
    if output.sheet or output.resume:
        raise SettingError("jobs resume by themselves and make no contact sheet: leave out --resume and --sheet")
    form = "give a file with one job on each line, as JSON"
    text = text_of(prompts.jobs, "jobs", form, errors="surrogateescape")  # a line that is not UTF-8 is no other line's affair
    by_line, wrong = jobs_in(text, {**options, "seed": prompts.seed}, trusted=prompts.trust)
    if not by_line and not wrong:
        raise SettingError(f"{prompts.jobs} contains no job: write one on each line, as JSON")
    output.check(len(by_line))
    part_of([], prompts.part)  # before hours of work
    return _Asked(prompts.jobs, by_line, wrong, output, prompts.part)


def _once(read: Callable[[], _Asked], devices: Devices) -> "tuple[_Asked, Worker]":
    """Read what a command asks for on rank 0, and return it on every rank, with the worker of this rank.

    A file may be edited between two readings, and a pipe can be read once. If panokit starts the processes, it reads before
    that, so that a mistake is told at once.

    Args:
        read: reads the files.
        devices: the devices of the worker, whose ranks are started.

    Raises:
        SettingError: a file cannot be read, or holds a mistake; or the ranks cannot be started.
    """
    from panokit.models import bytes_of

    asked = None if launcher.is_rank() else read()
    worker = _worker(devices.as_data())
    models = (
        {json.dumps(job.composition.model, default=repr): job.composition.model for job in asked.jobs.values()} if asked else {}
    )
    worker.runtime.launch(lambda: max(map(bytes_of, models.values()), default=0))
    return worker.runtime.broadcast(read if asked is None else lambda: asked), worker


def rerun(
    image: str,
    *,
    out: str | None = None,
    trust: bool = False,
    devices: int | Literal["auto"] = 1,
    offload: bool = False,
    quiet: bool = False,
    changes: Sequence[str] = (),
) -> None:
    """Make a picture or film again from the recipe in its file, with the same bits on the same machine.

    Args:
        image: A picture or film that panokit wrote: PNG, JPEG, WebP, TIFF, .dzi, MP4 or WebM.
        out: The file of the new picture. The default is IMAGE-rerun.png, or with IMAGE's own ending if that is a film, a
            TIFF or a .dzi.
        trust: Allow the recipe to name classes, folders and hub ids, whose code then runs, and to ask for any size.
        devices: Number of devices that share the windows.
        offload: Keep only one network on the device at a time, for a device with little memory.
        quiet: Show no progress.
        changes: Change one option of the recipe, such as guidances.weight=0 or seed=3.
    """
    from panokit import films, recipe
    from panokit.jobs import RECIPE, Job, options_in, require_installed
    from panokit.painting import paint, prepare

    kept = recipe.read(image)
    wanted = options_in(kept, f"the recipe in {image}")
    if not trust:
        require_installed(wanted["model"])
        recipe.check(wanted)
    for change in changes:
        path, value = _assignment(change)
        if (option := path.partition(".")[0]) not in RECIPE:
            close = get_close_matches(option, RECIPE, n=1)
            hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(RECIPE)}"
            raise SettingError(f"there is no {option} in a recipe: {hint}")
        assign(wanted, path, value)
    numerics = {key: wanted.pop(key) for key in ("precision", *NUMERICS) if key in wanted}
    try:
        job, runtime = Job.of(wanted), make(Devices, {**numerics, "devices": devices, "offload": offload})
    except SettingError as error:
        raise SettingError(f"the recipe in {image}: {error}") from error
    keeping = films.ENDINGS if films.frames_of(wanted) > 1 else (".dzi", ".tif", ".tiff")
    other = films.ending() if films.frames_of(wanted) > 1 else ".png"
    ending = Path(image).suffix if Path(image).suffix.lower() in keeping else other
    output = Output(out=out or f"{Path(image).stem}-rerun{ending}", quiet=quiet)
    output.check(1)
    worker = _worker(runtime.as_data(), trusted=trust)
    task = prepare(job, worker, output)
    changed = {change.partition("=")[0] for change in changes}
    for name, digest in task.plan.recipe.get("hashes", {}).items():
        if name not in changed and digest != kept.get("hashes", {}).get(name):
            file = wanted.get(name, "")  # the mask of a region has a longer name, such as prompt.regions.0.mask
            raise SettingError(
                f"the {name} {file}{' ' * bool(file)}has changed since {image} was made from it: restore it, or write "
                f"--set {name}={file or 'FILE'} to start from the file as it is"
            )
    paint([task], worker.runtime)
    for package in recipe.VERSIONS:
        if kept.get(package, version(package)) != version(package):
            message = f"{image} was made with {package} {kept[package]}, and {version(package)} is installed: bits may differ"
            warnings.warn(message, FallbackWarning, stacklevel=2)


def evaluate(
    config: str,
    *,
    out: str = "results",
    model: str | None = None,
    sweep: str | None = None,
    panoramas: int | None = None,
    references: int | None = None,
    reference_folder: str | None = None,
    quick: bool = False,
    devices: int | Literal["auto"] = 1,
    precision: Precision = "32-true",
    micro_batch: int = 8,
) -> None:
    """Compare methods with the same prompts and seeds, and write a report.

    Args:
        config: The study: a YAML file such as configs/paper_landscapes.yaml.
        out: The folder of the study. The same command continues a stopped study, and makes no picture twice.
        model: The model, instead of the study's own.
        sweep: Values of one setting, such as guidances.weight=0,1,10. Each value makes a method from the study's last one.
        panoramas: Number of panoramas for each prompt and method, instead of the study's own.
        references: Number of reference pictures for each prompt, instead of the study's own. The model makes them.
        reference_folder: A folder of reference pictures, as large as the model's window. No others are then made.
        quick: Run a tiny version of the study.
        devices: Number of devices.
        precision: Precision of the networks.
        micro_batch: Number of windows that go through the model at once.
    """
    for needed in ("torchmetrics", "matplotlib"):
        if not find_spec(needed):
            raise SettingError(f'panokit evaluate needs {needed}, which is not installed: pip install "panokit[eval]"')
    from panokit.study.conduct import conduct
    from panokit.study.plan import Study
    from panokit.study.report import markdown

    changes = {"model": model, "panoramas": panoramas, "references": references, "reference_folder": reference_folder}
    study = Study.of(configuration(config), **{name: value for name, value in changes.items() if value is not None})
    study = study.swept(sweep) if sweep else study
    study = study.quick() if quick else study
    _hush()
    try:
        numbers = conduct(study, Path(out), {"devices": devices, "precision": precision, "micro_batch": micro_batch})
    except OutputError as error:  # for instance, the disk is full
        raise OutputError(f"{error}; finished pictures are kept, and the same command continues") from error
    if numbers is None:
        return
    print(markdown(numbers))
    print(f"{Path(out) / 'report.html'}: this report with figures and pictures")


def view(files: list[str], *, out: str | None = None, no_open: bool = False) -> None:
    """Show pictures and films in the browser, alone, side by side or as a gallery, with their recipes.

    Args:
        files: Pictures or films, or a folder of them.
        out: The file of the page, NAME.html. The default is a temporary file.
        no_open: Write the page and print its place, but do not open it in the browser.
    """
    from panokit.view.show import write

    page = write(files, out)
    print(page)
    if not no_open:
        import webbrowser

        webbrowser.open(page.resolve().as_uri())


def studio(
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    password: str | None = None,
    model: str | None = None,
    no_open: bool = False,
) -> None:
    """Compose panoramas in the browser, and watch them while they are made.

    Args:
        host: The address to listen at. One that other machines reach, such as 0.0.0.0, needs a password.
        port: The port; the next free one is taken if it is in use.
        password: What people must write before they see the page. The user is panokit.
        model: A model to offer besides the installed ones: a folder or a hub id.
        no_open: Do not open the page in a browser.
    """
    if not find_spec("gradio"):
        raise SettingError('panokit studio needs gradio, which is not installed: pip install "panokit[studio]"')
    from panokit.studio.server import serve

    _hush()
    serve(host, port, password, model, browser=not no_open)


def plugins(name: str | None = None, *, kind: Kind | None = None) -> None:
    """List the installed plugins, or the settings of one plugin.

    Args:
        name: An installed plugin, or module:Class. Without it, all plugins are listed.
        kind: The kind of the plugin, if several kinds have one of that name.
    """
    if name is not None:
        return explain(kind or _kind_of(name, kind), name)
    installed = [plugin for group in registry.KINDS if kind in (None, group) for plugin in registry.plugins(group)]
    states = registry.states(installed)
    rows = [("kind", "name", "distribution", "version", "state", "")]
    rows += [(plugin.kind, plugin.name, *plugin.origin, *state) for plugin, state in zip(installed, states, strict=True)]
    _print_table(rows)
    return None


def explain(kind: Kind, name: str) -> None:
    """Print the settings of a plugin. For a model, they are those of the family that reads it.

    Args:
        kind: the kind of the plugin.
        name: an installed plugin, or `module:Class`.
    """
    from panokit.composition import BASES, parameters
    from panokit.models import family_of

    source = name
    if kind == "models":
        kind, source = "families", family_of(name)
    summary, settings = parameters(BASES[kind], source)
    shown = name if ":" in source else source  # a model that is a family of its own has no other name
    print(f"{shown}: {summary}" if summary else shown)
    for parameter in settings:
        default = f" = {parameter.default}" if parameter.default else ""
        print(f"\n  {parameter.name}: {parameter.type}{default}")
        if parameter.meaning:
            print(*_wrapped(parameter.meaning), sep="\n")


def check(plugin: str, *, kind: Kind | None = None) -> int:
    """Check that a plugin with default settings keeps its contract.

    Args:
        plugin: An installed plugin, or module:Class.
        kind: The kind of the plugin, if several kinds have one of that name.

    Returns:
        The exit status: 1 if a check failed.
    """
    from panokit.testing import run_checks

    make = _default(plugin, kind)
    try:
        make()
    except ContractError:  # it is a TypeError too
        raise
    except TypeError as cause:
        raise SettingError(
            f"{plugin} cannot be made without arguments ({cause}): give its settings defaults, or check it in a test, with "
            "panokit.testing.conforms"
        ) from cause
    counted = failed = 0
    for name, problem in run_checks(make):
        print(f"{name:<42}", f"failed: {problem.splitlines()[0]}" if problem else "ok", flush=True)
        counted, failed = counted + 1, failed + bool(problem)
    print(f"{plugin}: {failed} of {counted} checks failed" if failed else f"{plugin}: {counted} checks passed")
    return 1 if failed else 0


def completion(shell: Literal["bash", "zsh", "tcsh"]) -> None:
    """Print a script with which a shell completes the words of panokit.

    Args:
        shell: The shell.
    """
    if not find_spec("shtab"):
        raise SettingError('panokit completion needs shtab, which is not installed: pip install "panokit[completion]"')
    from panokit.cli.program import completion_script

    print(completion_script(shell))


def resolved(composition: Composition) -> dict[str, Any]:
    """The parts of a composition with all their settings, as plain data."""
    from panokit.composition import BASES, build, describe

    def whole(kind: Kind, part: Part) -> dict[str, Any]:
        return describe(build(BASES[kind], part))

    return {
        "model": composition.model,
        "scheduler": None if composition.scheduler is None else whole("schedulers", composition.scheduler),
        "layout": whole("layouts", composition.layout),
        "fuser": whole("fusers", composition.fuser),
        "guidances": [whole("guidances", part) for part in composition.guidances],
    }


def _worker(runtime: Mapping[str, Any], *, trusted: bool = True) -> "Worker":
    """Make the worker for the pictures, and silence libraries."""
    from panokit.jobs import Worker

    _hush()
    return Worker(runtime, trusted=trusted)


def _hush() -> None:
    """Silence messages of libraries that are for developers.

    Environment variables reach the libraries that are not imported yet, and that this composition may not need.
    """
    launcher.launched()  # a damaged environment would break the import
    import lightning.fabric  # noqa: F401 - it sets the level of its logger

    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")  # hints for developers
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)  # a banner for each rank


def _assignment(text: str) -> tuple[str, Any]:
    """Split the text of `--set` into a path and a value, which is read as YAML."""
    path, sign, value = text.partition("=")
    if not sign or not re.fullmatch(r"\w+(\.\w+)*", path):
        raise SettingError(f"--set came as {text!r:.80}: it must be NAME=VALUE, such as guidances.weight=0")
    return path, plain(value)


def _default(name: str, kind: Kind | None) -> Callable[[], Any]:
    """A function that makes the plugin of a name, or of `module:Class`, with default settings."""
    from panokit.composition import BASES, build
    from panokit.models import load_model

    if ":" in name:
        maker = registry.attribute(name)
        if not callable(maker):
            raise PluginNotFoundError(f"{name} is a {type(maker).__name__}: name a class, or a function that makes a plugin")
        return maker
    kind = _kind_of(name, kind)
    if kind == "families":
        raise PluginNotFoundError(f"{name} is a family of models, which has no checks: check one of its models instead")
    if kind == "models":
        denoiser = load_model(name).denoiser
        return lambda: denoiser
    return lambda: build(BASES[kind], name)


def _kind_of(name: str, kind: Kind | None) -> Kind:
    """The kind of an installed plugin, or of `module:Class`."""
    from panokit.composition import BASES

    if ":" in name:
        cls = registry.made_class(registry.attribute(name))
        of = [kind for kind, base in BASES.items() if isinstance(cls, type) and issubclass(cls, base)]
        if not of:
            raise PluginNotFoundError(
                f"{name} is no subclass of panokit.Layout, panokit.Fuser, panokit.Guidance or panokit.Scheduler"
            )
        return of[0]
    names = {group: {plugin.name for plugin in registry.plugins(group)} for group in ([kind] if kind else registry.KINDS)}
    kinds = [group for group in names if name in names[group]]
    if not kinds:
        raise PluginNotFoundError(registry.unknown_among(kind or "plugins", name, set().union(*names.values())))
    if len(kinds) > 1:
        raise PluginNotFoundError(
            f"{name} is the name of plugins of several kinds, {', '.join(kinds)}: choose one with --kind {kinds[0]}"
        )
    return kinds[0]


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]) - 1)]
    for row in rows:
        print("  ".join([*(cell.ljust(n) for cell, n in zip(row, widths, strict=False)), row[-1]]).rstrip())


def _wrapped(text: str) -> Iterator[str]:
    from textwrap import wrap

    yield from wrap(text, 96, initial_indent="      ", subsequent_indent="      ")
