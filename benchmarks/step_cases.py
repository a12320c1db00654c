"""The step benchmark's cases: shapes of models, batches in memory, and which steps are timed."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import nn

from phenoscale.config import Crops, Objective, Optim, Placement, Trial

Batch = dict[str, np.ndarray]
"""As `phenoscale.train.Batch`."""

PRECISIONS = ("fp32", "bf16")
LR = 1e-4  # of every contender
BATCHES = 2  # in memory, taken in turns


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One shape of model and batch."""

    name: str
    """What the table calls it."""
    backbone: str
    """Name in `phenoscale.backbones`."""
    size_px: int
    """Side of a crop, pixels."""
    batch: int
    """Crops per step."""
    objective: str = "mae"
    """mae or ca_mae."""
    channels: int = 6
    """Channels of a crop."""
    mask_ratio: float = 0.75
    """Share of patches that are masked."""
    warmup: int = 2
    """Steps before those that are timed: allocation, compilation."""
    steps: int = 3
    """Steps that are timed."""
    has_goals: bool = True
    """Whether the goals are meant for it; they are not for models that are mostly overhead."""

    @property
    def channel_names(self) -> list[str]:
        """A name for each channel."""
        return [f"channel{number}" for number in range(self.channels)]

    def trial(self, precision: str, compiled: bool = False, threads: int = 1) -> Trial:
        """What phenoscale trains in this case."""
        return Trial(
            objective=Objective(name=self.objective, mask_ratio=self.mask_ratio),
            backbone=self.backbone,
            crops=Crops(size_px=self.size_px, global_batch_size=self.batch),
            optim=Optim(lr=LR, precision=precision),
            placement=Placement(compiled=compiled, threads=threads),
        )

    def images(self) -> list[np.ndarray]:
        """(B, C, H, W) uint8 crops of `BATCHES` batches; what they show takes no time."""
        rng = np.random.default_rng(0)
        size = (self.batch, self.channels, self.size_px, self.size_px)
        return [rng.integers(0, 256, size, np.uint8) for _ in range(BATCHES)]


_CASES = (
    Case(name="mae-s16-128", backbone="S/16", size_px=128, batch=32),
    Case(name="mae-nano8-64", backbone="nano/8", size_px=64, batch=64, steps=40, has_goals=False),
    Case(name="ca-s16-128", backbone="S/16", size_px=128, batch=8, objective="ca_mae"),
    Case(
        name="ca-s16-128-11ch",
        backbone="S/16",
        size_px=128,
        batch=8,
        objective="ca_mae",
        channels=11,
    ),
    Case(name="mae-b16-256", backbone="B/16", size_px=256, batch=128, warmup=3, steps=20),
    Case(name="mae-l16-256", backbone="L/16", size_px=256, batch=128, warmup=3, steps=20),
    Case(
        name="ca-s16-256",
        backbone="S/16",
        size_px=256,
        batch=128,
        objective="ca_mae",
        warmup=3,
        steps=20,
    ),
)
CASES = {case.name: case for case in _CASES}
DEFAULTS = {
    "cpu": ("mae-s16-128", "mae-nano8-64", "ca-s16-128", "ca-s16-128-11ch"),
    "cuda": ("mae-b16-256", "mae-l16-256", "ca-s16-256"),
}
"""Cases of each type of device."""


@dataclasses.dataclass(frozen=True)
class StepCost:
    """What the timed steps of one run took."""

    crops: int
    """Crops trained on."""
    wall_s: float
    """Wall seconds."""
    cpu_s: float
    """CPU seconds of all threads of the process."""
    peak_gib: float | None = None
    """Most GPU memory that was allocated at a time in the whole run; None on a CPU."""


class EnoughError(Exception):
    """All steps are timed; the run may stop."""


class Window:
    """Gives out batches and times the steps of any training loop that calls the model once in each.

    A step lasts from the model's call to its next one. What a loop does ahead of time, such as
    fetching batches in a thread, moves no step out of the window.
    """

    def __init__(self, case: Case, images: Sequence[np.ndarray], device: torch.device) -> None:
        """Prepares one run of a case on its `images`."""
        self.case, self.device = case, device
        zeros = np.zeros(case.batch, np.int64)
        rest: Batch = {"turns": zeros, "labels": zeros, "rows": zeros, "bad": zeros - 1}
        rest["read_cpu_s"] = np.zeros(case.batch)
        self._batches = [{"crops": crops, **rest} for crops in images]
        self._calls = 0
        self._marks: list[tuple[float, float]] = []

    @property
    def num_steps(self) -> int:
        """Steps to give to a loop; in the last one the window closes."""
        return self.case.warmup + self.case.steps + 1

    def batches(self, first: int, last: int) -> Iterator[Batch]:
        """The `batches` of `phenoscale.train.train`."""
        for step in range(first, last):
            yield self._batches[step % len(self._batches)]

    def watch(self, model: nn.Module) -> None:
        """Times the steps of a loop that calls `model`.

        The call after the last timed step raises `EnoughError`.
        """
        model.register_forward_pre_hook(self._called)

    def _called(self, model: nn.Module, inputs: tuple[object, ...]) -> None:
        if self._calls in (self.case.warmup, self.case.warmup + self.case.steps):
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            self._marks.append((time.perf_counter(), time.process_time()))
        self._calls += 1
        if len(self._marks) == 2:
            raise EnoughError

    def cost(self) -> StepCost:
        """What the timed steps took, once the loop has come through them."""
        assert len(self._marks) == 2, "the loop ended before the timed steps did"
        (wall, cpu), (wall_end, cpu_end) = self._marks
        peak = None
        if self.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self.device) / 2**30
        return StepCost(self.case.batch * self.case.steps, wall_end - wall, cpu_end - cpu, peak)
