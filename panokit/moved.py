"""Names that have changed: an old one is answered with the new one, in a line."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any, final

MODULES = {
    "panokit.commands": "panokit.cli.commands",
    **{
        f"panokit.{name}": f"panokit.runtime.{name}"
        for name in ("group", "launch", "lifeline", "offload", "pieces", "sharding", "strategy")
    },
    "panokit.backbones.diffusers.attention": "panokit.backbones.diffusers.execution",
}
"""Modules by their old names."""

ATTRIBUTES: Mapping[str, Mapping[str, str]] = {
    "Runtime": {
        "first": "broadcast",
        "together": "barrier",
        "owe": "defer",
        "alike": "require_same",
        "rank": "global_rank",
        "has": "placement.holds",
        "stop": "Run.stop, as each run is stopped by itself",
        "stopping": "Run.stopping",
    },
    "Run": {
        "denoiser": "parts.denoiser",
        "embeddings": "parts.embeddings",
        "fuser": "parts.fuser",
        "estimate": "pass_over",
        "look": "model_pass.look",
        "predict": "model_pass.predict",
        "read": "model_pass.read",
        "below": "model_pass.below",
    },
    "Sampler": {"check": "plan(...).check()", "grid": "plan(...).grid", "recipe": "plan(...).recipe"},
    "Worker": {"prepared": "plan"},
}
"""What objects have, by class and old name."""


def no_attribute(owner: object, name: str) -> AttributeError:
    """The error for an attribute that a class does not have, with its new name if it had it once."""
    cls = type(owner).__name__
    new = ATTRIBUTES[cls].get(name)
    return AttributeError(f"{cls}.{name} is {new} now" if new else f"a {cls} has no attribute {name!r}", name=name, obj=owner)


@final
class _OldModules:
    """The last of the finders: nobody else knows the module."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: Any = None) -> None:
        """Raise if the module has moved."""
        if name in MODULES:
            raise ModuleNotFoundError(f"{name} is {MODULES[name]} now: import it from there", name=name)


def answer_old_imports() -> None:
    """From here on an import of a module that has moved fails with its new name."""
    if _OldModules not in sys.meta_path:
        sys.meta_path.append(_OldModules)
