"""What a run can be asked for, in words that import nothing heavy: the command line says them before torch is there."""

from typing import Literal, Required, TypedDict

Precision = Literal["32-true", "64-true", "bf16-mixed", "bf16-true", "16-mixed", "16-true"]
Attention = Literal["auto", "sdpa", "xformers", "sliced"]
Wrap = bool | Literal["x", "y", "xy"]

NUMERICS = ("micro_batch", "guided_micro_batch", "checkpointing", "attention", "channels_last", "compile")
"""What of a runtime decides the last bits of a picture, besides its precision."""


class Settings(TypedDict, total=False):
    """What a call of a sampler takes besides the prompt."""

    height: Required[int]
    width: Required[int]
    negative_prompt: str
    steps: int
    guidance_scale: float
    stride: int | None
    wrap: Wrap
    seed: int
