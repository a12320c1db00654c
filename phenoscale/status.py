"""How far a study is: what its driver knows of every trial, and leaves in status.json.

The driver writes the file whole, at every change of a trial's state and otherwise every two
seconds, and says in it when it did. So whoever reads it sees how long ago the driver was last heard
of.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from phenoscale.results import read_optional_json, write_json

STATUS_FILE = "status.json"
STATES = ("waiting", "running", "done", "failed", "not_started")
"""Of a trial; not_started: the study ended, or its budget did, before it."""
GONE_S = 60.0
"""Seconds without a word from a driver after which it counts as gone."""

_WRITE_S = 2.0
_SOON_S = 0.2  # after a change of state, so that many at once are one writing
_PUSH_S = 30.0
_LEAST_SHARE = 0.02  # below it nothing is forecast


@dataclasses.dataclass(kw_only=True)
class TrialStatus:
    """What is known of a trial."""

    state: str = "waiting"
    """One of `STATES`."""
    phase: str = ""
    """Of a running trial: start, train, embed, score, or retry."""
    step: int | None = None
    """Steps done in this phase; sites while it embeds."""
    steps: int | None = None
    """All steps of this phase."""
    share: float = 0.0
    """Of its whole cost, the part that is done."""
    loss: float | None = None
    """Of the last reported step."""
    crops_per_s: float | None = None
    """Of the last reported step."""
    waited: float | None = None
    """Share of its training that it waited for crops."""
    attempts: int = 0
    """How often it began, in this run of the study."""
    started_at: float | None = None
    """When the attempt began, seconds since 1970."""
    ended_at: float | None = None
    """When it ended, with a row or without."""
    left_s: float | None = None
    """Seconds to go, by the speed since the attempt's first report."""
    gpu_hours: float = 0.0
    """Of all attempts; worker-hours where it has no GPU."""
    reason: str = ""
    """Why it failed, was tried again, or was not started."""


@dataclasses.dataclass(kw_only=True)
class StudyStatus:
    """What is known of a study."""

    name: str
    """Of the study."""
    state: str = "running"
    """running; finishing, while it compares and reports; ended, interrupted or broken."""
    started_at: float
    """When this run of it began, seconds since 1970."""
    heard_at: float
    """When the driver wrote this."""
    share: float = 0.0
    """Of the cost of this run's trials, the part that is done."""
    left_s: float | None = None
    """Seconds to go; None while nothing can be said."""
    gpu_hours: float = 0.0
    """Of all attempts of all trials so far; worker-hours where there is no GPU."""
    max_gpu_hours: float | None = None
    """The study's budget; None for none."""
    trials: dict[str, TrialStatus]
    """By id, in the order of the study."""

    def count(self, state: str) -> int:
        """Trials in a state."""
        return sum(trial.state == state for trial in self.trials.values())

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> StudyStatus:
        """Rebuilds it from `dataclasses.asdict`."""
        trials = {name: TrialStatus(**one) for name, one in fields["trials"].items()}
        return cls(**{**fields, "trials": trials})


def read_status(study_dir: Path) -> StudyStatus:
    """What the driver of a study last wrote.

    Raises:
        ValueError: if it wrote nothing, or another version did.
    """
    path = study_dir / STATUS_FILE
    if not path.is_file():
        raise ValueError(
            f"{study_dir} has no {STATUS_FILE}: no study was run there, or by an earlier version. "
            "Give the directory or URL of a study, such as runs/quickstart-seed0."
        )
    try:
        return StudyStatus.from_dict(json.loads(path.read_text()))
    except (TypeError, KeyError) as error:
        raise ValueError(
            f"{path} was written by another version ({error}). Run the study's command once more."
        ) from error


def spent_hours(study_dir: Path) -> dict[str, float]:
    """By trial, the GPU-hours of earlier runs of a study; none where no status tells of any."""
    trials = read_optional_json(study_dir / STATUS_FILE, {}).get("trials", {})
    return {name: float(one.get("gpu_hours", 0.0)) for name, one in trials.items()}


class StatusBoard:
    """Keeps a study's status while it runs, and writes it; any thread may call it."""

    def __init__(
        self,
        study_dir: Path,
        name: str,
        trials: Iterable[str],
        costs: Mapping[str, tuple[float, float]],
        *,
        hours: Callable[[str], float] = lambda trial: 0.0,
        max_gpu_hours: float | None = None,
        push: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Begins with the trials of `costs` waiting, and the others done.

        Args:
            study_dir: directory of the study.
            name: of the study.
            trials: ids of all its trials, in order.
            costs: by id the cost of training and of embedding, of those that are to run.
            hours: GPU-hours of a trial so far.
            max_gpu_hours: the budget.
            push: copies the study's own files to where others see them.
            clock: seconds since 1970.
        """
        self._path = study_dir / STATUS_FILE
        self._costs = dict(costs)
        self._total = sum(sum(cost) for cost in costs.values())
        self._hours, self._push, self._clock = hours, push, clock
        states = {trial: "waiting" if trial in costs else "done" for trial in trials}
        self._status = StudyStatus(
            name=name,
            started_at=clock(),
            heard_at=clock(),
            max_gpu_hours=max_gpu_hours,
            trials={trial: TrialStatus(state=state) for trial, state in states.items()},
        )
        self._first: dict[
            str, tuple[float, float]
        ] = {}  # time and share of an attempt's first word
        self._lock = threading.RLock()
        self._changed, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._keep_writing, daemon=True)

    def __enter__(self) -> StatusBoard:
        """Begins to write."""
        self.write()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Writes for the last time."""
        if kind is not None:
            stopped = issubclass(kind, KeyboardInterrupt | SystemExit)
            self.says("interrupted" if stopped else "broken")
        self._stop.set()
        self._changed.set()
        self._thread.join()

    def snapshot(self) -> StudyStatus:
        """The status now."""
        with self._lock:
            now = self._clock()
            for name, trial in self._status.trials.items():
                trial.gpu_hours = self._hours(name)
            self._status.gpu_hours = sum(t.gpu_hours for t in self._status.trials.values())
            self._status.heard_at = now
            share = sum(
                sum(cost) * self._status.trials[name].share for name, cost in self._costs.items()
            ) / (self._total or 1.0)
            self._status.share = share
            elapsed = now - self._status.started_at
            known = share > _LEAST_SHARE and self._status.state == "running"
            self._status.left_s = elapsed * (1 - share) / share if known else None
            return dataclasses.replace(
                self._status,
                trials={name: dataclasses.replace(t) for name, t in self._status.trials.items()},
            )

    def told(self, update: Mapping[str, Any]) -> None:
        """Takes what a trial told; of trials that are not of this study, nothing."""
        name, phase = str(update["trial"]), str(update["phase"])
        if name not in self._costs or phase == "done":
            return
        with self._lock:
            trial = self._status.trials[name]
            changed = trial.state != "running" or phase != trial.phase
            if phase == "start":
                self._first.pop(name, None)
                trial.attempts += trial.phase != "retry"  # which counted it
                trial.started_at, trial.ended_at, trial.left_s = self._clock(), None, None
            elif phase == "retry":
                trial.reason = f"{update['kind']}: {update['reason']}"
                self._first.pop(name, None)
                trial.attempts += 1
            trial.state, trial.phase = "running", phase
            trial.step, trial.steps = update.get("step"), update.get("steps")
            for key in ("loss", "crops_per_s", "waited"):
                setattr(trial, key, update.get(key, getattr(trial, key)))
            if phase in ("train", "embed", "score"):
                self._forecast(name, trial)
        if changed:
            self._changed.set()

    def _forecast(self, name: str, trial: TrialStatus) -> None:
        train, embed = self._costs[name]
        part = trial.step / trial.steps if trial.step is not None and trial.steps else 0.0
        done = {"train": train * part, "embed": train + embed * part}.get(
            trial.phase, train + embed
        )
        trial.share = done / (train + embed) if train + embed else 1.0
        # An attempt that goes on from a checkpoint did not do what came before it.
        since, share = self._first.setdefault(name, (self._clock(), trial.share))
        gained = trial.share - share
        trial.left_s = None
        if gained > 0:
            trial.left_s = (self._clock() - since) * (1 - trial.share) / gained

    def done(self, trial: str) -> None:
        """A trial left its row."""
        self._end(trial, "done", "")

    def failed(self, trial: str, reason: str) -> None:
        """A trial ended without a row."""
        self._end(trial, "failed", reason)

    def not_started(self, trial: str, reason: str) -> None:
        """A trial will not run."""
        self._end(trial, "not_started", reason)

    def _end(self, name: str, state: str, reason: str) -> None:
        with self._lock:
            trial = self._status.trials[name]
            trial.state, trial.reason, trial.phase = state, reason, ""
            trial.left_s = None
            if state != "not_started":
                trial.share, trial.ended_at = 1.0, self._clock()
        self._changed.set()

    def says(self, state: str) -> None:
        """The study as a whole is now in this state."""
        with self._lock:
            self._status.state = state
        self._changed.set()

    def write(self) -> None:
        """Writes status.json."""
        write_json(self._path, dataclasses.asdict(self.snapshot()))

    def _keep_writing(self) -> None:
        pushed = float("-inf")
        while True:
            over = self._stop.is_set()
            self._changed.clear()
            self.write()
            if over or time.monotonic() - pushed > _PUSH_S:
                with contextlib.suppress(OSError):  # the next one comes in half a minute
                    self._push()
                pushed = time.monotonic()
            if over:
                return
            if self._changed.wait(_WRITE_S):
                self._stop.wait(_SOON_S)
