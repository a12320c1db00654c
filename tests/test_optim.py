"""Optimizer groups and the schedule."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from phenoscale.config import Optim
from phenoscale.optim import WeightAverage, build_optimizer, learning_rate
from tests.tiny import TINY, tiny_model

OPTIM = Optim(lr=0.2, warmup_fraction=0.1, weight_decay=0.3, betas=(0.8, 0.9))


def test_matrices_decay_and_vectors_do_not():
    model = tiny_model(TINY)
    optimizer = build_optimizer(model, OPTIM)
    decay, rest = optimizer.param_groups
    assert (decay["weight_decay"], rest["weight_decay"]) == (0.3, 0.0)
    assert decay["betas"] == (0.8, 0.9)
    names = {id(p): name for name, p in model.named_parameters()}
    assert {names[id(p)] for p in decay["params"]} == {
        name for name in names.values() if name.endswith("weight") and "norm" not in name
    }
    assert {names[id(p)] for p in rest["params"]} == {
        n for n in names.values() if n.endswith(("bias", "token")) or "norm" in n
    }


def test_frozen_parameters_are_left_out():
    model = tiny_model(TINY)
    model.get_submodule("encoder").requires_grad_(False)
    held = [p for group in build_optimizer(model, OPTIM).param_groups for p in group["params"]]
    assert len(held) == sum(p.requires_grad for p in model.parameters()) > 0


def test_an_update_is_adamws():
    """One step against the definition, Loshchilov & Hutter 2019, algorithm 2."""
    weight = torch.nn.Linear(2, 2, bias=False)
    before = weight.weight.detach().clone()
    optimizer = build_optimizer(weight, OPTIM)
    weight.weight.grad = torch.tensor([[1.0, -2.0], [0.5, 3.0]])
    optimizer.step()
    # In the first step the corrected moments are the gradient and its square: a step of lr in its
    # sign.
    expected = before * (1 - 0.2 * 0.3) - 0.2 * torch.sign(weight.weight.grad)
    torch.testing.assert_close(weight.weight.detach(), expected)


def test_an_update_is_lions():
    """Two steps against the definition, Chen et al. 2023, algorithm 2."""
    weight = torch.nn.Linear(2, 2, bias=False)
    expected = weight.weight.detach().clone()
    optimizer = build_optimizer(weight, dataclasses.replace(OPTIM, name="lion"))
    moment = torch.zeros(2, 2)
    for gradient in (torch.tensor([[1.0, -2.0], [0.5, 3.0]]), torch.tensor([[-9.0, 1], [1, -1]])):
        weight.weight.grad = gradient
        optimizer.step()
        update = torch.sign(0.8 * moment + 0.2 * gradient)
        expected = expected * (1 - 0.2 * 0.3) - 0.2 * update
        moment = 0.9 * moment + 0.1 * gradient
    torch.testing.assert_close(weight.weight.detach(), expected)


def test_an_update_of_muon_has_singular_values_of_one_size():
    """Muon moves a matrix by lr in an orthogonal direction, scaled to the size of AdamW's steps.

    0.2 sqrt(larger side) makes its root mean square 0.2 (Liu et al. 2025, section 2.2).
    """
    torch.manual_seed(0)
    layer = torch.nn.Linear(48, 16)
    before, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    optim = dataclasses.replace(OPTIM, name="muon", weight_decay=0.0, lr=0.1)
    optimizer = build_optimizer(layer, optim)
    layer.weight.grad = torch.randn(16, 48)
    layer.bias.grad = torch.randn(16)
    optimizer.step()
    moved = torch.linalg.svdvals(layer.weight.detach() - before) / 0.1
    assert moved.max() / moved.min() < 2  # of the gradient it is 3.4
    assert (layer.weight.detach() - before).square().mean().sqrt() == pytest.approx(0.02, rel=0.25)
    assert torch.equal((bias - layer.bias.detach()).sign(), layer.bias.grad.sign())


def test_an_average_follows_the_weights():
    layer = torch.nn.Linear(3, 2)
    average = WeightAverage(layer, 0.8)
    expected = {name: p.detach().clone() for name, p in layer.named_parameters()}
    for updates in range(1, 60):
        with torch.no_grad():
            for p in layer.parameters():
                p += 1.0
        average.update(layer, updates)
        decay = min(0.8, (1 + updates) / (10 + updates))
        for name, p in layer.named_parameters():
            expected[name] = decay * expected[name] + (1 - decay) * p.detach()
    for name, p in layer.named_parameters():
        torch.testing.assert_close(average.weights[name], expected[name])
        assert not average.weights[name].requires_grad and (average.weights[name] < p).all()


def test_one_cycle_by_hand():
    rates = [learning_rate(OPTIM, step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([0.02 * (i + 1) for i in range(10)])
    assert rates[10] == pytest.approx(0.2)
    assert rates[55] == pytest.approx(0.1)  # half way through the cosine
    assert rates[99] == pytest.approx(0.1 * (1 + math.cos(math.pi * 89 / 90)))


@given(steps=st.integers(1, 300), warmup=st.floats(0, 0.99))
def test_the_rate_rises_to_its_peak_and_falls(steps: int, warmup: float):
    optim = Optim(lr=1.0, warmup_fraction=warmup)
    rates = [learning_rate(optim, step, steps) for step in range(steps)]
    peak = max(1, round(warmup * steps)) - 1
    assert all(0 < rate <= 1 for rate in rates)
    assert rates[peak] == pytest.approx(1.0)
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
