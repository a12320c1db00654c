"""What a process has to be told before it trains: threads, memory, its place among the workers."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from phenoscale.memory import keep_freed_memory
from phenoscale.turns import turned

_TENSORS = ("crops", "turns", "labels")  # of a batch


def prepare_process(threads: int) -> None:
    """Sets the state that trials of one process share: call it at the start of each.

    Reused processes keep what the last trial set, so everything is set, every time.
    """
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    # A debugging aid that costs a pass over every new tensor; torch does not declare the switch.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    keep_freed_memory()


def wrap(model: nn.Module, device: torch.device) -> nn.Module:
    """The model as the step calls it: DDP where there are other workers, else the model itself."""
    model.to(device)
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return model
    return DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)


def mean_over_workers(value: torch.Tensor) -> torch.Tensor:
    """Mean of a scalar over all workers; the value itself where there is one."""
    value = value.detach()
    if dist.is_initialized() and dist.get_world_size() > 1:
        value = value.clone()
        dist.all_reduce(value, op=dist.ReduceOp.SUM)
        value /= dist.get_world_size()
    return value


def union_over_workers(values: set[int]) -> set[int]:
    """Union of a set over all workers; the set itself where there is one."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return values
    everyone: list[set[int]] = [set()] * dist.get_world_size()
    dist.all_gather_object(everyone, values)
    return set().union(*everyone)


def on_device(
    batches: Iterator[dict[str, np.ndarray]], device: torch.device
) -> Iterator[tuple[dict[str, np.ndarray], torch.Tensor, torch.Tensor]]:
    """Batches with their crops, turned, and labels as tensors on the device.

    On a GPU the next batch is copied, from pinned memory and on a stream of its own, while the one
    before it is being trained on.
    """
    if device.type != "cuda":
        for batch in batches:
            crops, turns, labels = (_tensor(batch[name]) for name in _TENSORS)
            yield batch, turned(crops, turns), labels
        return
    side = torch.cuda.Stream(device)

    def copied(
        batch: dict[str, np.ndarray],
    ) -> tuple[dict[str, np.ndarray], torch.Tensor, torch.Tensor]:
        with torch.cuda.stream(side):
            crops, turns, labels = (
                _tensor(batch[name]).pin_memory().to(device, non_blocking=True) for name in _TENSORS
            )
            return batch, turned(crops, turns), labels

    coming = [copied(batch) for batch in itertools.islice(batches, 1)]
    while coming:
        batch, crops, labels = coming.pop()
        current = torch.cuda.current_stream(device)
        current.wait_stream(side)
        for tensor in (crops, labels):
            tensor.record_stream(current)  # its memory is not reused before the step is through
        coming += [copied(batch) for batch in itertools.islice(batches, 1)]
        yield batch, crops, labels


def _tensor(array: np.ndarray) -> torch.Tensor:
    with warnings.catch_warnings():
        # A view of Ray's object store may not be written to, and the loop does not.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)
