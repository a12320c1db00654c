"""The tables of backbones: one literal row each, looked up by name."""

from __future__ import annotations

import dataclasses

NO_BACKBONE = "none"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoder:
    """The transformer that predicts pixels."""

    width: int
    """Values per token."""
    depth: int
    """Blocks."""
    heads: int
    """Attention heads."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionTransformer:
    """A vision transformer, and the decoder that a masked autoencoder gives it."""

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
    decoder: Decoder
    """What mae adds."""
    channel_decoder: Decoder
    """What ca_mae adds, one for each channel."""
    layer_scale: float | None
    """Initial LayerScale; None for none."""
    drop_path: float
    """Share of crops that skip the last block in training; earlier blocks less, in equal steps."""

    @property
    def embedding_width(self) -> int:
        """Values of an embedding."""
        return self.width


@dataclasses.dataclass(frozen=True, kw_only=True)
class DenseNet:
    """A DenseNet (Huang et al. 2017, arXiv 1608.06993) with batch norm per plate."""

    growth: int
    """Feature maps that each layer adds; the stem makes twice as many, a bottleneck four times."""
    blocks: tuple[int, ...]
    """Layers of each dense block."""
    patch_px: int = 1
    """Crops may have any side of `smallest_px` or more."""

    @property
    def smallest_px(self) -> int:
        """Smallest side of a crop: one place is left at the end."""
        return 2 ** (len(self.blocks) + 1)

    @property
    def embedding_width(self) -> int:
        """Values of an embedding: feature maps of the last block."""
        maps = 2 * self.growth
        for layers in self.blocks[:-1]:
            maps = (maps + layers * self.growth) // 2
        return maps + self.blocks[-1] * self.growth


@dataclasses.dataclass(frozen=True, kw_only=True)
class UNet:
    """A U-Net (Ronneberger et al. 2015, arXiv 1505.04597), encoder and mirrored decoder."""

    widths: tuple[int, ...]
    """Feature maps of each scale; each is half as wide and high as the one before."""
    kernel_px: int
    """Side of its convolutions."""
    convolutions: int
    """Convolutions of a scale, on either side."""

    @property
    def patch_px(self) -> int:
        """Side of the squares that are masked: what one place of the last scale stands for."""
        return int(2 ** (len(self.widths) - 1))

    @property
    def embedding_width(self) -> int:
        """Values of an embedding: feature maps of the last scale."""
        return self.widths[-1]


Backbone = VisionTransformer | DenseNet | UNet


def _vit(
    size: tuple[int, ...],
    patch_px: int,
    decoder: tuple[int, int, int],
    channel_decoder: tuple[int, int, int],
    layer_scale: float | None = None,
    drop_path: float = 0.0,
) -> VisionTransformer:
    def row(numbers: tuple[int, int, int]) -> Decoder:
        return Decoder(width=numbers[0], depth=numbers[1], heads=numbers[2])

    return VisionTransformer(
        width=size[0],
        depth=size[1],
        heads=size[2],
        patch_px=patch_px,
        mlp_width=size[3],
        decoder=row(decoder),
        channel_decoder=row(channel_decoder),
        layer_scale=layer_scale,
        drop_path=drop_path,
    )


# (width, depth, heads, MLP width). S to H as in Dosovitskiy et al. 2021 (arXiv 2010.11929, table 1;
# S to L used by Kraus et al. 2023); G as in Kenyon-Dean et al. 2025 (width 1664, 48 blocks), whose
# MLP of 8192 is that of Zhai et al. 2022 (arXiv 2106.04560, table 2). Below S the sizes are ours,
# for laptops.
_PICO, _NANO = (16, 2, 2, 64), (32, 2, 2, 128)
_MICRO, _TINY = (48, 3, 3, 192), (192, 12, 3, 768)
_S, _B, _L = (384, 12, 6, 1536), (768, 12, 12, 3072), (1024, 24, 16, 4096)
_H, _G = (1280, 32, 16, 5120), (1664, 48, 16, 8192)
# (width, depth, heads). The papers' decoder, about 25 M parameters, and their decoder of a channel.
_PAPER = (512, 8, 16), (256, 2, 16)
# The papers' LayerScale and drop path, 0.1 for S and B, 0.3 for L; H and G as L. Three shallow
# blocks with a LayerScale of 1e-4 would stay near the identity, so the small sizes have none.
_SMALL, _LARGE = (1e-4, 0.1), (1e-4, 0.3)

VISION_TRANSFORMERS = {
    "pico/8": _vit(_PICO, 8, (16, 1, 2), (16, 1, 2)),
    "nano/16": _vit(_NANO, 16, (32, 1, 2), (32, 1, 2)),
    "nano/8": _vit(_NANO, 8, (32, 1, 2), (32, 1, 2)),
    "micro/16": _vit(_MICRO, 16, (48, 1, 3), (32, 1, 2)),
    "micro/8": _vit(_MICRO, 8, (48, 1, 3), (32, 1, 2)),
    "tiny/16": _vit(_TINY, 16, (192, 2, 3), (96, 1, 3)),
    "tiny/8": _vit(_TINY, 8, (192, 2, 3), (96, 1, 3)),
    "S/16": _vit(_S, 16, *_PAPER, *_SMALL),
    "B/16": _vit(_B, 16, *_PAPER, *_SMALL),
    "B/8": _vit(_B, 8, *_PAPER, *_SMALL),
    "L/16": _vit(_L, 16, *_PAPER, *_LARGE),
    "L/8": _vit(_L, 8, *_PAPER, *_LARGE),
    "H/14": _vit(_H, 14, *_PAPER, *_LARGE),
    "G/8": _vit(_G, 8, *_PAPER, *_LARGE),
}

DENSENETS = {
    "DenseNet-nano": DenseNet(growth=4, blocks=(2, 2)),
    "DenseNet-161": DenseNet(growth=48, blocks=(6, 12, 36, 24)),
}

# Kraus et al. 2023 give the parameters, about 52 M and 135 M, and not all that they follow from:
# these are ours, with 51 M and 137 M. The kernel of 5 makes the larger one of the same scales.
UNETS = {
    "MU-net-nano": UNet(widths=(8, 16, 32, 64), kernel_px=3, convolutions=1),
    "MU-net-M": UNet(widths=(64, 128, 256, 512, 1120), kernel_px=3, convolutions=3),
    "MU-net-L": UNet(widths=(64, 128, 256, 512, 1120), kernel_px=5, convolutions=3),
}

BACKBONES: dict[str, Backbone] = {**VISION_TRANSFORMERS, **DENSENETS, **UNETS}

# Which backbones an objective trains; what is not listed takes none.
BACKBONES_OF: dict[str, tuple[str, ...]] = {
    "wsl": (*VISION_TRANSFORMERS, *DENSENETS),
    "munet": tuple(UNETS),
    "mae": tuple(VISION_TRANSFORMERS),
    "ca_mae": tuple(VISION_TRANSFORMERS),
    "untrained": tuple(BACKBONES),
    "untrained_ca": tuple(VISION_TRANSFORMERS),
}


def backbone(name: str, objective: str = "untrained") -> Backbone:
    """Looks up a backbone that an objective trains, by default any.

    Raises:
        ValueError: if there is none of that name; the message lists the names there are.
    """
    if name not in BACKBONES_OF[objective]:
        raise ValueError(
            f"There is no backbone {name!r}{_for(objective)}. Choose one of "
            f"{', '.join(BACKBONES_OF[objective])}."
        )
    return BACKBONES[name]


def vision_transformer(name: str) -> VisionTransformer:
    """Looks up a vision transformer; errors as `backbone`."""
    shape = backbone(name, "mae")
    assert isinstance(shape, VisionTransformer)
    return shape


def _for(objective: str) -> str:
    return "" if objective == "untrained" else f" for {objective}"
