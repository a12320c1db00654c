"""One worker of a Ray Train group: the loop with Ray's stream, report and checkpoint."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch.distributed as dist

from phenoscale import parallel, train
from phenoscale.config import Trial
from phenoscale.fit import worker_facts
from phenoscale.models.build import build_model
from phenoscale.on_ray.data import crop_stream
from phenoscale.screens.cutter import CropCutter, within_tolerance
from phenoscale.screens.index import ScreenIndex
from phenoscale.slot import peak_memory_gib


def train_as_worker(config: dict[str, Any]) -> dict[str, Any]:
    """One worker of the group; what rank 0 returns is the run's result."""
    trial, files = Trial.from_dict(config["trial"]), config["files"]
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    parallel.prepare_process(trial.placement.threads)
    index = ScreenIndex.open(files.index)
    model = build_model(trial, channels=index.channels, num_classes=index.num_classes)
    cutter = CropCutter(index_path=str(files.index), crops=trial.crops, seed=trial.seed)

    def report(progress: dict[str, Any], fill: Callable[[Path], None] | None) -> None:
        progress = {"trial": trial.id, "phase": "train", **progress}
        if fill is None:
            ray.train.report(progress)
            return
        with tempfile.TemporaryDirectory() as part:
            fill(Path(part))
            ray.train.report(
                progress,
                checkpoint=ray.train.Checkpoint.from_directory(part),
                checkpoint_dir_name=f"step_{progress['step']:08d}",
            )

    def fit(resume: Path | None) -> train.Trained:
        return train.train(
            trial,
            model,
            lambda first, last: within_tolerance(
                cutter,
                crop_stream(cutter, first, last, rank, world, trial.placement.readers),
            ),
            report,
            steps=cutter.plan.steps,
            rank=rank,
            world=world,
            device=str(ray.train.torch.get_device()),
            resume=resume,
        )

    last = ray.train.get_checkpoint()
    try:
        if last is None:
            done = fit(None)
        else:
            with last.as_directory() as directory:
                done = fit(Path(directory))
    except train.NonFiniteLossError as error:  # the same on every worker, and again on every retry
        return {"non_finite": str(error)}
    mine = {
        "data_cpu_s": done.data_cpu_s,
        "facts": worker_facts(done),
        "cpu_s": time.process_time(),
        "peak_memory_gib": peak_memory_gib(),
    }
    everyone: list[Any] = [mine] * world
    if world > 1:
        dist.all_gather_object(everyone, mine)
    return {
        "train_s": done.train_s,
        "data_wait_s": done.data_wait_s,
        "data_cpu_s": sum(one["data_cpu_s"] for one in everyone),
        "first_step": done.first_step,
        "crops": sum(one["facts"]["crops"] for one in everyone),
        "workers": [one["facts"] for one in everyone],
        "cpu_s": sum(one["cpu_s"] for one in everyone),
        "peak_memory_gib": max(one["peak_memory_gib"] for one in everyone),
    }
