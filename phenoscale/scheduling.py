"""Which trial of a grid starts next: the policy, without Ray and without a clock.

Largest first, so that no large trial is left alone at the end. A trial starts as soon as what it
needs fits into what the running ones leave. A smaller one may pass a larger one that waits only
while some running trial holds at least as much, of everything, as the waiting one needs: whose end
then lets it in, whatever has started meanwhile. Where no running trial does, nothing passes, and
the running ones drain. So no trial waits for ever, and while all trials need one kind of thing, and
no machine is lost, nothing that fits ever waits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping

Amounts = Mapping[str, float]
"""Of each resource by Ray's name: CPU, GPU, or a custom one."""

_LEAST = 1e-6  # Ray counts in ten-thousandths; sums of such floats are off by less than this


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """What the policy knows of a trial."""

    name: str
    """Id of the trial."""
    needs: Amounts
    """All that the trial holds while it runs."""
    cost: float
    """Relative cost, in any one unit."""
    is_baseline: bool = False
    """Whether it trains nothing; its time then follows its cost by another rule."""
    holds: int = 1
    """GPUs that it holds, or workers where it has none: what its hours are multiplied by."""
    bill_hours: float | None = None
    """GPU-hours by the bill's arithmetic; None for a trial without GPUs."""

    @property
    def size(self) -> tuple[float, float, float]:
        """What trials are ordered by."""
        return self.needs.get("GPU", 0.0), self.needs.get("CPU", 0.0), self.cost


def total(amounts: Iterable[Amounts]) -> dict[str, float]:
    """The sum of each resource."""
    sums: dict[str, float] = {}
    for one in amounts:
        for name, amount in one.items():
            sums[name] = sums.get(name, 0.0) + amount
    return sums


def fits(needs: Amounts, room: Amounts) -> bool:
    """Whether there is at least as much of everything as is needed."""
    return all(amount <= room.get(name, 0.0) + _LEAST for name, amount in needs.items())


class Queue:
    """The trials of a grid that wait, and those that run."""

    def __init__(
        self,
        jobs: Iterable[Job],
        capacity: Amounts,
        *,
        at_once: int | None = None,
        admits: Callable[[Job], bool] = lambda job: True,
    ) -> None:
        """Begins with all jobs waiting.

        Args:
            jobs: the trials.
            capacity: all that the cluster has, or can have; may be set anew at any time.
            at_once: most trials that run at a time; None for as many as fit.
            admits: whether a trial may start now as far as something else than room decides, such
                as a budget. One that may not is left where it is, and holds nobody up.
        """
        self.waiting = sorted(jobs, key=lambda job: (*(-x for x in job.size), job.name))
        self.running: dict[str, Job] = {}
        self.capacity = capacity
        self._at_once = at_once
        self._admits = admits

    def next(self) -> Job | None:
        """Starts the next trial; None if none may start now."""
        if self._at_once is not None and len(self.running) >= self._at_once:
            return None
        free = self.free()
        for job in self.waiting:
            # Larger than what is left of a cluster: it waits for machines, not for trials.
            if not fits(job.needs, self.capacity) or not self._admits(job):
                continue
            if fits(job.needs, free):
                self.waiting.remove(job)
                self.running[job.name] = job
                return job
            if not any(fits(job.needs, other.needs) for other in self.running.values()):
                return None
        return None

    def end(self, name: str) -> None:
        """Takes note that a trial has left its room."""
        del self.running[name]

    def free(self) -> dict[str, float]:
        """What the running trials leave of the capacity."""
        held = total(job.needs for job in self.running.values())
        return {name: amount - held.get(name, 0.0) for name, amount in self.capacity.items()}

    def lacking_room(self) -> list[Job]:
        """Waiting trials that the whole cluster, as it is now, has no room for."""
        return [job for job in self.waiting if not fits(job.needs, self.capacity)]
