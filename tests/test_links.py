from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import LeaveOneOut, cross_val_predict

from phenoscale.scaling.links import fit_links, two_link_forecast
from phenoscale.scaling.points import Points, points_of
from tests.fabricated import make_row

X = 13 + 0.3 * np.arange(9)


def planted(loss: np.ndarray, score: np.ndarray) -> Points:
    rows = [
        make_row(
            trial_id=f"mae-{place}",
            backbone=f"backbone-{place}",
            training_flops=float(10 ** X[place]),
            held_out_loss=float(loss[place]),
            score=float(score[place]),
        )
        for place in range(len(loss))
    ]
    return points_of(rows)["mae"]


def falling(num: int = 9) -> np.ndarray:
    """Losses of a power law with a floor."""
    return 0.2 + 0.3 * 10 ** (-0.4 * (X[:num] - 13))


def test_a_planted_law_is_found_and_forecast_through():
    rng = np.random.default_rng(0)
    loss = falling() + rng.normal(0, 0.002, 9)
    links = fit_links(planted(loss, 0.9 - 1.2 * loss + rng.normal(0, 0.004, 9)))
    assert links.is_law
    assert links.loss_law.law == "power"
    assert links.p_value == pytest.approx(1 / 10_000)  # no drawn order looks as much like a law
    assert links.error < 0.01 < links.constant_error
    assert links.why.startswith("The score follows the held-out loss")
    truth = 0.9 - 1.2 * (0.2 + 0.3 * 10 ** (-0.4 * 3.4))
    interval = two_link_forecast(links, flops=10**16.4)
    assert interval.low < truth < interval.high
    assert interval.high - interval.low < 0.1
    assert interval == two_link_forecast(links, flops=10**16.4)


def test_errors_are_those_of_leaving_one_out():
    rng = np.random.default_rng(1)
    loss = falling()
    score = 0.9 - 1.2 * loss + rng.normal(0, 0.02, 9)
    links = fit_links(planted(loss, score))
    assert links.form == "loss"
    predicted = cross_val_predict(LinearRegression(), loss[:, None], score, cv=LeaveOneOut())
    assert links.error == pytest.approx(np.sqrt(np.mean((predicted - score) ** 2)))
    others = (score.sum() - score) / 8
    assert links.constant_error == pytest.approx(np.sqrt(np.mean((others - score) ** 2)))


def test_the_form_is_the_one_that_predicts_better():
    loss = np.geomspace(8, 0.5, 9)
    links = fit_links(planted(loss, 0.6 - 0.3 * np.log10(loss)))
    assert (links.form, links.is_law) == ("log10 loss", True)
    straight = two_link_forecast(links, flops=10**14)
    assert straight.value == pytest.approx(
        links.score_law.predict(np.log10(links.loss_law.predict(np.array([14.0]))))[0]
    )


def test_the_interval_of_a_run_in_the_range_covers():
    rng = np.random.default_rng(2)
    held = 0
    for study in range(30):
        loss = 0.5 - 0.1 * (X - 13) + rng.normal(0, 0.01, 9)
        links = fit_links(planted(loss, 0.9 - 1.2 * loss + rng.normal(0, 0.004, 9)))
        new_loss = 0.5 - 0.1 * 1.3 + rng.normal(0, 0.01)
        interval = two_link_forecast(links, flops=10**14.3, rounds=200, seed=study)
        held += interval.low <= 0.9 - 1.2 * new_loss + rng.normal(0, 0.004) <= interval.high
    assert held >= 25  # 28.5 are expected; fewer than 25 have a probability of 1 to 60


@pytest.mark.parametrize(("loss_sd", "score_sd"), [(0.01, 1e-4), (1e-4, 0.012)])
def test_a_new_run_has_an_error_of_its_own_in_each_link(loss_sd, score_sd):
    rng = np.random.default_rng(6)
    loss = 0.5 - 0.1 * (X - 13) + rng.normal(0, loss_sd, 9)
    links = fit_links(planted(loss, 0.9 - 1.2 * loss + rng.normal(0, score_sd, 9)))
    interval = two_link_forecast(links, flops=10**14.2)
    # Four standard deviations and more; the laws' own uncertainty is about one and a half.
    assert interval.high - interval.low > 3 * 0.012


def test_scores_that_do_not_follow_the_loss_are_seldom_taken_for_a_law():
    rng = np.random.default_rng(3)
    found = [fit_links(planted(falling(6), rng.uniform(0.3, 0.5, 6))) for _ in range(60)]
    assert sum(links.is_law for links in found) <= 8  # 3 are expected
    # Half of the orders have the wrong sign, which is no law; the others are uniform below 1/2.
    p_values = np.array([links.p_value for links in found])
    assert 0.38 <= np.mean(p_values < 0.5) <= 0.62
    assert stats.kstest(2 * p_values[p_values < 0.5], "uniform").pvalue > 0.01
    lucky = [f for f in found if f.p_value < 0.5 and f.error < f.constant_error and not f.is_law]
    assert "what it gains may be an accident" in lucky[0].why
    refused = next(links for links in found if not links.is_law)
    with pytest.raises(ValueError, match="does not follow the held-out loss"):
        two_link_forecast(refused, flops=1e14)


def test_the_wrong_sign_is_no_law_however_straight():
    links = fit_links(planted(falling(), 0.1 + falling()))
    assert links.error < links.constant_error
    assert (links.is_law, links.p_value) == (False, 1.0)
    assert "lower losses do not have higher scores" in links.why


def test_all_orders_of_four_configurations_are_counted():
    loss = np.array([0.5, 0.4, 0.3, 0.2])  # backwards it is as straight, but rises
    links = fit_links(planted(loss, 0.9 - 1.2 * loss))
    assert links.p_value == pytest.approx(1 / 24)
    assert links.is_law


def test_what_cannot_be_said_is_refused():
    with pytest.raises(ValueError, match="3 configurations of MAE.* 4 or more"):
        fit_links(planted(falling(3), 0.9 - falling(3)))
    with pytest.raises(ValueError, match=r"held-out loss 0\.430"):
        fit_links(planted(np.full(5, 0.43), np.linspace(0.3, 0.5, 5)))
    equal = fit_links(planted(falling(), np.full(9, 0.4)))
    assert not equal.is_law
    assert equal.p_value == 1.0


def test_a_loss_that_falls_to_nothing_has_the_highest_score():
    rng = np.random.default_rng(4)
    loss = 2.0 - 0.75 * (X - 13) + rng.normal(0, 0.003, 9)
    links = fit_links(planted(loss, 0.5 - 0.2 * np.log10(loss)))
    assert (links.form, links.loss_law.law) == ("log10 loss", "log_linear")
    interval = two_link_forecast(links, flops=1e17)
    assert (interval.value, interval.low, interval.high) == (1.0, 1.0, 1.0)
