"""Loading any pipeline of diffusers: from a folder, the hub or a single file, in the precision of its files."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers.loaders.single_file_utils import fetch_diffusers_config
from safetensors.torch import load_file

from panokit.backbones.diffusers.addons import (
    Embedding,
    IPAdapter,
    Lora,
    add_embeddings,
    add_ip_adapter,
    add_loras,
    addon,
    names_of,
)
from panokit.backbones.diffusers.configurations import read_configuration, require_fitting, require_values
from panokit.backbones.diffusers.parts import UNUSED, explained, is_network, listed_parts, quiet, read_part, require_read
from panokit.backbones.diffusers.sources import file_of, folder_of
from panokit.backbones.diffusers.swaps import Part, controlled, find_controlnet, find_vae, pipeline_class
from panokit.backbones.diffusers.tokenizers import fit_tokenizer, read_tokenizer
from panokit.backbones.diffusers.weights import DTYPES, PICKLES, Weights, find_weights, require_variant
from panokit.errors import ModelError, SettingError
from panokit.family import read_json

DENOISERS = ("transformer", "unet")
"""The names of the networks that denoise."""

COMPANIONS = ("first_stage_model.", "cond_stage_model.", "conditioner.", "text_encoders.", "vae.")
"""How the weights of other parts begin in a file that holds a whole model."""


@dataclass(frozen=True)
class Loading:
    """How a pipeline is loaded: which of its files are read, and what is added to it.

    Attributes:
        variant: reads weights of this variant, such as `fp16` for files `*.fp16.safetensors`; None for plain names, or for the
            only variant that there is.
        revision: the branch, tag or commit of the model on the hub.
        torch_dtype: the precision of the weights, `float32`, `bfloat16` or `float16`; None for that of the files.
        config: a folder or hub id that says how a single file's model is built; None for the hub id that diffusers knows.
        vae: a folder or hub id of another autoencoder.
        controlnet: a folder or hub id of a ControlNet.
        loras: LoRAs, each a mapping of `path` and maybe `weight`, `name` and `weight_name`.
        embeddings: words of textual inversion, each a mapping of `path` and maybe `token` and `weight_name`.
        ip_adapter: an IP-Adapter, a mapping of `path` and maybe `subfolder`, `weight_name`, `scale` and `image_encoder`.

    Raises:
        SettingError: the precision is unknown, a mapping has other entries, or two LoRAs have one name.
    """

    variant: str | None = None
    revision: str | None = None
    torch_dtype: str | None = None
    config: str | None = None
    vae: str | None = None
    controlnet: str | None = None
    loras: tuple[Mapping[str, Any], ...] = ()
    embeddings: tuple[Mapping[str, Any], ...] = ()
    ip_adapter: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.torch_dtype is not None and self.torch_dtype not in DTYPES:
            known = ", ".join(DTYPES)
            raise SettingError(f"torch_dtype is {self.torch_dtype!r}: use {known}, or leave it out for that of the files")
        names = names_of(self.loras_to_add())
        for name in names:
            if names.count(name) > 1 or "." in name:
                raise SettingError(f"loras has the name {name!r}: give each LoRA a name of its own, without dots")
        self.embeddings_to_add(), self.ip_adapter_to_add()

    def loras_to_add(self) -> list[Lora]:
        return [addon(Lora, "loras", entry) for entry in self.loras]

    def embeddings_to_add(self) -> list[Embedding]:
        return [addon(Embedding, "embeddings", entry) for entry in self.embeddings]

    def ip_adapter_to_add(self) -> IPAdapter | None:
        return None if self.ip_adapter is None else addon(IPAdapter, "ip_adapter", self.ip_adapter)


def load_pipeline(source: str, settings: Loading | None = None, folder: Path | None = None) -> Any:
    """Load a pipeline, on the CPU. Its weights come from safetensors, and no code comes with them.

    Args:
        source: a folder in diffusers' format with a `model_index.json`, a hub id, or a file `*.safetensors`.
        settings: which files are read, and what is added.
        folder: where the model is on this machine, if that is known already; a hub id is then not fetched again.

    Returns:
        A pipeline of diffusers. With a ControlNet, it is the text-to-image pipeline of its family that takes one.

    Raises:
        ModelError: files are missing, damaged or pickled, the pipeline's class is unknown, its parts or what is added to it do
            not fit each other, or the hub cannot be reached.
    """
    settings = settings or Loading()
    pipe = _from_file(source, settings) if Path(source).is_file() else _from_folder(source, settings, folder)
    pipe.register_to_config(_name_or_path=source)
    add_embeddings(pipe, settings.embeddings_to_add())
    if adapter := settings.ip_adapter_to_add():
        add_ip_adapter(pipe, adapter, pipe.dtype)
    add_loras(pipe, settings.loras_to_add())
    return pipe


def _from_folder(source: str, settings: Loading, folder: Path | None) -> Any:
    model = f"the model {source}"
    folder = folder or folder_of(source, revision=settings.revision, variant=settings.variant)
    index, kinds = _index(folder, model)
    cls, swaps = _swaps(folder, index, settings, model)
    own = {name: kind for name, kind in kinds.items() if name not in swaps}
    for name in own:
        if not (folder / name).is_dir():
            raise ModelError(f"{model} has no {name}/, which its model_index.json names: fetch the missing files")
    configs = {name: read_configuration(folder / name, kind, model) for name, kind in own.items()}
    require_fitting(configs, model)
    parts = {
        name: Part(kind, find_weights(folder / name, settings.variant, model)) for name, kind in own.items() if is_network(kind)
    }
    require_variant([part.weights for part in parts.values()], settings.variant, model)
    others = {
        name: read_tokenizer(kind, folder / name, configs.get(name.replace("tokenizer", "text_encoder"), {}), model)
        if name.startswith("tokenizer")
        else read_part(kind, folder / name, model)
        for name, kind in own.items()
        if not is_network(kind)
    }
    networks = _read(cls, {**parts, **swaps}, settings, model)
    with quiet(), explained(model, "check its files, or fetch them again"):
        return cls.from_pretrained(str(folder), local_files_only=True, **others, **networks)


def _from_file(source: str, settings: Loading) -> Any:
    model, file = f"the model {source}", file_of(source)
    advice = "set config to a folder in diffusers' format of a model of this kind, with the parts that the file lacks"
    with quiet(), explained(model, "fetch it again"):
        tensors = load_file(file)  # they stay in the file until they are used
        config = settings.config or fetch_diffusers_config(tensors)["pretrained_model_name_or_path"]
    try:
        folder = folder_of(config, weights=False)
    except ModelError as cause:
        raise ModelError(f"{model} does not say how it is built, and neither does its config: {cause}; {advice}") from cause
    index, kinds = _index(folder, f"the config {config}")
    cls, swaps = _swaps(folder, index, settings, model)
    if not hasattr(cls, "from_single_file"):
        raise ModelError(f"{model} is a single file, and a {cls.__name__} cannot be read from one: use a folder or a hub id")
    alone = not any(key.startswith(COMPANIONS) for key in tensors)
    configs = {name: read_configuration(folder / name, kind, f"the config {config}") for name, kind in kinds.items()}
    require_fitting(configs, f"the config {config}")
    parts = {}
    for name in (name for name, kind in kinds.items() if is_network(kind) and name not in swaps):
        pickled = any(path.suffix in PICKLES for path in (folder / name).glob("*"))
        if pickled or (alone and name not in DENOISERS):  # diffusers itself would read pickles of a config
            parts[name] = Part(kinds[name], find_weights(folder / name, settings.variant, f"the config {config}"))
    dtype = DTYPES[settings.torch_dtype] if settings.torch_dtype else Weights(file.parent, None, (file,), False).dtype
    networks = _read(cls, {**parts, **swaps} if alone else swaps, settings, model)
    with quiet(), explained(f"{model} as a {cls.__name__}", advice):
        options = {"config": str(folder), "torch_dtype": dtype, "local_files_only": True, **networks}
        pipe = cls.from_single_file(str(file), **options)
    require_read(pipe, model, advice)
    for name, part in pipe.components.items():
        if name.startswith("tokenizer") and part is not None:
            encoder = pipe.components.get(name.replace("tokenizer", "text_encoder"))
            fit_tokenizer(part, encoder.config.to_dict() if encoder else {}, f"{name} of {model}")
    return pipe


def _index(folder: Path, model: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The content of a model's index, and the classes of its parts by name."""
    if not (folder / "model_index.json").is_file():
        raise ModelError(f"{model} has no model_index.json: it must be a pipeline in diffusers' format")
    index = read_json(folder / "model_index.json")
    odd = next((key for key in ("custom_pipeline", "trust_remote_code", "auto_map") if index.get(key)), None)
    if odd or not isinstance(index.get("_class_name"), str):
        code = odd or f"_class_name {index.get('_class_name')!r:.60}"
        raise ModelError(
            f"{model} wants code of its own, {code} in its model_index.json, and panokit never runs a model's code: use a "
            "model whose pipeline is a class of diffusers"
        )
    require_values(index, None, f"the model_index.json of {model}")
    return index, listed_parts(index, model)


def _swaps(folder: Path, index: Mapping[str, Any], settings: Loading, model: str) -> tuple[Any, dict[str, Part]]:
    """The class of the pipeline, and the networks that do not come from the model itself."""
    swaps, name = {}, index["_class_name"]
    if settings.vae:
        swaps["vae"] = find_vae(settings.vae, folder / "vae", settings.variant)
    if not settings.controlnet:
        return pipeline_class(name, model), swaps
    network = next((folder / part for part in DENOISERS if part in index), folder)
    steering = find_controlnet(settings.controlnet, network, settings.variant)
    return controlled(name, steering.cls, model), {**swaps, "controlnet": steering}


def _read(cls: Any, parts: Mapping[str, Part], settings: Loading, model: str) -> dict[str, Any]:
    """The networks of a pipeline by name. The largest is read first: while a file is open, its bytes count, too."""
    dtype = DTYPES[settings.torch_dtype] if settings.torch_dtype else None
    largest = sorted(parts, key=lambda name: -parts[name].weights.size)
    return {
        **{name: parts[name].read(dtype, model) for name in largest},
        **dict.fromkeys(UNUSED & cls._get_signature_types().keys()),
    }
