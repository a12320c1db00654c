"""The spine: one trial's training, top to bottom.

The loop takes what it needs and speaks through `report`. It knows no launcher, no tracker, no disk
layout: `batches` may be a Ray shard or a generator, `report` a Ray adapter or a list's append.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from phenoscale import checkpoint
from phenoscale.checkpoint import Curve
from phenoscale.config import Trial
from phenoscale.models.build import Model
from phenoscale.optim import build_optimizer, learning_rate
from phenoscale.parallel import (
    clip_gradients,
    mean_over_workers,
    mixed_precision,
    on_device,
    union_over_workers,
    wrap,
)

Batch = dict[str, np.ndarray]
"""crops (B, C, H, W) uint8; turns, labels, rows, bad (B,) int64; read_cpu_s (B,): `cutter.py`."""

Report = Callable[[dict[str, Any], Callable[[Path], None] | None], None]
"""Takes progress and, where a checkpoint is due, a function that fills a directory with it."""

REPORTS = 20  # progress reports of a trial
CHECKPOINTS = 3  # checkpoints of a trial, the last one at its end


@dataclasses.dataclass
class Trained:
    """What training leaves behind besides the last checkpoint."""

    curve: Curve
    """Loss, rate and speed per step."""
    train_s: float = 0.0
    """Wall seconds in the loop, of this attempt."""
    data_wait_s: float = 0.0
    """Of these, seconds spent waiting for crops."""
    data_cpu_s: float = 0.0
    """CPU seconds that the crops of this worker cost where they were cut."""
    first_step: int = 0
    """Step that this attempt began at."""
    crops: int = 0
    """Crops that this worker trained on, in this attempt."""


class NonFiniteLossError(RuntimeError):
    """The loss is nan or infinite; nothing was updated with it."""


def train(
    trial: Trial,
    model: Model,
    batches: Callable[[int, int], Iterator[Batch]],
    report: Report,
    *,
    steps: int,
    rank: int = 0,
    world: int = 1,
    device: str = "cpu",
    resume: Path | None = None,
) -> Trained:
    """Trains `model` for the trial's steps and reports as it goes.

    Args:
        trial: the cell of the grid.
        model: from `build_model`; called with (crops, labels, draws) it gives the loss.
        batches: (first, last) to an iterator over this worker's batches of steps first to last - 1.
        report: called on every worker at the same steps.
        steps: optimizer updates of the whole trial (`Plan.steps`).
        rank: this worker's place in the global batch.
        world: number of workers.
        device: where the model trains.
        resume: checkpoint to go on from.

    Returns:
        The curve and the time and crops it took.

    Raises:
        NonFiniteLossError: before the update that a nan or infinite loss would have made.
        RuntimeError: if the batches end early.
    """
    place = torch.device(device)
    step_model = wrap(model, place, trial.placement)
    step_model.train()
    optimizer = build_optimizer(model, trial.optim)
    curve = checkpoint.load(resume, model, optimizer) if resume else Curve()
    first = len(curve.step)
    done = Trained(curve=curve, first_step=first)
    stream = on_device(batches(first, steps), place)
    bad_rows = set(curve.bad_rows)
    share = trial.crops.global_batch_size // world
    report_at = due(steps, REPORTS)
    checkpoint_at = due(steps, CHECKPOINTS)
    start = time.perf_counter()

    for step in range(first, steps):
        began = time.perf_counter()
        given = next(stream, None)
        if given is None or len(given[1]) != share:
            raise RuntimeError(
                f"Trial {trial.id}, worker {rank}: the stream gave "
                f"{'nothing' if given is None else len(given[1])} at step {step} of {steps}; "
                f"the plan has {share} crops there."
            )
        batch, crops, labels = given
        done.data_wait_s += time.perf_counter() - began
        done.data_cpu_s += float(batch["read_cpu_s"].sum())
        done.crops += share
        bad_rows.update(int(row) for row in batch["bad"] if row >= 0)

        # The random numbers of the global batch are drawn whole and sliced, so that masks do not
        # depend on `world`.
        draws = random_draws(trial, step, model)[rank * share : (rank + 1) * share]
        with mixed_precision(trial.optim, place):
            loss = step_model(crops, labels, draws.to(place))
        mean_loss = float(mean_over_workers(loss))
        if not math.isfinite(mean_loss):
            raise NonFiniteLossError(
                f"Trial {trial.id}: loss {mean_loss} at step {step}, worker {rank}; nothing was "
                f"updated. The batch holds index rows {batch['rows'].tolist()}. Lower the learning "
                f"rate ({trial.optim.lr:g}) or look at these sites."
            )
        loss.backward()
        clip_gradients(model, trial.optim.clip_norm)
        lr = learning_rate(trial.optim, step, steps)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        speed = trial.crops.global_batch_size / (time.perf_counter() - began)
        curve.append(step, mean_loss, lr, speed)

        if step in report_at or step in checkpoint_at:
            waited = done.data_wait_s / (time.perf_counter() - start)
            progress = {
                "step": step + 1,
                "steps": steps,
                "loss": mean_loss,
                "crops_per_s": speed,
                "waited": waited,
            }
            if step in checkpoint_at:
                curve.bad_rows = sorted(union_over_workers(bad_rows))
            fill = (
                (lambda d: checkpoint.save(d, model, optimizer, curve))
                if step in checkpoint_at
                else None
            )
            report(progress, fill)

    done.train_s = time.perf_counter() - start
    return done


@torch.no_grad()
def held_out_loss(trial: Trial, model: Model, batches: Iterator[Batch]) -> float:
    """Mean loss over crops that the trial never trained on, in one process.

    Masks come from a step number that training never reaches, the same for every trial of a seed.
    """
    model.eval()
    total, count = 0.0, 0
    for number, (_, crops, labels) in enumerate(on_device(batches, torch.device("cpu"))):
        size = len(crops)
        loss = model(crops, labels, random_draws(trial, 2**31 + number, model, crops=size))
        total, count = total + float(loss) * size, count + size
    if not count:
        raise ValueError(f"Trial {trial.id} has no held-out sites; name plates in crops.held_out.")
    return total / count


def random_draws(trial: Trial, step: int, model: Model, crops: int | None = None) -> Tensor:
    """(B, R) float32 uniform numbers that decide a step's masks, and whatever else is random in it.

    They follow from the trial's seed and the step. The first `model.draws` are each crop's own; the
    `model.shared_draws` after them are equal for all crops of the step.
    """
    # torch's CPU generator heeds the low 32 bits of a seed alone. The odd factor near 2**32 /
    # golden ratio spreads the trials' seeds over them, so that each has a run of steps of its own.
    generator = torch.Generator().manual_seed((trial.seed * 0x9E3779B1 + step) % 2**32)
    size = crops or trial.crops.global_batch_size
    own = torch.rand(size, model.draws, generator=generator)
    shared = torch.rand(model.shared_draws, generator=generator)
    return torch.cat([own, shared.expand(size, -1)], dim=1)


def due(steps: int, times: int) -> frozenset[int]:
    """`times` steps spread evenly over a trial, its last step among them."""
    return frozenset(math.ceil(steps * i / times) - 1 for i in range(1, times + 1))
