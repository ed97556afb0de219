"""What panokit raises: every error says what came, what was expected, and what to do."""


class PanokitError(Exception):
    """Root of panokit's errors; its children also inherit the builtin that a caller would catch."""

    reported = False
    """Whether rank 0 raises it too, so that the other ranks need not report it."""


class SettingError(PanokitError, ValueError):
    """A value that the user gave cannot work: a size, a stride, a number of steps, a box outside the canvas."""


class PluginNotFoundError(PanokitError, LookupError):
    """No installed plugin, or more than one, answers to the name that was asked for."""


class PluginLoadError(PanokitError, ImportError):
    """A plugin is installed and could not be imported; the cause is chained."""


class ModelError(PanokitError, OSError):
    """A model folder or hub id cannot be loaded: files are missing, pickled, or of an unknown kind."""


class OutputError(PanokitError, OSError):
    """A picture cannot be written where the user asked for it."""


class ContractError(PanokitError, TypeError):
    """A plugin broke its word: it returned another shape, dtype or type than its contract says."""


class NotFiniteError(PanokitError, ArithmeticError):
    """NaN or infinity turned up in a run."""


class RankError(PanokitError, RuntimeError):
    """Another process of the same run ended, hangs, or was started with something else."""


class RankFailedError(PanokitError, RuntimeError):
    """What a plugin or a library raised on one rank, as all ranks raise it; the run is lost, and the ranks live."""


class OutOfMemoryError(PanokitError, RuntimeError):
    """One window does not fit the device's memory."""


class PromptWarning(UserWarning):
    """A prompt will not do what its author hopes."""


class FallbackWarning(UserWarning):
    """What was asked for is not to be had here, and something else is used."""


class ShardingWarning(UserWarning):
    """Devices wait for each other longer than they need to, or a micro-batch did not fit."""
