"""What a study says about scaling, down to studies that can say next to nothing."""

from __future__ import annotations

import numpy as np
import pytest

from phenoscale.results import ResultsRow
from phenoscale.scaling.points import AXES
from phenoscale.scaling.summary import ObjectiveScaling, summarise
from tests.fabricated import make_baseline, make_row


def grid(objective: str = "mae", slope: float = 0.1, seeds: int = 1) -> list[ResultsRow]:
    """Three sizes x four amounts of data; the score rises with compute, the loss falls."""
    rng = np.random.default_rng(len(objective))
    rows = []
    for backbone, parameters in (("pico/8", 1e4), ("nano/8", 4e4), ("micro/8", 1e5)):
        for fraction in (1 / 27, 1 / 9, 1 / 3, 1.0):
            for seed in range(seeds):
                crops = round(96_000 * fraction)
                flops = 6 * parameters * crops
                score = 0.3 + slope * np.log10(flops / 1e10) + 0.005 * rng.standard_normal()
                loss = 0.4 + 40 / parameters**0.5 + 30 / crops**0.5
                rows.append(
                    make_row(
                        trial_id=f"{objective}-{backbone}-{fraction:.3g}-{seed}",
                        objective=objective,
                        backbone=backbone,
                        data_fraction=fraction,
                        seed=seed,
                        num_parameters=round(parameters),
                        crops_seen=crops,
                        unique_crops=crops // 2,
                        training_flops=flops,
                        held_out_loss=loss * np.exp(0.005 * rng.standard_normal()),
                        score=score,
                        score_low=score - 0.05,
                        score_high=score + 0.05,
                    )
                )
    return rows


def samples_of(rows: list[ResultsRow]) -> dict[str, list[float]]:
    """Each score under the same 50 samples of genes."""
    moved = np.random.default_rng(0).normal(scale=0.03, size=50)
    return {row.trial_id: (row.score + moved).tolist() for row in rows}


def test_a_whole_study_has_everything() -> None:
    rows = [*grid(seeds=2), *grid("wsl", slope=0.03), make_baseline("intensity", 0.2)]
    summary = summarise(rows, samples_of(rows))
    assert list(summary.objectives) == ["mae", "wsl"]
    mae = summary.objectives["mae"]
    assert not any(isinstance(part, str) for part in (mae.loss, mae.parametric, mae.links))
    assert not isinstance(mae.back_test, str)
    assert set(mae.bands) == set(mae.slopes) == set(AXES)
    slope = mae.slopes["training_flops"]
    assert slope.low <= 0.1 <= slope.high
    band = mae.bands["training_flops"]
    assert band.x[-1] == pytest.approx(3 * max(row.training_flops for row in rows))
    assert (band.low <= band.high).all()
    assert band.high[-1] - band.low[-1] > np.min(band.high - band.low), "wider outside"
    (compared,) = summary.comparisons
    assert compared.paired == 12
    assert compared.difference.low > 0, "planted: .10 against .03 a decade"
    assert summarise(rows, samples_of(rows)).comparisons == summary.comparisons, "same twice"


def refusals(scaling: ObjectiveScaling) -> list[str]:
    parts = (scaling.loss, scaling.parametric, scaling.iso_flop, scaling.links, scaling.back_test)
    return [part for part in (*scaling.choices.values(), *parts) if isinstance(part, str)]


def test_one_trial_says_what_it_cannot() -> None:
    scaling = summarise([make_row()], {}).objectives["mae"]
    assert len(refusals(scaling)) == 3 + 5
    assert all(text.endswith(".") for text in refusals(scaling))
    assert scaling.bands == scaling.slopes == {}
    assert scaling.noise.run_sd is None


def test_equal_scores_have_a_flat_line() -> None:
    rows = grid()
    changes = {"score": 0.4, "score_low": 0.4, "score_high": 0.4}
    flat = [make_row(**{**vars(row), **changes}) for row in rows]
    scaling = summarise(flat, {}).objectives["mae"]
    slope = scaling.slopes["training_flops"]
    assert (slope.value, slope.low, slope.high) == pytest.approx((0, 0, 0), abs=1e-9)


def test_one_backbone_scales_with_data_alone() -> None:
    rows = [row for row in grid() if row.backbone == "nano/8"]
    scaling = summarise(rows, {}).objectives["mae"]
    assert isinstance(scaling.choices["num_parameters"], str)
    assert not isinstance(scaling.choices["crops_seen"], str)
    assert isinstance(scaling.parametric, str)
    assert isinstance(scaling.iso_flop, str)


def test_a_failed_half_compares_nothing_that_is_not_there() -> None:
    rows = [*grid(), *grid("wsl")[:1]]
    summary = summarise(rows, {})
    assert summary.comparisons == ()
    (reason,) = summary.refused
    assert reason.startswith("mae and wsl cannot be compared: ")


def test_rows_that_cannot_be_compared_are_not_fitted() -> None:
    rows = [make_row(), make_row(trial_id="b", protocol="other")]
    summary = summarise(rows, {})
    assert summary.objectives == {}
    assert "2 values of protocol" in summary.refused[0]


def test_baselines_alone_have_no_fits() -> None:
    summary = summarise([make_baseline("intensity", 0.2)], {})
    assert (summary.objectives, summary.comparisons, summary.refused) == ({}, (), ())
