"""DemoFusion (Du et al. 2024): a picture grows in phases, each of which starts from the enlarged one before it.

Three parts work together. The guidance `DemoFusion` paints the smaller canvas and lays it under this one: progressive upscaling
and the skip residual. The layout `DemoFusionLayout` adds windows whose cells lie apart, so that each sees all of the scene:
dilated sampling. The fuser `DemoFusionFuser` goes over from them to the ordinary windows.

Source: Du, Chang, Hospedales, Song, Ma, "DemoFusion: Democratising High-Resolution Image Generation With No $$$", CVPR 2024,
section 4, arXiv:2311.16973.
"""

from panokit_demofusion.fuser import DemoFusionFuser as DemoFusionFuser
from panokit_demofusion.guidance import DemoFusion as DemoFusion
from panokit_demofusion.layout import DemoFusionLayout as DemoFusionLayout
from panokit_demofusion.layout import Phased as Phased

__all__ = ["DemoFusion", "DemoFusionFuser", "DemoFusionLayout", "Phased"]
