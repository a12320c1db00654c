"""How near the queue's order comes to the shortest time that a grid could take.

Command: python -m benchmarks.scheduling [--mixes N] [--json FILE]

Random grids on a simulated clock, no Ray: 20 to 80 trials of 1, 2, 4 or 8 GPUs on 16 GPUs, with
CPUs to match and times that spread over a factor of a hundred. Beside it the order that this one
replaced, smallest first: all trials of as many GPUs, the dearest first, then the next larger. The
bound is what no order can beat: all GPU-hours over all GPUs, or the longest trial.
"""

from __future__ import annotations

import argparse
import heapq
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from benchmarks.figures import figure, publish
from phenoscale.scheduling import Job, Queue

GPUS = 16
CAPACITY = {"GPU": float(GPUS), "CPU": 2.0 * GPUS + 1}


def random_grid(generator: np.random.Generator) -> list[Job]:
    """Trials whose cost is their time."""
    jobs = []
    for number in range(generator.integers(20, 81)):
        gpus = float(generator.choice((1, 2, 4, 8), p=(0.4, 0.3, 0.2, 0.1)))
        cost = float(10 ** generator.uniform(0, 2))
        jobs.append(Job(name=str(number), needs={"GPU": gpus, "CPU": 2 * gpus + 0.01}, cost=cost))
    return jobs


def bound(jobs: Sequence[Job]) -> float:
    """The least time that any order needs."""
    area = sum(job.cost * job.needs["GPU"] for job in jobs)
    return max(area / GPUS, max(job.cost for job in jobs))


def by_queue(jobs: Sequence[Job]) -> float:
    """Time of the whole grid in the queue's order."""
    return _time(Queue(jobs, CAPACITY))


def smallest_first(jobs: Sequence[Job]) -> float:
    """Time when one size runs after the other, the smallest first."""
    sizes = sorted({job.needs["GPU"] for job in jobs})
    return sum(
        _time(Queue([job for job in jobs if job.needs["GPU"] == size], CAPACITY)) for size in sizes
    )


def _time(queue: Queue) -> float:
    now, ends = 0.0, list[tuple[float, str]]()
    while True:
        while (job := queue.next()) is not None:
            heapq.heappush(ends, (now + job.cost, job.name))
        if not ends:
            return now
        now, name = heapq.heappop(ends)
        queue.end(name)


def main() -> None:
    """Prints the table, and writes JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mixes", type=int, default=500)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    grids = [random_grid(np.random.default_rng(seed)) for seed in range(arguments.mixes)]
    ways: dict[str, Callable[[Sequence[Job]], float]] = {
        "queue, largest first": by_queue,
        "one size after the other, smallest first": smallest_first,
    }
    figures = []
    for name, way in ways.items():
        over = np.array([way(grid) / bound(grid) for grid in grids])
        figures += [
            figure(f"{name}: mean time over the bound", float(over.mean()), "x"),
            figure(f"{name}: of nine in ten, at most", float(np.quantile(over, 0.9)), "x"),
        ]
    publish(figures, arguments.json)


if __name__ == "__main__":
    main()
