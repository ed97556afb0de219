"""HiFlow (Bu et al. 2025): a canvas follows the path that a smaller picture of the whole scene took from noise.

MSD compares a canvas with a smaller one that is denoised anew at every step. HiFlow paints the smaller canvas first, keeps its
clean estimate of every step, and takes low frequencies and changes from them.

Source: Bu, Ling, Zhou, Zhang, Wu, Dong, Zang, Cao, Lin, Wang, "HiFlow: Training-free High-Resolution Image Generation with
Flow-Aligned Guidance", arXiv:2504.06232.
"""

from panokit_hiflow.guidance import HiFlow as HiFlow

__all__ = ["HiFlow"]
