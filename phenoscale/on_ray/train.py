"""Ray Train around the loop: one worker group per trial, DDP among its workers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import ray.train
from ray.train.torch import TorchConfig, TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback

from phenoscale.config import Trial
from phenoscale.study_files import StudyFiles

if TYPE_CHECKING:
    from phenoscale.fit import Fitted, Tell

TRAINER_CPUS = 1  # of Ray's count; see `start_ray`
_MAX_FAILURES = 2
_RESIZE_S = 60.0  # how often an elastic group looks for room; each change starts it anew


def fit_on_workers(trial: Trial, files: StudyFiles, tell: Tell) -> Fitted:
    """A `fit` that trains on a Ray Train worker group; call it inside a Tune function.

    Progress reaches Tune through `TuneReportCallback`; `tell` is not needed.
    """
    return train_group(trial, files, [TuneReportCallback()])


def train_group(
    trial: Trial, files: StudyFiles, callbacks: Sequence[ray.train.UserCallback] = ()
) -> Fitted:
    """Trains a trial on a worker group, started again when a worker, or its node, is lost.

    Every attempt goes on from the trial's last checkpoint, which the workers look for themselves:
    Ray's own are not used, so one code serves workers, a process without Ray, and whoever comes
    after a lost driver. An elastic group takes what workers there are, and begins anew, from a
    checkpoint, when there are more.

    Raises:
        guard.NonFiniteError: as the workers met it.
        ray.train.TrainingFailedError: when the retries are used up.
    """
    from phenoscale.fit import Fitted
    from phenoscale.guard import NonFiniteError
    from phenoscale.record import Record

    place = trial.placement
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"trial": trial.as_dict(), "files": files},
        torch_config=TorchConfig(
            backend="nccl" if place.gpu else "gloo", timeout_s=math.ceil(place.stall_s)
        ),
        scaling_config=ray.train.ScalingConfig(
            num_workers=(place.min_workers, place.workers) if place.min_workers else place.workers,
            use_gpu=place.gpu,
            resources_per_worker={"CPU": TRAINER_CPUS, **({"GPU": 1} if place.gpu else {})},
            elastic_resize_monitor_interval_s=_RESIZE_S,
        ),
        run_config=ray.train.RunConfig(
            name=trial.id,
            storage_path=str(files.trial_dir(trial).parent),
            failure_config=ray.train.FailureConfig(max_failures=_MAX_FAILURES),
            callbacks=list(callbacks),
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
        ),
    )
    result = trainer.fit()
    returned = result.return_value
    if "non_finite" in returned:
        raise NonFiniteError(*returned["non_finite"])
    return Fitted(**returned | {"record": Record.from_json(returned["record"])})


def _worker(config: dict[str, Any]) -> dict[str, Any]:
    """What a worker runs. Train's controller imports this module too, and it needs no timm."""
    from phenoscale.on_ray.worker import train_as_worker

    return train_as_worker(config)
