"""The figures of a study's report, by section, as plotly specifications (`figure_parts.py`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from phenoscale.reports.curve_figures import Curve, held_out_figure, loss_figure
from phenoscale.reports.figure_parts import Figure
from phenoscale.reports.scaling_figures import (
    back_test_figure,
    iso_flop_figure,
    link_figures,
    residual_figures,
    transfer_figure,
)
from phenoscale.reports.score_figures import cost_figure, database_figure, score_figure
from phenoscale.results import ResultsRow

if TYPE_CHECKING:
    from phenoscale.scaling.summary import Summary

SECTIONS = (
    *("compute", "data", "parameters", "cost", "databases", "loss", "held_out"),
    *("iso_flop", "links", "residuals", "back_test", "transfer"),
)
"""In the order of the page."""


def make_figures(
    rows: Sequence[ResultsRow],
    curves: Mapping[str, Curve],
    study: Mapping[str, Any],
    summary: Summary | None = None,
    transfer: Mapping[str, Any] | None = None,
) -> dict[str, list[Figure]]:
    """All figures of a study by section; a section without data has none.

    Args:
        rows: all rows.
        curves: `curve.json` by trial id.
        study: content of `study.json`, for the level of chance.
        summary: the fits; None where none could be made.
        transfer: scores of the encoders on another screen, as `experiments.channel_generalization`
            leaves them.

    Returns:
        Figures for each of SECTIONS.
    """
    trained = [row for row in rows if not row.is_baseline]
    figures: dict[str, list[Figure]] = {section: [] for section in SECTIONS}
    if transfer and transfer["rows"]:
        figures["transfer"] = [transfer_figure(transfer["rows"])]
    if not trained:
        return figures
    scaling = {} if summary is None else summary.objectives
    objectives = sorted({row.objective for row in trained})
    metric = trained[0].metric

    def scored(column: str) -> Figure:
        return score_figure(rows, study, column, scaling)

    found: dict[str, Sequence[Figure | None]] = {
        "compute": [scored("training_flops")],
        "data": [scored("data_fraction"), scored("crops_seen")],
        "parameters": [scored("num_parameters")],
        "cost": [cost_figure(rows)],
        "databases": [database_figure(rows, study)],
        "loss": [loss_figure(trained, curves, objective) for objective in objectives],
        "held_out": [held_out_figure(trained, o, scaling.get(o)) for o in objectives],
        "iso_flop": [iso_flop_figure(scaling)],
        "links": link_figures(scaling, metric),
        "residuals": residual_figures(scaling),
        "back_test": [back_test_figure(scaling, metric)],
    }
    for section, made in found.items():
        figures[section] = [figure for figure in made if figure and figure["data"]]
    return figures
