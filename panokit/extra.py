"""What a run makes beside its picture, and can do without."""

import warnings
from types import TracebackType
from typing import final

from panokit.errors import FallbackWarning, in_words


@final
class Extra:
    """A context for what a run can do without, such as previews. If it fails, the run goes on, and the user is warned once.

    Args:
        without: what happens then, for the warning: `the run goes on without previews`.
    """

    def __init__(self, without: str) -> None:
        self._without, self._warned = without, False

    def __enter__(self) -> None:
        """Begin another attempt."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> bool:
        if not isinstance(error, Exception):
            return False
        if not self._warned:
            self._warned = True
            warnings.warn(f"{in_words(error)}; {self._without}", FallbackWarning, stacklevel=2)
        return True
