"""What a training has measured so far: it travels with every checkpoint and outlives each attempt.

Plain values, so that whoever reads a study needs no torch.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any


@dataclasses.dataclass
class Curve:
    """One entry per step."""

    step: list[int] = dataclasses.field(default_factory=list)
    """Number of the step, from 0."""
    loss: list[float] = dataclasses.field(default_factory=list)
    """Loss of the global batch before the update."""
    lr: list[float] = dataclasses.field(default_factory=list)
    """Learning rate of the update."""
    grad_norm: list[float] = dataclasses.field(default_factory=list)
    """Norm of the whole gradient before it was clipped."""
    crops_per_s: list[float] = dataclasses.field(default_factory=list)
    """Crops of the global batch per wall second of the step, its checkpoint left out."""
    data_s: list[float] = dataclasses.field(default_factory=list)
    """Of the step's wall seconds on the first worker, those spent waiting for crops."""
    communication_s: list[float] = dataclasses.field(default_factory=list)
    """Those spent waiting for other workers while nothing was left to compute."""
    checkpoint_s: list[float] = dataclasses.field(default_factory=list)
    """Seconds that a checkpoint held the step up; most of one is written beside training."""

    def append(self, **values: float) -> None:
        """Adds one step: a value for each list."""
        for field in dataclasses.fields(self):
            getattr(self, field.name).append(values.pop(field.name))
        assert not values, values


@dataclasses.dataclass
class Record:
    """The curve, and what the training took, over all attempts up to here."""

    curve: Curve = dataclasses.field(default_factory=Curve)
    """Per step."""
    precision: str = "fp32"
    """Of products, as the first attempt chose it; the others keep it."""
    attempts: int = 0
    """How often training began; work after the last checkpoint of an attempt is not counted."""
    train_s: float = 0.0
    """Wall seconds in the loop on the first worker."""
    data_wait_s: float = 0.0
    """Of these, seconds spent waiting for crops."""
    communication_s: float = 0.0
    """Of these, seconds spent waiting for other workers."""
    checkpoint_s: float = 0.0
    """Of these, seconds that checkpoints held training up."""
    bad_rows: list[int] = dataclasses.field(default_factory=list)
    """Rows of the index that could not be read and were passed over, on any worker."""
    spikes: list[int] = dataclasses.field(default_factory=list)
    """Steps at which the loss jumped."""
    rolled_back: list[int] = dataclasses.field(default_factory=list)
    """Steps done at the milestone that a spike led back to, and the spike's step; empty if none."""

    def add(self, *, step_s: float, global_batch_size: int, **entry: float) -> None:
        """Takes in one step: its entry of the curve, and its times.

        Args:
            step_s: wall seconds, its checkpoint left out.
            global_batch_size: its crops.
            entry: the other lists of `Curve`.
        """
        speed = global_batch_size / step_s
        self.curve.append(crops_per_s=speed, checkpoint_s=0.0, **entry)
        self.train_s += step_s
        self.data_wait_s += entry["data_s"]
        self.communication_s += entry["communication_s"]

    def held_up(self, seconds: float) -> None:
        """Adds what a checkpoint after the last step cost."""
        self.curve.checkpoint_s[-1] += seconds
        self.checkpoint_s += seconds
        self.train_s += seconds

    @property
    def steps(self) -> int:
        """Steps done."""
        return len(self.curve.step)

    def as_json(self) -> str:
        """The record as text."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Record:
        """The record from `as_json`."""
        fields: dict[str, Any] = json.loads(text)
        return cls(**fields | {"curve": Curve(**fields["curve"])})
