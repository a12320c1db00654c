"""Read-outs: how the last tokens, or places of the last feature maps, become an embedding.

Shapes: B crops, C channels, N patches or places, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def read_out(patches: Tensor, class_token: Tensor | None = None) -> dict[str, Tensor]:
    """Embeddings of crops from their tokens.

    Args:
        patches: (B, N, D) tokens of patches, or places of feature maps.
        class_token: (B, D), where there is one.

    Returns:
        (B, D) each: patch_mean, class_token where given, and patch_sd: the standard deviation over
        the patches, how uneven the crop is.
    """
    read = {"patch_mean": patches.mean(dim=1)}
    if class_token is not None:
        read["class_token"] = class_token
    read["patch_sd"] = patches.std(dim=1, correction=0)
    return read


def choose(crops: Tensor, given: Sequence[str], wanted: Sequence[str]) -> Tensor:
    """Brings the channels of crops, (B, C, H, W), into the order of `wanted`, by name.

    Raises:
        ValueError: if names repeat, one is missing, one is not wanted, or there are more or fewer
            than channels.
    """
    check_channels(crops, given)
    if sorted(given) != sorted(wanted):
        raise ValueError(
            f"The crops have the channels {', '.join(given)}; this encoder takes exactly "
            f"{', '.join(wanted)}, in any order. Give those alone, or use a channel-agnostic "
            "encoder (ca_mae)."
        )
    if list(given) == list(wanted):
        return crops
    return crops[:, torch.tensor([list(given).index(name) for name in wanted])]


def check_channels(crops: Tensor, given: Sequence[str]) -> None:
    """Raises ValueError unless the names are distinct and as many as the crops' channels."""
    if len(set(given)) != len(given) or len(given) != crops.shape[1] or not given:
        raise ValueError(
            f"{len(given)} channel names, {', '.join(given)}, for crops of {crops.shape[1]} "
            "channels; give one name for each channel, none of them twice."
        )
