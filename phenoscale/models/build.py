"""From a trial to its model."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from phenoscale.backbones import DenseNet, UNet, VisionTransformer, backbone
from phenoscale.config import Trial
from phenoscale.models.camae import ChannelAgnosticEncoder, ChannelAgnosticMAE
from phenoscale.models.classifier import Classifier
from phenoscale.models.densenet import DenseNetEncoder
from phenoscale.models.mae import MaskedAutoencoder
from phenoscale.models.munet import MaskedUNet, UNetEncoder
from phenoscale.models.timm_encoder import TimmEncoder
from phenoscale.models.vit import Encoder

Model = MaskedAutoencoder | ChannelAgnosticMAE | MaskedUNet | Classifier
"""Called with (crops, labels, draws) it gives the loss. Has an `encoder`; `draws` and
`shared_draws`, how many random numbers each crop, and each step, needs; and `layers()`."""

AnyEncoder = Encoder | DenseNetEncoder | UNetEncoder | TimmEncoder
"""Has the names of its `channels`, and reads embeddings out of crops by `read`."""


def build_model(trial: Trial, *, channels: Sequence[str], num_classes: int) -> Model:
    """The trial's model on the CPU, initialised from the trial's seed alone.

    Args:
        trial: names the objective, backbone, crop size and seed.
        channels: names of the channels of a crop.
        num_classes: perturbations that wsl tells apart.
    """
    objective, size_px = trial.objective, trial.crops.size_px
    shape = backbone(trial.backbone, objective.name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(trial.seed)
        if isinstance(shape, DenseNet):
            densenet = DenseNetEncoder(
                shape,
                channels=channels,
                size_px=size_px,
                crops_per_plate=trial.crops.crops_per_plate,
            )
            return Classifier(densenet, num_classes=num_classes)
        if isinstance(shape, UNet):
            return MaskedUNet(shape, objective, channels=channels, size_px=size_px)
        if objective.name == "mae":
            return MaskedAutoencoder(shape, objective, channels=channels, size_px=size_px)
        if objective.name == "ca_mae":
            return ChannelAgnosticMAE(shape, objective, channels=channels, size_px=size_px)
        encoder = Encoder(shape, channels=channels, size_px=size_px)
        return Classifier(encoder, num_classes=num_classes)


def build_encoder(trial: Trial, *, channels: Sequence[str]) -> AnyEncoder:
    """The untrained encoder of a trial: the baseline that training has to beat."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(trial.seed)
        return empty_encoder(
            trial.backbone,
            channels=channels,
            size_px=trial.crops.size_px,
            agnostic=trial.objective.channel_agnostic,
        )


def empty_encoder(
    name: str, *, channels: Sequence[str], size_px: int, agnostic: bool
) -> AnyEncoder:
    """An encoder by its backbone's name, with random weights.

    Args:
        name: of the backbone.
        channels: names of the channels of a crop.
        size_px: side of a crop.
        agnostic: whether each channel has patches of its own.
    """
    shape = backbone(name)
    if isinstance(shape, VisionTransformer):
        kind = ChannelAgnosticEncoder if agnostic else Encoder
        return kind(shape, channels=channels, size_px=size_px)
    if isinstance(shape, DenseNet):
        return DenseNetEncoder(shape, channels=channels, size_px=size_px)
    return UNetEncoder(shape, channels=channels, size_px=size_px)
