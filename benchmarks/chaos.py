"""Trainings that are killed again and again: do they end as if nothing had been?

Command: python -m benchmarks.chaos [--kills 20] [--changes 6] [--json FILE]

First a trial of one worker is killed (SIGKILL) at random moments, every other time just when a
checkpoint is being written, and started again each time. Its weights must end bit-identical to
those of the same trial left alone. Then a trial goes through groups of 1, 2 and 4 workers, DDP and
FSDP in turn, each group losing one worker to a SIGKILL; its losses must stay within 1e-5 of those
of the trial left alone.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import torch
import torch.distributed as dist

from benchmarks.figures import Figure, figure, publish
from phenoscale.checkpoint import MANIFEST, Checkpoints
from phenoscale.config import Crops, Objective, Optim, Placement, Trial
from phenoscale.crops import lanes
from phenoscale.feed import Batch
from phenoscale.layout import Layout
from phenoscale.models.build import Model, build_model
from phenoscale.parallel import prepare_process
from phenoscale.record import Record
from phenoscale.train import train

CHANNELS = ("DNA", "Actin")
SAVE_EVERY_S = 0.05
STEPS_ALONE, STEPS_CHANGING = 1500, 120
WORLDS = ((2, "ddp"), (1, "ddp"), (4, "fsdp"), (2, "fsdp"), (4, "ddp"))
"""Sizes of the groups that follow each other, and their strategies."""
TRIAL = Trial(
    objective=Objective(name="mae", mask_ratio=0.5),
    backbone="nano/8",
    crops=Crops(size_px=32, passes=1, global_batch_size=16),
    optim=Optim(lr=1e-3, precision="fp32"),
    placement=Placement(save_every_s=SAVE_EVERY_S),
)


def model_of_trial() -> Model:
    """The trial's model, as new."""
    return build_model(TRIAL, channels=CHANNELS, num_classes=1)


def batches(rank: int, world: int, first: int, last: int) -> Iterator[Batch]:
    """Noise that follows from the step: a worker's share of each global batch."""
    size, count = TRIAL.crops.size_px, TRIAL.crops.global_batch_size
    share = lanes(count, 1, rank, world)
    for step in range(first, last):
        crops = np.random.default_rng(step).integers(0, 256, (count, 2, size, size), np.uint8)
        rows = np.array(share) + step * count
        yield {
            "crops": crops[share.start : share.stop],
            "turns": np.zeros(len(share), np.int64),
            "labels": np.zeros(len(share), np.int64),
            "rows": rows,
            "bad": np.full(len(share), -1),
            "read_cpu_s": np.zeros(len(share)),
        }


def attempt(rank: int, folder: str, steps: int, world: int, strategy: str) -> None:
    """One process of one attempt: goes on from the last checkpoint in the folder."""
    prepare_process(1)
    if world > 1:
        rendezvous = f"file://{folder}.{os.getppid()}"
        dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=world)
    with Checkpoints(folder) as checkpoints:
        train(
            TRIAL,
            model_of_trial(),
            lambda first, last: batches(rank, world, first, last),
            lambda progress: None,
            steps=steps,
            checkpoints=checkpoints,
            rank=rank,
            world=world,
            layout=Layout(strategy="fsdp" if strategy == "fsdp" else "ddp"),
        )
    if world > 1:
        dist.barrier()
        os._exit(0)  # threads of gloo now and then abort a process at its own end (torch 2.14)


def started(folder: Path, steps: int, world: int = 1, strategy: str = "ddp") -> subprocess.Popen:
    """Starts an attempt in a process of its own."""
    words = ["--attempt", str(folder), str(steps), str(world), strategy]
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.chaos", *words], stderr=subprocess.DEVNULL
    )


def written(folder: Path) -> set[Path]:
    """Folders of checkpoints, whole or not."""
    return set(folder.glob("step_*")) if folder.exists() else set()


def unfinished(folder: Path) -> set[Path]:
    """Those without a manifest."""
    return {path for path in written(folder) if not (path / MANIFEST).exists()}


def killed(process: subprocess.Popen, victim: int) -> None:
    """Kills one of an attempt's processes and waits for the rest to end."""
    with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
        os.kill(victim, signal.SIGKILL)
        if victim != process.pid:
            process.wait(timeout=60)
    if process.poll() is None:
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
        process.kill()
    process.wait()


def one_worker(kills: int, dice: random.Random) -> list[Figure]:
    """A trial of one worker, killed so many times."""
    with tempfile.TemporaryDirectory() as name:
        alone, folder = Path(name) / "alone", Path(name) / "killed"
        assert started(alone, STEPS_ALONE).wait() == 0
        torn, attempts = 0, 0
        while attempts < kills:
            left, begun = unfinished(folder), written(folder)
            process = started(folder, STEPS_ALONE)
            while process.poll() is None and not written(folder) - begun:
                time.sleep(0.01)
            time.sleep(dice.uniform(0, 0.6))
            # In the middle of writing, every other time.
            while attempts % 2 and process.poll() is None and not unfinished(folder) - left:
                time.sleep(0.0005)
            if process.poll() is not None:
                raise RuntimeError(f"The trial ended after {attempts} kills: give it more steps.")
            killed(process, process.pid)
            torn += bool(unfinished(folder) - left)
            attempts += 1
            print(f"  kill {attempts} of {kills}: {_steps(folder)} steps kept", flush=True)
        assert started(folder, STEPS_ALONE).wait() == 0
        (one, record), (two, other) = _left(alone), _left(folder)
        pairs = zip(one.parameters(), two.parameters(), strict=True)
        differ = sum(int((a != b).sum()) for a, b in pairs)
        return [
            figure("kills of one worker", attempts, ""),
            figure("of these, in the middle of writing a checkpoint", torn, ""),
            figure("attempts that the last checkpoint tells of", other.attempts, ""),
            figure("weights that differ in a bit", differ, "", 0.0, at_most=True),
            figure(
                "losses that differ in a bit",
                sum(a != b for a, b in zip(record.curve.loss, other.curve.loss, strict=True)),
                "",
                0.0,
                at_most=True,
            ),
        ]


def changing_workers(changes: int, dice: random.Random) -> list[Figure]:
    """A trial that loses a worker so many times and goes on with another number of them."""
    with tempfile.TemporaryDirectory() as name:
        alone, folder = Path(name) / "alone", Path(name) / "changing"
        assert started(alone, STEPS_CHANGING).wait() == 0
        for change in range(changes):
            world, strategy = WORLDS[change % len(WORLDS)]
            until = (change + 1) * STEPS_CHANGING // (changes + 1)
            process = started(folder, STEPS_CHANGING, world, strategy)
            while process.poll() is None and _steps(folder) < until:
                time.sleep(0.01)
            workers = [child.pid for child in psutil.Process(process.pid).children()]
            killed(process, dice.choice(workers[-world:] if world > 1 else [process.pid]))
            print(f"  {world} workers ({strategy}): {_steps(folder)} steps kept", flush=True)
        assert started(folder, STEPS_CHANGING).wait() == 0
        (one, record), (two, other) = _left(alone), _left(folder)
        losses = np.array([record.curve.loss, other.curve.loss])
        apart = float(np.max(np.abs(losses[0] - losses[1]) / losses[0]))
        mine, theirs = (
            torch.cat([x.detach().ravel() for x in model.parameters()]) for model in (two, one)
        )
        weights = float((mine - theirs).norm() / theirs.norm())
        return [
            figure("changes of the number of workers", changes, ""),
            figure("largest relative difference of a loss", apart, "", 1e-5, at_most=True),
            figure("relative distance of all weights", weights, ""),
        ]


def _steps(folder: Path) -> int:
    checkpoints = Checkpoints(folder)
    found = checkpoints.latest()
    return checkpoints.record(found).steps if found else 0


def _left(folder: Path) -> tuple[torch.nn.Module, Record]:
    model = model_of_trial()
    return model, Checkpoints(folder).load_weights(model)


def main() -> None:
    """Measures and publishes; the workers come in here too."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="of the trial of one worker")
    parser.add_argument("--changes", type=int, default=6, help="of the number of workers")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--json", type=Path, help="file for the same figures")
    parser.add_argument("--attempt", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.attempt:
        folder, steps, world, strategy = arguments.attempt
        words = (folder, int(steps), int(world), strategy)
        if int(world) == 1:
            attempt(0, *words)
        else:
            torch.multiprocessing.spawn(attempt, words, nprocs=int(world))
        return
    dice = random.Random(arguments.seed)
    figures = one_worker(arguments.kills, dice) + changing_workers(arguments.changes, dice)
    publish(figures, arguments.json)


if __name__ == "__main__":
    main()
