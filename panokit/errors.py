"""The errors and warnings of panokit. Each message says what came, what was expected, and what to do."""


class PanokitError(Exception):
    """The base class of panokit's errors. Each subclass also inherits the builtin exception that a caller would catch."""

    reported = False
    """Whether rank 0 raises the same error. The other ranks then do not report it."""


class SettingError(PanokitError, ValueError):
    """A setting cannot work: a size, a stride, a number of steps, a box outside the canvas."""


class LauncherError(SettingError):
    """What the environment says of this process's place among the ranks cannot be. Each process knows that of itself alone."""


class PluginNotFoundError(PanokitError, LookupError):
    """No installed plugin has the requested name, or more than one has it."""


class PluginLoadError(PanokitError, ImportError):
    """A plugin is installed, but importing it failed. The cause is chained."""


class ModelError(PanokitError, OSError):
    """A model folder or hub id cannot be loaded: files are missing, pickled, or of an unknown kind."""


class OutputError(PanokitError, OSError):
    """A picture cannot be written to the requested place."""


class ContractError(PanokitError, TypeError):
    """A plugin broke its contract: it returned a wrong type, shape or dtype."""


class NotFiniteError(PanokitError, ArithmeticError):
    """A run produced NaN or infinity."""


class RankError(PanokitError, RuntimeError):
    """Another process of the same run ended, hangs, or was started with other settings."""


class RankFailedError(PanokitError, RuntimeError):
    """A plugin or library failed on one rank. Every rank raises this; the run cannot continue, but the processes can."""


class OutOfMemoryError(PanokitError, RuntimeError):
    """A single window does not fit the device's memory."""


class PromptWarning(UserWarning):
    """The model ignores a prompt, or a part of it."""


class FallbackWarning(UserWarning):
    """A setting or a file cannot be used here, and panokit goes on with something else or without it."""


class ShardingWarning(UserWarning):
    """Devices wait for each other longer than necessary, or a micro-batch did not fit the memory."""


def reason_of(error: BaseException, most: int = 200) -> str:
    """What a library says of an error, in one line.

    Args:
        error: the error.
        most: the most letters of the line.
    """
    return " ".join(str(error).split())[:most] or type(error).__name__


def in_words(error: Exception) -> str:
    """An error in words. One that is not panokit's has its class before them, as libraries' words alone may say little."""
    return str(error) if isinstance(error, PanokitError) else f"{type(error).__name__}: {error}"
