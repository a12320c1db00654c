"""A scorecard, or the figures of a protocol, as tables of text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

TextTable = tuple[str, Sequence[str], list[tuple[str, ...]], list[str]]
"""Title, columns, rows, notes."""


def tables_of(found: Mapping[str, Any]) -> Iterator[TextTable]:
    """The tables of whatever `phenoscale score` found.

    Args:
        found: of `scorecard`, `map_scorecard`, `score_rxrx3_core` or `score_cpjump1` (with its
            table as `tasks`, a list of mappings).
    """
    if "lines" in found:
        yield _scorecard(found)
    elif "tasks" in found:
        yield _tasks(found)
    else:
        yield _recall(found)
        yield _compound_gene(found)


def _scorecard(found: Mapping[str, Any]) -> TextTable:
    """A row per score, a column per embedding and alignment."""
    lines = found["lines"]
    heads = list(dict.fromkeys((line["embedding"], line["alignment"]) for line in lines))
    by_score: dict[tuple[str, str], dict[tuple[str, str], Any]] = {}
    for line in lines:
        row = by_score.setdefault((line["score"], line["of"]), {})
        row[line["embedding"], line["alignment"]] = line
    rows: list[tuple[str, ...]] = []
    notes = []
    for (score, of), row in by_score.items():
        some = [line for line in row.values() if line["value"] is not None]
        if not some:
            notes.append(f"{score}, {of}: not scored. {next(iter(row.values()))['note']}")
            continue
        chance = some[0]["chance"]
        about = f"{some[0]['count']:,} {some[0]['counted']}" if some[0]["count"] else ""
        rows.append(
            (
                score,
                of,
                *(_cell(row.get(head)) for head in heads),
                "" if chance is None else f"{chance:.3g}",
                about,
            )
        )
        told = dict.fromkeys(line["note"] for line in some if line["note"])
        notes += [f"{score}, {of}: {note}" for note in told]
    several = len({name for name, _ in heads}) > 1
    columns = ["score", "of", *(f"{n}, {a}" if several else a for n, a in heads), "chance", "over"]
    counts = [f"{v:,} {k.removeprefix('num_')}" for k, v in found.items() if k.startswith("num_")]
    return f"{found['protocol']}: {', '.join(counts)}", columns, rows, notes


def _cell(line: Mapping[str, Any] | None) -> str:
    if line is None or line["value"] is None:
        return "-"
    text = f"{line['value']:.3f}"
    return text if line["low"] is None else f"{text} [{line['low']:.3f}, {line['high']:.3f}]"


def _recall(found: Mapping[str, Any]) -> TextTable:
    rows: list[tuple[str, ...]] = [
        (name, "", f"{one['recall_0.05_0.95']:.4f}", f"{one['num_pairs']:,}")
        for name, one in found["recall"].items()
    ]
    counts = [f"{k.removeprefix('num_')} {v:,}" for k, v in found["counts"].items()]
    title = f"{found['protocol']} {found['version']}: recall_0.05_0.95, chance 0.10"
    return title, ("database", "", "recall", "known pairs"), rows, [", ".join(counts)]


def _compound_gene(found: Mapping[str, Any]) -> TextTable:
    block = found["compound_gene"]
    rows: list[tuple[str, ...]] = []
    for concentration, one in block["by_concentration"].items():
        cells = [
            f"{one[name]:.3f} ({one[f'{name}_random']:.3f})"
            for name in ("average_precision_mean", "average_precision_median", "auc_roc_mean")
        ]
        rows.append((concentration, str(one["num_compounds"]), *cells))
    columns = ("concentration", "compounds", "mean AP", "median AP", "mean AUC")
    counts = [f"{k.removeprefix('num_')} {v:,}" for k, v in block["counts"].items()]
    title = f"compounds against their targets, {block['seeds']} draws of negatives (random scores)"
    return title, columns, rows, [", ".join(counts)]


def _tasks(found: Mapping[str, Any]) -> TextTable:
    rows: list[tuple[str, ...]] = []
    notes = []
    for task in found["tasks"]:
        where = " ".join(str(task[k]) for k in ("perturbation_type", "cell_type", "time_h"))
        if task["not_scored"]:
            notes.append(f"{task['task']}, {where}: not scored. {task['not_scored']}")
            continue
        rows.append(
            (
                task["task"],
                f"{where} against {task['against']}",
                f"{task['mean_average_precision']:.3f} [{task['low']:.3f}, {task['high']:.3f}]",
                f"{task['chance']:.4f}",
                f"{task['fraction_retrieved']:.2f}",
                f"{task['num_perturbations']}",
            )
        )
    columns = ("task", "of", "mean average precision", "chance", "retrieved", "perturbations")
    return f"{found['protocol']} {found['version']}", columns, rows, notes
