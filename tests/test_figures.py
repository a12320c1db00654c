"""The figures hold what the rows and the fits hold, and stay readable with many trials."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from phenoscale.reports.curve_figures import loss_figure
from phenoscale.reports.figure_parts import Figure, log_axis, seed_groups
from phenoscale.reports.figures import SECTIONS, make_figures
from phenoscale.reports.scaling_tables import (
    back_test_table,
    comparisons_table,
    iso_flop_table,
    laws_table,
    parametric_table,
    slopes_table,
)
from phenoscale.reports.score_figures import cost_figure, slot_hours
from phenoscale.results import ResultsRow
from phenoscale.scaling.summary import Summary, summarise
from tests.fabricated import make_baseline, make_row

STUDY = {"chance": 0.1}


@pytest.fixture(scope="module")
def rows() -> list[ResultsRow]:
    """Two objectives, three backbones, three data fractions, three seeds, and baselines."""
    rng = np.random.default_rng(0)
    rows: list[ResultsRow] = []
    for objective in ("mae", "wsl"):
        for size, backbone in ((3e4, "pico/8"), (1e5, "nano/8"), (4e5, "micro/8")):
            for data_fraction in (1 / 9, 1 / 3, 1.0):
                for seed in range(3):
                    crops = round(96_000 * data_fraction)
                    flops = size * crops * (6e3 if objective == "mae" else 9e3)
                    gain = 0.06 if objective == "mae" else 0.02
                    score = 0.3 + gain * math.log10(flops / 1e13) + rng.normal(0, 0.01)
                    loss = (0.3 + 3 / size**0.3 + 8 / crops**0.35) * math.exp(rng.normal(0, 0.005))
                    place = len(rows)
                    rows.append(
                        make_row(
                            trial_id=f"{objective}-{place:03d}",
                            objective=objective,
                            backbone=backbone,
                            data_fraction=data_fraction,
                            seed=seed,
                            num_parameters=round(size),
                            crops_seen=crops,
                            unique_crops=crops // 2,
                            training_flops=flops,
                            score=score,
                            score_low=score - 0.08,
                            score_high=score + 0.08,
                            held_out_loss=loss,
                            train_s=flops / 1e12,
                            score_by_database={"complexes": score + 0.05, "opposed": score - 0.05},
                        )
                    )
    for seed, score in enumerate((0.28, 0.29, 0.30)):
        rows.append(make_baseline("untrained", score, trial_id=f"untrained-{seed}", seed=seed))
    return [*rows, make_baseline("intensity", 0.25), make_baseline("oracle", 0.998)]


@pytest.fixture(scope="module")
def summary(rows: list[ResultsRow]) -> Summary:
    return summarise(rows, {})


@pytest.fixture(scope="module")
def figures(rows: list[ResultsRow], summary: Summary) -> dict[str, Figure]:
    made = make_figures(rows, {}, STUDY, summary)
    assert tuple(made) == SECTIONS
    return {figure["id"]: figure for section in made.values() for figure in section}


def legend(figure: Figure) -> list[str]:
    entries = [*figure["data"], *figure["layout"].get("shapes", [])]
    return [entry["name"] for entry in entries if entry.get("showlegend", True)]


def named(figure: Figure, name: str) -> Mapping[str, Any]:
    (trace,) = [trace for trace in figure["data"] if trace["name"] == name]
    return trace


def test_points_are_means_over_seeds_and_single_trials_stand_beside_them(
    figures: dict[str, Figure], rows: list[ResultsRow]
) -> None:
    compute = figures["score-training-flops"]
    mine = [row for row in rows if (row.objective, row.backbone) == ("mae", "nano/8")]
    trace = named(compute, "MAE nano/8")
    for place, flops in enumerate(sorted({row.training_flops for row in mine})):
        seeds = [row for row in mine if row.training_flops == flops]
        assert trace["x"][place] == flops
        assert trace["y"][place] == pytest.approx(np.mean([row.score for row in seeds]))
        high = np.mean([row.score_high for row in seeds])
        assert trace["y"][place] + trace["error_y"]["array"][place] == pytest.approx(high)
    single = [y for t in compute["data"] if t["name"] == "" and "fill" not in t for y in t["y"]]
    assert sorted(single) == sorted(row.score for row in rows if not row.is_baseline)


def test_lines_and_bands_are_those_of_the_summary(
    figures: dict[str, Figure], summary: Summary
) -> None:
    for column in ("training_flops", "crops_seen", "num_parameters"):
        figure = figures[f"score-{column.replace('_', '-')}"]
        for objective, name in (("mae", "MAE"), ("wsl", "WSL")):
            found = summary.objectives[objective].bands[column]
            (line,) = [t for t in figure["data"] if t["name"].startswith(f"{name}: ")]
            assert line["y"] == found.value.tolist() and line["x"] == found.x.tolist()
            bands = [t for t in figure["data"] if t.get("fill") == "toself"]
            assert [*found.high, *found.low[::-1]] in [band["y"] for band in bands]
        assert max(line["x"]) <= 10 ** figure["layout"]["xaxis"]["range"][1]


def test_a_legend_of_sixty_trials_is_short(figures: dict[str, Figure]) -> None:
    names = legend(figures["score-training-flops"])
    assert names[2:] == [
        *("MAE micro/8", "MAE nano/8", "MAE pico/8", "WSL micro/8", "WSL nano/8", "WSL pico/8"),
        *("untrained micro/16 (3)", "intensity statistics", "chance"),
    ]
    assert all(len(legend(figure)) <= 14 for figure in figures.values())


def test_the_oracle_far_above_is_named_and_does_not_flatten_the_rest(
    figures: dict[str, Figure], rows: list[ResultsRow]
) -> None:
    figure = figures["score-training-flops"]
    low, high = figure["layout"]["yaxis"]["range"]
    shown = [row for row in rows if row.objective != "oracle"]
    assert low < 0.1 and max(row.score_high for row in shown) < high < 0.6
    assert figure["note"].endswith("the oracle at 0.998 lies above the figure")
    near = [*rows[:54], make_baseline("oracle", 0.5)]
    (figure,) = make_figures(near, {}, STUDY)["compute"]
    assert "above the figure" not in figure["note"]
    assert "oracle" in legend(figure) and figure["layout"]["yaxis"]["range"][1] > 0.5


def test_without_fits_points_are_joined(rows: list[ResultsRow]) -> None:
    (figure,) = make_figures(rows, {}, STUDY)["compute"]
    assert {trace["mode"] for trace in figure["data"] if trace["name"]} == {"markers+lines"}
    assert not [trace for trace in figure["data"] if "fill" in trace]


def test_twins_count_once_and_screens_are_not_mixed() -> None:
    twins = [make_row(trial_id="a"), make_row(trial_id="b", launcher="ray_train", workers=2)]
    assert [[row.trial_id for row in group] for group in seed_groups(twins)] == [["a"]]
    other = make_row(trial_id="c", index_fingerprint="0" * 64, seed=1)
    assert len(seed_groups([*twins, other])) == 2


def test_the_front_is_what_no_other_trial_is_beyond(rows: list[ResultsRow]) -> None:
    figure = cost_figure(rows)
    measured = [row for row in rows if row.objective != "oracle"]
    front = {
        (slot_hours(row), row.score)
        for row in measured
        if not any(
            other.score >= row.score
            and slot_hours(other) < slot_hours(row)
            or other.score > row.score
            and slot_hours(other) <= slot_hours(row)
            for other in measured
        )
    }
    line = named(figure, "best for its cost")
    assert set(zip(line["x"][:-1], line["y"][:-1], strict=True)) == front
    assert line["x"][-1] == max(slot_hours(row) for row in measured)
    assert line["line"]["shape"] == "hv"
    mae = next(row for row in rows if row.objective == "mae")
    assert slot_hours(mae) == (mae.train_s + 6.0 + 2.0) / 3600


def test_databases_show_the_best_of_each_side_by_side(
    figures: dict[str, Figure], rows: list[ResultsRow]
) -> None:
    figure = figures["databases"]
    assert figure["layout"]["xaxis"]["ticktext"] == ["complexes", "opposed"]
    best = max((row for row in rows if row.objective == "mae"), key=lambda row: row.score)
    first = figure["data"][0]
    assert first["y"] == [best.score + 0.05, best.score - 0.05]
    assert "oracle" not in " ".join(legend(figure))
    one = [make_row(score_by_database={"complexes": 0.4})]
    assert make_figures(one, {}, STUDY)["databases"] == []


def test_residuals_are_what_the_law_leaves(figures: dict[str, Figure], summary: Summary) -> None:
    choice = summary.objectives["wsl"].choices["training_flops"]
    assert not isinstance(choice, str)
    trace = figures["residuals-score"]["data"][1]
    fitted = choice.chosen.predict(np.log10(trace["x"]))
    scores = [
        np.mean([row.score for row in group])
        for group in seed_groups(summary.objectives["wsl"].points.rows)
    ]
    assert np.add(trace["y"], fitted) == pytest.approx(scores)


def test_back_test_and_links_hold_the_summary(figures: dict[str, Figure], summary: Summary) -> None:
    found = summary.objectives["mae"].back_test
    assert not isinstance(found, str)
    trace = named(figures["back-test"], "MAE")
    assert trace["x"] == [case.observed for case in found.cases]
    ends = np.add(trace["y"], trace["error_y"]["array"])
    assert ends == pytest.approx([case.interval.high for case in found.cases])
    links = summary.objectives["mae"].links
    assert not isinstance(links, str) and links.is_law
    line = named(figures["link-mae"], "second link")
    trial = summary.objectives["mae"].points.rows[-1]
    assert trial.held_out_loss is not None
    assert np.interp(trial.held_out_loss, line["x"], line["y"]) == pytest.approx(
        trial.score, abs=0.04
    )


def test_the_best_size_lies_in_its_band(figures: dict[str, Figure], summary: Summary) -> None:
    iso = summary.objectives["mae"].iso_flop
    assert not isinstance(iso, str)
    line = named(figures["iso-flop"], "MAE: of L(N, D)")
    assert line["x"] == iso.budgets.tolist() and line["y"] == iso.parameters.tolist()
    band = next(trace for trace in figures["iso-flop"]["data"] if trace.get("fill"))
    assert len(band["x"]) == 2 * len(iso.budgets)


def test_tables_of_fits_have_a_cell_for_every_column(summary: Summary) -> None:
    scaling = summary.objectives
    made = [comparisons_table(summary), slopes_table(scaling), laws_table(scaling)]
    made += [parametric_table(scaling), iso_flop_table(scaling), back_test_table(scaling)]
    for table in made:
        assert table.rows and {len(row) for row in table.rows} == {len(table.columns)}, table.label
    mae, fit = parametric_table(scaling).rows[0], scaling["mae"].parametric
    assert not isinstance(fit, str) and mae[1].startswith(f"{fit.E.value:.3g} [")
    assert parametric_table({"mae": dataclasses.replace(scaling["mae"], iso_flop="no")}).rows[0][
        6:8
    ] == ("-", "-")


def test_a_long_loss_curve_is_thinned_without_changing_its_mean() -> None:
    row = make_row(steps=1500)
    loss = np.random.default_rng(0).uniform(size=1500)
    curve: dict[str, list[float]] = {"step": list(range(1, 1501)), "loss": loss.tolist()}
    (line,) = loss_figure([row], {row.trial_id: curve}, "mae")["data"]
    assert len(line["y"]) == 150
    assert np.mean(line["y"]) == pytest.approx(loss.mean())
    assert np.mean(line["x"]) == pytest.approx(750.5)


def test_seeds_share_an_entry_of_the_loss_legend(rows: list[ResultsRow]) -> None:
    curves: Any = {row.trial_id: {"step": [1, 2], "loss": [2.0, 1.0]} for row in rows[:27]}
    figure = loss_figure(rows[:54], curves, "mae")
    assert len(figure["data"]) == 27 and len(legend(figure)) == 9


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (2e12, 8e13, ["2·10¹²", "5·10¹²", "10¹³", "2·10¹³", "5·10¹³"]),
        (1e10, 3e14, ["10¹⁰", "10¹¹", "10¹²", "10¹³", "10¹⁴"]),
        (0.004, 0.3, ["0.005", "0.01", "0.02", "0.05", "0.1", "0.2"]),
    ],
)
def test_ticks_of_powers_of_ten(low: float, high: float, labels: list[str]) -> None:
    axis = log_axis("x", [low, high])
    ticks = zip(axis["tickvals"], axis["ticktext"], strict=True)
    assert [label for value, label in ticks if low <= value <= high] == labels
    start, end = axis["range"]
    assert start < math.log10(low) and end > math.log10(high)
