"""The tokenizers of a model: read, and checked against the text encoders that read their tokens."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from panokit.backbones.diffusers.parts import explained, read_part
from panokit.backbones.diffusers.reading import tokenized
from panokit.errors import ModelError

UNKNOWN = 10**9
"""A tokenizer with a larger limit does not know how many tokens its model reads: transformers writes 10**30 then."""


def read_tokenizer(cls: Any, folder: Path, encoder: Mapping[str, Any], model: str) -> Any:
    """Read a tokenizer.

    Args:
        cls: its class.
        folder: its folder.
        encoder: the configuration of the text encoder that reads its tokens; empty if there is none.
        model: the model in words, for messages.

    Raises:
        ModelError: its files are damaged, or it makes tokens that the text encoder does not know.
    """
    for file in (folder / "vocab.json", folder / "merges.txt"):
        if file.is_file():
            _require_words(file, model)
    tokenizer = read_part(cls, folder, model)
    fit_tokenizer(tokenizer, encoder, f"{folder.name} of {model}")
    return tokenizer


def fit_tokenizer(tokenizer: Any, encoder: Mapping[str, Any], what: str) -> None:
    """Check that a tokenizer works and that a text encoder can read its tokens, and set its limit if it does not know it.

    Args:
        tokenizer: a tokenizer of transformers, or a processor that holds one.
        encoder: the configuration of the text encoder; empty if there is none.
        what: the tokenizer in words, for messages.

    Raises:
        ModelError: it does not work, or makes tokens, or more of them, than the text encoder knows.
    """
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    advice = "fetch the model again"
    with explained(what, advice):
        last = max(tokenizer.get_vocab().values())
    words = encoder.get("vocab_size") or (encoder.get("text_config") or {}).get("vocab_size")
    if words and last >= words:
        raise ModelError(
            f"the {what} makes tokens up to {last}, and its text encoder has a vocab_size of {words}: they are of two models; "
            f"{advice}"
        )
    options: dict[str, Any] = {}
    if str(encoder.get("model_type")).startswith("clip"):
        places = encoder.get("max_position_embeddings", 77)
        if tokenizer.model_max_length > UNKNOWN:
            tokenizer.model_max_length = places
        if tokenizer.model_max_length > places:
            raise ModelError(
                f"the {what} has a model_max_length of {tokenizer.model_max_length}, and its text encoder has a "
                f"max_position_embeddings of {places}: they are of two models; {advice}"
            )
        options = {"padding": "max_length", "max_length": tokenizer.model_max_length, "truncation": True}
    with explained(what, advice):
        tokenized(tokenizer, "a", **options)


def _require_words(file: Path, model: str) -> None:
    """Check the file of an older tokenizer: a mapping of words to numbers, or a list of pairs of words."""
    what = f"{file.parent.name}/{file.name} of {model}"
    with explained(what, "fetch it again"):
        text = file.read_text(encoding="utf-8")
        words = json.loads(text) if file.suffix == ".json" else {}
    if not isinstance(words, dict) or not all(type(number) is int and number >= 0 for number in words.values()):
        raise ModelError(f"{what} is damaged: it must be a mapping of words to numbers; fetch it again")
