"""The peak learning rate of a backbone by one rule, from a rate that a sweep found.

    lr = tuned lr * (tuned width / width)^1 * (global batch / tuned global batch)^(1/2)

Width: 1/width is what theory asks of AdamW for matrices between hidden layers (Yang et al. 2022,
arXiv 2203.03466). Batch: the square root is the rule for Adam (Malladi et al. 2022, arXiv
2205.10287). Our own sweep (`experiments/learning_rate.py`) bracketed the best rate of mae at three
widths, 16 to 48, one seed each: width^-0.31, with a standard error of 0.51. That neither confirms
nor excludes the 1, so theory's exponent stands. It is the careful one, too: four times the best
swept rate lost 59 to 100% of what the best one learned, a quarter of it 43 to 68%.

The rule speaks of AdamW and vision transformers. Far from what was swept, and in longer trainings,
it says where to begin a sweep, not its outcome.
"""

from __future__ import annotations

import dataclasses
import math

from phenoscale.backbones import vision_transformer
from phenoscale.config import Optim

WIDTH_EXPONENT = 1.0
BATCH_EXPONENT = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class TunedRate:
    """The best rate of one size, as a sweep bracketed it."""

    lr: float
    """Peak learning rate of AdamW."""
    backbone: str
    """Name of a vision transformer."""
    global_batch_size: int
    """Crops per optimizer update."""


# By objective. `python -m experiments.learning_rate`: lowest held-out loss on the simulated screen
# after 8 passes of 2,720 sites, refined by a parabola; seed 0. Of wsl the sweep bracketed no rate.
TUNED: dict[str, tuple[TunedRate, ...]] = {
    "mae": (
        TunedRate(lr=1.31e-2, backbone="pico/8", global_batch_size=64),
        TunedRate(lr=6.8e-3, backbone="nano/8", global_batch_size=64),
        TunedRate(lr=1.02e-2, backbone="micro/8", global_batch_size=64),
    ),
}


def transferred_rate(tuned: TunedRate, *, backbone: str, global_batch_size: int) -> float:
    """The rule of this file: a rate for a backbone and batch from one that was tuned elsewhere.

    Raises:
        ValueError: if the backbone is no vision transformer, or the batch not positive.
    """
    if global_batch_size < 1:
        raise ValueError(f"global_batch_size is {global_batch_size}, but must be positive.")
    wider = vision_transformer(backbone).width / vision_transformer(tuned.backbone).width
    larger = global_batch_size / tuned.global_batch_size
    return float(tuned.lr * wider**-WIDTH_EXPONENT * larger**BATCH_EXPONENT)


def optim_for(objective: str, backbone: str, global_batch_size: int) -> Optim:
    """AdamW at the tuned rate of this very size, else at one transferred from the nearest width.

    Raises:
        ValueError: as `transferred_rate`, or if no rate of the objective is tuned.
    """
    if objective not in TUNED:
        raise ValueError(
            f"No learning rate of {objective} is tuned; there are rates of {', '.join(TUNED)}. "
            "Sweep it as experiments/learning_rate.py does, or give a rate by hand."
        )
    rows, width = TUNED[objective], vision_transformer(backbone).width
    for row in rows:
        if (row.backbone, row.global_batch_size) == (backbone, global_batch_size):
            return Optim(lr=row.lr, lr_source="tuned")
    nearest = min(rows, key=lambda row: abs(math.log(_width(row) / width)))
    lr = transferred_rate(nearest, backbone=backbone, global_batch_size=global_batch_size)
    return Optim(lr=lr, lr_source="transferred")


def _width(row: TunedRate) -> int:
    return vision_transformer(row.backbone).width
