"""The grid on Ray Tune: one run over all pending trials, in the order that our queue gives.

Tune asks the queue for the next trial (`_Search`) and tells what became of it (`_Relay`); when and
where a trial's processes start, and that they end, is Tune's. A trial that fails says so itself and
is tried again in its place, and its actor serves the next one; where its process is gone, the queue
sends the trial anew. Rows on disk are the truth: a trial that has one is not run again, and
whatever Tune remembers of an earlier attempt is never read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.search import Searcher

from phenoscale.budget import Budget
from phenoscale.config import Study, Trial
from phenoscale.failures import FAILURE_FILE, Failure, failure_of
from phenoscale.fit import fit_here
from phenoscale.on_ray.capacity import Cluster, find_cluster, trial_bundles, trial_needs
from phenoscale.on_ray.data import crop_stream
from phenoscale.on_ray.running import Listener, RunningGrid
from phenoscale.on_ray.start import start_ray, stop_ray
from phenoscale.on_ray.train import fit_on_workers
from phenoscale.results import ROW_FILE, write_json
from phenoscale.run import run_trial
from phenoscale.scheduling import Job, Queue
from phenoscale.study_files import FAILURES_FILE, StudyFiles
from phenoscale.study_storage import push_trial, train_storage

_ENVIRONMENT = {
    "TUNE_MAX_PENDING_TRIALS_PG": "1000",  # the queue gives no trial that there is no room for
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is the study's, which says how to go on
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "60",  # for an actor to end one trial before the next
}


def pending(study: Study, files: StudyFiles) -> list[Trial]:
    """The trials of a study that have no results row yet."""
    return [t for t in study.trials if not (files.trial_dir(t) / ROW_FILE).exists()]


@contextlib.contextmanager
def on_cluster(address: str | None) -> Iterator[Cluster]:
    """Joins a cluster, or starts a local Ray, unless this process has one; leaves it at the end."""
    began = not ray.is_initialized()
    if began:
        start_ray(address)
    try:
        yield find_cluster()
    finally:
        if began:
            stop_ray()


def job_of(trial: Trial, cluster: Cluster, cost: float, bill_hours: float | None = None) -> Job:
    """What the queue and the budget know of a trial."""
    place = trial.placement
    return Job(
        name=trial.id,
        needs=trial_needs(trial, cluster),
        cost=cost,
        is_baseline=trial.is_baseline,
        holds=place.workers,
        bill_hours=bill_hours if place.gpu else None,
    )


def run_grid(
    study: Study,
    files: StudyFiles,
    listener: Listener,
    *,
    cost: Callable[[Trial], float],
    address: str | None = None,
    at_once: int | None = None,
    budget: Budget | None = None,
) -> dict[str, Failure]:
    """Runs every pending trial and returns those that failed, by trial id.

    Args:
        study: the grid.
        files: where it reads and writes.
        listener: told of progress, ends and failures.
        cost: relative cost of a trial; of those that need as much the dearest starts first, so that
            none is left alone at the end.
        address: of a Ray cluster; a local Ray is started and stopped where there is none, unless
            this process has one already.
        at_once: most trials at a time; by default as many as the cluster has room for.
        budget: what decides besides room whether a trial may start; no limit by default.
    """
    todo = pending(study, files)
    failures: dict[str, Failure] = {}
    if todo:
        with on_cluster(address) as cluster:
            jobs = [job_of(trial, cluster, cost(trial)) for trial in todo]
            budget = budget or Budget(jobs)
            queue = Queue(jobs, cluster.capacity, at_once=at_once, admits=budget.admits)
            grid = RunningGrid(todo, files, listener, queue, budget, grows=cluster.grows)
            _run(study, files, grid)
            failures = grid.failures
    write_json(
        files.study_dir / FAILURES_FILE,
        [
            {"trial_id": name, "kind": one.kind, "attempts": one.attempts, "error": one.reason}
            for name, one in failures.items()
        ],
    )
    return failures


def _run(study: Study, files: StudyFiles, grid: RunningGrid) -> None:
    os.environ.update({name: x for name, x in _ENVIRONMENT.items() if name not in os.environ})
    # How trials are scored, without the grid.
    bare = dataclasses.replace(study, trials=study.trials[:1])
    trials = {name: trial.as_dict() for name, trial in grid.trials.items()}
    bundles = {name: trial_bundles(trial) for name, trial in grid.trials.items()}
    storage, system = train_storage(files)
    tune.Tuner(
        tune.with_resources(
            tune.with_parameters(_trainable, study=bare, files=files, trials=trials),
            lambda config: tune.PlacementGroupFactory(bundles[config["trial"]]),
        ),
        tune_config=tune.TuneConfig(search_alg=_Search(grid), num_samples=-1, reuse_actors=True),
        run_config=tune.RunConfig(
            name="grid",
            storage_path=storage,
            storage_filesystem=system,
            verbose=0,
            callbacks=[_Relay(grid)],
        ),
    ).fit()


def _trainable(
    config: dict[str, Any], study: Study, files: StudyFiles, trials: dict[str, dict[str, Any]]
) -> None:
    """What a Tune actor does with one cell of the grid.

    An error is reported and not raised, since Tune would end the actor with it.
    """
    trial = Trial.from_dict(trials[config["trial"]])
    directory, counts = files.trial_dir(trial), dict(config["failures"])
    if trial.placement.launcher == "in_place":
        fit = fit_here(functools.partial(crop_stream, readers=trial.placement.readers))
    else:
        fit = fit_on_workers
    while True:
        try:
            run_trial(trial, study, files, fit=fit, tell=tune.report)
            (directory / FAILURE_FILE).unlink(missing_ok=True)
            push_trial(files, trial)
            break
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this trial's alone
            failure = failure_of(error, counts)
        failure.write(directory)
        with contextlib.suppress(OSError):  # the store itself may be what failed
            push_trial(files, trial)
        phase = "failed" if failure.is_last else "retry"
        tune.report({"trial": trial.id, "phase": phase, "failure": dataclasses.asdict(failure)})
        if failure.is_last:
            return
    tune.report({"trial": trial.id, "phase": "done"})


class _Search(Searcher):
    """Tune's way to ask for the next trial."""

    def __init__(self, grid: RunningGrid) -> None:
        super().__init__()
        self._grid = grid

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its searcher for a restore that a study never makes."""
        return {}

    def suggest(self, trial_id: str) -> Any:
        return self._grid.next(trial_id)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Nothing: `_Relay` hears of it too, and of why."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""


class _Relay(tune.Callback):
    """Tune's events, in the driver."""

    def __init__(self, grid: RunningGrid) -> None:
        self._grid = grid

    def __getstate__(self) -> dict[str, Any]:
        """Nothing, as above."""
        return {}

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self._grid.started(trial.trial_id)

    def on_trial_result(
        self, iteration: int, trials: Any, trial: Any, result: Any, **info: Any
    ) -> None:
        self._grid.told(trial.trial_id, result)

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self._grid.ended(trial.trial_id)

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self._grid.lost(trial.trial_id, _last_error(trial))

    def on_step_end(self, iteration: int, trials: Any, **info: Any) -> None:
        """Finds trials whose actor could not be used again, of which Tune tells nobody."""
        for trial in trials:
            if trial.status == "ERROR" and self._grid.is_running(trial.trial_id):
                self._grid.lost(trial.trial_id, _last_error(trial))


def _last_error(trial: Any) -> str:
    """What Ray said when a trial's process ended: the last entry of the file that Tune keeps."""
    path = Path(trial.error_file) if trial.error_file else None
    if path is None or not path.exists():
        return ""
    return path.read_text(errors="replace").rpartition("Failure # ")[2].partition("\n")[2]
