"""The report of a study: one HTML file that holds everything and needs no network.

It is written from the study's files alone, so it can be written again and says the same each time.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from plotly.offline import get_plotlyjs

from phenoscale.figures import make_figures
from phenoscale.findings import TWINS_GOAL, find, interval, number, objective_name, share
from phenoscale.results import CURVE_FILE, ResultsRow, read_rows

REPORT_FILE = "report.html"
PANEL_FILE = "panel.png"
OVERHEAD_GOALS_S = {("in_place", 1): 1.0, ("ray_train", 1): 9.0}
"""Most seconds that a trial may hold its slot beyond its work, by launcher and workers."""
LAUNCHERS = {"in_place": "in place", "ray_train": "Ray Train"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """A table of the report: texts, the first column left and the others right."""

    columns: tuple[str, ...]
    """Heads of the columns."""
    rows: Sequence[tuple[str, ...]]
    """Cells, as many in each row as there are columns."""


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
    study = _read(study_dir / "study.json", {})
    comparisons = _read(study_dir / "comparisons.json", {})
    failures = _read(study_dir / "failures.json", [])
    curves = {row.trial_id: _read_curve(_trial_dir(study_dir, row) / CURVE_FILE) for row in rows}
    figures = make_figures(rows, curves, study)
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
        twins=_twins_table(comparisons),
        overhead=_overhead_table(rows),
        differences=_differences_table(comparisons),
        readouts=_readouts_table(rows),
        trials=_trials_table(rows),
        failures=_failures_table(failures),
        chance=f"{study['chance']:.3g}" if study.get("chance") is not None else "",
        alignment=study.get("alignment", ""),
    )
    path = study_dir / REPORT_FILE
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text(html)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
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


def _differences_table(comparisons: Mapping[str, Any]) -> Table:
    rows = [
        (
            difference["against"],
            interval(difference["value"], difference["low"], difference["high"]),
            _verdict(difference),
        )
        for difference in comparisons.get("differences", [])
    ]
    return Table(columns=("best trial against", "paired difference [95%]", "verdict"), rows=rows)


def _verdict(difference: Mapping[str, Any]) -> str:
    if difference["low"] > 0:
        return "better"
    return "worse" if difference["high"] < 0 else "not shown"


def _twins_table(comparisons: Mapping[str, Any]) -> Table:
    words = {True: "yes", False: "no", None: "not compared"}
    rows = [
        (
            twin["what"],
            ", ".join(twin["trial_ids"]),
            f"{twin['max_relative_loss_difference']:.1e}",
            "yes" if twin["max_relative_loss_difference"] <= TWINS_GOAL else "no",
            words[twin.get("bit_identical_rows")],
        )
        for twin in comparisons.get("twins", [])
    ]
    columns = (
        "twins",
        "trials",
        "largest relative difference of losses",
        f"within {TWINS_GOAL:.0e}",
        "same row, bit for bit",
    )
    return Table(columns=columns, rows=rows)


def _overhead_table(rows: Sequence[ResultsRow]) -> Table:
    groups: dict[tuple[bool, str, int], list[float]] = {}
    for row in rows:
        group = (row.is_baseline, row.launcher, row.workers)
        groups.setdefault(group, []).append(row.overhead_s)
    cells = []
    for (baseline, launcher, workers), seconds in sorted(groups.items()):
        goal = None if baseline else OVERHEAD_GOALS_S.get((launcher, workers))
        kind = "baselines" if baseline else "trials"
        many = "1 worker" if workers == 1 else f"{workers} workers"
        cells.append(
            (
                f"{kind} {LAUNCHERS.get(launcher, launcher)}, {many}",
                str(len(seconds)),
                f"{statistics.median(seconds):.2f}",
                f"{max(seconds):.2f}",
                "-" if goal is None else f"{goal:g}",
                "-" if goal is None else ("yes" if max(seconds) <= goal else "no"),
            )
        )
    return Table(columns=("overhead", "number", "median s", "max s", "goal s", "holds"), rows=cells)


def _readouts_table(rows: Sequence[ResultsRow]) -> Table:
    names = sorted({name for row in rows for name in row.score_by_readout})
    headline = {row.readout for row in rows}
    columns = ["trial", *(f"{name} (headline)" if name in headline else name for name in names)]
    cells = [
        (
            row.trial_id,
            *(
                number(row.score_by_readout[name]) if name in row.score_by_readout else "-"
                for name in names
            ),
        )
        for row in rows
    ]
    return Table(columns=tuple(columns), rows=cells)


def _trials_table(rows: Sequence[ResultsRow]) -> Table:
    metric = rows[0].metric if rows else "score"
    columns = (
        f"trial;objective;backbone;data;seed;launcher;workers;{metric} [95%];train loss;"
        "held-out loss;optimizer;learning rate;its source;precision;parameters;training FLOPs;"
        "crops seen;unique sites;steps;train s;embed s;"
        "score s;overhead s;data wait s;waited;other workers s;checkpoint s;utilization;attempts;"
        "spikes;CPU s;data CPU s;peak GiB;genes;relationships;sites skipped"
    )
    cells = [
        (
            row.trial_id,
            objective_name(row.objective),
            row.backbone,
            share(row.data_fraction),
            str(row.seed),
            LAUNCHERS.get(row.launcher, row.launcher),
            str(row.workers),
            interval(row.score, row.score_low, row.score_high),
            "-" if row.train_loss is None else f"{row.train_loss:.4g}",
            "-" if row.held_out_loss is None else f"{row.held_out_loss:.4g}",
            *(row.optimizer, f"{row.lr:g}" if row.lr else "-", row.lr_source, row.precision),
            f"{row.num_parameters:,}",
            f"{row.training_flops:.2e}",
            *(f"{n:,}" for n in (row.crops_seen, row.unique_sites, row.steps)),
            *(f"{s:.1f}" for s in (row.train_s, row.embed_s, row.score_s)),
            *(f"{s:.2f}" for s in (row.overhead_s, row.data_wait_s)),
            f"{row.data_wait_s / row.train_s:.1%}" if row.train_s else "-",
            *(f"{s:.2f}" for s in (row.communication_s, row.checkpoint_s)),
            f"{row.utilization:.1%}" if row.utilization else "-",
            *(str(n) for n in (row.attempts, row.spikes)),
            *(f"{s:.1f}" for s in (row.cpu_s, row.data_cpu_s)),
            f"{row.peak_memory_gib:.2f}",
            *(f"{n:,}" for n in (row.num_genes, row.num_relationships, row.sites_skipped)),
        )
        for row in rows
    ]
    return Table(columns=tuple(columns.split(";")), rows=cells)


def _failures_table(failures: Sequence[Mapping[str, Any]]) -> Table:
    rows = [(str(f.get("trial_id", "?")), str(f.get("error", "?"))) for f in failures]
    return Table(columns=("trial", "error"), rows=rows)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
