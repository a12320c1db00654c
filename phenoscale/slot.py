"""What a trial costs the process that runs it: wall time of its slot, CPU time, peak memory."""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path

from phenoscale.memory import return_freed_memory


@dataclasses.dataclass(frozen=True)
class Use:
    """What a trial took."""

    wall_s: float
    """Wall seconds that it held its slot."""
    cpu_s: float
    """CPU seconds of this process."""
    peak_memory_gib: float
    """Peak resident memory of this process."""


class Slot:
    """What a trial costs the process it runs in.

    The wall time counts from the end of the process's previous trial, or from the start of the
    process, so that it includes whatever the scheduler and the imports took: the true price of a
    trial.
    """

    _free_since: float | None = None

    def __init__(self) -> None:
        if Slot._free_since is None:
            Slot._free_since = time.time() - _age_s()
        self._start = Slot._free_since
        return_freed_memory()  # what a trial leaves behind is freed when the next one begins
        self._cpu = time.process_time()
        _reset_peak_memory()

    def used(self) -> Use:
        """The cost so far; the slot is free from here."""
        now = time.time()
        Slot._free_since = now
        return Use(now - self._start, time.process_time() - self._cpu, peak_memory_gib())


def peak_memory_gib() -> float:
    """Peak resident memory of this process since the last reset, GiB (Linux: VmHWM)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 2**20
    raise RuntimeError("/proc/self/status has no VmHWM; phenoscale measures memory on Linux only.")


def _age_s() -> float:
    """Seconds since this process started (Linux: field 22 of stat, in ticks since boot).

    Counted from boot, since the time of day of the boot is not known exactly.
    """
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started


def _reset_peak_memory() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass  # not permitted in some containers: the peak is then the process's, an upper bound
