"""The figures of a report for print: PNG and SVG at the width of a journal's column.

Drawn from the same specifications as the page's figures. What this file does not know (a type of
trace, a mode, a symbol, a shape) is an error, so that nothing is missing from a figure unnoticed.
The same specification gives the same bytes, and an SVG keeps its text as text.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, NullFormatter, NullLocator

from phenoscale.reports.figure_parts import Figure, Trace
from phenoscale.results import whole_file

COLUMN_IN = 3.4
"""Width of a figure, inches: one column of a journal with two."""
PLOT_IN = 2.3
"""Height of the axes with their labels; the legend adds its own."""
DPI = 300
TEXT_PT = 7.0

_PX_TO_PT = 0.5  # the page draws for a width of some 900 px, print for 245 pt
_LEGEND_LINE_IN = 0.125
_LEGEND_CHARACTERS = 62  # of the column's width at the legend's size, signs and gaps included
_DASHES = {
    "solid": "-",
    "dash": "--",
    "dot": ":",
    "dashdot": "-.",
    "longdashdot": (0, (7, 2, 1, 2)),
}
_MARKERS = {
    "circle": "o",
    "diamond": "D",
    "square": "s",
    "triangle-up": "^",
    "cross": "P",
    "star": "*",
    "x": "X",
}
_MODES = ("lines", "markers", "markers+lines")
_STYLE: dict[Any, Any] = {
    "font.size": TEXT_PT,
    "axes.linewidth": 0.5,
    "xtick.major.width": 0.5,
    "ytick.major.width": 0.5,
    "xtick.major.size": 2.0,
    "ytick.major.size": 2.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.fontsize": 6.0,
    "svg.fonttype": "none",
    "svg.hashsalt": "phenoscale",
    "text.parse_math": False,
}


def write_figures(figures: Sequence[Figure], folder: Path) -> list[Path]:
    """Writes `ID.png` and `ID.svg` of each figure; those of figures that are gone are removed.

    Args:
        figures: with an `id` each.
        folder: made if it does not exist.

    Returns:
        The files.

    Raises:
        ValueError: for what cannot be drawn.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for figure in figures:
        with rc_context(_STYLE):
            canvas = draw(figure)
            for kind, facts in (("png", {"Software": None}), ("svg", {"Date": None})):
                path = folder / f"{figure['id']}.{kind}"
                with whole_file(path) as part:
                    canvas.savefig(part, format=kind, dpi=DPI, metadata=facts)
                canvas.set_layout_engine("none")  # the first file has found the places of all
                written.append(path)
    for old in {*folder.glob("*.png"), *folder.glob("*.svg")} - set(written):
        old.unlink()
    return written


def draw(figure: Figure) -> Canvas:
    """A figure as matplotlib has it.

    Raises:
        ValueError: for a trace, mode, symbol, dash, shape or axis that is not known here.
    """
    layout, entries = figure["layout"], list(_legend_entries(figure))
    square = "scaleanchor" in layout["yaxis"]
    columns = _legend_columns([name for name, _ in entries])
    lines = math.ceil(len(entries) / columns) if entries else 0
    tall = max(PLOT_IN, 0.16 * len(layout["yaxis"].get("ticktext", ())) + 0.6)
    height = (COLUMN_IN if square else tall) + _LEGEND_LINE_IN * lines
    canvas = Canvas(figsize=(COLUMN_IN, height), layout="constrained")
    FigureCanvasAgg(canvas)
    axes = canvas.add_subplot()
    for shape in layout.get("shapes", ()):
        _shape(axes, shape)
    for trace in figure["data"]:
        _trace(canvas, axes, trace)
    for name in ("x", "y"):
        _axis(axes, name, layout[f"{name}axis"])
    if square:
        axes.set_aspect("equal", adjustable="box")
    if entries:
        handles = [handle for _, handle in entries]
        names = [name for name, _ in entries]
        canvas.legend(handles, names, loc="outside lower left", ncols=columns, frameon=False)
    return canvas


def _trace(canvas: Canvas, axes: Axes, trace: Trace) -> None:
    kinds = {"scatter": _scatter, "heatmap": _heatmap}
    if trace["type"] not in kinds:
        raise ValueError(
            f"A trace is of type {trace['type']!r}; a static figure can draw "
            f"{' and '.join(kinds)}. Add it to static_figures.py."
        )
    kinds[trace["type"]](canvas, axes, trace)


def _scatter(canvas: Canvas, axes: Axes, trace: Trace) -> None:
    x, y = np.asarray(trace["x"], dtype=float), np.asarray(trace["y"], dtype=float)
    if "fill" in trace:
        _known("fill", trace["fill"], ("toself",))
        colour, opacity = _colour(trace["fillcolor"])
        axes.fill(x, y, facecolor=colour, alpha=opacity, linewidth=0, zorder=1)
        return
    look = _look(trace)
    off = {
        axis: np.array([trace[axis]["arrayminus"], trace[axis]["array"]])
        for axis in ("error_x", "error_y")
        if axis in trace
    }
    if off:
        bars = {"fmt": "none", "ecolor": look["color"], "elinewidth": 0.6, "capsize": 1.2}
        axes.errorbar(x, y, yerr=off.get("error_y"), xerr=off.get("error_x"), **bars)
    shape = (trace.get("line") or {}).get("shape", "linear")
    _known("line shape", shape, ("linear", "hv"))
    steps = "steps-post" if shape == "hv" else "default"
    above = 2 if trace["mode"] == "lines" else 3
    axes.plot(x, y, drawstyle=steps, zorder=above, **look)


def _look(trace: Trace) -> dict[str, Any]:
    """Line and marker of a scatter trace, as matplotlib's `plot` takes them."""
    _known("mode", trace["mode"], _MODES)
    line, marker = trace.get("line", {}), trace.get("marker", {})
    colour, opacity = _colour(marker.get("color", line.get("color")))
    look: dict[str, Any] = {"color": colour, "linestyle": "none"}
    look["alpha"] = opacity * trace.get("opacity", 1.0) * marker.get("opacity", 1.0)
    if "lines" in trace["mode"]:
        look["linestyle"] = _known("dash", line.get("dash", "solid"), _DASHES)
        look["linewidth"] = _PX_TO_PT * line.get("width", 2)
    if "markers" in trace["mode"]:
        look["marker"] = _known("symbol", marker.get("symbol", "circle"), _MARKERS)
        look["markersize"] = _PX_TO_PT * marker.get("size", 6)
        look["markeredgewidth"] = 0
    return look


def _heatmap(canvas: Canvas, axes: Axes, trace: Trace) -> None:
    values = _array(trace["z"])
    stops = [(place, (*_rgb(colour), _colour(colour)[1])) for place, colour in trace["colorscale"]]
    scale = LinearSegmentedColormap.from_list("", stops)
    image = axes.imshow(
        values, cmap=scale, vmin=trace["zmin"], vmax=trace["zmax"], interpolation="nearest"
    )
    bar = canvas.colorbar(image, ax=axes, location="bottom", shrink=0.6, aspect=40, pad=0.02)
    bar.outline.set_visible(False)
    axes.set_xticks(range(len(trace["x"])), trace["x"], rotation=90)
    axes.set_yticks(range(len(trace["y"])), trace["y"])


def _shape(axes: Axes, shape: Mapping[str, Any]) -> None:
    """A line or a rectangle, over the whole width where its x is that of the paper."""
    _known("xref", shape["xref"], ("paper", "x"))
    across = axes.get_yaxis_transform() if shape["xref"] == "paper" else axes.transData
    corners = {end: shape[end] for end in ("x0", "x1", "y0", "y1")}
    if _known("shape", shape["type"], ("line", "rect")) == "rect":
        size = corners["x1"] - corners["x0"], corners["y1"] - corners["y0"]
        place = corners["x0"], corners["y0"]
        colour, opacity = _colour(shape["fillcolor"])
        alpha = opacity * shape.get("opacity", 1.0)
        look = {"facecolor": colour, "alpha": alpha, "linewidth": 0, "zorder": 0}
        axes.add_patch(Rectangle(place, *size, transform=across, **look))
        axes.update_datalim([place, (corners["x1"], corners["y1"])], updatex=False)
        axes.autoscale_view()
        return
    x, y = [corners["x0"], corners["x1"]], [corners["y0"], corners["y1"]]
    axes.add_line(Line2D(x, y, transform=across, zorder=1, **_line_look(shape)))
    if shape["xref"] == "paper":
        axes.update_datalim([(0, y[0]), (1, y[1])], updatex=False)


def _line_look(shape: Mapping[str, Any]) -> dict[str, Any]:
    line = shape["line"]
    colour, opacity = _colour(line["color"])
    dash = _known("dash", line.get("dash", "solid"), _DASHES)
    width = _PX_TO_PT * line["width"]
    return {"color": colour, "alpha": opacity, "linestyle": dash, "linewidth": width}


def _axis(axes: Axes, name: str, settings: Mapping[str, Any]) -> None:
    """Title, scale, range and ticks of the axis x or y."""
    axis = axes.xaxis if name == "x" else axes.yaxis
    kind = _known("axis", settings.get("type", "linear"), ("linear", "log", "category"))
    if settings.get("visible") is False:
        axis.set_visible(False)
        axes.spines[:].set_visible(False)
        return
    axis.set_label_text(settings.get("title", {}).get("text", ""))
    if kind == "log":
        (axes.set_xscale if name == "x" else axes.set_yscale)("log")
    if "range" in settings:
        low, high = (10**end if kind == "log" else end for end in settings["range"])
        (axes.set_xlim if name == "x" else axes.set_ylim)(low, high)
    if kind == "linear" and "tickvals" not in settings:
        axis.set_major_locator(MaxNLocator(6))
    if "tickvals" in settings:
        low, high = axis.get_view_interval()
        inside = [
            (value, label)
            for value, label in zip(settings["tickvals"], settings["ticktext"], strict=True)
            if low <= value <= high
        ]
        axis.set_ticks([value for value, _ in inside], [label for _, label in inside])
    if kind == "log":
        axis.set_minor_locator(NullLocator())
        axis.set_minor_formatter(NullFormatter())
    if settings.get("showticklabels") is False:
        axis.set_ticks([])


def _legend_entries(figure: Figure) -> Iterator[tuple[str, Line2D]]:
    """Name and sign of all that has one, traces first."""
    if figure["layout"].get("showlegend") is False:
        return
    for trace in figure["data"]:
        if trace.get("showlegend", True) and trace["type"] == "scatter":
            yield trace["name"], Line2D([], [], **_look(trace))
    for shape in figure["layout"].get("shapes", ()):
        if shape.get("showlegend"):
            yield shape["name"], Line2D([], [], **_line_look(shape))


def _legend_columns(names: Sequence[str]) -> int:
    """As many as the longest name leaves room for."""
    longest = max((len(name) for name in names), default=0) + 8  # its sign and gap
    return max(1, min(_LEGEND_CHARACTERS // longest, 3))


def _array(values: Any) -> np.ndarray:
    """Numbers, or numbers packed as `map_figures.py` does."""
    if isinstance(values, Mapping):
        shape = [int(side) for side in values["shape"].split(",")]
        return np.frombuffer(base64.b64decode(values["bdata"]), f"<{values['dtype']}").reshape(
            shape
        )
    return np.asarray(values, dtype=float)


def _rgb(colour: str) -> tuple[float, ...]:
    parts = re.findall(r"[\d.]+", colour)
    return tuple(float(part) / 255 for part in parts[:3])


def _colour(colour: str) -> tuple[Any, float]:
    """A colour and its opacity."""
    if colour.startswith("rgba"):
        return _rgb(colour), float(re.findall(r"[\d.]+", colour)[3])
    return colour, 1.0


def _known(what: str, name: Any, choices: Any) -> Any:
    """The choice, or its translation."""
    if name not in choices:
        raise ValueError(
            f"A figure has the {what} {name!r}; a static figure knows {', '.join(choices)}. "
            "Add it to static_figures.py."
        )
    return choices[name] if isinstance(choices, Mapping) else name
