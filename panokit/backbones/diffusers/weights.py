"""The files that hold the weights of a model's part: found, checked and described before anything large is read."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from safetensors import safe_open

from panokit.errors import ModelError
from panokit.family import read_json
from panokit.hints import fit

Held = TypeVar("Held")

PICKLES = (".bin", ".pt", ".pth", ".ckpt")
"""The ends of files whose content can run code."""

DTYPES: Mapping[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""The dtypes that networks compute in, by their names in settings."""

_STEM = r"(?:model|diffusion_pytorch_model)"
_SHARD = r"-\d+-of-\d+"
_FILE = re.compile(rf"{_STEM}(?P<old>{_SHARD})?(?:\.(?P<variant>[^.]+?))?(?P<shard>{_SHARD})?\.safetensors")
_INDEX = re.compile(rf"{_STEM}\.safetensors(?:\.(?P<old>[^.]+))?\.index(?:\.(?P<variant>[^.]+))?\.json")
_STORED = {"F64": torch.float32, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_STORED |= {"F8_E4M3": torch.bfloat16, "F8_E5M2": torch.bfloat16}


@dataclass(frozen=True)
class Names:
    """The names of the files of one variant.

    Attributes:
        whole: a file with all weights.
        index: the file that says which shard has which weights.
        shards: files with some of the weights each.
    """

    whole: str | None = None
    index: str | None = None
    shards: frozenset[str] = frozenset()

    @property
    def needed(self) -> frozenset[str]:
        """The files to fetch: the shards with their index, or else the whole."""
        return self.shards | {self.index} if self.index else frozenset({self.whole} if self.whole else ())


class Weights(NamedTuple):
    """The weights of a part that can be read.

    Attributes:
        folder: the folder of the part.
        variant: their variant, such as `fp16`; None for plain names.
        files: the files that hold them.
        stale: whether the folder also has an index of shards that are not there.
    """

    folder: Path
    variant: str | None
    files: tuple[Path, ...]
    stale: bool

    @property
    def size(self) -> int:
        """Bytes of the files."""
        return sum(file.stat().st_size for file in self.files)

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """The shapes of the weights, by their keys."""
        shapes: dict[str, torch.Size] = {}
        for file in self.files:
            with safe_open(file, framework="pt") as tensors:
                names: list[str] = tensors.keys()
                shapes |= {name: torch.Size(tensors.get_slice(name).get_shape()) for name in names}
        return shapes

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of most bytes. Networks do not compute in 8 bits: those count as bfloat16."""
        bytes_of: Counter[torch.dtype] = Counter()
        for file in self.files:
            with safe_open(file, framework="pt") as tensors:
                names: list[str] = tensors.keys()
                for name in names:
                    entry = tensors.get_slice(name)
                    if entry.get_dtype() in _STORED:
                        dtype = _STORED[entry.get_dtype()]
                        bytes_of[dtype] += torch.Size(entry.get_shape()).numel() * dtype.itemsize
        return max(bytes_of, key=lambda dtype: bytes_of[dtype], default=torch.float32)


def named(files: Iterable[str]) -> dict[str | None, Names]:
    """The files of weights among some names, by their variant; None is the variant of plain names."""
    variants: dict[str | None, Names] = {}
    for file in files:
        if match := _FILE.fullmatch(file):
            names = variants.get(match["variant"], Names())
            shard = match["old"] or match["shard"]
            variants[match["variant"]] = replace(names, shards=names.shards | {file}) if shard else replace(names, whole=file)
        elif match := _INDEX.fullmatch(file):
            variant = match["variant"] or match["old"]
            variants[variant] = replace(variants.get(variant, Names()), index=file)
    return variants


def choice(held: Mapping[str | None, Held], variant: str | None) -> str | None:
    """Which of the variants that a part has is read: the one that is asked for, or the plain one, or the only one.

    Raises:
        LookupError: there is no such one, or there are several and none is asked for.
    """
    if variant in held:
        return variant
    if None in held:
        return None
    if variant is None and len(held) == 1:
        return next(iter(held))
    raise LookupError(variant)


def require_variant(weights: Iterable[Weights], variant: str | None, model: str) -> None:
    """Check that some part of a model has the variant that the user asks for.

    Raises:
        ModelError: all parts have plain weights.
    """
    if variant and not any(files.variant for files in weights):
        raise ModelError(f"{model} has no {variant} weights but plain ones: leave the model's variant out")


def find_weights(folder: Path, variant: str | None, model: str) -> Weights:
    """Find the weights of a part.

    Args:
        folder: the folder of the part.
        variant: the variant that the user asks for. A part without it is read from plain names, as diffusers does.
        model: the model in words, for messages.

    Raises:
        ModelError: there are none, they are pickled, files are missing or cut off, or it is not clear which are meant.
    """
    variants = named(path.name for path in folder.iterdir())
    held: dict[str | None, Weights] = {}
    broken: dict[str | None, str] = {}
    for name, names in variants.items():
        shards = _shards(folder / names.index) if names.index else frozenset[str]()
        missing = sorted(shards - names.shards)
        if shards and not missing:
            held[name] = Weights(folder, name, tuple(folder / shard for shard in sorted(shards)), False)
        elif names.whole:
            held[name] = Weights(folder, name, (folder / names.whole,), bool(names.index))
        elif names.index:
            broken[name] = f"no {missing[0] if missing else 'weights'} in {folder.name}/, which {names.index} names"
        else:
            broken[name] = f"shards of weights in {folder.name}/ and no index of them (*.safetensors.index.json)"
    try:
        chosen = held[choice(held, variant)]
    except LookupError:
        raise ModelError(f"{model} has {_lacking(folder, variant, held, broken)}") from None
    places: dict[str, str] = {}
    for file in chosen.files:
        try:
            with safe_open(file, framework="pt") as tensors:
                keys: list[str] = tensors.keys()
        except Exception as cause:  # of a type of its own
            raise ModelError(
                f"{model} has a damaged file {file.parent.name}/{file.name}: {cause!s:.160}; fetch it again"
            ) from cause
        for key in keys:
            if key in places:
                raise ModelError(
                    f"{model} has the weight {key} of {folder.name} twice, in {places[key]} and {file.name}: fetch it again"
                )
            places[key] = file.name
    return chosen


def _lacking(folder: Path, variant: str | None, held: Mapping[str | None, Weights], broken: Mapping[str | None, str]) -> str:
    """What is wrong with a part without the weights that are asked for, and what to do."""
    if variant in broken:
        return f"{broken[variant]}: fetch the missing files"
    if held:
        there = " and ".join(sorted(name for name in held if name))
        asked = f"{variant} " if variant else ""
        return f"no {asked}weights in {folder.name}/ but of the variant {there}: set the model's variant"
    if broken:
        return f"{next(iter(broken.values()))}: fetch the missing files"
    pickled = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
    weights = f"only pickled weights ({pickled[0]}), which can run code" if pickled else "no weights"
    return (
        f"{weights} in {folder.name}/: panokit reads safetensors; "
        "save the model again with save_pretrained(..., safe_serialization=True)"
    )


def _shards(index: Path) -> frozenset[str]:
    """The names of the files that an index names."""
    try:
        places = fit(read_json(index).get("weight_map"), dict[str, str])
    except TypeError as cause:
        raise ModelError(f"{index} is damaged, its weight_map does not say the file of each weight: fetch it again") from cause
    return frozenset(places.values())
