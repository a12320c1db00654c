"""A trial's tensors by name, and the safetensors files that hold them."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint import HuggingFaceStorageReader
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.optim import Optimizer

from phenoscale.optim import WeightAverage


def tensors_of(
    model: nn.Module, optimizer: Optimizer, average: WeightAverage | None
) -> dict[str, torch.Tensor]:
    """All of a trial's tensors by name: references, whole or sharded as they are."""
    state = {f"model.{name}": x.detach() for name, x in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for key, x in optimizer.state.get(parameter, {}).items():
            if isinstance(x, torch.Tensor):  # else a flag, made again from the parameter's shape
                state[f"optim.{name}.{key}"] = x
    if average is not None:
        state |= {f"average.{name}": x for name, x in average.weights.items()}
    return state


def empty_moments(
    folder: str, model: nn.Module, optimizer: Optimizer
) -> dict[str, dict[str, torch.Tensor]]:
    """Room for the optimizer's state of each parameter, as far as the checkpoint has it.

    An optimizer makes its state at its first update, so a new one has none to fill.
    """
    saved = names_in(folder)
    on_device = bool(optimizer.defaults.get("fused"))
    moments: dict[str, dict[str, torch.Tensor]] = {}
    for name, parameter in model.named_parameters():
        prefix = f"optim.{name}."
        for full in (n for n in saved if n.startswith(prefix) and "." not in n[len(prefix) :]):
            if saved[full] == parameter.shape and parameter.ndim:
                empty = torch.zeros_like(parameter, requires_grad=False)
            else:  # a count of updates
                empty = torch.zeros(saved[full], device=parameter.device if on_device else "cpu")
            moments.setdefault(name, {})[full[len(prefix) :]] = empty
    return moments


def names_in(folder: str) -> dict[str, torch.Size]:
    """Names and shapes of the tensors in a folder of safetensors files."""
    with quiet():
        metadata = HuggingFaceStorageReader(folder).read_metadata()
    return {
        name: entry.size
        for name, entry in metadata.state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata)
    }


def read_into(folder: str, state: dict[str, Any], no_dist: bool) -> None:
    """Fills `state` from a checkpoint."""
    try:
        with quiet():
            dcp.load(state, storage_reader=HuggingFaceStorageReader(folder), no_dist=no_dist)
    # A BaseException, which would pass every launcher's handler.
    except CheckpointException as error:
        reason = next(iter(error.failures.values()))[0]
        raise ValueError(
            f"{folder} is no checkpoint of this trial's model: {reason} "
            "Remove it to train from the start."
        ) from error


class quiet(warnings.catch_warnings):
    """Silences what the format says about running without a process group, which is meant here."""

    def __enter__(self) -> None:
        super().__enter__()
        warnings.simplefilter("ignore")
        logging.getLogger("torch.distributed.checkpoint").setLevel(logging.ERROR)
