"""What runs are worth: against brute-force inverses, closed forms and exhaustive search."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from phenoscale.scaling.next_runs import (
    choose_runs,
    covariance_of,
    improvement_gains,
    updated,
    variance_gains,
    variance_removed,
)


def problem(seed: int, runs: int = 7, coefficients: int = 3, targets: int = 2):
    rng = np.random.default_rng(seed)
    design = rng.standard_normal((6, coefficients))
    return (
        design,
        rng.uniform(0.1, 1, 6),
        rng.standard_normal((runs, coefficients)),
        rng.uniform(0.1, 1, runs),
        rng.standard_normal((targets, coefficients)),
    )


def information(design, noise):
    return sum(np.outer(x, x) / sd**2 for x, sd in zip(design, noise, strict=True))


@settings(max_examples=15)
@given(st.integers(0, 10_000))
def test_the_update_equals_the_inverse_with_the_run_in_it(seed):
    design, noise, runs, sd, targets = problem(seed)
    flat = np.full(3, np.inf)
    known = covariance_of(design, noise, flat)
    np.testing.assert_allclose(known, np.linalg.inv(information(design, noise)), rtol=1e-6)
    removed = variance_removed(known, runs, sd, targets)
    for place, (run, own) in enumerate(zip(runs, sd, strict=True)):
        after = np.linalg.inv(information([*design, run], [*noise, own]))
        np.testing.assert_allclose(updated(known, run, own), after, rtol=1e-6, atol=1e-12)
        fell = [g @ known @ g - g @ after @ g for g in targets]
        np.testing.assert_allclose(removed[place], fell, rtol=1e-5, atol=1e-12)
    np.testing.assert_allclose(
        variance_gains(known, runs, sd, targets)([2, 5]).sum(),
        variance_removed(
            np.linalg.inv(information([*design, *runs[[2, 5]]], [*noise, *sd[[2, 5]]])),
            runs, sd, targets,
        ).sum(),
        rtol=1e-5,
    )  # fmt: skip


def test_a_prior_is_a_measurement_of_zero():
    design, noise, _, _, _ = problem(0)
    prior = np.array([np.inf, 0.3, 0.2])
    rows = [*design, [0, 1, 0], [0, 0, 1]]
    expected = np.linalg.inv(information(np.array(rows), [*noise, 0.3, 0.2]))
    np.testing.assert_allclose(covariance_of(design, noise, prior), expected)
    one_size = np.array([[1.0, 0.0, x] for x in (0, 1, 2)])
    known = covariance_of(one_size, np.full(3, 0.01), prior)
    assert known[1, 1] == pytest.approx(0.3**2)  # nothing was learnt of sizes


def test_a_run_without_a_word_to_say_removes_nothing():
    design, noise, runs, _, targets = problem(1)
    known = covariance_of(design, noise, np.full(3, np.inf))
    assert variance_removed(known, runs, np.full(7, np.inf), targets).max() == 0


def test_expected_improvement_of_normal_draws_is_the_closed_form():
    mean, sd, best = np.array([0.3, 0.42, 0.5]), np.array([0.1, 0.05, 0.02]), 0.45
    quantiles = stats.norm.ppf((np.arange(40_000) + 0.5) / 40_000)
    gains = improvement_gains(mean + sd * quantiles[:, None], best)
    z = (mean - best) / sd
    closed = (mean - best) * stats.norm.cdf(z) + sd * stats.norm.pdf(z)  # Jones et al. 1998
    np.testing.assert_allclose(gains(()), closed, rtol=1e-3)
    together = np.maximum(best, (mean + sd * quantiles[:, None])).max(axis=1).mean() - best
    assert gains(()).max() <= together <= gains(()).sum()
    assert gains((2,))[0] + gains(())[2] == pytest.approx(gains((0,))[2] + gains(())[0])
    assert (gains((0, 1, 2)) == 0).all()


@settings(max_examples=20)
@given(st.integers(0, 10_000), st.floats(0.2, 4))
def test_the_choice_keeps_the_budget_and_comes_near_the_best(seed, budget):
    rng = np.random.default_rng(seed)
    draws, costs = rng.normal(0.4, 0.1, (200, 8)), rng.uniform(0.1, 1, 8)
    gains = improvement_gains(draws, 0.5)
    chosen = choose_runs(gains, costs, budget)
    assert len(set(chosen)) == len(chosen) and costs[list(chosen)].sum() <= budget * (1 + 1e-9)

    def worth(runs):
        return np.maximum(draws[:, list(runs)].max(axis=1, initial=0.5), 0.5).mean() - 0.5

    fitting = [
        runs
        for number in range(1, 9)
        for runs in itertools.combinations(range(8), number)
        if costs[list(runs)].sum() <= budget
    ]
    best = max((worth(runs) for runs in fitting), default=0.0)
    # Of a submodular worth, greedy with the guard has at least this share (Khuller et al. 1999).
    assert worth(chosen) >= 0.5 * (1 - 1 / np.e) * best
    assert bool(chosen) == bool(fitting) or best == 0


def test_one_large_run_is_taken_where_small_ones_only_look_cheap():
    costs, gains = np.array([0.1, 1.0]), lambda chosen: np.array([0.2, 1.0])
    assert choose_runs(gains, costs, 1.0) == (1,)
    assert choose_runs(gains, costs, 1.1) == (0, 1)
    assert choose_runs(gains, costs, 0.05) == ()


def test_runs_that_add_nothing_are_not_bought():
    def gains(chosen):
        return np.zeros(3) if chosen else np.array([1.0, 0.5, 0.5])

    assert choose_runs(gains, np.ones(3), 3.0) == (0,)
