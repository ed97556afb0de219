"""The families in miniature, made once, and what their own pipelines make, in the layout of a canvas."""

from __future__ import annotations

import warnings
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


@pytest.fixture(scope="session")
def pipeline() -> Callable[[str], Any]:
    """A family's pipeline in miniature, made once. Tests that change one make their own."""
    from panokit.testing.families import tiny_pipeline

    return cache(tiny_pipeline)


@pytest.fixture(scope="session")
def literal() -> Callable[..., Tensor]:
    """What a pipeline's own call paints in one window: its latents, `c h w`, or its pixels, `3 H W`."""
    import torch
    from einops import rearrange

    def call(
        pipe: Any, prompt: str = "a lake", *, cells: int = 16, seed: int = 3, pixels: bool = False, **options: Any
    ) -> Tensor:
        takes = pipe.__call__.__func__.__wrapped__.__code__.co_varnames
        side = cells * (getattr(pipe, "vae_scale_factor_spatial", None) or pipe.vae_scale_factor)
        fixed = {"num_frames": 1, "use_resolution_binning": False}
        options = {
            **{name: value for name, value in fixed.items() if name in takes},
            "height": side,
            "width": side,
            "generator": torch.Generator().manual_seed(seed),
            **options,
        }
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "__array", DeprecationWarning)  # diffusers, in set_timesteps
            made = pipe(prompt=prompt, output_type="np" if pixels else "latent", return_dict=False, **options)[0]
        if pixels:
            return rearrange(torch.as_tensor(made)[..., :3], "... h w c -> (...) c h w")[0]
        if type(pipe).__name__ == "Flux2KleinPipeline":  # it has undone the statistics of its autoencoder
            norm, patches = pipe.vae.bn, rearrange(made, "n c (h p) (w q) -> n (c p q) h w", p=2, q=2)
            deviation = (norm.running_var + pipe.vae.config.batch_norm_eps).sqrt()
            patches = (patches - norm.running_mean[:, None, None]) / deviation[:, None, None]
            made = rearrange(patches, "n (c p q) h w -> n c (h p) (w q)", p=2, q=2)
        if made.ndim == 3:  # a row of patches
            made = rearrange(made, "n (h w) (c p q) -> n c (h p) (w q)", h=cells // 2, p=2, q=2)
        return made[0, :, 0] if made.ndim == 5 else made[0]

    return call


@pytest.fixture
def leave_to_sweeps(sweeps: bool) -> Callable[[bool], None]:
    """Skip a case of many, if it is one to leave out. CI runs all of them: `.ci/run` asks for sweeps of these modules."""

    def leave(case: bool) -> None:
        if case and not sweeps:
            # Nothing is left out in the end: CI runs these files with --sweeps, and then no case is skipped.
            pytest.skip("one case of many, which --sweeps runs, as CI does")

    return leave
