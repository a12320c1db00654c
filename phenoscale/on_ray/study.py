"""A whole study: grid, comparisons, report, mirror. What an experiment's `main` calls."""

from __future__ import annotations

import dataclasses
import threading
import time
from typing import Any

import psutil
from rich.console import Console

from phenoscale.bill import ScreenSize, bill
from phenoscale.compare import write_comparisons
from phenoscale.config import Study, Trial
from phenoscale.maps.gene_pairs import known_pairs
from phenoscale.maps.relationships import load_databases
from phenoscale.maps.score import ALIGNMENTS, HEADLINE_ALIGNMENT
from phenoscale.on_ray.tune import pending, run_grid
from phenoscale.progress import StudyProgress
from phenoscale.reports.report import write_report
from phenoscale.results import read_optional_json, read_row, read_rows, write_json
from phenoscale.screens.index import ScreenIndex
from phenoscale.study_files import STUDY_FILE, StudyFiles
from phenoscale.tracking import StudyMirror


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

    Returns:
        Exit code: 0, or 1 when a trial failed.

    Raises:
        ValueError: if the directory holds a study of another screen, or rows of another version.
    """
    start = time.time()
    index = ScreenIndex.open(files.index)
    if (files.study_dir / "trials").is_dir():
        read_rows(files.study_dir)  # rows of another version are refused now, not after the work
    _check_databases(study, files, index)
    write_description(study, files, index, screen, command, facts or {}, None)
    files.write()
    lines = {line.trial.id: line for line in bill(study, screen)}
    mirror = StudyMirror(files.study_dir, tracking_uri)
    mirror.open()
    left = pending(study, files)
    console.print(
        f"[bold]{study.name}[/bold]: {len(left)} of {len(study.trials)} trials to run, "
        f"{index.num_sites:,} sites, {len(index.channels)} channels",
        highlight=False,
    )
    memory = _PeakMemory()
    with memory, StudyProgress(console, {t.id: lines[t.id].cost for t in left}) as progress:
        failures = run_grid(
            study,
            files,
            _Listener(files, progress, mirror),
            cost=lambda trial: sum(lines[trial.id].cost),
            address=address,
        )
    console.print("  comparing, writing the report, mirroring to MLflow ...", highlight=False)
    comparisons = write_comparisons(study, files)
    measured = {"wall_s": time.time() - start, "peak_memory_gib": memory.peak_gib}
    kept = measured if left else None
    write_description(study, files, index, screen, command, facts or {}, kept)
    report = write_report(files.study_dir)
    mirror.finish()
    for problem in mirror.problems:
        console.print(f"[yellow]{problem}[/yellow]", highlight=False)
    told, seeds = comparisons["best"], len(comparisons["seeds"])
    told = f"{told} and its other seeds ({seeds} in all)" if seeds > 1 else told
    for difference in comparisons["differences"]:
        console.print(
            f"  {told} less {difference['against']}: {difference['value']:+.3f} "
            f"[{difference['low']:+.3f}, {difference['high']:+.3f}]",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    console.print(f"  report   {report}", highlight=False, soft_wrap=True)
    console.print(
        f"  rows     phenoscale results {files.study_dir}", highlight=False, soft_wrap=True
    )
    console.print(f"  MLflow   phenoscale ui {files.study_dir}", highlight=False, soft_wrap=True)
    console.print(f"  next     phenoscale plan {files.study_dir}", highlight=False, soft_wrap=True)
    if failures:
        console.print(
            f"[red]{len(failures)} trials failed[/red]: {', '.join(failures)}",
            highlight=False,
            soft_wrap=True,
        )
    return 1 if failures else 0


def write_description(
    study: Study,
    files: StudyFiles,
    index: ScreenIndex,
    size: ScreenSize,
    command: str,
    facts: dict[str, Any],
    measured: dict[str, float] | None,
) -> None:
    """Writes study.json; refuses to mix two screens in one directory.

    `measured` of None keeps the figures of the run that did the work.
    """
    path = files.study_dir / STUDY_FILE
    old = read_optional_json(path, {})
    given = old.get("screen", {}).get("fingerprint", index.fingerprint)
    if given != index.fingerprint:
        raise ValueError(
            f"{files.study_dir} holds a study of the screen {given[:12]}, this is the screen "
            f"{index.fingerprint[:12]}. Give another directory, or remove that one."
        )
    kept = {name: old[name] for name in ("wall_s", "peak_memory_gib") if name in old}
    metadata = index.metadata()
    classes = index.num_classes
    recalled = study.metric.startswith("recall")
    write_json(
        path,
        {
            "name": study.name,
            "question": study.question,
            # Whoever goes on with a study need not know what was told of its screen.
            "screen": old.get("screen", {})
            | {
                "sites": index.num_sites,
                "wells": len(metadata.groupby(["experimental_batch", "plate", "well"])),
                "genes": int(metadata["gene"].nunique()),
                "perturbations": classes,
                "experimental_batches": int(metadata["experimental_batch"].nunique()),
                "fingerprint": index.fingerprint,
                "channels": list(index.channels),
                **facts,
            },
            "size": dataclasses.asdict(size),
            "readout": study.readout,
            "every_block": study.every_block,
            "bootstrap_rounds": study.bootstrap_rounds,
            "metric": study.metric,
            "alignment": ALIGNMENTS[HEADLINE_ALIGNMENT if recalled else "none"],
            "chance": 0.10 if recalled else 1 / classes,
            "num_trials": len(study.trials),
            "command": command,
            **(kept if measured is None else measured),
        },
    )


def _check_databases(study: Study, files: StudyFiles, index: ScreenIndex) -> None:
    """Refuses relationships that the screen's genes have no part in now, not after training."""
    if not study.metric.startswith("recall"):
        return
    metadata = index.metadata()
    genes = metadata.loc[~metadata["negative_control"], "gene"].dropna().unique().tolist()
    for name, pairs in load_databases(files.relationships).items():
        try:
            known_pairs(genes, pairs)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error


class _Listener:
    """Passes a trial's news to the screen and, when its row is there, to MLflow."""

    def __init__(self, files: StudyFiles, progress: StudyProgress, mirror: StudyMirror) -> None:
        self._files = files
        self._progress = progress
        self._mirror = mirror

    def progress(self, update: dict[str, Any]) -> None:
        self._progress.progress(update)

    def done(self, trial: Trial) -> None:
        directory = self._files.trial_dir(trial)
        self._progress.done(trial, read_row(directory))
        self._mirror.trial(directory)

    def failed(self, trial: Trial, reason: str) -> None:
        self._progress.failed(trial, reason)


class _PeakMemory:
    """Samples the proportional memory of this process and all its children, once in two seconds."""

    def __init__(self) -> None:
        self.peak_gib = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> _PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        me = psutil.Process()
        while not self._stop.wait(2):
            total = 0
            for process in [me, *me.children(recursive=True)]:
                try:
                    total += process.memory_full_info().pss  # shared pages count once over all
                except psutil.Error:  # it has just ended
                    continue
            self.peak_gib = max(self.peak_gib, total / 2**30)
