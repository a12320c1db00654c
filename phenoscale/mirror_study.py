"""What a whole study becomes in MLflow: its numbers, its note and its tables. Texts only."""

from __future__ import annotations

import csv
import dataclasses
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from phenoscale.mirror_view import trials_fragment, view_fragment
from phenoscale.results import ResultsRow, read_optional_json, read_rows
from phenoscale.study_files import (
    COMPARISONS_FILE,
    FAILURES_FILE,
    FIGURES,
    REPORT_FILE,
    STUDY_FILE,
)
from phenoscale.wording import interval, metric_name, signed

STUDY_ARTIFACTS = (REPORT_FILE, STUDY_FILE, COMPARISONS_FILE, FAILURES_FILE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyOnDisk:
    """What of a study's files its parent run shows."""

    directory: Path
    """The study's directory."""
    facts: dict[str, Any]
    """study.json."""
    rows: list[ResultsRow]
    """Rows of trials and baselines."""
    comparisons: dict[str, Any]
    """comparisons.json; empty while the study runs."""
    failures: list[dict[str, str]]
    """failures.json: trial_id and error of each trial that has no row."""

    @classmethod
    def read(cls, directory: Path) -> StudyOnDisk:
        """Reads what is there.

        Raises:
            ValueError: if a row is damaged.
        """
        rows = read_rows(directory) if (directory / "trials").is_dir() else []
        done = {row.trial_id for row in rows}
        failures = read_optional_json(directory / FAILURES_FILE, [])
        return cls(
            directory=directory,
            facts=read_optional_json(directory / STUDY_FILE, {}),
            rows=rows,
            comparisons=read_optional_json(directory / COMPARISONS_FILE, {}),
            failures=[failure for failure in failures if failure["trial_id"] not in done],
        )

    @property
    def name(self) -> str:
        """Name of the study, and so of the experiment, the parent run and the registered model."""
        return study_name(self.directory)

    @property
    def best(self) -> ResultsRow | None:
        """The row of the best trained trial, once the study was compared."""
        best = self.comparisons.get("best")
        return next((row for row in self.rows if row.trial_id == best), None)

    @property
    def artifacts(self) -> tuple[list[Path], list[Path]]:
        """Files of the parent run: those at its top, and the figures."""
        top = [self.directory / name for name in STUDY_ARTIFACTS]
        figures = sorted((self.directory / FIGURES).glob("*"))
        return (
            [path for path in top if path.exists()],
            [path for path in figures if path.suffix in (".png", ".svg")],
        )


def study_name(directory: Path) -> str:
    """What study.json says, else the name of its directory."""
    return str(read_optional_json(directory / STUDY_FILE, {}).get("name") or directory.name)


def headline(study: StudyOnDisk) -> dict[str, float]:
    """The numbers of the whole study that stand at its parent run."""
    values: dict[str, float] = {
        "trials": sum(not row.is_baseline for row in study.rows),
        "baselines": sum(row.is_baseline for row in study.rows),
        "failed_trials": len(study.failures),
        "training_flops": sum(row.training_flops for row in study.rows),
        "cpu_s": sum(row.cpu_s + row.data_cpu_s for row in study.rows),
    }
    values |= {
        k: float(study.facts[k])
        for k in ("wall_s", "peak_memory_gib")
        if study.facts.get(k) is not None
    }
    if best := study.best:
        values |= {"best_score": best.score, "best_score_low": best.score_low}
        values |= {"best_score_high": best.score_high}
    for difference in study.comparisons.get("differences", [])[:6]:  # a run has room for so many
        # "untrained (3 initialisations)" -> untrained; MLflow allows few signs in names.
        against = re.sub(r"\W+", "_", difference["against"].split("(")[0].strip())
        for end in ("value", "low", "high"):
            values[f"difference_to_{against}/{end}"] = float(difference[end])
    return values


def study_note(study: StudyOnDisk, experiment_id: str, encoder: str) -> str:
    """The Markdown text at the top of the experiment and of the parent run.

    Args:
        study: what is on disk.
        experiment_id: of the experiment, for links; they name no host, so they hold wherever the
            dashboard is reached.
        encoder: a sentence about the registered model.
    """
    metric = str(study.facts.get("metric", ""))
    trials = sum(not row.is_baseline for row in study.rows)
    lines = [f"**{study.name}.** {study.facts.get('question', '')}".strip()]
    if best := study.best:
        found = f"Best trial: {best.trial_id}, {metric_name(metric)} "
        lines.append(found + f"**{interval(best.score, best.score_low, best.score_high)}**.")
        if mean := study.comparisons.get("mean"):  # it is what is compared then
            lines.append(
                f"It is one of {len(study.comparisons['seeds'])} seeds of the best of "
                f"{study.comparisons['picked_from']} configurations; their mean is "
                f"**{interval(mean['value'], mean['low'], mean['high'])}**."
            )
        side, differences = "mean" if mean else "best", study.comparisons.get("differences", [])
        less = [f"- {side} less {d['against']}: {_signed(d)}" for d in differences]
        lines += ["\n".join(less)] if less else []
    counts = f"{trials} trials and {len(study.rows) - trials} baselines are done"
    if study.failures:
        counts += f", {len(study.failures)} failed"
    lines.append(
        f"{counts}. [Score against compute]({view_fragment(experiment_id)}) · "
        f"[trials, best first]({trials_fragment(experiment_id, metric)}) · the whole report is "
        "report.html among the artifacts of the study's run."
    )
    if encoder:
        lines.append(encoder)
    return "\n\n".join(lines)


def _signed(difference: Mapping[str, Any]) -> str:
    return signed(difference["value"], difference["low"], difference["high"])


def rows_csv(rows: Sequence[ResultsRow]) -> str:
    """The results table as CSV: one line a row, one column a read-out, alignment, ..."""
    flattened = []
    for row in rows:
        columns: dict[str, Any] = {}
        for name, value in row.as_dict().items():
            parts: Mapping[str, Any] = value if isinstance(value, dict) else {}
            columns |= {f"{name}.{k}": v for k, v in parts.items()} or {name: value}
        flattened.append({name: "" if value == {} else value for name, value in columns.items()})
    names = list(dict.fromkeys(name for columns in flattened for name in columns))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flattened)
    return text.getvalue()
