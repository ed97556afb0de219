"""Families of models: each knows how to read the folders of one kind of model."""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from panokit.denoiser import Model
from panokit.errors import ContractError, ModelError
from panokit.plain import check_depth


class Family(ABC):
    """Reads models of one kind. A family is a frozen dataclass of settings, which recipes keep with the model's name.

    It is installed as an entry point of the group `panokit.families`. The first family that reads a model's index loads it.

    A family may also be installed as a model itself, in the group `panokit.models`. If it makes this model of another one, its
    field `model` names that one, as `load_model` takes it: a text, or a mapping of its name and settings. panokit looks there
    for the weights to be read, and for names that a recipe of a stranger may not use.
    """

    others: ClassVar[str | None] = None
    """The field, a mapping, that takes all settings which the family has no field for; None if it refuses them."""

    @classmethod
    def holds(cls, model: object) -> bool:
        """Whether the family takes a model in hand, such as a pipeline. The default takes none."""
        return False

    def hold(self, model: Any) -> Model:
        """Take a model in hand. It stays as it is.

        Args:
            model: an object for which `holds` is true.

        Raises:
            ModelError: it lacks something.
        """
        name = type(self).__name__
        raise ContractError(f"{name}.holds says that it takes a {type(model).__name__}, and {name} has no hold: write one")

    @classmethod
    @abstractmethod
    def reads(cls, index: Mapping[str, Any]) -> bool:
        """Whether the family reads a model.

        Args:
            index: the content of `model_index.json`: the class of the pipeline under `_class_name`, and its parts by name. A
                folder without one has the names of its subfolders, and a single file its name under `_file`.
        """

    @abstractmethod
    def load(self, source: str, name: str) -> Model:
        """Load a model, on the CPU, from safetensors and never from pickles.

        Args:
            source: a folder in diffusers' format, or a hub id. A family that is installed as a model itself gets its name.
            name: what the user calls the model, for `Model.name`.

        Raises:
            ModelError: a part is missing or broken, its weights are pickled, or the model is of another kind.
        """


def is_path(name: str) -> bool:
    """Whether a name is that of a file or folder here. No text is too long or too strange to ask."""
    try:
        return bool(name) and (Path(name).is_file() or Path(name).is_dir())
    except (OSError, ValueError):
        return False


def read_json(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file of a model.

    Args:
        path: the file.

    Raises:
        ModelError: the file cannot be read, or holds no mapping.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        check_depth(content, "it")
    except RecursionError as cause:
        raise ModelError(f"{path} is damaged: it is nested too deep") from cause
    except (OSError, ValueError) as cause:
        raise ModelError(f"{path} is damaged: {' '.join(str(cause).split())}") from cause
    if not isinstance(content, dict):
        raise ModelError(f"{path} is damaged: it is a {type(content).__name__} and no mapping")
    return content
