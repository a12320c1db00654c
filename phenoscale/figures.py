"""The figures of the report as plain plotly specifications: data and layout.

Each figure is a mapping with `id`, `title`, `note`, `data` and `layout`. The report's script draws
it in the colours of the reader's light or dark page.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from phenoscale.results import ResultsRow
from phenoscale.wording import METRIC_NAMES, objective_name, share

Figure = dict[str, Any]
Curve = Mapping[str, Sequence[float]]

# Of medium lightness: readable on white and on near-black.
OBJECTIVE_COLOURS = {
    "mae": "#3d7fd6",
    "mae+": "#1b4a8f",
    "wsl": "#d9822b",
    "munet": "#2e9e6b",
    "ca_mae": "#9a63c9",
    "ca_mae+": "#5f2f91",
    "ca_mae~": "#c99ae6",
}
OTHER_COLOUR = "#c2557a"
GREY = "#8a8f98"
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross", "star")
DASHES = ("solid", "dash", "dot", "dashdot")
CURVE_POINTS = 150
_BY_BACKBONE = ("untrained", "reference")  # baselines with a level for each of their backbones


def make_figures(
    rows: Sequence[ResultsRow], curves: Mapping[str, Curve], study: Mapping[str, Any]
) -> dict[str, list[Figure]]:
    """All figures of a study by section; a section without data has none.

    Args:
        rows: all rows.
        curves: `curve.json` by trial id.
        study: content of `study.json`, for the level of chance.

    Returns:
        Figures for the sections `compute`, `data`, `loss` and `held_out`.
    """
    trained = [row for row in rows if not row.is_baseline]
    objectives = sorted({row.objective for row in trained})
    if not trained:
        return {"compute": [], "data": [], "loss": [], "held_out": []}
    return {
        "compute": [_scores(rows, study, "training_flops")],
        "data": [_scores(rows, study, "data_fraction")],
        "loss": [f for o in objectives if (f := _loss(trained, curves, o))["data"]],
        "held_out": [_held_out(trained, objective) for objective in objectives],
    }


def _scores(rows: Sequence[ResultsRow], study: Mapping[str, Any], column: str) -> Figure:
    trained = [row for row in rows if not row.is_baseline]
    backbones = sorted({row.backbone for row in trained})
    data: list[dict[str, Any]] = []
    cells = sorted({(row.objective, row.backbone) for row in trained})
    for place, (objective, backbone) in enumerate(cells):
        cell = [row for row in trained if (row.objective, row.backbone) == (objective, backbone)]
        cell.sort(key=lambda row: (getattr(row, column), row.trial_id))
        # Fractions are the same in all cells: without a small shift the intervals hide each other.
        shift = 1.03 ** (place - (len(cells) - 1) / 2) if column == "data_fraction" else 1.0
        data.append(
            {
                "type": "scatter",
                "mode": "markers+lines",
                "name": f"{objective_name(objective)} {backbone}",
                "x": [getattr(row, column) * shift for row in cell],
                "y": [row.score for row in cell],
                "error_y": {
                    "type": "data",
                    "symmetric": False,
                    "array": [row.score_high - row.score for row in cell],
                    "arrayminus": [row.score - row.score_low for row in cell],
                    "thickness": 1.2,
                    "width": 3,
                },
                "text": [row.trial_id for row in cell],
                "hovertemplate": "%{text}<br>%{y:.3f}<extra></extra>",
                "marker": {"size": 9, "symbol": _pick(SYMBOLS, backbones.index(backbone))},
                "line": {
                    "width": 1,
                    "color": _colour(objective),
                    "dash": _pick(DASHES, backbones.index(backbone)),
                },
            }
        )
    shapes, levels = _levels(rows, study)
    highest = max([row.score_high for row in trained] + levels)
    lowest = min([row.score_low for row in trained] + levels + [0.0])
    metric = METRIC_NAMES.get(trained[0].metric, trained[0].metric)
    if column == "training_flops":
        axis = _log_axis("training FLOPs", [row.training_flops for row in trained])
    else:
        fractions = sorted({row.data_fraction for row in trained})
        axis = _log_axis("share of the training wells", fractions, fractions)
    return {
        "id": f"score-{column.replace('_', '-')}",
        "title": "",
        "note": f"{metric}, with 95% intervals",
        "data": data,
        "layout": {
            "xaxis": axis,
            "yaxis": {"title": {"text": metric}, "range": [lowest * 1.05, highest * 1.05]},
            "shapes": shapes,
        },
    }


def _levels(
    rows: Sequence[ResultsRow], study: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], list[float]]:
    """Horizontal bands and lines of the baselines, and the heights they reach."""
    shapes: list[dict[str, Any]] = []
    levels: list[float] = []
    baselines = [row for row in rows if row.is_baseline]
    for place, cell in enumerate(
        sorted(
            {(r.objective, r.backbone) for r in baselines if r.objective.startswith(_BY_BACKBONE)}
        )
    ):
        scores = [row.score for row in baselines if (row.objective, row.backbone) == cell]
        mean = math.fsum(scores) / len(scores)
        name = f"{objective_name(cell[0])} {cell[1]}"
        name += f": mean and range of {len(scores)}" if len(scores) > 1 else ""
        shapes.append(_line(mean, name, GREY, _pick(DASHES, place)))
        shapes.append(
            _line(min(scores), "", GREY, "solid")
            | {
                "type": "rect",
                "y1": max(scores),
                "fillcolor": GREY,
                "opacity": 0.25,
                "layer": "below",
                "line": {"width": 0},
                "showlegend": False,
            }
        )
        levels.append(max(scores))
    for objective, colour, dash in (("intensity", "#b0683f", "dash"), ("oracle", "#3f9a55", "dot")):
        for row in baselines:
            if row.objective == objective:
                shapes.append(_line(row.score, objective_name(objective), colour, dash))
                levels.append(row.score)
                if "density" in row.score_by_readout:
                    density = row.score_by_readout["density"]
                    shapes.append(_line(density, "density", colour, "longdashdot"))
                    levels.append(density)
    if study.get("chance") is not None:
        shapes.append(_line(study["chance"], "chance", GREY, "dot"))
        levels.append(study["chance"])
    return shapes, levels


def _line(height: float, name: str, colour: str, dash: str) -> dict[str, Any]:
    return {
        "type": "line",
        "xref": "paper",
        "x0": 0,
        "x1": 1,
        "y0": height,
        "y1": height,
        "line": {"color": colour, "width": 1.5, "dash": dash},
        "name": name,
        "showlegend": True,
    }


def _loss(trained: Sequence[ResultsRow], curves: Mapping[str, Curve], objective: str) -> Figure:
    backbones = sorted({row.backbone for row in trained})
    fractions = sorted({row.data_fraction for row in trained})
    data = []
    for row in trained:
        curve = curves.get(row.trial_id)
        if row.objective != objective or not curve:
            continue
        steps, loss = _binned(curve["step"], curve["loss"])
        placed = "" if row.launcher == "in_place" else f", Train x{row.workers}"
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": f"{row.backbone}, {share(row.data_fraction)}{placed}",
                "x": steps,
                "y": loss,
                "text": [row.trial_id] * len(steps),
                "hovertemplate": "%{text}<br>step %{x:.0f}: %{y:.4g}<extra></extra>",
                "opacity": 0.4 + 0.6 * (fractions.index(row.data_fraction) + 1) / len(fractions),
                "line": {
                    "width": 1 + fractions.index(row.data_fraction) / 2,
                    "color": _colour(objective),
                    "dash": _pick(DASHES, backbones.index(row.backbone)),
                },
            }
        )
    return {
        "id": f"loss-{objective}",
        "title": objective_name(objective),
        "note": "training loss by step; thicker is more data",
        "data": data,
        "layout": {"xaxis": {"title": {"text": "step"}}, "yaxis": {"title": {"text": "loss"}}},
    }


def _held_out(trained: Sequence[ResultsRow], objective: str) -> Figure:
    backbones = sorted({row.backbone for row in trained})
    mine = sorted(
        (row for row in trained if row.objective == objective), key=lambda row: row.training_flops
    )
    data = []
    for backbone in sorted({row.backbone for row in mine}):
        cell = [row for row in mine if row.backbone == backbone]
        data.append(
            {
                "type": "scatter",
                "mode": "markers+lines",
                "name": backbone,
                "x": [row.training_flops for row in cell],
                "y": [row.held_out_loss for row in cell],
                "text": [row.trial_id for row in cell],
                "hovertemplate": "%{text}<br>%{y:.4g}<extra></extra>",
                "marker": {"size": 9, "symbol": _pick(SYMBOLS, backbones.index(backbone))},
                "line": {
                    "width": 1,
                    "color": _colour(objective),
                    "dash": _pick(DASHES, backbones.index(backbone)),
                },
            }
        )
    return {
        "id": f"held-out-{objective}",
        "title": objective_name(objective),
        "note": "loss on the held-out plates by training FLOPs",
        "data": data,
        "layout": {
            "xaxis": _log_axis("training FLOPs", [row.training_flops for row in mine]),
            "yaxis": {"title": {"text": "held-out loss"}},
        },
    }


def _log_axis(title: str, values: Sequence[float], at: Sequence[float] = ()) -> dict[str, Any]:
    """A logarithmic axis with ticks `at` these shares, or at 1, 2, 5 times powers of ten."""
    positive = [value for value in values if value > 0] or [1.0]
    low, high = math.log10(min(positive)), math.log10(max(positive))
    margin = max(0.08 * (high - low), 0.08)
    if not at:
        steps = (1, 2, 5) if high - low < 2 else (1,)
        at = [
            step * 10.0**power
            for power in range(math.floor(low) - 1, math.ceil(high) + 1)
            for step in steps
        ]
        labels = [f"{value:.0e}".replace("e+", "e") for value in at]
    else:
        labels = [share(value) for value in at]
    return {
        "title": {"text": title},
        "type": "log",
        "range": [low - margin, high + margin],
        "tickmode": "array",
        "tickvals": list(at),
        "ticktext": labels,
    }


def _binned(steps: Sequence[float], values: Sequence[float]) -> tuple[list[float], list[float]]:
    """Means over runs of `width` steps, so that a curve has at most `CURVE_POINTS` points."""
    width = max(1, math.ceil(len(steps) / CURVE_POINTS))
    parts = [slice(first, first + width) for first in range(0, len(steps), width)]

    def means(numbers: Sequence[float]) -> list[float]:
        return [math.fsum(numbers[part]) / len(numbers[part]) for part in parts]

    return means(steps), means(values)


def _colour(objective: str) -> str:
    return OBJECTIVE_COLOURS.get(objective, OTHER_COLOUR)


def _pick(choices: Sequence[str], place: int) -> str:
    return choices[place % len(choices)]
