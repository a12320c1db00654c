"""Ray Train around the loop: one worker group per trial, DDP among its workers."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray.train
import torch.distributed as dist
from ray.train.torch import TorchConfig, TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback

from phenoscale import checkpoint, parallel, train
from phenoscale.config import Trial
from phenoscale.fit import Fitted, Tell
from phenoscale.models.build import build_model
from phenoscale.on_ray.data import crop_stream
from phenoscale.screens.cutter import CropCutter
from phenoscale.screens.index import ScreenIndex
from phenoscale.slot import peak_memory_gib
from phenoscale.study_files import StudyFiles

TRAINER_CPUS = 1  # of Ray's count; see `start_ray`
_MAX_FAILURES = 2
_COLLECTIVE_TIMEOUT_S = 300


def fit_on_workers(trial: Trial, files: StudyFiles, tell: Tell) -> Fitted:
    """Trains a trial on a Ray Train worker group; call it inside a Tune function.

    The run has the trial's name in the trial's folder, so that a new attempt goes on from the last
    checkpoint. Progress reaches Tune through `TuneReportCallback`; `tell` is not needed.

    Raises:
        train.NonFiniteLossError: as the workers met it.
        ray.train.TrainingFailedError: when the retries are used up.
    """
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"trial": trial.as_dict(), "files": files},
        torch_config=TorchConfig(
            backend="nccl" if trial.placement.gpu else "gloo", timeout_s=_COLLECTIVE_TIMEOUT_S
        ),
        scaling_config=ray.train.ScalingConfig(
            num_workers=trial.placement.workers,
            use_gpu=trial.placement.gpu,
            resources_per_worker={
                "CPU": TRAINER_CPUS,
                **({"GPU": 1} if trial.placement.gpu else {}),
            },
        ),
        run_config=ray.train.RunConfig(
            name=trial.id,
            storage_path=str(files.trial_dir(trial).parent),
            failure_config=ray.train.FailureConfig(max_failures=_MAX_FAILURES),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
            callbacks=[TuneReportCallback()],
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
        ),
    )
    result = trainer.fit()
    returned = result.return_value
    if "non_finite" in returned:
        raise train.NonFiniteLossError(returned["non_finite"])
    place = Path(result.checkpoint.path)
    return Fitted(checkpoint=place, curve=checkpoint.read_curve(place), **returned)


def _worker(config: dict[str, Any]) -> dict[str, Any]:
    """One worker of the group; what rank 0 returns is the run's result."""
    trial, files = Trial.from_dict(config["trial"]), config["files"]
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    parallel.prepare_process(trial.placement.threads)
    index = ScreenIndex.open(files.index)
    model = build_model(trial, channels=len(index.channels), num_classes=len(index.labels()[1]))
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
            lambda first, last: crop_stream(cutter, first, last, rank, world),
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
        "bad_rows": done.bad_rows,
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
        "bad_rows": set().union(*(one["bad_rows"] for one in everyone)),
        "cpu_s": sum(one["cpu_s"] for one in everyone),
        "peak_memory_gib": max(one["peak_memory_gib"] for one in everyone),
    }
