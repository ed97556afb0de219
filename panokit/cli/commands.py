"""What the command line can do: a function a command, whose arguments are its options. What is heavy is imported inside."""

import json
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from importlib.metadata import version
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from panokit import registry
from panokit.errors import ContractError, FallbackWarning, OutputError, PluginNotFoundError, SettingError
from panokit.options import assign, configuration, no_option, plain, typed
from panokit.registry import Kind
from panokit.settings import NUMERICS, Attention, Precision, Wrap

if TYPE_CHECKING:
    from panokit.jobs import Worker

Part = str | dict[str, Any]

COMPOSITION = ("model", "scheduler", "fuser", "guidances")
CALL = ("height", "width", "negative_prompt", "steps", "guidance_scale", "stride", "wrap")


def generate(
    texts: Sequence[str] = (),
    *,
    prompt: str | list[Any] | dict[str, Any] | None = None,
    prompts: str | None = None,
    height: int | None = None,
    width: int | None = None,
    negative_prompt: str = "",
    steps: int = 50,
    guidance_scale: float = 7.5,
    stride: int | None = None,
    wrap: Wrap = False,
    seed: int | str = 0,
    model: str = "landscapes",
    scheduler: Part = "ddim",
    fuser: Part = "multidiffusion",
    guidances: list[Part] = [],  # noqa: B006 - jsonargparse shows the default, and nobody appends to it
    devices: int | Literal["auto"] = 1,
    num_nodes: int = 1,
    timeout: float = 300.0,
    precision: Precision = "32-true",
    micro_batch: int = 8,
    guided_micro_batch: int | None = None,
    checkpointing: bool = False,
    attention: Attention = "auto",
    channels_last: bool = False,
    compile: bool = False,
    offload: bool = False,
    out: str | None = None,
    sheet: str | None = None,
    latents: bool = False,
    preview: str | None = None,
    jobs: str | None = None,
    part: str = "1/1",
    resume: str | None = None,
    checkpoint_every: int | None = None,
    quiet: bool = False,
) -> int:
    """Make panoramas from prompts and write them to files.

    Args:
        texts: What to paint; several make a panorama each.
        prompt: The same, for configurations: a text, a list, or boxes with texts.
        prompts: A file with a prompt a line.
        height: Pixels; one window of the model unless given.
        width: Pixels; four windows of the model unless given.
        negative_prompt: What to keep away from.
        steps: Denoising steps.
        guidance_scale: Of classifier-free guidance; 1 or less turns it off.
        stride: Pixels from one window to the next; half a window unless given.
        wrap: Close the panorama to a ring: true or x sideways, y up and down, xy both.
        seed: Same seed, same picture; 1..8 makes one of each.
        model: An installed model, a folder in diffusers' format, or a hub id.
        scheduler: Such as ddim, euler, dpm++_2m, unipc; --scheduler.options.eta=1 sets an option of it.
        fuser: What joins the windows; --fuser.SETTING=VALUE sets something of it.
        guidances: What keeps the windows in agreement; --guidances+=NAME adds one, --guidances.SETTING=VALUE sets something of
            the last, --guidances.help NAME tells what there is to set.
        devices: How many devices of each machine to deal the windows to, or the prompts, if there are as many; auto for all.
        num_nodes: How many machines.
        timeout: Seconds that a device waits for another.
        precision: Of the networks.
        micro_batch: Windows that go through the model at once.
        guided_micro_batch: The same where guidance goes back through the model; as many unless given.
        checkpointing: Save memory in guided steps, for time.
        attention: How it is computed; auto is SDPA, xformers needs CUDA, sliced saves memory.
        channels_last: Keep channels last in memory, for speed.
        offload: Let networks take turns on the device, for one that does not hold them all.
        compile: Compile the model's repeated blocks, which takes a while.
        out: The picture to write, whose ending names the format; or a folder, where pictures are named by prompt and seed.
        sheet: A picture of all pictures, smaller and side by side, to write as well.
        latents: Write the latents too, beside each picture, as safetensors.
        preview: A picture to write again after each step: what the panorama will look like.
        jobs: A file of jobs, one a line as JSON, {"prompt": "a lake", "seed": 3}, with what differs from the options given;
            what is there is left, and a job that fails does not keep the others.
        part: Of the jobs, for several machines that know nothing of each other: 2/8 is the second of eight.
        resume: A checkpoint to go on from, with the command that wrote it.
        checkpoint_every: Steps from one checkpoint to the next, and one when interrupted; 0 for none. Unless given, once a
            minute.
        quiet: Show no progress.
    """
    given = locals()
    output = {key: given[key] for key in ("out", "sheet", "latents", "preview", "quiet", "resume", "checkpoint_every")}
    runtime = {key: given[key] for key in ("devices", "num_nodes", "timeout", "offload", "precision", *NUMERICS)}
    composition = {key: given[key] for key in (*COMPOSITION, *CALL)}
    if jobs is not None:
        if texts or prompt or prompts:
            raise SettingError("--jobs says what to paint: leave out the prompts, or write them into it")
        return _make_all(jobs, {**composition, "seed": seed}, part, runtime, output)
    wanted: list[Any] = list(texts) or (prompt if isinstance(prompt, list) else [] if prompt is None else [prompt])
    wanted += _lines(prompts) if prompts else []
    if not wanted:
        raise SettingError("there is no prompt: say what to paint, or name a file of prompts with --prompts")
    made = [{**composition, "prompt": prompt, "seed": each} for prompt, each in product(wanted, _seeds(seed))]
    _make(made, runtime, output)
    return 0


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
    """Make a picture again from the recipe in it; the same bits, on the same machine.

    Args:
        image: A picture that panokit wrote: PNG, JPEG or WebP.
        out: The picture to write; IMAGE-rerun.png unless given.
        trust: Let the recipe name classes, folders and hub ids, and ask for any size. What it names is run.
        devices: How many devices to deal the windows to.
        offload: Let networks take turns on the device, for one that does not hold them all.
        quiet: Show no progress.
        changes: One thing to change: guidances.weight=0, seed=3.
    """
    from panokit import recipe

    found = recipe.read(image)
    keys = (*COMPOSITION, *CALL, "prompt", "seed", "precision", *NUMERICS)
    missing = [key for key in ("prompt", "height", "width", "seed", "model") if found.get(key) is None]
    if missing:
        raise SettingError(f"the recipe in {image} is damaged: it does not say {', '.join(missing)}")
    wanted = {key: found[key] for key in keys if found.get(key) is not None}
    if not trust:
        if all(plugin.name != wanted["model"] for plugin in registry.plugins("models")):
            raise SettingError(
                f"the recipe names the model {wanted['model']!r}, which is not installed by that name: "
                "trust it (--trust) to load a folder or from the hub"
            )
        recipe.check(wanted)
    for change in changes:
        path, value = _assignment(change)
        if (option := path.partition(".")[0]) not in keys:
            close = get_close_matches(option, keys, n=1)
            hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(keys)}"
            raise SettingError(f"there is no {option} in a recipe: {hint}")
        assign(wanted, path, value)
    try:
        settings = typed(generate, wanted)
    except SettingError as error:
        raise SettingError(f"the recipe in {image}: {error}") from error
    runtime = {"devices": devices, "offload": offload, **{key: settings[key] for key in ("precision", *NUMERICS)}}
    job = {key: settings[key] for key in (*COMPOSITION, *CALL, "prompt", "seed")}
    output = {"out": out or f"{Path(image).stem}-rerun.png", "quiet": quiet}
    _make([job], runtime, output, trusted=trust)
    for package in ("panokit", "torch", "diffusers"):
        if found.get(package, version(package)) != version(package):
            message = f"it was made with {package} {found[package]}, and this is {version(package)}: bits may differ"
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
    """Compare methods on the same prompts and seeds: distances to the model's own pictures, agreement with prompts, layout.

    Args:
        config: A YAML file that says what to compare, such as configs/paper_landscapes.yaml.
        out: The folder of the study. What is there is not made again: the same command goes on where it was stopped.
        model: Another model than the study's.
        sweep: Values of one setting of the study's last method, guidances.weight=0,1,10, in the place of its methods.
        panoramas: Of each prompt and method, in the place of the study's number.
        references: Pictures of each prompt that the model makes at its own size, likewise.
        reference_folder: Pictures as large as the model's window to compare with, in their place.
        quick: A tiny version of all of it.
        devices: How many devices to use.
        precision: Of the networks.
        micro_batch: Windows that go through the model at once.
    """
    for needed in ("torchmetrics", "matplotlib"):
        if not find_spec(needed):
            raise SettingError(f'{needed} is not installed, which panokit evaluate needs: pip install "panokit[eval]"')
    from panokit.study.conduct import conduct
    from panokit.study.plan import Study
    from panokit.study.report import markdown

    given = {
        key: value
        for key, value in {
            "model": model,
            "panoramas": panoramas,
            "references": references,
            "reference_folder": reference_folder,
        }.items()
        if value is not None
    }
    study = Study.of(configuration(config), **given)
    study = study.swept(sweep) if sweep else study
    study = study.quick() if quick else study
    _hush()
    try:
        numbers = conduct(study, Path(out), {"devices": devices, "precision": precision, "micro_batch": micro_batch})
    except OutputError as error:  # a disk that is full, say
        raise OutputError(f"{error}; what is done is kept, and the same command goes on") from error
    if numbers is None:
        return
    print(markdown(numbers))
    print(f"{Path(out) / 'report.html'}: the same, with figures and pictures")


def plugins(name: str | None = None, *, kind: Kind | None = None) -> None:
    """List the installed plugins, or what there is to set in one.

    Args:
        name: An installed plugin, or module:Class; all of them unless given.
        kind: Where to look, if several kinds have that name.
    """
    if name is not None:
        return explain(kind or _kind_of(name, kind), name)
    import diffusers

    from panokit.backbones.diffusers.scheduler import DiffusersScheduler

    found = [plugin for each in registry.KINDS if kind in (None, each) for plugin in registry.plugins(each)]
    states = registry.states(found)
    rows = [("kind", "name", "distribution", "version", "state", "")]
    rows += [(plugin.kind, plugin.name, *plugin.origin, *state) for plugin, state in zip(found, states, strict=True)]
    if kind in (None, "schedulers"):
        rows += [("schedulers", each, "diffusers", diffusers.__version__, "ok", "") for each in DiffusersScheduler.names()]
    _print_table(rows)
    return None


def explain(kind: Kind, name: str) -> None:
    """Print what there is to set in a plugin."""
    from panokit.composition import BASES, parameters

    if kind not in BASES:
        raise SettingError(f"{name} is a model, which has nothing to set")
    summary, found = parameters(BASES[kind], name)
    print(f"{name}: {summary}" if summary else name)
    for parameter in found:
        default = f" = {parameter.default}" if parameter.default else ""
        print(f"\n  {parameter.name}: {parameter.type}{default}")
        if parameter.meaning:
            print(*_wrapped(parameter.meaning), sep="\n")


def check(plugin: str, *, kind: Kind | None = None) -> int:
    """Check that a plugin, made with its default settings, keeps its contract; the exit status is 1 if it does not.

    Args:
        plugin: An installed name, or module:Class.
        kind: Where to look, if several kinds have that name.
    """
    from panokit.testing import run_checks

    make = _default(plugin, kind)
    try:
        make()
    except ContractError:  # which is a TypeError too
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


def resolved(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `generate`, with every setting of every part."""
    from panokit.composition import BASES, build, describe

    def whole(kind: Kind, part: Part) -> dict[str, Any]:
        return describe(build(BASES[kind], part))

    parts = {
        "scheduler": whole("schedulers", options["scheduler"]),
        "fuser": whole("fusers", options["fuser"]),
        "guidances": [whole("guidances", part) for part in options["guidances"]],
    }
    return {**options, **parts}


def _make(
    jobs: Sequence[Mapping[str, Any]], runtime: Mapping[str, Any], output: Mapping[str, Any], *, trusted: bool = True
) -> None:
    """Make a picture of each job, after all has been checked that can be."""
    from panokit.painting import Output, check, paint

    to = Output(**output)
    to.check(len(jobs))
    worker = _worker(runtime, trusted=trusted)
    for job in jobs:
        check(job, worker, to)
    paint(jobs, worker, to)


def _make_all(path: str, options: Mapping[str, Any], part: str, runtime: Mapping[str, Any], output: Mapping[str, Any]) -> int:
    """The same of a file of jobs; the exit status is 1 if one failed."""
    from panokit.jobs import part_of
    from panokit.painting import Output, check_all, paint_all

    to = Output(**output, jobs=True)
    if to.folder is None:
        raise SettingError(f"the pictures of jobs go into a folder, and {to.out} is none: --out FOLDER/")
    if to.sheet or to.resume:
        raise SettingError("jobs take themselves up where they were, and make no contact sheet: leave out --resume and --sheet")
    jobs, wrong = _jobs(path, options)
    to.check(len(jobs))
    own = part_of([*jobs.values()], part)
    worker = _worker(runtime)
    check_all(path, jobs, wrong, worker, to)
    return 1 if paint_all(own, worker, [to] * len(own)) else 0


def _worker(runtime: Mapping[str, Any], *, trusted: bool = True) -> "Worker":
    """Who makes them, without a word from libraries."""
    from panokit.jobs import Worker

    _hush()
    return Worker(runtime, trusted=trusted)


def _hush() -> None:
    """Let libraries say nothing that is not for users."""
    import diffusers.utils
    import lightning.fabric  # noqa: F401 - it sets the level of its logger
    import transformers

    transformers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.set_verbosity_error()  # hints for developers
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)  # a banner for each rank


def _jobs(path: str, options: Mapping[str, Any]) -> tuple[dict[int, dict[str, Any]], dict[int, str]]:
    """The jobs in a file, by their lines, with the options that they do not say; and what is wrong with the other lines."""
    from panokit.jobs import JOB

    found: dict[int, dict[str, Any]] = {}
    wrong: dict[int, str] = {}
    for number, line in enumerate(_text(path, "jobs", "give a file with a job a line, as JSON").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            said = json.loads(line)
            if not isinstance(said, dict):
                raise SettingError(f"it is a {type(said).__name__}, and a job maps options to values")
            if unknown := said.keys() - {*JOB}:
                raise SettingError(no_option(sorted(unknown)[0], JOB, ""))
            settings = typed(generate, {**options, **said})
            if not isinstance(settings["prompt"], str | dict):
                raise SettingError('it has no prompt: {"prompt": "a lake"}')
            found[number] = {key: settings[key] for key in JOB}
        except (ValueError, RecursionError) as error:  # of which a SettingError is one
            wrong[number] = str(error)
    if not found and not wrong:
        raise SettingError(f"{path} holds no job: write one a line, as JSON")
    return found, wrong


def _text(path: str, what: str, form: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as cause:
        why = getattr(cause, "strerror", None) or cause
        raise SettingError(f"the {what} in {path} cannot be read ({why}): {form}") from cause


def _lines(path: str) -> list[str]:
    """The prompts in a file."""
    lines = [line.strip() for line in _text(path, "prompts", "give a text file with a prompt a line").splitlines()]
    found = [line for line in lines if line]
    if not found:
        raise SettingError(f"{path} holds no prompt: write one a line")
    return found


def _seeds(seed: int | str) -> list[int]:
    """One seed, or all from first to last, `1..8`."""
    span = re.fullmatch(r"(\d{1,20})\.\.(\d{1,20})", f"{seed}..{seed}" if isinstance(seed, int) else seed.strip())
    first, last = map(int, span.groups()) if span else (1, 0)
    if not 0 <= last - first < 10_000 or last >= 1 << 64:
        raise SettingError(
            f"seed is {seed!s:.80}: it must be a whole number from 0 to {(1 << 64) - 1}, or a range of up to 10000 such as 1..8"
        )
    return list(range(first, last + 1))


def _assignment(text: str) -> tuple[str, Any]:
    """What `--set` says: a path, and a value as YAML would read it."""
    path, sign, value = text.partition("=")
    if not sign or not re.fullmatch(r"\w+(\.\w+)*", path):
        raise SettingError(f"--set came as {text!r}: it must be NAME=VALUE, such as guidances.weight=0")
    return path, plain(value)


def _default(name: str, kind: Kind | None) -> Callable[[], Any]:
    """What makes the plugin of that name, or `module:Class`, with its default settings."""
    from panokit.backbones.diffusers.model import load_model
    from panokit.composition import BASES, build

    if ":" in name:
        made = registry.load(kind or "models", name)
        if not callable(made):
            raise PluginNotFoundError(f"{name} is a {type(made).__name__}: name a class, or what else makes a plugin")
        return made
    found = _kind_of(name, kind)
    if found == "models":
        denoiser = load_model(name).denoiser
        return lambda: denoiser
    return lambda: build(BASES[found], name)


def _kind_of(name: str, kind: Kind | None) -> Kind:
    """The one kind that has a plugin of that name, or that `module:Class` is of."""
    from panokit.composition import BASES

    if ":" in name:
        found = registry.load(kind or "models", name)
        cls = getattr(found, "__self__", found)  # of a class method its class
        of = [each for each, base in BASES.items() if isinstance(cls, type) and issubclass(cls, base)]
        if not of:
            raise PluginNotFoundError(f"{name} is no subclass of panokit.Fuser, panokit.Guidance or panokit.Scheduler")
        return of[0]
    from panokit.backbones.diffusers.scheduler import DiffusersScheduler

    names = {each: {plugin.name for plugin in registry.plugins(each)} for each in ([kind] if kind else registry.KINDS)}
    if "schedulers" in names:
        names["schedulers"].update(DiffusersScheduler.names())
    kinds = [each for each in names if name in names[each]]
    if not kinds:
        raise PluginNotFoundError(registry.unknown_among(kind or "plugins", name, set().union(*names.values())))
    if len(kinds) > 1:
        raise PluginNotFoundError(f"{name!r} is a name among {' and '.join(kinds)}: choose with --kind {kinds[0]}")
    return kinds[0]


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]) - 1)]
    for row in rows:
        print("  ".join([*(cell.ljust(n) for cell, n in zip(row, widths, strict=False)), row[-1]]).rstrip())


def _wrapped(text: str) -> Iterator[str]:
    from textwrap import wrap

    yield from wrap(text, 96, initial_indent="      ", subsequent_indent="      ")
