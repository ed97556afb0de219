"""Out of memory: one question, with one answer. Libraries say it in many types and words."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from panokit.errors import OutOfMemoryError, PanokitError, reason_of

ADVICE = "try checkpointing, the precision bf16-true, attention sliced, offload, or a device with more"

_SIGNS = (
    "out of memory",  # CUDA, ROCm, MPS
    "allocate memory",  # torch's allocator on a CPU, and the system: can't, cannot, failed to
    "not enough memory",  # torch's allocator, on other systems
    "could not create a primitive",  # oneDNN, which does not say why
    "alloc_failed",  # CUBLAS_STATUS_ALLOC_FAILED and its like
    "bad_alloc",  # C++
    "failed to map segment",  # the loader of libraries
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of a library means that there was not enough memory, on a device or in the host."""
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    says = str(error).lower()
    libraries = isinstance(error, RuntimeError | ImportError) and not isinstance(error, PanokitError)
    return libraries and any(sign in says for sign in _SIGNS)


@contextmanager
def memory_explained(what: str) -> Iterator[None]:
    """Inside, an error that means that there was not enough memory becomes one of panokit, in one line.

    Args:
        what: what needs the memory, in words.

    Raises:
        OutOfMemoryError: there was not enough memory.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(f"{what} does not fit the memory ({reason_of(error)}): {ADVICE}") from error
