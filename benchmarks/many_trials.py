"""Do many short trials all end, at what price each, and does memory stay as it is?

Command: python -m benchmarks.many_trials [--trials 200] [--ray-train] [--json FILE]

Trials of a real nano model, some steps each, through `run_study`: scheduler, mirror, comparisons
and report are the real ones. Lost are the trials without a row, or without a run in MLflow. The
price of a trial is the time of its slot less its own phases, as in `overhead`, without those that
started their process. Memory is the proportional share (PSS) of one process alone, the driver's
after a collection of its garbage: from the 20th row to the last, of the driver and of the process
that ran most of the trials.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import io
import statistics
import tempfile
import threading
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

from benchmarks.figures import Figure, figure, publish
from experiments import grid
from phenoscale.config import Crops, Placement, Study
from phenoscale.on_ray.study import run_study
from phenoscale.results import ROW_FILE, ResultsRow, read_rows
from phenoscale.screens.build import build_index
from phenoscale.screens.index import ScreenIndex
from phenoscale.screens.layouts.manifest import read_manifest
from phenoscale.screens.simulated.planted import ScreenSpec
from phenoscale.screens.simulated.synthetic import simulate_screen
from phenoscale.study_files import StudyFiles
from phenoscale.tracking import StudyMirror

GOAL_IN_PLACE_S, GOAL_RAY_TRAIN_S, GOAL_GROWTH = 1.0, 9.0, 1.10
SETTLED = 20  # rows after which memory should stay
SCREEN = ScreenSpec(
    num_complexes=8, num_opposed=2, experimental_batches=2, controls_per_batch=16, size_px=64
)
CROPS = Crops(size_px=32, passes=1, global_batch_size=32, held_out=("batch2/plate2",))
_LOOK_S = 0.5
_TRAINABLE = "ray::ImplicitFunc"  # as Tune calls the process of a trial


class MemoryLog:
    """Memory of the driver and of the trials' processes, by the number of rows on disk."""

    def __init__(self, study_dir: Path) -> None:
        self.driver: dict[int, Any] = {}
        self.trials: dict[int, dict[int, Any]] = {}
        self._study_dir, self._stop = study_dir, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> MemoryLog:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        me = psutil.Process()
        while not self._stop.wait(_LOOK_S):
            rows = sum(1 for _ in self._study_dir.glob(f"trials/*/{ROW_FILE}"))
            if rows in self.driver:
                continue
            gc.collect()
            self.driver[rows] = me.memory_full_info()
            for process in me.children(recursive=True):
                try:
                    if process.name().startswith(_TRAINABLE[:15]):
                        found = self.trials.setdefault(process.pid, {})
                        found[rows] = process.memory_full_info()
                except psutil.Error:  # it has just ended
                    continue


def run_many(trials: int, place: Placement, folder: Path) -> tuple[StudyFiles, int, MemoryLog]:
    """Runs that many trials; their files, the study's exit code and what memory was."""
    screen = folder / "screen"
    build_index(read_manifest(simulate_screen(SCREEN, screen)), screen, screen / "index.parquet")
    study = Study(
        name="many",
        question="Do many short trials all end?",
        trials=tuple(
            grid.trained(
                "mae", "nano/8", CROPS, lr=1e-3, mask_ratio=0.5, seed=seed, placement=place
            )
            for seed in range(trials)
        ),
        bootstrap_rounds=200,
    )
    files = StudyFiles(
        study_dir=folder / "many",
        index=screen / "index.parquet",
        relationships=(str(screen / "complexes.csv"),),
    )
    size = grid.screen_size(ScreenIndex.open(files.index), CROPS.held_out)
    with MemoryLog(files.study_dir) as memory:
        code = run_study(
            study, files, size, command="none", console=Console(file=io.StringIO(), width=120)
        )
    return files, code, memory


def figures_of(
    rows: list[ResultsRow], trials: int, mirrored: int, memory: MemoryLog, goal_s: float
) -> list[Figure]:
    """The figures of a study that has ended."""
    prices = sorted(row.overhead_s for row in rows)
    started = max(1, len(memory.trials))
    warm = prices[:-started] or prices  # the dearest started their process
    found = [
        figure("trials without a row", trials - len(rows), "", 0, at_most=True),
        figure("trials without a run in MLflow", trials - mirrored, "", 0, at_most=True),
        figure("processes that ran trials", len(memory.trials), ""),
        figure("price of a trial, median", statistics.median(warm), "s", goal_s, at_most=True),
        figure("price of a trial, 95th of 100", warm[int(0.95 * (len(warm) - 1))], "s"),
        figure("price of a trial that starts its process", prices[-1], "s"),
        figure("CPU of a trial, median", statistics.median(row.cpu_s for row in rows), "s"),
    ]
    if trials > SETTLED:
        found += _growth("driver", memory.driver)
        if memory.trials:
            longest = max(memory.trials.values(), key=len)
            found += _growth("longest process of trials", longest)
    return found


def _growth(name: str, seen: dict[int, Any]) -> list[Figure]:
    """Of one process: memory once settled and at the last row, and their ratio."""
    settled = [rows for rows in seen if rows >= SETTLED]
    if not settled:
        return []
    first, last = seen[min(settled)], seen[max(settled)]
    return [
        figure(f"{name}, PSS at row {min(settled)}", first.pss / 2**20, "MiB"),
        figure(f"{name}, PSS at row {max(settled)}", last.pss / 2**20, "MiB"),
        figure(f"{name}, RSS at row {min(settled)}", first.rss / 2**20, "MiB"),
        figure(f"{name}, RSS at row {max(settled)}", last.rss / 2**20, "MiB"),
        figure(f"{name}, growth of PSS", last.pss / first.pss, "", GOAL_GROWTH, at_most=True),
    ]


def main() -> None:
    """Measures and publishes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=200, help="how many")
    parser.add_argument("--ray-train", action="store_true", help="each on a Ray Train worker")
    parser.add_argument("--json", type=Path, help="file for the same figures")
    arguments = parser.parse_args()
    place, goal_s = Placement(), GOAL_IN_PLACE_S
    if arguments.ray_train:
        place, goal_s = dataclasses.replace(place, launcher="ray_train"), GOAL_RAY_TRAIN_S
    with tempfile.TemporaryDirectory() as folder:
        files, code, memory = run_many(arguments.trials, place, Path(folder))
        mirror = StudyMirror(files.study_dir)
        mirror.open()
        mirrored = _mirrored(mirror)
        rows = read_rows(files.study_dir)
    if not rows:
        raise SystemExit("no trial left a row, so nothing was measured")
    figures = figures_of(rows, arguments.trials, mirrored, memory, goal_s)
    publish(figures, arguments.json, [f"exit code of the study: {code}"])


def _mirrored(mirror: StudyMirror) -> int:
    """Runs of trials that the store holds."""
    import sqlite3

    with sqlite3.connect(mirror.study_dir / "mlflow.db") as store:
        found = store.execute("SELECT COUNT(DISTINCT value) FROM tags WHERE key = 'trial_id'")
        return int(found.fetchone()[0])


if __name__ == "__main__":
    main()
