"""The eight symmetries of the square, on the device: flips and quarter turns of crops.

They come last, after a crop has travelled: turning bytes costs a CPU more than cutting them out.
"""

from __future__ import annotations

import torch

# Every symmetry is flips of rows (2) and columns (3), and for the odd ones then a transposition.
_FLIPPED = ((), (3,), (2, 3), (2,), (3,), (2, 3), (2,), ())


def turned(crops: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Crops, each under its symmetry.

    Args:
        crops: (B, C, s, s), of any type.
        turns: (B,) int64 in [0, 8): `turn` % 4 quarter turns counter-clockwise, then mirrored left
            to right from 4 on.

    Returns:
        (B, C, s, s), contiguous, on the device of `crops`.
    """
    out = torch.empty_like(crops)
    for turn in turns.unique().tolist():
        same = (turns == turn).nonzero().squeeze(1)
        some = crops[same].flip(_FLIPPED[turn])
        out[same] = some.transpose(2, 3) if turn % 2 else some
    return out
