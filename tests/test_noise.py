from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from phenoscale.scaling.laws import LawFit, fit_law
from phenoscale.scaling.noise import (
    Noise,
    beyond_residuals,
    difference_text,
    gene_shifts,
    noise_of,
    scored_over,
)
from phenoscale.scaling.points import Points, points_of
from tests.fabricated import make_row


def planted(scores: np.ndarray, *, half_width: float = 0.098, **changes: object) -> Points:
    """Scores (m, seeds), a configuration each row; more compute down the rows."""
    rows = [
        make_row(
            trial_id=f"{configuration}-{seed}",
            backbone=f"backbone-{configuration}",
            training_flops=10.0 ** (13 + 0.1 * configuration),
            seed=seed,
            score=float(score),
            score_low=float(score) - half_width,
            score_high=float(score) + half_width,
            **changes,
        )
        for configuration, of_seeds in enumerate(scores)
        for seed, score in enumerate(of_seeds)
        if np.isfinite(score)
    ]
    return points_of(rows)["mae"]


def line(points: Points) -> LawFit:
    scores = points.means(points.column("score"))
    return fit_law("log_linear", points.log10("training_flops"), scores, kind="score")


def constant(points: Points) -> LawFit:
    """The law that says nothing: all configurations have the same score."""
    scores = points.means(points.column("score"))
    return LawFit(
        law="log_linear",
        kind="score",
        parameters={"intercept": float(scores.mean())},
        x=points.log10("training_flops"),
        y=scores,
        fitted=np.full(len(scores), scores.mean()),
        leverages=np.full(len(scores), 1 / len(scores)),
        at_bound=(),
        aicc=0.0,
        cv_error=0.0,
    )


def simulated(rng: np.random.Generator, run_sd: float, lack_sd: float) -> Points:
    means = 0.3 + 0.01 * np.arange(10) + rng.normal(0, lack_sd, 10)
    return planted(means[:, None] + rng.normal(0, run_sd, (10, 3)))


def test_about_a_constant_it_is_one_way_analysis_of_variance():
    scores = np.random.default_rng(0).normal(0.4, 0.02, (6, 3)) + 0.01 * np.arange(6)[:, None]
    points = planted(scores)
    noise = noise_of(points, constant(points))
    expected = stats.f_oneway(*scores)
    within = scores.var(axis=1, ddof=1).mean()
    assert noise.run_sd == pytest.approx(np.sqrt(within))
    assert noise.lack_of_fit_p == pytest.approx(expected.pvalue)
    assert noise.lack_of_fit_sd == pytest.approx(np.sqrt((expected.statistic - 1) * within / 3))
    assert (noise.num_seeds, noise.freedom) == (3, 12)


def test_components_come_back_as_planted():
    rng = np.random.default_rng(1)
    found = [noise_of(p, line(p)) for p in (simulated(rng, 0.01, 0.02) for _ in range(100))]
    assert np.mean([n.run_sd**2 for n in found]) == pytest.approx(0.01**2, rel=0.08)
    assert np.mean([n.lack_of_fit_sd**2 for n in found]) == pytest.approx(0.02**2, rel=0.2)
    assert np.mean([n.lack_of_fit_p < 0.05 for n in found]) > 0.95


def test_a_law_that_holds_is_seldom_said_to_miss_something():
    rng = np.random.default_rng(2)
    found = [noise_of(p, line(p)) for p in (simulated(rng, 0.01, 0.0) for _ in range(100))]
    p_values = [n.lack_of_fit_p for n in found]
    assert stats.kstest(p_values, "uniform").pvalue > 0.01
    said = next(n.text[2] for n in found if n.lack_of_fit_p > 0.05)
    assert "no more than run noise explains" in said


def test_gene_noise_is_read_off_the_intervals():
    points = planted(np.array([[0.3], [0.4], [0.5]]), half_width=1.959964 * 0.05)
    noise = noise_of(points, line(points))
    assert noise.gene_sd == pytest.approx(0.05, rel=1e-6)
    assert noise.gene_shared is None
    assert scored_over(planted(np.array([[0.3]]), metric="balanced_accuracy")) == "held-out groups"


def test_the_share_of_gene_noise_that_all_trials_have_comes_back_as_planted():
    rng = np.random.default_rng(3)
    points = planted(np.full((8, 2), 0.4))
    samples = 0.4 + rng.normal(0, 0.04, 4000) + rng.normal(0, 0.03, (16, 4000))
    drawn = {row.trial_id: list(one) for row, one in zip(points.rows, samples, strict=True)}
    noise = noise_of(points_of(points.rows, drawn)["mae"], None)
    assert noise.gene_shared == pytest.approx(0.04**2 / (0.04**2 + 0.03**2), abs=0.02)
    assert f"{noise.gene_shared:.0%} of that variance moves all trials alike" in noise.text[1]


def test_shifts_are_means_over_seeds_of_the_same_samples():
    points = planted(np.array([[0.3, 0.5], [0.6, 0.7]]))
    assert gene_shifts(points, rounds=40) is None
    drawn = {row.trial_id: [row.score + 0.1 * g for g in range(3)] for row in points.rows}
    drawn["0-1"] = [0.5, 0.9, 0.5]
    shifts = gene_shifts(points_of(points.rows, drawn)["mae"], rounds=40)
    assert shifts is not None
    assert shifts.shape == (40, 2)
    np.testing.assert_allclose(shifts[:4], [[0, 0], [0.25, 0.1], [0.1, 0.2], [0, 0]], atol=1e-12)


def test_what_residuals_show_is_taken_from_the_shifts_and_the_rest_is_kept():
    rng = np.random.default_rng(4)
    x = np.linspace(0, 2, 9)
    ordered = rng.normal(0, 0.05, (20_000, 1)) + rng.normal(0, 0.03, (20_000, 1)) * (x - 1)
    (kept,) = beyond_residuals([x], [ordered + rng.normal(0, 0.02, (20_000, 9)) + 0.1])
    np.testing.assert_allclose(np.cov(kept.T), np.cov(ordered.T), atol=1e-4)
    assert kept.mean() == pytest.approx(0, abs=1e-12)
    (none,) = beyond_residuals([x], [rng.normal(0, 0.02, (20_000, 9))])
    assert none.std() < 0.2 * 0.02
    (all_of_it,) = beyond_residuals([x], [ordered])
    np.testing.assert_allclose(all_of_it, ordered - ordered.mean(axis=0), atol=1e-9)


def test_without_a_second_seed_it_says_what_is_needed():
    points = planted(np.array([[0.3], [0.45], [0.5], [0.52]]))
    noise = noise_of(points, line(points))
    assert (noise.num_seeds, noise.freedom) == (1, 0)
    assert (noise.run_sd, noise.lack_of_fit_sd, noise.lack_of_fit_p) == (None, None, None)
    assert "second seed for 8 configurations" in noise.text[0]
    residuals = points.means(points.column("score")) - line(points).fitted
    assert f"deviation of {np.sqrt(np.sum(residuals**2) / 2):.3f}" in noise.text[2]
    assert difference_text(0.001, noise) is None


def test_seeds_of_some_configurations_only():
    missing = np.nan
    points = planted(np.array([[0.30, 0.32], [0.40, missing], [0.50, missing], [0.61, missing]]))
    noise = noise_of(points, line(points))
    assert noise.freedom == 1
    assert noise.run_sd == pytest.approx(np.std([0.30, 0.32], ddof=1))
    assert noise.lack_of_fit_p is not None
    assert "1 degree of freedom; 7 more runs with further seeds" in noise.text[0]


def test_one_trial_and_equal_scores_are_said_plainly():
    alone = noise_of(planted(np.array([[0.4]])), None)
    assert alone.run_sd is None
    assert len(alone.text) == 2
    flat = planted(np.full((4, 2), 0.4))
    equal = noise_of(flat, line(flat))
    assert equal.run_sd == pytest.approx(0, abs=1e-12)
    assert (equal.lack_of_fit_sd, equal.lack_of_fit_p) == (None, None)
    assert "all seeds of each configuration have the same score" in equal.text[2]


def test_a_difference_smaller_than_two_seeds_is_warned_of():
    noise = Noise(
        num_seeds=2,
        freedom=9,
        run_sd=0.01,
        gene_sd=0.05,
        gene_shared=None,
        lack_of_fit_sd=None,
        lack_of_fit_p=None,
        text=(),
    )
    # The 95% interval of a difference of two runs, by Student's t.
    bound = stats.t.interval(0.95, 9, scale=0.01 * np.sqrt(2))[1]
    assert difference_text(bound + 1e-6, noise) is None
    assert difference_text(-(bound + 1e-6), noise) is None
    warning = difference_text(-(bound - 1e-6), noise)
    assert warning is not None
    assert f"differ by up to {bound:.3f}" in warning
    assert difference_text(bound - 1e-6, noise, seeds_a=3, seeds_b=3) is None
    assert "means of 3 and 1 runs" in str(difference_text(0.0, noise, seeds_a=3))
