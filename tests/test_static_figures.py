"""Figures for print hold all that their specifications hold, or are refused."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from phenoscale.reports.figure_parts import (
    Figure,
    axis,
    band,
    bars,
    level,
    level_band,
    line,
    log_axis,
    named_axis,
    points,
)
from phenoscale.reports.static_figures import COLUMN_IN, DPI, draw, write_figures

BLUE = "#3d7fd6"
X, Y = [1e12, 1e13, 1e14], [0.3, 0.4, 0.5]


def figure(*data: dict[str, Any], **layout: Any) -> Figure:
    axes = {"xaxis": log_axis("training FLOPs", X), "yaxis": axis("recall", range=[0.1, 0.7])}
    return {"id": "one", "title": "", "note": "", "data": list(data), "layout": axes | layout}


def whole() -> Figure:
    """Every kind of trace and shape that score figures have."""
    low, high = [y - 0.05 for y in Y], [y + 0.1 for y in Y]
    return figure(
        band(X, low, high, colour=BLUE),
        line("a law", X, Y, colour=BLUE, dash="dash"),
        points("MAE nano/8", X, Y, colour=BLUE, symbol="diamond")
        | {"error_y": bars(Y, low, high), "error_x": bars(X, X, X)},
        shapes=[level(0.2, "chance", "#8a8f98", "dot"), level_band(0.25, 0.28, "#8a8f98")],
    )


def test_every_trace_is_drawn_where_its_numbers_are() -> None:
    axes: Any = draw(whole()).axes[0]
    (patch,) = [p for p in axes.patches if p.get_alpha() == 0.16]
    corners = patch.get_xy()[:-1]
    assert corners[:, 0].tolist() == [*X, *X[::-1]]
    assert corners[:, 1] == pytest.approx([0.4, 0.5, 0.6, 0.45, 0.35, 0.25])
    drawn = {(found.get_marker(), found.get_linestyle()): found for found in axes.lines}
    assert drawn["None", "--"].get_xydata().tolist() == np.transpose([X, Y]).tolist()
    assert drawn["D", "None"].get_xydata().tolist() == np.transpose([X, Y]).tolist()
    assert drawn["None", ":"].get_ydata() == [0.2, 0.2]
    (rectangle,) = [p for p in axes.patches if p.get_alpha() == 0.25]
    assert rectangle.get_y() == 0.25 and rectangle.get_height() == pytest.approx(0.03)
    ends = [bar.get_segments() for bar in axes.collections]
    assert any(np.allclose(found[1], [[1e13, 0.35], [1e13, 0.5]]) for found in ends)
    assert axes.get_xscale() == "log"
    assert [t.get_text() for t in axes.get_xticklabels()] == ["10¹²", "10¹³", "10¹⁴"]


def test_the_legend_names_what_has_a_name() -> None:
    (legend,) = draw(whole()).legends
    assert [text.get_text() for text in legend.get_texts()] == ["a law", "MAE nano/8", "chance"]
    assert draw(figure(line("", X, Y, colour=BLUE) | {"showlegend": False})).legends == []


def test_a_step_goes_on_before_it_rises() -> None:
    steps = line("front", X, Y, colour=BLUE)
    steps["line"]["shape"] = "hv"
    (found,) = draw(figure(steps)).axes[0].lines
    assert found.get_drawstyle() == "steps-post"


def test_names_stand_at_their_rows() -> None:
    trace = points("6 channels", [0.2, 0.3], [0, 1], colour=BLUE)
    layout = {"xaxis": axis("recall"), "yaxis": named_axis(["intensity", "mae"])}
    ticks = draw(figure(trace, **layout)).axes[0].get_yticklabels()
    assert [(t.get_position()[1], t.get_text()) for t in ticks] == [(0, "intensity"), (1, "mae")]


def test_a_heat_map_has_its_colours(tmp_path: Path) -> None:
    values = np.array([[1.0, -1.0], [-1.0, 1.0]], dtype="<f4")
    packed = {"dtype": "f4", "bdata": base64.b64encode(values.tobytes()).decode(), "shape": "2, 2"}
    scale = [[0.0, "rgba(0,0,255,1)"], [0.5, "rgba(128,128,128,0)"], [1.0, "rgba(255,0,0,1)"]]
    names = {"x": ["TP53", "MDM2"], "y": ["TP53", "MDM2"]}
    heat = {"type": "heatmap", **names, "z": packed, "zmin": -1, "zmax": 1, "colorscale": scale}
    ticks = {"type": "category", "showticklabels": True}
    square = {"xaxis": ticks, "yaxis": ticks | {"scaleanchor": "x"}, "showlegend": False}
    canvas = draw(figure(heat, **square))
    image: Any = canvas.axes[0].images[0]
    assert np.array_equal(image.get_array(), values)
    assert image.to_rgba(1.0)[:3] == (1, 0, 0) and image.to_rgba(-1.0)[:3] == (0, 0, 1)
    assert [t.get_text() for t in canvas.axes[0].get_xticklabels()] == ["TP53", "MDM2"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"type": "violin"}, "trace is of type 'violin'; .* scatter and heatmap"),
        ({"mode": "text"}, "mode 'text'"),
        ({"fill": "tonexty", "fillcolor": BLUE}, "fill 'tonexty'"),
        ({"marker": {"symbol": "hexagon", "color": BLUE}}, "symbol 'hexagon'"),
    ],
)
def test_what_cannot_be_drawn_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw(figure(points("MAE", X, Y, colour=BLUE) | change))


def test_shapes_and_axes_that_are_not_known_are_refused() -> None:
    with pytest.raises(ValueError, match="shape 'circle'"):
        draw(figure(shapes=[level(0.2, "", BLUE, "dot") | {"type": "circle"}]))
    with pytest.raises(ValueError, match="dash 'wave'"):
        draw(figure(shapes=[level(0.2, "", BLUE, "wave")]))
    with pytest.raises(ValueError, match="axis 'date'"):
        draw(figure(xaxis=axis("time", type="date")))


def test_files_are_the_same_twice_and_texts_are_texts(tmp_path: Path) -> None:
    one, two = (write_figures([whole()], tmp_path / name) for name in ("one", "two"))
    assert [path.name for path in one] == ["one.png", "one.svg"]
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]
    picture = Image.open(one[0])
    assert picture.width == round(COLUMN_IN * DPI)
    svg = one[1].read_text()
    assert ">training FLOPs</text>" in svg and ">MAE nano/8</text>" in svg
    assert "<dc:date>" not in svg


def test_no_figure_of_yesterday_stays(tmp_path: Path) -> None:
    (tmp_path / "gone.svg").write_text("<svg/>")
    (tmp_path / "notes.txt").write_text("mine")
    write_figures([figure(points("MAE", X, Y, colour=BLUE))], tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "one.png", "one.svg"]
