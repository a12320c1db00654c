"""The time of a training: where it goes, what it is time for, and a trace of some steps."""

from __future__ import annotations

import time
from pathlib import Path

import torch

TICK_S = 10.0
"""Seconds between reports, besides those at fixed steps."""


class Clock:
    """Where the time of a step goes, and what time it is for: reports and checkpoints."""

    def __init__(self, rank: int, device: torch.device, save_every_s: float) -> None:
        """Starts it; the first worker's decides what time it is."""
        self._asking, self._device, self._save_every_s = rank == 0, device, save_every_s
        self._begin = self._step = self._lap = time.perf_counter()
        self._ticked = self._saved = self._begin

    def start_step(self) -> None:
        """A step begins."""
        self._step = self._lap = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last lap of this step, or since its start."""
        before, self._lap = self._lap, time.perf_counter()
        return self._lap - before

    def step_s(self) -> float:
        """Seconds of this step so far; laps go on from here."""
        self._lap = time.perf_counter()
        return self._lap - self._step

    def asks(self) -> torch.Tensor:
        """(2,) float32: whether the first worker's clock says to report, and to save."""
        now = time.perf_counter()
        tick = self._asking and now - self._ticked > TICK_S
        save = self._asking and now - self._saved > self._save_every_s
        if tick:
            self._ticked = now
        return torch.tensor([float(tick), float(save)], device=self._device)

    def saved(self) -> float:
        """A checkpoint was handed over; returns the seconds that this took."""
        took = self.lap()
        self._saved = self._lap
        return took

    def loop_s(self) -> float:
        """Seconds since the loop began."""
        return time.perf_counter() - self._begin


class Profile:
    """A trace of three steps, after some to warm up, where a file for it is given."""

    def __init__(self, path: Path | None) -> None:
        """Begins a trace that goes to `path`; None makes none."""
        self._profile = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._profile = torch.profiler.profile(
                schedule=torch.profiler.schedule(wait=1, warmup=1, active=3, repeat=1),
                on_trace_ready=lambda profile: profile.export_chrome_trace(str(path)),
            )
            self._profile.start()

    def step(self) -> None:
        """A step is done."""
        if self._profile is not None:
            self._profile.step()

    def close(self) -> None:
        """Training is done; a trace that was begun is written."""
        if self._profile is not None:
            self._profile.stop()
