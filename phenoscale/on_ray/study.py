"""A whole study: grid, comparisons, report, mirror. What an experiment's `main` calls."""

from __future__ import annotations

import contextlib
import time
from typing import Any

from rich.console import Console

from phenoscale.bill import Line, ScreenSize, bill
from phenoscale.budget import Budget
from phenoscale.closing import say_failed, say_interrupted, say_left_over, say_result
from phenoscale.compare import write_comparisons
from phenoscale.config import Study, Trial
from phenoscale.description import check_databases, check_resumable, write_description
from phenoscale.failures import Failure
from phenoscale.memory_watch import PeakMemory
from phenoscale.on_ray.capacity import Cluster, check_room
from phenoscale.on_ray.tune import job_of, on_cluster, pending, run_grid
from phenoscale.progress import StudyProgress
from phenoscale.reports.report import write_report
from phenoscale.results import ROW_FILE, read_row, read_rows
from phenoscale.screens.index import ScreenIndex
from phenoscale.status import StatusBoard, spent_hours
from phenoscale.study_files import TRIALS, StudyFiles
from phenoscale.study_storage import pull_study, push_study
from phenoscale.tracking import StudyMirror

INTERRUPTED = 130
"""Exit code of a study that Ctrl-C ended, as shells have it."""


def run_study(
    study: Study,
    files: StudyFiles,
    screen: ScreenSize,
    *,
    command: str,
    console: Console,
    facts: dict[str, Any] | None = None,
    tracking_uri: str | None = None,
    address: str | None = None,
    at_once: int | None = None,
    max_gpu_hours: float | None = None,
    resume: bool = False,
) -> int:
    """Runs what is missing of a study, compares, reports and mirrors it.

    Args:
        study: the grid.
        files: where it reads and writes.
        screen: its counts, for the bill.
        command: how to run it again; stands in the report.
        console: where a person watches.
        facts: more about the screen, for the report.
        tracking_uri: MLflow store or server; a SQLite file in the study's directory by default.
        address: Ray cluster; a local one by default.
        at_once: most trials at a time; by default as many as there is room for.
        max_gpu_hours: starts no trial beyond these, earlier runs of the study included.
        resume: refuses to begin a study that is not there.

    Returns:
        Exit code: 0, or 1 when a trial failed, 130 when it was interrupted.

    Raises:
        ValueError: if the directory holds a study of another screen, or rows of another version, if
            there is none to resume, or if the cluster can never hold some trial: before anything is
            written.
    """
    start = time.time()
    pull_study(files)
    if resume:
        check_resumable(files)
    index = ScreenIndex.open(files.index)
    if (files.study_dir / TRIALS).is_dir():
        read_rows(files.study_dir)  # rows of another version are refused now, not after the work
    check_databases(study, files, index)
    lines = {line.trial.id: line for line in bill(study, screen)}
    left, mirror = pending(study, files), StudyMirror(files.study_dir, tracking_uri)
    with contextlib.ExitStack() as ray_runs:
        cluster = ray_runs.enter_context(on_cluster(address)) if left else Cluster(groups=())
        if left:
            check_room(left, cluster)
        write_description(study, files, index, screen, command, facts or {}, None)
        files.write()
        (files.study_dir / TRIALS).mkdir(exist_ok=True)  # even if the budget allows none
        push_study(files)
        mirror.open()
        console.print(
            f"[bold]{study.name}[/bold]: {len(left)} of {len(study.trials)} trials to run, "
            f"{index.num_sites:,} sites, {len(index.channels)} channels",
            highlight=False,
        )
        budget = _budget(study, files, lines, cluster, max_gpu_hours)
        with (
            _board(study, files, lines, left, budget) as board,
            PeakMemory() as memory,
        ):
            try:
                with StudyProgress(console, board, len(left)) as progress:
                    failures = run_grid(
                        study,
                        files,
                        _Listener(files, board, progress, mirror),
                        cost=lambda trial: sum(lines[trial.id].cost),
                        at_once=at_once,
                        budget=budget,
                    )
            except KeyboardInterrupt:
                board.says("interrupted")
                mirror.finish()
                say_interrupted(console, len(pending(study, files)), len(study.trials))
                return INTERRUPTED
            ray_runs.close()
            over = _not_started(study, files, budget, failures)
            for name, reason in over.items():
                board.not_started(name, reason)
            board.says("finishing")
            console.print(
                "  comparing, writing the report, mirroring to MLflow ...", highlight=False
            )
            comparisons = write_comparisons(study, files)
            measured = {"wall_s": time.time() - start, "peak_memory_gib": memory.peak_gib}
            kept = measured if left else None
            write_description(study, files, index, screen, command, facts or {}, kept)
            report = write_report(files.study_dir)
            mirror.finish()
            board.says("ended")
    push_study(files)  # the board's own pushes may fail, this one may not
    say_result(console, files, comparisons, report, mirror)
    say_left_over(console, over, budget)
    say_failed(console, failures)
    return 1 if failures else 0


def _board(
    study: Study, files: StudyFiles, lines: dict[str, Line], left: list[Trial], budget: Budget
) -> StatusBoard:
    """The status of the study, whose trials in `left` are to run."""
    return StatusBoard(
        files.study_dir,
        study.name,
        [trial.id for trial in study.trials],
        {trial.id: lines[trial.id].cost for trial in left},
        hours=budget.hours,
        max_gpu_hours=budget.limit_hours,
        push=lambda: push_study(files),
    )


def _budget(
    study: Study,
    files: StudyFiles,
    lines: dict[str, Line],
    cluster: Cluster,
    max_gpu_hours: float | None,
) -> Budget:
    """The meter of the study, with what earlier runs of it spent."""
    jobs = [job_of(line.trial, cluster, sum(line.cost), line.gpu_hours) for line in lines.values()]
    spent = spent_hours(files.study_dir)
    ended = []
    for trial in study.trials:
        directory = files.trial_dir(trial)
        if (directory / ROW_FILE).exists():
            ended.append(trial.id)
            if not spent.get(trial.id):
                row = read_row(directory)
                seconds = row.train_s + row.embed_s + row.score_s + row.overhead_s
                spent[trial.id] = seconds * row.workers / 3600
    return Budget(jobs, limit_hours=max_gpu_hours, spent_hours=spent, ended=ended)


def _not_started(
    study: Study, files: StudyFiles, budget: Budget, failures: dict[str, Failure]
) -> dict[str, str]:
    """Why trials that have neither a row nor a failure did not run."""
    over = {}
    for trial in pending(study, files):
        if trial.id not in failures:
            hours = budget.expected_hours(trial.id)
            expected = "unknown" if hours is None else f"{hours:.2g} GPU-hours"
            over[trial.id] = f"over budget: expected {expected}"
    return over


class _Listener:
    """Passes a trial's news to the status, the screen and MLflow."""

    def __init__(
        self,
        files: StudyFiles,
        board: StatusBoard,
        progress: StudyProgress,
        mirror: StudyMirror,
    ) -> None:
        self._files = files
        self._board = board
        self._progress = progress
        self._mirror = mirror

    def progress(self, update: dict[str, Any]) -> None:
        self._board.told(update)
        if update["phase"] == "retry":
            self._progress.retried(update["trial"], update["kind"], update["reason"])
        self._progress.progress()

    def done(self, trial: Trial) -> None:
        directory = self._files.trial_dir(trial)
        self._board.done(trial.id)
        self._progress.done(trial, read_row(directory))
        self._mirror.trial(directory)

    def failed(self, trial: Trial, reason: str) -> None:
        self._board.failed(trial.id, reason)
        self._progress.failed(trial, reason)
        self._mirror.failed(trial, reason)
