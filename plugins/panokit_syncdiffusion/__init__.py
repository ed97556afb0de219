"""SyncDiffusion (Lee et al. 2023, arXiv:2306.05178): perceptual guidance makes windows look alike."""

from panokit_syncdiffusion.guidance import SyncDiffusion as SyncDiffusion
from panokit_syncdiffusion.metric import LPIPS as LPIPS
from panokit_syncdiffusion.metric import EfficientNet as EfficientNet
from panokit_syncdiffusion.metric import Metric as Metric
from panokit_syncdiffusion.metric import MetricError as MetricError
from panokit_syncdiffusion.metric import Perceptual as Perceptual

__all__ = ["LPIPS", "EfficientNet", "Metric", "MetricError", "Perceptual", "SyncDiffusion"]
