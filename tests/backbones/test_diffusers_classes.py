"""Every text-to-image pipeline of diffusers: whether it can be driven, and that the page about models says so."""

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from panokit import load_model
from panokit.backbones.diffusers.codec import VAECodec
from panokit.backbones.diffusers.drivable import require_drivable, skips
from panokit.backbones.diffusers.own import training_of
from panokit.backbones.diffusers.reading import rows_of
from panokit.errors import ModelError, SettingError
from panokit.testing.families import controlnets, cross_attention, flux, joint_attention, tiny_pipeline, unets

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
FAMILIES = (unets, flux, joint_attention, cross_attention, controlnets)
MINIATURES = {name for family in FAMILIES for name in vars(family) if name.endswith("Pipeline")} - {"DiffusionPipeline"}
MINIATURES |= {"SkyReelsV2Pipeline"}  # which the tests of films build
TRIED = {
    "AuraFlowPipeline",
    "CogView4Pipeline",
    "ErnieImagePipeline",
    "FluxKontextPipeline",
    "HunyuanDiTPipeline",
    "LatentConsistencyModelPipeline",
    "OvisImagePipeline",
    "PRXPipeline",
    "PixArtAlphaPipeline",
    "PixArtSigmaPAGPipeline",
    "QwenImage21Pipeline",
    "SanaPAGPipeline",
    "StableDiffusion3PAGPipeline",
    "StableDiffusionPAGPipeline",
    "StableDiffusionXLPAGPipeline",
    "ZImageOmniPipeline",
}
"""Pipelines that were run by hand against their own call, with random weights."""
PICTURES = re.compile(r"(control_)?image|control_video")
STARTS = {"strength", "mask_image", "video"}
"""Arguments of pipelines that begin with a picture or a film."""
REMARKS = {
    "CogView4ControlPipeline": "with its own scheduler alone",
    "CogView4Pipeline": "with its own scheduler alone",
    "PRXPipeline": "one window at a time",
    "SkyReelsV2Pipeline": "films, and pictures with frames=1; needs ftfy",
    "WanPipeline": "films, and pictures with frames=1",
}


@pytest.mark.filterwarnings("ignore")  # diffusers warns of what it will remove, and of what is not installed
def test_the_page_about_models_tells_of_every_pipeline() -> None:
    pipelines = _pipelines()
    rows = re.findall(r"^\| `(\w+Pipeline)` .*\|$", PAGE.read_text(), re.MULTILINE)
    lines = dict(zip(rows, re.findall(r"^\| `\w+Pipeline` .*\|$", PAGE.read_text(), re.MULTILINE), strict=True))
    missing = {name for name in rows if name not in pipelines and _is_a_stub(name)}  # for want of a package
    assert rows == sorted(rows)
    assert {name: line for name, line in lines.items() if name not in missing} == {
        name: _row(pipeline) for name, pipeline in pipelines.items()
    }


def _pipelines() -> dict[str, Any]:
    """All pipelines that make pictures or films from a text, and do not begin with one."""
    import diffusers
    from diffusers.pipelines.auto_pipeline import AUTO_TEXT2IMAGE_PIPELINES_MAPPING

    pipelines = {pipeline.__name__: pipeline for pipeline in AUTO_TEXT2IMAGE_PIPELINES_MAPPING.values()}
    for name in dir(diffusers):
        if name.endswith("Pipeline") and name not in pipelines:
            pipeline = getattr(diffusers, name)
            if not _is_a_stub(name) and _takes_a_text_alone(pipeline):
                pipelines[name] = pipeline
    return pipelines


def _takes_a_text_alone(pipeline: Any) -> bool:
    takes = inspect.signature(pipeline.__call__).parameters
    plain = inspect.Parameter.POSITIONAL_OR_KEYWORD
    asked = {name for name, value in takes.items() if value.default is value.empty and value.kind is plain}
    fits = {"prompt", "height", "width"} <= takes.keys() and asked <= {"self", "prompt"} and not STARTS & takes.keys()
    return fits and ".deprecated." not in pipeline.__module__


def _is_a_stub(name: str) -> bool:
    """Whether a class of diffusers only says which package it needs."""
    import diffusers

    return hasattr(getattr(diffusers, name), "_backends")


def _row(pipeline: Any) -> str:
    name = pipeline.__name__
    try:
        require_drivable(pipeline)
    except ModelError as error:
        reason = str(error).split(", for ", 1)[1].rsplit(": use ", 1)[0]
        return f"| `{name}` | no | {reason} |"
    pictures = [argument for argument in inspect.signature(pipeline.__call__).parameters if PICTURES.fullmatch(argument)]
    remarks = [f"takes a picture, `{argument}`" for argument in pictures]
    remarks += [REMARKS[name]] if name in REMARKS else []
    remarks += [] if skips(pipeline) else ["no options about some of the steps"]
    how = "checked" if name in MINIATURES else "tried" if name in TRIED else "by its call"
    return f"| `{name}` | {how} |{' ' * bool(remarks)}{'; '.join(remarks)} |"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("FluxImg2ImgPipeline", "begins with a picture"),
        ("CogVideoXPipeline", "makes films"),
        ("GlmImagePipeline", "a second model reads the prompt"),
        ("HunyuanImagePipeline", "remembers the steps before"),
        ("SanaSprintPipeline", "another scale"),
        ("Kandinsky5T2IPipeline", "a few sizes"),
        ("StableDiffusionXLPipeline", None),
    ],
)
def test_a_pipeline_that_would_be_driven_wrongly_is_refused(name: str, reason: str | None) -> None:
    import diffusers

    pipeline = getattr(diffusers, name)
    if reason is None:
        require_drivable(pipeline)
    else:
        with pytest.raises(ModelError, match=rf"{name} cannot be driven .*{reason}"):
            require_drivable(pipeline)


def test_an_option_about_some_of_the_steps_is_refused_where_steps_have_no_number() -> None:
    with pytest.raises(
        SettingError, match="cfg_trunc_ratio is about some of the steps, and panokit cannot tell Lumina2Pipeline which"
    ):
        load_model(tiny_pipeline("lumina2"), cfg_trunc_ratio=0.5)


def test_noise_without_a_formula_is_refused() -> None:
    from diffusers import CogVideoXDDIMScheduler, EDMEulerScheduler, SCMScheduler

    for scheduler in (CogVideoXDDIMScheduler(), EDMEulerScheduler()):
        with pytest.raises(ModelError, match=rf"{type(scheduler).__name__}, whose noise panokit has no formula for"):
            training_of(scheduler)
    with pytest.raises(ModelError, match="predicts 'trigflow'"):
        training_of(SCMScheduler())


def test_a_text_may_be_encoded_as_several_parts() -> None:
    first, second = [torch.zeros(2, 4)], [torch.ones(3, 4), torch.ones(1, 4)]
    [(prompts, negatives)] = [rows_of(answer, 2, [1, 0, 1]) for answer in [([first, second], [])]]
    assert [len(parts) for parts in prompts] == [2, 1, 2]
    assert negatives == []
    [(prompts,)] = [rows_of(answer, 1, [0, 0]) for answer in [([first],)]]
    assert [len(parts) for parts in prompts] == [1, 1]


def test_what_is_encoded_is_picked_call_by_call() -> None:
    calls = [[torch.zeros(2, 4), torch.ones(3, 4)], [torch.zeros(1, 4), torch.zeros(1, 4)]]
    rows = [rows_of(answer, 2, [1]) for answer in calls]
    assert [[tuple(text.shape) for text in call] for call in rows] == [[(3, 4)], [(1, 4)]]


def test_an_autoencoder_of_pictures_with_opacity_sees_opaque_ones() -> None:
    from diffusers import AutoencoderKLQwenImage21

    sides: dict[str, Any] = {"base_dim": 4, "decoder_base_dim": 4, "z_dim": 4, "dim_mult": [1, 1], "num_res_blocks": 1}
    statistics: dict[str, Any] = {"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}
    vae = AutoencoderKLQwenImage21(**sides, **statistics, temperal_downsample=[False], scale_factor_spatial=2)
    codec = VAECodec(vae.eval().requires_grad_(False), 2)
    latents = codec.encode(torch.rand(1, 3, 8, 8))
    assert codec.decode(latents).shape[1] == 3
