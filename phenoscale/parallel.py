"""A process among the workers of a trial: its threads and memory, its part of the gradient."""

from __future__ import annotations

import contextlib
import functools
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from phenoscale.backbones import VisionTransformer, backbone
from phenoscale.config import Placement, Strategy, Trial
from phenoscale.cpu import multiplies_bf16
from phenoscale.memory import keep_freed_memory

NARROW = 192
"""Width below which bf16 makes a transformer slower on a CPU (one core with AMX, training, crops/s
in fp32 and bf16: width 64 1345 and 875, 128 346 and 313, 192 124 and 126)."""
_AMPERE = (8, 0)

T = TypeVar("T")


def prepare_process(threads: int) -> None:
    """Sets the state that trials of one process share: call it at the start of each.

    Reused processes keep what the last trial set, so everything is set, every time.
    """
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    # A debugging aid that costs a pass over every new tensor; torch does not declare the switch.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    keep_freed_memory()


def precision_of(trial: Trial, device: torch.device) -> str:
    """fp32 or bf16: what the trial asks for, or what "auto" means on this device."""
    if trial.optim.precision != "auto":
        return trial.optim.precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= _AMPERE else "fp32"
    shape = backbone(trial.backbone)
    wide = not isinstance(shape, VisionTransformer) or shape.width >= NARROW
    return "bf16" if wide and multiplies_bf16() else "fp32"


class Gradient:
    """The gradient of a step: the model wrapped for its workers, timed where they wait.

    The loop gives it pieces of the worker's share of the global batch and gets the gradient of the
    global batch's mean loss, whatever strategy and options the placement names.
    """

    def __init__(
        self,
        model: Any,
        device: torch.device,
        placement: Placement,
        *,
        strategy: Strategy = "ddp",
        precision: str = "fp32",
    ) -> None:
        """Compiles, shards or replicates the model; build the optimizer afterwards.

        FSDP puts other parameters into the model. The model keeps the names of its state, whatever
        is done to it here.

        Args:
            model: on the CPU; its `layers()` are the parts to treat one by one.
            device: where it trains.
            placement: options of the trial.
            strategy: of several workers.
            precision: of products and convolutions.
        """
        self._device, self._precision = device, precision
        self._last_bucket = _Moment(device)
        self._wrapped = wrap(model, device, placement, strategy)
        if isinstance(self._wrapped, DistributedDataParallel):
            # Its nodes of the graph find it by one weak reference that they share. A collection of
            # garbage in another thread (crops, checkpoints), while this one is in torch without
            # the GIL, can take such a node and what it holds for dead, and clears the reference:
            # so it is held here.
            self._reference = weakref.ref(self._wrapped)
            self._wrapped.register_comm_hook(self._last_bucket, _timed_allreduce)
        self._wrapped.train()

    def add(
        self,
        crops: torch.Tensor,
        labels: torch.Tensor,
        draws: torch.Tensor,
        pieces: Sequence[slice],
        global_batch_size: int,
    ) -> tuple[torch.Tensor, Callable[[], float]]:
        """Adds this share's part of the gradient of the mean loss over the global batch.

        Shares and pieces need not be equal: each counts by its crops.

        Args:
            crops: (B, C, H, W) uint8, this worker's share.
            labels: (B,) int64.
            draws: (B, R) float32.
            pieces: of the share, to put through the model one after the other.
            global_batch_size: crops of all workers.

        Returns:
            () float32, the sum of the losses of this share's crops; and what gives the seconds
            spent waiting for other workers when nothing was left to compute (DDP; with FSDP the
            exchange lies among the layers and counts as computing).
        """
        world = dist.get_world_size() if distributed() else 1
        total = torch.zeros((), device=self._device)
        for number, piece in enumerate(pieces, start=1):
            size = piece.stop - piece.start
            with self._exchanging(last=number == len(pieces)):
                with mixed_precision(self._precision, self._device):
                    loss = self._wrapped(crops[piece], labels[piece], draws[piece])
                # Workers average their gradients, and this one holds so much of the batch.
                (loss * (size * world / global_batch_size)).backward()
            total += loss.detach().float() * size
        return total, self._last_bucket.since()

    def _exchanging(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """Gradients are exchanged after the last piece alone.

        Not so with FSDP, which would have to keep whole gradients until then.
        """
        if last or not isinstance(self._wrapped, DistributedDataParallel):
            return contextlib.nullcontext()
        return self._wrapped.no_sync()


def mixed_precision(precision: str, device: torch.device) -> torch.autocast:
    """Inside it products and convolutions are made in bf16 where the precision says so."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


class _Moment:
    """A moment on the device's own clock, and the time from it to now."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._at: Any = None

    def mark(self) -> None:
        """Now, in the order of what the device was told to do."""
        self._at = self._now()

    def since(self) -> Callable[[], float]:
        """Seconds from the mark to now; call the result when the device has come so far."""
        if self._at is None:
            return lambda: 0.0
        start, end = self._at, self._now()
        self._at = None
        if self._cuda:
            return lambda: float(start.elapsed_time(end)) / 1000
        return lambda: float(end - start)

    def _now(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def _timed_allreduce(moment: _Moment, bucket: dist.GradBucket) -> torch.futures.Future[Any]:
    """DDP's own averaging of a bucket of gradients; the last bucket ends the computing."""
    if bucket.is_last():
        moment.mark()
    assert dist.group.WORLD is not None
    return allreduce_hook(dist.group.WORLD, bucket)


# DDP looks at the types themselves, which are but their names here.
_timed_allreduce.__annotations__ = {
    "bucket": dist.GradBucket,
    "return": torch.futures.Future[torch.Tensor],
}


def wrap(
    model: Any, device: torch.device, placement: Placement, strategy: Strategy = "ddp"
) -> nn.Module:
    """The model on its device, its layers recomputed, compiled and sharded as placed."""
    model.to(device)
    for layer in model.layers():
        if placement.recompute:
            # Inside of what compiles and shards: those see one forward pass, and run it twice.
            layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False)
        if placement.compiled:
            layer.compile()
    if not distributed():
        return model
    if strategy == "fsdp":
        mesh = init_device_mesh(device.type, (dist.get_world_size(),))
        for part in [*model.layers(), model]:
            fully_shard(part, mesh=mesh)
        return model
    return DistributedDataParallel(
        model,
        device_ids=[device] if device.type == "cuda" else None,
        find_unused_parameters=getattr(model, "leaves_parameters_out", False),
    )


def clip_gradients(model: nn.Module, largest: float) -> torch.Tensor:
    """Scales the gradient down where its norm is too large.

    Returns:
        () float32, the global norm before, over all workers' parts.
    """
    parameters = [p for p in model.parameters() if p.grad is not None]
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    nn.utils.clip_grads_with_norm_(parameters, largest, norm)
    return norm


def sum_over_workers(values: torch.Tensor) -> torch.Tensor:
    """Elementwise sum over all workers, in place; the values themselves where there is one."""
    if distributed():
        dist.all_reduce(values, op=dist.ReduceOp.SUM)
    return values


def gathered(value: T) -> list[T]:
    """The values of all workers, in the order of their ranks."""
    if not distributed():
        return [value]
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, value)
    return everyone


def agreed(answer: Callable[[], T]) -> T:
    """The first worker's answer, on all workers."""
    if not distributed():
        return answer()
    box: list[Any] = [answer() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def distributed() -> bool:
    """Whether several workers train together."""
    return dist.is_initialized() and dist.get_world_size() > 1
