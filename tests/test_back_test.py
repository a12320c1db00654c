from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from phenoscale.scaling.back_test import back_test
from phenoscale.scaling.points import Points, points_of
from tests.fabricated import make_row

X = 13 + 0.3 * np.arange(9)
NOISE = np.random.default_rng(0).normal(0, 0.005, 9)


def planted(scores: Sequence[float] | np.ndarray, x: np.ndarray = X) -> Points:
    rows = [
        make_row(
            trial_id=f"mae-{place}",
            backbone="nano/16",
            data_fraction=(place + 1) / 10,
            training_flops=float(10 ** x[place]),
            score=float(score),
        )
        for place, score in enumerate(scores)
    ]
    return points_of(rows)["mae"]


def test_the_upper_third_is_forecast_from_the_rest():
    scores = 0.3 + 0.05 * (X - 13) + NOISE
    test = back_test(planted(scores))
    assert (test.fitted, test.law, len(test.cases)) == (6, "log_linear", 3)
    assert test.cut_flops == pytest.approx(10 ** X[5])
    line = np.polyfit(X[:6], scores[:6], 1)
    forecast = np.polyval(line, X[6:])
    np.testing.assert_allclose([case.interval.value for case in test.cases], forecast)
    assert test.error == pytest.approx(np.sqrt(np.mean((forecast - scores[6:]) ** 2)))
    naive = scores[:6].max() - scores[6:]
    assert test.naive_error == pytest.approx(np.sqrt(np.mean(naive**2)))
    assert test.error < test.naive_error
    assert [case.observed for case in test.cases] == pytest.approx(scores[6:])
    assert [case.configuration for case in test.cases][0] == "nano/16 on 70% of the training wells"
    assert test.held == 3
    assert "better than taking the best score" in test.text
    assert test == back_test(planted(scores))


def test_a_law_that_ends_at_the_cut_is_caught():
    scores = 0.3 + 0.05 * np.minimum(X - 13, 1.5) + 0.1 * NOISE
    test = back_test(planted(scores))
    assert test.held == 0
    assert [case.held for case in test.cases] == [False] * 3
    assert test.error > test.naive_error
    assert "no better than taking the best score" in test.text
    assert "0 of 3 intervals held" in test.text


def test_intervals_hold_as_often_as_they_should():
    rng = np.random.default_rng(1)
    tests = [
        back_test(planted(0.3 + 0.05 * (X - 13) + rng.normal(0, 0.01, 9)), rounds=200, seed=study)
        for study in range(20)
    ]
    assert 0.85 < sum(test.held for test in tests) / 60 <= 1.0
    assert min(test.held for test in tests) < 3  # else the intervals are no 95% intervals


def test_a_cut_of_one_s_own():
    points = planted(0.3 + 0.05 * (X - 13) + NOISE)
    test = back_test(points, cut=10 ** X[3])
    assert (test.fitted, len(test.cases)) == (4, 5)
    assert test.cut_flops == pytest.approx(10 ** X[3])
    with pytest.raises(ValueError, match="2 configurations lie up to the cut and 7 above it"):
        back_test(points, cut=10 ** X[1])
    with pytest.raises(ValueError, match="9 configurations lie up to the cut and 0 above it"):
        back_test(points, cut=1e20)


def test_equal_runs_stand_on_one_side():
    x = np.array([13, 13.3, 13.6, 13.9, 14.2, 15.0, 15.001, 15.002, 15.003])
    test = back_test(planted(0.3 + 0.05 * (x - 13) + NOISE, x))
    assert (test.fitted, len(test.cases)) == (5, 4)


def test_seeds_of_a_configuration_are_one_case():
    rows = [
        make_row(
            trial_id=f"{place}-{seed}",
            data_fraction=(place + 1) / 10,
            seed=seed,
            training_flops=float(10 ** X[place]),
            score=0.3 + 0.02 * place + 0.01 * seed,
        )
        for place in range(4)
        for seed in range(3)
    ]
    test = back_test(points_of(rows)["mae"])
    assert (test.fitted, len(test.cases)) == (3, 1)
    assert test.cases[0].observed == pytest.approx(0.3 + 0.06 + 0.01)


def test_too_few_runs_and_equal_scores():
    for num in (1, 3):
        with pytest.raises(ValueError, match=f"{num} configurations.* needs 4 or more"):
            back_test(planted(np.linspace(0.3, 0.4, num)))
    with pytest.raises(ValueError, match="4 or more of different compute"):
        back_test(planted(np.linspace(0.3, 0.4, 9), np.full(9, 14.0)))
    flat = back_test(planted(np.full(9, 0.4)))
    assert flat.error == pytest.approx(0, abs=1e-9)
    assert flat.naive_error == pytest.approx(0, abs=1e-9)
