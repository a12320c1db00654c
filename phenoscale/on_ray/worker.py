"""One worker of a Ray Train group: the loop with Ray's stream, report and checkpoint."""

from __future__ import annotations

import time
from typing import Any

import ray.train
import ray.train.torch
import torch

from phenoscale import parallel, train
from phenoscale.config import Trial
from phenoscale.fit import checkpoints_of, worker_facts, write_evidence
from phenoscale.guard import NonFiniteError
from phenoscale.layout import layout_of
from phenoscale.models.build import build_model
from phenoscale.on_ray.data import crop_stream
from phenoscale.peak import matmul_peak
from phenoscale.screens.cutter import CropCutter, within_tolerance
from phenoscale.screens.index import ScreenIndex
from phenoscale.slot import peak_memory_gib
from phenoscale.study_files import TRACE_FILE


def train_as_worker(config: dict[str, Any]) -> dict[str, Any]:
    """One worker of the group; what rank 0 returns is the run's result."""
    trial, files = Trial.from_dict(config["trial"]), config["files"]
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()
    parallel.prepare_process(trial.placement.threads)
    index = ScreenIndex.open(files.index)
    channels, classes = index.channels, index.num_classes
    model = build_model(trial, channels=channels, num_classes=classes)
    cutter = CropCutter(index_path=str(files.index), crops=trial.crops, seed=trial.seed)
    on_gpu = device.type == "cuda"
    memory = torch.cuda.get_device_properties(device).total_memory if on_gpu else None
    directory = files.trial_dir(trial)

    def report(progress: dict[str, Any]) -> None:
        ray.train.report({"trial": trial.id, "phase": "train", **progress})

    try:
        with checkpoints_of(trial, files) as checkpoints:
            done = train.train(
                trial,
                model,
                lambda first, last: within_tolerance(
                    cutter,
                    crop_stream(cutter, first, last, rank, world, trial.placement.readers),
                ),
                report,
                steps=cutter.plan.steps,
                checkpoints=checkpoints,
                rank=rank,
                world=world,
                device=str(device),
                layout=layout_of(trial, len(channels), classes, workers=world, gpu_bytes=memory),
                interrupted=lambda: ray.train.get_preemption_info() is not None,
                trace=directory / TRACE_FILE if trial.placement.profile else None,
            )
    except NonFiniteError as error:  # the same on every worker, and again on every retry
        if rank == 0:
            write_evidence(directory, error.evidence, index)
        return {"non_finite": (str(error), error.evidence)}
    mine: dict[str, Any] = {
        "data_cpu_s": done.data_cpu_s,
        "facts": worker_facts(done),
        "cpu_s": time.process_time(),
        "peak_memory_gib": peak_memory_gib(),
        "peak_gpu_memory_gib": torch.cuda.max_memory_allocated(device) / 2**30 if on_gpu else 0.0,
    }
    everyone = parallel.gathered(mine)
    return {
        "record": done.record.as_json(),
        "train_s": done.train_s,
        "data_cpu_s": sum(one["data_cpu_s"] for one in everyone),
        "first_step": done.first_step,
        "crops": sum(one["facts"]["crops"] for one in everyone),
        "workers": [one["facts"] for one in everyone],
        "matmul_peak": matmul_peak(device, done.record.precision),
        "cpu_s": sum(one["cpu_s"] for one in everyone),
        "peak_memory_gib": max(one["peak_memory_gib"] for one in everyone),
        "peak_gpu_memory_gib": max(one["peak_gpu_memory_gib"] for one in everyone),
    }
