"""What Ray costs a trial: in the time of a step, and beyond training, embedding and scoring.

Command: python -m benchmarks.overhead [--quick] [--json FILE]

Step time: one trial trained by plain torch in a process of its own, which also cuts its crops; in
place under Ray Tune, with crops that Ray Data cuts beside it; by Ray Train alone; and by Tune and
Train together, in turn, some rounds. Ratios of the median steps, in the same round: to plain torch,
and of what Ray Train adds to the trial in place, whose crops come the same way.

Fixed cost: the time a trial held its slot less its own three phases; it counts from the end of the
slot's previous trial, so that scheduling, process starts and imports are in it. The first trial
of a slot pays for the start of its process and is shown apart.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import multiprocessing
import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure, figure, publish
from experiments import grid
from phenoscale.config import Crops, Placement, Study, Trial
from phenoscale.fit import checkpoints_of, fit_here, write_trial
from phenoscale.on_ray.start import start_ray, stop_ray
from phenoscale.on_ray.train import train_group
from phenoscale.on_ray.tune import run_grid
from phenoscale.parallel import prepare_process
from phenoscale.results import ResultsRow, read_rows
from phenoscale.screens.build import build_index
from phenoscale.screens.index import ScreenIndex
from phenoscale.screens.layouts.manifest import read_manifest
from phenoscale.screens.simulated.planted import ScreenSpec
from phenoscale.screens.simulated.synthetic import simulate_screen
from phenoscale.study_files import StudyFiles

GOAL_IN_PLACE_S, GOAL_RAY_TRAIN_S, GOAL_STEP = 1.0, 9.0, 1.05
SCREEN = ScreenSpec(
    num_complexes=8, num_opposed=2, experimental_batches=2, controls_per_batch=16, size_px=64
)
HELD_OUT = ("batch2/plate2",)
NANO = Crops(size_px=64, passes=20, global_batch_size=64, held_out=HELD_OUT)
SMALL = Crops(size_px=128, passes=1, global_batch_size=16, held_out=HELD_OUT)
_WARM_UP = 3  # steps that are left out
_WAYS = {
    "plain torch": Placement(),
    "in place under Tune": Placement(),
    "Ray Train": Placement(launcher="ray_train"),
    "Tune and Train": Placement(launcher="ray_train"),
}


class _Silent:
    def progress(self, update: dict[str, Any]) -> None:
        """Nothing is shown."""

    def done(self, trial: Trial) -> None:
        """Nothing is shown."""

    def failed(self, trial: Trial, reason: str) -> None:
        """A benchmark whose trials fail measures nothing."""
        raise RuntimeError(f"{trial.id}: {reason}")


def step_times(name: str, backbone: str, crops: Crops, side_px: int, rounds: int) -> list[Figure]:
    """Trains one trial every way, in turn, and compares the ways' median steps."""
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        index = _screen(Path(folder) / "screen", dataclasses.replace(SCREEN, size_px=side_px))
        for round_ in range(rounds):
            for way, place in _WAYS.items():
                files = StudyFiles(
                    study_dir=Path(folder) / f"{way}{round_}",
                    index=index,
                    relationships=(str(index.parent / "relationships.csv"),),
                )
                trial = grid.trained(
                    "mae", backbone, crops, lr=1e-3, mask_ratio=0.5, seed=round_, placement=place
                )
                write_trial(trial, files, ScreenIndex.open(index))
                _trained(way, trial, files)
                checkpoints = checkpoints_of(trial, files)
                curve = checkpoints.record(checkpoints.latest() or "").curve
                steps = [crops.global_batch_size / speed for speed in curve.crops_per_s]
                found.setdefault(way, []).append(statistics.median(steps[_WARM_UP:]))
                print(f"  {name}, {way}: {1e3 * found[way][-1]:.1f} ms a step", flush=True)
    plain = found["plain torch"]
    figures = [figure(f"step of {name}, plain torch", 1e3 * statistics.median(plain), "ms")]
    for way, other in itertools.product(list(_WAYS)[1:], ("plain torch", "in place under Tune")):
        if way == other:
            continue
        ratios = [a / b for a, b in zip(found[way], found[other], strict=True)]
        goal = GOAL_STEP if way.endswith("Train") else None
        label = f"step of {name}, {way} over {other} ({min(ratios):.3f} to {max(ratios):.3f})"
        figures.append(figure(label, statistics.median(ratios), "", goal, at_most=True))
    return figures


def _trained(way: str, trial: Trial, files: StudyFiles) -> None:
    """Trains a trial to its end, one way."""
    if way == "plain torch":  # a fresh process, as the others have
        process = multiprocessing.get_context("spawn").Process(
            target=_train_here, args=(trial, files)
        )
        process.start()
        process.join()
        if process.exitcode:
            raise RuntimeError(f"{trial.id} failed in plain torch.")
    elif way == "Ray Train":
        start_ray()
        try:
            train_group(trial, files)
        finally:
            stop_ray()
    else:
        study = Study(name="steps", question="?", trials=(trial,), bootstrap_rounds=100)
        run_grid(study, files, _Silent(), cost=lambda trial: 0.0, at_once=1)


def _train_here(trial: Trial, files: StudyFiles) -> None:
    prepare_process(trial.placement.threads)
    fit_here(lambda cutter, first, last: cutter.stream(first, last))(
        trial, files, lambda progress: None
    )


def _screen(root: Path, spec: ScreenSpec) -> Path:
    """The index of a simulated screen."""
    build_index(read_manifest(simulate_screen(spec, root)), root, root / "index.parquet")
    return root / "index.parquet"


def fixed_costs(in_place: int, ray_train: int, workers: int = 1) -> list[Figure]:
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
        index = _screen(Path(folder) / "screen", SCREEN)
        files = StudyFiles(
            study_dir=Path(folder) / "study",
            index=index,
            relationships=(str(index.parent / "relationships.csv"),),
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
        "--quick", action="store_true", help="a few trials of each kind, and no S/16"
    )
    parser.add_argument("--fixed", action="store_true", help="fixed costs alone")
    parser.add_argument("--json", type=Path, help="file for the same figures")
    arguments = parser.parse_args()
    quick = arguments.quick
    figures = fixed_costs(4, 2) if quick else fixed_costs(12, 4)
    if not arguments.fixed:
        figures += step_times("nano/8, 64 px", "nano/8", NANO, 64, rounds=1 if quick else 3)
    if not (quick or arguments.fixed):
        figures += step_times("S/16, 128 px", "S/16", SMALL, 128, rounds=3)
    publish(figures, arguments.json)


if __name__ == "__main__":
    main()
