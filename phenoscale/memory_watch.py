"""The greatest memory of this process and all that it started, sampled while a study runs."""

from __future__ import annotations

import threading

import psutil

_EVERY_S = 2


class PeakMemory:
    """Samples the proportional memory of this process and all its children, every other second."""

    def __init__(self) -> None:
        """Nothing is sampled yet; `peak_gib` will hold the greatest sum, GiB."""
        self.peak_gib = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        """Begins to sample."""
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Ends."""
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        me = psutil.Process()
        while not self._stop.wait(_EVERY_S):
            total = 0
            for process in [me, *me.children(recursive=True)]:
                try:
                    total += process.memory_full_info().pss  # shared pages count once over all
                except psutil.Error:  # it has just ended
                    continue
            self.peak_gib = max(self.peak_gib, total / 2**30)
