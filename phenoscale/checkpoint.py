"""Checkpoints: torch's distributed format for tensors, JSON for the rest.

A checkpoint is a directory. `save` fills it (each worker its own part) and the caller's `report`
moves it into place, so a kill in the middle leaves the previous one valid. The curve so far travels
with it.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import warnings
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.optim import Optimizer

_PROGRESS = "progress.json"


@dataclasses.dataclass
class Curve:
    """What the loop measured, one entry per step."""

    step: list[int] = dataclasses.field(default_factory=list)
    """Number of the step, from 0."""
    loss: list[float] = dataclasses.field(default_factory=list)
    """Loss of the global batch before the update."""
    lr: list[float] = dataclasses.field(default_factory=list)
    """Learning rate of the update."""
    crops_per_s: list[float] = dataclasses.field(default_factory=list)
    """Crops of the global batch per wall second."""
    bad_rows: list[int] = dataclasses.field(default_factory=list)
    """Rows of the index that could not be read and were passed over so far, on any worker."""

    def append(self, step: int, loss: float, lr: float, crops_per_s: float) -> None:
        """Adds one step."""
        self.step.append(step)
        self.loss.append(loss)
        self.lr.append(lr)
        self.crops_per_s.append(crops_per_s)

    def per_step(self) -> dict[str, list[Any]]:
        """The lists that have an entry per step, by name."""
        return {
            "step": self.step,
            "loss": self.loss,
            "lr": self.lr,
            "crops_per_s": self.crops_per_s,
        }


def save(directory: Path, model: nn.Module, optimizer: Optimizer, curve: Curve) -> None:
    """Writes this worker's part of a checkpoint.

    Call it on every worker, each with a directory of its own.
    """
    model_state, optimizer_state = get_state_dict(model, optimizer)
    with _quiet():
        dcp.save(
            {"model": model_state, "optimizer": optimizer_state},
            checkpoint_id=directory,
            no_dist=not _distributed(),
        )
    if not _distributed() or dist.get_rank() == 0:
        (directory / _PROGRESS).write_text(json.dumps(dataclasses.asdict(curve)))


def load(directory: Path, model: nn.Module, optimizer: Optimizer) -> Curve:
    """Restores model and optimizer in place and returns the curve up to the checkpoint.

    Raises:
        ValueError: if the directory does not hold a checkpoint of this model.
    """
    model_state, optimizer_state = get_state_dict(model, optimizer)
    state: dict[str, Any] = {"model": model_state, "optimizer": optimizer_state}
    _read(directory, state, no_dist=not _distributed())
    set_state_dict(
        model,
        optimizer,
        model_state_dict=state["model"],
        optim_state_dict=state["optimizer"],
    )
    return read_curve(directory)


def load_model(directory: Path, model: nn.Module) -> None:
    """Restores the weights alone, in one process, whatever wrote the checkpoint.

    Raises:
        ValueError: if the directory does not hold a checkpoint of this model.
    """
    state = {"model": model.state_dict()}
    _read(directory, state, no_dist=True)
    model.load_state_dict(state["model"])


def read_curve(directory: Path) -> Curve:
    """The curve up to a checkpoint; its length is the number of steps done."""
    return Curve(**json.loads((directory / _PROGRESS).read_text()))


def _read(directory: Path, state: dict[str, Any], no_dist: bool) -> None:
    """Fills `state` from a checkpoint."""
    try:
        with _quiet():
            dcp.load(state, checkpoint_id=directory, no_dist=no_dist)
    # A BaseException, which would pass every launcher's handler.
    except CheckpointException as error:
        reason = next(iter(error.failures.values()))[0]
        raise ValueError(
            f"{directory} is no checkpoint of this trial's model: {reason} "
            "Remove it to train from the start."
        ) from error


def _distributed() -> bool:
    return dist.is_initialized() and dist.get_world_size() > 1


class _quiet(warnings.catch_warnings):
    """Silences what the format says about running without a process group, which is meant here."""

    def __enter__(self) -> None:
        super().__enter__()
        warnings.simplefilter("ignore")
        logging.getLogger("torch.distributed.checkpoint").setLevel(logging.ERROR)
