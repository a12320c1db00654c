"""Weakly supervised learning (WSL): a network that names a crop's perturbation.

Kraus et al. 2023.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from phenoscale.models.densenet import DenseNetEncoder
from phenoscale.models.vit import Encoder


class Classifier(nn.Module):
    """Encoder and a linear layer on the mean of its patch tokens, or of its last feature maps.

    The mean, and not the class token, carries the label: it is the read-out that every objective of
    a study is compared by, and so the classifier's penultimate layer.
    """

    def __init__(self, encoder: Encoder | DenseNetEncoder, *, num_classes: int) -> None:
        """Adds a head for `num_classes` perturbations to an encoder."""
        super().__init__()
        self.encoder = encoder
        self.draws = encoder.draws
        self.shared_draws = 0
        self.head = nn.Linear(encoder.width, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def layers(self) -> list[nn.Module]:
        """The parts that are compiled, sharded and recomputed one by one."""
        if isinstance(self.encoder, Encoder):
            return list(self.encoder.blocks)
        return list(self.encoder.features)

    def forward(self, crops: Tensor, labels: Tensor, draws: Tensor) -> Tensor:
        """Cross-entropy of the perturbation, nats.

        Args:
            crops: (B, C, H, W) uint8.
            labels: (B,) int64 class of each crop.
            draws: (B, `draws`) float32 in [0, 1): which crop skips which block.

        Returns:
            () float32, mean over crops.
        """
        places = self.encoder.places(crops, draws)
        return F.cross_entropy(self.head(places.mean(dim=1)).float(), labels)
