import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from phenoscale.scaling.iso_flop import iso_flop, shares
from phenoscale.scaling.parametric import fit_parametric

PER_PRODUCT = 40.0
TRUE = (0.4, 60.0, 12.0, 0.36, 0.26)


def law(n, d, true=TRUE):
    floor, a, b, alpha, beta = true
    return floor + a / n**alpha + b / d**beta


def study(sizes=6, amounts=6, noise=1e-6, seed=0, true=TRUE):
    """N, D, losses and FLOPs of a grid over 1.5 decades of size and two of data."""
    n, d = np.meshgrid(np.geomspace(3e6, 9e7, sizes), np.geomspace(1e6, 1e8, amounts))
    n, d = n.ravel(), d.ravel()
    errors = noise * np.random.default_rng(seed).standard_normal(len(n))
    return n, d, law(n, d, true) * np.exp(errors), PER_PRODUCT * n * d


def fitted(n, d, loss, **options):
    return fit_parametric(n, d, loss, rounds=200, **options)


def brute_force(budget, true=TRUE):
    """Best N at a budget, from the law alone."""
    found = minimize_scalar(
        lambda log_n: law(np.exp(log_n), budget / PER_PRODUCT / np.exp(log_n), true),
        bounds=(np.log(1e4), np.log(1e11)),
        method="bounded",
        options={"xatol": 1e-10},
    )
    return float(np.exp(found.x))


def test_optima_are_those_of_the_planted_law():
    n, d, loss, flops = study()
    found = iso_flop(n, d, loss, flops, fit=fitted(n, d, loss))
    best = [brute_force(budget) for budget in found.budgets]
    np.testing.assert_allclose(found.parameters, best, rtol=1e-3)
    np.testing.assert_allclose(found.parameters * found.crops * PER_PRODUCT, found.budgets)
    assert found.budgets[0] == pytest.approx(flops.min())
    assert found.budgets[-1] == pytest.approx(flops.max())
    a = np.polyfit(np.log(found.budgets), np.log(best), 1)[0]
    np.testing.assert_allclose(found.exponent_parameters.value, a, rtol=1e-3)
    np.testing.assert_allclose(found.exponent_crops.value, 1 - a, rtol=1e-3)
    assert found.flops_per_product == pytest.approx(PER_PRODUCT)
    assert found.flops_per_product_range == pytest.approx(1)


def test_intervals_are_those_of_the_draws():
    n, d, loss, flops = study(noise=0.005)
    fit = fitted(n, d, loss)
    found = iso_flop(n, d, loss, flops, fit=fit)
    assert np.all(found.parameters_low < found.parameters)
    assert np.all(found.parameters < found.parameters_high)
    inside = (found.exponent_parameters.low <= shares(fit)) & (
        shares(fit) <= found.exponent_parameters.high
    )
    assert 0.85 < inside.mean() < 0.99
    ends = found.exponent_crops
    assert ends.low < ends.value < ends.high


def test_the_cubic_finds_what_the_law_finds_where_four_sizes_were_measured():
    n, d, loss, flops = study(sizes=7, amounts=12)
    found = iso_flop(n, d, loss, flops, fit=fitted(n, d, loss))
    said = np.isfinite(found.free_parameters)
    assert said.sum() >= 2 and not said[0] and not said[-1]
    np.testing.assert_allclose(
        np.log(found.free_parameters[said]), np.log(found.parameters[said]), atol=0.05
    )
    # A parabola through the same sizes is further off, which is why it is not used.
    budget = found.budgets[said][0]
    sizes = np.unique(n)
    sizes = sizes[(budget / PER_PRODUCT / sizes > 1e6) & (budget / PER_PRODUCT / sizes < 1e8)]
    x = np.log(sizes)
    second, first, _ = np.polyfit(x, np.log(law(sizes, budget / PER_PRODUCT / sizes)), 2)
    parabola, true = -first / 2 / second, np.log(found.parameters[said][0])
    assert abs(parabola - true) > 3 * abs(np.log(found.free_parameters[said][0]) - true)


def test_noise_alone_is_no_disagreement():
    verdicts = []
    for seed in range(8):
        n, d, loss, flops = study(sizes=5, noise=0.01, seed=seed)
        fit = fit_parametric(n, d, loss, rounds=40)
        verdicts += [one for one in iso_flop(n, d, loss, flops, fit=fit).agrees if one is not None]
    assert len(verdicts) >= 8
    assert np.mean(verdicts) > 0.8


def test_seeds_show_that_the_law_does_not_hold():
    n, d, loss, flops = (np.tile(one, 2) for one in study(sizes=8, amounts=8, noise=0))
    labels = np.tile(np.arange(64), 2)
    noise = np.exp(0.003 * np.random.default_rng(0).standard_normal(128))
    # Backbones above 20 million do worse than any power law of size lets them.
    off = loss * (1 + 0.15 * np.maximum(np.log(n / 2e7), 0))
    for losses, holds in ((loss * noise, True), (off * noise, False)):
        fit = fitted(n, d, losses, configurations=labels)
        verdicts = [v for v in iso_flop(n, d, losses, flops, fit=fit).agrees if v is not None]
        assert len(verdicts) >= 2
        assert np.mean(verdicts) > 0.6 if holds else not any(verdicts)


def test_three_sizes_are_too_few_for_a_cubic():
    n, d, loss, flops = study(sizes=3)
    found = iso_flop(n, d, loss, flops, fit=fitted(n, d, loss))
    assert found.agrees == (None,) * 5
    assert np.all(np.isnan(found.free_parameters))
    assert "At 5 of 5 budgets fewer than 4 sizes" in found.reason


def test_an_optimum_outside_the_sizes_is_not_read_off():
    n, d, loss, flops = study(true=(0.4, 2.0, 12.0, 0.36, 0.26))
    found = iso_flop(n, d, loss, flops, fit=fitted(n, d, loss))
    assert set(found.agrees) == {None}
    assert "no lowest point" in found.reason
    assert "smaller or larger than any that was trained" in found.reason


def test_budgets_of_a_design_at_equal_compute_are_kept():
    budgets = np.array([1e16, 1e17])
    n = np.tile(np.geomspace(3e6, 9e7, 6), 2)
    flops = np.repeat(budgets, 6)
    d = flops / PER_PRODUCT / n
    loss = law(n, d)
    found = iso_flop(n, d, loss, flops, fit=fitted(n, d, loss))
    np.testing.assert_allclose(found.budgets, budgets)
    np.testing.assert_allclose(
        np.log(found.free_parameters), np.log([brute_force(one) for one in budgets]), atol=0.1
    )


def test_flops_that_are_not_proportional_are_said():
    n, d, loss, flops = study()
    found = iso_flop(n, d, loss, flops * (1 + 1e7 / n), fit=fitted(n, d, loss))
    assert found.flops_per_product_range == pytest.approx((1 + 1e7 / 3e6) / (1 + 1e7 / 9e7))
    assert "times more in one trial than in another" in found.reason


def test_seeds_and_repeats_are_those_of_the_fit():
    n, d, loss, flops = study(noise=1e-3)
    unique = np.minimum(d, 2e7)
    labels = np.tile(np.arange(len(n)), 2)
    twice = [np.tile(one, 2) for one in (n, d, loss, flops, unique)]
    fit = fitted(*twice[:3], num_unique=twice[4], configurations=labels)
    once = iso_flop(n, d, loss, flops, fit=fit, num_unique=unique)
    both = iso_flop(*twice[:4], fit=fit, num_unique=twice[4])
    np.testing.assert_allclose(both.free_parameters, once.free_parameters)
    np.testing.assert_allclose(both.parameters, once.parameters)
