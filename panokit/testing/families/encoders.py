"""The text encoders of text-to-image models in miniature: real architectures, a few layers, random weights."""

from typing import Any

from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    Qwen3VLConfig,
    Qwen3VLModel,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

WIDTH = 16
"""Features of a token from a language model. CLIP gives half as many."""

_LANGUAGE: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": WIDTH,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "initializer_range": 0.3,  # of the embeddings too, which no norm enlarges where a layer's features are read
}
_T5: dict[str, Any] = {
    "d_model": WIDTH,
    "d_kv": 8,
    "d_ff": WIDTH,
    "num_layers": 1,
    "num_heads": 2,
    "feed_forward_proj": "gated-gelu",
    "relative_attention_num_buckets": 8,
    "pad_token_id": 0,
    "eos_token_id": 1,
}
_NO_TOKENS: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None}
_MROPE: dict[str, Any] = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]}


def clip(tokenizer: PreTrainedTokenizerBase, *, projection: bool = False) -> PreTrainedModel:
    """CLIP's text encoder, of two layers, because some pipelines read the one before the last.

    Args:
        tokenizer: its tokenizer.
        projection: whether it projects the feature of the whole prompt, as for Stable Diffusion XL and 3.
    """
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH // 2,
        intermediate_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        projection_dim=WIDTH // 2,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)


def t5(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """T5's encoder."""
    return T5EncoderModel(T5Config(vocab_size=len(tokenizer), **_T5))


def umt5(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """UMT5's encoder: T5's, for many languages."""
    return UMT5EncoderModel(UMT5Config(vocab_size=len(tokenizer), **_T5))


def gemma(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Gemma 2."""
    tokens = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1}
    return Gemma2Model(
        Gemma2Config(vocab_size=len(tokenizer), num_hidden_layers=2, query_pre_attn_scalar=8, **tokens, **_LANGUAGE)
    )


def qwen3(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Qwen 3, of three layers, because Z-Image reads the one before the last."""
    return Qwen3Model(Qwen3Config(vocab_size=len(tokenizer), num_hidden_layers=3, **_LANGUAGE))


def qwen3_causal(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Qwen 3 with its head, of 28 layers, because FLUX.2 klein reads the 9th, the 18th and the 27th."""
    return Qwen3ForCausalLM(Qwen3Config(vocab_size=len(tokenizer), num_hidden_layers=28, **_LANGUAGE))


def qwen2_vl(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Qwen 2.5 VL, whose vision no text needs."""
    text = {**_LANGUAGE, "vocab_size": len(tokenizer), "num_hidden_layers": 1, "rope_parameters": _MROPE, **_NO_TOKENS}
    vision = {"depth": 1, "hidden_size": 8, "intermediate_size": 8, "num_heads": 1, "out_hidden_size": WIDTH}
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision))


def qwen3_vl(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Qwen 3 VL, of two layers, whose vision no text needs."""
    text = {**_LANGUAGE, "vocab_size": len(tokenizer), "num_hidden_layers": 2, "rope_parameters": _MROPE}
    vision = {
        "depth": 1,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_heads": 1,
        "out_hidden_size": WIDTH,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0],
    }
    return Qwen3VLModel(Qwen3VLConfig(text_config=text, vision_config=vision))


def mistral3(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Mistral Small 3, of 31 layers, because FLUX.2 reads the 10th, the 20th and the 30th. No text needs its vision."""
    text = {**_LANGUAGE, "model_type": "mistral", "vocab_size": len(tokenizer), "num_hidden_layers": 31}
    vision = {
        "model_type": "pixtral",
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "head_dim": 8,
        "image_size": 32,
        "patch_size": 4,
    }
    image = tokenizer.convert_tokens_to_ids("[IMG]")
    return Mistral3ForConditionalGeneration(
        Mistral3Config(text_config=text, vision_config=vision, spatial_merge_size=1, image_token_index=image)
    )
