"""CA-MAE with one pass per channel, as the papers' public code decodes; `camae` is held against it.

Each channel attends to the whole context on its own, whose norm, keys and values are made again for
it; then its decoder runs; all tokens are predicted, and a mask picks those that count. Weights and
loss are those of `ChannelAgnosticMAE`, whose state it loads.

Shapes: as `phenoscale/models/camae.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from phenoscale.models import losses
from phenoscale.models.camae import ChannelAgnosticMAE


class ChannelLoopMAE(ChannelAgnosticMAE):
    """The same model, channel after channel."""

    def forward(self, crops: Tensor, labels: Tensor, draws: Tensor) -> Tensor:
        """The loss, as `ChannelAgnosticMAE.forward`."""
        chosen = self._chosen(draws)
        patches, noise = self.encoder.patches(crops[:, chosen]), self._noise(draws, chosen)
        target = losses.normalized(patches) if self.objective.normalized_targets else patches
        order, kept, decoded = self.decode(patches, noise, draws, chosen)
        everything = self.to_pixels(decoded)
        mask = torch.ones_like(noise).scatter(1, order[:, :kept], 0.0)  # (B, T), 1 where removed
        errors = (everything.float() - target).square().mean(dim=-1)
        mse = (errors * mask).sum() / mask.sum()
        if not self.objective.fourier_weight:
            return mse
        fourier = losses.fourier_loss(self._image(everything), self._image(target))
        return losses.total_loss(mse, fourier, self.objective.fourier_weight)

    def decode(
        self, patches: Tensor, noise: Tensor, draws: Tensor, chosen: Sequence[int]
    ) -> tuple[Tensor, int, Tensor]:
        """As `ChannelAgnosticMAE.decode`."""
        count = len(self.encoder.channels) * self.encoder.num_patches
        order = noise.argsort(dim=1)
        num_kept = round(order.shape[1] * (1 - self.objective.mask_ratio))
        paths = draws[:, count : count + self.encoder.draws]
        x = self.to_decoder(self.encoder(patches, order[:, :num_kept], paths)[:, 1:])
        masked = self.mask_token.to(x.dtype).expand(len(x), order.shape[1] - num_kept, -1)
        back = order.argsort(dim=1).unsqueeze(-1).expand(-1, -1, x.shape[-1])
        tokens = torch.cat([x, masked], dim=1).gather(1, back)
        named = self.channel_tokens[chosen].repeat_interleave(self.encoder.num_patches, dim=0)
        tokens = tokens + self.positions.repeat(len(chosen), 1) + named
        decoded = []
        for channel, part in zip(chosen, tokens.chunk(len(chosen), dim=1), strict=True):
            y = self.cross_attention(self.query_norm(part), self.context_norm(tokens))
            y = y + self.mlp(self.mlp_norm(y))
            for block in self.decoders[channel].children():
                y = block(y)
            decoded.append(y)
        return order, num_kept, torch.cat(decoded, dim=1)
