"""Channel-agnostic masked autoencoder (CA-MAE; Kraus et al. 2024).

Every channel is cut into patches of its own, and all channels share one projection. The encoder
knows no channel, so that it takes any number of them in any order; the decoders know each by name.

Shapes: B crops, C channels, N patches of a channel, T = C N tokens, K kept tokens, D width, E
decoder width, P values of a patch of one channel. In a mask 1 means removed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from phenoscale.backbones import VisionTransformer
from phenoscale.config import Objective
from phenoscale.models import losses, vit
from phenoscale.models.blocks import NORM_EPS, CrossAttention, Mlp, positions
from phenoscale.models.readout import check_channels, read_out


class ChannelAgnosticEncoder(vit.Encoder):
    """The transformer over the patches of any channels."""

    def __init__(self, shape: VisionTransformer, *, channels: Sequence[str], size_px: int) -> None:
        """Builds the encoder; `channels` names those that it trains on."""
        super().__init__(shape, channels=channels, size_px=size_px, values=shape.patch_px**2)

    def patches(self, crops: Tensor) -> Tensor:
        """(B, C, H, W) uint8 to standardized patches, channel after channel: (B, C N, P)."""
        planes = vit.standardize(crops).flatten(0, 1).unsqueeze(1)
        return vit.patchify(planes, self.patch_px).reshape(
            len(crops), -1, self.projection.in_features
        )

    def read(
        self, crops: Tensor, channels: Sequence[str], *, every_block: bool = False
    ) -> dict[str, Tensor]:
        """Embeddings of crops of any channels by every read-out, in one pass.

        Args:
            crops: (B, C, H, W) uint8.
            channels: their names, in the crops' order.
            every_block: whether to read each block too.

        Returns:
            As `vit.Encoder.read`, none of which depends on the order of the channels; and
            per_channel, (B, C D): the mean token of each channel, in the order of their names.

        Raises:
            ValueError: if names repeat, or are more or fewer than channels.
        """
        check_channels(crops, channels)
        tokens, of_blocks = self._tokens(crops, every_block)
        read = read_out(tokens[:, 1:], tokens[:, 0]) | of_blocks
        means = tokens[:, 1:].unflatten(1, (len(channels), -1)).mean(dim=2)
        by_name = [means[:, channels.index(name)] for name in sorted(channels)]
        return read | {"per_channel": torch.cat(by_name, dim=1)}


class ChannelAgnosticMAE(nn.Module):
    """Encoder, a decoder for each channel, and the mean squared error on the masked patches."""

    positions: Tensor

    def __init__(
        self,
        shape: VisionTransformer,
        objective: Objective,
        *,
        channels: Sequence[str],
        size_px: int,
    ) -> None:
        """Builds encoder and decoders for the named channels."""
        super().__init__()
        self.objective = objective
        self.encoder = ChannelAgnosticEncoder(shape, channels=channels, size_px=size_px)
        count, decoder = len(channels), shape.channel_decoder
        self.draws = count * self.encoder.num_patches + self.encoder.draws
        self.shared_draws = 1 + count if objective.channel_subsets else 0
        width = decoder.width
        self.to_decoder = nn.Linear(shape.width, width)
        self.mask_token = nn.Parameter(torch.empty(width))
        self.channel_tokens = nn.Parameter(torch.empty(count, width))
        side = size_px // shape.patch_px
        self.register_buffer("positions", positions(side, width), persistent=False)
        self.query_norm, self.context_norm, self.mlp_norm = (
            nn.LayerNorm(width, eps=NORM_EPS) for _ in range(3)
        )
        # Half as many heads as the decoder, 8 for the papers' 16, as in their public code.
        self.cross_attention = CrossAttention(width, decoder.heads // 2)
        self.mlp = Mlp(width, 4 * width)
        self.decoders = nn.ModuleList(vit.decoder_blocks(decoder) for _ in channels)
        self.to_pixels = nn.Linear(width, shape.patch_px**2)
        nn.init.normal_(self.mask_token, std=0.02)
        nn.init.normal_(self.channel_tokens, std=0.02)
        for module in (
            self.to_decoder,
            self.cross_attention,
            self.mlp,
            self.decoders,
            self.to_pixels,
        ):
            module.apply(vit.init_linear)

    @property
    def leaves_parameters_out(self) -> bool:
        """Whether a step may use some of the parameters alone."""
        return self.objective.channel_subsets

    def layers(self) -> list[nn.Module]:
        """The parts that are compiled, sharded and recomputed one by one."""
        of_channels = [block for decoder in self.decoders for block in decoder.children()]
        return [*self.encoder.blocks, *of_channels]

    def forward(self, crops: Tensor, labels: Tensor, draws: Tensor) -> Tensor:
        """The loss, as that of `mae.MaskedAutoencoder`, over the patches of all channels.

        With `channel_subsets`, training uses some channels in each step: their number is uniform,
        and so is which they are (as ChannelViT samples them: Bao et al. 2024, arXiv 2309.16108).

        Args:
            crops: (B, C, H, W) uint8, channels in the order of the encoder's names.
            labels: (B,), not used: what every objective is called with.
            draws: (B, `draws` + `shared_draws`) float32 in [0, 1): of the first T the tokens with
                the smallest values are kept, further ones decide which crop skips which block; the
                shared ones, equal in all crops of a step, decide its channels.

        Returns:
            () float32, in units of each crop's and channel's own variance.
        """
        chosen = self._chosen(draws)
        patches, noise = self.encoder.patches(crops[:, chosen]), self._noise(draws, chosen)
        target = losses.normalized(patches) if self.objective.normalized_targets else patches
        order, kept, decoded = self.decode(patches, noise, draws, chosen)
        masked = order[:, kept:]
        if not self.objective.fourier_weight:
            predicted = self.to_pixels(vit.take(decoded, masked))
            return losses.masked_mse(predicted, vit.take(target, masked))
        everything = self.to_pixels(decoded)
        mse = losses.masked_mse(vit.take(everything, masked), vit.take(target, masked))
        fourier = losses.fourier_loss(self._image(everything), self._image(target))
        return losses.total_loss(mse, fourier, self.objective.fourier_weight)

    def decode(
        self, patches: Tensor, noise: Tensor, draws: Tensor, chosen: Sequence[int]
    ) -> tuple[Tensor, int, Tensor]:
        """Encodes the kept tokens and decodes all.

        Args:
            patches: (B, T, P) of the chosen channels.
            noise: (B, T) float32: the smallest are kept.
            draws: as `forward`.
            chosen: numbers of the channels.

        Returns:
            (B, T) int64 numbers of the tokens, the kept ones first; how many those are; and the
            decoders' tokens in the patches' own order, (B, T, E).
        """
        count = len(self.encoder.channels) * self.encoder.num_patches
        order = noise.argsort(dim=1)
        num_kept = round(order.shape[1] * (1 - self.objective.mask_ratio))
        kept = order[:, :num_kept]
        paths = draws[:, count : count + self.encoder.draws]
        x = self.to_decoder(self.encoder(patches, kept, paths)[:, 1:])
        tokens = vit.put(self.mask_token.to(x.dtype).expand(*order.shape, -1), kept, x)
        named = self.channel_tokens[chosen].repeat_interleave(self.encoder.num_patches, dim=0)
        tokens = tokens + self.positions.repeat(len(chosen), 1) + named
        # The public code attends from one channel at a time; query, context and weights are the
        # same for all of them, so one call does. It adds nothing back here but to the MLP's output.
        x = self.cross_attention(self.query_norm(tokens), self.context_norm(tokens))
        x = x + self.mlp(self.mlp_norm(x))
        decoded = []
        for channel, part in zip(chosen, x.chunk(len(chosen), dim=1), strict=True):
            for block in self.decoders[channel].children():
                part = block(part)
            decoded.append(part)
        return order, num_kept, torch.cat(decoded, dim=1)

    def reconstruct(self, crops: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
        """The whole crop as predicted, and what was masked; as `mae.MaskedAutoencoder`'s."""
        everyone = list(range(len(self.encoder.channels)))
        patches = self.encoder.patches(crops)
        order, kept, decoded = self.decode(patches, self._noise(draws, everyone), draws, everyone)
        predicted = self.to_pixels(decoded)
        if self.objective.normalized_targets:
            predicted = losses.restored(predicted, patches)
        return self._image(predicted), self._image(vit.removed(patches, order[:, :kept]))

    def _chosen(self, draws: Tensor) -> list[int]:
        """Numbers of this step's channels, ascending; all outside training."""
        count = len(self.encoder.channels)
        if not (self.training and self.shared_draws):
            return list(range(count))
        shared = draws[0, self.draws :].tolist()
        number = 1 + int(shared[0] * count)
        return sorted(sorted(range(count), key=lambda c: shared[1 + c])[:number])

    def _noise(self, draws: Tensor, chosen: Sequence[int]) -> Tensor:
        """Of the draws, those that mask the chosen channels' tokens: (B, T)."""
        count = len(self.encoder.channels)
        by_channel = draws[:, : count * self.encoder.num_patches].unflatten(1, (count, -1))
        return by_channel[:, chosen].flatten(1)

    def _image(self, patches: Tensor) -> Tensor:
        """(B, C N, P) to (B, C, H, W)."""
        planes = patches.unflatten(1, (-1, self.encoder.num_patches)).flatten(0, 1)
        images = vit.unpatchify(planes, self.encoder.patch_px, 1)
        return images.unflatten(0, (len(patches), -1)).squeeze(2)
