"""A study's directory as its report reads it."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from phenoscale.mirror_links import MirrorRuns
from phenoscale.reports.curve_figures import Curve
from phenoscale.reports.findings import best_row
from phenoscale.reports.report_parts import Picture
from phenoscale.results import (
    CURVE_FILE,
    ResultsRow,
    read_optional_json,
    read_rows,
    read_samples,
)
from phenoscale.scaling.summary import Summary, summarise
from phenoscale.study_files import COMPARISONS_FILE, FAILURES_FILE, PANEL_FILE, STUDY_FILE
from phenoscale.wording import objective_name, share

TRANSFER_FILE = "transfer/transfer.json"
"""What `experiments.channel_generalization` leaves of the other laboratory's screen."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyRecord:
    """All that a report says is from here."""

    directory: Path
    """The study's directory, of which a report never names more than its own name."""
    rows: list[ResultsRow]
    """Trained trials first."""
    study: Mapping[str, Any]
    """`study.json`; empty if there is none, like the following."""
    comparisons: Mapping[str, Any]
    """`comparisons.json`."""
    failures: Sequence[Mapping[str, Any]]
    """`failures.json`: trial_id and error of each."""
    curves: Mapping[str, Curve]
    """`curve.json` by trial id."""
    transfer: Mapping[str, Any]
    """`transfer/transfer.json`."""
    mirror: MirrorRuns | None
    """`mlflow.json`."""
    summary: Summary
    """What the rows say about scaling."""

    @property
    def name(self) -> str:
        """The study's name, else that of its directory."""
        return str(self.study.get("name") or self.directory.resolve().name)

    @property
    def best(self) -> ResultsRow | None:
        """The trained trial that was compared with the baselines, else the highest."""
        return best_row(self.rows, self.comparisons)

    def without_paths(self, text: str) -> str:
        """A text as anybody may read it: the study's directory becomes its name."""
        for directory in (str(self.directory.resolve()), str(self.directory)):
            text = text.replace(f"{directory}/", "").replace(directory, self.name)
        return text

    def trial_dir(self, row: ResultsRow) -> Path:
        """Directory of one trial."""
        return self.directory / "trials" / row.trial_id


def read_study_record(study_dir: Path) -> StudyRecord:
    """Reads a study and fits what can be fitted; files that it did not leave are empty.

    Raises:
        ValueError: if `study_dir` is no study, or a row or a curve is damaged.
    """
    rows = read_rows(study_dir)
    curves = {r.trial_id: _curve(study_dir / "trials" / r.trial_id / CURVE_FILE) for r in rows}
    return StudyRecord(
        directory=study_dir,
        rows=rows,
        study=read_optional_json(study_dir / STUDY_FILE, {}),
        comparisons=read_optional_json(study_dir / COMPARISONS_FILE, {}),
        failures=read_optional_json(study_dir / FAILURES_FILE, []),
        curves=curves,
        transfer=read_optional_json(study_dir / TRANSFER_FILE, {}),
        mirror=MirrorRuns.read(study_dir),
        summary=summarise(rows, read_samples(study_dir, rows)),
    )


def panels(record: StudyRecord) -> tuple[Picture, ...]:
    """The panel of the best trial of each objective and backbone that has one."""
    best: dict[tuple[str, str], ResultsRow] = {}
    for row in sorted(record.rows, key=lambda row: (row.score, row.launcher == "in_place")):
        if (record.trial_dir(row) / PANEL_FILE).exists():
            best[row.objective, row.backbone] = row
    pictures = []
    for _, row in sorted(best.items()):
        content = (record.trial_dir(row) / PANEL_FILE).read_bytes()
        pictures.append(
            Picture(
                caption=f"{row.trial_id}: {objective_name(row.objective)} with {row.backbone} on "
                f"{share(row.data_fraction)} of the training wells",
                source="data:image/png;base64," + base64.b64encode(content).decode(),
            )
        )
    return tuple(pictures)


def study_facts(record: StudyRecord) -> list[tuple[str, str]]:
    """What was studied and what it took; unknown facts are left out."""
    study, rows = record.study, record.rows
    trained = sum(not row.is_baseline for row in rows)
    many = f"{trained} trained, {len(rows) - trained} baselines, {len(record.failures)} failed"
    facts = [("trials", many)]
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
    if study.get("command"):
        facts.append(("to repeat it", f"`{study['command']}`"))
    return facts


def _curve(path: Path) -> dict[str, list[float]]:
    curve: dict[str, list[float]] = read_optional_json(path, {})
    lengths = {name: len(values) for name, values in curve.items()}
    if curve and (len(set(lengths.values())) > 1 or not {"step", "loss"} <= curve.keys()):
        raise ValueError(
            f"{path} is damaged: its lists have the lengths {lengths}; a curve has step, loss and "
            "others in equal number. Run the trial again."
        )
    return curve


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    whole_hours, minutes = divmod(minutes, 60)
    return f"{whole_hours} h {minutes} min" if whole_hours else f"{minutes} min {rest} s"
