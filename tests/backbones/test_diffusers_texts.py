"""What a driven pipeline reads of texts: embeddings that the user brings, prompts that are cut, what has no effect."""

import sys
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from panokit import Runtime, Sampler, load_model
from panokit.backbones.diffusers.reading import Reading, tokenized
from panokit.errors import PromptWarning, SettingError
from panokit.testing.families import FAMILIES, tiny_pipeline
from panokit.testing.tokenizers import clip_tokenizer

LONG = "a lake in the mountains of the moon " * 60
SILENT = {"flux2", "klein", "schnell"}  # their pipelines have no negative prompt, or read it with true guidance alone


def begun(name: str, prompt: str = "a lake", cpu: Runtime | None = None, **settings: Any) -> list[str]:
    """The warnings of panokit when a run begins."""
    model = load_model(tiny_pipeline(name), window=16)
    side = 16 * model.factor
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Sampler(model, runtime=cpu).begin(prompt, height=side, width=side, steps=2, **settings)
    return [str(warning.message) for warning in caught if issubclass(warning.category, PromptWarning)]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_prompt_that_is_cut_says_so_and_a_short_one_does_not(name: str, cpu: Runtime) -> None:
    (message,) = begun(name, LONG, cpu)
    assert message.startswith("the prompt has ")
    assert "tokens and this model reads " in message
    assert message.endswith("at its end is cut off")
    assert len(message) < 200
    assert begun(name, "a lake", cpu) == []


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "qwen_image", "wan", "lumina2"])
def test_a_negative_prompt_that_is_cut_says_so_like_a_prompt(name: str, cpu: Runtime) -> None:
    both = begun(name, LONG, cpu, negative_prompt=f"rain, {LONG}")
    assert [message.partition(" has ")[0] for message in sorted(both)] == ["the negative prompt", "the prompt"]
    (message,) = begun(name, "a lake", cpu, negative_prompt=f"a lake, {LONG}")
    assert message.startswith("the negative prompt has ")


@pytest.mark.parametrize("name", ["flux2", "klein"])
def test_a_negative_prompt_that_is_not_read_says_so_once(name: str, cpu: Runtime) -> None:
    (message,) = begun(name, cpu=cpu, negative_prompt="rain")
    assert message == "this model takes no negative prompt, so it has no effect: leave it out"


def test_guidance_of_a_distilled_model_says_that_it_has_no_effect(cpu: Runtime) -> None:
    pipe = tiny_pipeline("klein")
    pipe.register_to_config(is_distilled=True)
    sampler = Sampler(load_model(pipe, window=16), runtime=cpu)
    size = {"height": 32, "width": 32, "steps": 2}
    with pytest.warns(PromptWarning, match="guidance_scale 3 has no effect: this model is distilled and takes no guidance"):
        sampler.begin("a lake", guidance_scale=3.0, **size)
    with warnings.catch_warnings():
        warnings.simplefilter("error", PromptWarning)
        sampler.begin("a lake", **size)  # the pipeline's own default


@pytest.mark.parametrize(("name", "scale"), [("schnell", 1.0), ("z_image", 0.0), ("sdxl", 1.0), ("flux", 3.5)])
def test_a_negative_prompt_without_guidance_says_that_it_has_no_effect(name: str, scale: float, cpu: Runtime) -> None:
    (message,) = begun(name, cpu=cpu, negative_prompt="rain", guidance_scale=scale)
    assert message.startswith("the negative prompt has no effect, because nothing guides away from it: raise ")
    assert ("the model's true_cfg_scale" in message) == (name == "flux")


@pytest.mark.parametrize("name", ["schnell", "qwen_image"])
def test_guidance_without_a_negative_prompt_says_that_it_needs_one(name: str, cpu: Runtime) -> None:
    (message,) = begun(name, cpu=cpu, guidance_scale=3.0)
    assert message.startswith("guidance_scale 3 has no effect: this model guides only if there is a negative prompt")
    assert begun(name, cpu=cpu, guidance_scale=3.0, negative_prompt="rain") == []


@pytest.mark.parametrize("name", ["sdxl", "sd3", "flux", "z_image"])
def test_embeddings_that_the_user_brings_stand_in_the_place_of_texts(
    name: str, cpu: Runtime, pipeline: Callable[[str], Any], literal: Callable[..., Tensor]
) -> None:
    pipe = pipeline(name)
    with torch.no_grad():
        if name in ("sdxl", "sd3"):
            texts = pipe.encode_prompt("a castle", "a castle", "a castle") if name == "sd3" else pipe.encode_prompt("a castle")
            names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
        else:
            texts = pipe.encode_prompt("a castle", **({"prompt_2": None} if name == "flux" else {}))
            names = ("prompt_embeds", "pooled_prompt_embeds" if name == "flux" else "negative_prompt_embeds")
    brought = dict(zip(names, texts, strict=False))
    model = load_model(pipe, window=16, **brought)
    side = 16 * model.factor
    made = Sampler(model, runtime=cpu)("", height=side, width=side, steps=2, seed=3)
    own = literal(pipe, "a castle", num_inference_steps=2)
    assert float((made.latents - own).abs().max() / own.abs().max()) < 1e-5
    assert made.recipe["model"]["prompt_embeds"]
    with pytest.raises(SettingError, match="was given prompt_embeds, which stand in for texts: make the prompt empty"):
        Sampler(model, runtime=cpu)("a lake", height=side, width=side, steps=2)


@pytest.fixture
def restless() -> Iterator[None]:
    """Threads take turns as often as Python lets them."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("restless")
@pytest.mark.parametrize(
    "call", [tokenized, lambda tokenizer, *args, **options: Reading().watched(tokenizer)(*args, **options)]
)
def test_threads_that_share_a_tokenizer_get_what_each_asks_for(call: Callable[..., Any]) -> None:
    """A tokenizer of transformers keeps the padding of its last call, whichever thread made it."""
    tokenizer = clip_tokenizer(16)
    asked: list[dict[str, Any]] = [{"padding": "max_length", "max_length": 16, "truncation": True}, {"padding": "longest"}]
    expected = [len(tokenizer("a lake", **options).input_ids) for options in asked]

    def lengths(thread: int) -> set[int]:
        return {len(call(tokenizer, "a lake", **asked[thread % 2]).input_ids) for _ in range(100)}

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lengths, range(4))) == [{expected[0]}, {expected[1]}] * 2
