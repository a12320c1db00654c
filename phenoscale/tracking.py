"""Mirror of a study in MLflow: one parent run per study, a child run per results row.

The files of the study are the truth; the mirror is written from them, in the driver, and can be
redone at any time. So every step looks for what is there before it writes, and times are computed
from the run's first start: mirroring twice leaves the same runs and the same points. MLflow has no
unique keys, so only one process at a time should mirror a study. An unreachable server or a locked
store never ends a study.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from phenoscale.mirror_links import MirrorRuns
from phenoscale.mirror_store import (
    PROBE_S,
    MirrorError,
    MirrorProblem,
    artifact_location,
    default_uri,
    probe_sqlite,
    resolve_tracking_uri,
    without_password,
)
from phenoscale.mirror_values import (
    Point,
    content_digest,
    curve_points,
    duration_ms,
    final_points,
    flat,
    headline,
    rows_csv,
    start_ms,
    trial_params,
    trial_tags,
    worker_points,
)
from phenoscale.results import (
    CURVE_FILE,
    ROW_FILE,
    ResultsRow,
    read_optional_json,
    read_row,
    read_rows,
)
from phenoscale.study_files import (
    COMPARISONS_FILE,
    FAILURES_FILE,
    FIGURES,
    PANEL_FILE,
    REPORT_FILE,
    STUDY_FILE,
    TRIAL_FILE,
    WORKERS_FILE,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

ENVIRONMENT = {"MLFLOW_DISABLE_TELEMETRY": "true"}
"""Set, unless the user did, in every process of ours that imports mlflow."""

# No retries inside MLflow: it repeats create_run blindly, we look for a run first.
QUIET = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
METRICS_PER_CALL = 1000  # MLflow's limits for one log_batch
PARAMS_PER_CALL = 100
RETRY_WAITS_S = (0.5, 1.5)
STUDY_ARTIFACTS = (REPORT_FILE, STUDY_FILE, COMPARISONS_FILE, FAILURES_FILE)


class StudyMirror:
    """Writes one study to MLflow: `open` once, `trial` after each row, `finish` at the end.

    None of the three raises for a store that does not answer: each is tried three times, then
    `problems` gets an entry, later trials are left alone, and `finish` tries once more with all.
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
        self._client: MlflowClient | None = None
        self._experiment_id = ""
        self._parent_id = ""
        self._runs: dict[str, str] = {}  # trial id -> run id
        self._behind = False  # a step failed: the store lacks something that the disk has

    @property
    def name(self) -> str:
        """Name of the study, and so of the experiment and the parent run."""
        study = read_optional_json(self.study_dir / STUDY_FILE, {})
        return str(study.get("name") or self.study_dir.name)

    def open(self) -> None:
        """Creates store, experiment and parent run where they do not exist.

        Call it in the driver before any trial starts: processes that create a store together fail.
        """
        self._attempt("opening the store", self._open)

    def trial(self, trial_dir: Path) -> None:
        """Mirrors one trial or baseline; a second call changes nothing.

        Raises:
            ValueError: if the row on disk is damaged.
        """
        row = read_row(trial_dir)
        if not self._behind:
            self._attempt(f"writing {row.trial_id}", lambda: self._write_trial(trial_dir, row))

    def finish(self) -> None:
        """Gives the parent run results table, report and status; catches up if needed."""
        rows = self._rows()
        if not self._behind:
            self._attempt("writing the results table", lambda: self._write_study(rows))
            return

        def everything() -> None:
            for row in rows:
                self._write_trial(self._trial_dir(row), row)
            self._write_study(rows)

        # The store failed minutes ago: ask it once, without the waits.
        self.problems.clear()
        self._attempt("catching up with the study", everything, once=True)

    def _attempt(self, what: str, action: Callable[[], None], *, once: bool = False) -> None:
        for wait_s in (None,) if once else (*RETRY_WAITS_S, None):
            try:
                with _environment(**QUIET):
                    self._open()
                    action()
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
        text = f"{type(last).__name__}: {first_line}".replace(
            self.tracking_uri, without_password(self.tracking_uri)
        )
        self.problems.append(MirrorProblem(what=what, error=text, advice=advice))

    def _open(self) -> None:
        """Connects, and finds or creates experiment and parent run; cheap when that is done."""
        probe_sqlite(self.tracking_uri)
        if self._client is None:
            self._client = _client(self.tracking_uri)
        with _environment(MLFLOW_HTTP_REQUEST_TIMEOUT=str(PROBE_S)):
            experiment = self._client.get_experiment_by_name(self.name)
        if self._parent_id:
            return
        if experiment is None:
            self._experiment_id = self._client.create_experiment(
                self.name, artifact_location=artifact_location(self.tracking_uri, self.study_dir)
            )
        elif experiment.lifecycle_stage == "deleted":
            raise MirrorError(
                f"the experiment {self.name!r} is deleted in this store; restore it with mlflow "
                f"experiments restore -x {experiment.experiment_id}, or give another store"
            )
        else:
            self._experiment_id = experiment.experiment_id
        self._parent_id = self._find_or_create_parent().info.run_id
        left = MirrorRuns.read(self.study_dir)
        if left is not None and left == self.mirrored(left.runs):
            self._runs = left.runs

    def _find_or_create_parent(self) -> Run:
        client = self._connected()
        if parent := self._find("tags.`phenoscale.kind` = 'study'"):
            return parent
        starts = [start_ms(self._trial_dir(row), row) for row in self._rows()]
        return client.create_run(
            self._experiment_id,
            start_time=min(starts, default=_now_ms()),
            run_name=self.name,
            tags={"phenoscale.kind": "study", "phenoscale.study": self.name},
        )

    def _find(self, condition: str) -> Run | None:
        # Oldest first: should a lost answer ever have made two, all later calls pick the same one.
        found = self._connected().search_runs(
            [self._experiment_id], condition, max_results=1, order_by=["attributes.start_time ASC"]
        )
        return found[0] if found else None

    def _connected(self) -> MlflowClient:
        assert self._client is not None, "call _open first"
        return self._client

    def _rows(self) -> list[ResultsRow]:
        return read_rows(self.study_dir) if (self.study_dir / "trials").is_dir() else []

    def _trial_dir(self, row: ResultsRow) -> Path:
        return self.study_dir / "trials" / row.trial_id

    def _write_trial(self, trial_dir: Path, row: ResultsRow) -> None:
        client = self._connected()
        row_digest = content_digest([trial_dir / ROW_FILE])
        names = (ROW_FILE, CURVE_FILE, WORKERS_FILE, PANEL_FILE, TRIAL_FILE)
        files = [trial_dir / name for name in names]
        digest = content_digest(files)
        # A row is one measurement: a trial that is measured again becomes a new run beside it.
        run = self._find(
            f"tags.`phenoscale.row` = '{row_digest}' "
            f"and tags.`mlflow.parentRunId` = '{self._parent_id}'"
        )
        if run is None:
            run = client.create_run(
                self._experiment_id,
                start_time=start_ms(trial_dir, row),
                run_name=row.trial_id,
                tags=trial_tags(row)
                | {"phenoscale.row": row_digest, "mlflow.parentRunId": self._parent_id},
            )
        self._leave_run(row.trial_id, run.info.run_id)
        if run.data.tags.get("phenoscale.mirrored") == digest:
            return
        run_id, start = run.info.run_id, run.info.start_time
        self._log_params(run_id, trial_params(trial_dir, row))
        curve = read_optional_json(trial_dir / CURVE_FILE, {})
        workers = read_optional_json(trial_dir / WORKERS_FILE, [])
        self._log_metrics(
            run_id,
            [
                *curve_points(curve, row, start),
                *final_points(row, start),
                *worker_points(workers, row, start),
            ],
        )
        for path in files:
            if path.exists() and path.name in (ROW_FILE, PANEL_FILE):
                client.log_artifact(run_id, str(path))
        client.set_terminated(run_id, "FINISHED", end_time=start + duration_ms(row))
        client.set_tag(run_id, "phenoscale.mirrored", digest)

    def mirrored(self, runs: dict[str, str]) -> MirrorRuns:
        """Where these runs of trials are, for whoever links to them."""
        return MirrorRuns(
            tracking_uri=without_password(self.tracking_uri),
            experiment_id=self._experiment_id,
            parent=self._parent_id,
            runs=runs,
        )

    def _leave_run(self, trial_id: str, run_id: str) -> None:
        """For the report, which is written before the mirror is finished and links to its runs."""
        if self._runs.get(trial_id) != run_id:
            self._runs = dict(sorted({**self._runs, trial_id: run_id}.items()))
            self.mirrored(self._runs).write(self.study_dir)

    def _write_study(self, rows: Sequence[ResultsRow]) -> None:
        client = self._connected()
        table = json.dumps([row.as_dict() for row in rows], indent=1)
        present = [p for p in (self.study_dir / name for name in STUDY_ARTIFACTS) if p.exists()]
        figures = sorted((self.study_dir / FIGURES).glob("*"))
        pictures = [path for path in figures if path.suffix in (".png", ".svg")]
        digest = content_digest([*present, *pictures], table)
        run = client.get_run(self._parent_id)
        if run.data.tags.get("phenoscale.mirrored") == digest:
            return
        comparisons = read_optional_json(self.study_dir / COMPARISONS_FILE, {})
        failures = read_optional_json(self.study_dir / FAILURES_FILE, [])
        study = read_optional_json(self.study_dir / STUDY_FILE, {})
        now = _now_ms()
        scores = headline(rows, study, comparisons, len(failures))
        self._log_metrics(self._parent_id, [(key, value, now, 0) for key, value in scores.items()])
        self._log_params(
            self._parent_id,
            flat({k: study[k] for k in ("readout", "metric", "alignment", "screen") if k in study}),
        )
        client.log_text(self._parent_id, table, "results.json")
        client.log_text(self._parent_id, rows_csv(rows), "results.csv")
        for path in present:
            client.log_artifact(self._parent_id, str(path))
        for path in pictures:
            client.log_artifact(self._parent_id, str(path), FIGURES)
        wall_ms = round(1000 * study["wall_s"]) if study.get("wall_s") else None
        end = now if wall_ms is None else run.info.start_time + wall_ms
        client.set_terminated(self._parent_id, "FAILED" if failures else "FINISHED", end_time=end)
        client.set_tag(self._parent_id, "phenoscale.mirrored", digest)

    def _log_params(self, run_id: str, params: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        items = [Param(key, value) for key, value in params.items()]
        for first in range(0, len(items), PARAMS_PER_CALL):
            self._connected().log_batch(run_id, params=items[first : first + PARAMS_PER_CALL])

    def _log_metrics(self, run_id: str, points: Sequence[Point]) -> None:
        from mlflow.entities import Metric

        for first in range(0, len(points), METRICS_PER_CALL):
            chunk = [Metric(*point) for point in points[first : first + METRICS_PER_CALL]]
            self._connected().log_batch(run_id, metrics=chunk)


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


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
