"""The spine: one trial's training, top to bottom.

The loop takes what it needs and speaks through `report`. It knows no launcher, no tracker, no disk
layout: `batches` may be a Ray shard or a generator, `report` a Ray adapter or a list's append.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from phenoscale.checkpoint import Checkpoints
from phenoscale.clock import Clock, Profile
from phenoscale.config import Trial
from phenoscale.crops import lanes, pieces
from phenoscale.feed import Batch, Given, feed, on_device
from phenoscale.guard import is_spike, non_finite
from phenoscale.layout import Layout
from phenoscale.models.build import Model
from phenoscale.optim import WeightAverage, build_optimizer, learning_rate
from phenoscale.parallel import (
    Gradient,
    agreed,
    clip_gradients,
    gathered,
    precision_of,
    sum_over_workers,
)
from phenoscale.record import Record

Report = Callable[[dict[str, Any]], None]
"""Takes progress: step, steps, loss, crops_per_s, waited."""

REPORTS = 20  # progress reports of a trial, and more as time passes
MILESTONES = 3  # checkpoints at fixed steps of a trial, the last one at its end


@dataclasses.dataclass
class Trained:
    """What training leaves behind besides the last checkpoint."""

    record: Record
    """Of all attempts: the curve, times, spikes."""
    first_step: int = 0
    """Step that this attempt began at."""
    crops: int = 0
    """Crops that this worker trained on, in this attempt."""
    train_s: float = 0.0
    """Wall seconds of this worker in the loop, in this attempt."""
    data_wait_s: float = 0.0
    """Of these, seconds spent waiting for crops."""
    data_cpu_s: float = 0.0
    """CPU seconds that the crops of this worker cost where they were cut."""
    bad_rows: set[int] = dataclasses.field(default_factory=set)
    """Rows of the index that this worker's readers passed over."""

    def add(self, batch: Batch, data_s: float) -> None:
        """Takes in one step of this worker."""
        self.crops += len(batch["rows"])
        self.data_wait_s += data_s
        self.data_cpu_s += float(batch["read_cpu_s"].sum())
        self.bad_rows.update(int(row) for row in batch["bad"] if row >= 0)

    def gather_bad_rows(self) -> None:
        """Puts those of all workers into the record."""
        self.record.bad_rows = sorted(set(self.record.bad_rows).union(*gathered(self.bad_rows)))


def train(
    trial: Trial,
    model: Model,
    batches: Callable[[int, int], Iterator[Batch]],
    report: Report,
    *,
    steps: int,
    checkpoints: Checkpoints | None = None,
    rank: int = 0,
    world: int = 1,
    device: str = "cpu",
    layout: Layout | None = None,
    interrupted: Callable[[], bool] = lambda: False,
    trace: Path | None = None,
) -> Trained:
    """Trains `model` for the trial's steps, from its last checkpoint on, and reports as it goes.

    Args:
        trial: the cell of the grid.
        model: from `build_model`; called with (crops, labels, draws) it gives the loss.
        batches: (first, last) to an iterator over this worker's batches of steps first to last - 1.
        report: called on every worker at the same steps.
        steps: optimizer updates of the whole trial (`Plan.steps`).
        checkpoints: where the state is kept; None keeps none.
        rank: this worker's place in the global batch.
        world: number of workers.
        device: where the model trains.
        layout: how the model and the share of the batch lie on this worker.
        interrupted: whether the machine is about to go; asked on every worker at the same steps.
            A checkpoint is written at once then.
        trace: file for a profile of some steps.

    Returns:
        The record and what this attempt took.

    Raises:
        guard.NonFiniteError: before the update that a nan or infinite loss or gradient would make.
        feed.StalledError: if no crops come for `placement.stall_s`.
        RuntimeError: if the batches end early.
    """
    place, layout = torch.device(device), layout or Layout()
    gradient, optimizer, average, record = _begin(trial, model, place, layout, checkpoints)
    done = Trained(record, first_step=record.steps)
    batch_size = trial.crops.global_batch_size
    mine = lanes(batch_size, trial.crops.unit, rank, world)
    parts = pieces(batch_size, trial.crops.unit, rank, world, layout.crops_at_once)
    report_at, milestones = due(steps, REPORTS), due(steps, MILESTONES)
    stream = feed(batches(record.steps, steps), place, trial.placement.stall_s)
    clock = Clock(rank, place, trial.placement.save_every_s)
    profile = Profile(trace if rank == 0 else None)

    for step in range(record.steps, steps):
        clock.start_step()
        batch, crops, labels = _share(stream, trial, rank, step, steps, len(mine))
        data_s = clock.lap()

        # The random numbers of the global batch are drawn whole and sliced, so that masks do not
        # depend on `world`.
        draws = random_draws(trial, step, model)[mine.start : mine.stop].to(place)
        loss_sum, exchange_s = gradient.add(crops, labels, draws, parts, batch_size)
        norm = clip_gradients(model, trial.optim.clip_norm)
        clock.lap()
        # All workers' numbers in one exchange, and on a GPU one wait for them.
        sums = sum_over_workers(torch.cat([loss_sum[None] / batch_size, clock.asks()]))
        loss, tick, save, grad_norm = torch.cat([sums, norm[None]]).tolist()
        waited_s = exchange_s() + (clock.lap() if world > 1 and place.type == "cpu" else 0.0)
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            share_loss = float(loss_sum) / len(mine)
            raise non_finite(trial, step, share_loss, grad_norm, batch["rows"].tolist())

        lr = learning_rate(trial.optim, step, steps)
        spike = is_spike(record.curve.loss, loss)
        back = None
        if spike and checkpoints and trial.optim.rollback and not record.rolled_back:
            back = checkpoints.latest(milestone=True)
        if checkpoints and back:
            at = checkpoints.load(back, model, optimizer, average).steps
            record.rolled_back = [at, step]
        else:
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
            if average:
                average.update(model, step + 1)
        optimizer.zero_grad(set_to_none=True)

        record.add(
            step_s=clock.step_s(),
            global_batch_size=batch_size,
            step=step,
            loss=loss,
            lr=lr,
            grad_norm=grad_norm,
            data_s=data_s,
            communication_s=waited_s,
        )
        record.spikes += [step] * spike
        done.add(batch, data_s)
        stopping = bool(tick) and interrupted()
        if checkpoints and (save or stopping or step in milestones):
            done.gather_bad_rows()
            milestone = trial.optim.rollback and step in milestones
            checkpoints.save(model, optimizer, record, average, milestone=milestone)
            if stopping or step == steps - 1:
                checkpoints.wait()
            record.held_up(clock.saved())
        if step in report_at or tick:
            report(_progress(record, steps))
        profile.step()

    done.gather_bad_rows()
    done.train_s = clock.loop_s()
    profile.close()
    return done


def _begin(
    trial: Trial,
    model: Model,
    device: torch.device,
    layout: Layout,
    checkpoints: Checkpoints | None,
) -> tuple[Gradient, Optimizer, WeightAverage | None, Record]:
    """What a step works with, as new or as the last checkpoint left it."""
    found = checkpoints.latest() if checkpoints else None
    if checkpoints and found:  # its precision too: another kind of node goes on as the first began
        record = checkpoints.record(found)
    else:
        record = Record(precision=agreed(lambda: precision_of(trial, device)))
    gradient = Gradient(
        model, device, trial.placement, strategy=layout.strategy, precision=record.precision
    )
    optimizer = build_optimizer(model, trial.optim)
    average = WeightAverage(model, trial.optim.average) if trial.optim.average else None
    if checkpoints and found:
        checkpoints.load(found, model, optimizer, average)
    record.attempts += 1
    return gradient, optimizer, average, record


def _share(
    stream: Iterator[Given], trial: Trial, rank: int, step: int, steps: int, share: int
) -> Given:
    """The next batch of this worker, which must have as many crops as the plan gives it."""
    given = next(stream, None)
    if given is None or len(given[1]) != share:
        raise RuntimeError(
            f"Trial {trial.id}, worker {rank}: the stream gave "
            f"{'nothing' if given is None else len(given[1])} at step {step} of {steps}; "
            f"the plan has {share} crops there."
        )
    return given


def _progress(record: Record, steps: int) -> dict[str, Any]:
    return {
        "step": record.steps,
        "steps": steps,
        "loss": record.curve.loss[-1],
        "crops_per_s": record.curve.crops_per_s[-1],
        "waited": record.data_wait_s / record.train_s,
    }


@torch.no_grad()
def held_out_loss(trial: Trial, model: Model, batches: Iterator[Batch]) -> float:
    """Mean loss over crops that the trial never trained on, in one process.

    Masks come from a step number that training never reaches, the same for every trial of a seed.
    """
    model.eval()
    total, count = 0.0, 0
    for number, batch in enumerate(batches):
        _, crops, labels = on_device(batch, torch.device("cpu"))
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
