"""The parts of a model: their classes, and how the networks among them are read."""

import re
import tempfile
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

import diffusers
import huggingface_hub
import torch
import transformers
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from panokit.backbones.diffusers.weights import Weights
from panokit.errors import ModelError, reason_of
from panokit.family import read_json
from panokit.memory import is_out_of_memory
from panokit.wording import counted

UNUSED = frozenset({"safety_checker"})
"""Parts that look at finished pictures, outside of what panokit runs. They are not read."""

_SMALL = 1 << 20
"""Numbers that a network may have beyond those of its files, however small it is."""

_MISFIT = re.compile(r"size mismatch for (\S+): .*?torch\.Size\((.*?)\).*?torch\.Size\((.*?)\)")
"""What torch says of a tensor of another size: its name, the size in the file and the size in the model."""

_MISFIT_OF_FILE = re.compile(r"because (\S+) expected shape torch\.Size\((.*?)\), but got torch\.Size\((.*?)\)")
"""What diffusers says of it in a single file: its name, the size in the model and the size in the file."""

_WRONG_FIELD = re.compile(r"Field '(\w+)' (?:with value (.+?) doesn't|expected .*?\(value: (.+?)\))")
"""What transformers says of a value of another type: its name, and the value in one of two places."""


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, no library of models shows progress bars, warnings in its logs or what it deprecates."""
    libraries: tuple[Any, ...] = (diffusers.utils.logging, transformers.logging)
    before = [(library, library.is_progress_bar_enabled(), library.get_verbosity()) for library in libraries]
    hub = huggingface_hub.utils.logging.get_verbosity()
    try:
        huggingface_hub.utils.logging.set_verbosity_error()
        for library in libraries:
            library.disable_progress_bar()
            library.set_verbosity(library.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        huggingface_hub.utils.logging.set_verbosity(hub)
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
        ModelError: anything failed. That the memory does not suffice stays what it is.
    """
    try:
        yield
    except ModelError:
        raise
    except Exception as cause:  # broken files and hub failures come in many types
        if is_out_of_memory(cause):
            raise
        raise ModelError(f"cannot load {what}: {_reason(cause)}; {advice}") from cause


def _reason(cause: Exception) -> str:
    """The message of a library in one line, without its advice. Of many tensors that do not fit, it names the first."""
    text = reason_of(cause, 10_000).partition(" Please ")[0]
    if odd := _MISFIT.search(text):
        return f"its {odd[1]} has the size {odd[2]} and the model's {odd[3]}"
    if odd := _MISFIT_OF_FILE.search(text):
        return f"its {odd[1]} has the size {odd[3]} and the model's {odd[2]}"
    if odd := _WRONG_FIELD.search(text):
        return f"its {odd[1]} is {odd[2] or odd[3]:.60}, of a type that it cannot have"
    short = (f"{text[:160]} ..." if len(text) > 160 else text).rstrip(".")
    return f"{short} is not where it should be" if isinstance(cause, KeyError) else short


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
            f"{model} wants code of its own for {name:.60} ({library:.60}.{kind:.60}), and panokit never runs a model's code: "
            "use a model whose parts are classes of diffusers and transformers"
        )
    with explained(f"{name} of {model}", f"install what {kind} needs"):
        cls = getattr(home, kind, None)
    if cls is None or not hasattr(cls, "from_pretrained"):
        raise ModelError(f"{library} has no {kind:.60}, which is {name:.60} of {model}: update {library}, or use another model")
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
    folder, stored = weights.folder, weights.shapes
    options: dict[str, Any] = {"use_safetensors": True, "local_files_only": True, "low_cpu_mem_usage": True}
    packed = bool((folder / "config.json").is_file() and read_json(folder / "config.json").get("quantization_config"))
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": not packed}  # they are refused below, by their names
    options["dtype" if issubclass(cls, transformers.PreTrainedModel) else "torch_dtype"] = dtype
    if weights.variant:
        options["variant"] = weights.variant
    place = _without_index(weights) if weights.stale else nullcontext(folder)
    what, advice = f"{folder.name} of {model}", "check the files, or fetch them again"
    limit = nullcontext() if packed else _no_larger_than(stored, what)
    with quiet(), place as source, explained(what, advice), limit:
        network, info = cls.from_pretrained(source, **options)
    _require_all(network, info, {} if packed else stored, folder.name, model)
    return network.eval()


def _require_all(network: nn.Module, info: Mapping[str, Any], stored: Mapping[str, Any], name: str, model: str) -> None:
    """Check that each weight of a network came from its files, and that its files have no other weights for it.

    Args:
        network: the network.
        info: what its library says of the keys in the files.
        stored: the keys in the files; empty if they are packed, with keys of their own.
        name: of the part.
        model: the model in words, for messages.

    Raises:
        ModelError: one is missing, of another shape, there twice, or not in the network.
    """
    of_two = "its config.json and its weights are of two models; fetch the folder again"
    if missing := sorted(info["missing_keys"]):
        raise ModelError(
            f"{model} lacks {len(missing)} of the weights of {name}, such as {missing[0]:.80}: a file is missing, or {of_two}"
        )
    for key, held, built in sorted(info["mismatched_keys"]):
        raise ModelError(
            f"{model} has {key} of {name} in the shape {tuple(held)}, and its config.json asks for {tuple(built)}: {of_two}"
        )
    built, unknown = network.state_dict().keys(), set(info["unexpected_keys"] if stored else ())
    renamed = stored.keys() - built - unknown  # some files have a prefix before all keys
    plain = {key for key in stored if key in built}
    for key in sorted(renamed):
        if twice := [other for other in plain if key.endswith(f".{other}") or other.endswith(f".{key}")]:
            raise ModelError(
                f"{model} has the weight {twice[0]:.80} of {name} twice, also as {key:.100}: fetch the folder again"
            )
    if isinstance(network, transformers.PreTrainedModel):  # a text encoder may be read from the files of a larger model
        own = {child for child, _ in network.named_children()}
        own |= {prefix for prefix, _, rest in (key.partition(".") for key in renamed) if rest in built}
        unknown = {key for key in unknown if key.partition(".")[0] in own}
    if unknown:
        raise ModelError(
            f"{model} has {counted(len(unknown), 'weight')} of {name} without a place in its config.json, such as "
            f"{min(unknown):.80}: "
            f"{of_two}"
        )


@contextmanager
def _no_larger_than(stored: Mapping[str, torch.Size], what: str) -> Iterator[None]:
    """Inside, no network is built of many more weights, or larger ones, than there are in its files.

    Those that are tied, and so stored once, are built twice, and some are stored as one and built as several.

    Args:
        stored: the shapes of the weights in its files.
        what: the network in words, for messages.

    Raises:
        ModelError: one is.
    """
    thread, weights, numbers = threading.get_ident(), 4 * len(stored) + 100, 4 * sum(map(torch.Size.numel, stored.values()))

    def count(module: nn.Module, name: str, weight: nn.Parameter | None) -> None:
        nonlocal weights, numbers
        if weight is not None and threading.get_ident() == thread:
            weights, numbers = weights - 1, numbers - weight.numel()
            if weights < 0 or numbers < -_SMALL:
                raise ModelError(
                    f"the config.json of {what} asks for a much larger network than its {len(stored)} weights are: they are of "
                    "two models; fetch the folder again"
                )

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def require_read(pipe: Any, what: str, advice: str) -> None:
    """Check that a pipeline has all weights of its networks, and of what was added to them.

    Args:
        pipe: a pipeline of diffusers.
        what: what was read, in words.
        advice: what to do.

    Raises:
        ModelError: one is missing.
    """
    for name, part in pipe.components.items():
        if is_network(type(part)):
            for key, weight in part.named_parameters():
                if weight.is_meta:
                    raise ModelError(f"{what} lacks weights of {name}, a {type(part).__name__}, such as {key}: {advice}")


def read_part(cls: Any, folder: Path, model: str) -> Any:
    """Read a part without weights: a scheduler, a tokenizer, a processor.

    Args:
        cls: its class, of diffusers or transformers.
        folder: its folder.
        model: the model in words, for messages.

    Raises:
        ModelError: a file is missing or damaged.
    """
    with quiet(), explained(f"{folder.name} of {model}", "check its files, or fetch them again"):
        return cls.from_pretrained(str(folder), local_files_only=True)


@contextmanager
def _without_index(weights: Weights) -> Iterator[Path]:
    """A folder of links to a part's files, without an index that is left over. diffusers would believe it."""
    with tempfile.TemporaryDirectory() as clean:
        for file in (weights.folder / "config.json", *weights.files):
            Path(clean, file.name).symlink_to(file.resolve())
        yield Path(clean)
