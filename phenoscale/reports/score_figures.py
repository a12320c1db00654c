"""The scores of a study: against compute, data and size with fits, against cost, by database."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from phenoscale.reports.figure_parts import (
    DASHES,
    GREY,
    SYMBOLS,
    Figure,
    Trace,
    axis,
    band,
    bars,
    level,
    level_band,
    line,
    log_axis,
    named_axis,
    pick,
    points,
    seed_groups,
)
from phenoscale.results import ResultsRow
from phenoscale.scaling.points import AXES
from phenoscale.wording import (
    law_name,
    metric_name,
    number,
    objective_colour,
    objective_name,
    share,
)

if TYPE_CHECKING:
    from phenoscale.scaling.summary import ObjectiveScaling

_BY_BACKBONE = ("untrained", "reference")  # baselines with a level for each of their backbones
_FAR_ABOVE = 0.4  # of the height of all else: a level further up would flatten everything


def score_figure(
    rows: Sequence[ResultsRow],
    study: Mapping[str, Any],
    column: str,
    scaling: Mapping[str, ObjectiveScaling],
) -> Figure:
    """Score against a column of the rows: means over seeds, single trials, fits and baselines.

    Args:
        rows: all rows, at least one of them trained.
        study: content of `study.json`, for the level of chance.
        column: a key of AXES, or data_fraction.
        scaling: the fits, by objective; of those without any, points are joined by lines.
    """
    groups = seed_groups(rows)
    fitted = {o: s for o, s in scaling.items() if column in s.bands}
    data = _fits(column, fitted)
    cells = sorted({(group[0].objective, group[0].backbone) for group in groups})
    backbones = sorted({backbone for _, backbone in cells})
    for place, (objective, backbone) in enumerate(cells):
        cell = [g for g in groups if (g[0].objective, g[0].backbone) == (objective, backbone)]
        # Fractions are the same in all cells: without a small shift the intervals hide each other.
        shift = 1.03 ** (place - (len(cells) - 1) / 2) if column == "data_fraction" else 1.0
        traces = _cell(cell, column, shift, backbones.index(backbone))
        if objective not in fitted:
            dash = pick(DASHES, backbones.index(backbone))
            joined = {"width": 1, "color": objective_colour(objective), "dash": dash}
            traces[-1] |= {"mode": "markers+lines", "line": joined}
        data += traces
    trained = [row for group in groups for row in group]
    shapes, levels = _levels(rows, study)
    low, high, beyond = _range(trained, levels)
    values = [getattr(row, column) for row in trained]
    values += [x for trace in data for x in trace["x"]]
    if column == "data_fraction":
        fractions = sorted({row.data_fraction for row in trained})
        x_axis = log_axis("share of the training wells", values, [(f, share(f)) for f in fractions])
    else:
        x_axis = log_axis(AXES[column], values)
    metric = metric_name(trained[0].metric)
    note = f"{metric} by {x_axis['title']['text']}{beyond}"
    return {
        "id": f"score-{column.replace('_', '-')}",
        "title": "",
        "note": note,
        "data": data,
        "layout": {
            "xaxis": x_axis,
            "yaxis": axis(metric, range=[low, high]),
            "shapes": [shape for shape in shapes if shape["y0"] <= high],
        },
    }


def how_to_read(rows: Sequence[ResultsRow], scaling: Mapping[str, ObjectiveScaling]) -> str:
    """What points, bars and bands of these figures are."""
    text = "Bars are 95% intervals over genes, or over held-out groups."
    if any(len(group) > 1 for group in seed_groups(rows)):
        text = (
            "Large points are means over the seeds of a configuration, small ones single trials; "
            "bars are 95% intervals over genes, or over held-out groups."
        )
    if any(row.objective.startswith(_BY_BACKBONE) for row in rows):
        text += (
            " Grey lines and bands are means and ranges of untrained encoders, with their number "
            "of initialisations."
        )
    if any(found.bands for found in scaling.values()):
        text += (
            " Coloured lines are the chosen laws, their bands the 95% intervals of the laws "
            "themselves, drawn beyond the runs as well."
        )
    return text


def _fits(column: str, fitted: Mapping[str, ObjectiveScaling]) -> list[Trace]:
    """Bands first, so that no band hides a line."""
    bands, lines = [], []
    for objective, scaling in fitted.items():
        found, choice = scaling.bands[column], scaling.choices[column]
        assert not isinstance(choice, str), "a band is that of a chosen law"
        colour, x = objective_colour(objective), found.x.tolist()
        bands.append(band(x, found.low.tolist(), found.high.tolist(), colour=colour))
        name = f"{objective_name(objective)}: {law_name(choice.chosen.law)}"
        lines.append(line(name, x, found.value.tolist(), colour=colour))
    return bands + lines


def _cell(
    cell: Sequence[Sequence[ResultsRow]], column: str, shift: float, place: int
) -> list[Trace]:
    """Single trials, where there are seeds, and the means of one objective and backbone."""
    ordered = sorted(cell, key=lambda group: (getattr(group[0], column), group[0].trial_id))
    first = ordered[0][0]
    look = {"colour": objective_colour(first.objective), "symbol": pick(SYMBOLS, place)}
    traces = []
    single = [row for group in ordered if len(group) > 1 for row in group]
    if single:
        x = [getattr(row, column) * shift for row in single]
        trace = points("", x, [row.score for row in single], **look)
        trace["marker"] |= {"size": 4, "opacity": 0.7}
        hover = {"text": [row.trial_id for row in single], "hovertemplate": _HOVER}
        traces.append(trace | hover | {"showlegend": False})
    scores = [fmean([row.score for row in group]) for group in ordered]
    low = [fmean([row.score_low for row in group]) for group in ordered]
    high = [fmean([row.score_high for row in group]) for group in ordered]
    name = f"{objective_name(first.objective)} {first.backbone}"
    x = [getattr(group[0], column) * shift for group in ordered]
    names = [
        group[0].trial_id if len(group) == 1 else f"mean of {len(group)} seeds, {row_name(group)}"
        for group in ordered
    ]
    return [
        *traces,
        points(name, x, scores, **look)
        | {"error_y": bars(scores, low, high), "text": names, "hovertemplate": _HOVER},
    ]


_HOVER = "%{text}<br>%{y:.3f}<extra></extra>"


def row_name(group: Sequence[ResultsRow]) -> str:
    """A configuration in words: objective, backbone, data fraction."""
    row = group[0]
    return f"{objective_name(row.objective)} {row.backbone} on {share(row.data_fraction)}"


def _levels(
    rows: Sequence[ResultsRow], study: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], list[tuple[float, str]]]:
    """Horizontal bands and lines of the baselines, and the heights they reach by name."""
    shapes: list[dict[str, Any]] = []
    levels: list[tuple[float, str]] = []

    def add(height: float, name: str, colour: str, dash: str) -> None:
        shapes.append(level(height, name, colour, dash))
        levels.append((height, name))

    baselines = [row for row in rows if row.is_baseline]
    cells = {(r.objective, r.backbone) for r in baselines if r.objective.startswith(_BY_BACKBONE)}
    for place, cell in enumerate(sorted(cells)):
        scores = [row.score for row in baselines if (row.objective, row.backbone) == cell]
        name = f"{objective_name(cell[0])} {cell[1]}"
        name += f" ({len(scores)})" if len(scores) > 1 else ""
        add(fmean(scores), name, GREY, pick(DASHES, place))
        if len(scores) > 1:
            shapes.append(level_band(min(scores), max(scores), GREY))
            levels.append((max(scores), name))
    for row in baselines:
        if row.objective == "intensity":
            add(row.score, objective_name("intensity"), "#b0683f", "dash")
            if "density" in row.score_by_readout:
                add(row.score_by_readout["density"], "density", "#b0683f", "longdashdot")
        elif row.objective == "oracle":
            add(row.score, objective_name("oracle"), "#3f9a55", "dot")
    if study.get("chance") is not None:
        add(study["chance"], "chance", GREY, "dot")
    return shapes, levels


def _range(
    trained: Sequence[ResultsRow], levels: Sequence[tuple[float, str]]
) -> tuple[float, float, str]:
    """The scores to show, and in words which level is far above them."""
    low = min([row.score_low for row in trained] + [height for height, _ in levels])
    high = max(row.score_high for row in trained)
    limit = high + _FAR_ABOVE * (high - low)
    high = max([high] + [height for height, _ in levels if height <= limit])
    far = [f"the {name} at {number(height)}" for height, name in levels if height > limit]
    margin = 0.06 * (high - low) or 0.05
    beyond = f"; {' and '.join(far)} lies above the figure" if far else ""
    return low - margin, high + margin, beyond


def cost_figure(rows: Sequence[ResultsRow]) -> Figure:
    """Score against what a trial's slot cost, baselines too, with the front that none is beyond."""
    shown = [row for row in rows if row.objective != "oracle" and slot_hours(row) > 0]
    data: list[Trace] = []
    kinds = sorted({(row.is_baseline, row.objective) for row in shown})
    for baseline, objective in kinds:
        mine = [row for row in shown if row.objective == objective]
        symbol = pick(("square", "diamond", "x"), len(data)) if baseline else "circle"
        colour = GREY if baseline else objective_colour(objective)
        x, y = [slot_hours(row) for row in mine], [row.score for row in mine]
        texts = [f"{row.trial_id}<br>{row.training_flops:.2e} training FLOPs" for row in mine]
        hover = "%{text}<br>%{x:.3~g} hours: %{y:.3f}<extra></extra>"
        trace = points(objective_name(objective), x, y, colour=colour, symbol=symbol)
        data.append(trace | {"text": texts, "hovertemplate": hover})
    front: list[ResultsRow] = []
    for row in sorted(shown, key=lambda row: (slot_hours(row), -row.score)):
        if not front or row.score > front[-1].score:
            front.append(row)
    costs = [slot_hours(row) for row in shown]
    steps = [*(slot_hours(row) for row in front), max(costs)]
    heights = [*(row.score for row in front), front[-1].score]
    pareto = line("best for its cost", steps, heights, colour=GREY, dash="dash")
    pareto["line"]["shape"] = "hv"
    return {
        "id": "cost",
        "title": "",
        "note": "score against hours of the trial's slot: training, embedding and scoring, times "
        "its workers. Above and to the left of the line nothing was measured. The highest of many "
        "noisy scores is somewhat optimistic, so the line is too",
        "data": [pareto, *data],
        "layout": {
            "xaxis": log_axis("hours of the slot", costs),
            "yaxis": axis(metric_name(shown[0].metric)),
        },
    }


def slot_hours(row: ResultsRow) -> float:
    """What a trial cost: hours of its slot times its workers."""
    return (row.train_s + row.embed_s + row.score_s) * row.workers / 3600


def database_figure(rows: Sequence[ResultsRow], study: Mapping[str, Any]) -> Figure | None:
    """Score by database of the best trial of each objective and of the baselines; None for one."""
    names = list(dict.fromkeys(name for row in rows for name in row.score_by_database))
    if len(names) < 2:
        return None
    groups: dict[str, list[ResultsRow]] = {}
    for row in rows:
        if row.score_by_database and row.objective != "oracle":
            groups.setdefault(row.objective, []).append(row)
    chosen = [max(group, key=lambda row: row.score) for group in groups.values()]
    chosen.sort(key=lambda row: (row.is_baseline, -row.score))
    data: list[Trace] = []
    width = 0.6
    for place, row in enumerate(chosen):
        aside = width * ((place + 0.5) / len(chosen) - 0.5)
        own = [(x, name) for x, name in enumerate(names) if name in row.score_by_database]
        trained = f"{objective_name(row.objective)} {row.backbone} on {share(row.data_fraction)}"
        name = f"best {objective_name(row.objective)}" if row.is_baseline else trained
        data.append(
            points(
                name,
                [x + aside for x, _ in own],
                [row.score_by_database[name] for _, name in own],
                colour=GREY if row.is_baseline else objective_colour(row.objective),
                symbol=pick(SYMBOLS, place),
            )
            | {"text": [row.trial_id] * len(own), "hovertemplate": _HOVER}
        )
    chance = study.get("chance")
    shapes = [level(chance, "chance", GREY, "dot")] if chance is not None else []
    metric = metric_name(chosen[0].metric)
    return {
        "id": "databases",
        "title": "",
        "note": f"{metric} by database, of the best trial of each objective and of the best of "
        "each baseline. Databases differ in size and in what they call a relationship: compare "
        "within one",
        "data": data,
        "layout": {
            "xaxis": named_axis(names),
            "yaxis": axis(metric),
            "shapes": shapes,
        },
    }
