"""The report of a study: one HTML file that holds everything and needs no network.

It is written from the study's files alone, so it can be written again and says the same each time.
Beside it lie its figures for print.
"""

from __future__ import annotations

from pathlib import Path

from phenoscale.maps.files.map_files import read_map
from phenoscale.planning.plan import plan_study
from phenoscale.reports.figures import Figure, make_figures
from phenoscale.reports.findings import find
from phenoscale.reports.map_figures import make_map_figures
from phenoscale.reports.report_parts import Page
from phenoscale.reports.report_sections import study_sections
from phenoscale.reports.static_figures import write_figures
from phenoscale.reports.study_report import StudyRecord, read_study_record
from phenoscale.results import whole_file
from phenoscale.scaling.next_runs import NextRuns
from phenoscale.study_files import FIGURES, MAP_FILE, REPORT_FILE


def write_report(study_dir: Path) -> Path:
    """Writes `report.html` into a study's directory, and `figures/ID.png` and `.svg` beside it.

    Files that a study did not leave (comparisons, curves, panels, failures) are missing from the
    report, which says what cannot be said without them. Each file is written whole or not at all.

    Args:
        study_dir: directory of the study.

    Returns:
        The path of the report.

    Raises:
        ValueError: if `study_dir` is no study, or a row is damaged.
    """
    page = make_report(study_dir)
    write_figures(page.figures, study_dir / FIGURES)
    return write_page(page, study_dir / REPORT_FILE)


def write_page(page: Page, path: Path) -> Path:
    """Writes a page, whole or not at all."""
    html = page.html()
    with whole_file(path) as part:
        part.write_text(html)
    return path


def make_report(study_dir: Path) -> Page:
    """The report of a study.

    Args:
        study_dir: directory of the study.

    Raises:
        ValueError: if `study_dir` is no study, or a row is damaged.
    """
    record = read_study_record(study_dir)
    next_runs = _next_runs(record)
    figures = make_figures(
        record.rows, record.curves, record.study, record.summary, record.transfer
    ) | {"maps": _best_map(record)}
    findings = find(
        record.rows,
        record.study,
        record.comparisons,
        record.failures,
        record.summary,
        next_runs,
    )
    return Page(
        kind="phenoscale study",
        name=record.name,
        question=str(record.study.get("question", "")),
        answer=findings.answer,
        notes=findings.notes,
        sections=study_sections(record, figures, next_runs),
    )


def _next_runs(record: StudyRecord) -> NextRuns | str:
    """What to run next for as much again as was spent, or why that is not known.

    Hours are those of the study's own machine if it has no GPU, else of the bill.
    """
    on_gpu = any(row.peak_gpu_memory_gib > 0 for row in record.rows)
    try:
        return plan_study(record.directory, measured_speed=not on_gpu)
    except ValueError as error:
        return record.without_paths(str(error))


def _best_map(record: StudyRecord) -> list[Figure]:
    """Pictures of the best trained trial's perturbation map, if it left one."""
    row = record.best
    if row is None or not (record.trial_dir(row) / MAP_FILE).exists():
        return []
    return make_map_figures(read_map(record.trial_dir(row), row.readout))
