import math
import os

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import least_squares, minimize
from scipy.special import huber as scipy_huber
from scipy.stats import norm

from phenoscale.maps.interval import percentile_interval
from phenoscale.scaling.parametric import PARAMETERS, corrected_interval, fit_parametric
from phenoscale.scaling.parametric_rounds import HIGHEST, LOWEST, refit, slopes, terms
from phenoscale.scaling.repeats import effective_crops
from phenoscale.scaling.resample import drawn_weights

TRUE = {"E": 0.4, "A": 40.0, "B": 15.0, "alpha": 0.33, "beta": 0.27}
POINTS = "PHENOSCALE_CHINCHILLA_POINTS"


def grid(sizes, amounts):
    n, d = np.meshgrid(np.geomspace(5e6, 2e8, sizes), np.geomspace(1e6, 4e7, amounts))
    return n.ravel(), d.ravel()


def law(n, d, true=TRUE):
    return true["E"] + true["A"] / n ** true["alpha"] + true["B"] / d ** true["beta"]


def values(fit):
    return np.array([getattr(fit, name).value for name in PARAMETERS])


def noisy(sizes, amounts, noise, seed=0):
    n, d = grid(sizes, amounts)
    return n, d, law(n, d) * np.exp(noise * np.random.default_rng(seed).standard_normal(len(n)))


def centred(n, d, loss):
    logs = [np.log(one) for one in (n, d, loss)]
    return [one - one.mean() for one in logs]


@pytest.mark.parametrize("delta", [None, 1e-3])
@pytest.mark.parametrize("sizes", [3, 6])
def test_losses_on_the_law_give_it_back(sizes, delta):
    n, d = grid(sizes, sizes)
    fit = fit_parametric(n, d, law(n, d), huber_delta=delta, rounds=40)
    np.testing.assert_allclose(values(fit), list(TRUE.values()), rtol=1e-4)
    np.testing.assert_allclose(fit.predict(n * 10, d), law(n * 10, d), rtol=1e-6)
    np.testing.assert_allclose(fit.residuals, 0, atol=1e-7)


def test_few_configurations_are_fitted_as_scipy_fits_them():
    n, d, loss = noisy(3, 4, 0.01)

    def residuals(p):
        return np.log(p[0] + np.exp(p[1]) / n ** p[3] + np.exp(p[2]) / d ** p[4]) - np.log(loss)

    found = least_squares(residuals, [0.4, 3.7, 2.7, 0.33, 0.27], x_scale="jac", xtol=1e-14).x
    fit = fit_parametric(n, d, loss, rounds=40)
    assert fit.huber_delta == math.inf
    np.testing.assert_allclose(values(fit)[[0, 3, 4]], found[[0, 3, 4]], rtol=1e-4)
    np.testing.assert_allclose(fit.residuals, -residuals(found), atol=1e-6)


def test_rounds_of_the_huber_loss_end_where_scipy_does():
    n, d, loss = noisy(8, 8, 0.01)
    x, y, v = centred(n, d, loss)
    weights = drawn_weights(64, rounds=8, seed=1)
    start = np.repeat([[0.6, -1.6, -1.6, 0.33, 0.27]], 8, axis=0)
    found, reached = refit(start, x, y, np.broadcast_to(v, (8, 64)), weights, 1e-3)

    def objective(theta, row):
        fitted, slope = slopes(theta[None], x, y)
        residuals = fitted[0] - v
        gradient = slope[0] @ (row * np.clip(residuals, -1e-3, 1e-3))
        return 1e4 * np.sum(row * scipy_huber(1e-3, residuals)), 1e4 * gradient

    for theta, value, row in zip(found, reached, weights, strict=True):
        best = min(
            minimize(
                objective,
                begin,
                args=(row,),
                jac=True,
                method="L-BFGS-B",
                bounds=list(zip(LOWEST, HIGHEST, strict=True)),
                options={"maxiter": 3000, "maxfun": 9000, "ftol": 1e-14, "gtol": 1e-10},
            ).fun
            for begin in (start[0], theta)
        )
        assert value <= best / 1e4 * (1 + 1e-6)
        # And the reported objective is the one that scipy computes there.
        np.testing.assert_allclose(value, objective(theta, row)[0] / 1e4, rtol=1e-9)


def test_rounds_of_few_configurations_have_no_lower_valley():
    n, d, loss = noisy(3, 3, 0.02)
    x, y, v = centred(n, d, loss)
    given = v + 0.02 * np.random.default_rng(1).standard_normal((60, 9))
    ones = np.ones((60, 9))
    near = np.repeat([[0.6, -1.6, -1.6, 0.33, 0.27]], 60, axis=0)
    _, reached = refit(near, x, y, given, ones, math.inf)
    for alpha, beta in ((0.1, 0.1), (1.0, 0.2), (0.2, 1.0), (1.5, 1.5)):
        elsewhere = np.repeat([[0.5, -2.0, -2.0, alpha, beta]], 60, axis=0)
        _, other = refit(elsewhere, x, y, given, ones, math.inf)
        assert np.mean(reached <= other * (1 + 1e-4)) > 0.95


def test_slopes_are_those_of_differences():
    n, d, loss = noisy(3, 4, 0.01)
    x, y, _ = centred(n, d, loss)
    theta = np.array([[0.5, -1.5, -1.7, 0.3, 0.4]])
    _, slope = slopes(theta, x, y)
    for place in range(5):
        step = np.zeros(5)
        step[place] = 1e-6
        up, down = (np.log(terms(theta + sign * step, x, y)[0]) for sign in (1, -1))
        np.testing.assert_allclose(slope[0, place], (up - down)[0] / 2e-6, rtol=1e-6, atol=1e-9)


def test_one_bad_trial_among_many_hardly_moves_the_law():
    n, d, loss = noisy(8, 7, 0.003)
    bad = loss.copy()
    bad[17] *= 1.5
    fit, moved = (fit_parametric(n, d, one, rounds=40) for one in (loss, bad))
    assert fit.huber_delta == 1e-3
    spread = fit.draws.std(axis=0)
    assert np.all(np.abs(values(moved) - values(fit)) < spread)
    pulled = fit_parametric(n, d, bad, huber_delta=10.0, rounds=40)
    assert np.any(np.abs(values(pulled) - values(fit)) > 2 * spread)


def test_seeds_count_as_one_configuration():
    n, d, loss = noisy(3, 4, 0.01)
    halves = np.exp(0.01 * np.random.default_rng(1).standard_normal(12))
    labels = np.array([f"c{i:02}" for i in range(12)])
    shuffle = np.random.default_rng(2).permutation(24)
    seeds = fit_parametric(
        np.tile(n, 2)[shuffle],
        np.tile(d, 2)[shuffle],
        np.concatenate([loss * halves, loss / halves])[shuffle],
        configurations=np.tile(labels, 2)[shuffle],
        rounds=40,
    )
    means = fit_parametric(n, d, loss, rounds=40)
    assert seeds.num_points == 12
    np.testing.assert_allclose(values(seeds), values(means), rtol=1e-6)
    np.testing.assert_allclose(seeds.residuals, means.residuals, atol=1e-9)


def test_other_units_of_loss_and_size_change_nothing_else():
    n, d, loss = noisy(4, 4, 0.005)
    fit = fit_parametric(n, d, loss, rounds=100)
    other = fit_parametric(n / 1e6, d, 7 * loss, rounds=100)
    alpha = fit.alpha.value
    scale = np.array([7, 7 * 1e6**-alpha, 7, 1, 1])
    np.testing.assert_allclose(values(other), values(fit) * scale, rtol=1e-4)
    np.testing.assert_allclose(other.draws[:, [0, 3, 4]], fit.draws[:, [0, 3, 4]] * [7, 1, 1], 1e-3)


def test_repeated_crops_are_discounted():
    n, d, loss = noisy(3, 4, 0.005)
    unique = np.minimum(d, 5e6)
    fit = fit_parametric(n, d, loss, num_unique=unique, rounds=40)
    same = fit_parametric(n, effective_crops(d, unique), loss, rounds=40)
    np.testing.assert_array_equal(fit.draws, same.draws)


@pytest.mark.parametrize("sizes", [4, 8])
def test_a_seed_gives_the_same_draws_twice_and_predictions_are_those_of_the_draws(sizes):
    n, d, loss = noisy(sizes, sizes, 0.005)
    fit, again, other = (fit_parametric(n, d, loss, rounds=60, seed=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(fit.draws, again.draws)
    assert not np.array_equal(fit.draws, other.draws)
    for drawn, predicted in zip(fit.draws, fit.predict_rounds(n, d), strict=True):
        named = dict(zip(PARAMETERS, drawn, strict=True))
        np.testing.assert_allclose(predicted, law(n, d, named), rtol=1e-9)
    named = dict(zip(PARAMETERS, values(fit), strict=True))
    np.testing.assert_allclose(fit.predict(n, d), law(n, d, named), rtol=1e-9)


def test_draws_spread_as_other_studies_do():
    n, d = grid(4, 4)
    x, y, v = centred(n, d, law(n, d))
    start = np.repeat([[0.6, -1.6, -1.6, 0.33, 0.27]], 400, axis=0)
    noise = 0.004 * np.random.default_rng(0).standard_normal((400, 16))
    studies, _ = refit(start, x, y, v + noise, np.ones((400, 16)), math.inf)
    spreads = [
        fit_parametric(*noisy(4, 4, 0.004, seed), rounds=200).draws[:, [3, 4]].std(axis=0)
        for seed in range(12)
    ]
    # Student's t of 11 degrees of freedom spreads by 1.1; twelve studies' mean is good to 7%.
    np.testing.assert_allclose(np.mean(spreads, axis=0) / 1.1, studies[:, 3:].std(axis=0), rtol=0.2)


def test_the_expected_bias_is_that_of_many_studies():
    n, d = grid(3, 4)
    noise = 0.005 * np.random.default_rng(0).standard_normal((4000, 12))
    x, y, v = centred(n, d, law(n, d))
    start = np.repeat([[0.6, -1.6, -1.6, 0.33, 0.27]], 4000, axis=0)
    studies, _ = refit(start, x, y, v + noise, np.ones((4000, 12)), math.inf)
    truth, _ = refit(start[:1], x, y, v[None], np.ones((1, 12)), math.inf)
    missed = (studies - truth).mean(axis=0)[[0, 3, 4]]
    scale = np.exp(np.log(law(n, d)).mean())
    error = studies.std(axis=0)[[0, 3, 4]] / np.sqrt(4000)
    # One study with the noise that all have stands for the truth.
    expected = fit_parametric(n, d, law(n, d) * np.exp(noise[0]), rounds=40).bias[[0, 3, 4]]
    expected = expected / [scale, 1, 1]
    assert missed[0] < -5 * error[0]
    np.testing.assert_allclose(expected[0], missed[0], rtol=0.6)
    assert np.all(np.abs(expected[1:] - missed[1:]) < 5 * error[1:])


def test_a_floor_of_zero_is_found_and_has_an_interval():
    n, d = grid(4, 4)
    true = TRUE | {"E": 0.0}
    noise = np.exp(0.01 * np.random.default_rng(3).standard_normal(16))
    fit = fit_parametric(n, d, law(n, d, true) * noise, rounds=200)
    assert 0 <= fit.E.low < 0.02 and np.all(fit.draws[:, 0] >= 0)
    assert fit.E.high < 0.4
    assert np.all(np.isfinite(fit.draws)) and np.all(np.isfinite(fit.bias))


def test_size_that_hardly_matters_leaves_its_exponent_open():
    n, d = grid(3, 4)
    faint = law(n, d, TRUE | {"A": 2.0})
    noise = np.exp(0.005 * np.random.default_rng(1).standard_normal(12))
    fit = fit_parametric(n, d, faint * noise, rounds=200)
    assert fit.alpha.high - fit.alpha.low > 0.5
    np.testing.assert_allclose(fit.predict(n, d), faint, rtol=0.02)


def test_corrected_percentiles_are_efrons():
    draws = np.random.default_rng(0).gamma(2.0, size=4000)
    value = float(np.quantile(draws, 0.4))
    found = corrected_interval(value, draws, coverage=0.9)
    moved = 2 * norm.ppf(0.4)
    levels = norm.cdf([moved + norm.ppf(0.05), moved + norm.ppf(0.95)])
    np.testing.assert_allclose([found.low, found.high], np.quantile(draws, levels), rtol=1e-2)
    for value, some in ((float(np.median(draws)), draws), (0.0, np.maximum(draws - 2, 0))):
        found, plain = corrected_interval(value, some), percentile_interval(value, some)
        np.testing.assert_allclose([found.low, found.high], [plain.low, plain.high], rtol=1e-9)


def given_sizes():
    return grid(3, 3)[0]


def given(**changes):
    n, d, loss = noisy(3, 3, 0.01)
    return {"num_parameters": n, "num_crops": d, "loss": loss} | changes


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"configurations": np.repeat(np.arange(4), [3, 2, 2, 2])}, "needs 2 more"),
        ({"configurations": np.repeat(np.arange(5), [1, 2, 2, 2, 2])}, "needs 1 more"),
        ({"num_parameters": np.repeat([1e7, 1.001e7, 3e7], 3)}, "2 different sizes of backbone"),
        ({"num_crops": np.full(9, 1e6)}, "1 different amounts of data"),
        ({"loss": np.r_[np.ones(8), np.nan]}, "loss has values"),
        ({"loss": np.r_[np.ones(8), 0.0]}, "loss has values"),
        ({"num_parameters": np.r_[np.ones(8), -1.0]}, "num_parameters has values"),
        ({"num_unique": np.full(9, 1e9)}, "exceed num_crops"),
        ({"loss": np.full(9, 0.5)}, "do not fall with the size"),
        ({"loss": 0.4 + 1 / given_sizes() ** 0.1}, "do not fall with the amount of data"),
        ({"loss": 0.4 + 0.01 * np.log(given_sizes())}, "do not fall with the size"),
        ({"huber_delta": 0.0}, "must be above 0"),
        ({"rounds": 10}, "at least"),
    ],
)
def test_what_cannot_be_fitted_is_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        fit_parametric(**given(**changes))


def test_the_published_refit_of_chinchilla_is_reproduced():
    path = os.environ.get(POINTS)
    if path is None:
        pytest.skip(
            f"{POINTS} is not set to a CSV of the points that Besiroglu et al. 2024 read off the "
            "figure (svg_extracted_data.csv of their analysing-chinchilla code), with the columns "
            "Model Size, Training FLOP and loss"
        )
    table = pd.read_csv(path).dropna(subset=["Model Size", "Training FLOP", "loss"])
    # They leave the five trials with the highest loss out as outliers: 240 are left.
    table = table.sort_values("loss").iloc[:-5]
    n = table["Model Size"].to_numpy()
    d = table["Training FLOP"].to_numpy() / (6 * n)
    fit = fit_parametric(n, d, table["loss"].to_numpy())
    assert (fit.num_points, fit.huber_delta) == (240, 1e-3)
    # arXiv 2404.10102: estimates and, in brackets, standard errors.
    published = np.array([1.8172, 482.01, 2085.43, 0.3478, 0.3658])
    errors = np.array([0.03, 124.58, 1293.23, 0.02, 0.02])
    assert np.all(np.abs(values(fit) - published) < errors)
    # The uncertainty is theirs too.
    np.testing.assert_allclose(fit.draws.std(axis=0), errors, rtol=0.3)
