"""What a results row becomes in MLflow: parameters, metric points, tags. Arithmetic only.

Times are milliseconds since 1970. The points of a trial are laid out from its run's start, so that
writing the same row twice gives the same points.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from phenoscale.results import ROW_FILE, ResultsRow, read_optional_json
from phenoscale.study_files import TRIAL_FILE

PARAM_COLUMNS = ("data_fraction", "seed", "workers")
"""Numeric columns of a row that were chosen, not measured: parameters, like its texts."""

Point = tuple[str, float, int, int]
"""Metric name, value, time in milliseconds, step."""


def duration_ms(row: ResultsRow) -> int:
    """How long the trial took from start to row."""
    return round(1000 * (row.train_s + row.embed_s + row.score_s + row.overhead_s))


def start_ms(trial_dir: Path, row: ResultsRow) -> int:
    """When the trial began: its row was written at the end."""
    return (trial_dir / ROW_FILE).stat().st_mtime_ns // 1_000_000 - duration_ms(row)


def trial_tags(row: ResultsRow) -> dict[str, str]:
    """What one filters runs by."""
    return {
        "phenoscale.kind": "baseline" if row.is_baseline else "trial",
        "trial_id": row.trial_id,
        "objective": row.objective,
        "backbone": row.backbone,
        "data_fraction": str(row.data_fraction),
        "fingerprint": row.index_fingerprint,
        "code_version": row.code_version,
    }


def trial_params(trial_dir: Path, row: ResultsRow) -> dict[str, str]:
    """The row's texts and choices, and the trial's configuration where there is a `trial.json`."""
    columns = row.as_dict()
    chosen = {k: v for k, v in columns.items() if isinstance(v, str) or k in PARAM_COLUMNS}
    config = read_optional_json(trial_dir / TRIAL_FILE, {})
    return flat(chosen) | flat(config, "trial.")


def final_points(row: ResultsRow, start: int) -> list[Point]:
    """Every measured number of a row, at its last step; what does not exist is left out."""
    measured: dict[str, float] = {
        name: float(value)
        for name, value in row.as_dict().items()
        if isinstance(value, int | float) and name not in PARAM_COLUMNS
    }
    for values in (row.score_by_readout, row.score_by_alignment):
        measured |= {f"{row.metric}/{name}": float(value) for name, value in values.items()}
    measured |= {f"nuisance/{name}": float(value) for name, value in row.nuisance.items()}
    end = start + duration_ms(row)
    return [(name, value, end, row.steps) for name, value in measured.items()]


def curve_points(curve: Mapping[str, Sequence[float]], row: ResultsRow, start: int) -> list[Point]:
    """The step metrics of a trial, spread evenly over its training time.

    Args:
        curve: `step` and lists of the same length, as in `curve.json`; empty for a baseline.
        row: the trial's row.
        start: start of the run.

    Raises:
        ValueError: if the lists differ in length.
    """
    steps = curve.get("step", [])
    points: list[Point] = []
    for name, values in curve.items():
        if len(values) != len(steps):
            raise ValueError(
                f"the curve of {row.trial_id} has {len(steps)} steps and {len(values)} values of "
                f"{name}; its lists must have the same length. Run the trial again."
            )
        if name == "step":
            continue
        for step, value in zip(steps, values, strict=True):
            when = start + round(1000 * row.train_s * step / max(row.steps, 1))
            points.append((name, float(value), when, int(step)))
    return points


def worker_points(
    workers: Sequence[Mapping[str, float]], row: ResultsRow, start: int
) -> list[Point]:
    """Of each worker the crops per second and the share of its time that it waited for them.

    Args:
        workers: crops, train_s and data_wait_s of each, as in `workers.json`.
        row: the trial's row.
        start: start of the run.
    """
    end = start + duration_ms(row)
    points: list[Point] = []
    for rank, worker in enumerate(workers):
        time_s = worker["train_s"] or 1.0  # a resumed attempt may have had nothing left to do
        points += [
            (f"worker_{rank}/crops_per_s", worker["crops"] / time_s, end, row.steps),
            (f"worker_{rank}/waited_share", worker["data_wait_s"] / time_s, end, row.steps),
        ]
    return points


def headline(
    rows: Sequence[ResultsRow],
    study: Mapping[str, Any],
    comparisons: Mapping[str, Any],
    failed: int,
) -> dict[str, float]:
    """The numbers of the whole study that stand at its parent run."""
    values: dict[str, float] = {
        "trials": sum(not row.is_baseline for row in rows),
        "baselines": sum(row.is_baseline for row in rows),
        "failed_trials": failed,
    }
    values |= {
        k: float(study[k]) for k in ("wall_s", "peak_memory_gib") if study.get(k) is not None
    }
    for best in (row for row in rows if row.trial_id == comparisons.get("best")):
        values |= {"best_score": best.score, "best_score_low": best.score_low}
        values |= {"best_score_high": best.score_high}
    for difference in comparisons.get("differences", []):
        # "untrained (3 initialisations)" -> untrained; MLflow allows few signs in names.
        against = re.sub(r"\W+", "_", difference["against"].split("(")[0].strip())
        for end in ("value", "low", "high"):
            values[f"difference_to_{against}/{end}"] = float(difference[end])
    return values


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested mapping -> dotted names and texts; lists stay one value."""
    values: dict[str, str] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            values |= flat(value, f"{prefix}{name}.")
        else:
            values[f"{prefix}{name}"] = value if isinstance(value, str) else json.dumps(value)
    return values


def rows_csv(rows: Sequence[ResultsRow]) -> str:
    """The results table as CSV: one line a row, one column a read-out, alignment, ..."""
    flattened = []
    for row in rows:
        columns: dict[str, Any] = {}
        for name, value in row.as_dict().items():
            parts = value if isinstance(value, dict) else {}
            columns |= {f"{name}.{k}": v for k, v in parts.items()} or {name: value}
        flattened.append({name: "" if value == {} else value for name, value in columns.items()})
    names = list(dict.fromkeys(name for columns in flattened for name in columns))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flattened)
    return text.getvalue()


def content_digest(paths: Sequence[Path], text: str = "") -> str:
    """SHA-256 in hex over names and content of those of `paths` that exist, and over `text`."""
    digest = hashlib.sha256(text.encode())
    for path in paths:
        if path.exists():
            digest.update(f"\0{path.name}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
