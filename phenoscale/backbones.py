"""The table of backbones: one literal row each, looked up by name."""

from __future__ import annotations

import dataclasses

NO_BACKBONE = "none"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Backbone:
    """Shape of a vision transformer and of the decoder that a masked autoencoder gives it."""

    width: int
    """Values per token."""
    depth: int
    """Blocks."""
    heads: int
    """Attention heads."""
    patch_px: int
    """Side of a square patch, pixels."""
    mlp_width: int
    """Hidden values of each block's MLP."""
    decoder_width: int
    """Values per token in the decoder."""
    decoder_depth: int
    """Blocks in the decoder."""
    decoder_heads: int
    """Attention heads in the decoder."""
    layer_scale: float | None
    """Initial LayerScale; None for none."""


def _row(
    size: tuple[int, ...], patch_px: int, decoder: tuple[int, int, int], scale: float | None
) -> Backbone:
    width, depth, heads, mlp_width = size
    return Backbone(
        width=width,
        depth=depth,
        heads=heads,
        patch_px=patch_px,
        mlp_width=mlp_width,
        decoder_width=decoder[0],
        decoder_depth=decoder[1],
        decoder_heads=decoder[2],
        layer_scale=scale,
    )


# (width, depth, heads, MLP width). S to L as in Dosovitskiy et al. 2021 (arXiv 2010.11929, table 1)
# and used by Kraus et al. 2023; G as in Kenyon-Dean et al. 2025 (width 1664, 48 blocks), whose MLP
# of 8192 is that of Zhai et al. 2022 (arXiv 2106.04560, table 2). Below S the sizes are ours, for
# laptops.
_PICO, _NANO = (16, 2, 2, 64), (32, 2, 2, 128)
_MICRO, _TINY = (48, 3, 3, 192), (192, 12, 3, 768)
_S, _B, _L, _G = (384, 12, 6, 1536), (768, 12, 12, 3072), (1024, 24, 16, 4096), (1664, 48, 16, 8192)
_PAPER = (512, 8, 16)  # the papers' decoder, about 25 M parameters
_SCALE = 1e-4  # the papers' LayerScale; three shallow blocks at 1e-4 would stay near the identity

BACKBONES = {
    "pico/8": _row(_PICO, 8, (16, 1, 2), None),
    "nano/16": _row(_NANO, 16, (32, 1, 2), None),
    "nano/8": _row(_NANO, 8, (32, 1, 2), None),
    "micro/16": _row(_MICRO, 16, (48, 1, 3), None),
    "micro/8": _row(_MICRO, 8, (48, 1, 3), None),
    "tiny/16": _row(_TINY, 16, (192, 2, 3), None),
    "tiny/8": _row(_TINY, 8, (192, 2, 3), None),
    "S/16": _row(_S, 16, _PAPER, _SCALE),
    "B/16": _row(_B, 16, _PAPER, _SCALE),
    "B/8": _row(_B, 8, _PAPER, _SCALE),
    "L/16": _row(_L, 16, _PAPER, _SCALE),
    "L/8": _row(_L, 8, _PAPER, _SCALE),
    "G/8": _row(_G, 8, _PAPER, _SCALE),
}


def backbone(name: str) -> Backbone:
    """Looks up a backbone.

    Raises:
        ValueError: if there is none of that name; the message lists the names there are.
    """
    if name not in BACKBONES:
        raise ValueError(f"There is no backbone {name!r}. Choose one of {', '.join(BACKBONES)}.")
    return BACKBONES[name]
