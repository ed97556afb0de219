"""The parts of a model: their classes, and how the networks among them are read."""

import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from torch import nn

from panokit.backbones.diffusers.weights import Weights
from panokit.errors import ModelError

UNUSED = frozenset({"safety_checker"})
"""Parts that look at finished pictures, outside of what panokit runs. They are not read."""

_MISFIT = re.compile(r"size mismatch for (\S+): .*?torch\.Size\((.*?)\).*?torch\.Size\((.*?)\)")
"""What torch says of a tensor of another size: its name, the size in the file and the size in the model."""


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, neither diffusers nor transformers shows progress bars, warnings in their logs or what they deprecate."""
    libraries = (diffusers.utils.logging, transformers.logging)
    before = [(library, library.is_progress_bar_enabled(), library.get_verbosity()) for library in libraries]
    try:
        for library in libraries:
            library.disable_progress_bar()
            library.set_verbosity(library.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for library, shown, verbosity in before:
            library.set_verbosity(verbosity)
            if shown:
                library.enable_progress_bar()


@contextmanager
def explained(what: str, advice: str) -> Iterator[None]:
    """Inside, the failure of a library becomes an error of one line.

    Args:
        what: what is loaded, in words.
        advice: what to do.

    Raises:
        ModelError: anything failed.
    """
    try:
        yield
    except ModelError:
        raise
    except Exception as cause:  # broken files and hub failures come in many types
        raise ModelError(f"cannot load {what}: {_reason(cause)}; {advice}") from cause


def _reason(cause: Exception) -> str:
    """The message of a library in one line, without its advice. Of many tensors that do not fit, it names the first."""
    text = " ".join(str(cause).split()).partition(" Please ")[0] or type(cause).__name__
    if isinstance(cause, LookupError):
        return f"tensors in it have other names or shapes than expected ({text})"
    if odd := _MISFIT.search(text):
        return f"its {odd[1]} has the size {odd[2]} and the model's {odd[3]}"
    return (f"{text[:300]} ..." if len(text) > 300 else text).rstrip(".")


def listed_parts(index: Mapping[str, Any], model: str) -> dict[str, Any]:
    """The classes of a pipeline's parts by their names, as its `model_index.json` says.

    Args:
        index: the content of the file.
        model: the model in words, for messages.

    Raises:
        ModelError: a part is code that comes with the model, or its class is unknown.
    """
    return {
        name: _part_class(name, entry[0], entry[1], model)
        for name, entry in index.items()
        if isinstance(entry, list) and len(entry) == 2 and all(isinstance(word, str) for word in entry) and name not in UNUSED
    }


def _part_class(name: str, library: str, kind: str, model: str) -> Any:
    """The class of a part. Only diffusers and transformers are asked for it."""
    home: Any = getattr(diffusers.pipelines, library, None)
    if library in ("diffusers", "transformers"):
        home = import_module(library)
    if home is None:
        raise ModelError(
            f"{model} wants code of its own for {name} ({library}.{kind}), and panokit never runs a model's code: use a model "
            "whose parts are classes of diffusers and transformers"
        )
    with explained(f"{name} of {model}", f"install what {kind} needs"):
        cls = getattr(home, kind, None)
    if cls is None or not hasattr(cls, "from_pretrained"):
        raise ModelError(f"{library} has no {kind}, which is {name} of {model}: update {library}, or use another model")
    require_backends(cls, model)
    return cls


def require_backends(cls: Any, model: str) -> None:
    """Check that a class is more than a stand-in for one whose libraries are not installed.

    Raises:
        ModelError: it is a stand-in.
    """
    if ".dummy_" in cls.__module__:
        needed = ", ".join(getattr(cls, "_backends", ()))
        raise ModelError(f"{model} needs {cls.__name__}, which works with these packages alone: {needed}; install them")


def is_network(cls: Any) -> bool:
    """Whether a part has weights."""
    return isinstance(cls, type) and issubclass(cls, nn.Module)


def read_network(cls: Any, weights: Weights, dtype: torch.dtype, model: str) -> Any:
    """Read a network, without a second copy of its weights in memory.

    Args:
        cls: its class, of diffusers or transformers.
        weights: the files of its weights, in its folder.
        dtype: the dtype that it gets. What a network keeps in float32 stays so.
        model: the model in words, for messages.

    Raises:
        ModelError: the weights are not those of the class, or some are missing.
    """
    folder = weights.folder
    options: dict[str, Any] = {"use_safetensors": True, "local_files_only": True, "low_cpu_mem_usage": True}
    options["dtype" if issubclass(cls, transformers.PreTrainedModel) else "torch_dtype"] = dtype
    if weights.variant:
        options["variant"] = weights.variant
    place = _without_index(weights) if weights.stale else nullcontext(folder)
    with quiet(), place as source, explained(f"{folder.name} of {model}", "check the files, or fetch them again"):
        network, info = cls.from_pretrained(source, output_loading_info=True, **options)
    missing = sorted(info["missing_keys"])
    if missing:
        raise ModelError(
            f"{model} lacks {len(missing)} of the weights of {folder.name}, such as {missing[0]}: its config.json and its "
            "weights are of two models, or a file is missing; fetch the folder again"
        )
    return network.eval()


@contextmanager
def _without_index(weights: Weights) -> Iterator[Path]:
    """A folder of links to a part's files, without an index that is left over. diffusers would believe it."""
    with tempfile.TemporaryDirectory() as clean:
        for file in (weights.folder / "config.json", *weights.files):
            Path(clean, file.name).symlink_to(file.resolve())
        yield Path(clean)
