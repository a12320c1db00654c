from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from phenoscale.scaling.laws import fit_law
from phenoscale.scaling.points import Points, points_of
from phenoscale.scaling.slopes import compare_slopes, slope_difference
from tests.fabricated import make_row

X = 13 + np.repeat([0.0, 0.5, 1.0], 3) + np.tile([0.0, 0.45, 0.9], 3)  # 3 backbones, 3 fractions
BACKBONES = np.repeat(["nano/16", "micro/16", "tiny/16"], 3)
FRACTIONS = np.tile([1 / 9, 1 / 3, 1.0], 3)


def planted(
    objective: str,
    line: Callable[[np.ndarray], np.ndarray],
    *,
    errors: np.ndarray | float = 0.0,
    kept: Sequence[int] = range(9),
    samples: np.ndarray | None = None,
    sources: Sequence[str] = ("tuned",) * 9,
    metric: str = "recall_0.05_0.95",
) -> Points:
    """Scores on a line against compute, plus errors (9,); samples (9, G) less the score."""
    scores = line(X) + errors
    rows = [
        make_row(
            trial_id=f"{objective}-{place}",
            objective=objective,
            backbone=str(BACKBONES[place]),
            data_fraction=float(FRACTIONS[place]),
            training_flops=float(10 ** X[place]),
            crops_seen=round(96_000 * FRACTIONS[place]),
            score=float(scores[place]),
            lr_source=sources[place],
            metric=metric,
        )
        for place in kept
    ]
    drawn = None
    if samples is not None:
        drawn = {f"{objective}-{c}": list(scores[c] + samples[c]) for c in kept}
    return points_of(rows, drawn)[objective]


def noise(seed: int, size: tuple[int, ...] = (9,), sd: float = 0.01) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, sd, size)


def mae(x: np.ndarray) -> np.ndarray:
    return 0.3 + 0.08 * (x - 13)


def wsl(x: np.ndarray) -> np.ndarray:
    return 0.34 + 0.03 * (x - 13)


def test_in_pairs_the_difference_is_the_line_of_the_differences():
    y_a, y_b = mae(X) + noise(1), wsl(X) + noise(2)
    slope_a, slope_b, draws = slope_difference(X, y_a, X, y_b, rounds=100, seed=3)
    assert slope_a == pytest.approx(np.polyfit(X, y_a, 1)[0])
    assert slope_b == pytest.approx(np.polyfit(X, y_b, 1)[0])
    one = fit_law("log_linear", X, y_a - y_b, kind="score").rounds(rounds=100, seed=3)
    np.testing.assert_allclose(draws, one.parameters["slope"], atol=1e-12)


def test_an_error_that_both_share_cancels_in_pairs_only():
    shared = noise(1)
    values = (X, mae(X) + shared, X, wsl(X) + shared)
    assert np.ptp(slope_difference(*values, rounds=100)[2]) < 1e-12
    assert slope_difference(*values, rounds=100, paired=False)[2].std() > 0.003


@pytest.mark.parametrize("paired", [True, False])
def test_intervals_of_the_difference_cover(paired):
    rng = np.random.default_rng(5)
    held = 0
    for study in range(200):
        shared = rng.normal(0, 0.015, 9) if paired else 0.0
        y_a, y_b = (line(X) + shared + rng.normal(0, 0.01, 9) for line in (mae, wsl))
        draws = slope_difference(X, y_a, X, y_b, rounds=200, seed=study, paired=paired)[2]
        held += np.quantile(draws, 0.05) <= 0.05 <= np.quantile(draws, 0.95)
    assert 0.86 < held / 200 < 0.98


def test_genes_that_move_a_slope_widen_it_by_as_much():
    ramp = X - X.mean()
    on_a, on_b = noise(1, (2, 400), sd=0.02)[:, :, None] * ramp
    values = (X, mae(X), X, wsl(X))
    draws = slope_difference(*values, rounds=400, shifts_a=on_a, shifts_b=on_b)[2]
    assert draws.std() == pytest.approx(np.hypot(0.02, 0.02), rel=0.1)
    alike = slope_difference(*values, rounds=400, shifts_a=on_a, shifts_b=on_a)[2]
    assert np.ptp(alike) < 1e-9


def test_genes_that_move_all_scores_alike_move_no_slope():
    level = np.tile(noise(1, (400, 1), sd=0.05), 9)
    values = (X, mae(X), X, wsl(X))
    assert np.ptp(slope_difference(*values, rounds=400, shifts_a=level, shifts_b=-level)[2]) < 1e-9


def test_gene_noise_that_residuals_show_is_not_counted_twice():
    shifts = noise(7, (2, 400, 9), sd=0.02)
    values = (X, mae(X) + noise(1, sd=0.02), X, wsl(X) + noise(2, sd=0.02))
    alone = slope_difference(*values, rounds=400)[2].std()
    with_genes = slope_difference(*values, rounds=400, shifts_a=shifts[0], shifts_b=shifts[1])[2]
    assert with_genes.std() < 1.15 * alone  # whole shifts: about 1.4


def test_both_sides_get_the_same_samples_and_configurations_whatever_their_order():
    samples = noise(3, (9, 60), sd=0.03)
    a = planted("mae", mae, errors=noise(1), samples=samples)
    b = planted("wsl", lambda x: mae(x) - 0.05 * (x - 13), errors=noise(1), samples=samples)
    comparison = compare_slopes(a, b, rounds=100)
    assert (comparison.a, comparison.b, comparison.paired) == ("mae", "wsl", 9)
    assert comparison.difference.low == pytest.approx(0.05)
    assert comparison.difference.high == pytest.approx(0.05)
    assert comparison.slope_a.high - comparison.slope_a.low > 0.01
    assert comparison.p_value == pytest.approx(2 / 101)
    assert "same 9 configurations, and on the same samples of genes" in comparison.pairing


def test_configurations_are_matched_by_what_they_are():
    errors = noise(1)
    a = planted("mae", mae, errors=errors)
    # More compute for a crop: the order of compute differs, so must the places that are paired.
    b = planted("wsl", mae, errors=errors)
    moved = points_of(
        [make_row(**{**vars(r), "training_flops": 1e28 / r.training_flops}) for r in b.rows]
    )
    backwards = compare_slopes(a, moved["wsl"], rounds=100)
    assert backwards.paired == 9
    mirrored = -fit_law("log_linear", X, mae(X) + errors, kind="score").parameters["slope"]
    assert backwards.slope_b.value == pytest.approx(mirrored)
    both = (
        backwards.slope_a.high
        - backwards.slope_a.low
        + backwards.slope_b.high
        - backwards.slope_b.low
    )
    # Opposite slopes with the same signs: the spreads add up instead of cancelling.
    assert backwards.difference.high - backwards.difference.low == pytest.approx(both, rel=1e-6)


def test_sides_with_few_configurations_in_common_are_drawn_by_themselves():
    a = planted("mae", mae, errors=noise(1), kept=range(6))
    b = planted("wsl", wsl, errors=noise(2), kept=range(4, 9))
    comparison = compare_slopes(a, b, rounds=100)
    assert comparison.paired == 0
    assert "of 6 and 5 configurations only 2 are the same" in comparison.pairing
    assert comparison.slope_a.value == pytest.approx(
        np.polyfit(X[:6], mae(X[:6]) + noise(1)[:6], 1)[0]
    )


def test_crossing_where_it_was_planted():
    errors = noise(1, sd=0.002)
    comparison = compare_slopes(
        planted("mae", mae, errors=errors), planted("wsl", wsl, errors=noise(2, sd=0.002))
    )
    assert comparison.crossing is not None
    planted_at = 10 ** (13 + 0.04 / 0.05)
    assert comparison.crossing.low < planted_at < comparison.crossing.high
    assert comparison.crossing.value == pytest.approx(planted_at, rel=0.2)
    assert "beyond it MAE lies above" in comparison.crossing_text


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (lambda x: mae(x) - 0.1, "MAE lies above WSL all along"),  # parallel
        (lambda x: 0.9 - 0.01 * (x - 13), "WSL lies above MAE all along"),  # meet far beyond
        (mae, "the same line"),
    ],
)
def test_lines_that_do_not_cross(other, said):
    comparison = compare_slopes(planted("mae", mae), planted("wsl", other), rounds=100)
    assert comparison.crossing is None
    assert said in comparison.crossing_text


def test_a_crossing_that_rounds_do_not_agree_on_is_not_claimed():
    off_line = noise(8, sd=0.03)
    off_line -= np.polyval(
        np.polyfit(X, off_line, 1), X
    )  # the lines meet where planted all the same
    meet = X.max() - 0.05
    flat = planted("mae", lambda x: 0.3 + 0 * x, errors=off_line)
    rising = planted("wsl", lambda x: 0.3 + 0.01 * (x - meet), errors=-off_line)
    comparison = compare_slopes(flat, rising)
    assert comparison.crossing is not None
    assert comparison.crossing.high == pytest.approx(10 ** X.max())
    assert comparison.crossing_text.startswith(
        f"They may cross at {10**meet:.1e}".replace("e+", "e")
    )
    further = [
        make_row(**{**vars(row), "training_flops": row.training_flops * 10**1.8})
        for row in planted("wsl", lambda x: 0.3 + 0.01 * (x + 1.8 - meet), errors=-off_line).rows
    ]
    narrow = compare_slopes(flat, points_of(further)["wsl"])  # both measured in 0.1 decades only
    assert narrow.crossing is None
    assert narrow.crossing_text.startswith("They do not clearly cross")


def test_a_conclusion_that_hangs_on_untuned_rates_is_marked():
    weak = np.where(BACKBONES == "tiny/16", -0.12, 0.0)  # a rate that does not suit the largest
    sources = np.where(BACKBONES == "tiny/16", "given", "tuned").tolist()
    a = planted("mae", mae, errors=noise(1, sd=0.004))
    b = planted("wsl", mae, errors=weak + noise(2, sd=0.004), sources=sources)
    comparison = compare_slopes(a, b)
    assert comparison.untuned == ("tiny/16",)
    assert comparison.difference.low > 0
    assert comparison.tuned_difference is not None
    assert not comparison.tuned_difference.excludes_zero
    assert comparison.hangs_on_untuned
    fair = compare_slopes(a, planted("wsl", wsl, errors=noise(2, sd=0.004), sources=sources))
    assert fair.untuned
    assert not fair.hangs_on_untuned
    none_tuned = compare_slopes(a, planted("wsl", wsl, sources=("transferred",) * 9), rounds=100)
    assert none_tuned.tuned_difference is None
    assert none_tuned.hangs_on_untuned
    tuned = compare_slopes(a, planted("wsl", wsl, sources=("paper",) * 9), rounds=100)
    assert (tuned.untuned, tuned.tuned_difference, tuned.hangs_on_untuned) == ((), None, False)


def test_equal_scores_have_no_difference():
    flat = [planted(name, lambda x: 0.4 + 0 * x) for name in ("mae", "wsl")]
    comparison = compare_slopes(*flat, rounds=100)
    assert comparison.difference.value == pytest.approx(0, abs=1e-12)
    assert comparison.p_value == 1.0
    assert not comparison.difference.excludes_zero


def test_one_backbone_is_enough_for_a_slope_and_one_trial_is_not():
    one = [planted(name, mae, errors=noise(1), kept=range(3)) for name in ("mae", "wsl")]
    assert compare_slopes(*one, rounds=100).paired == 3
    with pytest.raises(ValueError, match="needs 1 more"):
        compare_slopes(one[0], planted("wsl", wsl, kept=[4]))
    with pytest.raises(ValueError, match="needs 1 more"):
        compare_slopes(one[0], planted("wsl", wsl, kept=[4, 5]))


def test_what_is_not_comparable_is_refused():
    with pytest.raises(ValueError, match="2 values of metric"):
        compare_slopes(planted("mae", mae), planted("wsl", wsl, metric="balanced_accuracy"))
    with pytest.raises(ValueError, match="training_flops, crops_seen, num_parameters"):
        compare_slopes(planted("mae", mae), planted("wsl", wsl), axis="lr")
    with pytest.raises(ValueError, match="9 and 8 configurations"):
        slope_difference(X, mae(X), X[:8], wsl(X[:8]))
