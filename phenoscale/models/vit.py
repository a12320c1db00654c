"""The vision transformer of both papers, built on timm's blocks; it knows nothing of parallelism.

Shapes: B crops, C channels, H W pixels, p patch side, N = HW / p^2 patches, K kept patches, D
width, P = C p^2 values of a patch.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from timm.layers import build_sincos2d_pos_embed
from timm.models.vision_transformer import ParallelScalingBlock
from torch import Tensor, nn

from phenoscale.backbones import Backbone


def standardize(crops: Tensor) -> Tensor:
    """Self-standardization: zero mean and unit variance of each crop and channel.

    The first layer of every model, so that inference includes it (Kraus et al. 2023). A constant
    channel becomes 0. `group_norm` does it in one pass, nine times faster on CPU than mean and std
    do.

    Args:
        crops: (B, C, H, W), uint8 or float.

    Returns:
        (B, C, H, W) float32.
    """
    return F.group_norm(crops.float(), num_groups=crops.shape[1], eps=1e-5)


def patchify(crops: Tensor, patch_px: int) -> Tensor:
    """(B, C, H, W) to (B, N, P): patches row by row, values ordered channel, row, column."""
    b, c, h, w = crops.shape
    rows, columns = h // patch_px, w // patch_px
    x = crops.reshape(b, c, rows, patch_px, columns, patch_px)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(b, rows * columns, c * patch_px**2)


def unpatchify(patches: Tensor, patch_px: int, channels: int) -> Tensor:
    """(B, N, P) to (B, C, H, W) of a square crop; the inverse of `patchify`."""
    b, n, _ = patches.shape
    side = round(n**0.5)
    x = patches.reshape(b, side, side, channels, patch_px, patch_px)
    return x.permute(0, 3, 1, 4, 2, 5).reshape(b, channels, side * patch_px, side * patch_px)


def blocks(
    width: int, depth: int, heads: int, mlp_width: int, layer_scale: float | None
) -> nn.ModuleList:
    """Parallel scaling blocks with qk-norm and no qkv bias, as the papers' public code has them."""
    return nn.ModuleList(
        ParallelScalingBlock(
            width,
            heads,
            mlp_ratio=mlp_width / width,
            qkv_bias=False,
            qk_norm=True,
            init_values=layer_scale,
            norm_layer=functools.partial(nn.LayerNorm, eps=1e-6),  # type: ignore[arg-type]  # as timm's own models do
        )
        for _ in range(depth)
    )


def positions(side: int, width: int) -> Tensor:
    """Fixed sin-cos positions of a square of `side` x `side` patches, (N, D) float32."""
    return build_sincos2d_pos_embed([side, side], dim=width, interleave_sin_cos=False)


class Encoder(nn.Module):
    """uint8 crops in, tokens out: the class token first, then one token per patch."""

    positions: Tensor

    def __init__(self, shape: Backbone, *, channels: int, size_px: int) -> None:
        """Builds the encoder for crops of `channels` x `size_px` x `size_px`."""
        super().__init__()
        self.patch_px = shape.patch_px
        self.channels = channels
        self.num_patches = (size_px // shape.patch_px) ** 2
        self.width = shape.width
        self.projection = nn.Linear(channels * shape.patch_px**2, shape.width)
        self.class_token = nn.Parameter(torch.empty(shape.width))
        self.register_buffer(
            "positions", positions(size_px // shape.patch_px, shape.width), persistent=False
        )
        self.blocks = blocks(
            shape.width, shape.depth, shape.heads, shape.mlp_width, shape.layer_scale
        )
        self.norm = nn.LayerNorm(shape.width, eps=1e-6)
        nn.init.normal_(self.class_token, std=0.02)
        self.apply(init_linear)

    def forward(self, patches: Tensor, kept: Tensor | None = None) -> Tensor:
        """Encodes the patches, or the kept ones alone.

        Args:
            patches: (B, N, P) float32, standardized.
            kept: (B, K) int64 numbers of the patches to encode; None for all. Masked patches are
                never projected, which saves their cost.

        Returns:
            (B, 1 + K, D) float32 tokens after the last norm.
        """
        place = self.positions.expand(len(patches), -1, -1)
        if kept is not None:
            patches, place = take(patches, kept), take(place, kept)
        x = self.projection(patches) + place
        x = torch.cat([self.class_token.expand(len(x), 1, -1), x], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


def take(tokens: Tensor, numbers: Tensor) -> Tensor:
    """Rows `numbers` (B, K) of `tokens` (B, N, D): (B, K, D)."""
    return tokens.gather(1, numbers.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def init_linear(module: nn.Module) -> None:
    """Xavier-uniform weights and zero biases, as the public MAE code initialises a ViT."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
