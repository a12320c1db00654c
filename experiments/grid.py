"""Cells of a grid, as every experiment writes them."""

from __future__ import annotations

from phenoscale.config import Crops, Objective, Optim, Placement, Trial


def trained(
    objective: str,
    backbone: str,
    crops: Crops,
    *,
    lr: float,
    mask_ratio: float,
    seed: int,
    placement: Placement | None = None,
) -> Trial:
    """One trained cell."""
    return Trial(
        objective=Objective(name=objective, mask_ratio=mask_ratio),
        backbone=backbone,
        crops=crops,
        optim=Optim(lr=lr),
        seed=seed,
        placement=placement or Placement(),
    )


def baseline(objective: str, backbone: str, crops: Crops, *, seed: int = 0) -> Trial:
    """One baseline: it trains nothing (`crops.passes` is 0) and goes the same way to its score."""
    return Trial(
        objective=Objective(name=objective),
        backbone=backbone,
        crops=crops,
        optim=Optim(lr=1.0),
        seed=seed,
    )
