"""Optimizer, learning-rate schedule and moving average of a trial."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from phenoscale.config import Optim


def build_optimizer(model: nn.Module, optim: Optim) -> torch.optim.Optimizer:
    """AdamW, Lion or Muon over the model's parameters, in two groups.

    AdamW: Loshchilov & Hutter 2019. Lion: Chen et al. 2023, arXiv 2302.06675. Muon: Jordan et al.
    2024, as timm has it, its updates scaled to the size of AdamW's (Liu et al. 2025, arXiv
    2502.16982), so that the same rates serve; what is no matrix is updated by AdamW with Nesterov's
    momentum.

    Vectors (bias, norm, token, LayerScale) do not decay.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": optim.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    if optim.name == "adamw":
        return torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, fused=True)
    from timm.optim import Lion, Muon  # 2.5 s that AdamW need not wait for

    if optim.name == "lion":
        return Lion(groups, lr=optim.lr, betas=optim.betas)
    return Muon(groups, lr=optim.lr, momentum=0.95, nesterov=True, betas=optim.betas)


def learning_rate(optim: Optim, step: int, steps: int) -> float:
    """One-cycle cosine (the papers' schedule): linear from 0 to `lr`, then a half cosine back to 0.

    A function of the step alone, so that a resumed trial needs no schedule state.
    """
    warmup = max(1, round(optim.warmup_fraction * steps))
    if step < warmup:
        return optim.lr * (step + 1) / warmup
    return optim.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


class WeightAverage:
    """Exponential moving average of the weights, whole or sharded as they are.

    The decay of update t, from 1, is at most (1 + t) / (10 + t), so that the random weights of the
    beginning are forgotten in time (as in TensorFlow's ExponentialMovingAverage).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Begins with the weights as they are; build it after the model is wrapped."""
        self._decay = decay
        self.weights = {name: p.detach().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module, updates: int) -> None:
        """Takes in the weights after so many updates."""
        decay = min(self._decay, (1 + updates) / (10 + updates))
        now: list[Any] = [p.detach() for p in model.parameters()]
        get_ema_multi_avg_fn(decay)(list(self.weights.values()), now, updates)
