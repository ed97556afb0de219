"""Plugins by name: entry points of installed distributions, loaded when asked for and not before."""

import io
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from inspect import signature
from queue import Empty, Queue
from threading import Thread
from typing import Any, Literal, TypeVar, final

from panokit.errors import ContractError, PluginLoadError, PluginNotFoundError

Made = TypeVar("Made")

Kind = Literal["fusers", "guidances", "schedulers", "models"]
KINDS: tuple[Kind, ...] = ("fusers", "guidances", "schedulers", "models")


@final
@dataclass(frozen=True)
class Plugin:
    """One entry point of the group `panokit.<kind>`."""

    kind: Kind
    name: str
    entry: EntryPoint

    @property
    def origin(self) -> tuple[str, str]:
        """The distribution that brought it, and its version."""
        return (self.entry.dist.name, self.entry.dist.version) if self.entry.dist else ("unknown", "")

    @property
    def distribution(self) -> str:
        """The distribution that brought it, with its version."""
        return " ".join(self.origin).strip()

    def load(self) -> Any:
        """Import it.

        Raises:
            PluginLoadError: it cannot be imported; the cause is chained.
        """
        try:
            return self.entry.load()
        except (Exception, SystemExit) as cause:  # whatever an outside module does while it is imported
            raise PluginLoadError(
                f"the plugin {self.name!r} ({self.kind}, from {self.distribution}) is installed and cannot be imported: "
                f"{type(cause).__name__}: {cause}; reinstall or remove {self.distribution}"
            ) from cause


def states(found: Sequence[Plugin], patience: float = 10.0) -> list[tuple[str, str]]:
    """Of each plugin `ok`, or why it is broken; and the first line of what it says of itself.

    They are imported in threads of their own, silently; those that are left when none has answered for `patience` seconds are
    given up.
    """
    answers: Queue[tuple[int, str, str]] = Queue()
    known = [(f"broken: still importing after {patience:.0f} s", "")] * len(found)
    names = Counter((plugin.kind, plugin.name) for plugin in found)

    def look(k: int) -> None:
        try:
            plugin = found[k].load()
        except PluginLoadError as error:
            answers.put((k, " ".join(f"broken: {type(error.__cause__).__name__}: {error.__cause__}".split()), ""))
        except BaseException as error:  # KeyboardInterrupt, say, of a thread that nobody interrupts
            answers.put((k, f"broken: {type(error).__name__}: {error}", ""))
        else:
            answers.put((k, "ok", _summary(plugin)))

    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        for k in range(len(found)):
            Thread(target=look, args=(k,), daemon=True).start()
        try:
            for _ in found:
                k, *state = answers.get(timeout=patience)
                known[k] = (state[0], state[1])
        except Empty:
            pass
    for k, plugin in enumerate(found):
        if (claims := names[plugin.kind, plugin.name]) > 1:
            known[k] = f"broken: {claims} distributions claim the name", ""
    return known


def _summary(maker: Any) -> str:
    """The first line of what a plugin says about itself; of a preset, how it is made."""
    if isinstance(maker, partial):
        return f"{made_class(maker).__name__}({', '.join(map(repr, bound(maker).values()))})"
    return (maker.__doc__ or "").strip().partition("\n")[0] if isinstance(maker, type) else ""


def plugins(kind: Kind) -> list[Plugin]:
    """All installed plugins of a kind, by name; none is imported."""
    found = [Plugin(kind, entry.name, entry) for entry in entry_points(group=f"panokit.{kind}")]
    return sorted(found, key=lambda plugin: (plugin.name, plugin.distribution))


def load(kind: Kind, name: str) -> Any:
    """The object behind a name, or behind `module:attribute`.

    Args:
        kind: which group to look in.
        name: an entry point's name, or `module:attribute` for what is not installed as a plugin.

    Raises:
        PluginNotFoundError: nothing, or more than one distribution, answers to the name.
        PluginLoadError: it is there and cannot be imported.
    """
    if ":" in name:
        return attribute(name)
    named = [plugin for plugin in plugins(kind) if plugin.name == name]
    if len(named) > 1:
        raise PluginNotFoundError(
            f"{len(named)} distributions claim the name {name!r} among {kind}: "
            f"{' and '.join(plugin.distribution for plugin in named)}; uninstall one, or write module:Class"
        )
    if not named:
        raise PluginNotFoundError(unknown(kind, name))
    return named[0].load()


def maker(kind: Kind, name: str, base: type[Made]) -> Callable[..., Made]:
    """What makes the plugin behind a name, or behind `module:attribute`: a class, a class method, or a `functools.partial`.

    Raises:
        PluginNotFoundError: nothing, or more than one distribution, answers to the name, or `module:attribute` makes no `base`.
        PluginLoadError: it is there and cannot be imported.
        ContractError: it is installed for this kind, and makes no `base`.
    """
    target = load(kind, name)
    cls = made_class(target)
    if isinstance(cls, type) and issubclass(cls, base):
        return target
    what = f"the class {cls.__name__}" if isinstance(cls, type) else f"a {type(target).__name__}"
    error = PluginNotFoundError if ":" in name else ContractError  # the one is the user's choice, the other the plugin's word
    raise error(f"{name} is {what}, and {kind} are subclasses of panokit.{base.__name__}: name one of these")


def made_class(maker: Any) -> Any:
    """The class that a maker makes: itself, or that of a class method, or of a `functools.partial`, which is a preset."""
    maker = maker.func if isinstance(maker, partial) else maker
    return getattr(maker, "__self__", maker)


def bound(maker: Any) -> dict[str, Any]:
    """The arguments that a preset has given already."""
    if not isinstance(maker, partial):
        return {}
    return dict(signature(maker.func).bind_partial(*maker.args, **maker.keywords).arguments)


def attribute(name: str) -> Any:
    """The object behind `module:attribute`.

    Raises:
        PluginNotFoundError: the name leads to nothing.
        PluginLoadError: the module is there and cannot be imported.
    """
    module = name.partition(":")[0]
    try:
        return EntryPoint(name, name, "panokit").load()
    except Exception as cause:  # whatever an outside module does while it is imported
        missing = isinstance(cause, ModuleNotFoundError) and module.startswith(cause.name or "")
        if missing or isinstance(cause, AttributeError | ValueError):
            raise PluginNotFoundError(
                f"{name!r} leads to nothing ({cause}): write module:Class, with a module that can be imported from here"
            ) from cause
        raise PluginLoadError(
            f"{module} cannot be imported: {type(cause).__name__}: {cause}; mend it, or what it needs"
        ) from cause


def unknown(kind: Kind, name: str) -> str:
    """What to say about a name that nobody answers to: the closest match, and what is installed."""
    return unknown_among(kind, name, {plugin.name for plugin in plugins(kind)})


def unknown_among(kinds: str, name: str, names: Collection[str]) -> str:
    """The same, of names that the caller brings."""
    close = get_close_matches(name, sorted(names), n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"no {kinds.removesuffix('s')} is called {name!r}: {hint}installed are {', '.join(sorted(names)) or 'none'}"
