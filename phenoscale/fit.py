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

_CPU = torch.device("cpu")

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
        def report(progress: dict[str, Any]) -> None:
            tell({"trial": trial.id, "phase": "train", **progress})

        done = train_trial(trial, files, crops, report)
        return Fitted(
            record=done.record,
            train_s=done.train_s,
            data_cpu_s=done.data_cpu_s,
            first_step=done.first_step,
            crops=done.crops,
            workers=[worker_facts(done)],
            matmul_peak=matmul_peak(_CPU, done.record.precision),
        )

    return fit


def train_trial(
    trial: Trial,
    files: StudyFiles,
    crops: Callable[[CropCutter, int, int], Iterator[Batch]],
    report: train.Report,
    *,
    rank: int = 0,
    world: int = 1,
    device: torch.device = _CPU,
    interrupted: Callable[[], bool] = lambda: False,
) -> train.Trained:
    """Trains a trial as one of its workers, from its last checkpoint on.

    Args:
        trial: the trial.
        files: of its study.
        crops: (cutter, first, last) to this worker's batches of steps first to last - 1.
        report: as `train.train`'s.
        rank: of this worker.
        world: number of workers.
        device: where it trains.
        interrupted: as `train.train`'s.

    Raises:
        guard.NonFiniteError: as `train.train`, after its evidence was written.
    """
    directory = files.trial_dir(trial)
    index = ScreenIndex.open(files.index)
    channels, classes = index.channels, index.num_classes
    cutter = CropCutter(index_path=str(files.index), crops=trial.crops, seed=trial.seed)
    model = build_model(trial, channels=channels, num_classes=classes)
    on_gpu = device.type == "cuda"
    memory = torch.cuda.get_device_properties(device).total_memory if on_gpu else None
    try:
        with checkpoints_of(trial, files) as checkpoints:
            return train.train(
                trial,
                model,
                lambda first, last: within_tolerance(cutter, crops(cutter, first, last)),
                report,
                steps=cutter.plan.steps,
                checkpoints=checkpoints,
                rank=rank,
                world=world,
                device=str(device),
                layout=layout_of(trial, len(channels), classes, workers=world, gpu_bytes=memory),
                interrupted=interrupted,
                trace=directory / TRACE_FILE if trial.placement.profile else None,
            )
    except NonFiniteError as error:
        if rank == 0:
            write_evidence(directory, error.evidence, index)
        raise


def worker_facts(done: train.Trained) -> dict[str, float]:
    """What one worker did and how long it waited for crops."""
    return {"crops": done.crops, "train_s": done.train_s, "data_wait_s": done.data_wait_s}


def checkpoints_of(trial: Trial, files: StudyFiles) -> Checkpoints:
    """The trial's checkpoints."""
    return checkpoints_at(files.checkpoints_of(trial))


def checkpoints_at(location: str) -> Checkpoints:
    """A trial's checkpoints in a local folder, or one of an object store."""
    system, root = writable_folder(location)
    return Checkpoints(root, system)


def write_evidence(directory: Path, evidence: dict[str, Any], index: ScreenIndex) -> None:
    """Writes which step failed on which crops, their sites named, for whoever looks for why.

    `CropCutter.stream(step, step + 1)` cuts the same crops again.
    """
    rows = sorted(set(evidence["rows"]))
    names = dict(zip(rows, index.take(rows)["site_id"].to_pylist(), strict=True))
    write_json(
        directory / EVIDENCE_FILE,
        evidence | {"site_ids": [names[row] for row in evidence["rows"]]},
    )
