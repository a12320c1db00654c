"""What a results row becomes in MLflow: parameters, metric points, tags. Arithmetic only.

Times are milliseconds since 1970. The points of a trial are laid out from its run's start, so that
writing the same row twice gives the same points.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from phenoscale.config import Trial
from phenoscale.mirror_store import without_password
from phenoscale.mirror_view import LOG_FLOPS
from phenoscale.results import ROW_FILE, ResultsRow, read_optional_json
from phenoscale.study_files import TRIAL_FILE
from phenoscale.wording import interval, metric_name, objective_colour, objective_name, share

PARAM_COLUMNS = ("data_fraction", "seed", "workers", "lr")
"""Numeric columns of a row that were chosen, not measured: parameters, like its texts."""
SHOWN = (
    *("score", "score_low", "score_high", "held_out_loss", "train_loss"),
    *("training_flops", "num_parameters", "crops_seen", "unique_sites", "steps"),
    *("train_s", "embed_s", "score_s", "overhead_s", "cpu_s", "data_cpu_s", "data_wait_s"),
    *("utilization", "peak_memory_gib", "peak_gpu_memory_gib"),
    *("attempts", "spikes", "sites_skipped"),
)
"""Columns of a row that are metrics of its run; the other numbers are in `TABLE_FILE`."""
MOST_METRICS = 40
"""Metric names of one run: more, and neither charts nor the choice of columns are of use."""
TABLE_FILE = "metrics.json"
MIRROR_FORMAT = "2"
"""Changes when the same row becomes something else: `sync` then writes every run again."""
REASON_SIGNS = 2000

Point = tuple[str, float, int, int]
"""Metric name, value, time in milliseconds, step."""


def duration_ms(row: ResultsRow) -> int:
    """How long the trial took from start to row."""
    return round(1000 * (row.train_s + row.embed_s + row.score_s + row.overhead_s))


def start_ms(trial_dir: Path, row: ResultsRow) -> int:
    """When the trial began: its row was written at the end."""
    return (trial_dir / ROW_FILE).stat().st_mtime_ns // 1_000_000 - duration_ms(row)


def trial_tags(row: ResultsRow, study: str) -> dict[str, str]:
    """What one filters runs by, and the colour of the run."""
    return {
        "phenoscale.kind": "baseline" if row.is_baseline else "trial",
        "phenoscale.study": study,
        "trial_id": row.trial_id,
        "objective": row.objective,
        "backbone": row.backbone,
        "data_fraction": fraction_text(row.data_fraction),
        "seed": str(row.seed),
        "workers": str(row.workers),
        "fingerprint": row.index_fingerprint,
        "code_version": row.code_version,
        "mlflow.runColor": objective_colour(row.objective),
        "mlflow.note.content": trial_note(row),
        "mlflow.loggedArtifacts": json.dumps([{"path": TABLE_FILE, "type": "table"}]),
    }


def failure_tags(trial_id: str, trial: Trial | None, study: str, reason: str) -> dict[str, str]:
    """The same of a trial that failed, with its reason; without the trial its id alone is known."""
    told = shown_reason(reason)
    tags = {
        "phenoscale.kind": "trial",
        "phenoscale.study": study,
        "phenoscale.failed": trial_id,
        "phenoscale.reason": told,
        "trial_id": trial_id,
        "mlflow.note.content": f"Failed: {told.splitlines()[-1] if told else 'no reason is known'}",
    }
    if trial:
        tags |= {
            "objective": trial.objective.label,
            "backbone": trial.shown_backbone,
            "data_fraction": fraction_text(0 if trial.is_baseline else trial.crops.data_fraction),
            "seed": str(trial.seed),
            "workers": str(trial.placement.workers),
            "mlflow.runColor": objective_colour(trial.objective.label),
        }
    return tags


def fraction_text(fraction: float) -> str:
    """A data fraction as text that sorts like the number."""
    return f"{fraction:.4f}"


def shown_reason(reason: str) -> str:
    """The end of an error, where its message stands, without passwords of addresses."""
    return without_password(reason).strip()[-REASON_SIGNS:]


def trial_note(row: ResultsRow) -> str:
    """The run in a sentence, Markdown."""
    name = f"{objective_name(row.objective)} {row.backbone}".removesuffix(" none")
    trained = "" if row.is_baseline else f" on {share(row.data_fraction)} of the wells"
    return (
        f"**{name}**{trained}, seed {row.seed}: {metric_name(row.metric)} "
        f"{interval(row.score, row.score_low, row.score_high)}. All other numbers: {TABLE_FILE}."
    )


def trial_params(trial_dir: Path, row: ResultsRow) -> dict[str, str]:
    """The row's texts and choices, and the trial's configuration where there is a `trial.json`."""
    columns = row.as_dict()
    chosen = {k: v for k, v in columns.items() if isinstance(v, str) or k in PARAM_COLUMNS}
    config = read_optional_json(trial_dir / TRIAL_FILE, {})
    return flat(chosen) | flat(config, "trial.")


def final_points(row: ResultsRow, start: int) -> list[Point]:
    """The numbers of a row that are metrics, at its last step; what does not exist is left out."""
    fields = dataclasses.asdict(row)
    names = {"score": row.metric, "score_low": f"{row.metric}_low"}
    names["score_high"] = f"{row.metric}_high"
    measured = {names.get(k, k): float(fields[k]) for k in SHOWN if fields[k] is not None}
    if row.training_flops > 0:
        measured[LOG_FLOPS] = math.log10(row.training_flops)
    end = start + duration_ms(row)
    return [(name, value, end, row.steps) for name, value in measured.items()]


def metric_table(row: ResultsRow, workers: Sequence[Mapping[str, float]]) -> str:
    """Every number of a row that is no metric of its run, as MLflow's JSON of a table.

    Args:
        row: the trial's row.
        workers: crops, train_s and data_wait_s of each, as in `workers.json`.
    """
    lines: list[tuple[str, str, float]] = []
    for name, value in dataclasses.asdict(row).items():
        if isinstance(value, dict):
            lines += [(name, key, float(x)) for key, x in value.items()]
        elif isinstance(value, int | float) and name not in (*SHOWN, *PARAM_COLUMNS):
            lines.append(("row", name, float(value)))
    for rank, worker in enumerate(workers):
        time_s = worker["train_s"] or 1.0  # a resumed attempt may have had nothing left to do
        lines += [
            (f"worker_{rank}", "crops_per_s", worker["crops"] / time_s),
            (f"worker_{rank}", "waited_share", worker["data_wait_s"] / time_s),
        ]
    return json.dumps({"columns": ["group", "name", "value"], "data": lines})


def curve_points(curve: Mapping[str, Sequence[float]], row: ResultsRow, start: int) -> list[Point]:
    """The step metrics of a trial, spread evenly over its training time.

    The first names, as many as `MOST_METRICS` leaves beside those of the row.

    Args:
        curve: `step` and lists of the same length, as in `curve.json`; empty for a baseline.
        row: the trial's row.
        start: start of the run.

    Raises:
        ValueError: if the lists differ in length.
    """
    steps = curve.get("step", [])
    points: list[Point] = []
    room = MOST_METRICS - len(SHOWN) - 1
    names = [name for name in curve if name != "step"][:room]
    for name in names:
        values = curve[name]
        if len(values) != len(steps):
            raise ValueError(
                f"the curve of {row.trial_id} has {len(steps)} steps and {len(values)} values of "
                f"{name}; its lists must have the same length. Run the trial again."
            )
        for step, value in zip(steps, values, strict=True):
            when = start + round(1000 * row.train_s * step / max(row.steps, 1))
            points.append((name, float(value), when, int(step)))
    return points


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested mapping -> dotted names and texts; lists stay one value."""
    values: dict[str, str] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            values |= flat(value, f"{prefix}{name}.")
        else:
            values[f"{prefix}{name}"] = value if isinstance(value, str) else json.dumps(value)
    return values


def content_digest(paths: Sequence[Path], text: str = "") -> str:
    """SHA-256 in hex over names and content of those of `paths` that exist, and over `text`."""
    digest = hashlib.sha256(text.encode())
    for path in paths:
        if path.exists():
            digest.update(f"\0{path.name}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
