"""Image extrapolation: a panorama is painted window by window, and each window continues what is there.

It is blended latent diffusion, swept over the canvas. It was the usual way before windows were denoised together.

Sources: Avrahami, Lischinski, Fried, "Blended Diffusion for Text-driven Editing of Natural Images", 2022, arXiv:2111.14818;
Avrahami, Fried, Lischinski, "Blended Latent Diffusion", 2023, arXiv:2206.02779, algorithm 1.
"""

from panokit_extrapolation.guidance import Extrapolation as Extrapolation

__all__ = ["Extrapolation"]
