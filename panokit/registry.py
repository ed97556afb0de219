"""Plugins by name: entry points of installed distributions, loaded when asked for and not before."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points
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
    def distribution(self) -> str:
        """The distribution that brought it, with its version."""
        return f"{self.entry.dist.name} {self.entry.dist.version}" if self.entry.dist else "unknown"

    def load(self) -> Any:
        """Import it.

        Raises:
            PluginLoadError: it cannot be imported; the cause is chained.
        """
        try:
            return self.entry.load()
        except Exception as cause:  # whatever an outside module does while it is imported
            raise PluginLoadError(
                f"the plugin {self.name!r} ({self.kind}, from {self.distribution}) is installed and cannot be imported: "
                f"{type(cause).__name__}: {cause}; reinstall or remove {self.distribution}"
            ) from cause

    def state(self) -> str:
        """`ok`, or why it is broken."""
        try:
            self.load()
        except PluginLoadError as error:
            return f"broken: {type(error.__cause__).__name__}: {error.__cause__}"
        return "ok"


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


def make(kind: Kind, name: str, base: type[Made], builtin: Sequence[str] = ()) -> Made:
    """An object of the class behind a name, or of its class method (`module:Class.method`), made without arguments.

    Raises:
        PluginNotFoundError: nothing, or more than one distribution, answers to the name, or `module:attribute` is no `base`.
        PluginLoadError: it is there and cannot be imported.
        ContractError: it is installed for this kind, and is no `base`.
    """
    found = load(kind, name, builtin)
    maker, made = getattr(found, "__self__", found), None  # of a class method its class
    if isinstance(maker, type) and issubclass(maker, base):
        try:
            made = found()
        except TypeError as cause:  # abstract, or with settings that have no default
            raise PluginNotFoundError(
                f"{name} cannot be made by name alone ({cause}): in Python, make one and pass the object"
            ) from cause
    if made is None:
        what = f"the class {found.__name__}" if isinstance(found, type) else f"a {type(found).__name__}"
        error = (
            PluginNotFoundError if ":" in name else ContractError
        )  # the one is the user's choice, the other the plugin's word
        raise error(f"{name} is {what}, and {kind} are subclasses of panokit.{base.__name__}: name one of these")
    return made


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
