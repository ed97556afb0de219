"""What a model reads: texts, of which its tokenizers may cut some, and pictures of an IP-Adapter."""

import copy
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from panokit.errors import PromptWarning
from panokit.scene import Scene

EXCERPT = 60
"""Letters of a text that a message shows."""

_TURN = threading.RLock()
"""Held while a tokenizer works. Threads share tokenizers, and a tokenizer keeps the padding of its last call."""


def tokenized(tokenizer: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Call a tokenizer while no other thread does.

    Args:
        tokenizer: a tokenizer of transformers, or its `__call__`.
        args: what it is called with.
        options: the same, by name.
    """
    with _TURN:
        return tokenizer(*args, **options)


@final
class Reading:
    """How much of each text the tokenizers of a model read.

    A text is cut if none of them reads it whole. A pipeline with several may read a long text by one of them alone.
    """

    guides = True
    """Whether the pipeline guides against something: its `do_classifier_free_guidance`."""

    def __init__(self) -> None:
        self._read: set[str] = set()
        self._whole: set[str] = set()
        self._cut: dict[str, tuple[int, int, str]] = {}

    def watched(self, tokenizer: Any) -> Any:
        """The same tokenizer, which notes here what it reads.

        Args:
            tokenizer: a tokenizer of transformers, or a processor that holds one.
        """
        reading, other = self, copy.copy(tokenizer)
        if hasattr(tokenizer, "tokenizer"):
            other.tokenizer = self.watched(tokenizer.tokenizer)
            return other

        base: Any = type(tokenizer)

        class Watched(base):
            def __call__(self, text: Any = None, *args: Any, **kwargs: Any) -> Any:
                texts = [text] if isinstance(text, str) else text if isinstance(text, list | tuple) else []
                for one in (one for one in texts if isinstance(one, str)):
                    reading._read.add(_plain(one))
                    if kwargs.get("truncation") and kwargs.get("max_length"):
                        reading._note(super().__call__, self.decode, one, kwargs["max_length"])
                return tokenized(super().__call__, text, *args, **kwargs)

        other.__class__ = Watched
        return other

    def _note(self, tokenize: Any, decode: Any, text: str, limit: int) -> None:
        tokens = tokenized(tokenize, text, verbose=False).input_ids
        if len(tokens) <= limit:
            self._whole.add(text)
        elif text not in self._cut or limit > self._cut[text][1]:
            end = decode(tokens[limit - 1 :][: 2 * EXCERPT], skip_special_tokens=True)
            self._cut[text] = len(tokens), limit, excerpt(end)

    def knows(self, text: str) -> bool:
        """Whether a tokenizer read a text, perhaps inside of a template."""
        return any(_plain(text) in read for read in self._read)

    def warn_of_cuts(self, scene: Scene) -> None:
        """Warn about each text that no tokenizer read whole.

        Args:
            scene: what to paint. A tokenizer may have read its texts inside of a template.
        """
        whole = {_plain(text) for text in self._whole}
        kinds = {_plain(text): kind for kind, texts in reversed(kinds_of(scene).items()) for text in texts if text.strip()}
        for read, (count, limit, end) in self._cut.items():
            if _plain(read) not in whole and (inside := [text for text in kinds if text in _plain(read)]):
                kind = kinds[max(inside, key=len)]
                message = f"the {kind} has {count} tokens and this model reads {limit}: {end!r} at its end is cut off"
                warnings.warn(message, PromptWarning, stacklevel=6)


def kinds_of(scene: Scene) -> dict[str, tuple[str, ...]]:
    """The texts of a scene, by what users call them."""
    return {"prompt": scene.texts, "negative prompt": scene.negatives}


def excerpt(text: str) -> str:
    """The beginning of a text, for messages."""
    return text if len(text) <= EXCERPT else f"{text[:EXCERPT]} ..."


def _plain(text: str) -> str:
    """A text as pipelines may have cleaned it: with single spaces, in small letters."""
    return " ".join(text.split()).lower()


@final
@dataclass(frozen=True)
class Encoded:
    """What a pipeline encoded for `k` texts.

    Attributes:
        texts: what its `encode_prompt` returned, call by call, with a row for each text.
        image_embeds: what it made of the pictures of an IP-Adapter, call by call, for each text.
    """

    texts: list[Any]
    image_embeds: list[list[Any]]

    def picked(self, k: int, texts: Sequence[int]) -> "Encoded":
        """The same for some of the texts.

        Args:
            k: the number of all texts.
            texts: the positions of those to pick.
        """
        rows = [[row[text if len(row) == k else 0] for text in texts] for row in self.image_embeds]
        return Encoded([rows_of(answer, k, texts) for answer in self.texts], rows)

    def again(self, guided: bool = True) -> "Answers":
        """What the pipeline's methods are to return in a later call, in order.

        Args:
            guided: whether that call guides away from something. If it does not, it takes no pictures to avoid.
        """
        return Answers(iter(self.texts), (joined(rows if guided else wanted(rows)) for rows in self.image_embeds))


class Answers(NamedTuple):
    """What the methods of a pipeline return in one call of it, in order.

    Attributes:
        texts: the answers of `encode_prompt`.
        image_embeds: the answers of `prepare_ip_adapter_image_embeds`.
    """

    texts: Iterator[Any]
    image_embeds: Iterator[Any]


def wanted(rows: Sequence[Any]) -> list[Any]:
    """What was encoded of several pictures, without what is to be avoided: the last of one row or two."""
    return [[part[-1:] for part in row] if isinstance(row, list) else row[-1:] for row in rows]


def joined(rows: Sequence[Any]) -> Any:
    """The batch of what was encoded of several pictures one by one. Of two rows, the first is what to avoid: those come first.

    Args:
        rows: a tensor for each picture, of one row or two; or a list of them, one for each IP-Adapter.
    """
    if isinstance(rows[0], list):
        return [joined([row[k] for row in rows]) for k in range(len(rows[0]))]
    sides = zip(*(row.chunk(len(row)) for row in rows), strict=True)
    return torch.cat([part for side in sides for part in side])


def rows_of(value: Any, k: int, texts: Sequence[int]) -> Any:
    """The rows of some texts, out of what was encoded for `k` texts.

    Args:
        value: a tensor with a row for each text, or a list of them; or tuples and lists of such values.
        k: the number of all texts.
        texts: the positions of those to pick.
    """
    if isinstance(value, Tensor):
        if not value.ndim or value.shape[0] != k:
            return value
        return value.expand(len(texts), *value.shape[1:]) if k == 1 else value[list(texts)]
    if isinstance(value, tuple):
        return tuple(rows_of(part, k, texts) for part in value)
    if isinstance(value, list):
        return (
            [value[text] for text in texts]
            if len(value) == k and isinstance(value[0], Tensor | list)
            else [rows_of(part, k, texts) for part in value]
        )
    return value
