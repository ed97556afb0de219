"""What configuration files may say: what diffusers writes is taken, and anything else is refused in one line, by its name."""

import inspect
import json
import random
import runpy
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies

from panokit import load_model
from panokit.backbones.diffusers.configurations import VALUES, read_configuration, require_fitting, require_values
from panokit.backbones.diffusers.parts import is_network
from panokit.errors import ModelError
from panokit.testing.families import FAMILIES, tiny_pipeline
from panokit.testing.hostile import HOSTILE

FAULTS = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "faults" / "models.py"))


def classes(sweeps: bool) -> Iterator[Any]:
    """Classes of networks and schedulers of diffusers: those of the families, or all."""
    import diffusers

    names = diffusers._import_structure["models"] + diffusers._import_structure["schedulers"]
    families = (part for name in FAMILIES for part in tiny_pipeline(name).components.values())
    parts = map(diffusers.__getattr__, names) if sweeps else {type(part) for part in families}
    for cls in parts:
        if isinstance(cls, type) and hasattr(cls, "from_config") and ".dummy_" not in cls.__module__:
            yield cls


@pytest.mark.filterwarnings("ignore")  # of classes that diffusers will remove
def test_what_classes_of_diffusers_are_by_default_is_taken(sweeps: bool) -> None:
    for cls in classes(sweeps):
        if cls.__name__ != "UNet1DModel":  # of sound, with samples by the thousand
            taken = inspect.signature(cls.__init__).parameters.values()
            values = {argument.name: argument.default for argument in taken if argument.default is not argument.empty}
            require_values(json.loads(json.dumps(values, default=str)), cls, cls.__name__)


@pytest.mark.parametrize("family", ["sd", "sdxl", "flux", "qwen_image", "wan", "sana"])
def test_what_a_family_saves_is_taken(family: str, tmp_path: Path) -> None:
    pipe = tiny_pipeline(family)
    pipe.save_pretrained(tmp_path)
    parts = {name: part for name, part in pipe.components.items() if part is not None}
    configs = {name: read_configuration(tmp_path / name, type(part), "the model") for name, part in parts.items()}
    require_fitting(configs, "the model")
    assert all(configs[name] for name, part in parts.items() if is_network(type(part)))


@pytest.mark.parametrize("name", VALUES)
def test_no_value_of_another_type_or_size_is_taken(name: str) -> None:
    for kind in ("NaN", "a number of 400 digits", "true", "[null]", "text", "-5", "{}"):
        if (name, kind) in {("text_config", "{}"), ("shift_factor", "-5"), ("base_shift", "-5"), ("max_shift", "-5")}:
            continue
        with pytest.raises(ModelError, match=f"{name} in config.json is .*: it must be ") as error:
            require_values({name: json.loads(HOSTILE[kind])}, None, "config.json")
        assert FAULTS["judged"](error.value).kind == "ModelError"


def test_a_value_that_a_class_has_no_room_for_is_refused_by_its_name() -> None:
    from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, UNet2DConditionModel

    for cls, name, value in (
        (UNet2DConditionModel, "mid_block_scale_factor", "much"),
        (UNet2DConditionModel, "down_block_types", {}),
        (UNet2DConditionModel, "norm_eps", None),
        (AutoencoderKL, "scaling_factor", None),
        (AutoencoderKL, "scaling_factor", 0),
        (AutoencoderKL, "sample_size", [1, 2, 3]),
        (DPMSolverMultistepScheduler, "lower_order_final", "yes"),
        (DPMSolverMultistepScheduler, "trained_betas", [0.1, "x"]),
    ):
        with pytest.raises(ModelError, match=f"^{name} in config.json is "):
            require_values({name: value}, cls, "config.json")
    require_values({"lambda_min_clipped": -float("inf"), "attention_head_dim": 8}, DPMSolverMultistepScheduler, "config.json")
    require_values({"attention_head_dim": [5, 10], "cross_attention_dim": 8, "sample_size": [8, 16]}, UNet2DConditionModel, "")


UNET = {"_class_name": "UNet2DConditionModel", "in_channels": 4, "out_channels": 4, "cross_attention_dim": 24}


@pytest.mark.parametrize(
    ("configs", "message"),
    [
        ({"unet": UNET, "vae": {"latent_channels": 16}}, "4 for in_channels of unet and 16 for latent_channels of vae"),
        (
            {"unet": UNET, "text_encoder": {"hidden_size": 8}, "text_encoder_2": {"hidden_size": 8}},
            "24 for cross_attention_dim of unet and 16 for hidden_size of text_encoder and text_encoder_2",
        ),
        (
            {"vae": {"latent_channels": 4, "latents_mean": [0.0] * 3, "latents_std": [1.0] * 4}},
            "4 for channels of vae and 3 for latents_mean",
        ),
        ({"vae": {"z_dim": 4, "latents_mean": [0.0] * 4}}, "4 for channels of vae and 0 for latents_std"),
    ],
)
def test_parts_whose_sizes_do_not_meet_are_refused(configs: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=f"the model has {message}, which must be equal"):
        require_fitting(configs, "the model")


def test_parts_whose_sizes_meet_are_taken() -> None:
    require_fitting({"unet": UNET, "vae": {"latent_channels": 4}, "text_encoder": {"hidden_size": 24}}, "the model")
    require_fitting({"unet": {**UNET, "encoder_hid_dim_type": "text_proj"}, "text_encoder": {"hidden_size": 8}}, "the model")
    require_fitting({"unet": {**UNET, "in_channels": 9}, "vae": {"latent_channels": 4}}, "the model")


NAMES = ("plain", "sdxl", "flux", "wan", "lora", "file")


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A folder of each road, and what is added to a model."""
    return {name: FAULTS["saved"](name, tmp_path_factory.mktemp(name)) for name in NAMES}


@pytest.fixture
def outcome(targets: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Callable[[str, Any], Any]:
    """What comes of a change: what is painted, or the error, and what is printed beside it."""

    def outcome(name: str, change: Any) -> Any:
        target, error = targets[name], None
        model = target.model(FAULTS["written"](change, target.folder, tmp_path / "changed"))
        try:
            FAULTS["paint"](model)
        except Exception as caught:
            error = caught
        shutil.rmtree(tmp_path / "changed")
        return FAULTS["judged"](error, "".join(capfd.readouterr()))

    return outcome


ONCE = {
    "plain": [
        "unet/config.json sample_size 0.5",
        "unet/config.json out_channels 500 lists deep",
        "unet/config.json norm_eps {}",
        "unet/config.json downsample_padding -5",
        "unet/config.json layers_per_block 3 million",
        "vae/config.json scaling_factor text",
        "vae/config.json latents_mean []",
        "scheduler/scheduler_config.json trained_betas []",
        "scheduler/scheduler_config.json is a list",
        "text_encoder/config.json eos_token_id [null]",
        "text_encoder/config.json max_position_embeddings null",
        "text_encoder/config.json num_hidden_layers 3 million",
        "text_encoder/model.safetensors final_layer_norm.weight has a renamed weight",
        "text_encoder/model.safetensors text_model.final_layer_norm.weight has a weight more",
        "tokenizer/tokenizer_config.json model_max_length 3 million",
        "tokenizer/tokenizer_config.json eos_token text",
        "tokenizer/vocab.json is a list",
        "tokenizer/merges.txt is not UTF-8",
    ],
    "flux": [
        "vae/config.json scaling_factor null",
        "model_index.json vae left out",
        "model_index.json _class_name a number of 400 digits",
        "model_index.json text_encoder_2.0 100000 letters",
    ],
    "wan": ["vae/config.json scale_factor_spatial null", "vae/config.json scale_factor_spatial -5"],
    "lora": ["pytorch_lora_weights.safetensors its length has a header that lies"],
    "file": ["network.safetensors conv_in.bias has no such weight"],
}
"""What once ended otherwise, or as a picture of weights that nobody had trained."""


@pytest.mark.filterwarnings("ignore")
def test_changes_that_once_were_riddles_are_refused_in_one_line(outcome: Callable[[str, Any], Any], targets: Any) -> None:
    for name, known in ONCE.items():
        words = [*known]
        every = FAULTS["changes"](targets[name].folder, random.Random(0))
        for change in (change for change in every if change.words in words):
            made = outcome(name, change)
            assert made.kind == "ModelError", (change.words, made)
            words.remove(change.words)
        assert not words


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_any_change_of_a_file_makes_a_picture_or_one_line(
    name: str,
    outcome: Callable[[str, Any], Any],
    targets: Any,
    sweeps: bool,
    leave_to_sweeps: Callable[[bool], None],
) -> None:
    """A few of the changes that `benchmarks/faults/models.py` makes."""
    leave_to_sweeps(name in ("flux", "wan"))
    every = [*FAULTS["changes"](targets[name].folder, random.Random(0))]

    @hypothesis.settings(max_examples=400 if sweeps else 3, database=None, deadline=None)
    @hypothesis.given(strategies.sampled_from(range(len(every))))
    def check(number: int) -> None:
        made = outcome(name, every[number])
        assert FAULTS["is_sound"](made), (every[number].words, made)

    check()


def test_a_tokenizer_that_does_not_know_its_limit_gets_that_of_its_text_encoder(targets: Any, tmp_path: Path) -> None:
    target = targets["plain"]
    for change in FAULTS["changes"](target.folder, random.Random(0)):
        if change.words in (
            f"tokenizer/tokenizer_config.json model_max_length {kind}" for kind in ("1e30", "left out", "null")
        ):
            model: Any = load_model(FAULTS["written"](change, target.folder, tmp_path / "changed")).denoiser
            assert model.tokenizer.model_max_length == model.text_encoder.config.max_position_embeddings
