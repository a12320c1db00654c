"""From a trial to its model."""

from __future__ import annotations

import torch

from phenoscale.backbones import backbone
from phenoscale.config import Trial
from phenoscale.models.classifier import Classifier
from phenoscale.models.mae import MaskedAutoencoder
from phenoscale.models.vit import Encoder

Model = MaskedAutoencoder | Classifier
"""Has an `encoder`; called with (crops, labels, noise) it gives the loss."""


def build_model(trial: Trial, *, channels: int, num_classes: int) -> Model:
    """The trial's model on the CPU, initialised from the trial's seed alone.

    Args:
        trial: names the objective, backbone, crop size and seed.
        channels: channels of a crop.
        num_classes: perturbations that wsl tells apart.

    Returns:
        A module with an `encoder`; called with (crops, labels, noise) it gives the loss.
    """
    shape, size_px = backbone(trial.backbone), trial.crops.size_px
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(trial.seed)
        if trial.objective.name == "mae":
            return MaskedAutoencoder(
                shape, channels=channels, size_px=size_px, mask_ratio=trial.objective.mask_ratio
            )
        return Classifier(shape, channels=channels, size_px=size_px, num_classes=num_classes)


def build_encoder(trial: Trial, *, channels: int) -> Encoder:
    """The untrained encoder of a trial: the baseline that training has to beat."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(trial.seed)
        return Encoder(backbone(trial.backbone), channels=channels, size_px=trial.crops.size_px)
