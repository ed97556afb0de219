"""MSD, Multi-Scale Diffusion (Zhang et al. 2024): each window agrees with a smaller picture of the whole."""

from panokit_msd.guidance import MSDGuidance as MSDGuidance

__all__ = ["MSDGuidance"]
