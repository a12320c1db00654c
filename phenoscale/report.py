"""The report of a study: one HTML file that holds everything and needs no network.

It is written from the study's files alone, so it can be written again and says the same each time.
"""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from plotly.offline import get_plotlyjs

from phenoscale.figures import Figure, make_figures
from phenoscale.findings import best_row, find
from phenoscale.map_figures import make_map_figures
from phenoscale.maps.files.map_files import read_map
from phenoscale.report_tables import (
    differences_table,
    failures_table,
    nuisances_table,
    overhead_table,
    readouts_table,
    trials_table,
    twins_table,
)
from phenoscale.results import CURVE_FILE, ResultsRow, read_rows, whole_file
from phenoscale.study_files import MAP_FILE, STUDY_FILE
from phenoscale.wording import objective_name, share

REPORT_FILE = "report.html"
PANEL_FILE = "panel.png"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Panel:
    """A picture of the report."""

    caption: str
    """What it shows."""
    source: str
    """The PNG as a data URI."""


def write_report(study_dir: Path) -> Path:
    """Writes `report.html` into a study's directory, whole or not at all.

    Files that a study did not leave (comparisons, curves, panels, failures) are missing from the
    report, which says what cannot be said without them.

    Args:
        study_dir: directory of the study.

    Returns:
        The path of the report.

    Raises:
        ValueError: if `study_dir` is no study, or a row is damaged.
    """
    rows = read_rows(study_dir)
    study = _read(study_dir / STUDY_FILE, {})
    comparisons = _read(study_dir / "comparisons.json", {})
    failures = _read(study_dir / "failures.json", [])
    curves = {row.trial_id: _read_curve(_trial_dir(study_dir, row) / CURVE_FILE) for row in rows}
    best, maps = _best_map(study_dir, rows, comparisons)
    figures = make_figures(rows, curves, study) | {"maps": maps}
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.get_template("report.html.j2").render(
        name=study.get("name") or study_dir.resolve().name,
        question=study.get("question", ""),
        findings=find(rows, study, comparisons, failures),
        facts=_facts(rows, study, failures),
        command=study.get("command", ""),
        figures=figures,
        specifications=_script_json([figure for group in figures.values() for figure in group]),
        plotly=get_plotlyjs(),
        panels=_panels(study_dir, rows),
        best=best,
        twins=twins_table(comparisons),
        overhead=overhead_table(rows),
        differences=differences_table(comparisons),
        readouts=readouts_table(rows),
        nuisances=nuisances_table(rows),
        trials=trials_table(rows),
        failures=failures_table(failures),
        chance=f"{study['chance']:.3g}" if study.get("chance") is not None else "",
        alignment=study.get("alignment", ""),
    )
    path = study_dir / REPORT_FILE
    with whole_file(path) as part:
        part.write_text(html)
    return path


def _read(path: Path, default: Any) -> Any:
    return json.loads(path.read_text()) if path.exists() else default


def _read_curve(path: Path) -> dict[str, list[float]]:
    curve: dict[str, list[float]] = _read(path, {})
    lengths = {name: len(values) for name, values in curve.items()}
    if curve and (len(set(lengths.values())) > 1 or not {"step", "loss"} <= curve.keys()):
        raise ValueError(
            f"{path} is damaged: its lists have the lengths {lengths}; a curve has step, loss and "
            "others in equal number. Run the trial again."
        )
    return curve


def _trial_dir(study_dir: Path, row: ResultsRow) -> Path:
    return study_dir / "trials" / row.trial_id


def _script_json(value: Any) -> str:
    """JSON that no HTML parser takes for markup."""
    text = json.dumps(value, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _facts(
    rows: Sequence[ResultsRow], study: Mapping[str, Any], failures: Sequence[Mapping[str, Any]]
) -> list[tuple[str, str]]:
    """What was studied and what it took; unknown facts are left out."""
    trained = sum(not row.is_baseline for row in rows)
    facts = [
        ("trials", f"{trained} trained, {len(rows) - trained} baselines, {len(failures)} failed")
    ]
    screen = study.get("screen", {})
    parts = [
        f"{screen[key]:,} {key.replace('_', ' ')}"
        for key in ("sites", "wells", "genes", "perturbations", "experimental_batches")
        if screen.get(key)
    ]
    if parts:
        facts.append(("screen", ", ".join(parts)))
    if screen.get("channels"):
        facts.append(("channels", ", ".join(screen["channels"])))
    if screen.get("seed") is not None:
        facts.append(("seed of the screen", str(screen["seed"])))
    facts += [(key, study[key]) for key in ("metric", "readout", "alignment") if study.get(key)]
    if study.get("wall_s"):
        facts.append(("wall time", _duration(study["wall_s"])))
    if study.get("peak_memory_gib"):
        facts.append(("peak memory, all processes", f"{study['peak_memory_gib']:.2f} GiB"))
    if rows:
        fingerprints = sorted({row.index_fingerprint[:16] for row in rows})
        facts.append(("index fingerprint", ", ".join(fingerprints)))
        facts.append(("code version", ", ".join(sorted({row.code_version for row in rows}))))
    return facts


def _panels(study_dir: Path, rows: Sequence[ResultsRow]) -> list[Panel]:
    """The panel of the best trial of each objective and backbone that has one."""
    best: dict[tuple[str, str], ResultsRow] = {}
    for row in sorted(rows, key=lambda row: (row.score, row.launcher == "in_place")):
        if (_trial_dir(study_dir, row) / PANEL_FILE).exists():
            best[row.objective, row.backbone] = row
    panels = []
    for _, row in sorted(best.items()):
        content = (_trial_dir(study_dir, row) / PANEL_FILE).read_bytes()
        panels.append(
            Panel(
                caption=f"{row.trial_id}: {objective_name(row.objective)} with {row.backbone} on "
                f"{share(row.data_fraction)} of the training wells",
                source="data:image/png;base64," + base64.b64encode(content).decode(),
            )
        )
    return panels


def _best_map(
    study_dir: Path, rows: Sequence[ResultsRow], comparisons: Mapping[str, Any]
) -> tuple[str, list[Figure]]:
    """The best trained trial and the pictures of its perturbation map, if it left one."""
    row = best_row(rows, comparisons)
    if row is None or not (_trial_dir(study_dir, row) / MAP_FILE).exists():
        return "", []
    return row.trial_id, make_map_figures(read_map(_trial_dir(study_dir, row), row.readout))


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
