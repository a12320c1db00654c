"""The smallest real trial, batches for it, and the smallest simulated screen.

Golden losses: `python -m tests.tiny --write-golden` writes tests/data/golden_losses.json anew. Do
that only where a change is meant to change numbers, and say so in the change.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from phenoscale.checkpoint import Checkpoints
from phenoscale.config import Crops, Objective, Optim, Placement, Trial
from phenoscale.crops import lanes
from phenoscale.record import Record
from phenoscale.results import BASELINES
from phenoscale.screens.simulated.planted import ScreenSpec
from phenoscale.train import Batch, Trained, train

CHANNELS, CLASSES, STEPS = ("DNA", "Actin"), 3, 10
GOLDEN = Path(__file__).parent / "data" / "golden_losses.json"
SCREEN = ScreenSpec(
    num_complexes=8,
    genes_per_complex=4,
    num_opposed=2,
    experimental_batches=2,
    plates_per_batch=2,
    controls_per_batch=8,
    sites_per_well=2,
    size_px=64,
)
"""Two experimental batches of two plates, 32 genes, 288 sites of 6 x 64 x 64."""

TINY = Trial(
    objective=Objective(name="mae", mask_ratio=0.5),
    backbone="nano/8",
    crops=Crops(size_px=16, passes=1, global_batch_size=8),
    optim=Optim(lr=3e-3),
)
"""Two blocks of width 32 on crops of 16 px in 4 patches."""
TINY_WSL = dataclasses.replace(TINY, objective=Objective(name="wsl"))


def of(objective: str, backbone: str = "nano/8", *, size_px: int = 16, **options) -> Trial:
    """Another tiny trial: `options` are those of its `Objective`."""
    plate_wise = {"sampling": "plate_wise", "crops_per_plate": 4}
    return dataclasses.replace(
        TINY,
        objective=Objective(**{"name": objective, "mask_ratio": 0.5, **options}),
        backbone=backbone,
        crops=dataclasses.replace(
            TINY.crops,
            size_px=size_px,
            passes=0 if objective in BASELINES else 1,
            **(plate_wise if backbone.startswith("DenseNet") else {}),
        ),
    )


def placed(trial: Trial, precision: str = "fp32", **options) -> Trial:
    """The trial on two workers; `options` are those of its `Placement`."""
    return dataclasses.replace(
        trial,
        optim=dataclasses.replace(trial.optim, precision=precision),
        placement=Placement(launcher="ray_train", workers=2, **options),
    )


def with_optim(trial: Trial, **options) -> Trial:
    """The trial with other options of its `Optim`."""
    return dataclasses.replace(trial, optim=dataclasses.replace(trial.optim, **options))


ZOO = (
    TINY,
    TINY_WSL,
    of("mae", fourier_weight=0.01),
    of("mae", normalized_targets=True),
    of("ca_mae"),
    of("ca_mae", fourier_weight=0.01, normalized_targets=True),
    of("ca_mae", channel_subsets=True),
    of("munet", "MU-net-nano"),
    of("munet", "MU-net-nano", fourier_weight=0.01),
    of("wsl", "DenseNet-nano"),
)
"""One tiny trial of every kind of model and loss."""


def tiny_model(trial: Trial):
    """The trial's model for `CHANNELS` channels and `CLASSES` classes."""
    from phenoscale.models.build import build_model

    return build_model(trial, channels=CHANNELS, num_classes=CLASSES)


def tiny_batch(trial: Trial, step: int) -> Batch:
    """The global batch of a step: gratings whose direction is the class, in noise."""
    count, size = trial.crops.global_batch_size, trial.crops.size_px
    rng = np.random.default_rng([11, step])
    labels = rng.integers(0, CLASSES, count)
    angle = labels * np.pi / CLASSES
    y, x = np.mgrid[:size, :size]
    along = np.cos(angle)[:, None, None] * x + np.sin(angle)[:, None, None] * y
    phase = rng.uniform(0, 2 * np.pi, (count, len(CHANNELS), 1, 1))
    wave = 60 * np.sin(0.8 * along[:, None] + phase)
    noise = rng.normal(0, 15, (count, len(CHANNELS), size, size))
    return {
        "crops": np.clip(128 + wave + noise, 0, 255).astype(np.uint8),
        "turns": np.zeros(count, np.int64),
        "labels": labels.astype(np.int64),
        "rows": np.arange(count, dtype=np.int64) + step * count,
        "bad": np.full(count, -1, np.int64),
        "read_cpu_s": np.full(count, 0.125),
    }


def part(batch: Batch, rank: int = 0, world: int = 1) -> Batch:
    """A worker's share of a global batch."""
    share = lanes(len(batch["crops"]), 1, rank, world)
    return {name: x[share.start : share.stop] for name, x in batch.items()}


def tiny_batches(
    trial: Trial, rank: int = 0, world: int = 1, *, fixed: bool = False
) -> Callable[[int, int], Iterator[Batch]]:
    """The `batches` of `train()`: another batch each step, or one fixed batch."""

    def batches(first: int, last: int) -> Iterator[Batch]:
        for step in range(first, last):
            yield part(tiny_batch(trial, 0 if fixed else step), rank, world)

    return batches


def silent(progress: dict) -> None:
    """A `report` for those who do not listen."""


class Killed(BaseException):
    """What ends a training in the middle."""


def stopped(trial: Trial, folder: Path, at: int, *, rank: int = 0, world: int = 1, **options):
    """Trains until step `at`, where the batches end in an error, and leaves its checkpoints."""

    def batches(first: int, last: int) -> Iterator[Batch]:
        yield from tiny_batches(trial, rank, world)(first, at)
        raise Killed

    model = tiny_model(trial)
    with contextlib.suppress(Killed), Checkpoints(folder) as checkpoints:
        options = {"steps": STEPS, "checkpoints": checkpoints, **options}
        train(trial, model, batches, silent, rank=rank, world=world, **options)
        raise AssertionError("it was to be stopped")


def record_of(steps: int) -> Record:
    """A record as so many steps may leave it."""
    record = Record(precision="fp32", attempts=1, bad_rows=[7])
    for step in range(steps):
        record.add(
            step_s=0.5,
            global_batch_size=8,
            step=step,
            loss=1 / (step + 3),
            lr=0.1 * step,
            grad_norm=1.5,
            data_s=0.1,
            communication_s=0.0,
        )
    return record


def assert_same_weights(one: torch.nn.Module, other: torch.nn.Module) -> None:
    """Fails with the names of those that differ in a bit."""
    theirs = other.state_dict()
    assert one.state_dict().keys() == theirs.keys()
    assert [n for n, x in one.state_dict().items() if not torch.equal(x, theirs[n])] == []


def train_tiny(trial: Trial, steps: int = STEPS) -> Trained:
    """Trains a tiny trial from nothing, in this process."""
    return train(trial, tiny_model(trial), tiny_batches(trial), silent, steps=steps)


def golden_losses() -> dict[str, list[float]]:
    """The losses that the golden file holds, measured now."""
    return {name_of(trial): train_tiny(trial).record.curve.loss for trial in ZOO}


def name_of(trial: Trial) -> str:
    """A readable name, pinned to nothing."""
    options = "-normalized" * trial.objective.normalized_targets
    return f"{trial.objective.label}{options} {trial.backbone}"


def main() -> None:
    """Writes the golden losses."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write-golden", action="store_true", required=True)
    parser.parse_args()
    GOLDEN.write_text(json.dumps(golden_losses(), indent=1) + "\n")


if __name__ == "__main__":
    main()
