"""Masked autoencoder: encode what is kept, predict the rest.

He et al. 2022; on microscopy Kraus et al. 2023.

Shapes: B crops, C channels, N patches, K kept patches, M = N - K masked patches, D width, E decoder
width, P values of a patch. In a mask 1 means removed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from phenoscale.backbones import VisionTransformer
from phenoscale.config import Objective
from phenoscale.models import losses, vit
from phenoscale.models.blocks import NORM_EPS, positions


class MaskedAutoencoder(nn.Module):
    """Encoder, decoder, and the mean squared error on the masked patches."""

    positions: Tensor

    def __init__(
        self,
        shape: VisionTransformer,
        objective: Objective,
        *,
        channels: Sequence[str],
        size_px: int,
    ) -> None:
        """Builds encoder and decoder for crops of the named channels."""
        super().__init__()
        self.objective = objective
        self.encoder = vit.Encoder(shape, channels=channels, size_px=size_px)
        self.num_kept = round(self.encoder.num_patches * (1 - objective.mask_ratio))
        self.draws = self.encoder.num_patches + self.encoder.draws
        self.shared_draws = 0
        width = shape.decoder.width
        self.to_decoder = nn.Linear(shape.width, width)
        self.mask_token = nn.Parameter(torch.empty(width))
        side = size_px // shape.patch_px
        self.register_buffer("positions", positions(side, width), persistent=False)
        self.decoder = vit.decoder_blocks(shape.decoder)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.to_pixels = nn.Linear(width, len(channels) * shape.patch_px**2)
        nn.init.normal_(self.mask_token, std=0.02)
        for module in (self.to_decoder, self.decoder, self.to_pixels):
            module.apply(vit.init_linear)

    def layers(self) -> list[nn.Module]:
        """The parts that are compiled, sharded and recomputed one by one."""
        return [*self.encoder.blocks, *self.decoder]

    def forward(self, crops: Tensor, labels: Tensor, draws: Tensor) -> Tensor:
        """The loss: masked patches' squared error, and the Fourier loss where it has a weight.

        Args:
            crops: (B, C, H, W) uint8.
            labels: (B,), not used: what every objective is called with.
            draws: (B, `draws`) float32 in [0, 1): of the first N the patches with the smallest
                values are kept; the rest decide which crop skips which block.

        Returns:
            () float32, in units of each crop's own variance.
        """
        patches = self.encoder.patches(crops)
        target = losses.normalized(patches) if self.objective.normalized_targets else patches
        order, decoded = self.decode(patches, draws)
        if not self.objective.fourier_weight:
            predicted = self.to_pixels(self.norm(decoded[:, self.num_kept :]))
            return losses.masked_mse(predicted, vit.take(target, order[:, self.num_kept :]))
        everything = self.to_pixels(self.norm(decoded))
        masked = everything[:, self.num_kept :]
        mse = losses.masked_mse(masked, vit.take(target, order[:, self.num_kept :]))
        everything = vit.take(everything, order.argsort(dim=1))
        fourier = losses.fourier_loss(self._image(everything), self._image(target))
        return losses.total_loss(mse, fourier, self.objective.fourier_weight)

    def decode(self, patches: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
        """Encodes the kept patches and decodes all.

        Args:
            patches: (B, N, P) float32, standardized.
            draws: as `forward`.

        Returns:
            (B, N) int64 numbers of the patches, the K kept ones first, and their decoder tokens in
            that order, (B, N, E).
        """
        count = self.encoder.num_patches
        order = draws[:, :count].argsort(dim=1)
        kept, masked = order[:, : self.num_kept], order[:, self.num_kept :]
        x = self.to_decoder(self.encoder(patches, kept, draws[:, count:]))
        kept_tokens = x[:, 1:] + self.positions[kept]
        masked_tokens = self.mask_token + self.positions[masked]
        # Attention does not look at the order of tokens, so they stay class, kept, masked: nothing
        # is scattered back, and the masked ones, which alone have a loss, stand together at the
        # end.
        x = torch.cat([x[:, :1], kept_tokens, masked_tokens], dim=1)
        for block in self.decoder:
            x = block(x)
        return order, x[:, 1:]

    def reconstruct(self, crops: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
        """The whole crop as predicted, and what was masked.

        Returns:
            (B, C, H, W) float32 predictions, in the units of the standardized crop, and bool of the
            same shape, True where removed.
        """
        patches = self.encoder.patches(crops)
        order, decoded = self.decode(patches, draws)
        predicted = vit.take(self.to_pixels(self.norm(decoded)), order.argsort(dim=1))
        if self.objective.normalized_targets:
            predicted = losses.restored(predicted, patches)
        removed = vit.removed(patches, order[:, : self.num_kept])
        return self._image(predicted), self._image(removed)

    def _image(self, patches: Tensor) -> Tensor:
        return vit.unpatchify(patches, self.encoder.patch_px, len(self.encoder.channels))
