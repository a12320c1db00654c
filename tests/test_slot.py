"""What a trial costs its process."""

from __future__ import annotations

import subprocess
import sys
import time

import numpy as np
import pytest

from phenoscale.slot import Slot, peak_memory_gib


def test_a_slot_counts_from_the_end_of_the_one_before():
    Slot().used()
    freed = time.time()
    time.sleep(0.2)  # the scheduler's time between two trials
    slot = Slot()
    time.sleep(0.1)
    used = slot.used()
    assert used.wall_s == pytest.approx(time.time() - freed, abs=0.05)
    assert used.wall_s >= 0.3


def test_the_first_slot_counts_from_the_start_of_the_process():
    code = (
        "import time; time.sleep(0.4); from phenoscale.slot import Slot; s = Slot();"
        "print(s.used().wall_s, Slot().used().wall_s)"
    )
    began = time.time()
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, second = (float(word) for word in out.stdout.split())
    # The kernel counts a process's start in hundredths of a second.
    assert 0.39 <= first <= time.time() - began + 0.02
    assert second < 0.3


def test_cpu_time_is_the_slots_own():
    Slot().used()
    sum(i * i for i in range(300_000))
    slot = Slot()
    before = time.process_time()
    while time.process_time() - before < 0.1:
        pass
    assert slot.used().cpu_s == pytest.approx(0.1, abs=0.03)
    time.sleep(0.05)
    idle = Slot()
    time.sleep(0.05)
    assert idle.used().cpu_s < 0.03


def test_peak_memory_sees_what_was_freed():
    Slot()
    before = peak_memory_gib()
    block = np.ones(2**28, dtype=np.uint8)
    del block
    assert peak_memory_gib() >= before + 0.2
    assert 0.2 < peak_memory_gib() < 64
