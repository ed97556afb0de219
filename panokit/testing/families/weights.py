"""Random weights that tests can feel."""

import torch
from torch import nn


def enliven(network: nn.Module) -> None:
    """Enlarge a network's weights, so that what it predicts depends visibly on the prompt and on the place.

    Weights that are zero before a training, such as those of a ControlNet's outputs, become random ones.

    Args:
        network: what predicts.
    """
    with torch.no_grad():
        for weight in network.parameters():
            if weight.ndim == 1:
                weight.add_(0.02 * torch.randn_like(weight))
            elif weight.any():
                weight.mul_(1.5)
            else:
                nn.init.xavier_uniform_(weight)
