"""What a process has to be told before it trains: threads, memory, its place among the workers."""

from __future__ import annotations

import ctypes
import ctypes.util

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # mallopt(3)


def prepare_process(threads: int) -> None:
    """Sets the state that trials of one process share: call it at the start of each.

    Reused processes keep what the last trial set, so everything is set, every time.
    """
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    # A debugging aid that costs a pass over every new tensor; torch does not declare the switch.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    _keep_freed_memory()


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


def _keep_freed_memory() -> None:
    """Tells glibc to keep the 25 MB temporaries of a step instead of returning them to the kernel.

    Without it each step pays thousands of page faults (measured: 3,072 a step, 10% of its time). 32
    MiB is the largest threshold that glibc takes. Elsewhere than on glibc nothing happens.
    """
    name = ctypes.util.find_library("c")
    libc = ctypes.CDLL(name) if name else None
    if libc is not None and hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, 2**25)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(_M_TOP_PAD, 2**28)
