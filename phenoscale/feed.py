"""Batches on their way to the device: turned, copied ahead, and missed when they do not come."""

from __future__ import annotations

import queue
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from phenoscale.turns import turned

Batch = dict[str, np.ndarray]
"""crops (B, C, H, W) uint8; turns, labels, rows, bad (B,) int64; read_cpu_s (B,): `cutter.py`."""

Given = tuple[Batch, torch.Tensor, torch.Tensor]
"""A batch, its crops turned, and its labels, both on the device."""

_TENSORS = ("crops", "turns", "labels")  # of a batch
_LOOK_S = 0.2  # how soon a stopped feed lets its thread go


class StalledError(RuntimeError):
    """No crops came for longer than a trial waits."""


def feed(batches: Iterator[Batch], device: torch.device, stall_s: float) -> Iterator[Given]:
    """The batches with their tensors on the device, fetched one ahead by a thread.

    On a GPU the thread copies them too, from pinned memory and on a stream of its own, while the
    batch before is being trained on. On a CPU it leaves their tensors alone: a second thread that
    computes makes OpenMP's own, more than there are cores, sleep between products (two cores, S/16:
    129 ms a crop instead of 110).

    Args:
        batches: of one worker.
        device: where it trains.
        stall_s: seconds to wait for a batch.

    Raises:
        StalledError: if none came in that time.
    """
    ready: queue.Queue[Any] = queue.Queue(maxsize=1)
    stopped = threading.Event()

    def put(item: Any) -> bool:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=_LOOK_S)
                return True
            except queue.Full:
                continue
        return False

    def pull() -> None:
        side = torch.cuda.Stream(device) if device.type == "cuda" else None
        try:
            for batch in batches:
                if not put(_copied(batch, device, side) if side else batch):
                    break
            else:
                put(None)
        except BaseException as error:  # noqa: BLE001  it is raised where the batch was awaited
            put(error)
        finally:
            if hasattr(batches, "close"):
                batches.close()

    threading.Thread(target=pull, name="feed", daemon=True).start()
    try:
        while (item := _wait(ready, stall_s)) is not None:
            if isinstance(item, BaseException):
                raise item
            if isinstance(item, dict):
                yield on_device(item, device)
                continue
            given, copied = item
            current = torch.cuda.current_stream(device)
            current.wait_event(copied)
            for tensor in given[1:]:
                tensor.record_stream(current)  # its memory is kept until the step is through
            yield given
    finally:
        stopped.set()


def on_device(batch: Batch, device: torch.device) -> Given:
    """The batch with its tensors on the device."""
    crops, turns, labels = (_tensor(batch[name]).to(device) for name in _TENSORS)
    return batch, turned(crops, turns), labels


def _copied(
    batch: Batch, device: torch.device, side: torch.cuda.Stream
) -> tuple[Given, torch.cuda.Event]:
    """The same from pinned memory on a stream beside, and the event after which it is there."""
    with torch.cuda.stream(side):
        crops, turns, labels = (
            _tensor(batch[name]).pin_memory().to(device, non_blocking=True) for name in _TENSORS
        )
        given = (batch, turned(crops, turns), labels)
        return given, side.record_event()


def _wait(ready: queue.Queue[Any], stall_s: float) -> Any:
    try:
        return ready.get(timeout=stall_s)
    except queue.Empty:
        raise StalledError(
            f"No crops came for {stall_s:g} s. Look whether the storage of the screen answers and "
            "whether Ray has CPUs left for the readers, or give a larger placement.stall_s."
        ) from None


def _tensor(array: np.ndarray) -> torch.Tensor:
    with warnings.catch_warnings():
        # A view of Ray's object store may not be written to, and the loop does not.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)
