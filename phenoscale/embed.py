"""From sites to embeddings: tile the site, encode without masking, average the tiles.

Shapes: S sites, C channels, T tiles of a site, N patches, D width.
"""

from __future__ import annotations

import numpy as np
import torch

from phenoscale.models import vit


@torch.inference_mode()
def embed_sites(encoder: vit.Encoder, images: np.ndarray, size_px: int) -> dict[str, np.ndarray]:
    """Site embeddings of every read-out.

    Args:
        encoder: in evaluation mode, on the CPU or a GPU.
        images: (S, C, H, W) uint8 whole sites, at least one tile large.
        size_px: side of the tiles: the crop size of training.

    Returns:
        float32 (S, D) for each of patch_mean (mean of the patch tokens), class_token and patch_sd
        (standard deviation of the patch tokens over the tile: how uneven the tile is), each
        averaged over tiles.
    """
    device = encoder.class_token.device
    crops = tile(torch.from_numpy(images).to(device), size_px)  # (S * T, C, s, s)
    tokens = encoder(vit.patchify(vit.standardize(crops), encoder.patch_px))
    patches = tokens[:, 1:]
    read = {
        "patch_mean": patches.mean(dim=1),
        "class_token": tokens[:, 0],
        "patch_sd": patches.std(dim=1, correction=0),
    }
    shape = (len(images), -1, encoder.width)
    return {name: x.reshape(shape).mean(dim=1).cpu().numpy() for name, x in read.items()}


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
