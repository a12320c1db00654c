"""Masked autoencoder: encode what is kept, predict the rest.

He et al. 2022; on microscopy Kraus et al. 2023.

Shapes: B crops, C channels, N patches, K kept patches, M = N - K masked patches, D width, E decoder
width, P values of a patch. In a mask 1 means removed.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from phenoscale.backbones import Backbone
from phenoscale.models import vit


class MaskedAutoencoder(nn.Module):
    """Encoder, decoder, and the mean squared error on the masked patches."""

    positions: Tensor

    def __init__(self, shape: Backbone, *, channels: int, size_px: int, mask_ratio: float) -> None:
        """Builds encoder and decoder; `mask_ratio` of the patches are removed in training."""
        super().__init__()
        self.encoder = vit.Encoder(shape, channels=channels, size_px=size_px)
        self.num_kept = round(self.encoder.num_patches * (1 - mask_ratio))
        width = shape.decoder_width
        self.to_decoder = nn.Linear(shape.width, width)
        self.mask_token = nn.Parameter(torch.empty(width))
        side = size_px // shape.patch_px
        self.register_buffer("positions", vit.positions(side, width), persistent=False)
        self.decoder = vit.blocks(
            width, shape.decoder_depth, shape.decoder_heads, 4 * width, shape.layer_scale
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.to_pixels = nn.Linear(width, channels * shape.patch_px**2)
        nn.init.normal_(self.mask_token, std=0.02)
        for module in (self.to_decoder, self.decoder, self.to_pixels):
            module.apply(vit.init_linear)

    def forward(self, crops: Tensor, labels: Tensor, noise: Tensor) -> Tensor:
        """Mean squared error of the masked patches, in units of the crop's own variance.

        Args:
            crops: (B, C, H, W) uint8.
            labels: (B,), not used: what every objective is called with.
            noise: (B, N) float32 in [0, 1); the patches with the smallest values are kept.

        Returns:
            () float32, mean over masked patches and their pixels.
        """
        patches = vit.patchify(vit.standardize(crops), self.encoder.patch_px)
        masked, predicted = self.reconstruct(patches, noise)
        return (predicted - vit.take(patches, masked)).square().mean()

    def reconstruct(self, patches: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Predicts the masked patches from the kept ones.

        Args:
            patches: (B, N, P) float32, standardized.
            noise: (B, N) float32.

        Returns:
            (B, M) int64 numbers of the masked patches and (B, M, P) their predicted values.
        """
        order = noise.argsort(dim=1)
        kept, masked = order[:, : self.num_kept], order[:, self.num_kept :]
        x = self.to_decoder(self.encoder(patches, kept))
        place = self.positions.expand(len(x), -1, -1)
        kept_tokens = x[:, 1:] + vit.take(place, kept)
        masked_tokens = self.mask_token + vit.take(place, masked)
        # Attention does not look at the order of tokens, so they stay class, kept, masked: nothing
        # is scattered back, and the masked ones, which alone have a loss, stand together at the
        # end.
        x = torch.cat([x[:, :1], kept_tokens, masked_tokens], dim=1)
        for block in self.decoder:
            x = block(x)
        return masked, self.to_pixels(self.norm(x[:, 1 + self.num_kept :]))


@torch.no_grad()
def panel(model: MaskedAutoencoder, crops: Tensor, noise: Tensor) -> Tensor:
    """Original, masked and reconstructed crops, for a person to look at.

    Args:
        model: the autoencoder.
        crops: (B, C, H, W) uint8.
        noise: (B, N) float32.

    Returns:
        (3, B, C, H, W) float32, standardized: the original, the original with masked patches at 0
        (the crop's mean), and the original with masked patches replaced by the prediction.
    """
    encoder = model.encoder
    patches = vit.patchify(vit.standardize(crops), encoder.patch_px)
    masked, predicted = model.reconstruct(patches, noise)
    at = masked.unsqueeze(-1).expand_as(predicted)
    shown = [patches, patches.scatter(1, at, 0.0), patches.scatter(1, at, predicted)]
    return torch.stack([vit.unpatchify(x, encoder.patch_px, encoder.channels) for x in shown])
