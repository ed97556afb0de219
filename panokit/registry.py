"""Plugins by name: entry points of installed distributions. A plugin is imported when it is first asked for."""

import io
import os
import re
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache, partial
from importlib.machinery import PathFinder
from importlib.metadata import Distribution, EntryPoint, distributions, entry_points
from inspect import signature
from queue import Empty, Queue
from threading import Thread
from typing import Any, Literal, TypeVar, final

from panokit.errors import ContractError, FallbackWarning, PluginLoadError, PluginNotFoundError

Made = TypeVar("Made")

Kind = Literal["layouts", "fusers", "guidances", "schedulers", "families", "models"]
KINDS: tuple[Kind, ...] = ("layouts", "fusers", "guidances", "schedulers", "families", "models")


@final
@dataclass(frozen=True)
class Plugin:
    """An entry point of the group `panokit.KIND`.

    Attributes:
        kind: the kind of plugin.
        name: the name that users write.
        entry: the entry point, not imported yet.
    """

    kind: Kind
    name: str
    entry: EntryPoint

    @property
    def origin(self) -> tuple[str, str]:
        """The name and the version of the distribution that the plugin comes from."""
        distribution = self.entry.dist
        return (distribution.name or "unknown", distribution.version or "") if distribution else ("unknown", "")

    @property
    def distribution(self) -> str:
        """The same as one text."""
        return " ".join(self.origin).strip()

    @property
    def home(self) -> str:
        """The top package of its module; any text, if the entry point is malformed."""
        return re.split(r"[.:]", self.entry.value, maxsplit=1)[0]

    def load(self) -> Any:
        """Import the plugin.

        Returns:
            The object that the entry point names.

        Raises:
            PluginLoadError: it cannot be imported. The cause is chained.
        """
        try:
            return self.entry.load()
        except (Exception, SystemExit) as cause:  # an outside module can raise anything while it is imported
            raise PluginLoadError(
                f"the plugin {self.name!r} ({self.kind}, from {self.distribution}) is installed and cannot be imported: "
                f"{type(cause).__name__}: {cause}; reinstall or remove {self.distribution}"
            ) from cause


def states(installed: Sequence[Plugin], patience: float = 10.0) -> list[tuple[str, str]]:
    """Import plugins, and report which of them are broken.

    Each is imported in a thread of its own, and its output is dropped.

    Args:
        installed: the plugins.
        patience: seconds to wait for the next import to end. After that, the imports that are left count as broken.

    Returns:
        Two texts for each plugin: `ok`, or why it is broken; and the first line of its docstring.
    """
    answers: Queue[tuple[int, str, str]] = Queue()
    reports = [(f"broken: still importing after {patience:.0f} s", "")] * len(installed)
    names = Counter((plugin.kind, plugin.name) for plugin in installed)

    def attempt(k: int) -> None:
        try:
            plugin = installed[k].load()
        except PluginLoadError as error:
            answers.put((k, " ".join(f"broken: {type(error.__cause__).__name__}: {error.__cause__}".split()), ""))
        except BaseException as error:  # a plugin may even raise KeyboardInterrupt
            answers.put((k, f"broken: {type(error).__name__}: {error}", ""))
        else:
            answers.put((k, "ok", summary(plugin)))

    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        for k in range(len(installed)):
            Thread(target=attempt, args=(k,), daemon=True).start()
        try:
            for _ in installed:
                k, *report = answers.get(timeout=patience)
                reports[k] = (report[0], report[1])
        except Empty:
            pass
    for k, plugin in enumerate(installed):
        if (claims := names[plugin.kind, plugin.name]) > 1:
            reports[k] = f"broken: {claims} distributions claim the name", ""
    return reports


def summary(maker: Any) -> str:
    """The first line of a plugin's docstring; for a preset, the call that makes it."""
    if isinstance(maker, partial) and maker.__doc__ == partial.__doc__:  # it has none of its own
        return f"{made_class(maker).__name__}({', '.join(map(repr, bound(maker).values()))})"
    return (maker.__doc__ or "").strip().partition("\n")[0] if isinstance(maker, type | partial) else ""


@lru_cache(maxsize=16)
def _installed(group: str, path: tuple[tuple[str, int], ...]) -> tuple[EntryPoint, ...]:
    """The entry points of a group. They are read again if the path, or a folder on it, has changed since the last call.

    Reading them takes longer than making a sampler.

    Args:
        group: the name of the group.
        path: the folders on `sys.path`, each with the time of its last change, in nanoseconds.
    """
    try:
        return tuple(entry_points(group=group))
    except Exception:  # what one package left behind breaks the reading of all
        _leave_out_damaged()
        return tuple(entry_points(group=group))


def _leave_out_damaged() -> None:
    """Hide the installed packages whose metadata cannot be read, and warn about each.

    Python reads all packages or none. torch and others do so too, while they are imported.
    """
    for package in distributions():
        if problem := _problem(package):
            place = getattr(package, "_path", "an installed package")
            message = f"{place} is damaged ({problem}) and is left out: reinstall that package, or delete what is left of it"
            warnings.warn(message, FallbackWarning, stacklevel=4)
    sys.meta_path[:] = [_Readable if finder is PathFinder else finder for finder in sys.meta_path]


class _Readable(PathFinder):
    """Finds modules as Python does, and the packages whose metadata can be read."""

    @classmethod
    def find_distributions(cls, *args: Any, **kwargs: Any) -> Any:
        return (package for package in super().find_distributions(*args, **kwargs) if not _problem(package))


def _problem(package: Distribution) -> str:
    """Why the metadata of a package cannot be read; empty if they can."""
    try:
        return "" if package.name and package.entry_points is not None else "it has no name"
    except Exception:  # anything can be in its files
        return "its entry_points.txt cannot be read"


def _path() -> tuple[tuple[str, int], ...]:
    """The folders on `sys.path` with the times of their last changes. To install a distribution changes its folder."""
    return tuple((str(folder), _changed(str(folder) or ".")) for folder in sys.path)


def _changed(folder: str) -> int:
    try:
        return os.stat(folder).st_mtime_ns
    except OSError:  # a folder on the path need not exist
        return 0


def plugins(kind: Kind) -> list[Plugin]:
    """All installed plugins of a kind, sorted by name. None is imported."""
    installed = [Plugin(kind, entry.name, entry) for entry in _installed(f"panokit.{kind}", _path())]
    names = Counter(plugin.name for plugin in installed)

    def order(plugin: Plugin) -> tuple[str, str]:  # the name of a distribution is read from its metadata, which is slow
        return plugin.name, plugin.distribution if names[plugin.name] > 1 else ""

    return sorted(installed, key=order)


def load(kind: Kind, name: str) -> Any:
    """Import the object that a name stands for.

    Args:
        kind: the kind of plugin to look for.
        name: the name of an installed plugin, or `module:attribute` for any other object.

    Returns:
        The object that the entry point, or `module:attribute`, names.

    Raises:
        PluginNotFoundError: no installed plugin has the name, or more than one has it.
        PluginLoadError: it is installed and cannot be imported.
    """
    if ":" in name:
        return attribute(name)
    matches = [plugin for plugin in plugins(kind) if plugin.name == name]
    if len(matches) > 1:
        raise PluginNotFoundError(
            f"{len(matches)} distributions claim the name {name!r} among {kind}: "
            f"{' and '.join(plugin.distribution for plugin in matches)}; uninstall one, or write module:Class"
        )
    if not matches:
        raise PluginNotFoundError(unknown(kind, name))
    return matches[0].load()


def maker(kind: Kind, name: str, base: type[Made]) -> Callable[..., Made]:
    """Import the maker of the plugin that a name stands for.

    Args:
        kind: the kind of plugin to look for.
        name: the name of an installed plugin, or `module:attribute`.
        base: the contract that its objects must fulfil.

    Returns:
        A class, a class method, or a `functools.partial` of one, which makes objects of `base`.

    Raises:
        PluginNotFoundError: no installed plugin has the name, or more than one has it; or `module:attribute` makes no `base`.
        PluginLoadError: it is installed and cannot be imported.
        ContractError: it is installed as this kind, and makes no `base`.
    """
    target = load(kind, name)
    cls = made_class(target)
    if isinstance(cls, type) and issubclass(cls, base):
        return target
    target_kind = f"the class {cls.__name__}" if isinstance(cls, type) else f"a {type(target).__name__}"
    error = PluginNotFoundError if ":" in name else ContractError  # a user wrote the one, the plugin's author the other
    raise error(f"{name} is {target_kind}, and {kind} are subclasses of panokit.{base.__name__}: name one of these")


def made_class(maker: Any) -> Any:
    """The class that a maker makes objects of: itself, or the class of a class method or `functools.partial`."""
    maker = maker.func if isinstance(maker, partial) else maker
    return getattr(maker, "__self__", maker)


def bound(maker: Any) -> dict[str, Any]:
    """The arguments that a preset, a `functools.partial`, has set already, by name."""
    if not isinstance(maker, partial):
        return {}
    return dict(signature(maker.func).bind_partial(*maker.args, **maker.keywords).arguments)


def attribute(name: str) -> Any:
    """Import the object that `module:attribute` names.

    Raises:
        PluginNotFoundError: there is no such module or attribute.
        PluginLoadError: the module exists and cannot be imported.
    """
    module = name.partition(":")[0]
    if not re.fullmatch(r"[\w.]+:[\w.]+", name):
        raise PluginNotFoundError(
            f"{name!r:.80} names no class: write module:Class, with a module that can be imported from here"
        )
    try:
        return EntryPoint(name, name, "panokit").load()
    except Exception as cause:  # an outside module can raise anything while it is imported
        missing = isinstance(cause, ModuleNotFoundError) and module.startswith(cause.name or "")
        if missing or isinstance(cause, AttributeError | ValueError):
            raise PluginNotFoundError(
                f"{name!r} does not exist ({cause}): write module:Class, with a module that can be imported from here"
            ) from cause
        raise PluginLoadError(
            f"{module} cannot be imported: {type(cause).__name__}: {cause}; correct it, or install what it needs"
        ) from cause


def unknown(kind: Kind, name: str) -> str:
    """The message for a name that no installed plugin has: the closest match, and the installed names."""
    return unknown_among(kind, name, {plugin.name for plugin in plugins(kind)})


def unknown_among(kinds: str, name: str, names: Collection[str]) -> str:
    """The message for a name that is not among `names`: the closest match, and all of them."""
    close = get_close_matches(name, sorted(names), n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"no {kinds.removesuffix('s')} is called {name!r:.80}: {hint}installed are {', '.join(sorted(names)) or 'none'}"
