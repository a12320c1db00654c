"""How many GPU-hours a study has spent, what its trials are expected to take, and who may start.

A GPU-hour is an hour in which a trial holds one GPU. A worker without a GPU counts as one, so a
study on CPUs has worker-hours. All attempts count, and baselines too. A running trial is never
ended for the budget; a trial starts only if what is spent, what the running ones are expected to
take and what it is expected to take itself stay within it.

Expected is a trial's cost by the bill times the hours per cost of the study's own ended trials,
their median; before any has ended, the bill's hours on A100s. On CPUs there is no such arithmetic:
there the cheapest trial goes first, alone, and is the measurement.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping

from phenoscale.scheduling import Job


class Budget:
    """The meter of a study's GPU-hours, and their limit."""

    def __init__(
        self,
        jobs: Iterable[Job],
        *,
        limit_hours: float | None = None,
        spent_hours: Mapping[str, float] | None = None,
        ended: Iterable[str] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Begins with what earlier runs of the study have spent.

        Args:
            jobs: all trials of the study, those with a row among them.
            limit_hours: GPU-hours that may be spent in all; None for no limit.
            spent_hours: by trial, of earlier attempts.
            ended: trials that have a row, whose hours tell what others will take.
            clock: seconds.
        """
        self._jobs = {job.name: job for job in jobs}
        self.limit_hours = limit_hours
        self._spent = dict(spent_hours or {})
        self._chosen: set[str] = set()
        self._began: dict[str, float] = {}
        self._tried: set[str] = set()
        self._ratios: dict[tuple[bool, bool], list[float]] = {}
        self._clock = clock
        for name in ended:
            self._measure(name)

    def chosen(self, name: str) -> None:
        """A trial is about to start: from now on it is counted with what it is expected to take."""
        self._chosen.add(name)
        self._tried.add(name)

    def began(self, name: str) -> None:
        """A trial holds its workers from now on."""
        self.chosen(name)
        self._began[name] = self._clock()

    def ended(self, name: str, *, done: bool) -> None:
        """A trial's attempt is over; `done` if it left its row."""
        self._spent[name] = self.hours(name)
        self._began.pop(name, None)
        self._chosen.discard(name)
        if done:
            self._measure(name)

    def hours(self, name: str) -> float:
        """GPU-hours of all attempts of a trial so far, the running one included."""
        hours = self._spent.get(name, 0.0)
        if name in self._began:
            hours += (self._clock() - self._began[name]) / 3600 * self._jobs[name].holds
        return hours

    def spent_hours(self) -> float:
        """GPU-hours of the study so far."""
        return sum(self.hours(name) for name in self._spent.keys() | self._began.keys())

    def expected_hours(self, name: str) -> float | None:
        """GPU-hours that a trial will take from nothing to its row; None while that is unknown."""
        job = self._jobs[name]
        gpu = job.bill_hours is not None
        for kind in ((gpu, job.is_baseline), (gpu, not job.is_baseline)):
            if kind in self._ratios:
                return job.cost * statistics.median(self._ratios[kind])
        return job.bill_hours

    def admits(self, job: Job) -> bool:
        """Whether a trial may start."""
        if self.limit_hours is None:
            return True
        expected = self.expected_hours(job.name)
        if expected is None:
            return (
                not self._chosen
                and job.name == self._measurement()
                and self.spent_hours() < self.limit_hours
            )
        committed = sum(self._committed(name) for name in self._spent.keys() | self._chosen)
        return committed + expected <= self.limit_hours

    def _committed(self, name: str) -> float:
        """Hours spent on a trial, and where it runs those that it is still expected to take."""
        hours = self.hours(name)
        if name not in self._chosen:
            return hours
        return max(hours, self._spent.get(name, 0.0) + (self.expected_hours(name) or 0.0))

    def _measurement(self) -> str | None:
        """The trial that goes first where nothing is known: the cheapest that trains."""
        left = [job for name, job in self._jobs.items() if name not in self._tried]
        if not left:
            return None
        return min(left, key=lambda job: (job.is_baseline, job.cost, job.name)).name

    def _measure(self, name: str) -> None:
        job = self._jobs.get(name)
        if job is not None and job.cost > 0 and self.hours(name) > 0:
            kind = (job.bill_hours is not None, job.is_baseline)
            self._ratios.setdefault(kind, []).append(self.hours(name) / job.cost)
