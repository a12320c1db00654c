"""The tables of a report, as texts."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from phenoscale.reports.study_notes import TWINS_GOAL
from phenoscale.results import ResultsRow
from phenoscale.wording import (
    ALIGNMENT_NAMES,
    interval,
    listed,
    number,
    objective_name,
    share,
    signed,
)

OVERHEAD_GOALS_S = {("in_place", 1): 1.0, ("ray_train", 1): 9.0}
"""Most seconds that a trial may hold its slot beyond its work, by launcher and workers."""
LAUNCHERS = {"in_place": "in place", "ray_train": "Ray Train"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """A table of the report: texts, the first column left and the others right."""

    label: str
    """What it is called for those who do not see it."""
    columns: tuple[str, ...]
    """Heads of the columns."""
    rows: Sequence[tuple[str, ...]]
    """Cells, as many in each row as there are columns."""
    kind: str = ""
    """How it is laid out: wide keeps its first column in sight, wrap and errors break lines."""
    links: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Text of a first cell to the page that it leads to."""


def differences_table(comparisons: Mapping[str, Any]) -> Table:
    """The best trial against each baseline."""
    rows = [
        (
            difference["against"],
            interval(difference["value"], difference["low"], difference["high"]),
            _verdict(difference),
        )
        for difference in comparisons.get("differences", [])
    ]
    return Table(
        label="Paired differences to the baselines",
        columns=("best trial against", "paired difference [95%]", "verdict"),
        rows=rows,
        kind="wrap",
    )


def _verdict(difference: Mapping[str, Any]) -> str:
    if difference["low"] > 0:
        return "better"
    return "worse" if difference["high"] < 0 else "not shown"


def transfer_table(transfer: Mapping[str, Any]) -> Table:
    """Paired differences between encoders on another laboratory's screen."""
    rows = [
        (
            f"{difference['of']} less {listed(difference['less'])}",
            signed(difference["value"], difference["low"], difference["high"]),
            _verdict(difference),
        )
        for difference in transfer.get("differences", [])
    ]
    columns = ("encoder and number of channels", "paired difference [95%]", "verdict")
    return Table(label="Encoders on the other screen", columns=columns, rows=rows)


def twins_table(comparisons: Mapping[str, Any]) -> Table:
    """Trials that differ in their placement alone."""
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
    return Table(label="Twins", columns=columns, rows=rows, kind="wrap")


def overhead_table(rows: Sequence[ResultsRow]) -> Table:
    """What trials held their slot for beyond their work, by launcher."""
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
    return Table(
        label="Overhead",
        columns=("overhead", "number", "median s", "max s", "goal s", "holds"),
        rows=cells,
    )


def readouts_table(rows: Sequence[ResultsRow]) -> Table:
    """The score of every read-out."""
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
    return Table(label="Scores by read-out", columns=tuple(columns), rows=cells, kind="wide")


def nuisances_table(rows: Sequence[ResultsRow]) -> Table:
    """The headline score under each alignment, and what negative controls give away."""
    alignments = list(dict.fromkeys(name for row in rows for name in row.score_by_alignment))
    told = [name for row in rows for name in row.nuisance if not name.endswith("_chance")]
    nuisances = list(dict.fromkeys(told))
    columns = ["trial", *(ALIGNMENT_NAMES.get(name, name) for name in alignments)]
    columns += [f"{name.replace('_', ' ')} (chance)" for name in nuisances]
    cells = [
        (
            row.trial_id,
            *(_number_or_none(row.score_by_alignment.get(name)) for name in alignments),
            *(
                f"{row.nuisance[name]:.2f} ({row.nuisance[f'{name}_chance']:.2f})"
                if name in row.nuisance
                else "-"
                for name in nuisances
            ),
        )
        for row in rows
    ]
    return Table(
        label="Scores by alignment, and nuisance",
        columns=tuple(columns),
        rows=cells if alignments or nuisances else [],
        kind="wide",
    )


def _number_or_none(value: float | None) -> str:
    return "-" if value is None else number(value)


def trials_table(rows: Sequence[ResultsRow], links: Mapping[str, str]) -> Table:
    """Every column of every row.

    Args:
        rows: all rows.
        links: trial id to the page of its MLflow run.
    """
    metric = rows[0].metric if rows else "score"
    columns = (
        f"trial;objective;backbone;data;seed;launcher;workers;{metric} [95%];train loss;"
        "held-out loss;optimizer;learning rate;its source;precision;parameters;training FLOPs;"
        "crops seen;unique sites;unique crops;steps;train s;embed s;"
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
            *(f"{n:,}" for n in (row.crops_seen, row.unique_sites, row.unique_crops, row.steps)),
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
    return Table(
        label="Trials and baselines",
        columns=tuple(columns.split(";")),
        rows=cells,
        kind="wide",
        links=links,
    )


def failures_table(
    failures: Sequence[Mapping[str, Any]], shown: Callable[[str], str] = str
) -> Table:
    """Why trials failed, errors as `shown` writes them."""
    rows = [(str(f.get("trial_id", "?")), shown(str(f.get("error", "?")))) for f in failures]
    return Table(label="Failed trials", columns=("trial", "error"), rows=rows, kind="errors")
