"""Scores of several studies against compute, in one figure."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import TYPE_CHECKING

from phenoscale.reports.figure_parts import (
    SYMBOLS,
    Figure,
    Trace,
    axis,
    band,
    bars,
    line,
    log_axis,
    pick,
    points,
    seed_groups,
)
from phenoscale.wording import metric_name, objective_name, share

if TYPE_CHECKING:
    from phenoscale.reports.study_report import StudyRecord

COMPUTE = "training_flops"
COLOURS = ("#3d7fd6", "#d9822b", "#2e9e6b", "#9a63c9", "#c2557a", "#8a9a2b", "#1f9fb8")


def compared_scores(studies: Mapping[str, StudyRecord], metric: str) -> Figure:
    """Means over seeds with their laws: colours are studies, symbols are objectives.

    Args:
        studies: by the name that the legend is to have.
        metric: studies scored by another one are left out.
    """
    own = {
        name: [g for g in seed_groups(record.rows) if g[0].metric == metric]
        for name, record in studies.items()
    }
    objectives = sorted({group[0].objective for groups in own.values() for group in groups})
    bands: list[Trace] = []
    data: list[Trace] = []
    for place, (name, groups) in enumerate(own.items()):
        colour = pick(COLOURS, place)
        for objective in sorted({group[0].objective for group in groups}):
            mine = [group for group in groups if group[0].objective == objective]
            scores = [fmean([row.score for row in group]) for group in mine]
            low = [fmean([row.score_low for row in group]) for group in mine]
            high = [fmean([row.score_high for row in group]) for group in mine]
            trace = points(
                f"{name}: {objective_name(objective)}",
                [group[0].training_flops for group in mine],
                scores,
                colour=colour,
                symbol=pick(SYMBOLS, objectives.index(objective)),
            )
            hover = {
                "text": [f"{g[0].backbone} on {share(g[0].data_fraction)}" for g in mine],
                "hovertemplate": f"{trace['name']} %{{text}}<br>%{{y:.3f}}<extra></extra>",
            }
            data.append(trace | hover | {"error_y": bars(scores, low, high)})
            fitted = studies[name].summary.objectives.get(objective)
            if fitted is not None and COMPUTE in fitted.bands:
                law = fitted.bands[COMPUTE]
                x = law.x.tolist()
                bands.append(band(x, law.low.tolist(), law.high.tolist(), colour=colour))
                lined = line("", x, law.value.tolist(), colour=colour)
                bands.append(lined | {"showlegend": False})
    ends = [end for trace in data for end in _ends(trace)]
    margin = 0.06 * (max(ends) - min(ends)) or 0.05
    return {
        "id": f"compared-{metric.replace('.', '-').replace('_', '-')}",
        "title": "",
        "note": f"{metric_name(metric)} with 95% intervals, means over seeds",
        "data": bands + data,
        "layout": {
            "xaxis": log_axis("training FLOPs", [x for trace in data for x in trace["x"]]),
            "yaxis": axis(metric_name(metric), range=[min(ends) - margin, max(ends) + margin]),
        },
    }


def _ends(trace: Trace) -> list[float]:
    """Lower and upper ends of a trace's intervals."""
    bar = trace["error_y"]
    low = [y - off for y, off in zip(trace["y"], bar["arrayminus"], strict=True)]
    return low + [y + off for y, off in zip(trace["y"], bar["array"], strict=True)]
