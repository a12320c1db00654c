"""Several studies on one page: best trials, scores against compute, slopes side by side.

Scores of two studies compare only on one screen, by one metric and one way of scoring; the first
sentence says whether they do.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from phenoscale.reports.comparison_figures import compared_scores
from phenoscale.reports.report import write_page
from phenoscale.reports.report_parts import Page, Section
from phenoscale.reports.report_tables import Table
from phenoscale.reports.scaling_figures import slopes_figure
from phenoscale.reports.study_notes import score_of
from phenoscale.reports.study_report import StudyRecord, read_study_record
from phenoscale.results import ResultsRow
from phenoscale.wording import (
    listed,
    metric_name,
    objective_name,
    share,
    signed,
)

COMPARISON_FILE = "comparison.html"
COMPUTE = "training_flops"
_ALIKE = {"index_fingerprint": "screen", "metric": "metric", "protocol": "way of scoring"}
"""Column of the row to what it stands for: scores compare where all of them are the same."""

Studies = dict[str, StudyRecord]


def write_comparison(study_dirs: Sequence[Path], path: Path) -> Path:
    """Writes a page that compares studies, whole or not at all.

    Args:
        study_dirs: directories of two studies or more.
        path: of the page.

    Returns:
        `path`.

    Raises:
        ValueError: if one is no study, or one is given twice.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_page(compare_studies(study_dirs), path)


def compare_studies(study_dirs: Sequence[Path]) -> Page:
    """The page that compares studies; arguments and errors as `write_comparison`."""
    places = [directory.resolve() for directory in study_dirs]
    if len(set(places)) < max(len(places), 2):
        raise ValueError(
            f"{len(places)} studies were given, {len(set(places))} of them different; a comparison "
            "needs two or more directories of different studies."
        )
    studies = _named([read_study_record(directory) for directory in study_dirs])
    best = {name: row for name, record in studies.items() if (row := record.best) is not None}
    different = _different(studies)
    slopes = [
        (f"{name}: {objective_name(objective)}", objective, found.slopes[COMPUTE])
        for name, record in studies.items()
        for objective, found in record.summary.objectives.items()
        if COMPUTE in found.slopes
    ]
    metrics = list(dict.fromkeys(row.metric for row in best.values()))
    figures = [compared_scores(studies, metric) for metric in metrics]
    return Page(
        kind="phenoscale, several studies",
        name=" and ".join(studies) if len(studies) == 2 else f"{len(studies)} studies",
        question="",
        answer=(_whether(different), _who_is_best(best, different)),
        notes=_notes(studies),
        sections=(
            Section(
                id="best",
                title="Best trials",
                tables=(_best_table(studies), _differences_table(studies)),
            ),
            Section(
                id="compute",
                title="Score against training compute",
                texts=("Colours are studies, symbols are objectives; lines are the chosen laws.",),
                figures=tuple(figure for figure in figures if figure["data"]),
            ),
            Section(
                id="slopes",
                title="Slopes side by side",
                texts=(
                    "Score per decade of training FLOPs by a straight line. Intervals of two "
                    "studies that overlap may still differ: they were not compared in pairs.",
                )
                if slopes
                else ("No study has a slope with an interval: each needs 3 configurations.",),
                figures=(slopes_figure(slopes, metrics[0]),) if slopes else (),
                tables=(_slopes_table(studies),),
            ),
            Section(id="studies", title="What was studied", tables=(_studies_table(studies),)),
        ),
    )


def _named(records: Sequence[StudyRecord]) -> Studies:
    """By name; of equal names with the directory, then with a number."""
    names = [record.name for record in records]
    for again in (lambda place: f" ({records[place].directory.resolve().name})", "#{}".format):
        names = [
            name + (again(place) if names.count(name) > 1 else "")
            for place, name in enumerate(names)
        ]
    return dict(zip(names, records, strict=True))


def _trained(record: StudyRecord) -> list[ResultsRow]:
    return [row for row in record.rows if not row.is_baseline]


def _different(studies: Studies) -> list[str]:
    """What the studies' trained trials do not have in common."""
    rows = [row for record in studies.values() for row in _trained(record)]
    return [
        what for column, what in _ALIKE.items() if len({getattr(row, column) for row in rows}) > 1
    ]


def _whether(different: Sequence[str]) -> str:
    if not different:
        return (
            "The scores of these studies compare: all trials are on one screen, scored by one "
            "metric in one way."
        )
    return (
        "The scores of these studies cannot be compared: they differ in "
        f"{listed(list(different))}. Compare slopes and ranks within each study alone."
    )


def _who_is_best(best: dict[str, ResultsRow], different: Sequence[str]) -> str:
    if not best:
        return "No study holds a trained trial."
    ranked = sorted(best, key=lambda name: -best[name].score)
    told = [f"{_describe(best[name])} of {name} with {score_of(best[name])}" for name in ranked]
    if different or len(ranked) < 2:
        return f"The best trial of each: {listed(told)}."
    first, second = best[ranked[0]], best[ranked[1]]
    apart = first.score_low > second.score_high
    verdict = "their intervals are apart" if apart else "their intervals overlap"
    return (
        f"The highest {metric_name(first.metric)} is that of {listed(told[:1])}, before "
        f"{listed(told[1:])}; {verdict}, and studies are not compared in pairs."
    )


def _notes(studies: Studies) -> tuple[str, ...]:
    notes = []
    for name, record in studies.items():
        if len(record.failures):
            notes.append(f"{name}: trials that failed and are missing: {len(record.failures)}.")
        notes += [f"{name}: {why}" for why in record.summary.refused]
    readouts = {row.readout for record in studies.values() for row in _trained(record)}
    if len(readouts) > 1:
        notes.append(
            f"The studies score by different read-outs ({listed(sorted(readouts))}), which is part "
            "of what their scores differ by."
        )
    return tuple(notes)


def _best_table(studies: Studies) -> Table:
    rows = []
    for name, record in studies.items():
        row = record.best
        if row is None:
            rows.append((name, "no trained trial", *["-"] * 4))
            continue
        data, flops = share(row.data_fraction), f"{row.training_flops:.2e}"
        model = objective_name(row.objective), row.backbone
        rows.append((name, score_of(row), *model, data, flops))
    columns = ("study", "score [95%]", "objective", "backbone", "data", "training FLOPs")
    return Table(label="Best trials", columns=columns, rows=rows, kind="wide")


def _differences_table(studies: Studies) -> Table:
    rows = [
        (name, signed(found["value"], found["low"], found["high"]), found["against"])
        for name, record in studies.items()
        for found in record.comparisons.get("differences", [])
    ]
    columns = ("best trial of", "paired difference [95%]", "to its own baseline")
    return Table(
        label="Best trials against their baselines", columns=columns, rows=rows, kind="wrap"
    )


def _slopes_table(studies: Studies) -> Table:
    rows = [
        (
            f"{name}: {objective_name(objective)}",
            signed(slope.value, slope.low, slope.high)
            if (slope := found.slopes.get(COMPUTE)) is not None
            else "-",
            str(found.points.num_configurations),
            str(len(found.points.rows)),
        )
        for name, record in studies.items()
        for objective, found in record.summary.objectives.items()
    ]
    columns = ("study and objective", "score per decade of FLOPs [95%]", "configurations", "trials")
    return Table(label="Slopes", columns=columns, rows=rows)


def _studies_table(studies: Studies) -> Table:
    rows = []
    for name, record in studies.items():
        trained = _trained(record)
        known = [
            ", ".join(sorted({str(getattr(row, column)) for row in trained})) or "-"
            for column in ("metric", "protocol", "readout", "code_version")
        ]
        screens = ", ".join(sorted({row.index_fingerprint[:12] for row in trained})) or "-"
        rows.append((name, *known, screens, str(len(trained)), str(len(record.failures))))
    columns = ("study", "metric", "protocol", "read-out", "code version", "screen", "trained")
    return Table(label="Studies", columns=(*columns, "failed"), rows=rows, kind="wide")


def _describe(row: ResultsRow) -> str:
    return f"{objective_name(row.objective)} {row.backbone} on {share(row.data_fraction)}"
