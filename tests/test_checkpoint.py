"""Checkpoints: what is saved comes back, bit for bit."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import pytest
import torch

from phenoscale import checkpoint
from phenoscale.checkpoint import Curve
from phenoscale.optim import build_optimizer
from tests.tiny import TINY, TINY_WSL, tiny_batch, tiny_model


def trained(trial, updates: int):
    """A model and its optimizer after some updates."""
    model = tiny_model(trial)
    optimizer = build_optimizer(model, trial.optim)
    noise = torch.rand(8, 4, generator=torch.Generator().manual_seed(0))
    for step in range(updates):
        batch = tiny_batch(trial, step)
        model(torch.from_numpy(batch["crops"]), torch.from_numpy(batch["labels"]), noise).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def curve_of(steps: int) -> Curve:
    curve = Curve()
    for step in range(steps):
        curve.append(step, 1 / (step + 3), 0.1 * step, 100.0 + step)
    return curve


@pytest.fixture
def saved(tmp_path: Path):
    """A checkpoint, and the model and optimizer that were saved in it."""
    model, optimizer = trained(TINY, 3)
    checkpoint.save(tmp_path, model, optimizer, curve_of(3))
    return tmp_path, model, optimizer


def assert_same_weights(one: torch.nn.Module, other: torch.nn.Module) -> None:
    theirs = other.state_dict()
    assert one.state_dict().keys() == theirs.keys()
    assert [n for n, x in one.state_dict().items() if not torch.equal(x, theirs[n])] == []


def test_weights_moments_and_curve_come_back(saved):
    directory, model, optimizer = saved
    other, other_optimizer = trained(TINY, 1)
    assert checkpoint.load(directory, other, other_optimizer) == curve_of(3)
    assert_same_weights(model, other)
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        one, two = optimizer.state[mine], other_optimizer.state[theirs]
        assert one.keys() == two.keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_checkpoint_loads_into_what_never_made_an_update(saved):
    """The usual case of a resumed trial: a new model, a new optimizer without moments."""
    directory, model, optimizer = saved
    other, other_optimizer = trained(TINY, 0)
    checkpoint.load(directory, other, other_optimizer)
    assert_same_weights(model, other)
    first, theirs = next(iter(model.parameters())), next(iter(other.parameters()))
    assert other_optimizer.state[theirs]["step"] == 3
    assert torch.equal(optimizer.state[first]["exp_avg"], other_optimizer.state[theirs]["exp_avg"])


def test_the_weights_alone_come_back(saved):
    directory, model, _ = saved
    other = tiny_model(TINY)
    checkpoint.load_model(directory, other)
    assert_same_weights(model, other)


def test_saving_changes_nothing(saved, tmp_path: Path):
    directory, model, optimizer = saved
    before = {name: x.clone() for name, x in model.state_dict().items()}
    checkpoint.save(tmp_path / "again", model, optimizer, curve_of(3))
    assert all(torch.equal(before[name], x) for name, x in model.state_dict().items())


def test_another_model_or_no_checkpoint_is_refused(saved, tmp_path: Path):
    """As a ValueError: torch raises a BaseException, which no launcher's handler catches."""
    with pytest.raises(ValueError, match="no checkpoint of this trial's model.*head.weight"):
        checkpoint.load_model(saved[0], tiny_model(TINY_WSL))
    with pytest.raises(ValueError, match="head.weight"):
        checkpoint.load(saved[0], *trained(TINY_WSL, 0))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty is no checkpoint"):
        checkpoint.load_model(tmp_path / "empty", tiny_model(TINY))


def test_the_curve_is_read_without_the_weights(saved):
    assert checkpoint.read_curve(saved[0]).loss == [1 / 3, 1 / 4, 1 / 5]


def test_nothing_is_said_about_the_missing_process_group(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """The warnings of the format would stand in a study's output once a checkpoint."""
    model, optimizer = trained(TINY, 1)
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")
        checkpoint.save(tmp_path, model, optimizer, Curve())
        checkpoint.load(tmp_path, model, optimizer)
        checkpoint.load_model(tmp_path, model)
    assert caplog.records == []
