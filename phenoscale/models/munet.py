"""Masked U-Net (MU-net; Kraus et al. 2023): a convolutional autoencoder that fills masked squares.

The paper gives the number of parameters and the share of masked squares. Norm and activation are
ours: group norm, which no other crop of a batch enters, and ReLU.

Shapes: B crops, C channels, H W pixels, N masked or kept squares, D feature maps of the last scale.
In a mask 1 means removed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phenoscale.backbones import UNet
from phenoscale.config import Objective
from phenoscale.models import losses, vit
from phenoscale.models.readout import choose, read_out

_GROUPS = 8


def scale(maps_in: int, width: int, shape: UNet) -> nn.Sequential:
    """The convolutions of one scale, each with norm and activation."""
    parts: list[nn.Module] = []
    for _ in range(shape.convolutions):
        parts += [
            nn.Conv2d(maps_in, width, shape.kernel_px, padding="same", bias=False),
            nn.GroupNorm(_GROUPS, width),
            nn.ReLU(),
        ]
        maps_in = width
    return nn.Sequential(*parts)


class UNetEncoder(nn.Module):
    """uint8 crops in, feature maps of every scale out."""

    def __init__(self, shape: UNet, *, channels: Sequence[str], size_px: int) -> None:
        """Builds the way down for crops of the named channels."""
        super().__init__()
        self.channels = tuple(channels)
        self.width = shape.embedding_width
        widths = (len(channels), *shape.widths)
        self.scales = nn.ModuleList(
            scale(maps_in, width, shape) for maps_in, width in zip(widths, widths[1:], strict=False)
        )
        self.apply(_init_convolution)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, C, H, W) standardized images to the feature maps of each scale, finest first."""
        maps = []
        x = images
        for number, part in enumerate(self.scales):
            x = part(F.max_pool2d(x, 2) if number else x)
            maps.append(x)
        return maps

    def read(
        self, crops: Tensor, channels: Sequence[str], *, every_block: bool = False
    ) -> dict[str, Tensor]:
        """Embeddings of crops, (B, D) each: patch_mean, the pooled bottleneck, and patch_sd.

        Args:
            crops: (B, C, H, W) uint8.
            channels: their names.
            every_block: not used; what every encoder is called with.

        Raises:
            ValueError: if the channels are not those that the encoder takes.
        """
        images = vit.standardize(choose(crops, channels, self.channels))
        return read_out(self(images)[-1].flatten(2).transpose(1, 2))


class MaskedUNet(nn.Module):
    """Encoder, mirrored decoder with skip connections, and the error on the masked pixels."""

    def __init__(
        self, shape: UNet, objective: Objective, *, channels: Sequence[str], size_px: int
    ) -> None:
        """Builds encoder and decoder for crops of the named channels."""
        super().__init__()
        self.objective = objective
        self.encoder = UNetEncoder(shape, channels=channels, size_px=size_px)
        self.patch_px = shape.patch_px
        self.side = size_px // shape.patch_px
        self.draws = self.side**2
        self.shared_draws = 0
        self.num_kept = round(self.draws * (1 - objective.mask_ratio))
        pairs = list(zip(shape.widths[:0:-1], shape.widths[-2::-1], strict=True))
        self.up = nn.ModuleList(nn.ConvTranspose2d(deep, width, 2, 2) for deep, width in pairs)
        self.scales = nn.ModuleList(scale(2 * width, width, shape) for _, width in pairs)
        self.to_pixels = nn.Conv2d(shape.widths[0], len(channels), 1)
        for module in (self.up, self.scales, self.to_pixels):
            module.apply(_init_convolution)

    def layers(self) -> list[nn.Module]:
        """The parts that are compiled, sharded and recomputed one by one."""
        return [*self.encoder.scales, *self.scales]

    def forward(self, crops: Tensor, labels: Tensor, draws: Tensor) -> Tensor:
        """Mean squared error of the masked pixels, and the Fourier loss where it has a weight.

        Args:
            crops: (B, C, H, W) uint8.
            labels: (B,), not used: what every objective is called with.
            draws: (B, N) float32 in [0, 1); the squares with the smallest values are kept.

        Returns:
            () float32, in units of each crop's and channel's own variance.
        """
        images = vit.standardize(crops)
        removed = self._removed(draws)
        predicted = self._fill(images, removed)
        pixels = images.shape[1] * removed.sum()
        mse = ((predicted.float() - images).square() * removed).sum() / pixels
        if not self.objective.fourier_weight:
            return mse
        fourier = losses.fourier_loss(predicted, images)
        return losses.total_loss(mse, fourier, self.objective.fourier_weight)

    def reconstruct(self, crops: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
        """The whole crop as predicted, and what was masked; as `mae.MaskedAutoencoder`'s."""
        images, removed = vit.standardize(crops), self._removed(draws)
        return self._fill(images, removed), removed.expand_as(images)

    def _fill(self, images: Tensor, removed: Tensor) -> Tensor:
        """(B, C, H, W) predictions from images whose removed squares are 0, the crop's mean."""
        *skips, x = self.encoder(images.masked_fill(removed, 0.0))
        for up, part, skip in zip(self.up, self.scales, reversed(skips), strict=True):
            x = part(torch.cat([up(x), skip], dim=1))
        return self.to_pixels(x)

    def _removed(self, draws: Tensor) -> Tensor:
        """(B, 1, H, W) bool: True in the squares with the largest draws."""
        rank = draws.argsort(dim=1).argsort(dim=1)
        removed = (rank >= self.num_kept).reshape(-1, 1, self.side, self.side)
        return removed.repeat_interleave(self.patch_px, 2).repeat_interleave(self.patch_px, 3)


def _init_convolution(module: nn.Module) -> None:
    """He et al. 2015 for convolutions that a ReLU follows."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
