"""What a process has to be told before it trains: threads, memory, its place among the workers."""

from __future__ import annotations

import functools
import itertools
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from phenoscale.config import Optim, Placement
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


def wrap(model: Any, device: torch.device, placement: Placement) -> nn.Module:
    """The model as the step calls it, its layers compiled, recomputed and sharded as placed.

    Call it before the optimizer is built: FSDP puts other parameters into the model. The model
    keeps the names of its state, whatever is done to it here.

    Args:
        model: on the CPU; its `layers()` are the parts to treat one by one.
        device: where it trains.
        placement: strategy and options of the trial.
    """
    model.to(device)
    for layer in model.layers():
        if placement.recompute:
            # Inside of what compiles and shards: those see one forward pass, and run it twice.
            layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False)
        if placement.compiled:
            layer.compile()
    if not _distributed():
        return model
    if placement.strategy == "fsdp":
        mesh = init_device_mesh(device.type, (dist.get_world_size(),))
        for part in [*model.layers(), model]:
            fully_shard(part, mesh=mesh)
        return model
    return DistributedDataParallel(
        model,
        device_ids=[device] if device.type == "cuda" else None,
        find_unused_parameters=getattr(model, "leaves_parameters_out", False),
    )


def mixed_precision(optim: Optim, device: torch.device) -> torch.autocast:
    """Inside it products and convolutions are made in bf16 where the trial says so."""
    return torch.autocast(device.type, torch.bfloat16, enabled=optim.precision == "bf16")


def clip_gradients(model: nn.Module, largest: float) -> None:
    """Scales the gradient down where its global norm, over all workers' parts, is too large."""
    parameters = [p for p in model.parameters() if p.grad is not None]
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    nn.utils.clip_grads_with_norm_(parameters, largest, norm)


def mean_over_workers(value: torch.Tensor) -> torch.Tensor:
    """Mean of a scalar over all workers; the value itself where there is one."""
    value = value.detach()
    if _distributed():
        value = value.clone()
        dist.all_reduce(value, op=dist.ReduceOp.SUM)
        value /= dist.get_world_size()
    return value


def union_over_workers(values: set[int]) -> set[int]:
    """Union of a set over all workers; the set itself where there is one."""
    if not _distributed():
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


def _distributed() -> bool:
    return dist.is_initialized() and dist.get_world_size() > 1


def _tensor(array: np.ndarray) -> torch.Tensor:
    with warnings.catch_warnings():
        # A view of Ray's object store may not be written to, and the loop does not.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)
