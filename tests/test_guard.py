"""What counts as a spike of the loss. Losses that are no number are in test_train and test_ddp."""

from __future__ import annotations

import numpy as np
import pytest

from phenoscale.guard import SPIKE_WINDOW, is_spike


def falling(steps: int, noise: float) -> list[float]:
    rng = np.random.default_rng(3)
    return (1 + np.exp(-np.arange(steps) / 50) + noise * rng.normal(size=steps)).tolist()


def test_a_jump_is_a_spike_and_noise_is_none():
    before = falling(300, 0.02)
    assert not any(is_spike(before[:step], before[step]) for step in range(300))
    assert is_spike(before, 1.5)
    assert not is_spike(before, 1.1)
    assert not is_spike(before, 0.0)


def test_a_loss_that_hardly_moves_may_move_a_little():
    """Its deviation is next to nothing; a hundredth more is no spike."""
    assert not is_spike([1.0] * 100, 1.01)
    assert is_spike([1.0] * 100, 1.21)


@pytest.mark.parametrize("steps", [0, 1, SPIKE_WINDOW // 2 - 1])
def test_too_few_losses_tell_nothing(steps: int):
    assert not is_spike([1.0] * steps, 100.0)
    assert is_spike([1.0] * (SPIKE_WINDOW // 2), 100.0)


def test_only_the_last_losses_count():
    assert is_spike([9.0] * 1000 + [1.0] * SPIKE_WINDOW, 5.0)
