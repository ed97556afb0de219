"""Tokenizers that notice which texts they cut."""

import copy
import warnings
from collections.abc import Iterable
from typing import Any, final

from panokit.errors import PromptWarning


@final
class Reading:
    """How much of each text the tokenizers of a pipeline read.

    A text is cut if none of them reads it whole. A pipeline with several may read a long text by one of them alone.
    """

    def __init__(self) -> None:
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

        class Watched(type(tokenizer)):  # type: ignore[misc]
            def __call__(self, text: Any = None, *args: Any, **kwargs: Any) -> Any:
                if kwargs.get("truncation") and kwargs.get("max_length") and isinstance(text, str | list | tuple):
                    for one in [text] if isinstance(text, str) else text:
                        reading._note(super().__call__, self.decode, one, kwargs["max_length"])
                return super().__call__(text, *args, **kwargs)

        other.__class__ = Watched
        return other

    def _note(self, tokenize: Any, decode: Any, text: str, limit: int) -> None:
        tokens = tokenize(text, verbose=False).input_ids
        if len(tokens) <= limit:
            self._whole.add(text)
        elif text not in self._cut or limit > self._cut[text][1]:
            self._cut[text] = len(tokens), limit, decode(tokens[limit - 1 :], skip_special_tokens=True)

    def warn(self, texts: Iterable[str]) -> None:
        """Warn about each text that no tokenizer read whole.

        Args:
            texts: the texts of the user. A tokenizer may have read them inside of a template.
        """
        whole = {" ".join(text.split()).lower() for text in self._whole}
        for read, (count, limit, end) in self._cut.items():
            plain = " ".join(read.split()).lower()
            meant = any(text.strip() and " ".join(text.split()).lower() in plain for text in texts)
            if meant and plain not in whole:
                message = f"the prompt has {count} tokens and this model reads {limit}: {end!r} at its end is cut off"
                warnings.warn(message, PromptWarning, stacklevel=6)
