"""Which pipelines of diffusers can be driven one noise level at a time, by their classes alone."""

import inspect
import re
from typing import Any

from panokit.errors import ModelError

REWRITES = ("use_pe", "enable_prompt_rewrite", "prompt_upsampling")
"""Arguments of pipelines' calls that have a language model rewrite the prompt, with chance that no seed of panokit decides."""
BY_STEP = {"cfg_trunc_ratio", "control_guidance_start", "control_guidance_end", "adapter_conditioning_factor"}
"""Arguments of pipelines' calls that are about some of the steps."""
ALONE = ("PRXPipeline",)
"""Pipelines that guide one picture at a time: they tell their network one time for two, whatever the number of pictures."""
_LACKING = {
    "guider": "its guidance remembers the steps before, and would mix windows",
    "sigma_data": "its networks compute on latents of another scale than those of its scheduler",
    "resolutions": "it makes pictures of a few sizes alone",
}
"""Names in a pipeline's call, and why such a pipeline cannot be driven."""
_PICTURES = ("strength", "mask_image", "control_mask")
"""Arguments of pipelines that begin with a picture, or mix one in between two steps."""
FILMS = {"WanPipeline": 16}
"""Pipelines of films that can be driven, and how many frames a second theirs are shown at."""
_FILMS = ("num_frames", "frames", "video_length", "num_videos_per_prompt")
"""Arguments of pipelines that make films."""
_BY_NAME = {
    "BriaFibo2Pipeline": "it draws the words of its prompts as pictures",
    "CogView3PlusPipeline": "panokit has no formula for the noise of its scheduler",
    "HiDreamImagePipeline": "it makes pictures of one area alone, and its texts are not rows",
    "JoyImageEditPipeline": "its latents are several pictures",
    "StableUnCLIPImg2ImgPipeline": "it draws noise for its picture in each call",
    "StableDiffusionXLInstructPix2PixPipeline": "it edits a picture, which each window would see whole",
    "StableDiffusionXLControlNetUnionPipeline": "it takes a list of control pictures of several kinds",
    "Ideogram4Pipeline": "it encodes its texts for the size of one picture",
}
"""Pipelines that cannot be driven, for reasons that their signatures do not tell."""


def require_drivable(pipeline: type) -> None:
    """Check that a pipeline's class has all that driving it needs.

    Args:
        pipeline: a class of diffusers.

    Raises:
        ModelError: it lacks something. The message says what.
    """
    reason = _reason(pipeline)
    if reason:
        raise ModelError(
            f"{pipeline.__name__} cannot be driven one noise level at a time, for {reason}: "
            "use a pipeline that makes pictures from texts and takes latents"
        )


def _reason(pipeline: Any) -> str | None:
    """Why a pipeline cannot be driven; None if it can."""
    call: Any = pipeline.__call__
    takes, inner = inspect.signature(call).parameters, getattr(call, "__wrapped__", None)
    names = inner.__code__.co_names if inner else ()
    missing = [f"an argument {name}" for name in ("prompt", "latents", "height", "width") if name not in takes]
    missing += [f"a call of {name}" for name in ("encode_prompt", "progress_bar", "scheduler") if name not in names]
    missing += ["a vae"] if "vae" not in inspect.signature(pipeline.__init__).parameters else []
    if missing:
        return f"it lacks {', '.join(missing)}"
    if ".deprecated." in pipeline.__module__:
        return "diffusers maintains it no longer"
    plain = inspect.Parameter.POSITIONAL_OR_KEYWORD
    asked = {name for name, value in takes.items() if value.default is value.empty and value.kind is plain}
    required = sorted(asked - {"self", "prompt"})
    if required:
        return f"it asks for {', '.join(required)}"
    if any(name in takes for name in _PICTURES):
        return "it begins with a picture, and panokit has its own way to do so"
    if any(name in takes for name in _FILMS) and pipeline.__name__ not in FILMS:
        return "it makes films"
    if any("prior" in name for name in names):
        return "a second model reads the prompt in its call"
    if hasattr(pipeline, "_pack_latents_no_patch"):
        return "it lays its latents out in a row of cells, not of patches"
    return next((reason for name, reason in _LACKING.items() if name in names), _BY_NAME.get(pipeline.__name__))


def skips(pipeline: type) -> bool:
    """Whether a pipeline's call goes on to its next step where it is interrupted, so that it can be entered at any step.

    Some have no such place, and one ends there. Some keep at their first step what the others need.

    Args:
        pipeline: a class of diffusers.
    """
    call: Any = inspect.unwrap(pipeline.__call__)
    if "kv_cache" in call.__code__.co_varnames:
        return False
    try:
        source = inspect.getsource(call)
    except OSError:  # it was installed without its source
        return False
    return bool(re.search(r"if self\.interrupt:\s+continue", source))
