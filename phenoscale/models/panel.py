"""What a masked autoencoder saw and what it made of it, for a person to look at."""

from __future__ import annotations

import torch
from torch import Tensor

from phenoscale.models import vit
from phenoscale.models.camae import ChannelAgnosticMAE
from phenoscale.models.mae import MaskedAutoencoder
from phenoscale.models.munet import MaskedUNet

MaskedModel = MaskedAutoencoder | ChannelAgnosticMAE | MaskedUNet


@torch.no_grad()
def panel(model: MaskedModel, crops: Tensor, draws: Tensor) -> Tensor:
    """Original, masked and reconstructed crops.

    Args:
        model: the autoencoder.
        crops: (B, C, H, W) uint8.
        draws: (B, `draws`) float32.

    Returns:
        (3, B, C, H, W) float32, standardized: the original, the original with what is masked at 0
        (the crop's mean), and the original with what is masked replaced by the prediction.
    """
    original = vit.standardize(crops)
    predicted, removed = model.reconstruct(crops, draws)
    hidden = original.masked_fill(removed, 0.0)
    return torch.stack([original, hidden, torch.where(removed, predicted, original)])
