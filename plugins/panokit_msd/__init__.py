"""Windows agree with a smaller picture of the whole: MSD, as panokit does it and as in the paper, and a head start."""

from panokit_msd.guidance import MSDGuidance as MSDGuidance
from panokit_msd.head_start import HeadStart as HeadStart
from panokit_msd.paper import MSDPaper as MSDPaper

__all__ = ["HeadStart", "MSDGuidance", "MSDPaper"]
