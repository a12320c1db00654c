"""Optimizer and learning-rate schedule of a trial."""

from __future__ import annotations

import math

import torch
from timm.optim import Lion
from torch import nn

from phenoscale.config import Optim


def build_optimizer(model: nn.Module, optim: Optim) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019) or Lion (Chen et al. 2023, arXiv 2302.06675).

    Vectors (bias, norm, token, LayerScale) do not decay.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": optim.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    if optim.name == "lion":
        return Lion(groups, lr=optim.lr, betas=optim.betas)
    return torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, fused=True)


def learning_rate(optim: Optim, step: int, steps: int) -> float:
    """One-cycle cosine (the papers' schedule): linear from 0 to `lr`, then a half cosine back to 0.

    A function of the step alone, so that a resumed trial needs no schedule state.
    """
    warmup = max(1, round(optim.warmup_fraction * steps))
    if step < warmup:
        return optim.lr * (step + 1) / warmup
    return optim.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
