"""Rows as arrays: which trials are one configuration, which are one measurement."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from phenoscale.scaling.points import points_of
from tests.fabricated import make_baseline, make_row


def seeds(number: int, **changes):
    return [make_row(trial_id=f"{changes}-{s}", seed=s, **changes) for s in range(number)]


def test_seeds_are_one_configuration_in_order_of_compute() -> None:
    small = seeds(2, training_flops=1e12, score=0.3, data_fraction=1 / 3, crops_seen=32_000)
    large = seeds(3, training_flops=3e12, score=0.4)
    points = points_of([*large, *small, make_baseline("intensity", 0.2)])["mae"]
    assert points.num_configurations == 2
    assert np.bincount(points.configuration).tolist() == [2, 3]
    assert points.column("training_flops").tolist() == sorted([1e12] * 2 + [3e12] * 3)
    assert points.means(points.column("score")) == pytest.approx([0.3, 0.4])
    assert points.log10("training_flops") == pytest.approx(np.log10([1e12, 3e12]))
    assert points.keys == (("micro/16", 1 / 3, 32_000), ("micro/16", 1.0, 96_000))


def test_twins_are_one_measurement() -> None:
    row = make_row()
    twin = dataclasses.replace(row, trial_id=row.trial_id + "-train2", workers=2)
    points = points_of([twin, row])["mae"]
    assert [r.trial_id for r in points.rows] == [row.trial_id]


def test_objectives_stand_apart_and_untuned_rates_are_named() -> None:
    rows = [make_row(), make_row(trial_id="w", objective="wsl", lr_source="given")]
    points = points_of(rows)
    assert list(points) == ["mae", "wsl"]
    assert points["mae"].untuned == ()
    assert points["wsl"].untuned == ("micro/16",)


def test_samples_are_kept_only_if_all_trials_have_them() -> None:
    rows = seeds(2)
    both = {row.trial_id: [0.1, 0.2, 0.3] for row in rows}
    found = points_of(rows, both)["mae"]
    assert found.score_samples is not None
    assert found.score_samples.shape == (2, 3)
    one = {rows[0].trial_id: [0.1, 0.2, 0.3]}
    assert points_of(rows, one)["mae"].score_samples is None
    assert points_of(rows)["mae"].score_samples is None


def test_some_trials_are_numbered_anew() -> None:
    rows = [*seeds(2, crops_seen=1_000), *seeds(2, crops_seen=2_000)]
    points = points_of(rows, {row.trial_id: [0.5, 0.6] for row in rows})["mae"]
    kept = points.only(points.column("crops_seen") == 2_000)
    assert kept is not None
    assert kept.configuration.tolist() == [0, 0]
    assert kept.score_samples is not None
    assert kept.score_samples.shape == (2, 2)
    assert points.only(np.zeros(4, dtype=bool)) is None


@pytest.mark.parametrize("column", ["metric", "protocol", "index_fingerprint"])
def test_what_cannot_be_compared_is_refused(column: str) -> None:
    rows = [make_row(), make_row(trial_id="other", **{column: "other"})]
    with pytest.raises(ValueError, match=f"2 values of {column}"):
        points_of(rows)


def test_baselines_alone_have_no_points() -> None:
    assert points_of([make_baseline("intensity", 0.2)]) == {}
