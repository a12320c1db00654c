"""The grid: our list of trials, Ray Tune's scheduling.

Trials of one worker come first, as many at once as there are cores: in place inside reused Tune
actors, or under Ray Train; then those of two workers, and so on. Rows on disk are the truth: a
trial that has one is not run again, and whatever Tune remembers of an earlier attempt is never
read.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from ray import tune

from phenoscale.config import Study, Trial
from phenoscale.fit import fit_here
from phenoscale.on_ray.data import crop_stream
from phenoscale.on_ray.start import start_ray, stop_ray
from phenoscale.on_ray.train import TRAINER_CPUS, fit_on_workers
from phenoscale.results import ROW_FILE, write_json
from phenoscale.run import run_trial
from phenoscale.study_files import FAILURES_FILE, StudyFiles

_DRIVER_CPUS = 0.01  # of a trial whose work is done by a worker group


class Listener(Protocol):
    """Who wants to know how the grid goes; called in the driver."""

    def progress(self, update: dict[str, Any]) -> None:
        """A trial's progress, as it told it: trial, phase, step, steps, loss, crops_per_s."""

    def done(self, trial: Trial) -> None:
        """A trial's row is on disk."""

    def failed(self, trial: Trial, reason: str) -> None:
        """A trial ended without a row."""


def pending(study: Study, files: StudyFiles) -> list[Trial]:
    """The trials of a study that have no results row yet."""
    return [t for t in study.trials if not (files.trial_dir(t) / ROW_FILE).exists()]


def run_grid(
    study: Study,
    files: StudyFiles,
    listener: Listener,
    *,
    cost: Callable[[Trial], float],
    address: str | None = None,
    at_once: int | None = None,
) -> dict[str, str]:
    """Runs every pending trial and returns the reasons of those that failed, by trial id.

    Args:
        study: the grid.
        files: where it reads and writes.
        listener: told of progress, ends and failures.
        cost: relative cost of a trial; the largest starts first, so that none is left alone at the
            end.
        address: of a Ray cluster; a local Ray is started and stopped where there is none.
        at_once: most trials at a time; by default as many as the cluster has room for.
    """
    todo = sorted(pending(study, files), key=cost, reverse=True)
    failures: dict[str, str] = {}
    if todo:
        slots = min(start_ray(address), at_once or sys.maxsize)
        try:
            for workers in sorted({t.placement.workers for t in todo}):
                some = [t for t in todo if t.placement.workers == workers]
                failures |= _run(study, files, listener, some, max(1, slots // workers))
        finally:
            stop_ray()
    write_json(
        files.study_dir / FAILURES_FILE,
        [{"trial_id": name, "error": reason} for name, reason in failures.items()],
    )
    return failures


def _run(
    study: Study, files: StudyFiles, listener: Listener, trials: Sequence[Trial], at_once: int
) -> dict[str, str]:
    """One Tune run over trials of as many workers."""
    bare = dataclasses.replace(
        study, trials=study.trials[:1]
    )  # how trials are scored, without the grid
    trainable = tune.with_parameters(_trainable, study=bare, files=files)
    results = tune.Tuner(
        tune.with_resources(trainable, _resources),
        param_space={"trial": tune.grid_search([t.as_dict() for t in trials])},
        tune_config=tune.TuneConfig(max_concurrent_trials=at_once, reuse_actors=True),
        run_config=tune.RunConfig(
            name=f"workers{trials[0].placement.workers}",
            storage_path=str(files.study_dir / "tune"),
            verbose=0,
            callbacks=[_Relay(listener, files)],
        ),
    ).fit()
    failures = {}
    for trial, result in zip(trials, results, strict=True):
        if result.error is not None and not (files.trial_dir(trial) / ROW_FILE).exists():
            failures[trial.id] = str(result.error).strip()
    return failures


def _resources(config: dict[str, Any]) -> dict[str, float]:
    """What a trial's own process holds of the cluster."""
    here = Trial.from_dict(config["trial"]).placement.launcher == "in_place"
    return {"CPU": TRAINER_CPUS if here else _DRIVER_CPUS}


def _trainable(config: dict[str, Any], study: Study, files: StudyFiles) -> None:
    """What a Tune actor does with one cell of the grid."""
    trial = Trial.from_dict(config["trial"])
    here = trial.placement.launcher == "in_place"
    run_trial(
        trial,
        study,
        files,
        fit=fit_here(crop_stream) if here else fit_on_workers,
        tell=tune.report,
    )
    tune.report({"trial": trial.id, "phase": "done"})


class _Relay(tune.Callback):
    """Hands Tune's events to the listener, in the driver."""

    def __init__(self, listener: Listener, files: StudyFiles) -> None:
        self._listener = listener
        self._files = files

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its callbacks for a restore that a study never makes."""
        return {}

    def on_trial_result(
        self, iteration: int, trials: Any, trial: Any, result: Any, **info: Any
    ) -> None:
        if "phase" in result:
            self._listener.progress(result)

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self._listener.done(Trial.from_dict(trial.config["trial"]))

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        reason = trial.get_error().args[0] if trial.get_error() else "lost"
        self._listener.failed(Trial.from_dict(trial.config["trial"]), str(reason))
