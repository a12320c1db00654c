"""DenseNet with adaptive batch norm: the statistics of a crop's plate, in training and after it.

Weakly supervised models of Kraus et al. 2023 are DenseNets with AdaBN (Li et al. 2016, arXiv
1603.04779; on these screens Sypetkowski et al. 2023, arXiv 2301.05768). In training the crops of a
plate stand together in a batch (`sampling="plate_wise"`), and each such group is normalized by its
own statistics: no worker needs another one's crops. For embedding, `adapt` takes the statistics of
some crops of a plate, and every crop of that plate is then normalized by them, alone or in company.

Shapes: B crops, C channels, H W pixels, D feature maps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phenoscale.backbones import DenseNet
from phenoscale.models import vit
from phenoscale.models.readout import choose, read_out

ADAPTING_CROPS = 64
"""Crops of a plate, at most, that its statistics are taken from."""


def evenly(total: int, most: int = ADAPTING_CROPS) -> list[int]:
    """Numbers below `total`, evenly spread: all of them, or `most`."""
    count = min(most, total)
    return [i * total // count for i in range(count)]


class PlateNorm(nn.BatchNorm2d):
    """Batch norm over groups of crops, or by statistics that were taken before, and ReLU."""

    group: int | None = None
    """Crops that are normalized together; None for all that come at once."""
    adapting: bool = False
    """Whether the next crops give the statistics."""
    statistics: tuple[Tensor, Tensor] | None = None
    """Mean and variance of each map, (D,), of the plate that `adapt` saw."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, H, W) to the same, normalized and activated."""
        if self.adapting:
            variance, mean = torch.var_mean(x, dim=(0, 2, 3), correction=0)
            self.statistics = mean, variance
        if self.statistics is not None:
            x = F.batch_norm(x, *self.statistics, self.weight, self.bias, False, 0.0, self.eps)
        else:
            groups = x.split(self.group or len(x))
            x = torch.cat(
                [
                    F.batch_norm(part, None, None, self.weight, self.bias, True, 0.0, self.eps)
                    for part in groups
                ]
            )
        return F.relu(x, inplace=True)


def _plate_norm(width: int, **options: Any) -> PlateNorm:  # device and dtype, where timm has them
    return PlateNorm(width, track_running_stats=False, **options)


class DenseNetEncoder(nn.Module):
    """uint8 crops in, the last feature maps out; timm's DenseNet with `PlateNorm`."""

    draws = 0

    def __init__(
        self,
        shape: DenseNet,
        *,
        channels: Sequence[str],
        size_px: int,
        crops_per_plate: int | None = None,
    ) -> None:
        """Builds the encoder for crops of the named channels.

        `crops_per_plate` crops of a plate stand together in a batch; None where all are of one.
        """
        # Imported here: it takes 2.5 s, and no other model needs it.
        from timm.models.densenet import DenseNet as TimmDenseNet

        super().__init__()
        self.channels = tuple(channels)
        self.width = shape.embedding_width
        network = TimmDenseNet(
            growth_rate=shape.growth,
            block_config=shape.blocks,
            in_chans=len(channels),
            num_classes=0,
            norm_layer=_plate_norm,  # type: ignore[arg-type]  # timm takes a function, too
        )
        self.features = network.features
        self.norms = [part for part in self.modules() if isinstance(part, PlateNorm)]
        for norm in self.norms:
            norm.group = crops_per_plate

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) standardized images to the last feature maps, (B, D, h, w)."""
        return self.features(images)

    def places(self, crops: Tensor, draws: Tensor | None = None) -> Tensor:
        """Places of the last feature maps, (B, h w, D): what a classifier averages."""
        return self(vit.standardize(crops)).flatten(2).transpose(1, 2)

    @torch.no_grad()
    def adapt(self, crops: Tensor, channels: Sequence[str]) -> None:
        """Takes the statistics of a plate from some of its crops; they hold until the next call.

        Args:
            crops: (B, C, H, W) uint8, of one plate.
            channels: their names.
        """
        for norm in self.norms:
            norm.adapting = True
        try:
            self.places(choose(crops, channels, self.channels))
        finally:
            for norm in self.norms:
                norm.adapting = False

    def read(
        self, crops: Tensor, channels: Sequence[str], *, every_block: bool = False
    ) -> dict[str, Tensor]:
        """Embeddings of crops, (B, D) each: patch_mean, the penultimate layer, and patch_sd.

        Args:
            crops: (B, C, H, W) uint8; all of one plate, that of `adapt` where it was called.
            channels: their names.
            every_block: not used; what every encoder is called with.

        Raises:
            ValueError: if the channels are not those that the encoder takes.
        """
        return read_out(self.places(choose(crops, channels, self.channels)))
