"""One worker of a Ray Train group: the loop with Ray's stream, report and checkpoint."""

from __future__ import annotations

import time
from typing import Any

import ray.train
import torch

from phenoscale import parallel
from phenoscale.config import Trial
from phenoscale.fit import train_trial, worker_facts
from phenoscale.guard import NonFiniteError
from phenoscale.on_ray.data import crop_stream
from phenoscale.peak import matmul_peak
from phenoscale.slot import peak_memory_gib


def train_as_worker(config: dict[str, Any]) -> dict[str, Any]:
    """One worker of the group; what rank 0 returns is the run's result."""
    trial, files = Trial.from_dict(config["trial"]), config["files"]
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    device = _device(trial)
    parallel.prepare_process(trial.placement.threads)

    def report(progress: dict[str, Any]) -> None:
        ray.train.report({"trial": trial.id, "phase": "train", **progress})

    try:
        done = train_trial(
            trial,
            files,
            lambda cutter, first, last: crop_stream(
                cutter, first, last, rank, world, trial.placement.readers, config["group"]
            ),
            report,
            rank=rank,
            world=world,
            device=device,
            interrupted=lambda: ray.train.get_preemption_info() is not None,
        )
    except NonFiniteError as error:  # the same on every worker, and again on every retry
        return {"non_finite": (str(error), error.evidence)}
    on_gpu = device.type == "cuda"
    mine: dict[str, Any] = {
        "data_cpu_s": done.data_cpu_s,
        "facts": worker_facts(done),
        "cpu_s": time.process_time(),
        "peak_memory_gib": peak_memory_gib(),
        "peak_gpu_memory_gib": torch.cuda.max_memory_allocated(device) / 2**30 if on_gpu else 0.0,
    }
    everyone = parallel.gathered(mine)
    if rank:
        return {}
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


def _device(trial: Trial) -> torch.device:
    """Where this worker trains: on the GPU that Ray gave it, or on the CPU."""
    if not trial.placement.gpu:
        return torch.device("cpu")
    from ray.train.torch import get_device  # half a second that a CPU worker does not need

    return get_device()
