"""Models by name: where they are, and which family reads them."""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download

from panokit import registry
from panokit.composition import build
from panokit.denoiser import Model
from panokit.errors import ModelError, PanokitError, PluginNotFoundError, SettingError
from panokit.family import Family, is_path, read_json
from panokit.memory import memory_explained
from panokit.plain import map_leaves

_HUB_ID = re.compile(r"\w[\w.-]{0,95}/[\w.-]{1,96}")


def load_model(source: Any, /, **settings: Any) -> Model:
    """Load a model by its name, with the family that reads it; or take one in hand, such as a pipeline of diffusers.

    Args:
        source: the name of an installed model, a folder in diffusers' format, or a hub id such as `owner/model`. Or a mapping
            of that name, under `plugin`, and settings. Or a model in hand, which stays as it is: its weights are shared.
        settings: those of the family, such as `variant="fp16"`; `panokit plugins diffusers` lists them.

    Returns:
        The model, on the CPU.

    Raises:
        PluginNotFoundError: the name is not installed, no folder, and not of the form of a hub id.
        PluginLoadError: the installed model cannot be imported.
        ModelError: no family reads it, files are missing or pickled, or the hub cannot be reached.
        OutOfMemoryError: it does not fit the memory.
        SettingError: the family has no such setting, or refuses its value.
    """
    if isinstance(source, Mapping):
        settings = {**source, **settings}
        name = settings.pop("plugin", None)
        if not isinstance(name, str):
            raise SettingError(f"the model came as {source!r:.80}: give its name, or {{plugin: NAME, SETTING: VALUE}}")
        source = name
    if isinstance(source, Path):
        source = str(source)
    if not isinstance(source, str):
        model = _built(_holding(source), settings).hold(source)
        noted = map_leaves(settings, _noted)
        return replace(model, settings={**noted, "in_hand": model.settings.get("in_hand", type(source).__name__)})
    if "in_hand" in settings:
        raise ModelError(
            f"the model {source} was a {settings['in_hand']} in Python: make it again there, and give it to Sampler"
        )
    place, family = _found(source, settings.get("revision"))
    with memory_explained(f"the model {source}"):
        return replace(_built(family, settings, source).load(place, source), settings=map_leaves(settings, _noted))


def family_of(name: str) -> str:
    """The name of the family that reads a model; see `load_model`."""
    return _found(name)[1]


def bytes_of(source: Any) -> int:
    """The bytes of weights that loading a model brings into memory, about; 0 if it is there, or not on this machine.

    Args:
        source: a model as `load_model` takes it, or a mapping of its name and settings.
    """
    name = source.get("plugin") if isinstance(source, Mapping) else source
    if not isinstance(name, str | Path):
        return 0
    try:
        installed = any(plugin.name == name for plugin in registry.plugins("models"))
        target = registry.load("models", str(name)) if installed else name
        if (cls := _family_in(target)) is not None:
            settings = {name: field.default for name, field in signature(cls).parameters.items()}
            return bytes_of((settings | (dict(source) if isinstance(source, Mapping) else {})).get("model"))
        place = Path(str(target))
        if not place.exists() and str(name).count("/") == 1:
            place = Path(snapshot_download(str(name), local_files_only=True))
        if place.is_file():
            return place.stat().st_size
        return sum(_smallest(part) for part in (place, *place.iterdir()) if part.is_dir() and part.name != "safety_checker")
    except (PanokitError, OSError, ValueError):  # loading says what is wrong
        return 0


def _smallest(part: Path) -> int:
    """The bytes of a part's weights: of its variants, the smallest, since one alone is read."""
    sizes: Counter[str] = Counter()
    for file in part.glob("*.safetensors"):
        sizes[re.sub(r"-\d+-of-\d+", "", file.name)] += file.stat().st_size
    return min(sizes.values(), default=0)


def _noted(value: Any) -> Any:
    """A setting as recipes note it: pictures and tensors by the SHA-256 of their numbers."""
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, torch.Tensor):
        numbers = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        return f"sha256:{hashlib.sha256(f'{value.dtype} {tuple(value.shape)} '.encode() + numbers).hexdigest()}"
    return f"sha256:{hashlib.sha256(value.tobytes()).hexdigest()}" if hasattr(value, "tobytes") else type(value).__name__


def _family_in(target: object) -> type[Family] | None:
    """The family that is installed as a model itself; None for a folder."""
    cls = registry.made_class(target)
    return cls if isinstance(cls, type) and issubclass(cls, Family) else None


def _built(family: str, settings: Mapping[str, Any], model: str = "") -> Family:
    """A family with settings. Those that it has no field for go into its field for others, if it has one.

    Args:
        family: its name.
        settings: its settings.
        model: the name of the model, by which messages call a family without a name.
    """
    called = model if ":" in family else family
    cls = registry.made_class(registry.maker("families", family, Family))
    rest = settings.get(cls.others or "", {}) if isinstance(cls, type) and issubclass(cls, Family) else None
    if not isinstance(rest, Mapping) or not cls.others:  # what is no mapping, the family refuses in words
        return build(Family, {"plugin": family, **settings}, called=called)
    known = {name: value for name, value in settings.items() if name in signature(cls).parameters}
    others = {name: value for name, value in settings.items() if name not in known}
    return build(Family, {"plugin": family, **known, cls.others: {**rest, **others}}, called=called)


def _holding(model: object) -> str:
    """The name of the first family that takes a model in hand."""
    name, _, broken = _first(lambda family: family.holds(model))
    if name:
        return name
    kind = f"the class {model.__name__}" if isinstance(model, type) else f"a {type(model).__name__}"
    also = f" ({'; '.join(broken)})" if broken else ""
    raise SettingError(f"{kind} came as a model: give a name, a folder, a hub id, a pipeline of diffusers, or a Model{also}")


def _first(accepts: Callable[[Any], bool]) -> tuple[str | None, list[str], list[str]]:
    """The name of the first family that accepts a model, with the names of all families, and what is wrong with some.

    Families from elsewhere are asked before panokit's own, which takes all pipelines of diffusers.
    """
    families = sorted(registry.plugins("families"), key=lambda plugin: plugin.origin[0] == "panokit")
    names, broken = [plugin.name for plugin in families], list[str]()
    for name in names:
        try:
            if accepts(registry.made_class(registry.maker("families", name, Family))):
                return name, names, broken
        except Exception as error:  # a family of somebody else must not keep others from their models
            broken.append(f"{name} fails: {' '.join(str(error).split())}")
    return None, names, broken


def _found(name: str, revision: str | None = None) -> tuple[str, str]:
    """The folder or hub id of a model, and the name of the family that reads it, at one revision on the hub."""
    for plugin in registry.plugins("models"):
        if plugin.name == name:
            target = registry.load("models", name)
            if _family_in(target) is not None:
                return name, plugin.entry.value
            return str(target), _reading(str(target), revision)
    if is_path(name) or _HUB_ID.fullmatch(name):
        return name, _reading(name, revision)
    message = registry.unknown("models", f"{name:.80}")
    raise PluginNotFoundError(f"{message}; a folder in diffusers' format or a hub id (owner/model) works too")


def _reading(source: str, revision: str | None) -> str:
    """The name of the first family that reads a model."""
    index = _index(source, revision)
    name, families, broken = _first(lambda family: family.reads(index))
    if name:
        return name
    also = "; ".join(broken) or "see panokit plugins"
    if Path(source).is_dir() and not (Path(source) / "model_index.json").is_file():
        raise ModelError(
            f"the folder {source} has no model_index.json, so it is no model in diffusers' format: check it; {also}"
        )
    names = sorted(key for key in index if not key.startswith("_"))
    parts = ", ".join(names[:12]) + " and more" * (len(names) > 12) or "no parts"
    kind = index.get("_class_name")
    raise ModelError(
        f"no family reads the model {source}, {f'a {kind!s:.60} ' if kind else ''}with {parts:.200}: installed are "
        f"{', '.join(families) or 'none'}; {also}"
    )


def _index(source: str, revision: str | None) -> Mapping[str, Any]:
    """The content of a model's `model_index.json`; of a folder without one, its subfolders; of a file, its name."""
    folder = Path(source)
    if folder.is_file():
        return {"_file": folder.name}
    if not folder.is_dir():
        from diffusers import DiffusionPipeline

        from panokit.backbones.diffusers.parts import quiet

        try:
            with quiet():
                return DiffusionPipeline.load_config(source, revision=revision)
        except Exception as cause:  # hub failures come in many types
            reason = str(cause).strip().partition("\n")[0].rstrip(".")
            raise ModelError(f"cannot load the model {source}: {reason}; check the hub id and the connection") from cause
    path = folder / "model_index.json"
    if not path.is_file():
        return {part.name: None for part in folder.iterdir() if part.is_dir()}
    return read_json(path)
