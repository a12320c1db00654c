"""Transformer blocks, and the positions of what they read.

The encoder's and the decoder's blocks of the papers' public code, which takes them from timm.
Weights have timm's names, shapes and random draws, so that checkpoints go both ways; timm itself,
whose import costs every worker 2.5 s, is what the tests hold these blocks against.

Shapes: B crops, N tokens, S tokens of a context, D width, h heads, d = D / h width of a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORM_EPS = 1e-6
"""Of every layer norm, as in timm's vision transformers."""

_FEW_TOKENS = 128


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Softmax attention.

    Training on a CPU, few tokens are multiplied out. Forward and backward of 32 to 64 crops on two
    cores, torch 2.14: 1.6 ms for 2.4 fused (6 heads of 64, 17 tokens), 2.8 for 4.0 (2 heads of 16,
    65 tokens), 2.6 for 3.5 (97 tokens), but 23 for 21 (384 tokens); on one core they take as long.
    Without a backward pass the fused kernel is 1.3 to 1.5 times as fast.

    Args:
        query: (B, h, N, d).
        key: (B, h, S, d).
        value: (B, h, S, d).

    Returns:
        (B, h, N, d).
    """
    here = query.device.type == "cpu" and query.dtype == torch.float32
    if here and query.requires_grad and key.shape[-2] <= _FEW_TOKENS:
        weights = query * query.shape[-1] ** -0.5 @ key.transpose(-2, -1)
        return weights.softmax(dim=-1) @ value
    return F.scaled_dot_product_attention(query, key, value)


def heads(x: Tensor, count: int) -> Tensor:
    """(B, N, D) to (B, h, N, d)."""
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def joined(x: Tensor) -> Tensor:
    """(B, h, N, d) to (B, N, D)."""
    return x.transpose(1, 2).flatten(2)


class LayerScale(nn.Module):
    """A learned factor for each value of a token (Touvron et al. 2021, arXiv 2103.17239)."""

    def __init__(self, width: int, initial: float) -> None:
        """Builds it for tokens of `width` values."""
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), initial))

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) to the same."""
        return x * self.gamma


class Mlp(nn.Module):
    """Two linear layers and a GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        """Builds it for tokens of `width` values."""
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to the same."""
        return self.fc2(F.gelu(self.fc1(x)))


class SelfAttention(nn.Module):
    """Attention among tokens, with biases."""

    def __init__(self, width: int, heads: int) -> None:
        """Builds it for tokens of `width` values."""
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) to the same."""
        parts = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = parts.unbind(0)
        return self.proj(joined(attend(query, key, value)))


class Block(nn.Module):
    """Attention, then an MLP, each on normed tokens and added to them: the decoder's block."""

    def __init__(self, width: int, heads: int) -> None:
        """Builds it for tokens of `width` values; the MLP is four times as wide."""
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = SelfAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = Mlp(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) to the same."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ParallelBlock(nn.Module):
    """Attention and MLP side by side, out of one projection: the encoder's block.

    Dehghani et al. 2023 (arXiv 2302.05442), with norms of queries and keys and no bias of theirs.
    """

    def __init__(self, width: int, heads: int, mlp_width: int, layer_scale: float | None) -> None:
        """Builds it for tokens of `width` values; `layer_scale` None for none."""
        super().__init__()
        self.heads = heads
        self.parts = (mlp_width, width, width, width)
        self.in_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.in_proj = nn.Linear(width, sum(self.parts), bias=False)
        self.mlp_bias = nn.Parameter(torch.zeros(mlp_width))
        self.q_norm, self.k_norm = (nn.LayerNorm(width // heads, eps=NORM_EPS) for _ in range(2))
        self.attn_out_proj = nn.Linear(width, width)
        self.mlp_out_proj = nn.Linear(mlp_width, width)
        self.ls = nn.Identity() if layer_scale is None else LayerScale(width, layer_scale)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) to the same."""
        hidden, *qkv = self.in_proj(self.in_norm(x)).split(self.parts, dim=-1)
        query, key, value = (part.unflatten(-1, (self.heads, -1)) for part in qkv)
        query, key = self.q_norm(query), self.k_norm(key)
        y = attend(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
        y = self.attn_out_proj(joined(y)) + self.mlp_out_proj(F.gelu(hidden + self.mlp_bias))
        return x + self.ls(y)


class CrossAttention(nn.Module):
    """Attention of queries to a context, without biases but the last."""

    def __init__(self, width: int, heads: int) -> None:
        """Builds it for tokens of `width` values."""
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """(B, N, D) queries and (B, S, D) context to (B, N, D)."""
        key, value = self.key_value(context).chunk(2, dim=-1)
        query, key, value = (heads(part, self.heads) for part in (self.query(x), key, value))
        return self.out(joined(attend(query, key, value)))


def positions(side: int, width: int) -> Tensor:
    """Fixed sin-cos positions of a square of `side` x `side` patches, (N, D) float32.

    Vaswani et al. 2017, section 3.5, a quarter of the width each: sines of rows and columns, then
    cosines of rows and columns.
    """
    rates = 1 / 10_000.0 ** (torch.arange(width // 4) / (width // 4))
    places = torch.cartesian_prod(torch.arange(side), torch.arange(side))  # row and column
    angles = (places.unsqueeze(-1) * rates).flatten(1)
    return torch.cat([angles.sin(), angles.cos()], dim=1)
