"""Families of models: each knows how to read the folders of one kind of model."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from panokit.denoiser import Model


class Family(ABC):
    """Reads models of one kind. A family is a frozen dataclass of settings, which recipes keep with the model's name.

    It is installed as an entry point of the group `panokit.families`. The first family that reads a model's index loads it.
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
        raise NotImplementedError

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
