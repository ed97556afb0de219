"""Makes the untrained parts of the landscapes model: tokenizer, text encoder, autoencoder, denoiser, scheduler, judge."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTokenizer, CLIPVisionConfig

TOKENS = 32
"""Number of tokens of a prompt, with start, end and padding."""
TEXT_WIDTH = 128
"""Number of channels of a text embedding."""
_BOS, _EOS = "<|startoftext|>", "<|endoftext|>"


def make_tokenizer(words: Iterable[str]) -> CLIPTokenizer:
    """Make a CLIP tokenizer. Each of the words is one token, and other text is split into pieces or bytes.

    The words themselves are the training text of its byte-pair merges, until every word is whole. The ends of words get their
    numbers before that: the trainer reads words in a random order and breaks ties by number, so the result is always the same.

    Args:
        words: the words, in any order.
    """
    words = sorted(words)
    ends = sorted({word[-1] + "</w>" for word in words})
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(
        vocab_size=1 << 16, min_frequency=1, show_progress=False, end_of_word_suffix="</w>", special_tokens=ends
    )
    learner.train_from_iterator(words, trainer)
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*alphabet, *(symbol + "</w>" for symbol in alphabet), *("".join(pair) for pair in merges), _BOS, _EOS]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=TOKENS)


def tokenize(tokenizer: CLIPTokenizer, texts: Sequence[str]) -> Tensor:
    """Convert n texts to token numbers, (n, TOKENS), padded and cut as in diffusers' pipelines."""
    batch = tokenizer(list(texts), padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt")
    return torch.as_tensor(batch.input_ids)


def _text_config(tokenizer: CLIPTokenizer, layers: int, **more: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **more,
    )


def make_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Make the text encoder: it converts token numbers (n, TOKENS) to embeddings (n, TOKENS, TEXT_WIDTH)."""
    return CLIPTextModel(_text_config(tokenizer, layers=2))


def make_vae() -> AutoencoderKL:
    """Make the autoencoder: it converts pictures (n, 3, 128, 128) in [-1, 1] to latents (n, 4, 16, 16) and back."""
    channels = (16, 16, 48, 96)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=channels,
        layers_per_block=1,
        norm_num_groups=2,  # small groups of few channels would lose the brightness
        latent_channels=4,
        sample_size=128,
        scaling_factor=1.0,
    )


@torch.no_grad()
def standardise(vae: AutoencoderKL, mean: Tensor, std: Tensor) -> None:
    """Change an autoencoder so that its latents have mean 0 and standard deviation 1. Decoded pictures stay the same.

    The map z -> (z - mean) / std becomes part of the encoder's last 1x1 convolution, and its inverse of the decoder's first.

    Args:
        vae: the autoencoder. It is changed in place.
        mean: the mean of each channel of its latents so far, (4,).
        std: their standard deviation, (4,).
    """
    channels = len(mean)
    encoder, decoder = vae.quant_conv, vae.post_quant_conv
    encoder.weight[:channels] /= std[:, None, None, None]
    encoder.bias[:channels] = (encoder.bias[:channels] - mean) / std
    encoder.bias[channels:] -= 2 * std.log()
    decoder.bias += decoder.weight[:, :, 0, 0] @ mean
    decoder.weight *= std[None, :, None, None]


def make_unet() -> UNet2DConditionModel:
    """Make the denoiser: it predicts the noise from noisy latents (n, 4, 16, 16), the timestep and text embeddings."""
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(48, 96, 128),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,  # in diffusers, this is the number of heads
        norm_num_groups=16,
        cross_attention_dim=TEXT_WIDTH,
    )


def make_scheduler() -> DDIMScheduler:
    """Make the scheduler, with the noise levels of Stable Diffusion 1 and 2."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="leading",
    )


def make_judge(tokenizer: CLIPTokenizer) -> CLIPModel:
    """Make the judge, a contrastive model that scores pictures (n, 3, 128, 128) against texts."""
    text = _text_config(tokenizer, layers=2, projection_dim=64)
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=128,
        patch_size=16,
        projection_dim=64,
    )
    return CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=64))
