"""What the grid costs beyond training, embedding and scoring.

Command: python -m benchmarks.overhead [--quick] [--json FILE]

A trial's overhead is the time it held its slot less its own three phases; it counts from the end of
the slot's previous trial, so that scheduling, process starts and imports are in it. The first trial
of a slot pays for the start of its process and is shown apart.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure, figure, publish
from experiments import grid
from phenoscale.config import Crops, Placement, Study, Trial
from phenoscale.on_ray.tune import run_grid
from phenoscale.results import ResultsRow, read_rows
from phenoscale.screens.build import build_index
from phenoscale.screens.layouts.manifest import read_manifest
from phenoscale.screens.simulated.planted import ScreenSpec
from phenoscale.screens.simulated.synthetic import simulate_screen
from phenoscale.study_files import StudyFiles

GOAL_IN_PLACE_S, GOAL_RAY_TRAIN_S = 1.0, 9.0
SCREEN = ScreenSpec(
    num_complexes=8, num_opposed=2, experimental_batches=2, controls_per_batch=16, size_px=64
)
HELD_OUT = ("batch2/plate2",)


class _Silent:
    def progress(self, update: dict[str, Any]) -> None:
        """Nothing is shown."""

    def done(self, trial: Trial) -> None:
        """Nothing is shown."""

    def failed(self, trial: Trial, reason: str) -> None:
        """A benchmark whose trials fail measures nothing."""
        raise RuntimeError(f"{trial.id}: {reason}")


def measure(in_place: int, ray_train: int, workers: int = 1) -> list[Figure]:
    """Runs that many small trials each way and returns their overheads."""
    crops = Crops(size_px=32, passes=2, global_batch_size=32, held_out=HELD_OUT)
    placements = [Placement()] * in_place
    placements += [Placement(launcher="ray_train", workers=workers)] * ray_train
    trials = tuple(
        grid.trained("mae", "nano/8", crops, lr=1e-3, mask_ratio=0.5, seed=seed, placement=place)
        for seed, place in enumerate(placements)
    )
    study = Study(name="overhead", question="What does the grid cost?", trials=trials)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "screen"
        build_index(read_manifest(simulate_screen(SCREEN, root)), root, root / "index.parquet")
        files = StudyFiles(
            study_dir=Path(folder) / "study",
            index=root / "index.parquet",
            relationships=root / "relationships.csv",
        )
        # Larger seeds cost the same; the order of trials is the order of seeds.
        run_grid(study, files, _Silent(), cost=lambda trial: -trial.seed, at_once=1)
        rows = sorted(read_rows(files.study_dir), key=lambda row: row.seed)
    here = [row for row in rows if row.launcher == "in_place"]
    there = [row for row in rows if row.launcher == "ray_train"]
    return [
        *_figures("in place", here, GOAL_IN_PLACE_S),
        *_figures("one worker under Ray Train", there, GOAL_RAY_TRAIN_S),
    ]


def _figures(name: str, rows: list[ResultsRow], goal: float) -> list[Figure]:
    # The first trial of each kind starts the slot's process; it is the costly one.
    overhead = sorted(row.overhead_s for row in rows)
    warm, first = overhead[:-1], overhead[-1]
    return [
        figure(f"overhead {name}, median", statistics.median(warm), "s/trial", goal, at_most=True),
        figure(f"overhead {name}, with the start of its process", first, "s/trial"),
        figure(
            f"CPU of a trial {name}, median", statistics.median(r.cpu_s for r in rows), "s/trial"
        ),
    ]


def main() -> None:
    """Measures and publishes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="four trials in place and two on workers"
    )
    parser.add_argument("--json", type=Path, help="file for the same figures")
    arguments = parser.parse_args()
    figures = measure(4, 2) if arguments.quick else measure(12, 4)
    publish(figures, arguments.json)


if __name__ == "__main__":
    main()
