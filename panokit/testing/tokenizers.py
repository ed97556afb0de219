"""The tokenizers of text-to-image models in miniature. They know letters alone, so they take any text and need no files."""

from transformers import CLIPTokenizer, GemmaTokenizer, Qwen2Tokenizer, T5Tokenizer

CHAT = """\
{% for message in messages %}<|im_start|>{{ message.role }}
{{ message.content if message.content is string else message.content[0].text }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
"""The template that turns a conversation into a text, in jinja's language. Language models' tokenizers apply it."""

_ASCII = [chr(code) for code in range(33, 127)]


def clip_tokenizer(length: int = 16, *, pad: str = "<|endoftext|>") -> CLIPTokenizer:
    """CLIP's tokenizer. Every byte is a token, with and without the end of a word, and no tokens are merged.

    Args:
        length: tokens of a prompt, with its start, its end and the padding.
        pad: the token that short prompts are padded with: "!" where OpenCLIP trained the text encoder.
    """
    letters = _bytes()
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab=_numbered(tokens), merges=[], model_max_length=length, pad_token=pad)


def t5_tokenizer(length: int = 512) -> T5Tokenizer:
    """T5's tokenizer. Every character of ASCII is a token, and so is a space.

    Args:
        length: tokens of a prompt, unless a pipeline asks for another number.
    """
    special = [(token, 0.0) for token in ("<pad>", "</s>", "<unk>")]
    return T5Tokenizer(vocab=[*special, *((piece, -2.0) for piece in ("▁", *_ASCII))], extra_ids=0, model_max_length=length)


def gemma_tokenizer(length: int = 2048) -> GemmaTokenizer:
    """Gemma's tokenizer. Every character of ASCII is a token, and so is every byte of others.

    Args:
        length: tokens of a prompt, unless a pipeline asks for another number.
    """
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *_ASCII]
    return GemmaTokenizer(vocab=_numbered(tokens), merges=[], model_max_length=length)


def qwen_tokenizer(*images: str, length: int = 512) -> Qwen2Tokenizer:
    """Qwen's tokenizer, with a template for conversations. Every byte is a token.

    Args:
        images: more tokens, which stand for pictures in a text.
        length: tokens of a prompt, unless a pipeline asks for another number.
    """
    tokenizer = Qwen2Tokenizer(vocab=_numbered([*_bytes(), "<|endoftext|>"]), merges=[], model_max_length=length)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>", *images]})
    tokenizer.chat_template = CHAT
    return tokenizer


def _bytes() -> list[str]:
    """A visible character for every byte, as tokenizers of bytes write them."""
    printable = [chr(byte) for byte in (*range(33, 127), *range(161, 173), *range(174, 256))]
    return printable + [chr(256 + k) for k in range(256 - len(printable))]


def _numbered(tokens: list[str]) -> dict[str, int]:
    return {token: k for k, token in enumerate(tokens)}
