"""What the fits of a study look like: residuals, back-test, loss to score, isoFLOP, slopes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from phenoscale.maps.interval import Interval
from phenoscale.reports.figure_parts import (
    GREY,
    SYMBOLS,
    Figure,
    Trace,
    axis,
    band,
    bars,
    level,
    line,
    log_axis,
    named_axis,
    pick,
    points,
)
from phenoscale.wording import law_name, metric_name, objective_colour, objective_name

if TYPE_CHECKING:
    from phenoscale.scaling.iso_flop import IsoFlop
    from phenoscale.scaling.summary import ObjectiveScaling

COMPUTE = "training_flops"


def residual_figures(scaling: Mapping[str, ObjectiveScaling]) -> list[Figure]:
    """What the laws leave: of score against compute, and of loss against parameters and crops."""
    scores, losses = [], []
    for objective, found in scaling.items():
        colour, name = objective_colour(objective), objective_name(objective)
        symbol = pick(SYMBOLS, list(scaling).index(objective))
        choice = found.choices.get(COMPUTE)
        if choice is not None and not isinstance(choice, str):
            fit = choice.chosen
            off = (fit.y - fit.fitted).tolist()
            named = f"{name}: {law_name(fit.law)}"
            scores.append(points(named, (10**fit.x).tolist(), off, colour=colour, symbol=symbol))
        if not isinstance(found.parametric, str):
            x = (10 ** found.points.log10(COMPUTE)).tolist()
            off = (100 * found.parametric.residuals).tolist()
            losses.append(points(name, x, off, colour=colour, symbol=symbol))
    figures = []
    if scores:
        note = "observed less fitted score by configuration, means over seeds"
        figures.append(_residuals("residuals-score", "Score", note, "score less its law", scores))
    if losses:
        note = "observed over fitted held-out loss, L(N, D), by configuration"
        figures.append(_residuals("residuals-loss", "Loss", note, "per cent off its law", losses))
    return figures


def _residuals(name: str, title: str, note: str, y_title: str, data: Sequence[Trace]) -> Figure:
    flops = [x for trace in data for x in trace["x"]]
    return {
        "id": name,
        "title": title,
        "note": note,
        "data": list(data),
        "layout": {
            "xaxis": log_axis("training FLOPs", flops),
            "yaxis": axis(y_title),
            "shapes": [level(0.0, "", GREY, "solid")],
        },
    }


def back_test_figure(scaling: Mapping[str, ObjectiveScaling], metric: str) -> Figure | None:
    """What was forecast for the largest runs from the smaller ones, against what they scored."""
    data: list[Trace] = []
    ends: list[float] = []
    notes = []
    for place, (objective, found) in enumerate(scaling.items()):
        if isinstance(found.back_test, str):
            continue
        test = found.back_test
        x = [case.observed for case in test.cases]
        y = [case.interval.value for case in test.cases]
        low = [case.interval.low for case in test.cases]
        high = [case.interval.high for case in test.cases]
        trace = points(
            objective_name(objective),
            x,
            y,
            colour=objective_colour(objective),
            symbol=pick(SYMBOLS, place),
        )
        texts = [
            f"{c.configuration}{'' if c.held else ' (outside its interval)'}" for c in test.cases
        ]
        hover = {"text": texts, "hovertemplate": "%{text}<br>scored %{x:.3f}, forecast %{y:.3f}"}
        data.append(trace | hover | {"error_y": bars(y, low, high)})
        ends += [*x, *low, *high]
        notes.append(
            f"{objective_name(objective)}: {test.held} of {len(test.cases)} intervals held"
        )
    if not data:
        return None
    both = [min(ends), max(ends)]
    data.insert(0, line("forecast = scored", both, both, colour=GREY, dash="dash"))
    return {
        "id": "back-test",
        "title": "",
        "note": f"{metric_name(metric)} of the largest runs, forecast from a fit of the smaller "
        "ones alone, with 95% intervals of a new run, which should cross the line. "
        f"{'; '.join(notes)}",
        "data": data,
        "layout": {"xaxis": axis("scored"), "yaxis": axis("forecast")},
    }


def link_figures(scaling: Mapping[str, ObjectiveScaling], metric: str) -> list[Figure]:
    """Score against held-out loss, one figure each: losses of two objectives are not comparable."""
    figures = []
    for objective, found in scaling.items():
        if isinstance(found.links, str):
            continue
        colour = objective_colour(objective)
        trials = found.points
        loss = trials.means(trials.column("held_out_loss"))
        score = trials.means(trials.column("score"))
        data = [points("configurations", loss.tolist(), score.tolist(), colour=colour)]
        if found.links.is_law:
            x = np.linspace(loss.min(), loss.max(), 60)
            y = found.links.score_law.predict(
                np.log10(x) if found.links.form == "log10 loss" else x
            )
            data.append(line("second link", x.tolist(), y.tolist(), colour=colour))
        figures.append(
            {
                "id": f"link-{objective}",
                "title": objective_name(objective),
                "note": found.links.why,
                "data": data,
                "layout": {"xaxis": axis("held-out loss"), "yaxis": axis(metric_name(metric))},
            }
        )
    return figures


def iso_flop_figure(scaling: Mapping[str, ObjectiveScaling]) -> Figure | None:
    """Parameters of least loss by compute: of the surface L(N, D), and law-free beside it."""
    data: list[Trace] = []
    flops: list[float] = []
    sizes: list[float] = []
    for place, (objective, found) in enumerate(scaling.items()):
        if isinstance(found.iso_flop, str):
            continue
        iso, colour = found.iso_flop, objective_colour(objective)
        name, budgets = objective_name(objective), iso.budgets.tolist()
        low, high = iso.parameters_low.tolist(), iso.parameters_high.tolist()
        data.insert(0, band(budgets, low, high, colour=colour))
        data.append(line(f"{name}: of L(N, D)", budgets, iso.parameters.tolist(), colour=colour))
        symbol = pick(SYMBOLS, place)
        known = np.isfinite(iso.free_parameters)
        if known.any():
            x, y = iso.budgets[known].tolist(), iso.free_parameters[known].tolist()
            data.append(points(f"{name}: a cubic per budget", x, y, colour=colour, symbol=symbol))
            sizes += y
        flops += budgets
        sizes += _within(iso)
    if not data:
        return None
    note = "encoder parameters that give the least held-out loss for a compute budget, by the law"
    note += " with its 95% interval"
    if any(trace["mode"] == "markers" for trace in data):
        note += "; points do without a law"
    return {
        "id": "iso-flop",
        "title": "",
        "note": note,
        "data": data,
        "layout": {
            "xaxis": log_axis("training FLOPs", flops),
            "yaxis": log_axis("parameters", sizes),
        },
    }


def _within(iso: IsoFlop) -> list[float]:
    """The ends of the band, as far as 30 times the curve: wider ones would flatten all else."""
    low = np.maximum(iso.parameters_low, iso.parameters / 30)
    high = np.minimum(iso.parameters_high, iso.parameters * 30)
    return [*low.tolist(), *high.tolist()]


def slopes_figure(slopes: Sequence[tuple[str, str, Interval]], metric: str) -> Figure:
    """Slopes side by side.

    Args:
        slopes: name, objective, score per decade of training FLOPs.
        metric: name of the score.
    """
    data = []
    ordered = list(reversed(slopes))  # the first on top
    for objective in dict.fromkeys(objective for _, objective, _ in slopes):
        own = [(y, s) for y, (_, mine, s) in enumerate(ordered) if mine == objective]
        values = [slope.value for _, slope in own]
        trace = points(
            objective_name(objective),
            values,
            [y for y, _ in own],
            colour=objective_colour(objective),
        )
        low, high = [slope.low for _, slope in own], [slope.high for _, slope in own]
        hover = {"hovertemplate": "%{x:+.3f}<extra></extra>"}
        data.append(trace | hover | {"error_x": bars(values, low, high)})
    zero: dict[str, Any] = level(-0.6, "", GREY, "dot") | {
        "xref": "x",
        "x0": 0.0,
        "x1": 0.0,
        "y1": len(slopes) - 0.4,
    }
    return {
        "id": "slopes",
        "title": "",
        "note": f"slope of a straight line: {metric_name(metric)} per decade of training FLOPs, "
        "with 95% intervals",
        "data": data,
        "layout": {
            "xaxis": axis("score per decade"),
            "yaxis": named_axis([name for name, _, _ in ordered]),
            "shapes": [zero],
        },
    }


def transfer_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Recall on another laboratory's screen, by encoder and the channels that it was given.

    Args:
        rows: name, channels, recall, low, high of each, as `experiments/channel_generalization.py`
            leaves them.
    """
    ordered = sorted(rows, key=lambda row: float(row["recall"]))
    kinds = sorted({len(row["channels"]) for row in ordered})
    data = []
    for place, channels in enumerate(kinds):
        own = [(y, row) for y, row in enumerate(ordered) if len(row["channels"]) == channels]
        values = [row["recall"] for _, row in own]
        low, high = [row["low"] for _, row in own], [row["high"] for _, row in own]
        colour = (GREY, "#3d7fd6", "#d9822b", "#2e9e6b")[place % 4]
        look = {"colour": colour, "symbol": pick(SYMBOLS, place)}
        trace = points(f"{channels} channels", values, [y for y, _ in own], **look)
        hover = {"hovertemplate": "%{x:.3f}<extra></extra>"}
        data.append(trace | hover | {"error_x": bars(values, low, high)})
    return {
        "id": "transfer",
        "title": "",
        "note": "recall of known relationships on the other screen, with 95% intervals over genes",
        "data": data,
        "layout": {
            "xaxis": axis("recall on the other screen"),
            "yaxis": named_axis([str(row["name"]) for row in ordered]),
        },
    }
