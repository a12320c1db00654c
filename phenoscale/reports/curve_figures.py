"""The losses of a study: by step of training, and on the held-out plates by compute."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np

from phenoscale.reports.figure_parts import (
    DASHES,
    SYMBOLS,
    Figure,
    Trace,
    axis,
    line,
    log_axis,
    pick,
    points,
    seed_groups,
)
from phenoscale.results import ResultsRow
from phenoscale.wording import law_name, objective_colour, objective_name, share

if TYPE_CHECKING:
    from phenoscale.scaling.summary import ObjectiveScaling

Curve = Mapping[str, Sequence[float]]
CURVE_POINTS = 150


def loss_figure(
    trained: Sequence[ResultsRow], curves: Mapping[str, Curve], objective: str
) -> Figure:
    """Training loss by step of the trials of one objective; seeds share an entry of the legend."""
    backbones = sorted({row.backbone for row in trained})
    fractions = sorted({row.data_fraction for row in trained})
    data: list[Trace] = []
    named: set[str] = set()
    for row in trained:
        curve = curves.get(row.trial_id)
        if row.objective != objective or not curve:
            continue
        steps, loss = _binned(curve["step"], curve["loss"])
        placed = "" if row.launcher == "in_place" else f", Train x{row.workers}"
        name = f"{row.backbone}, {share(row.data_fraction)}{placed}"
        dash = pick(DASHES, backbones.index(row.backbone))
        rank = fractions.index(row.data_fraction)
        trace = line(name, steps, loss, colour=objective_colour(objective), dash=dash) | {
            "text": [row.trial_id] * len(steps),
            "hovertemplate": "%{text}<br>step %{x:.0f}: %{y:.4g}<extra></extra>",
            "hoverinfo": "all",
            "opacity": 0.4 + 0.6 * (rank + 1) / len(fractions),
            "legendgroup": name,
            "showlegend": name not in named,
        }
        trace["line"]["width"] = 1 + rank / 2
        named.add(name)
        data.append(trace)
    return {
        "id": f"loss-{objective}",
        "title": objective_name(objective),
        "note": "training loss by step; thicker is more data",
        "data": data,
        "layout": {"xaxis": axis("step"), "yaxis": axis("loss")},
    }


def held_out_figure(
    trained: Sequence[ResultsRow], objective: str, scaling: ObjectiveScaling | None
) -> Figure:
    """Loss on the held-out plates by training FLOPs, with its law where it has one."""
    backbones = sorted({row.backbone for row in trained})
    groups = [g for g in seed_groups(trained) if g[0].objective == objective]
    colour = objective_colour(objective)
    data: list[Trace] = []
    for backbone in sorted({group[0].backbone for group in groups}):
        cell = [group for group in groups if group[0].backbone == backbone]
        place = backbones.index(backbone)
        trace = points(
            backbone,
            [group[0].training_flops for group in cell],
            [fmean(loss for r in group if (loss := r.held_out_loss) is not None) for group in cell],
            colour=colour,
            symbol=pick(SYMBOLS, place),
        ) | {
            "text": [" and ".join(row.trial_id for row in group) for group in cell],
            "hovertemplate": "%{text}<br>%{y:.4g}<extra></extra>",
        }
        data.append(trace)
    choice = None if scaling is None else scaling.loss
    note = "loss on the held-out plates by training FLOPs, means over seeds"
    if choice is not None and not isinstance(choice, str):
        fit = choice.chosen
        x = np.linspace(fit.x.min(), fit.x.max(), 60)
        name = law_name(fit.law)
        data.append(line(name, (10**x).tolist(), fit.predict(x).tolist(), colour=colour))
    else:
        for trace, backbone in zip(data, sorted({g[0].backbone for g in groups}), strict=True):
            dash = pick(DASHES, backbones.index(backbone))
            trace |= {"mode": "markers+lines", "line": {"width": 1, "color": colour, "dash": dash}}
    flops = [group[0].training_flops for group in groups]
    return {
        "id": f"held-out-{objective}",
        "title": objective_name(objective),
        "note": note,
        "data": data,
        "layout": {"xaxis": log_axis("training FLOPs", flops), "yaxis": axis("held-out loss")},
    }


def _binned(steps: Sequence[float], values: Sequence[float]) -> tuple[list[float], list[float]]:
    """Means over runs of `width` steps, so that a curve has at most `CURVE_POINTS` points."""
    width = max(1, math.ceil(len(steps) / CURVE_POINTS))
    parts = [slice(first, first + width) for first in range(0, len(steps), width)]
    return [fmean(steps[part]) for part in parts], [fmean(values[part]) for part in parts]
