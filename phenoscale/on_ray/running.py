"""What the driver of a study knows of its running grid: who runs, who failed and comes again."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol

from phenoscale.budget import Budget
from phenoscale.config import Trial
from phenoscale.failures import FAILURE_FILE, Failure, failure_of_text
from phenoscale.on_ray.capacity import alive_cluster
from phenoscale.results import ROW_FILE
from phenoscale.scheduling import Queue
from phenoscale.study_files import StudyFiles
from phenoscale.study_storage import pull_trial, push_trial

OVER = "FINISHED"
"""Instead of a config: nothing more will start; Tune's word (`Searcher.FINISHED`)."""

_LOOK_S = 10.0  # between looks at what the cluster has
_PATIENCE_S = 600.0  # for lost machines to come back, while nothing else runs


class Listener(Protocol):
    """Who wants to know how the grid goes; called in the driver."""

    def progress(self, update: dict[str, Any]) -> None:
        """A trial's progress: trial and phase.

        In the phases train and embed, and score, what the trial told: step, steps, loss,
        crops_per_s. In start, nothing more: a trial has its processes. In retry, kind and reason.
        """

    def done(self, trial: Trial) -> None:
        """A trial's row is on disk."""

    def failed(self, trial: Trial, reason: str) -> None:
        """A trial ended without a row."""


class RunningGrid:
    """What the driver knows of a running grid."""

    def __init__(
        self,
        trials: Sequence[Trial],
        files: StudyFiles,
        listener: Listener,
        queue: Queue,
        budget: Budget,
        *,
        grows: bool,
    ) -> None:
        """Begins with everything in the queue.

        Args:
            trials: those of the queue.
            files: of their study.
            listener: told of progress, ends and failures.
            queue: says which trial starts next.
            budget: is told of starts and ends.
            grows: whether the cluster's capacity is what it may grow to, and so stays.
        """
        self.trials = {trial.id: trial for trial in trials}
        self.failures: dict[str, Failure] = {}
        self._files = files
        self._listener = listener
        self._queue = queue
        self._budget = budget
        self._grows = grows
        self._counts: dict[str, dict[str, int]] = {}  # failures of each kind, by trial
        self._running: dict[str, str] = {}  # Tune's id of a trial -> ours
        self._again: deque[str] = deque()
        self._told: dict[str, Failure] = {}  # by trial: its last word, that it failed
        self._looked = self._progressed = time.monotonic()

    def next(self, tune_id: str) -> dict[str, Any] | str | None:
        """Config of the next trial, None while none may start, or that all is over."""
        self._look()
        if self._again:
            name = self._again.popleft()
        elif (job := self._queue.next()) is not None:
            name = job.name
        else:
            return None if self._goes_on() else OVER
        self._running[tune_id] = name
        self._budget.chosen(name)
        return {"trial": name, "failures": self._counts.get(name, {})}

    def _look(self) -> None:
        """Machines come and go; what a cluster that grows can have stays."""
        if not self._grows and time.monotonic() - self._looked > _LOOK_S:
            self._looked = time.monotonic()
            self._queue.capacity = alive_cluster().capacity

    def _goes_on(self) -> bool:
        """Whether there will be more to start. Trials that lost their machines wait for a while."""
        if self._running:
            self._progressed = time.monotonic()
            return True
        homeless = self._queue.lacking_room()
        if homeless and time.monotonic() - self._progressed < _PATIENCE_S:
            return True
        for job in homeless:
            reason = "Machines that it needs are gone and did not come back; run the command again."
            self._fail(job.name, Failure(kind="lost", reason=reason, traceback="", attempts=1))
        return False

    def started(self, tune_id: str) -> None:
        """A trial has its process."""
        name = self._running[tune_id]
        self._budget.began(name)
        self._listener.progress({"trial": name, "phase": "start"})

    def told(self, tune_id: str, update: dict[str, Any]) -> None:
        """A trial reports."""
        name, phase = self._running.get(tune_id), update.get("phase")
        if name is None or phase in (None, "done"):
            return
        if phase in ("retry", "failed"):
            failure = Failure(**update["failure"])
            self._counts.setdefault(name, {})[failure.kind] = failure.attempts
            if phase == "failed":
                self._told[name] = failure
                return
            update = {"trial": name, "phase": phase, "kind": failure.kind, "reason": failure.reason}
        self._listener.progress(update)

    def ended(self, tune_id: str) -> None:
        """A trial's function has returned."""
        name = self._running.pop(tune_id)
        pull_trial(self._files, self.trials[name])
        failure = self._told.pop(name, None)
        if failure is None and not (self._files.trial_dir(self.trials[name]) / ROW_FILE).exists():
            reason = "The trial ended, but its row is not in the study's storage."
            failure = Failure(kind="storage", reason=reason, traceback="", attempts=1)
        self._end(name, failure)

    def lost(self, tune_id: str, text: str) -> None:
        """A trial's process ended before its function did."""
        name = self._running.pop(tune_id)
        trial = self.trials[name]
        pull_trial(self._files, trial)
        directory = self._files.trial_dir(trial)
        if (directory / ROW_FILE).exists():  # it died of its last words
            self._end(name, None)
            return
        failure = failure_of_text(text, self._counts.setdefault(name, {}))
        failure.write(directory)
        if failure.is_last:
            push_trial(self._files, trial)
            self._end(name, failure)
            return
        self._budget.ended(name, done=False)
        self._again.append(name)  # it keeps its room in the queue
        self._listener.progress(
            {"trial": name, "phase": "retry", "kind": failure.kind, "reason": failure.reason}
        )

    def _end(self, name: str, failure: Failure | None) -> None:
        self._queue.end(name)
        self._budget.ended(name, done=failure is None)
        if failure is not None:
            self._fail(name, failure)
            return
        trial = self.trials[name]
        (self._files.trial_dir(trial) / FAILURE_FILE).unlink(missing_ok=True)
        self._listener.done(trial)

    def _fail(self, name: str, failure: Failure) -> None:
        self.failures[name] = failure
        self._listener.failed(self.trials[name], str(failure))

    def is_running(self, tune_id: str) -> bool:
        """Whether Tune's trial is one whose end was not heard of."""
        return tune_id in self._running
