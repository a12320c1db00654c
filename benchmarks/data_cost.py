"""What a run costs: CPU of a process and all its descendants, and wall time, taken from outside.

Every way of loading lives in a process of its own, started afresh, so that no way inherits
another's threads, caches or allocator. It stays alive between runs: imports and the starts of
workers and of Ray are paid before the first run is measured.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import time
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil

Run = Callable[[], Iterator[npt.NDArray[np.uint8]]]
"""One pass over a run's crops: batches, uint8 (B, C, s, s)."""
Open = Callable[[Any], Run]
"""Opens files, writes packed ones where they are missing, starts workers; takes the job."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one run."""

    crops: int
    """Crops delivered."""
    cpu_s: float
    """CPU seconds, user and system, of all processes of the way."""
    wall_s: float
    """Seconds until the last batch was there."""


class Host:
    """A fresh process that runs one or more ways."""

    def __init__(self, ways: dict[str, tuple[Open, Any]]) -> None:
        """Starts the process; `ways` maps names to what opens them and its argument."""
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, ways))
        self._process.start()
        theirs.close()
        self._tree = psutil.Process(self._process.pid)

    def crops(self, way: str) -> Counter[int]:
        """Runs a way once and returns how often each crop's checksum came; opens it at first."""
        return self._ask("check", way)

    def measure(self, way: str) -> Cost:
        """Runs a way once, without a look at the pixels."""
        before = tree_cpu_s(self._tree)
        crops, wall_s = self._ask("run", way)
        after = tree_cpu_s(self._tree)
        lost = before.keys() - after.keys()
        if lost:
            # Their time may be lost with them, and the way would look cheaper than it is.
            raise RuntimeError(
                f"{len(lost)} processes of the way {way!r} ended while it was measured, so its CPU "
                "time is not known. Run the benchmark again."
            )
        return Cost(crops, sum(after.values()) - sum(before.values()), wall_s)

    def close(self) -> None:
        """Ends the process and what it started."""
        self._pipe.send(("stop", ""))
        self._process.join()

    def _ask(self, verb: str, way: str) -> Any:
        self._pipe.send((verb, way))
        answer = self._pipe.recv()
        if isinstance(answer, BaseException):
            raise RuntimeError(f"The way {way!r} failed.") from answer
        return answer


def tree_cpu_s(root: psutil.Process) -> dict[int, float]:
    """CPU seconds of each process of a tree; one that was reaped counts in its parent's."""
    spent = {}
    for process in (root, *root.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        spent[process.pid] = times.user + times.system + times.children_user + times.children_system
    return spent


def _serve(pipe: Connection, ways: dict[str, tuple[Open, Any]]) -> None:
    opened: dict[str, Run] = {}
    while True:
        verb, name = pipe.recv()
        if verb == "stop":
            pipe.send(None)
            pipe.close()
            return
        try:
            if name not in opened:
                open_way, job = ways[name]
                opened[name] = open_way(job)
            pipe.send(_checked(opened[name]) if verb == "check" else _timed(opened[name]))
        except Exception as error:  # noqa: BLE001 - it crosses to the process that asked
            pipe.send(RuntimeError(f"{type(error).__name__}: {error}"))


def _checked(run: Run) -> Counter[int]:
    from benchmarks.data_cases import checksums

    count: Counter[int] = Counter()
    for batch in run():
        count.update(checksums(batch))
    return count


def _timed(run: Run) -> tuple[int, float]:
    began, crops = time.perf_counter(), 0
    for batch in run():
        crops += len(batch)
    return crops, time.perf_counter() - began
