"""What the figures of a report are put together from: colours, axes, traces, levels of baselines.

A figure is a mapping with `id`, `title`, `note`, `data` and `layout`, the last two as plotly has
them. The page draws it in the colours of the reader's light or dark screen (`page.html.j2`), and
`static_figures.py` draws the same for print; what one of them does not know, it refuses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from phenoscale.results import ResultsRow
from phenoscale.scaling.points import COMPARABLE, points_of

Figure = dict[str, Any]
Trace = dict[str, Any]

GREY = "#8a8f98"
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross", "star")
DASHES = ("solid", "dash", "dot", "dashdot")


def pick(choices: Sequence[str], place: int) -> str:
    """A choice by place, from the first again after the last."""
    return choices[place % len(choices)]


def faded(colour: str, opacity: float) -> str:
    """A colour `#rrggbb` that lets shine through what lies below."""
    red, green, blue = (int(colour[place : place + 2], 16) for place in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity:g})"


def seed_groups(rows: Sequence[ResultsRow]) -> list[list[ResultsRow]]:
    """The trained trials by configuration, in order of compute; twins count once.

    Trials of two screens, metrics or protocols are never of one configuration.
    """
    kinds: dict[tuple[str, ...], list[ResultsRow]] = {}
    for row in rows:
        if not row.is_baseline:
            key = tuple(getattr(row, name) for name in COMPARABLE)
            kinds.setdefault(key, []).append(row)
    return [
        list(seeds)
        for kind in kinds.values()
        for points in points_of(kind).values()
        for seeds in points.by_configuration
    ]


def points(
    name: str, x: Sequence[float], y: Sequence[float], *, colour: str, symbol: str = "circle"
) -> Trace:
    """Markers without anything else; callers add what they need."""
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": list(x),
        "y": list(y),
        "marker": {"size": 9, "symbol": symbol, "color": colour},
        "hovertemplate": "%{x:.3~g}, %{y:.3~g}<extra></extra>",
    }


def line(
    name: str, x: Sequence[float], y: Sequence[float], *, colour: str, dash: str = "solid"
) -> Trace:
    """A line through its points, two pixels wide."""
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "x": list(x),
        "y": list(y),
        "line": {"width": 2, "color": colour, "dash": dash},
        "hoverinfo": "skip",
    }


def band(x: Sequence[float], low: Sequence[float], high: Sequence[float], *, colour: str) -> Trace:
    """The area between two curves, without an entry in the legend."""
    return {
        "type": "scatter",
        "mode": "lines",
        "name": "",
        "x": [*x, *reversed(x)],
        "y": [*high, *reversed(low)],
        "fill": "toself",
        "fillcolor": faded(colour, 0.16),
        "line": {"width": 0, "color": colour},
        "hoverinfo": "skip",
        "showlegend": False,
    }


def bars(values: Sequence[float], low: Sequence[float], high: Sequence[float]) -> dict[str, Any]:
    """Error bars from the ends of intervals."""
    ends = list(zip(values, low, high, strict=True))
    return {
        "type": "data",
        "symmetric": False,
        "array": [top - value for value, _, top in ends],
        "arrayminus": [value - bottom for value, bottom, _ in ends],
        "thickness": 1.2,
        "width": 3,
    }


def level(height: float, name: str, colour: str, dash: str) -> dict[str, Any]:
    """A horizontal line over the whole figure; without a name it has no entry in the legend."""
    return {
        "type": "line",
        "xref": "paper",
        "x0": 0,
        "x1": 1,
        "y0": height,
        "y1": height,
        "line": {"color": colour, "width": 1.5, "dash": dash},
        "name": name,
        "showlegend": bool(name),
    }


def level_band(low: float, high: float, colour: str) -> dict[str, Any]:
    """A horizontal band over the whole figure, below everything else."""
    return level(low, "", colour, "solid") | {
        "type": "rect",
        "y1": high,
        "fillcolor": colour,
        "opacity": 0.25,
        "layer": "below",
        "line": {"width": 0},
    }


def axis(title: str, **settings: Any) -> dict[str, Any]:
    """A linear axis."""
    return {"title": {"text": title}, **settings}


def log_axis(
    title: str, values: Sequence[float], at: Sequence[tuple[float, str]] = ()
) -> dict[str, Any]:
    """A logarithmic axis over positive values.

    Args:
        title: what it measures.
        values: what it must show; those that are not positive are left out.
        at: ticks and their labels; at powers of ten, or at 1, 2 and 5 times these, if not given.
    """
    positive = [value for value in values if value > 0] or [1.0]
    low, high = math.log10(min(positive)), math.log10(max(positive))
    margin = max(0.05 * (high - low), 0.08)
    if not at:
        steps = (1, 2, 5) if high - low < 2 else (1,)
        powers = range(math.floor(low - margin), math.ceil(high + margin) + 1)
        at = [
            (step * 10.0**power, _power_of_ten(step, power)) for power in powers for step in steps
        ]
    return {
        "title": {"text": title},
        "type": "log",
        "range": [low - margin, high + margin],
        "tickmode": "array",
        "tickvals": [value for value, _ in at],
        "ticktext": [label for _, label in at],
    }


def named_axis(names: Sequence[str], **settings: Any) -> dict[str, Any]:
    """An axis whose whole numbers from 0 carry names."""
    return {
        "tickmode": "array",
        "tickvals": list(range(len(names))),
        "ticktext": list(names),
        "range": [-0.6, len(names) - 0.4],
        "zeroline": False,
        "automargin": True,
        **settings,
    }


def _power_of_ten(step: int, power: int) -> str:
    if -3 <= power <= 2:
        return f"{step * 10.0**power:g}"
    raised = str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"10{raised}" if step == 1 else f"{step}·10{raised}"
