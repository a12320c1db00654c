"""Surfaces: against statistics' own least squares, planted truths, refusals, rounds, the choice."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import LeaveOneOut, cross_val_predict

from phenoscale.scaling.points import points_of
from phenoscale.scaling.surface import BENDS, FORMS, fit_surface, places_of
from phenoscale.scaling.surface_choice import choose_surface, form_shares, new_runs
from tests.fabricated import make_row


def grid(sizes, data, start=(5.0, 4.0)):
    n, d = np.array(list(itertools.product(sizes, data))).T
    return {
        "num_parameters": start[0] + n,
        "crops_seen": start[1] + d,
        "training_flops": 11.0 + n + d,
    }


NINE = grid((0, 0.5, 1), (0, 0.4, 1))
FAR = {axis: logs[-1:] + 1 for axis, logs in NINE.items()}


def plane(places, slopes=(0.05, 0.12)):
    return 0.3 + slopes[0] * (places["num_parameters"] - 5) + slopes[1] * (places["crops_seen"] - 4)


def noisy(places, sd, seed=0, of=plane):
    return of(places) + sd * np.random.default_rng(seed).standard_normal(9)


@pytest.mark.parametrize("form", list(FORMS)[1:])
def test_a_straight_form_is_ordinary_least_squares(form):
    values = noisy(NINE, 0.02)
    x = np.stack([NINE[axis] for axis in FORMS[form]], axis=1)
    fit = fit_surface(form, NINE, values)
    model = LinearRegression().fit(x, values)
    np.testing.assert_allclose(fit.coefficients[1:], model.coef_)
    np.testing.assert_allclose(fit.fitted, model.predict(x))
    assert fit.coefficients[0] == pytest.approx(values.mean())
    left_out = cross_val_predict(LinearRegression(), x, values, cv=LeaveOneOut())
    assert fit.cv_error == pytest.approx(np.sqrt(np.mean((values - left_out) ** 2)))
    assert fit.leverages.sum() == pytest.approx(1 + x.shape[1])
    k, n = x.shape[1] + 2, 9
    rss = np.sum((values - fit.fitted) ** 2)
    assert fit.aicc == pytest.approx(n * np.log(rss / n) + 2 * k + 2 * k * (k + 1) / (n - k - 1))
    assert fit.noise == pytest.approx(np.sqrt(rss / (n - k + 1)))


def test_a_bent_form_is_a_power_law_and_less_free():
    places = grid(np.linspace(0, 1, 3), np.linspace(0, 1, 3))
    truth = 0.6 - 0.2 * 10 ** (-0.5 * (places["training_flops"] - 11))
    bent = fit_surface("compute", places, truth, bend=0.5)
    np.testing.assert_allclose(bent.fitted, truth, atol=1e-12)
    there = {"training_flops": np.array([15.0])}
    assert bent.predict(there)[0] == pytest.approx(0.6 - 0.2 * 10**-2)
    straight = fit_surface("compute", places, truth)
    assert bent.freedom == straight.freedom - 1 == 6
    step = 1e-6
    beside = {"training_flops": np.array([12.0, 12.0 + step])}  # 12 is the middle
    assert np.diff(bent.predict(beside))[0] / step == pytest.approx(bent.coefficients[1], rel=1e-4)


def test_the_choice_follows_what_was_planted():
    chosen = choose_surface(NINE, noisy(NINE, 0.003)).chosen
    assert (chosen.basis.label, chosen.freedom) == ("plane", 6)
    np.testing.assert_allclose(chosen.coefficients[1:], (0.05, 0.12), atol=0.01)
    crops = choose_surface(NINE, noisy(NINE, 0.01, of=lambda p: plane(p, (0, 0.15)))).chosen
    assert crops.basis.form == "crops"
    flat = choose_surface(NINE, noisy(NINE, 0.02, of=lambda p: np.full(9, 0.3)))
    assert flat.chosen.basis.form == "constant" and "no richer form" in flat.reason
    wide = grid(np.linspace(0, 2, 4), np.linspace(0, 2, 4))
    levelling = 0.7 - 0.3 * 10 ** (-0.5 * (wide["crops_seen"] - 4))
    levelling += 0.005 * np.random.default_rng(0).standard_normal(16)
    assert choose_surface(wide, levelling).chosen.basis.label in {
        f"{form} bent by 0.5" for form in ("crops", "plane")
    }


def test_equal_scores_are_a_constant():
    choice = choose_surface(NINE, np.full(9, 0.4))
    assert choice.chosen.basis.form == "constant"
    np.testing.assert_allclose(new_runs(choice, FAR, rounds=100), 0.4, atol=1e-6)


@pytest.mark.parametrize(
    ("form", "places", "values", "message"),
    [
        ("bowl", NINE, np.ones(9), "There is no form 'bowl'"),
        ("plane", {a: x[:2] for a, x in NINE.items()}, np.ones(2), "it needs 1 more"),
        ("plane", grid((0,), (0, 1, 2)), np.ones(3), "parameters and crops seen apart"),
        ("plane", {a: np.arange(4.0) for a in NINE}, np.ones(4), "parameters and crops seen apart"),
        ("parameters", grid((0,), (0, 1, 2)), np.ones(3), "do not spread along parameters"),
        ("crops", NINE, np.full(9, np.nan), "not finite"),
        ("crops", NINE, np.ones(8), "There are 8 values"),
    ],
)
def test_what_cannot_be_fitted_is_refused(form, places, values, message):
    with pytest.raises(ValueError, match=message):
        fit_surface(form, places, values)


def test_one_configuration_is_a_constant_without_an_interval():
    one = {axis: logs[:1] for axis, logs in NINE.items()}
    choice = choose_surface(one, np.array([0.4]))
    assert choice.fits[0].freedom == 0 and set(choice.refused) == set(FORMS) - {"constant"}
    with pytest.raises(ValueError, match="an interval needs 1 more"):
        new_runs(choice, FAR, rounds=100)


def test_the_rounds_of_a_slope_spread_as_student_says():
    data = grid(np.linspace(0, 1, 12), (0.0,))
    flat = {axis: logs[:12] for axis, logs in data.items()}
    signs = np.tile([1.0, -1.0], 6)  # residuals of one size: then the wild bootstrap is exact
    values = plane(flat) + 0.01 * signs
    fit = fit_surface("parameters", flat, values)
    slopes = fit.rounds(rounds=20_000).coefficients[:, 1]
    line = stats.linregress(flat["num_parameters"], values)
    half = stats.t.ppf(0.975, 10) * line.stderr
    low, high = np.quantile(slopes, (0.025, 0.975))
    assert (high - low) / (2 * half) == pytest.approx(1.0, abs=0.2)


def test_many_configurations_are_drawn_again():
    many = grid(np.linspace(0, 1, 8), np.linspace(0, 1, 7))
    values = plane(many) + 0.01 * np.random.default_rng(0).standard_normal(56)
    fit = fit_surface("plane", many, values)
    drawn = fit.rounds(rounds=2000)
    x = np.stack([np.ones(56), many["num_parameters"], many["crops_seen"]], axis=1)
    # White 1980: what drawing the very residuals again comes to.
    inverse, scores = np.linalg.inv(x.T @ x), x * (values - fit.fitted)[:, None]
    standard_error = np.sqrt(np.diag(inverse @ scores.T @ scores @ inverse))
    np.testing.assert_allclose(drawn.coefficients[:, 1:].std(axis=0), standard_error[1:], rtol=0.15)
    assert np.median(drawn.noise) == pytest.approx(0.01, rel=0.3)


def test_shifts_move_every_round():
    fit = fit_surface("plane", NINE, noisy(NINE, 0.01))
    shifts = np.zeros((100, 9)) + np.linspace(-0.1, 0.1, 100)[:, None]
    moved = fit.rounds(rounds=100, shifts=shifts).predict(FAR) - fit.rounds(rounds=100).predict(FAR)
    np.testing.assert_allclose(moved[:, 0], shifts[:, 0], atol=1e-12)
    with pytest.raises(ValueError, match="shifts have shape"):
        fit.rounds(rounds=200, shifts=shifts)


def test_new_runs_are_drawn_from_all_forms_and_hold_what_comes():
    both = {axis: np.array([logs[4], FAR[axis][0]]) for axis, logs in NINE.items()}
    held, widths = 0, []
    for seed in range(60):
        choice = choose_surface(NINE, noisy(NINE, 0.02, seed))
        shares = form_shares(choice)
        assert sum(shares.values()) == pytest.approx(1)
        assert shares[choice.chosen.basis.label] == max(shares.values())
        drawn = new_runs(choice, both, rounds=200, seed=seed)
        low, high = np.quantile(drawn, (0.025, 0.975), axis=0)
        score = plane(both)[1] + 0.02 * np.random.default_rng(1000 + seed).standard_normal()
        held += low[1] <= score <= high[1]
        widths.append(np.divide(*(high - low)))
    assert held >= 49, held  # 92%, as of 300, less three standard deviations
    assert np.median(widths) < 0.75


def test_four_configurations_share_the_rounds_among_all_forms():
    four = {axis: logs[[0, 2, 6, 8]] for axis, logs in NINE.items()}
    choice = choose_surface(four, plane(four))
    shares = form_shares(choice)
    assert len(shares) == 5 + 3 * len(BENDS) and len(set(shares.values())) == 1


def test_places_are_those_of_the_configurations():
    cells = [(1e12, 1000, 0), (1e12, 1000, 1), (4e12, 2000, 0)]
    rows = [
        make_row(trial_id=f"t{i}", training_flops=flops, crops_seen=crops, seed=seed)
        for i, (flops, crops, seed) in enumerate(cells)
    ]
    places = places_of(points_of(rows)["mae"])
    np.testing.assert_allclose(places["training_flops"], [12, 12 + np.log10(4)])
    np.testing.assert_allclose(places["crops_seen"], [3, 3 + np.log10(2)])
