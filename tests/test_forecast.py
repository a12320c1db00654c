from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from phenoscale.scaling.forecast import forecast, law_shares, new_runs
from phenoscale.scaling.laws import choose_law

X = 13 + np.repeat([0.0, 0.5, 1.0], 3) + np.tile([0.0, 0.45, 0.9], 3)
FARTHER = 10 ** (X.max() + np.array([0.0, 0.5, 1.0, 1.5, 2.0]))


def noise(seed: int = 0, sd: float = 0.01) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, sd, len(X))


LAWS = {
    "log_linear": 0.3 + 0.06 * (X - 13),
    "power": 0.6 - 0.35 * 10 ** (-0.5 * (X - 13)),
    "logit": 1 / (1 + np.exp(1.5 - 0.7 * (X - 13))),
}


@pytest.mark.parametrize("law", LAWS)
def test_intervals_widen_beyond_the_range(law):
    choice = choose_law(X, LAWS[law] + noise(), kind="score")
    found = [forecast(choice, flops=flops) for flops in FARTHER]
    widths = [f.interval.high - f.interval.low for f in found]
    assert np.all(np.diff(widths) > 0)
    assert widths[-1] > 1.5 * widths[0]


def test_the_value_is_the_chosen_law_s_and_lies_in_the_interval():
    choice = choose_law(X, LAWS["power"] + noise(), kind="score")
    found = forecast(choice, flops=1e16)
    assert (found.law, found.flops) == ("power", 1e16)
    assert found.interval.value == pytest.approx(choice.chosen.predict(np.array([16.0]))[0])
    assert found.interval.low < found.interval.value < found.interval.high
    assert found == forecast(choice, flops=1e16)
    assert found.interval.low != forecast(choice, flops=1e16, seed=1).interval.low


def test_shares_are_schwarz_weights():
    choice = choose_law(X, LAWS["log_linear"] + noise(), kind="score")
    assert choice.chosen.law == "log_linear"
    likelihood = {
        f.law: stats.norm.logpdf(f.y, f.fitted, np.std(f.y - f.fitted)) for f in choice.fits
    }
    bic = {f.law: len(f.parameters) * np.log(9) - 2 * likelihood[f.law].sum() for f in choice.fits}
    bic["log_linear"] = min(bic.values())
    weights = {law: np.exp(-(one - bic["log_linear"]) / 2) for law, one in bic.items()}
    expected = {law: weight / sum(weights.values()) for law, weight in weights.items()}
    # Residuals have a mean of 0 but for logit's, whose likelihood is then off by next to nothing.
    assert law_shares(choice) == pytest.approx(expected, rel=0.02)
    assert min(expected.values()) > 0.02


def test_few_configurations_do_not_rule_out_what_they_cannot_tell():
    x = X[:6]
    choice = choose_law(x, LAWS["power"][:6] + noise(3)[:6], kind="score")
    assert choice.chosen.law == "log_linear"  # for six, AICc lets no third parameter pass
    assert law_shares(choice)["power"] > 0.3
    found = forecast(choice, flops=10 ** X.max()).interval
    assert found.low < LAWS["power"][-1] < found.high


def test_laws_that_disagree_widen_the_interval():
    choice = choose_law(X, LAWS["logit"] + noise(sd=0.02), kind="score")
    place = np.array([X.max() + 2])
    of_laws = [fit.rounds().observe(place, seed=1)[:, 0] for fit in choice.fits]
    shares = law_shares(choice)
    assert sum(share > 0.2 for share in shares.values()) >= 2
    mixed = new_runs(choice, place)[:, 0]
    # The variance of a mixture: within the laws and between them.
    kept = [(shares[f.law], np.clip(d, 0, 1)) for f, d in zip(choice.fits, of_laws, strict=True)]
    mean = sum(share * draws.mean() for share, draws in kept)
    expected = sum(share * (draws.var() + (draws.mean() - mean) ** 2) for share, draws in kept)
    assert mixed.var() == pytest.approx(expected, rel=0.15)
    assert mixed.mean() == pytest.approx(mean, abs=0.02)


def test_a_forecast_ten_times_beyond_is_warned_of():
    choice = choose_law(X, LAWS["power"] + noise(sd=0.003), kind="score")
    largest = 10 ** X.max()
    inside = forecast(choice, flops=largest / 3)
    assert (inside.beyond, inside.warning) == (1.0, None)
    near = forecast(choice, flops=9.9 * largest)
    assert near.beyond == pytest.approx(9.9)
    assert near.warning is None
    far = forecast(choice, flops=35 * largest)
    assert far.warning is not None
    assert far.warning.startswith("This is 35 times the largest run measured")


def test_what_no_score_and_no_loss_can_be_is_cut():
    steep = choose_law(X, 0.1 + 0.4 * (X - 13) + noise(), kind="score")
    far = forecast(steep, flops=1e17)
    assert far.law == "log_linear"
    assert far.interval.value == far.interval.high == 1.0
    assert "log_linear passes 1, which no score can" in str(far.warning)
    losses = choose_law(X, 2.0 - 0.9 * (X - 13) + noise(sd=0.002), kind="loss")
    bottom = forecast(losses, flops=1e17)
    assert bottom.interval.low == 0.0
    if losses.chosen.law == "log_linear":
        assert "falls below 0, which no loss can" in str(bottom.warning)


def test_genes_move_a_forecast_by_as_much_as_they_move_the_scores():
    choice = choose_law(X, LAWS["log_linear"] + noise(sd=1e-4), kind="score")
    shifts = np.random.default_rng(1).normal(0, 0.03, (1000, 1)) * np.ones(len(X))
    found = forecast(choice, flops=1e14, shifts=shifts).interval
    low, high = np.quantile(shifts[:, 0], [0.025, 0.975])
    assert found.low - found.value == pytest.approx(low, abs=0.002)
    assert found.high - found.value == pytest.approx(high, abs=0.002)


def test_few_or_equal_scores():
    with pytest.raises(ValueError, match="needs 1 more"):
        choose_law(X[:1], np.array([0.4]), kind="score")
    with pytest.raises(ValueError, match="an interval needs 1 more"):
        forecast(choose_law(X[:2], np.array([0.3, 0.4]), kind="score"), flops=1e14)
    three = forecast(choose_law(X[:3], np.array([0.3, 0.35, 0.38]), kind="score"), flops=1e14)
    assert set(three.shares) == {"log_linear", "logit"}  # power goes through all three
    flat = forecast(choose_law(X, np.full(len(X), 0.4), kind="score"), flops=1e15)
    assert flat.interval.low == pytest.approx(0.4)
    assert flat.interval.high == pytest.approx(0.4)
    with pytest.raises(ValueError, match="flops is -1"):
        forecast(choose_law(X, LAWS["power"], kind="score"), flops=-1)
