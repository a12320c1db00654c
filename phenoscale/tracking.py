"""Mirror of a study in MLflow: one parent run per study, a child run per results row.

The files of the study are the truth; the mirror is written from them, in the driver, and can be
redone at any time. So every step looks for what is there before it writes, and times are computed
from the run's first start: mirroring twice leaves the same runs and the same points. MLflow has no
unique keys, so only one process at a time should mirror a study; any number of studies may be
mirrored to one store at once. An unreachable server or a locked store never ends a study.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from phenoscale.config import Trial
from phenoscale.mirror_runs import StudyRuns
from phenoscale.mirror_store import (
    MirrorError,
    MirrorProblem,
    default_uri,
    opening,
    probe,
    resolve_tracking_uri,
    without_password,
)
from phenoscale.mirror_study import StudyOnDisk
from phenoscale.mirror_values import Point
from phenoscale.results import read_row, read_rows

if TYPE_CHECKING:
    from mlflow import MlflowClient

ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # a process for evaluations of language models
}
"""Set, unless the user did, in every process of ours that imports mlflow, or serves its pages."""

# No retries inside MLflow: it repeats create_run blindly, we look for a run first. A server with
# many writers may take a minute for an answer: an attempt that is given up too early is written
# anyway, and its repetition is one writer more.
QUIET = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "180",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
ENTITIES_PER_CALL = 1000  # MLflow's limits for one log_batch
PARAMS_PER_CALL = 100
RETRY_WAITS_S = (0.5, 1.5)


class StudyMirror:
    """Writes one study to MLflow: `open` once, `trial` or `failed` for each, `finish` at the end.

    None of them raises for a store that does not answer: each is tried three times, then
    `problems` gets an entry, later trials are left alone, and `finish` tries again with all.
    The study's name, from `study.json`, must stand before `open` and stay.
    """

    def __init__(self, study_dir: Path, tracking_uri: str | None = None) -> None:
        """Chooses the store; nothing is opened yet.

        Args:
            study_dir: directory of the study.
            tracking_uri: any MLflow tracking URI; without it MLFLOW_TRACKING_URI, or else a
                SQLite file in the study's directory.
        """
        self.study_dir = study_dir.resolve()
        self.tracking_uri = resolve_tracking_uri(self.study_dir, tracking_uri)
        self.problems: list[MirrorProblem] = []
        self._opened: StudyRuns | None = None
        self._behind = False  # a step failed: the store lacks something that the disk has

    def open(self) -> None:
        """Creates store, experiment, parent run and saved view where they do not exist."""
        self._attempt("opening the store", lambda runs: None)

    def trial(self, trial_dir: Path) -> None:
        """Mirrors one trial or baseline; a second call changes nothing.

        Raises:
            ValueError: if the row on disk is damaged.
        """
        row = read_row(trial_dir)
        if not self._behind:
            self._attempt(f"writing {row.trial_id}", lambda runs: runs.trial(trial_dir, row))

    def failed(self, trial: Trial, reason: str) -> None:
        """Mirrors a trial without a row as a failed run; it is marked once the trial has one.

        Args:
            trial: that failed.
            reason: the error; its end is shown.
        """
        if not self._behind:
            self._attempt(
                f"writing the failure of {trial.id}",
                lambda runs: runs.failure(trial.id, trial, reason),
            )

    def finish(self) -> None:
        """Gives the parent run results, report, status and the best encoder; catches up."""
        study = StudyOnDisk.read(self.study_dir)
        if not self._behind:
            self._attempt("writing the results table", lambda runs: runs.study(study))
            return

        def everything(runs: StudyRuns) -> None:
            for row in study.rows:
                runs.trial(self.study_dir / "trials" / row.trial_id, row)
            runs.study(study)

        self.problems.clear()
        self._attempt("catching up with the study", everything)

    def _attempt(self, what: str, action: Callable[[StudyRuns], None]) -> None:
        for wait_s in (*RETRY_WAITS_S, None):
            try:
                with _environment(**QUIET):
                    action(self._runs())
            except Exception as error:  # noqa: BLE001 - whatever a store raises, the study goes on
                last: Exception = error
            else:
                self._behind = False
                return
            if wait_s is None or isinstance(last, MirrorError | ValueError):
                break  # the last attempt, or an error that waiting does not mend
            time.sleep(wait_s)
        self._behind = True
        advice = f"phenoscale sync {self.study_dir}"
        if self.tracking_uri != default_uri(self.study_dir):
            advice += f" --tracking-uri {without_password(self.tracking_uri)}"
        first_line = (str(last).strip().splitlines() or [""])[0][:300]
        text = without_password(f"{type(last).__name__}: {first_line}")
        self.problems.append(MirrorProblem(what=what, error=text, advice=advice))

    def _runs(self) -> StudyRuns:
        """The study's runs in a store that is there; opened once."""
        probe(self.tracking_uri)
        if self._opened is None:
            client = _client(self.tracking_uri)
            log = functools.partial(_log, client)
            self._opened = StudyRuns(self.study_dir, self.tracking_uri, client, log)
        return self._opened


def sync(study_dir: Path, tracking_uri: str | None = None) -> int:
    """Mirrors a whole study from disk; what is there already stays as it is.

    Returns:
        How many trials and baselines the store now holds.

    Raises:
        MirrorError: if the store does not answer; the study's files are untouched.
        ValueError: if `study_dir` is no study, or one of its rows is damaged.
    """
    rows = read_rows(study_dir)
    mirror = StudyMirror(study_dir, tracking_uri)
    mirror.open()
    for row in rows:
        mirror.trial(study_dir / "trials" / row.trial_id)
    if not mirror.problems:
        mirror.finish()
    if mirror.problems:
        raise MirrorError(str(mirror.problems[-1]))
    return len(rows)


def _client(uri: str) -> MlflowClient:
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)  # read when mlflow is imported
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with opening(uri):
        return MlflowClient(tracking_uri=uri)


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Sets variables for the time of the block, those that the user has set excepted."""
    ours = {key: value for key, value in values.items() if key not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for key in ours:
            os.environ.pop(key, None)


def _log(
    client: MlflowClient,
    run_id: str,
    *,
    points: Sequence[Point] = (),
    params: Mapping[str, str] | None = None,
    tags: Mapping[str, str] | None = None,
) -> None:
    """Writes all of it in few calls; a repetition writes the same once more, so nothing new."""
    from mlflow.entities import Metric, Param, RunTag

    labels = [RunTag(key, value) for key, value in (tags or {}).items()]
    chosen = [Param(key, value) for key, value in (params or {}).items()]
    measured = [Metric(*point) for point in points]
    while labels or chosen or measured:
        some, chosen = chosen[:PARAMS_PER_CALL], chosen[PARAMS_PER_CALL:]
        room = ENTITIES_PER_CALL - len(some) - len(labels)
        now, measured = measured[:room], measured[room:]
        client.log_batch(run_id, metrics=now, params=some, tags=labels)
        labels = []
