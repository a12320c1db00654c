"""The bootstrap over configurations, on lines whose intervals are known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from phenoscale.scaling.resample import drawn_weights, wild_values


def line(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Design, hat matrix and coefficients of a straight line."""
    design = np.stack([np.ones_like(x), x], axis=1)
    solve = np.linalg.pinv(design)
    return design, design @ solve, solve @ y


def test_slopes_of_few_points_spread_as_students_t() -> None:
    """On average over studies, the 90% interval is as wide as Student's with HC3's enlargement."""
    rng = np.random.default_rng(0)
    x = np.arange(9.0)
    held, width, student = 0, [], []
    for study in range(300):
        y = 1 + 2 * x + rng.standard_normal(9)
        design, hat, coefficients = line(x, y)
        values = wild_values(
            hat @ y, y - hat @ y, np.diag(hat), parameters=2, rounds=400, seed=study
        )
        slopes = (values @ np.linalg.pinv(design).T)[:, 1]
        low, high = np.quantile(slopes, (0.05, 0.95))
        held += low <= 2 <= high
        width.append(high - low)
        error = np.sqrt(np.sum((y - hat @ y) ** 2) / 7 / np.sum((x - x.mean()) ** 2))
        student.append(2 * stats.t.ppf(0.95, 7) * error)
    assert 0.86 <= held / 300 <= 0.96
    assert 1.0 <= np.mean(width) / np.mean(student) <= 1.3


def test_the_same_seed_pairs_two_fits() -> None:
    ones = np.ones(5)
    given = {"leverages": np.full(5, 0.2), "parameters": 1, "rounds": 50, "seed": 3}
    one = wild_values(0 * ones, ones, **given)
    other = wild_values(7 * ones, 2 * ones, **given)
    assert other == pytest.approx(7 + 2 * one)
    assert not np.allclose(one, wild_values(0 * ones, ones, **(given | {"seed": 4})))


def test_a_fit_without_freedom_has_no_interval() -> None:
    with pytest.raises(ValueError, match="2 configurations for 2 parameters.*needs 1 more"):
        wild_values(np.zeros(2), np.zeros(2), np.full(2, 1.0), parameters=2, rounds=40, seed=0)


def test_a_point_that_the_fit_goes_through_stays_finite() -> None:
    leverages = np.array([1.0, 0.5, 0.5])
    values = wild_values(np.zeros(3), np.ones(3), leverages, parameters=2, rounds=40, seed=0)
    assert np.isfinite(values).all()


def test_drawn_configurations_sum_to_as_many() -> None:
    weights = drawn_weights(40, rounds=200, seed=1)
    assert (weights.sum(axis=1) == 40).all()
    assert weights.mean() == 1
    assert weights.var(axis=0).mean() == pytest.approx(39 / 40, rel=0.1)
    assert (weights == drawn_weights(40, rounds=200, seed=1)).all()
