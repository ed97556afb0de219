"""The command line: `panokit generate`, `panokit plugins` and `panokit check`."""

import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TextIO

from jsonargparse import ArgumentError, auto_cli

from panokit import registry
from panokit.errors import (
    ContractError,
    NotFiniteError,
    PanokitError,
    PluginLoadError,
    PluginNotFoundError,
    PromptWarning,
    SettingError,
)
from panokit.fuser import Fuser
from panokit.guidance import Guidance
from panokit.registry import Kind
from panokit.runtime import Precision
from panokit.sampler import Wrap
from panokit.scheduler import Scheduler


def generate(
    prompt: str,
    *,
    out: str = "panorama.png",
    height: int | None = None,
    width: int | None = None,
    negative_prompt: str = "",
    steps: int = 50,
    guidance_scale: float = 7.5,
    stride: int | None = None,
    wrap: Wrap = False,
    seed: int = 0,
    model: str = "landscapes",
    scheduler: str = "ddim",
    fuser: str = "multidiffusion",
    guidances: list[str] = [],  # noqa: B006 - jsonargparse shows the default, and nobody appends to it
    devices: int = 1,
    precision: Precision = "32-true",
    micro_batch: int = 8,
    checkpointing: bool = False,
) -> None:
    """Make a panorama from a prompt and write it to a file.

    Args:
        prompt: What to paint.
        out: The picture to write; its ending names the format.
        height: Pixels; one window of the model unless given.
        width: Pixels; four windows of the model unless given.
        negative_prompt: What to keep away from.
        steps: Denoising steps.
        guidance_scale: Of classifier-free guidance; 1 or less turns it off.
        stride: Pixels from one window to the next; half a window unless given.
        wrap: Close the panorama to a ring: true or x sideways, y up and down, xy both.
        seed: Same seed, same picture.
        model: An installed model, a folder in diffusers' format, or a hub id.
        scheduler: Such as ddim, euler, dpm++_2m, unipc.
        fuser: What joins the windows.
        guidances: What keeps the windows in agreement; --guidances+=NAME adds one.
        devices: How many devices to deal the windows to.
        precision: Of the networks.
        micro_batch: Windows that go through the model at once.
        checkpointing: Save memory in guided steps, for time.
    """
    from panokit.panorama import check_output
    from panokit.runtime import Runtime
    from panokit.sampler import Sampler

    check_output(out)  # before the networks are loaded, and below, before they are used
    runtime = Runtime(devices=devices, precision=precision, micro_batch=micro_batch, checkpointing=checkpointing)
    sampler = Sampler(model, scheduler=scheduler, fuser=fuser, guidances=guidances, runtime=runtime)
    high, wide = (cells * sampler.model.factor for cells in sampler.model.denoiser.window)
    height, width = high if height is None else height, 4 * wide if width is None else width
    check_output(out, (width, height))
    panorama = sampler(
        prompt,
        height=height,
        width=width,
        negative_prompt=negative_prompt,
        steps=steps,
        guidance_scale=guidance_scale,
        stride=stride,
        wrap=wrap,
        seed=seed,
    )
    if runtime.rank == 0:
        panorama.save(out)
        print(f"{out}: {panorama.image.width} x {panorama.image.height} pixels")


def plugins() -> None:
    """List the installed plugins: kind, name, distribution, state."""
    from panokit.backbones.diffusers.scheduler import DiffusersScheduler

    rows = [("kind", "name", "distribution", "state")]
    for kind in registry.KINDS:
        rows += [(kind, plugin.name, plugin.distribution, plugin.state()) for plugin in registry.plugins(kind)]
    rows += [("schedulers", name, "built in", "ok") for name in DiffusersScheduler.names()]
    widths = [max(len(row[k]) for row in rows) for k in range(3)]
    for row in rows:
        print("  ".join([*(cell.ljust(n) for cell, n in zip(row, widths, strict=False)), row[3]]))


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
    checked = failed = 0
    for name, problem in run_checks(make):
        print(f"{name:<42}", f"failed: {problem.splitlines()[0]}" if problem else "ok", flush=True)
        checked, failed = checked + 1, failed + bool(problem)
    print(f"{plugin}: {failed} of {checked} checks failed" if failed else f"{plugin}: {checked} checks passed")
    return 1 if failed else 0


def _default(name: str, kind: Kind | None) -> Callable[[], Any]:
    """What makes the plugin of that name, or `module:Class`, with its default settings."""
    from panokit.backbones.diffusers.model import load_model
    from panokit.backbones.diffusers.scheduler import DiffusersScheduler

    if ":" in name:
        made = registry.load(kind or "models", name)
        if not callable(made):
            raise PluginNotFoundError(f"{name} is a {type(made).__name__}: name a class, or what else makes a plugin")
        return made
    builtin = DiffusersScheduler.names()
    names = {each: {plugin.name for plugin in registry.plugins(each)} for each in ([kind] if kind else registry.KINDS)}
    if "schedulers" in names:
        names["schedulers"].update(builtin)
    kinds = [each for each in names if name in names[each]]
    if not kinds:
        raise PluginNotFoundError(registry.unknown_among(kind or "plugins", name, set().union(*names.values())))
    if len(kinds) > 1:
        raise PluginNotFoundError(f"{name!r} is a name among {' and '.join(kinds)}: choose with --kind {kinds[0]}")
    (found,) = kinds
    if found == "models":
        denoiser = load_model(name).denoiser
        return lambda: denoiser
    if found == "schedulers" and name in builtin:
        return lambda: DiffusersScheduler(name)
    return lambda: registry.make(found, name, _BASES[found])


_BASES: dict[Kind, type] = {"fusers": Fuser, "guidances": Guidance, "schedulers": Scheduler}

COMMANDS: dict[str, Any] = {"generate": generate, "plugins": plugins, "check": check}


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit status: 0; 2 for what the user got wrong; 1 for anything else; 130 when interrupted.
    """
    warnings.showwarning = _show_warning
    try:
        status = auto_cli(COMMANDS, args=None if args is None else list(args), exit_on_error=False, prog="panokit")
    except ArgumentError as error:
        return _complain(error, 2)
    except (ContractError, NotFiniteError, PluginLoadError) as error:
        return _complain(error, 1)
    except PanokitError as error:
        return _complain(error, 2)
    except KeyboardInterrupt:
        return _complain("interrupted", 130)
    except Exception as error:  # the user sees one line, whatever it was
        return _complain(f"unexpected {type(error).__name__}: {error}", 1)
    return status or 0


def _complain(what: object, status: int) -> int:
    print("panokit:", " ".join(str(what).split()), file=sys.stderr)
    return status


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: Any = None,
) -> None:
    """Warnings meant for the user, in one line; those of libraries to their developers not at all."""
    if issubclass(category, PromptWarning):
        _complain(f"warning: {message}", 0)
