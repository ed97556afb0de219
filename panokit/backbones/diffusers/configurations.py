"""What the configuration files of a model may say. Each value is checked by type and range before anything is built."""

import types
from collections.abc import Iterator, Mapping
from functools import cache
from inspect import signature
from pathlib import Path
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

from panokit.errors import ModelError
from panokit.family import read_json
from panokit.hints import hints_of, words

_INFINITY = float("inf")
_LARGE = 2.0**63


class Value(NamedTuple):
    """What a value may be.

    Attributes:
        hint: its type. A list in a file is a tuple here.
        least: the smallest that a number in it may be.
        most: the largest that a number in it may be.
    """

    hint: Any
    least: float = -_LARGE
    most: float = _LARGE

    def holds(self, value: Any, exact: bool) -> bool:
        """Whether it may be that; see `_is_of`."""
        return _is_of(value, self.hint, exact) and all(self.least <= number <= self.most for number in _numbers(value))


_COUNT = Value(int | tuple[int, ...] | None, 1, 1_000_000)
_EPS = Value(float, 0, 1)
_FACTOR = Value(float | None, 1e-6, 1e6)
_SHIFT = Value(float | None, -1e6, 1e6)
_BETA = Value(float, 1e-9, 1)

_ANY = Value(Any, -_INFINITY, _INFINITY)

VALUES: Mapping[str, Value] = {
    # of networks
    "sample_size": Value(int | tuple[int, int] | None, 1, 4096),
    "pos_embed_max_size": Value(int | None, 1, 4096),
    "rope_max_seq_len": Value(int | None, 1, 100_000),
    "axes_lens": Value(tuple[int, ...] | None, 1, 100_000),
    "patch_size": Value(int | tuple[int, ...] | None, 1, 256),
    "scaling_factor": _FACTOR,
    "shift_factor": _SHIFT,
    "latents_mean": Value(tuple[float, ...] | None, -1e6, 1e6),
    "latents_std": Value(tuple[float, ...] | None, 1e-6, 1e6),
    "scale_factor_spatial": Value(int, 1, 256),
    "scale_factor_temporal": Value(int, 1, 256),
    "z_dim": _COUNT,
    "latent_channels": _COUNT,
    "in_channels": _COUNT,
    "out_channels": _COUNT,
    "block_out_channels": _COUNT,
    "num_attention_heads": _COUNT,
    "attention_head_dim": _COUNT,
    "cross_attention_dim": _COUNT,
    "norm_num_groups": _COUNT,
    "hidden_size": _COUNT,
    "vocab_size": _COUNT,
    "text_config": Value(dict | None),
    "max_position_embeddings": Value(int, 1, 100_000_000),
    "norm_eps": _EPS,
    "layer_norm_eps": _EPS,
    "batch_norm_eps": _EPS,
    # of tokenizers; one that does not know how many tokens its model reads says 10**30
    "model_max_length": Value(float | None, 1, 1e30),
    # of schedulers
    "num_train_timesteps": Value(int | None, 1, 100_000),
    "beta_start": _BETA,
    "beta_end": _BETA,
    "trained_betas": Value(tuple[float, ...] | None, 0, 1),
    "steps_offset": Value(int, 0, 100_000),
    "shift": _FACTOR,
    "base_shift": _SHIFT,
    "max_shift": _SHIFT,
    "base_image_seq_len": _COUNT,
    "max_image_seq_len": _COUNT,
    "shift_terminal": Value(float | None, 0, 1),
}
"""The values that panokit reads, or that decide how much is built. All values must be of the types that their classes say."""

_FILES = ("config.json", "scheduler_config.json", "tokenizer_config.json", "preprocessor_config.json")


def read_configuration(folder: Path, cls: Any, model: str) -> dict[str, Any]:
    """The configuration of a part of a model, with all of its values checked.

    Args:
        folder: the folder of the part.
        cls: its class, whose constructor says the types of its values.
        model: the model in words, for messages.

    Returns:
        The content of its file; empty if it has none.

    Raises:
        ModelError: a file is damaged, or a value is of another type, or out of its range.
    """
    config: dict[str, Any] = {}
    for file in (folder / name for name in _FILES):
        if file.is_file():
            values = read_json(file)
            require_values(values, cls, f"{folder.name}/{file.name} of {model}")
            config |= values
    return config


def require_values(values: Mapping[str, Any], cls: Any, file: str) -> None:
    """Check the values of a configuration.

    Args:
        values: they, by name.
        cls: the class that they are for; None where it is not known.
        file: their file in words, for messages.

    Raises:
        ModelError: one is of another type, or out of its range.
    """
    types_of_class = _types(cls)
    for name, value in values.items():
        if isinstance(value, dict):
            require_values(value, None, f"{name} in {file}")
        by_class, entry = types_of_class.get(name, _ANY), VALUES.get(name, _ANY)
        if not (by_class.holds(value, exact=False) and entry.holds(value, exact=True)):
            limits = f", from {entry.least:n} to {entry.most:n}" if entry.most < _LARGE else ""
            kind = words(entry.hint if by_class is _ANY else by_class.hint)
            raise ModelError(f"{name} in {file} is {value!r:.60}: it must be {kind}{limits}; fetch the model again")


def require_fitting(configs: Mapping[str, Mapping[str, Any]], model: str) -> None:
    """Check that the parts of a model have the same sizes where they meet.

    Args:
        configs: the configuration of each part by its name.
        model: the model in words, for messages.

    Raises:
        ModelError: they differ.
    """
    unet, vae = configs.get("unet", {}), configs.get("vae", {})
    latents = vae.get("latent_channels") or vae.get("z_dim")
    met = []
    if vae.get("latents_mean") is not None or vae.get("latents_std") is not None:
        met += [("channels of vae", latents, name, len(vae.get(name) or ())) for name in ("latents_mean", "latents_std")]
    if unet.get("_class_name") == "UNet2DConditionModel":
        channels = unet.get("in_channels")
        if latents and channels == unet.get("out_channels"):
            met.append(("in_channels of unet", channels, "latent_channels of vae", latents))
        encoders = [name for name in configs if name.startswith("text_encoder")]
        widths = [configs[name].get("hidden_size", 0) for name in encoders]
        width = unet.get("cross_attention_dim")
        if isinstance(width, int) and not unet.get("encoder_hid_dim_type") and widths and all(widths):
            met.append(("cross_attention_dim of unet", width, f"hidden_size of {' and '.join(encoders)}", sum(widths)))
    for one, size, other, another in met:
        if size != another:
            raise ModelError(
                f"{model} has {size} for {one} and {another} for {other}, which must be equal: its parts are of two models; "
                "fetch it again"
            )


@cache
def _types(cls: Any) -> Mapping[str, Value]:
    """What the values of a class may be, by the annotations and defaults of its constructor. transformers checks its own."""
    if not hasattr(cls, "from_config"):
        return {}
    hints, expected = hints_of(cls.__init__), dict[str, Value]()
    for name, argument in signature(cls.__init__).parameters.items():
        if name in hints:
            hint, default = hints[name], argument.default
            if default is None or hint is bool:
                hint = hint | None
            elif isinstance(default, bool | int | float | str) and not _is_of(default, hint, exact=False):
                hint = hint | type(default)
            endless = isinstance(default, float) and abs(default) == _INFINITY
            expected[name] = Value(hint, -_INFINITY, _INFINITY) if endless else Value(hint)
    return expected


def _is_of(value: Any, hint: Any, exact: bool) -> bool:
    """Whether a value from a file is of a type.

    Args:
        value: the value.
        hint: the type.
        exact: whether whole numbers and the lengths of lists count. Annotations of diffusers are not that exact.
    """
    origin, args = get_origin(hint) or hint, get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_is_of(value, option, exact) for option in args)
    if origin is Literal:
        return isinstance(value, str)
    if origin in (int, float):
        return isinstance(value, int if exact and origin is int else int | float) and not isinstance(value, bool)
    if origin in (list, tuple):
        fixed = exact and args and args[-1] is not Ellipsis
        items = [item for item in args if item is not Ellipsis] or [Any]
        return (
            isinstance(value, list)
            and (not fixed or len(value) == len(args))
            and all(any(_is_of(part, item, exact) for item in items) for part in value)
        )
    return origin is Any or (isinstance(origin, type) and isinstance(value, origin))


def _numbers(value: Any) -> Iterator[float]:
    """The numbers in a value."""
    if isinstance(value, list):
        for part in value:
            yield from _numbers(part)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value
