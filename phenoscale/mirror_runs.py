"""The runs of a study in one MLflow store: found where they are, written where something lacks.

Everything may be done twice: runs are looked for by their tags before they are made, and the times
of points follow from what was written first. The client is given, since `tracking.py` alone imports
MLflow.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from phenoscale.config import Trial
from phenoscale.mirror_links import MirrorRuns
from phenoscale.mirror_model import BestEncoder, model_name, register
from phenoscale.mirror_store import MirrorError, artifact_location, without_password
from phenoscale.mirror_study import StudyOnDisk, headline, rows_csv, study_name, study_note
from phenoscale.mirror_values import (
    MIRROR_FORMAT,
    TABLE_FILE,
    Point,
    content_digest,
    curve_points,
    duration_ms,
    failure_tags,
    final_points,
    flat,
    metric_table,
    start_ms,
    trial_params,
    trial_tags,
)
from phenoscale.mirror_view import VIEW_TAG, saved_view
from phenoscale.results import CURVE_FILE, ROW_FILE, ResultsRow, read_optional_json
from phenoscale.study_files import FIGURES, PANEL_FILE, REPORT_FILE, TRIAL_FILE, WORKERS_FILE

Client = Any
"""An `mlflow.MlflowClient`."""


class Log(Protocol):
    """Writes points, parameters and tags of a run in few calls, each at most once."""

    def __call__(  # noqa: D102
        self,
        run_id: str,
        *,
        points: Sequence[Point] = (),
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None: ...


class StudyRuns:
    """Experiment, parent run and runs of trials of one study."""

    def __init__(self, study_dir: Path, tracking_uri: str, client: Client, log: Log) -> None:
        """Finds or creates experiment and parent run.

        Args:
            study_dir: the study's directory.
            tracking_uri: of the store.
            client: of the store.
            log: writes into a run.

        Raises:
            MirrorError: if the experiment was deleted.
            ValueError: if a row on disk is damaged.
        """
        self._dir = study_dir
        self._uri = tracking_uri
        self._client = client
        self._log = log
        self._runs: dict[str, str] = {}  # trial id -> run id
        study = StudyOnDisk.read(study_dir)
        self._experiment_id = self._find_or_create_experiment(study)
        self._parent_id = ""
        self._parent_id = self._find_or_create_parent(study)
        left = MirrorRuns.read(study_dir)
        if left is not None and left == self._mirrored(left.runs):
            self._runs = left.runs

    def _find_or_create_experiment(self, study: StudyOnDisk) -> str:
        experiment = self._client.get_experiment_by_name(study.name)
        if experiment is None:
            where = artifact_location(self._uri, self._dir)
            made = self._client.create_experiment(study.name, artifact_location=where)
            experiment = self._client.get_experiment(made)
        if experiment.lifecycle_stage == "deleted":
            raise MirrorError(
                f"the experiment {study.name!r} is deleted in this store; restore it with mlflow "
                f"experiments restore -x {experiment.experiment_id}, or give another store"
            )
        metric = str(study.facts.get("metric", "score"))
        tags = {
            VIEW_TAG: saved_view(metric, experiment.creation_time),
            "mlflow.experimentKind": "custom_model_development",  # opens on runs, not on traces
            "mlflow.experiment.primaryMetric.name": metric,
            "mlflow.experiment.primaryMetric.greaterIsBetter": "True",
        }
        for key, value in tags.items():
            if experiment.tags.get(key) != value:
                self._client.set_experiment_tag(experiment.experiment_id, key, value)
        return str(experiment.experiment_id)

    def _find_or_create_parent(self, study: StudyOnDisk) -> str:
        if parent := self._find("tags.`phenoscale.kind` = 'study'"):
            return str(parent.info.run_id)
        starts = [start_ms(self._trial_dir(row.trial_id), row) for row in study.rows]
        parent = self._client.create_run(
            self._experiment_id,
            start_time=min(starts, default=time.time_ns() // 1_000_000),
            run_name=study.name,
            tags={"phenoscale.kind": "study", "phenoscale.study": study.name},
        )
        self._note(str(parent.info.run_id), study, "")
        return str(parent.info.run_id)

    def trial(self, trial_dir: Path, row: ResultsRow) -> None:
        """Writes the run of one trial or baseline."""
        row_digest = content_digest([trial_dir / ROW_FILE])
        names = (ROW_FILE, CURVE_FILE, WORKERS_FILE, PANEL_FILE, TRIAL_FILE)
        files = [trial_dir / name for name in names]
        digest = content_digest(files, MIRROR_FORMAT)
        # A row is one measurement: a trial that is measured again becomes a new run beside it.
        run = self._child(f"tags.`phenoscale.row` = '{row_digest}'")
        if run is None:
            run = self._client.create_run(
                self._experiment_id,
                start_time=start_ms(trial_dir, row),
                run_name=row.trial_id,
                tags={"phenoscale.row": row_digest, "mlflow.parentRunId": self._parent_id},
            )
        run_id, start = run.info.run_id, run.info.start_time
        self._leave_run(row.trial_id, run_id)
        if run.data.tags.get("phenoscale.mirrored") == digest:
            return
        curve = read_optional_json(trial_dir / CURVE_FILE, {})
        self._log(
            run_id,
            points=[*final_points(row, start), *curve_points(curve, row, start)],
            params=trial_params(trial_dir, row),
            tags=trial_tags(row, study_name(self._dir)),
        )
        workers = read_optional_json(trial_dir / WORKERS_FILE, [])
        self._client.log_text(run_id, metric_table(row, workers), TABLE_FILE)
        for path in files:
            if path.exists() and path.name in (ROW_FILE, PANEL_FILE):
                self._client.log_artifact(run_id, str(path))
        if failure := self._child(f"tags.`phenoscale.failed` = '{row.trial_id}'"):
            made_good = {"phenoscale.superseded": run_id, "phenoscale.kind": "superseded"}
            self._log(failure.info.run_id, tags=made_good)
        self._client.set_terminated(run_id, "FINISHED", end_time=start + duration_ms(row))
        self._client.set_tag(run_id, "phenoscale.mirrored", digest)

    def failure(self, trial_id: str, trial: Trial | None, reason: str) -> None:
        """Writes the failed run of a trial, one however often it fails, with its last reason."""
        tags = failure_tags(trial_id, trial, study_name(self._dir), reason)
        run = self._child(f"tags.`phenoscale.failed` = '{trial_id}'")
        if run is None:
            run = self._client.create_run(
                self._experiment_id,
                run_name=trial_id,
                tags=tags | {"mlflow.parentRunId": self._parent_id},
            )
        elif any(run.data.tags.get(key) != value for key, value in tags.items()):
            self._log(run.info.run_id, tags=tags)
        if run.info.status != "FAILED":
            self._client.set_terminated(run.info.run_id, "FAILED")

    def study(self, study: StudyOnDisk) -> None:
        """Writes the parent run, and before it those of trials that this store has not seen."""
        for row in study.rows:
            if row.trial_id not in self._runs:
                self.trial(self._trial_dir(row.trial_id), row)
        table = json.dumps([row.as_dict() for row in study.rows], indent=1)
        top, pictures = study.artifacts
        digest = content_digest([*top, *pictures], MIRROR_FORMAT + table)
        run = self._client.get_run(self._parent_id)
        if run.data.tags.get("phenoscale.mirrored") == digest:
            return
        for failure in study.failures:
            trial = _trial_of(self._trial_dir(failure["trial_id"]))
            self.failure(failure["trial_id"], trial, failure["error"])
        shown = ("readout", "metric", "alignment", "screen")
        when = self._time_of(run, digest)
        self._log(
            self._parent_id,
            points=[(key, value, when, 0) for key, value in headline(study).items()],
            params=flat({k: study.facts[k] for k in shown if k in study.facts}),
        )
        self._client.log_text(self._parent_id, table, "results.json")
        self._client.log_text(self._parent_id, rows_csv(study.rows), "results.csv")
        for path in top:
            if path.name == REPORT_FILE:
                self._client.log_artifact(self._parent_id, str(path))
            else:  # errors in it may name addresses
                text = without_password(path.read_text())
                self._client.log_text(self._parent_id, text, path.name)
        for path in pictures:
            self._client.log_artifact(self._parent_id, str(path), FIGURES)
        self._note(self._parent_id, study, self._register(study))
        wall_s = study.facts.get("wall_s")
        end = when if wall_s is None else run.info.start_time + round(1000 * wall_s)
        status = "FAILED" if study.failures else "FINISHED"
        self._client.set_terminated(self._parent_id, status, end_time=end)
        self._client.set_tag(self._parent_id, "phenoscale.mirrored", digest)

    def _time_of(self, run: Any, digest: str) -> int:
        """When points of this content are: a second attempt must find the time of the first."""
        written, _, when = run.data.tags.get("phenoscale.writing", "").partition(" ")
        if written != digest:
            when = str(time.time_ns() // 1_000_000)
            self._client.set_tag(run.info.run_id, "phenoscale.writing", f"{digest} {when}")
        return int(when)

    def _register(self, study: StudyOnDisk) -> str:
        """Registers the best trial's encoder; a sentence about it."""
        row = study.best
        if row is None:
            return "No encoder is registered: the study has no best trial yet."
        best = BestEncoder(
            study_dir=self._dir,
            model=model_name(study.name),
            row=row,
            run_id=self._runs[row.trial_id],
            measured=content_digest([self._trial_dir(row.trial_id) / ROW_FILE]),
        )
        return register(self._client, best)

    def _note(self, parent_id: str, study: StudyOnDisk, encoder: str) -> None:
        """The text at the top of the experiment and of its parent run."""
        text = study_note(study, self._experiment_id, encoder)
        self._client.set_tag(parent_id, "mlflow.note.content", text)
        self._client.set_experiment_tag(self._experiment_id, "mlflow.note.content", text)

    def _find(self, condition: str) -> Any | None:
        # Oldest first: should a lost answer ever have made two, all later calls pick the same one.
        found = self._client.search_runs(
            [self._experiment_id], condition, max_results=1, order_by=["attributes.start_time ASC"]
        )
        return found[0] if found else None

    def _child(self, condition: str) -> Any | None:
        return self._find(f"{condition} and tags.`mlflow.parentRunId` = '{self._parent_id}'")

    def _trial_dir(self, trial_id: str) -> Path:
        return self._dir / "trials" / trial_id

    def _leave_run(self, trial_id: str, run_id: str) -> None:
        """For the report, which is written before the mirror is finished and links to its runs."""
        if self._runs.get(trial_id) != run_id:
            self._runs = dict(sorted({**self._runs, trial_id: run_id}.items()))
            self._mirrored(self._runs).write(self._dir)

    def _mirrored(self, runs: dict[str, str]) -> MirrorRuns:
        return MirrorRuns(
            tracking_uri=without_password(self._uri),
            experiment_id=self._experiment_id,
            parent=self._parent_id,
            runs=runs,
        )


def _trial_of(trial_dir: Path) -> Trial | None:
    """The trial that a folder is of; None where a failure came before it was written."""
    try:
        return Trial.from_dict(json.loads((trial_dir / TRIAL_FILE).read_text()))
    except (OSError, KeyError, TypeError, json.JSONDecodeError):
        return None
