"""From sites to embeddings: tile the site, encode without masking, average the tiles.

Shapes: S sites, C channels, T tiles of a site, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from phenoscale.models.build import AnyEncoder
from phenoscale.models.densenet import DenseNetEncoder, evenly

TILES_AT_ONCE = {"cpu": 32, "cuda": 256}
"""Tiles that are encoded together (one core, tiles/s of 1, 32 and 256 at once: nano/8 796, 2503 and
2711; of S/16 any number gives 5). The GPU's number is not measured."""


@torch.inference_mode()
def embed_sites(
    encoder: AnyEncoder,
    images: np.ndarray,
    size_px: int,
    channels: Sequence[str],
    *,
    every_block: bool = False,
) -> dict[str, np.ndarray]:
    """Site embeddings of every read-out.

    Args:
        encoder: in evaluation mode, on the CPU or a GPU.
        images: (S, C, H, W) uint8 whole sites, at least one tile large.
        size_px: side of the tiles: the crop size of training.
        channels: names of the images' channels.
        every_block: whether to read each block of a transformer too.

    Returns:
        float32 (S, D) for each of the encoder's read-outs (`read`), averaged over tiles.

    Raises:
        ValueError: if the encoder does not take these channels, or a site is too small.
    """
    crops = tile(torch.from_numpy(images).to(device_of(encoder)), size_px)  # (S * T, C, s, s)
    read = encoder.read(crops, channels, every_block=every_block)
    return {
        name: x.unflatten(0, (len(images), -1)).mean(dim=1).cpu().numpy()
        for name, x in read.items()
    }


@torch.inference_mode()
def embed_tiles(
    encoder: AnyEncoder,
    images: torch.Tensor,
    size_px: int,
    channels: Sequence[str],
    readouts: Sequence[str],
    *,
    precision: str = "fp32",
) -> dict[str, torch.Tensor]:
    """Embeddings of all tiles of sites, `TILES_AT_ONCE` at a time.

    Args:
        encoder: in evaluation mode.
        images: (S, C, H, W) uint8 whole sites; where the encoder is on a GPU, in pinned memory.
        size_px: side of the tiles.
        channels: names of the images' channels.
        readouts: those to keep, of the encoder's own.
        precision: fp32, or bf16 for products in bf16 (autocast).

    Returns:
        float32 (S, T, D) of each read-out, on the encoder's device; tiles as `tile` orders them.

    Raises:
        ValueError: if the encoder does not take these channels, or a site is too small.
    """
    device = device_of(encoder)
    every_block = any(name.startswith("block_") for name in readouts)
    parts: dict[str, list[torch.Tensor]] = {name: [] for name in readouts}
    crops = tile(images.to(device, non_blocking=True), size_px)  # (S * T, C, s, s)
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        for some in crops.split(TILES_AT_ONCE[device.type]):
            read = encoder.read(some, channels, every_block=every_block)
            for name in readouts:
                parts[name].append(read[name].float())
    return {name: torch.cat(x).unflatten(0, (len(images), -1)) for name, x in parts.items()}


def tiles_of(height_px: int, width_px: int, size_px: int) -> np.ndarray:
    """Top left corners of a site's tiles in the order of `tile`, int32 (T, 2): x and y, pixels."""
    y, x = np.mgrid[: height_px // size_px, : width_px // size_px].astype(np.int32) * size_px
    return np.stack([x.ravel(), y.ravel()], axis=1)


def adapt_to_plate(
    encoder: DenseNetEncoder, images: np.ndarray, size_px: int, channels: Sequence[str]
) -> None:
    """Gives an encoder with adaptive batch norm the statistics of a plate.

    Args:
        encoder: in evaluation mode.
        images: (S, C, H, W) uint8 sites of one plate; `ADAPTING_CROPS` tiles, evenly spread over
            them, are used.
        size_px: side of the tiles.
        channels: names of the images' channels.
    """
    crops = tile(torch.from_numpy(images).to(device_of(encoder)), size_px)
    encoder.adapt(crops[evenly(len(crops))], channels)


def device_of(encoder: AnyEncoder) -> torch.device:
    """Where the encoder's weights are."""
    return next(encoder.parameters()).device


def tile(images: torch.Tensor, size_px: int) -> torch.Tensor:
    """Cuts sites into whole tiles, in rows from the top left; a rest at the far edges is not used.

    Args:
        images: (S, C, H, W).
        size_px: side of a tile.

    Returns:
        (S * T, C, size_px, size_px), the tiles of a site together.

    Raises:
        ValueError: if a site is smaller than one tile.
    """
    s, c, h, w = images.shape
    rows, columns = h // size_px, w // size_px
    if not rows or not columns:
        raise ValueError(f"Sites of {h} x {w} px hold no tile of {size_px} px; give smaller crops.")
    x = images[:, :, : rows * size_px, : columns * size_px]
    x = x.reshape(s, c, rows, size_px, columns, size_px).permute(0, 2, 4, 1, 3, 5)
    return x.reshape(s * rows * columns, c, size_px, size_px)
