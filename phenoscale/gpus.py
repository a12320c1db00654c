"""Memory of a training by arithmetic, and how many GPUs hold it; no torch.

Counted is what lies on a GPU when the forward pass ends: weights, gradients, moments, and the
activations, which are the tensors that autograd keeps for the backward pass. Attention is fused (no
N x N matrix is kept), the precision "auto" is bf16, and that is what PyTorch's CUDA autocast makes
of a layer: products and convolutions take and give bf16, layer and group norm take and give fp32.
What comes and goes within a step is not counted, and a share of the GPU is reserved for it: at its
peak 1 to 8% more than the activations of the larger models, 17% of MAE-S/16+ (its spectra).

Legend: `low` is the bytes of a value that a product takes: 4, or 2 in bf16. Other values have 4.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from phenoscale import flops
from phenoscale.backbones import Decoder, DenseNet, UNet, VisionTransformer, backbone
from phenoscale.config import Strategy, Trial

GPU_BYTES = 80e9
"""Memory of an A100 or H100 of 80 GB, bytes; such a card has a few GB more."""
RESERVE = 0.1
"""Share of it that is left for temporary tensors, the allocator's gaps, CUDA and NCCL."""
STATE_BYTES = {"adamw": 16, "lion": 12, "muon": 12}
"""Bytes per parameter in fp32: weight, gradient, and two moments of AdamW or the one of Lion, or of
Muon, whose vectors' second one is left out."""
_AVERAGE_BYTES = 4  # per parameter: the moving average of the weights
_BUCKET_BYTES = 4  # per parameter: DDP sums gradients in buckets beside the gradients themselves
_LOW_COPY_BYTES = 2  # per parameter: autograd keeps the bf16 copies that autocast makes of weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """Bytes that one part of a network keeps of one crop."""

    given: int = 0
    """What the part is given: all that is left of it where it is computed again."""
    inside: int = 0
    """What its backward pass needs, what it is given included."""
    beside: int = 0
    """What is kept outside of the parts that can be computed again."""


def activation_bytes(trial: Trial, channels: int, classes: int) -> int:
    """Bytes that one training crop keeps on its GPU for the backward pass.

    With `placement.recompute` layers keep what they are given alone, and one at a time, counted as
    the largest, is computed again. With channel subsets, those of a step with all channels.
    """
    if trial.is_baseline:
        return 0
    parts = list(_parts(trial, channels, classes))
    if trial.placement.recompute:
        largest = max(part.inside for part in parts)
        return sum(part.given + part.beside for part in parts) + largest
    return sum(part.inside + part.beside for part in parts)


def state_bytes(trial: Trial, channels: int, classes: int) -> int:
    """Bytes of weights, gradients and moments, all on one GPU or shared out among several."""
    if trial.is_baseline:
        return 0
    each = STATE_BYTES[trial.optim.name] + _AVERAGE_BYTES * (trial.optim.average > 0)
    return each * flops.model_parameters(trial, channels, classes)


def gpu_bytes(
    trial: Trial, channels: int, classes: int, *, crops: int, gpus: int, strategy: Strategy
) -> float:
    """Bytes on each of several GPUs.

    Args:
        trial: the trial; its placement says whether layers are computed again.
        channels: channels of a crop.
        classes: perturbations.
        crops: of a step, on each GPU.
        gpus: how many.
        strategy: ddp (a replica on each, with buckets for its gradients) or fsdp (the state is
            shared out, and two layers at a time are gathered: weights of both, gradient of one).
    """
    parameters = flops.model_parameters(trial, channels, classes)
    state = float(state_bytes(trial, channels, classes))
    if strategy == "ddp":
        state += _BUCKET_BYTES * parameters
    else:
        state = state / gpus + 3 * 4 * _largest_layer(trial, parameters)
    if trial.optim.precision != "fp32":
        state += _LOW_COPY_BYTES * parameters  # of gathered weights too: fsdp does not share them
    return state + crops * activation_bytes(trial, channels, classes)


def gpus_needed(
    trial: Trial, channels: int, classes: int, *, crops_per_gpu: int
) -> tuple[int, Strategy]:
    """The smallest number of 80 GB GPUs that can train a trial, and how.

    Args:
        trial: the trial; optimizer, precision and recomputation count.
        channels: channels of a crop.
        classes: perturbations.
        crops_per_gpu: crops of a step on each GPU.

    Returns:
        (1, "ddp") where a replica with its crops fits on one GPU: more GPUs are then a choice;
        otherwise the number among which FSDP must share the state out.

    Raises:
        ValueError: if the crops alone do not fit, however many GPUs there are.
    """

    def room(gpus: int, strategy: Strategy) -> float:
        needed = gpu_bytes(
            trial, channels, classes, crops=crops_per_gpu, gpus=gpus, strategy=strategy
        )
        return GPU_BYTES * (1 - RESERVE) - needed

    if room(1, "ddp") >= 0:
        return 1, "ddp"
    state = state_bytes(trial, channels, classes)
    shared = room(1, "fsdp") + state  # what is left for the state
    if shared <= 0:
        one = activation_bytes(trial, channels, classes)
        raise ValueError(
            f"{crops_per_gpu} crops of {trial.objective.label} {trial.backbone} keep "
            f"{crops_per_gpu * one / 1e9:.0f} GB of activations, too much for GPUs of "
            f"{GPU_BYTES / 1e9:.0f} GB. Give fewer crops per GPU, or placement.recompute."
        )
    return max(2, -int(-state // shared)), "fsdp"


def _largest_layer(trial: Trial, parameters: int) -> int:
    """Parameters of the largest layer that FSDP gathers; of networks without blocks, all."""
    shape = backbone(trial.backbone)
    if not isinstance(shape, VisionTransformer):
        return parameters
    return flops.block_parameters(shape.width, shape.heads, shape.mlp_width, shape.layer_scale)


def _parts(trial: Trial, channels: int, classes: int) -> Iterator[Part]:
    """The parts of the trial's model on one crop, in order."""
    shape, size_px = backbone(trial.backbone), trial.crops.size_px
    low = 2 if trial.optim.precision != "fp32" else 4
    if isinstance(shape, DenseNet):
        yield from _densenet_parts(shape, channels, size_px, low)
        yield _head(shape.embedding_width, classes, low)
    elif isinstance(shape, UNet):
        yield from _unet_parts(shape, channels, size_px, low)
        # The difference to the image in the squared error, and which pixels are masked.
        yield Part(beside=(4 * channels + 1) * size_px**2)
        yield _spectra(trial, channels * size_px**2)
    elif trial.objective.name == "wsl":
        tokens = (size_px // shape.patch_px) ** 2
        yield from _encoder_parts(shape, tokens, channels * shape.patch_px**2, low)
        yield _head(shape.width, classes, low)
    elif trial.objective.name == "mae":
        yield from _mae_parts(trial, shape, channels, low)
    else:
        yield from _ca_mae_parts(trial, shape, channels, low)


def _head(width: int, classes: int, low: int) -> Part:
    return Part(beside=low * width + 4 * classes)


def _spectra(trial: Trial, values: int) -> Part:
    """What the Fourier loss keeps: the complex spectrum, and its distance to the wanted one."""
    return Part(beside=(8 + 4) * values if trial.objective.fourier_weight else 0)


def _encoder_parts(shape: VisionTransformer, kept: int, values: int, low: int) -> Iterator[Part]:
    """The transformer on `kept` patches of so many values, and its class token."""
    tokens, width, mlp, heads = kept + 1, shape.width, shape.mlp_width, shape.heads
    normed = width + 2  # a layer norm keeps its input, and mean and deviation of each token
    one = 4 * normed
    one += low * width  # into the joint projection
    one += low * (mlp + 3 * width)  # out of it
    one += 4 * mlp + low * mlp  # into and out of the activation; its bias makes it fp32
    one += 2 * 4 * width if low < 4 else 0  # queries and keys in fp32 for their norms
    one += 2 * 4 * 2 * heads + low * 2 * width  # their statistics, and both normed
    one += low * width + 4 * heads  # attention's result, and its log-sum-exp
    one += low * width if shape.layer_scale is not None else 0
    yield Part(beside=low * kept * values)
    for _ in range(shape.depth):
        yield Part(given=4 * tokens * width, inside=tokens * one)
    yield Part(beside=4 * tokens * normed)


def _decoder_parts(decoder: Decoder, tokens: int, stream: int, low: int) -> Iterator[Part]:
    """Plain blocks on tokens that come in `stream` bytes a value."""
    width = decoder.width
    one = 2 * 4 * (width + 2)  # both norms
    one += low * (width + 3 * width + width)  # normed; queries, keys, values; attention's result
    one += 4 * decoder.heads
    one += low * (width + 4 * width + 4 * width)  # into the MLP, into and out of its activation
    for _ in range(decoder.depth):
        yield Part(given=stream * tokens * width, inside=tokens * one)


def _mae_parts(trial: Trial, shape: VisionTransformer, channels: int, low: int) -> Iterator[Part]:
    patches = (trial.crops.size_px // shape.patch_px) ** 2
    kept = round(patches * (1 - trial.objective.mask_ratio))
    values, width = channels * shape.patch_px**2, shape.decoder.width
    yield from _encoder_parts(shape, kept, values, low)
    yield Part(beside=low * (kept + 1) * shape.width)  # into the decoder's width
    yield from _decoder_parts(shape.decoder, patches + 1, 4, low)
    fourier = trial.objective.fourier_weight > 0
    seen = patches if fourier else patches - kept
    last = 4 * (patches + 1) * width + 2 * 4 * seen + low * seen * width  # last norm, to pixels
    order = 8 * patches if fourier else 0  # in which predictions are put
    yield Part(beside=last + 4 * (patches - kept) * values + order)
    yield _spectra(trial, patches * values)


def _ca_mae_parts(
    trial: Trial, shape: VisionTransformer, channels: int, low: int
) -> Iterator[Part]:
    patches = (trial.crops.size_px // shape.patch_px) ** 2
    tokens = patches * channels
    kept = round(tokens * (1 - trial.objective.mask_ratio))
    values, width = shape.patch_px**2, shape.channel_decoder.width
    heads = shape.channel_decoder.heads // 2  # of the cross-attention
    yield from _encoder_parts(shape, kept, values, low)
    # To the decoders, in either width, and the order of tokens.
    yield Part(beside=low * kept * (shape.width + width) + 8 * tokens)
    one = 4 * width + 2 * 2 * 4 + low * 2 * width  # two norms of the same tokens
    one += low * (3 * width + width) + 4 * heads
    one += 4 * (width + 2) + low * (width + 4 * width + 4 * width)  # norm and MLP
    yield Part(beside=tokens * one)
    for _ in range(channels):
        yield from _decoder_parts(shape.channel_decoder, patches, low, low)
    seen = tokens if trial.objective.fourier_weight else tokens - kept
    yield Part(beside=low * seen * width + 4 * (tokens - kept) * values)
    yield _spectra(trial, tokens * values)


def _unet_parts(shape: UNet, channels: int, size_px: int, low: int) -> Iterator[Part]:
    """Scales, each with its convolutions, norms and activations; both norm and activation fp32."""
    levels, number = len(shape.widths), shape.convolutions
    copy = low if low < 4 else 0  # a convolution's input is a copy of an fp32 tensor, or it itself

    def scale(maps_in: int, level: int, pooled: bool) -> Part:
        width, places = shape.widths[level], (size_px >> level) ** 2
        inside = low * maps_in + number * (4 + 4) * width + (number - 1) * copy * width
        # Who is given the last activation keeps it too, unless that is a copy.
        last = 0 if copy and not pooled else 4 * width
        return Part(
            given=4 * maps_in * places, inside=(inside - last) * places, beside=last * places
        )

    for level, width in enumerate(shape.widths):
        pooled = level < levels - 1
        yield scale(shape.widths[level - 1] if level else channels, level, pooled)
        if pooled:
            yield Part(beside=8 * width * (size_px >> level + 1) ** 2)  # where the maxima were
    for level in reversed(range(levels - 1)):
        # Into the upsampling, then the scale on its result and the skipped maps.
        yield Part(beside=copy * shape.widths[level + 1] * (size_px >> level + 1) ** 2)
        yield scale(2 * shape.widths[level], level, False)
    yield Part(beside=copy * shape.widths[0] * size_px**2)


def _densenet_parts(shape: DenseNet, channels: int, size_px: int, low: int) -> Iterator[Part]:
    """Parts as timm has them; each norm keeps its input and its activation, in `low` bytes both.

    The layers of a block each norm a concatenation of all before them, made anew.
    """
    maps, side = 2 * shape.growth, -(-size_px // 2)
    yield Part(given=4 * channels * size_px**2, inside=low * channels * size_px**2)
    stem = low * maps * side**2
    yield Part(given=stem, inside=2 * stem)
    side = -(-side // 2)
    yield Part(given=stem, inside=8 * maps * side**2)  # where maxima were pooled
    for number, layers in enumerate(shape.blocks):
        if number:
            whole = low * maps * side**2
            yield Part(given=whole, inside=2 * whole + whole // 2)
            maps, side = maps // 2, side // 2
        joined = sum(maps + layer * shape.growth for layer in range(layers))
        yield Part(
            given=low * maps * side**2,
            inside=2 * low * (joined + layers * 4 * shape.growth) * side**2,
        )
        maps += layers * shape.growth
    yield Part(given=low * maps * side**2, inside=2 * low * maps * side**2)
