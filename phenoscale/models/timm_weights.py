"""Models of timm by name, filled with weights from a file, from the hub, or with random ones.

A file must hold all of the model's weights and nothing else but a classifier: a model that is
filled in part would embed, and mean nothing.
"""

from __future__ import annotations

import difflib
import hashlib
import pickle
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from timm.models import load_state_dict
from torch import nn

from phenoscale.config import RANDOM_WEIGHTS

_UNREADABLE = (  # what safetensors, torch and timm raise at a file that is none of theirs
    OSError,
    RuntimeError,
    ValueError,
    KeyError,
    AttributeError,
    TypeError,
    EOFError,
    pickle.UnpicklingError,
    SafetensorError,
)


def create_model(
    name: str, weights: str | Path | None, *, size_px: int | None = None, seed: int = 0
) -> nn.Module:
    """A model of timm without its classifier, with its weights.

    Args:
        name: of the model.
        weights: a file, "random", or None for those at the model hub.
        size_px: side of its pictures, where that is not the model's own.
        seed: of random weights.

    Raises:
        ValueError: if timm has no such model, it takes no pictures of that size, or the weights
            cannot be had, read, or do not fit.
    """
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=5, cutoff=0.4)
        raise ValueError(
            f"timm {timm.__version__} has no model {name!r}; near are {', '.join(near) or 'none'}. "
            "`timm.list_models()` lists them all."
        )
    config = timm.get_pretrained_cfg(name)
    assert config is not None
    options: dict[str, Any] = {}
    if size_px and config.fixed_input_size and size_px != config.input_size[-1]:
        options["dynamic_img_size"] = True
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model: nn.Module = timm.create_model(
                name, pretrained=weights is None, num_classes=0, **options
            )
    except TypeError as error:
        raise ValueError(
            f"{name} takes pictures of {config.input_size[-1]} px alone ({error}), not of "
            f"{size_px} px. Leave size_px out: crops are then resized."
        ) from error
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"The weights of {name} cannot be had from the model hub: {error} Give a file of its "
            'weights, or weights="random" for an untrained reference.'
        ) from error
    if weights not in (None, RANDOM_WEIGHTS):
        _fill(model, name, Path(str(weights)))
    return model


def _fill(model: nn.Module, name: str, path: Path) -> None:
    """Loads a file's weights into a model: all of them, those of a classifier left out."""
    if not path.is_file():
        raise ValueError(
            f"There is no file {path}. Give a .safetensors file or a checkpoint of torch, or "
            f'"{RANDOM_WEIGHTS}".'
        )
    try:
        given = load_state_dict(str(path), weights_only=True)
    except _UNREADABLE as error:
        raise ValueError(
            f"{path} cannot be read as weights ({type(error).__name__}: {error}). Give a "
            ".safetensors file, or a checkpoint of torch that holds tensors alone."
        ) from error
    heads = pretrained_cfg(model).get("classifier") or ()
    prefixes = tuple(f"{head}." for head in ([heads] if isinstance(heads, str) else heads))
    given = {key: x for key, x in given.items() if not key.startswith(prefixes)}
    wanted = model.state_dict()
    wrong = {
        "missing": sorted(wanted.keys() - given.keys()),
        "unknown": sorted(given.keys() - wanted.keys()),
        "of another shape": sorted(
            k for k in wanted.keys() & given.keys() if wanted[k].shape != given[k].shape
        ),
    }
    if any(wrong.values()):
        told = "; ".join(
            f"{len(keys)} {how} ({keys[0]}, ...)" for how, keys in wrong.items() if keys
        )
        raise ValueError(
            f"The weights of {path} are not those of {name}: of its tensors, {told}. Give the "
            "model's own weights, by timm's names."
        )
    model.load_state_dict(given)


def pretrained_cfg(model: nn.Module) -> dict[str, Any]:
    """What timm knows of a model's weights: size, mean and deviation of its pictures, ..."""
    config = model.pretrained_cfg
    assert isinstance(config, dict)
    return config


def weights_digest(model: nn.Module) -> str:
    """SHA-256 over names, types, shapes and values of all weights and buffers."""
    digest = hashlib.sha256()
    for name, x in sorted(model.state_dict().items()):
        digest.update(f"{name} {x.dtype} {tuple(x.shape)}\n".encode())
        digest.update(x.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
