"""Ray Train around the loop: one worker group per trial, DDP among its workers."""

from __future__ import annotations

from pathlib import Path
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
_COLLECTIVE_TIMEOUT_S = 300


def fit_on_workers(trial: Trial, files: StudyFiles, tell: Tell) -> Fitted:
    """Trains a trial on a Ray Train worker group; call it inside a Tune function.

    The run has the trial's name in the trial's folder, so that a new attempt goes on from the last
    checkpoint. Progress reaches Tune through `TuneReportCallback`; `tell` is not needed.

    Raises:
        train.NonFiniteLossError: as the workers met it.
        ray.train.TrainingFailedError: when the retries are used up.
    """
    from phenoscale import checkpoint, train
    from phenoscale.fit import Fitted

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
    """What a worker runs. Train's controller imports this module too, and it needs no timm."""
    from phenoscale.on_ray.worker import train_as_worker

    return train_as_worker(config)
