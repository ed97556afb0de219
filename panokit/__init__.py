"""Panoramas from pretrained diffusion models: a sampler framework of interchangeable parts.

A panorama is larger than the pictures that a model was trained on. So the model denoises it window by window, and panokit keeps
the windows in agreement. A `Layout` says where the windows lie. A `Guidance` moves them before they are denoised. A `Fuser`
joins them into one canvas. A `Scheduler` takes the canvas from one noise level to the next. A `Runtime` deals windows out to
devices. `Sampler` composes these parts.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from panokit.moved import answer_old_imports

answer_old_imports()

if TYPE_CHECKING:
    from panokit.backbones.diffusers.scheduler import DiffusersScheduler as DiffusersScheduler
    from panokit.checkpoint import Checkpoint as Checkpoint
    from panokit.denoiser import Codec as Codec
    from panokit.denoiser import Denoiser as Denoiser
    from panokit.denoiser import Model as Model
    from panokit.denoiser import WrappedDenoiser as WrappedDenoiser
    from panokit.enlarging import enlarged as enlarged
    from panokit.errors import ContractError as ContractError
    from panokit.errors import PanokitError as PanokitError
    from panokit.errors import SettingError as SettingError
    from panokit.family import Family as Family
    from panokit.fuser import Fuser as Fuser
    from panokit.fuser import WeightedFuser as WeightedFuser
    from panokit.grid import Grid as Grid
    from panokit.grid import Lattice as Lattice
    from panokit.guidance import Estimate as Estimate
    from panokit.guidance import Guidance as Guidance
    from panokit.guidance import Known as Known
    from panokit.guidance import Step as Step
    from panokit.layout import Layout as Layout
    from panokit.models import load_model as load_model
    from panokit.moved import former_settings as former_settings
    from panokit.panorama import Panorama as Panorama
    from panokit.run import Run as Run
    from panokit.runtime import Runtime as Runtime
    from panokit.sampler import Sampler as Sampler
    from panokit.scene import Region as Region
    from panokit.scene import Regions as Regions
    from panokit.scene import Scene as Scene
    from panokit.scheduler import Level as Level
    from panokit.scheduler import Scheduler as Scheduler
    from panokit.scheduler import Solver as Solver
    from panokit.scheduler import Training as Training
    from panokit.union import Union as Union
    from panokit.windows import Placed as Placed
    from panokit.windows import Projected as Projected
    from panokit.windows import Windows as Windows

_HOME = {
    "checkpoint": ("Checkpoint",),
    "denoiser": ("Codec", "Denoiser", "Model", "WrappedDenoiser"),
    "errors": ("ContractError", "PanokitError", "SettingError"),
    "fuser": ("Fuser", "WeightedFuser"),
    "grid": ("Grid", "Lattice"),
    "enlarging": ("enlarged",),
    "guidance": ("Estimate", "Guidance", "Known", "Step"),
    "layout": ("Layout",),
    "moved": ("former_settings",),
    "panorama": ("Panorama",),
    "run": ("Run",),
    "runtime": ("Runtime",),
    "sampler": ("Sampler",),
    "scene": ("Region", "Regions", "Scene"),
    "scheduler": ("Level", "Scheduler", "Solver", "Training"),
    "union": ("Union",),
    "windows": ("Placed", "Projected", "Windows"),
    "family": ("Family",),
    "models": ("load_model",),
    "backbones.diffusers.scheduler": ("DiffusersScheduler",),
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}

__all__ = sorted(_MODULE)


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import panokit` is quick."""
    if name not in _MODULE:
        raise AttributeError(f"module 'panokit' has no attribute {name!r}")
    return getattr(import_module(f"panokit.{_MODULE[name]}"), name)


def __dir__() -> list[str]:
    return __all__
