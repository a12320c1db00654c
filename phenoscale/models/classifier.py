"""Weakly supervised learning: a ViT that names a crop's perturbation (Kraus et al. 2023, WSL)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from phenoscale.backbones import Backbone
from phenoscale.models import vit


class Classifier(nn.Module):
    """Encoder and a linear layer on the mean of its patch tokens.

    The mean, and not the class token, carries the label: it is the read-out that every objective of
    a study is compared by, and so the classifier's penultimate layer.
    """

    def __init__(self, shape: Backbone, *, channels: int, size_px: int, num_classes: int) -> None:
        """Builds encoder and head for `num_classes` perturbations."""
        super().__init__()
        self.encoder = vit.Encoder(shape, channels=channels, size_px=size_px)
        self.head = nn.Linear(shape.width, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def forward(self, crops: Tensor, labels: Tensor, noise: Tensor) -> Tensor:
        """Cross-entropy of the perturbation, nats.

        Args:
            crops: (B, C, H, W) uint8.
            labels: (B,) int64 class of each crop.
            noise: (B, N), not used: what every objective is called with.

        Returns:
            () float32, mean over crops.
        """
        tokens = self.encoder(vit.patchify(vit.standardize(crops), self.encoder.patch_px))
        return F.cross_entropy(self.head(tokens[:, 1:].mean(dim=1)), labels)
