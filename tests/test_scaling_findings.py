"""What fits say in sentences: a winner only where all differences are clear of 0."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from phenoscale.config import Crops, Objective, Optim, Trial
from phenoscale.maps.interval import Interval
from phenoscale.reports.scaling_findings import scaling_notes, what_next, which_scales_better
from phenoscale.reports.scaling_tables import next_runs_table
from phenoscale.scaling.next_runs import Candidate, NextRuns
from phenoscale.scaling.slopes import Comparison
from phenoscale.scaling.summary import Summary, summarise
from tests.fabricated import make_row


def interval(value: float, half: float) -> Interval:
    return Interval(value=value, low=value - half, high=value + half)


def comparison(a: str, b: str, slopes: tuple[float, float], half: float, **rest: Any) -> Comparison:
    fields: dict[str, Any] = {
        "axis": "training_flops",
        "a": a,
        "b": b,
        "slope_a": interval(slopes[0], 0.02),
        "slope_b": interval(slopes[1], 0.02),
        "difference": interval(slopes[0] - slopes[1], half),
        "p_value": 0.004,
        "paired": 9,
        "pairing": "Compared in pairs.",
        "crossing": None,
        "crossing_text": "They do not cross.",
        "untuned": (),
        "tuned_difference": None,
        "hangs_on_untuned": False,
    }
    return Comparison(**fields | rest)


def fitted(*comparisons: Comparison, refused: tuple[str, ...] = ()) -> Summary:
    return Summary(objectives={}, comparisons=comparisons, refused=refused)


def test_the_steepest_wins_where_it_clearly_is() -> None:
    assert which_scales_better(
        ["mae", "wsl"], fitted(comparison("wsl", "mae", (0.01, 0.08), 0.03))
    ) == (
        "MAE scales better than WSL: slopes of +0.080 [+0.060, +0.100] for MAE, +0.010 [-0.010, "
        "+0.030] for WSL per tenfold training compute, a difference of +0.070 [+0.040, +0.100] to "
        "WSL (p = 0.004)."
    )


def test_nobody_wins_where_one_difference_is_not_clear() -> None:
    pairs = [
        comparison("ca_mae", "mae", (0.07, 0.08), 0.03),
        comparison("ca_mae", "wsl", (0.07, 0.01), 0.03),
        comparison("mae", "wsl", (0.08, 0.01), 0.03),
    ]
    text = which_scales_better(["ca_mae", "mae", "wsl"], fitted(*pairs))
    assert text.startswith("Which objective scales better is not shown: slopes of +0.080 ")
    assert (
        "+0.010 [-0.020, +0.040] to CA-MAE (p = 0.004) and +0.070 [+0.040, +0.100] to WSL" in text
    )
    assert text.endswith("not all of them clear of 0.")
    clear = [
        dataclasses.replace(pair, difference=interval(d, 0.005))
        for pair, d in zip(pairs, (-0.01, 0.06, 0.07), strict=True)
    ]
    text = which_scales_better(["ca_mae", "mae", "wsl"], fitted(*clear))
    assert text.startswith("MAE scales better than CA-MAE and WSL: ")
    text = which_scales_better(["ca_mae", "mae", "munet", "wsl"], fitted(*clear))
    assert "is not shown" in text  # of one pair nothing is known


def test_a_conclusion_that_hangs_on_rates_that_were_not_tuned_says_so() -> None:
    hanging = {"untuned": ("B/16", "S/16"), "hangs_on_untuned": True}
    text = which_scales_better(
        ["mae", "wsl"], fitted(comparison("mae", "wsl", (0.08, 0.01), 0.03, **hanging))
    )
    assert text.endswith("not tuned for their size: B/16 and S/16.")


def test_what_cannot_be_compared_is_said_with_its_reason() -> None:
    assert which_scales_better(["mae"], fitted()).endswith("MAE is the only one that was trained.")
    refused = fitted(refused=("mae and wsl cannot be compared: 1 configuration.",))
    assert which_scales_better(["mae", "wsl"], refused).endswith("compared: 1 configuration.")
    notes = scaling_notes(None, refused, "unknown")
    assert notes == ["mae and wsl cannot be compared: 1 configuration."]


def candidate(seed: int = 0, **rest: Any) -> Candidate:
    trial = Trial(
        objective=Objective(name="mae"),
        backbone="micro/8",
        crops=Crops(size_px=32, passes=8),
        optim=Optim(lr=1e-3, lr_source="transferred"),
        seed=seed,
    )
    fields: dict[str, Any] = {
        "trial": trial,
        "flops": 3e14,
        "gpu_hours": 0.4,
        "forecast": interval(0.52, 0.09),
        "improvement": 0.034,
        "uncertainty": 0.31,
        "beyond": 3.2,
        "repeats": False,
    }
    return Candidate(**fields | rest)


def planned(*chosen: Candidate, left_out: tuple[str, ...] = ()) -> NextRuns:
    return NextRuns(
        budget_hours=2.0,
        hours_are="hours of one worker",
        by="uncertainty",
        candidates=(candidate(seed=9, repeats=True, beyond=1.0), *chosen),
        chosen=chosen,
        target="MAE",
        best="0.487",
        removed=0.4,
        forms={},
        left_out=left_out,
        warnings=("Take it as a direction.",),
    )


def test_the_next_run_is_named_with_its_forecast() -> None:
    best = make_row(score=0.487, score_low=0.4, score_high=0.57)
    assert what_next(best, planned(candidate())) == (
        "The next 2 hours (hours of one worker) are best spent on one run, which would take 40% "
        "off the variance of the forecast for the largest: MAE micro/8 on 100% of the training "
        "wells, 8 passes (24 minutes), forecast 0.520 [0.430, 0.610] recall of known "
        "relationships, an expected gain of 0.034 on the best so far, 0.487."
    )
    small = candidate(repeats=True, gpu_hours=0.01, forecast=interval(0.3, 0.1), improvement=0.0)
    two = what_next(best, planned(small, candidate(seed=1)))
    assert "best spent on 2 runs" in two
    assert (
        "first MAE micro/8 on 100% of the training wells, 8 passes with another seed (36 seconds), "
        in two
    )
    assert (
        "the most promising, MAE micro/8 on 100% of the training wells, 8 passes (24 minutes), "
        in two
    )
    assert "an expected gain of 0.034 on the best so far" in two
    assert what_next(best, planned(left_out=("All are too dear.",))).endswith("All are too dear.")
    assert what_next(best, "Nothing was trained.").endswith("cannot be said. Nothing was trained.")
    assert "Take it as a direction." in scaling_notes(best, fitted(), planned(candidate()))


def test_chosen_runs_stand_first_in_the_table() -> None:
    table = next_runs_table(planned(candidate()))
    assert len(table.rows) == 2 and all(len(row) == len(table.columns) for row in table.rows)
    assert table.rows[0][:5] == ("MAE micro/8", "yes", "100%", "8", "0")
    assert table.rows[1][1:5] == ("", "100%", "8", "9, again")
    assert table.rows[0][-2:] == ("3.2x", "transferred") and table.rows[1][-2] == "no"


@pytest.mark.parametrize(("gap", "close"), [(0.004, True), (0.2, False)])
def test_a_lead_that_seeds_explain_is_called_close(gap: float, close: bool) -> None:
    rows = [
        make_row(
            trial_id=f"{fraction}-{seed}",
            data_fraction=fraction,
            training_flops=3e13 * fraction,
            crops_seen=round(96_000 * fraction),
            seed=seed,
            score=0.3 + gap * (fraction == 1.0) + 0.02 * seed,
        )
        for fraction in (0.3, 1.0)
        for seed in range(3)
    ]
    notes = scaling_notes(rows[-1], summarise(rows, {}), "unknown")
    assert any("may be the seeds' alone" in note for note in notes) == close
