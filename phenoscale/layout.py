"""How a trial lies on its workers: sharded or not, and how many crops at once. Arithmetic alone."""

from __future__ import annotations

import dataclasses

from phenoscale import gpus
from phenoscale.config import Strategy, Trial

LEAST_CROPS = 16
"""Crops at once below which a GPU idles: where a replica leaves room for fewer, FSDP shards it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """What a worker does with its share of the global batch."""

    strategy: Strategy = "ddp"
    """What several workers do with the model; one worker does neither."""
    crops_at_once: int | None = None
    """Most crops that go through the model at once; None for the whole share."""


def layout_of(
    trial: Trial, channels: int, classes: int, *, workers: int, gpu_bytes: float | None = None
) -> Layout:
    """The layout that the placement asks for, or that memory allows.

    Args:
        trial: the trial.
        channels: channels of a crop.
        classes: perturbations.
        workers: of the group that trains.
        gpu_bytes: memory of each GPU; None on CPUs, which choose DDP and whole shares.

    Raises:
        ValueError: if a GPU does not hold one unit of crops beside its part of the model.
    """
    place, unit = trial.placement, trial.crops.unit
    if gpu_bytes is None:
        return Layout(strategy=place.strategy or "ddp", crops_at_once=place.crops_at_once)
    share = -(-trial.crops.global_batch_size // workers)
    one = gpus.activation_bytes(trial, channels, classes)

    def fit(strategy: Strategy) -> int:
        state = gpus.gpu_bytes(trial, channels, classes, crops=0, gpus=workers, strategy=strategy)
        room = gpu_bytes * (1 - gpus.RESERVE) - state
        return int(room // (one * unit)) * unit if room > 0 else 0

    wanted = place.crops_at_once or min(share, max(LEAST_CROPS, unit))
    strategy = place.strategy or ("ddp" if workers == 1 or fit("ddp") >= wanted else "fsdp")
    largest = place.crops_at_once or fit(strategy)
    if not largest:
        raise ValueError(
            f"{trial.objective.label} {trial.backbone} leaves no room for {unit} crops on "
            f"{workers} GPUs of {gpu_bytes / 1e9:.0f} GB ({strategy}). Give more workers, or "
            "placement.recompute."
        )
    return Layout(strategy=strategy, crops_at_once=largest if largest < share else None)
