"""Parameters and floating point operations by arithmetic on a backbone; no torch.

One multiply-add is two operations. Matrix products are counted, norms and activations are not: the
convention of torch's own counter, against which the tests hold these formulas.
N parameters, D crops and C operations of a study all come from here.
"""

from __future__ import annotations

from phenoscale.backbones import Backbone, backbone
from phenoscale.config import Trial


def block_parameters(width: int, heads: int, mlp_width: int, layer_scale: float | None) -> int:
    """Parameters of one parallel scaling block with qk-norm and no qkv bias."""
    norms = 2 * width + 4 * (width // heads)
    joint = width * (mlp_width + 3 * width) + mlp_width
    out = width * width + width + mlp_width * width + width
    return norms + joint + out + (width if layer_scale is not None else 0)


def encoder_parameters(shape: Backbone, channels: int) -> int:
    """Parameters of the encoder: projection, class token, blocks, norm. Positions are fixed."""
    values = channels * shape.patch_px**2
    one = block_parameters(shape.width, shape.heads, shape.mlp_width, shape.layer_scale)
    return values * shape.width + shape.width + shape.width + shape.depth * one + 2 * shape.width


def decoder_parameters(shape: Backbone, channels: int) -> int:
    """Parameters that a masked autoencoder adds to its encoder."""
    width, values = shape.decoder_width, channels * shape.patch_px**2
    one = block_parameters(width, shape.decoder_heads, 4 * width, shape.layer_scale)
    into = shape.width * width + width + width  # linear layer and mask token
    return into + shape.decoder_depth * one + 2 * width + width * values + values


def block_flops(tokens: int, width: int, mlp_width: int) -> int:
    """Forward operations of a block on a sequence: four width x width products, MLP, attention."""
    return 2 * tokens * (4 * width * width + 2 * width * mlp_width) + 4 * tokens * tokens * width


def encoder_flops(shape: Backbone, channels: int, patches: int) -> int:
    """Forward operations of the encoder on one crop of which `patches` patches are encoded."""
    project = 2 * patches * channels * shape.patch_px**2 * shape.width
    return project + shape.depth * block_flops(patches + 1, shape.width, shape.mlp_width)


def forward_flops(trial: Trial, channels: int, num_classes: int) -> int:
    """Forward operations of the trial's loss on one training crop; 0 for baselines."""
    if trial.is_baseline:
        return 0
    shape = backbone(trial.backbone)
    patches = (trial.crops.size_px // shape.patch_px) ** 2
    if trial.objective.name == "wsl":
        return encoder_flops(shape, channels, patches) + 2 * shape.width * num_classes
    kept = round(patches * (1 - trial.objective.mask_ratio))
    width = shape.decoder_width
    decoder = 2 * (kept + 1) * shape.width * width
    decoder += shape.decoder_depth * block_flops(patches + 1, width, 4 * width)
    decoder += 2 * (patches - kept) * width * channels * shape.patch_px**2
    return encoder_flops(shape, channels, kept) + decoder


def training_flops(trial: Trial, channels: int, num_classes: int, crops_seen: int) -> float:
    """Operations of a training: forward once, backward twice (Kaplan et al. 2020, section 2.1)."""
    return 3.0 * forward_flops(trial, channels, num_classes) * crops_seen


def embedding_flops(trial: Trial, channels: int, tiles: int) -> float:
    """Operations of embedding `tiles` tiles without masking; 0 without a network."""
    if trial.objective.name in ("intensity", "oracle"):
        return 0.0
    shape = backbone(trial.backbone)
    patches = (trial.crops.size_px // shape.patch_px) ** 2
    return float(encoder_flops(shape, channels, patches)) * tiles
