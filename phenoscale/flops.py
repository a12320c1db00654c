"""Parameters and floating point operations by arithmetic on a backbone; no torch.

One multiply-add is two operations. Products and convolutions are counted, norms and activations are
not: the convention of torch's own counter, against which the tests hold these formulas.
N parameters, D crops and C operations of a study all come from here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from phenoscale.backbones import (
    Backbone,
    Decoder,
    DenseNet,
    UNet,
    VisionTransformer,
    backbone,
    vision_transformer,
)
from phenoscale.config import Objective, Trial


@dataclasses.dataclass(frozen=True, kw_only=True)
class Convolution:
    """One convolution of a network, and the norm that goes with it."""

    maps_in: int
    """Feature maps that it reads."""
    maps_out: int
    """Feature maps that it makes."""
    kernel_px: int
    """Side of its kernel."""
    places: int
    """Positions that the kernel is applied at."""
    bias: bool = False
    """Whether each output map has a bias."""
    norm: int = 0
    """Feature maps of its norm, each with a gain and a bias; before or after the convolution."""
    in_decoder: bool = False
    """Whether it is no part of the encoder."""

    @property
    def parameters(self) -> int:
        """Weights, biases, and gain and bias of the norm."""
        weights = self.maps_in * self.maps_out * self.kernel_px**2
        return weights + self.bias * self.maps_out + 2 * self.norm

    @property
    def flops(self) -> int:
        """Forward operations."""
        return 2 * self.maps_in * self.maps_out * self.kernel_px**2 * self.places


def unet_convolutions(shape: UNet, channels: int, size_px: int) -> Iterator[Convolution]:
    """The convolutions of a U-Net on one crop, in order: down, up, and to pixels."""

    def scale(maps_in: int, level: int, in_decoder: bool) -> Iterator[Convolution]:
        width = shape.widths[level]
        for _ in range(shape.convolutions):
            yield Convolution(
                maps_in=maps_in,
                maps_out=width,
                kernel_px=shape.kernel_px,
                places=(size_px >> level) ** 2,
                norm=width,
                in_decoder=in_decoder,
            )
            maps_in = width

    levels = len(shape.widths)
    for level in range(levels):
        yield from scale(shape.widths[level - 1] if level else channels, level, False)
    for level in reversed(range(levels - 1)):
        deep, width = shape.widths[level + 1], shape.widths[level]
        yield Convolution(
            maps_in=deep,
            maps_out=width,
            kernel_px=2,
            places=(size_px >> level + 1) ** 2,
            bias=True,
            in_decoder=True,
        )
        yield from scale(2 * width, level, True)
    yield Convolution(
        maps_in=shape.widths[0],
        maps_out=channels,
        kernel_px=1,
        places=size_px**2,
        bias=True,
        in_decoder=True,
    )


def densenet_convolutions(shape: DenseNet, channels: int, size_px: int) -> Iterator[Convolution]:
    """The convolutions of a DenseNet on one crop, in order; all belong to the encoder."""
    maps, side = 2 * shape.growth, -(-size_px // 2)
    yield Convolution(maps_in=channels, maps_out=maps, kernel_px=7, places=side**2, norm=maps)
    side = -(-side // 2)
    bottleneck = 4 * shape.growth
    for number, layers in enumerate(shape.blocks):
        if number:
            yield Convolution(
                maps_in=maps, maps_out=maps // 2, kernel_px=1, places=side**2, norm=maps
            )
            maps, side = maps // 2, side // 2
        for _ in range(layers):
            yield Convolution(
                maps_in=maps, maps_out=bottleneck, kernel_px=1, places=side**2, norm=maps
            )
            yield Convolution(
                maps_in=bottleneck,
                maps_out=shape.growth,
                kernel_px=3,
                places=side**2,
                norm=bottleneck,
            )
            maps += shape.growth


def convolutions(shape: DenseNet | UNet, channels: int, size_px: int) -> Iterator[Convolution]:
    """The convolutions of a network on one crop, in order."""
    if isinstance(shape, UNet):
        return unet_convolutions(shape, channels, size_px)
    return densenet_convolutions(shape, channels, size_px)


def block_parameters(width: int, heads: int, mlp_width: int, layer_scale: float | None) -> int:
    """Parameters of one parallel scaling block with qk-norm and no qkv bias."""
    norms = 2 * width + 4 * (width // heads)
    joint = width * (mlp_width + 3 * width) + mlp_width
    out = width * width + width + mlp_width * width + width
    return norms + joint + out + (width if layer_scale is not None else 0)


def encoder_parameters(shape: Backbone, channels: int, *, agnostic: bool = False) -> int:
    """Parameters of the encoder; `agnostic`: of one whose channels share a projection."""
    if isinstance(shape, DenseNet | UNet):
        layers = convolutions(shape, channels, 64)
        last_norm = 2 * shape.embedding_width if isinstance(shape, DenseNet) else 0
        return sum(layer.parameters for layer in layers if not layer.in_decoder) + last_norm
    # Projection, class token, blocks, norm; positions are fixed.
    values = (1 if agnostic else channels) * shape.patch_px**2
    one = block_parameters(shape.width, shape.heads, shape.mlp_width, shape.layer_scale)
    return values * shape.width + shape.width + shape.width + shape.depth * one + 2 * shape.width


def decoder_parameters(shape: Backbone, channels: int, *, agnostic: bool = False) -> int:
    """Parameters that a masked autoencoder adds to its encoder."""
    if isinstance(shape, DenseNet):
        return 0
    if isinstance(shape, UNet):
        layers = unet_convolutions(shape, channels, 64)
        return sum(layer.parameters for layer in layers if layer.in_decoder)
    decoder = shape.channel_decoder if agnostic else shape.decoder
    width, values = decoder.width, (1 if agnostic else channels) * shape.patch_px**2
    block = 12 * width**2 + 13 * width  # the plain block, with biases
    ends = shape.width * width + width + width  # linear layer and mask token
    ends += width * values + values
    if not agnostic:
        return ends + decoder.depth * block + 2 * width
    # A token of each channel; q, k, v without bias, the projection, the MLP, and three norms.
    attention = 4 * width**2 + width + 8 * width**2 + 5 * width + 6 * width
    return ends + channels * width + attention + channels * decoder.depth * block


def trial_encoder_parameters(trial: Trial, channels: int) -> int:
    """Parameters of the trial's encoder."""
    if trial.reference is not None:
        return trial.reference.parameters
    agnostic = trial.objective.channel_agnostic
    return encoder_parameters(backbone(trial.backbone), channels, agnostic=agnostic)


def model_parameters(trial: Trial, channels: int, num_classes: int) -> int:
    """Parameters of the trial's whole model; of a baseline's encoder alone."""
    encoder = trial_encoder_parameters(trial, channels)
    if trial.is_baseline:
        return encoder
    shape = backbone(trial.backbone)
    agnostic = trial.objective.channel_agnostic
    if trial.objective.name == "wsl":
        return encoder + shape.embedding_width * num_classes + num_classes
    return encoder + decoder_parameters(shape, channels, agnostic=agnostic)


def block_flops(tokens: int, width: int, mlp_width: int) -> int:
    """Forward operations of a block on a sequence: four width x width products, MLP, attention."""
    return 2 * tokens * (4 * width * width + 2 * width * mlp_width) + 4 * tokens * tokens * width


def encoder_flops(
    shape: Backbone, channels: int, size_px: int, kept: int | None = None, *, agnostic: bool = False
) -> int:
    """Forward operations of the encoder on one crop, of which it may be given `kept` tokens alone.

    Args:
        shape: the backbone.
        channels: channels of the crop.
        size_px: side of the crop.
        kept: tokens beside the class token; None for all.
        agnostic: whether each channel has tokens of its own.
    """
    if isinstance(shape, DenseNet | UNet):
        layers = convolutions(shape, channels, size_px)
        return sum(layer.flops for layer in layers if not layer.in_decoder)
    patches = (size_px // shape.patch_px) ** 2
    tokens = kept if kept is not None else patches * (channels if agnostic else 1)
    values = (1 if agnostic else channels) * shape.patch_px**2
    project = 2 * tokens * values * shape.width
    return project + shape.depth * block_flops(tokens + 1, shape.width, shape.mlp_width)


def forward_flops(trial: Trial, channels: int, num_classes: int) -> int:
    """Forward operations of the trial's loss on one training crop; 0 for baselines.

    With channel subsets, the mean over the numbers of channels, each as likely.
    """
    if trial.is_baseline:
        return 0
    shape, size_px = backbone(trial.backbone), trial.crops.size_px
    objective = trial.objective
    if objective.name == "wsl":
        head = 2 * shape.embedding_width * num_classes
        return encoder_flops(shape, channels, size_px) + head
    if isinstance(shape, UNet):
        return sum(layer.flops for layer in unet_convolutions(shape, channels, size_px))
    shape = vision_transformer(trial.backbone)
    if objective.name == "mae":
        return _mae_flops(shape, objective, channels, size_px)
    numbers = range(1, channels + 1) if objective.channel_subsets else [channels]
    return sum(_ca_mae_flops(shape, objective, n, size_px) for n in numbers) // len(numbers)


def _mae_flops(shape: VisionTransformer, objective: Objective, channels: int, size_px: int) -> int:
    patches = (size_px // shape.patch_px) ** 2
    kept = round(patches * (1 - objective.mask_ratio))
    width, values = shape.decoder.width, channels * shape.patch_px**2
    decoder = 2 * (kept + 1) * shape.width * width
    decoder += shape.decoder.depth * block_flops(patches + 1, width, 4 * width)
    decoder += 2 * _predicted(objective, patches, kept) * width * values
    return encoder_flops(shape, channels, size_px, kept) + decoder


def _ca_mae_flops(
    shape: VisionTransformer, objective: Objective, channels: int, size_px: int
) -> int:
    patches = (size_px // shape.patch_px) ** 2
    tokens = patches * channels
    kept = round(tokens * (1 - objective.mask_ratio))
    decoder: Decoder = shape.channel_decoder
    width = decoder.width
    total = 2 * kept * shape.width * width
    total += block_flops(tokens, width, 4 * width)  # cross-attention and MLP, all tokens to all
    total += channels * decoder.depth * block_flops(patches, width, 4 * width)
    total += 2 * _predicted(objective, tokens, kept) * width * shape.patch_px**2
    return encoder_flops(shape, channels, size_px, kept, agnostic=True) + total


def _predicted(objective: Objective, tokens: int, kept: int) -> int:
    """Tokens that are turned into pixels: the masked ones, or all for the Fourier loss."""
    return tokens if objective.fourier_weight else tokens - kept


def training_flops(trial: Trial, channels: int, num_classes: int, crops_seen: int) -> float:
    """Operations of a training: forward once, backward twice (Kaplan et al. 2020, section 2.1)."""
    return 3.0 * forward_flops(trial, channels, num_classes) * crops_seen


def embedding_flops(trial: Trial, channels: int, tiles: int) -> float:
    """Operations of embedding `tiles` tiles without masking; 0 without a network."""
    if trial.objective.name in ("intensity", "oracle"):
        return 0.0
    if trial.reference is not None:
        return float(trial.reference.crop_flops) * tiles
    agnostic = trial.objective.channel_agnostic
    shape = backbone(trial.backbone)
    return float(encoder_flops(shape, channels, trial.crops.size_px, agnostic=agnostic)) * tiles
