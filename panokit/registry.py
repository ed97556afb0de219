"""Plugins by name: entry points of installed distributions, loaded when asked for and not before."""

import io
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points
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
            line = (plugin.__doc__ or "").strip().partition("\n")[0] if isinstance(plugin, type) else ""
            answers.put((k, "ok", line))

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


def plugins(kind: Kind) -> list[Plugin]:
    """All installed plugins of a kind, by name; none is imported."""
    found = [Plugin(kind, entry.name, entry) for entry in entry_points(group=f"panokit.{kind}")]
    return sorted(found, key=lambda plugin: (plugin.name, plugin.distribution))


def load(kind: Kind, name: str, builtin: Sequence[str] = ()) -> Any:
    """The object behind a name, or behind `module:attribute`.

    Args:
        kind: which group to look in.
        name: an entry point's name, or `module:attribute` for what is not installed as a plugin.
        builtin: names that work besides the installed ones, for the error's sake.

    Raises:
        PluginNotFoundError: nothing, or more than one distribution, answers to the name.
        PluginLoadError: it is there and cannot be imported.
    """
    if ":" in name:
        return _attribute(kind, name)
    named = [plugin for plugin in plugins(kind) if plugin.name == name]
    if len(named) > 1:
        raise PluginNotFoundError(
            f"{len(named)} distributions claim the name {name!r} among {kind}: "
            f"{' and '.join(plugin.distribution for plugin in named)}; uninstall one, or write module:Class"
        )
    if not named:
        raise PluginNotFoundError(unknown(kind, name, builtin))
    return named[0].load()


def maker(kind: Kind, name: str, base: type[Made], builtin: Sequence[str] = ()) -> Callable[..., Made]:
    """The class behind a name, or behind `module:Class`; or a class method of it, `module:Class.method`.

    Raises:
        PluginNotFoundError: nothing, or more than one distribution, answers to the name, or `module:attribute` is no `base`.
        PluginLoadError: it is there and cannot be imported.
        ContractError: it is installed for this kind, and is no `base`.
    """
    found = load(kind, name, builtin)
    cls = getattr(found, "__self__", found)  # of a class method its class
    if isinstance(cls, type) and issubclass(cls, base):
        return found
    what = f"the class {found.__name__}" if isinstance(found, type) else f"a {type(found).__name__}"
    error = PluginNotFoundError if ":" in name else ContractError  # the one is the user's choice, the other the plugin's word
    raise error(f"{name} is {what}, and {kind} are subclasses of panokit.{base.__name__}: name one of these")


def _attribute(kind: Kind, name: str) -> Any:
    """The object behind `module:attribute`."""
    module = name.partition(":")[0]
    try:
        return EntryPoint(name, name, f"panokit.{kind}").load()
    except Exception as cause:  # whatever an outside module does while it is imported
        missing = isinstance(cause, ModuleNotFoundError) and module.startswith(cause.name or "")
        if missing or isinstance(cause, AttributeError | ValueError):
            raise PluginNotFoundError(
                f"{name!r} leads to nothing ({cause}): write module:Class, with a module that can be imported from here"
            ) from cause
        raise PluginLoadError(
            f"{module} cannot be imported: {type(cause).__name__}: {cause}; mend it, or what it needs"
        ) from cause


def unknown(kind: Kind, name: str, builtin: Sequence[str] = ()) -> str:
    """What to say of a name that nobody answers to: the closest match, and what there is."""
    return unknown_among(kind, name, {*(plugin.name for plugin in plugins(kind)), *builtin})


def unknown_among(kinds: str, name: str, names: Collection[str]) -> str:
    """The same, of names that the caller brings."""
    close = get_close_matches(name, sorted(names), n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"no {kinds.removesuffix('s')} is called {name!r}: {hint}installed are {', '.join(sorted(names)) or 'none'}"
