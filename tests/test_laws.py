"""One-variable laws: least squares against SciPy, planted truths, honest intervals and refusals."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import curve_fit, least_squares

from phenoscale.scaling.law_curves import PARAMETERS, Kind, curve, solve
from phenoscale.scaling.laws import LAWS, LawFit, choose_law, fit_law

X = np.linspace(15.0, 17.5, 9)


def ceiling(x: np.ndarray, top: float = 0.6, height: float = 0.4, rate: float = 0.7) -> np.ndarray:
    return top - height * 10 ** (-rate * (x - 15))


def sigmoid(x: np.ndarray, first: float = -1.0, slope: float = 1.2) -> np.ndarray:
    return 1 / (1 + np.exp(-first - slope * (x - 15)))


def noisy(values: np.ndarray, sd: float, seed: int = 0) -> np.ndarray:
    return values + np.random.default_rng(seed).normal(0, sd, len(values))


def squares(fit: LawFit) -> float:
    return float(((fit.y - fit.fitted) ** 2).sum())


def test_a_straight_line_is_numpys_with_its_textbook_errors() -> None:
    y = noisy(0.3 + 0.08 * (X - 15), 0.02)
    fit = fit_law("log_linear", X, y, kind="score")
    slope, intercept = np.polyfit(X, y, 1)
    design = np.stack([np.ones(9), X], axis=1)
    hat = np.diag(design @ np.linalg.pinv(design))
    assert fit.parameters == pytest.approx({"intercept": intercept, "slope": slope})
    np.testing.assert_allclose(fit.leverages, hat, rtol=1e-8)
    np.testing.assert_allclose(fit.predict(np.array([18.0])), np.polyval([slope, intercept], 18))
    # For a linear fit the error without a point is its residual / (1 - leverage).
    left_out = (y - fit.fitted) / (1 - hat)
    assert fit.cv_error == pytest.approx(np.sqrt(np.mean(left_out**2)))
    assert fit.aicc == pytest.approx(9 * np.log(squares(fit) / 9) + 6 + 24 / 5)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("truth", "kind", "bounds"),
    [
        (ceiling(X), "score", ((-9, -9, 1e-3), (1, 0, 2))),
        (ceiling(X, 1.1, 0.9, 0.1), "score", ((-9, -9, 1e-3), (1, 0, 2))),  # the ceiling of 1 holds
        (1.2 - ceiling(X), "loss", ((0, 0, 1e-3), (9, 9, 2))),
        (
            0.9 * 10 ** (-0.05 * (X - 15)) - 0.05,
            "loss",
            ((0, 0, 1e-3), (9, 9, 2)),
        ),  # the floor of 0
    ],
)
def test_a_power_law_is_the_least_squares_that_scipy_finds(
    truth: np.ndarray, kind: Kind, bounds: tuple[tuple[float, ...], ...], seed: int
) -> None:
    y = noisy(truth, 0.004, seed)
    fit = fit_law("power", X, y, kind=kind)
    found = [
        least_squares(
            lambda p: p[0] + p[1] * 10 ** (-p[2] * (X - 15)) - y,
            x0=np.clip((y[-1], y[0] - y[-1], rate), *(np.array(bounds) + [[1e-6], [-1e-6]])),
            bounds=bounds,
            xtol=1e-14,
            ftol=1e-14,
            gtol=1e-14,
        )
        for rate in (0.05, 0.5)
    ]
    best = min(found, key=lambda one: one.cost)
    assert squares(fit) <= 2 * best.cost * (1 + 1e-9)
    values = [fit.parameters[name] for name in ("asymptote", "exponent")]
    np.testing.assert_allclose(values, best.x[[0, 2]], rtol=2e-4, atol=2e-6)
    assert ("asymptote" in fit.at_bound) == (best.active_mask[0] != 0 or best.x[0] in (0, 1))


def test_a_logit_law_is_the_least_squares_that_scipy_finds() -> None:
    y = np.clip(noisy(sigmoid(X), 0.03), 0.01, 0.99)
    fit = fit_law("logit", X, y, kind="score")
    (first, slope), _ = curve_fit(sigmoid, X, y, p0=(0, 1), xtol=1e-13, ftol=1e-13)
    assert fit.parameters["slope"] == pytest.approx(slope, rel=1e-6)
    assert fit.parameters["intercept"] == pytest.approx(first - 15 * slope, rel=1e-6)


def test_a_step_leaves_the_steepness_at_its_bound() -> None:
    step = fit_law("logit", X[[0, 8]], np.array([1e-9, 1 - 1e-9]), kind="score")
    assert step.at_bound == ("slope",)
    np.testing.assert_allclose(step.fitted, [0, 1], atol=1e-5)
    power = fit_law("power", X, np.where(X > 15, 0.5, 0.2), kind="score")
    assert power.at_bound == ("exponent",)
    assert power.parameters["exponent"] == pytest.approx(5 / 2.5)  # 100,000-fold over the range


def test_planted_parameters_come_back() -> None:
    score = fit_law("power", X, ceiling(X), kind="score")
    loss = fit_law("power", X, 3 * 10 ** (-0.3 * (X - 15)), kind="loss")
    assert score.parameters == pytest.approx(
        {"asymptote": 0.6, "amplitude": 0.4 * 10 ** (0.7 * 15), "exponent": 0.7}, rel=1e-5
    )
    assert (score.at_bound, loss.at_bound) == ((), ("asymptote",))
    assert loss.parameters["exponent"] == pytest.approx(0.3, rel=1e-5)
    np.testing.assert_allclose(score.predict(np.array([20.0])), ceiling(np.array([20.0])))


@pytest.mark.parametrize(("law", "free"), [("power", 3), ("logit", 2)])
def test_leverages_are_how_far_a_fitted_value_follows_its_own(law: str, free: int) -> None:
    y = ceiling(X) if law == "power" else sigmoid(X)
    fit = fit_law(law, X, y, kind="score")
    nudged = np.eye(9) * 1e-4
    ends = [
        curve(law, {k: v[:, None] for k, v in solved.items()}, X, kind="score")
        for solved in (
            solve(law, X, y + s * nudged, np.ones((9, 9)), kind="score") for s in (1, -1)
        )
    ]
    np.testing.assert_allclose(np.diag(ends[0] - ends[1]) / 2e-4, fit.leverages, atol=1e-3)
    assert fit.leverages.sum() == pytest.approx(free)


def test_a_parameter_at_its_bound_takes_no_leverage() -> None:
    fit = fit_law("power", X, 1 - 0.8 * 10 ** (-0.2 * (X - 15)), kind="score")
    assert fit.at_bound == ("asymptote",) and fit.leverages.sum() == pytest.approx(2)


@pytest.mark.parametrize("law", LAWS)
def test_a_weight_is_so_many_copies_of_a_configuration(law: str) -> None:
    rng = np.random.default_rng(1)
    y = np.stack([noisy(ceiling(X), 0.01, seed) for seed in range(5)])
    weights = rng.integers(0, 4, (5, 9)) + np.array([1, 0, 0, 0, 1, 0, 0, 0, 1])
    together = solve(law, X, y, weights.astype(float), kind="score")
    for place in range(5):
        copies = np.repeat(np.arange(9), weights[place])
        alone = fit_law(law, X[copies], y[place, copies], kind="score").parameters
        for name in PARAMETERS[law]:
            assert together[name][place] == pytest.approx(alone[name], rel=1e-4)


@pytest.mark.parametrize("law", ["power", "logit"])
def test_the_left_out_error_is_that_of_fits_without_each_configuration(law: str) -> None:
    y = noisy(ceiling(X), 0.01)
    errors = []
    for left in range(9):
        kept = np.arange(9) != left
        without = fit_law(law, X[kept], y[kept], kind="score")
        errors.append(without.predict(X[[left]])[0] - y[left])
    assert fit_law(law, X, y, kind="score").cv_error == pytest.approx(
        np.sqrt(np.mean(np.square(errors))), rel=1e-4
    )


def test_rounds_spread_as_students_t_does() -> None:
    """Two places, even residuals: HC3 widens t's interval by 1 / sqrt(1 - leverage)."""
    x = np.repeat([15.0, 16.0], 14)
    y = 0.3 + 0.1 * (x - 15) + 0.02 * np.tile([1.0, -1.0], 14)
    fit = fit_law("log_linear", x, y, kind="score")
    rounds = fit.rounds(rounds=20_000)
    noise = np.sqrt(squares(fit) / 26)
    widest = stats.t.ppf(0.975, 26)
    wider = 1 / np.sqrt(1 - 1 / 14)
    low, high = np.quantile(rounds.parameters["slope"], (0.025, 0.975))
    assert (high - low) / 2 == pytest.approx(widest * noise * np.sqrt(4 / 28) * wider, rel=0.03)
    # A round's noise is that of the fit times its spread, whose -2nd power has the mean 1.
    assert np.mean(rounds.noise**-2.0) == pytest.approx(noise**-2, rel=0.02)
    at = np.array([16.5])
    low, high = np.quantile(rounds.observe(at)[:, 0], (0.025, 0.975))
    new = noise * np.sqrt(1 + (1 / 28 + 1 / 7) * wider**2)
    assert (high - low) / 2 == pytest.approx(widest * new, rel=0.03)


def test_nine_configurations_hold_the_planted_slope_as_often_as_they_say() -> None:
    held = 0
    for study in range(300):
        fit = fit_law("log_linear", X, noisy(0.08 * X - 0.9, 0.015, study), kind="score")
        rounds = fit.rounds(rounds=300, seed=study)
        low, high = np.quantile(rounds.parameters["slope"], (0.05, 0.95))
        held += low <= 0.08 <= high
    assert 0.85 <= held / 300 <= 0.97


def test_many_configurations_are_drawn_again() -> None:
    x = np.linspace(15, 17, 60)
    y = noisy(0.3 + 0.08 * (x - 15), 0.02)
    fit = fit_law("log_linear", x, y, kind="score")
    rounds = fit.rounds(rounds=2000)
    # White's standard error (HC0), which drawing pairs estimates.
    off = x - x.mean()
    error = np.sqrt((off**2 * (y - fit.fitted) ** 2).sum()) / (off**2).sum()
    assert rounds.parameters["slope"].std() == pytest.approx(error, rel=0.08)
    assert np.median(rounds.noise) == pytest.approx(np.sqrt(squares(fit) / 58), rel=0.05)


def test_a_draw_that_misses_a_rare_place_is_drawn_again() -> None:
    x = np.concatenate([np.full(29, 15.0), [16.0, 17.0]])
    rounds = fit_law("power", x, noisy(ceiling(x), 0.01), kind="score").rounds(rounds=200)
    assert np.isfinite(rounds.predict(x)).all()
    assert rounds.parameters["exponent"].std() > 0


def test_rounds_repeat_themselves_and_take_shifts_of_the_scores() -> None:
    fit = fit_law("log_linear", X, noisy(ceiling(X), 0.01), kind="score")
    shifts = np.random.default_rng(3).normal(0, 0.05, (50, 9))
    plain, again = fit.rounds(rounds=50, seed=4), fit.rounds(rounds=50, seed=4)
    shifted = fit.rounds(rounds=50, seed=4, shifts=shifts)
    np.testing.assert_array_equal(plain.observe(X, seed=1), again.observe(X, seed=1))
    moved = shifted.parameters["slope"] - plain.parameters["slope"]
    np.testing.assert_allclose(moved, np.polyfit(X, shifts.T, 1)[0], atol=1e-12)
    with pytest.raises(ValueError, match=r"shifts have shape \(50, 9\); \(60, 9\) is required"):
        fit.rounds(rounds=60, shifts=shifts)


def test_the_law_that_data_speak_for_is_chosen() -> None:
    saturating = choose_law(X, noisy(ceiling(X), 0.01), kind="score")
    straight = choose_law(X, noisy(0.2 + 0.05 * (X - 15), 0.01, 2), kind="score")
    bounded = choose_law(X, noisy(sigmoid(X, -4, 3.2), 0.005), kind="score")
    loss = choose_law(X, noisy(1 - ceiling(X), 0.01), kind="loss")
    chosen = [one.chosen.law for one in (saturating, straight, bounded, loss)]
    assert chosen == ["power", "log_linear", "logit", "power"]
    assert [fit.law for fit in loss.fits] == ["log_linear", "power"]
    power = saturating.chosen
    assert f"power {power.cv_error:.3g} and {power.aicc:.1f}, so power is better" in (
        saturating.reason
    )
    assert "log_linear stays" in straight.reason


def test_one_of_both_measures_is_not_enough_for_a_richer_law() -> None:
    disagree = 0
    for seed in range(12):
        choice = choose_law(X, noisy(0.2 + 0.05 * (X - 15), 0.03, seed), kind="score")
        line, *others = choice.fits
        votes = [(f.cv_error < line.cv_error, f.aicc < line.aicc) for f in others]
        assert (choice.chosen is line) == ((True, True) not in votes)
        disagree += choice.chosen is line and any(map(any, votes))
    assert disagree > 0


def test_equal_scores_have_a_slope_of_zero() -> None:
    choice = choose_law(X, np.full(9, 0.23), kind="score")
    assert choice.chosen.law == "log_linear"
    assert choice.chosen.parameters == {"intercept": 0.23, "slope": 0.0}
    assert "do not rise" in choice.refused["power"]
    assert np.ptp(choice.chosen.rounds(rounds=40).predict(X)) == pytest.approx(0, abs=1e-12)


def test_as_many_configurations_as_parameters_make_a_fit_without_an_interval() -> None:
    fit = fit_law("log_linear", X[:2], np.array([0.2, 0.3]), kind="score")
    assert (fit.cv_error, fit.aicc) == (np.inf, np.inf)
    np.testing.assert_allclose(fit.fitted, fit.y)
    with pytest.raises(ValueError, match="an interval needs 1 more"):
        fit.rounds()
    choice = choose_law(X[:2], np.array([0.2, 0.3]), kind="score")
    assert "needs 1 more" in choice.refused["power"]


@pytest.mark.parametrize(
    ("law", "kind", "x", "y", "message"),
    [
        ("power", "score", [1], [0.2], "1 configurations are too few .* it needs 2 more"),
        ("log_linear", "score", [3, 3, 3], [1, 2, 3], "at 1 different places .* needs 1 more"),
        ("power", "score", [1, 1, 2, 2], [1, 2, 3, 4], "at 2 different places .* needs 1 more"),
        ("log_linear", "loss", [1, 2, np.nan], [1, 2, 3], "not finite"),
        ("log_linear", "loss", [1, 2], [1, np.inf], "not finite"),
        ("log_linear", "loss", [1, 2], [1, 2, 3], r"shapes \(2,\) and \(3,\)"),
        ("logit", "score", [1, 2, 3], [0, 0.2, 0.3], "above 0 and below 1"),
        ("logit", "loss", [1, 2, 3], [0.4, 0.3, 0.2], "no law 'logit' for kind 'loss'"),
        ("cubic", "score", [1, 2, 3], [0.4, 0.3, 0.2], "score: log_linear, logit, power"),
        ("power", "score", [1, 2, 3], [0.4, 0.5, 1.1], "scores of at most 1"),
        ("power", "loss", [1, 2, 3], [0.4, 0.3, -0.1], "losses of at least 0"),
        ("power", "score", [1, 2, 3], [0.4, 0.3, 0.2], "do not rise .* use log_linear"),
        ("power", "loss", [1, 2, 3], [0.2, 0.3, 0.4], "do not fall .* use log_linear"),
    ],
)
def test_what_a_law_cannot_be_fitted_to_is_refused(
    law: str, kind: Kind, x: list[float], y: list[float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        fit_law(law, np.array(x), np.array(y), kind=kind)
