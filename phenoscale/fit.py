"""Training a trial in this process, and what any launcher hands back when a trial is trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from phenoscale import train
from phenoscale.checkpoint import Checkpoints
from phenoscale.config import Trial
from phenoscale.guard import NonFiniteError
from phenoscale.layout import layout_of
from phenoscale.models.build import build_model
from phenoscale.peak import matmul_peak
from phenoscale.record import Record
from phenoscale.results import write_json
from phenoscale.screens.cutter import Batch, CropCutter, within_tolerance
from phenoscale.screens.index import ScreenIndex
from phenoscale.screens.storage import writable_folder
from phenoscale.study_files import (
    EVIDENCE_FILE,
    MODEL_FILE,
    TRACE_FILE,
    TRIAL_FILE,
    StudyFiles,
)

Tell = Callable[[dict[str, Any]], None]
"""Takes a trial's progress: trial and phase, in training also step, steps, loss and crops_per_s."""


@dataclasses.dataclass(kw_only=True)
class Fitted:
    """What a launcher hands back when a trial is trained."""

    record: Record
    """Of all attempts: the curve, times, spikes."""
    train_s: float
    """Wall seconds in the loop, of this attempt."""
    data_cpu_s: float
    """CPU seconds of cutting, over all workers."""
    first_step: int
    """Step that this attempt began at."""
    crops: int
    """Crops that all workers together trained on, in this attempt."""
    workers: list[dict[str, float]] = dataclasses.field(default_factory=list)
    """Of each worker in the order of ranks: crops, train_s, data_wait_s."""
    matmul_peak: float
    """Operations per second that one worker's device does at best (`peak.py`)."""
    cpu_s: float = 0.0
    """CPU seconds of worker processes other than this one."""
    peak_memory_gib: float = 0.0
    """Peak of the largest of these processes."""
    peak_gpu_memory_gib: float = 0.0
    """Peak of the fullest GPU."""


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

        def report(progress: dict[str, Any]) -> None:
            tell({"trial": trial.id, "phase": "train", **progress})

        try:
            with checkpoints_of(trial, files) as checkpoints:
                done = train.train(
                    trial,
                    model,
                    lambda first, last: within_tolerance(cutter, crops(cutter, first, last)),
                    report,
                    steps=cutter.plan.steps,
                    checkpoints=checkpoints,
                    layout=layout_of(trial, len(index.channels), index.num_classes, workers=1),
                    trace=directory / TRACE_FILE if trial.placement.profile else None,
                )
        except NonFiniteError as error:
            write_evidence(directory, error.evidence, index)
            raise
        return Fitted(
            record=done.record,
            train_s=done.train_s,
            data_cpu_s=done.data_cpu_s,
            first_step=done.first_step,
            crops=done.crops,
            workers=[worker_facts(done)],
            matmul_peak=matmul_peak(torch.device("cpu"), done.record.precision),
        )

    return fit


def worker_facts(done: train.Trained) -> dict[str, float]:
    """What one worker did and how long it waited for crops."""
    return {"crops": done.crops, "train_s": done.train_s, "data_wait_s": done.data_wait_s}


def checkpoints_of(trial: Trial, files: StudyFiles) -> Checkpoints:
    """The trial's checkpoints, on a disk or in an object store."""
    system, root = writable_folder(files.checkpoints_of(trial))
    return Checkpoints(root, system)


def write_evidence(directory: Path, evidence: dict[str, Any], index: ScreenIndex) -> None:
    """Writes which step failed on which crops, their sites named, for whoever looks for why.

    `CropCutter.stream(step, step + 1)` cuts the same crops again.
    """
    sites = index.take(sorted(set(evidence["rows"])))["site_id"].to_pylist()
    names = dict(zip(sorted(set(evidence["rows"])), sites, strict=True))
    write_json(
        directory / EVIDENCE_FILE,
        evidence | {"site_ids": [names[row] for row in evidence["rows"]]},
    )
