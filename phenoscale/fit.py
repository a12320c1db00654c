"""Training a trial in this process, and what any launcher hands back when a trial is trained."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from phenoscale import train
from phenoscale.checkpoint import Curve
from phenoscale.config import Trial
from phenoscale.models.build import build_model
from phenoscale.results import write_json
from phenoscale.screens.cutter import Batch, CropCutter, within_tolerance
from phenoscale.screens.index import ScreenIndex
from phenoscale.study_files import MODEL_FILE, TRIAL_FILE, StudyFiles

Tell = Callable[[dict[str, Any]], None]
"""Takes a trial's progress: trial and phase, in training also step, steps, loss and crops_per_s."""


@dataclasses.dataclass(kw_only=True)
class Fitted:
    """What a launcher hands back when a trial is trained."""

    checkpoint: Path
    """The last checkpoint."""
    curve: Curve
    """Per step."""
    train_s: float
    """Wall seconds in the loop."""
    data_wait_s: float
    """Of these, waiting for crops; the first worker's."""
    data_cpu_s: float
    """CPU seconds of cutting, over all workers."""
    first_step: int
    """Step that this attempt began at."""
    crops: int
    """Crops that all workers together trained on, in this attempt."""
    workers: list[dict[str, float]] = dataclasses.field(default_factory=list)
    """Of each worker in the order of ranks: crops, train_s, data_wait_s."""
    cpu_s: float = 0.0
    """CPU seconds of worker processes other than this one."""
    peak_memory_gib: float = 0.0
    """Peak of the largest of these processes."""


def write_trial(trial: Trial, files: StudyFiles, index: ScreenIndex) -> None:
    """Writes into the trial's folder what the trial is, and what of the screen its model needs."""
    directory = files.trial_dir(trial)
    write_json(directory / TRIAL_FILE, trial.as_dict())
    facts = {
        "channels": list(index.channels),
        "num_classes": index.num_classes,
        "index_fingerprint": index.fingerprint,
    }
    write_json(directory / MODEL_FILE, facts)


def fit_here(
    crops: Callable[[CropCutter, int, int], Iterator[Batch]],
) -> Callable[[Trial, StudyFiles, Tell], Fitted]:
    """A `fit` that trains here, as one worker, with crops from `crops(cutter, first, last)`."""

    def fit(trial: Trial, files: StudyFiles, tell: Tell) -> Fitted:
        directory = files.trial_dir(trial)
        index = ScreenIndex.open(files.index)
        cutter = CropCutter(index_path=str(files.index), crops=trial.crops, seed=trial.seed)
        model = build_model(trial, channels=index.channels, num_classes=index.num_classes)

        def report(progress: dict[str, Any], fill: Callable[[Path], None] | None) -> None:
            if fill:
                _commit_checkpoint(directory, progress["step"], fill)
            tell({"trial": trial.id, "phase": "train", **progress})

        found = sorted(directory.glob("step_*"))
        done = train.train(
            trial,
            model,
            lambda first, last: within_tolerance(cutter, crops(cutter, first, last)),
            report,
            steps=cutter.plan.steps,
            resume=found[-1] if found else None,
        )
        return Fitted(
            checkpoint=sorted(directory.glob("step_*"))[-1],
            curve=done.curve,
            train_s=done.train_s,
            data_wait_s=done.data_wait_s,
            data_cpu_s=done.data_cpu_s,
            first_step=done.first_step,
            crops=done.crops,
            workers=[worker_facts(done)],
        )

    return fit


def worker_facts(done: train.Trained) -> dict[str, float]:
    """What one worker did and how long it waited for crops."""
    return {"crops": done.crops, "train_s": done.train_s, "data_wait_s": done.data_wait_s}


def _commit_checkpoint(directory: Path, step: int, fill: Callable[[Path], None]) -> None:
    """Fills a checkpoint beside its place, renames it, then drops the older ones."""
    part = directory / f".part_{os.getpid()}"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    fill(part)
    older = sorted(directory.glob("step_*"))
    part.rename(directory / f"step_{step:08d}")
    for path in older:
        shutil.rmtree(path)
