"""Ray Train around the loop: one worker group per trial, DDP among its workers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import ray.train
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.tune.integration.ray_train import TuneReportCallback
from ray.util.placement_group import PlacementGroup, get_current_placement_group

from phenoscale.config import Placement, Trial
from phenoscale.on_ray.start import is_local
from phenoscale.study_files import StudyFiles
from phenoscale.study_storage import train_storage

if TYPE_CHECKING:
    from phenoscale.fit import Fitted, Tell

TRAINER_CPUS = 1  # of Ray's count; see `start_ray`
_MAX_FAILURES = 2
_RESIZE_S = 60.0  # how often an elastic group looks for room; each change starts it anew


class _SlimTrainer(DataParallelTrainer):
    """Ray's trainer without two of its helpers, each a process of a second or two.

    The hook is Ray's own and private (2.60), and so pinned by a test. One helper hands out
    datasets, of which we give it none. The other frees a group whose controller was killed; on a
    local Ray nothing outlives the driver, and there it could not work without the dashboard either.
    """

    def _create_default_callbacks(self) -> list[Any]:
        left_out = {"DatasetsCallback"}
        if is_local():
            left_out.add("PlacementGroupCleanerCallback")
        kept = super()._create_default_callbacks()
        return [one for one in kept if type(one).__name__ not in left_out]


class _Finality(ray.train.UserCallback):
    """Ends a run at an error that every attempt would meet again, instead of trying it anew."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Raises the first worker's error whose kind is final; called in Train's controller."""
        for _, wrapped in sorted(worker_exceptions.items()):
            error = getattr(wrapped, "_base_exc", wrapped)  # Train (2.60) adds the traceback's text
            if isinstance(error, ValueError):  # an unreadable site or image is one too
                raise error


def fit_on_workers(trial: Trial, files: StudyFiles, tell: Tell) -> Fitted:
    """A `fit` that trains on a Ray Train worker group; call it inside a Tune function.

    Progress reaches Tune through `TuneReportCallback`; `tell` is not needed. The trial's placement
    group, which the Tune function is in, holds what its workers' readers need.
    """
    return train_group(trial, files, [TuneReportCallback()], get_current_placement_group())


def train_group(
    trial: Trial,
    files: StudyFiles,
    callbacks: Sequence[ray.train.UserCallback] = (),
    group: PlacementGroup | None = None,
) -> Fitted:
    """Trains a trial on a worker group, started again when a worker, or its node, is lost.

    Every attempt goes on from the trial's last checkpoint, which the workers look for themselves:
    Ray's own are not used, so one code serves workers, a process without Ray, and whoever comes
    after a lost driver. An elastic group takes what workers there are, and begins anew, from a
    checkpoint, when there are more.

    Args:
        trial: the trial.
        files: of its study.
        callbacks: of Ray Train, in its controller.
        group: the trial's placement group, with a bundle for the readers of each worker.

    Raises:
        guard.NonFiniteError: as the workers met it.
        ValueError: as a worker met it, at once; an unreadable site or image is one.
        ray.train.TrainingFailedError: when the retries are used up.
    """
    from phenoscale.fit import Fitted
    from phenoscale.guard import NonFiniteError
    from phenoscale.record import Record

    place = trial.placement
    storage, system = train_storage(files)
    trainer = _SlimTrainer(
        _worker,
        train_loop_config={"trial": trial.as_dict(), "files": files, "group": group},
        backend_config=_backend(place),
        scaling_config=ray.train.ScalingConfig(
            num_workers=(place.min_workers, place.workers) if place.min_workers else place.workers,
            use_gpu=place.gpu,
            resources_per_worker={"CPU": TRAINER_CPUS, **({"GPU": 1} if place.gpu else {})},
            elastic_resize_monitor_interval_s=_RESIZE_S,
        ),
        run_config=ray.train.RunConfig(
            name=trial.id,
            storage_path=storage,
            storage_filesystem=system,
            failure_config=ray.train.FailureConfig(max_failures=_MAX_FAILURES),
            callbacks=[*callbacks, _Finality()],
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
        ),
    )
    try:
        returned = trainer.fit().return_value
    except ray.train.ControllerError as error:
        if isinstance(error.controller_failure, ValueError):
            raise error.controller_failure from None
        raise
    if "non_finite" in returned:
        raise NonFiniteError(*returned["non_finite"])
    return Fitted(**returned | {"record": Record.from_json(returned["record"])})


def _backend(place: Placement) -> ray.train.BackendConfig:
    """How the workers come together. A CPU worker alone has nobody to talk to.

    Train's controller then needs no torch, whose import takes it two seconds.
    """
    if place.workers == 1 and not place.gpu:
        return ray.train.BackendConfig()
    from ray.train.torch import TorchConfig

    return TorchConfig(backend="nccl" if place.gpu else "gloo", timeout_s=math.ceil(place.stall_s))


def _worker(config: dict[str, Any]) -> dict[str, Any]:
    """What a worker runs. Train's controller imports this module too, and it needs no timm."""
    from phenoscale.on_ray.worker import train_as_worker

    return train_as_worker(config)
