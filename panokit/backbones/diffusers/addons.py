"""What is added to a loaded pipeline: LoRAs, textual inversion and IP-Adapters."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from inspect import Parameter, signature
from typing import Any, TypeVar, get_args

import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file

from panokit.backbones.diffusers.configurations import read_configuration
from panokit.backbones.diffusers.parts import explained, is_network, quiet, read_network, require_read
from panokit.backbones.diffusers.sources import file_of, folder_of
from panokit.backbones.diffusers.weights import find_weights
from panokit.errors import FallbackWarning, ModelError, SettingError
from panokit.hints import make

Made = TypeVar("Made")


@dataclass(frozen=True)
class Lora:
    """A LoRA: a small change of a pipeline's networks.

    Attributes:
        path: a file, a folder or a hub id.
        weight: its strength.
        name: the name of the adapter.
        weight_name: the file, where the folder has several.
    """

    path: str
    weight: float = 1.0
    name: str | None = None
    weight_name: str | None = None


@dataclass(frozen=True)
class Embedding:
    """A word that was learned by textual inversion.

    Attributes:
        path: a file, a folder or a hub id.
        token: the word in prompts; None for the one in the file.
        weight_name: the file, where the folder has several.
    """

    path: str
    token: str | None = None
    weight_name: str | None = None


@dataclass(frozen=True)
class IPAdapter:
    """An IP-Adapter, with which a pipeline takes a picture for a prompt.

    Attributes:
        path: a file, a folder or a hub id.
        subfolder: the folder in it that has the file.
        weight_name: the file, where the folder has several.
        scale: its strength.
        image_encoder: a folder or hub id of the image encoder; None for the folder `image_encoder` beside the file.
    """

    path: str
    subfolder: str | None = None
    weight_name: str | None = None
    scale: float = 1.0
    image_encoder: str | None = None


def addon(cls: type[Made], setting: str, entry: object) -> Made:
    """An add-on from the mapping that describes it.

    Args:
        cls: what it is.
        setting: the name of the setting, for messages.
        entry: the mapping.

    Raises:
        SettingError: it lacks something, or has something that the add-on has not.
    """
    known = {name: parameter.default is Parameter.empty for name, parameter in signature(cls).parameters.items()}
    if not isinstance(entry, Mapping):
        raise SettingError(f"{setting} has {entry!r:.80}: give a mapping with {', '.join(known)}")
    if odd := [str(key) for key in entry if key not in known]:
        raise SettingError(f"{setting} has the unknown entry {odd[0]!r}: it may have {', '.join(known)}")
    if lacking := [key for key, required in known.items() if required and key not in entry]:
        raise SettingError(f"{setting} has {dict(entry)!r:.80}, without {lacking[0]}: say where its file is")
    try:
        return make(cls, entry)
    except SettingError as cause:
        raise SettingError(f"{setting}: {cause}") from cause


def names_of(loras: Sequence[Lora]) -> list[str]:
    """The names of LoRAs in their pipeline: their own, or numbered ones."""
    return [lora.name or f"lora_{number}" for number, lora in enumerate(loras, 1)]


def add_loras(pipe: Any, loras: Sequence[Lora]) -> None:
    """Load LoRAs into a pipeline, each at its strength.

    Raises:
        ModelError: the pipeline takes none, or a file is for another model.
    """
    kind = type(pipe).__name__
    if loras and not hasattr(pipe, "load_lora_weights"):
        raise ModelError(f"a {kind} takes no LoRAs, and {loras[0].path} is set: remove loras, or use another model")
    names = names_of(loras)
    for lora, name in zip(loras, names, strict=True):
        file = file_of(lora.path, lora.weight_name)
        advice = f"use a LoRA that was made for the model of this {kind}"
        with quiet(), explained(f"the LoRA {file}", advice):
            options: dict[str, Any] = {"weight_name": file.name, "use_safetensors": True, "local_files_only": True}
            state = pipe.lora_state_dict(str(file.parent), **options)
            tensors = state[0] if isinstance(state, tuple) else state
            wanted = sum("alpha" not in key.rpartition(".")[2] for key in tensors)
            pipe.load_lora_weights(str(file.parent), adapter_name=name, **options)
        require_read(pipe, f"the LoRA {file}", advice)
        fitting = sum(f".{name}." in f"{key}." for network in _networks(pipe) for key, _ in network.named_parameters())
        count = f"{fitting} of its {wanted} tensors have a place in it"
        if not fitting:
            raise ModelError(f"the LoRA {file} does not fit a {kind}: {count}; {advice}")
        if fitting < wanted:  # diffusers leaves some kinds out on purpose
            message = f"the LoRA {file} fits a {kind} in part: {count}, and the others are left out"
            warnings.warn(message, FallbackWarning, stacklevel=2)
    if loras:
        with quiet(), explained("the LoRAs", "check their weights"):
            pipe.set_adapters(names, [lora.weight for lora in loras])


def add_embeddings(pipe: Any, embeddings: Sequence[Embedding]) -> None:
    """Teach a pipeline's text encoders the words of textual inversion.

    Raises:
        ModelError: the pipeline takes none, a word is known already, or a file is for another text encoder.
    """
    kind = type(pipe).__name__
    for embedding in embeddings:
        if not hasattr(pipe, "load_textual_inversion"):
            raise ModelError(f"a {kind} takes no textual inversion, and {embedding.path} is set: remove embeddings")
        file = file_of(embedding.path, embedding.weight_name)
        what = f"the textual inversion {file}"
        with explained(what, "check the file"):
            tensors = load_file(file)
        pair = tensors.keys() == {"clip_l", "clip_g"}
        if not pair and len(tensors) != 1:
            raise ModelError(
                f"{what} has {len(tensors)} tensors, and one was expected: check the path, it may be another kind of file"
            )
        token = embedding.token or next(iter(tensors))
        if embedding.token is None and (pair or token == "emb_params"):
            raise ModelError(f"{what} does not say its word: set its token")
        for tensor, encoder in ((tensors[key], key) for key in sorted(tensors, reverse=True)):
            which = "_2" if encoder == "clip_g" else ""
            text_encoder, tokenizer = (getattr(pipe, part + which, None) for part in ("text_encoder", "tokenizer"))
            width = text_encoder.get_input_embeddings().weight.shape[-1] if text_encoder and tokenizer else 0
            if tensor.shape[-1] != width:
                reads = f"of a {kind} reads {width}" if width else f"is not in a {kind}"
                raise ModelError(
                    f"{what} has vectors of {tensor.shape[-1]} numbers, and text_encoder{which} {reads}: use one for this model"
                )
            if tokenizer and token in tokenizer.get_vocab():
                raise ModelError(f"{what} is for the word {token}, which the model knows already: set another token")
            with quiet(), explained(what, f"use one for the text encoders of a {kind}"):
                pipe.load_textual_inversion({token: tensor}, token=token, text_encoder=text_encoder, tokenizer=tokenizer)


def add_ip_adapter(pipe: Any, adapter: IPAdapter, dtype: torch.dtype) -> None:
    """Load an IP-Adapter into a pipeline, and its image encoder where the pipeline has none.

    Raises:
        ModelError: the pipeline takes none, there is no image encoder, or the file is for another model.
    """
    kind = type(pipe).__name__
    if not hasattr(pipe, "load_ip_adapter"):
        raise ModelError(f"a {kind} takes no IP-Adapter, and {adapter.path} is set: remove ip_adapter, or use another model")
    file = file_of(adapter.path, adapter.weight_name, adapter.subfolder)
    what = f"the IP-Adapter {file}"
    if pipe.image_encoder is None:
        folder = folder_of(adapter.image_encoder) if adapter.image_encoder else file.parent / "image_encoder"
        if not (folder / "config.json").is_file():
            raise ModelError(
                f"{what} needs an image encoder, the pipeline has none, and {folder} is no folder of one: set image_encoder of "
                "ip_adapter to its folder or hub id"
            )
        cls = next(iter(filter(is_network, _types(pipe, "image_encoder"))), transformers.CLIPVisionModelWithProjection)
        read_configuration(folder, cls, what)
        encoder = read_network(cls, find_weights(folder, None, what), dtype, what)
        pipe.register_modules(image_encoder=encoder)
    with quiet(), explained(what, f"use an IP-Adapter that was made for the model of this {kind}"):
        with safe_open(file, framework="pt") as tensors:
            names: list[str] = tensors.keys()
        groups = {name.partition(".")[0] for name in names}
        if not {"image_proj", "ip_adapter"} <= groups:
            raise ModelError(f"the file {file} is no IP-Adapter, it has no image_proj and ip_adapter: set weight_name to one")
        pipe.load_ip_adapter(str(file.parent), subfolder="", weight_name=file.name, local_files_only=True)
        pipe.set_ip_adapter_scale(adapter.scale)
    require_read(pipe, what, f"use an IP-Adapter that was made for the model of this {kind}")


def _networks(pipe: Any) -> list[torch.nn.Module]:
    return [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]


def _types(pipe: Any, part: str) -> tuple[Any, ...]:
    """The classes that a pipeline's signature allows for a part."""
    hint = type(pipe)._get_signature_types().get(part, ())
    return tuple(hint) if isinstance(hint, tuple | list) else (hint, *get_args(hint))
