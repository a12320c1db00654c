"""What is to be known of a study beside its answer, a sentence or two each; empty if nothing is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from phenoscale.results import ResultsRow
from phenoscale.wording import ALIGNMENT_NAMES, interval, number, objective_name, share

TWINS_GOAL = 1e-5
"""Largest relative difference of losses between trials that differ in their placement alone."""


def score_of(row: ResultsRow) -> str:
    """A row's score with its interval."""
    return interval(row.score, row.score_low, row.score_high)


def missing_trials(
    rows: Sequence[ResultsRow],
    failures: Sequence[Mapping[str, Any]],
    study: Mapping[str, Any],
) -> str:
    """Failed trials, and trials that are neither measured nor failed."""
    planned = max(study.get("num_trials", 0), len(rows) + len(failures))
    waiting = planned - len(rows) - len(failures)
    parts = []
    if failures:
        parts.append(f"{len(failures)} of {planned} trials failed")
    if waiting > 0:
        parts.append(f"{waiting} of {planned} trials have no results yet")
    return f"{' and '.join(parts)}: they are missing from everything here." if parts else ""


def mixed_rows(rows: Sequence[ResultsRow]) -> str:
    """Whether the rows are of several screens, codes or ways of scoring."""
    mixed = [
        f"{len(values)} different {name}"
        for name, values in (
            ("indexes", {row.index_fingerprint for row in rows}),
            ("versions of the code", {row.code_version for row in rows}),
            ("protocols", {row.protocol for row in rows}),
            ("metrics", {row.metric for row in rows}),
        )
        if len(values) > 1
    ]
    return f"The rows cannot be compared: they come from {' and '.join(mixed)}." if mixed else ""


def skipped_sites(rows: Sequence[ResultsRow]) -> str:
    """Whether sites could not be read."""
    most = max((row.sites_skipped for row in rows), default=0)
    return f"Unreadable sites were skipped, up to {most:,} in a trial." if most else ""


def missing_comparisons(trained: Sequence[ResultsRow], comparisons: Mapping[str, Any]) -> str:
    """Which baselines the best trial was not compared with."""
    told = " ".join(d["against"] for d in comparisons.get("differences", []))
    lacking = [name for name in ("untrained", "intensity") if name not in told]
    if not trained or not lacking:
        return ""
    names = " and ".join(objective_name(name) for name in lacking)
    return f"The best trial was not compared with these baselines: {names}."


def data_scale(trained: Sequence[ResultsRow], best: ResultsRow | None) -> str:
    """Whether the best trial's model gains by more data."""
    if best is None:
        return ""
    same = [r for r in trained if (r.objective, r.backbone) == (best.objective, best.backbone)]
    least = min(same, key=lambda row: row.data_fraction)
    most = max(same, key=lambda row: row.data_fraction)
    if least.data_fraction == most.data_fraction:
        return "Whether more data helps cannot be said: the best cell has one data fraction only."
    name = f"{objective_name(best.objective)} {best.backbone}"
    scores = (
        f"{name} scores {score_of(least)} on {share(least.data_fraction)} of the wells and "
        f"{score_of(most)} on {share(most.data_fraction)}"
    )
    if most.score_low > least.score_high:
        return f"More data helps: {scores}."
    if most.score_high < least.score_low:
        return f"More data hurts: {scores}."
    return f"Whether more data helps is not shown: {scores}, and the intervals overlap."


def alignments(rows: Sequence[ResultsRow], best: ResultsRow | None) -> str:
    """Whether the best trial is above every baseline's headline under each alignment."""
    if best is None or len(best.score_by_alignment) < 2:
        return ""
    baselines = [r for r in rows if r.is_baseline and r.objective != "oracle"]
    margins = []
    for name, value in best.score_by_alignment.items():
        others = [r.score_by_alignment[name] for r in baselines if name in r.score_by_alignment]
        if others:
            told = f"{ALIGNMENT_NAMES.get(name, name)} {number(value)} and {number(max(others))}"
            margins.append((value > max(others), told))
    if not margins:
        return ""
    scores = "; ".join(told for _, told in margins)
    above = {wins for wins, _ in margins}
    if above == {True}:
        return (
            "Under each alignment the best trial is above every baseline by its own read-out (with "
            f"{scores})."
        )
    if above == {False}:
        return (
            "Under no alignment is the best trial above every baseline by its own read-out (with "
            f"{scores})."
        )
    return (
        "The alignment decides whether the best trial is above every baseline by its own read-out, "
        f"so that is not shown (with {scores})."
    )


def twins(comparisons: Mapping[str, Any]) -> str:
    """Whether trials on other workers have the same losses."""
    twins = comparisons.get("twins", [])
    if not twins:
        return "Whether losses depend on the number of workers was not checked: there are no twins."
    largest = max(twin["max_relative_loss_difference"] for twin in twins)
    verdict = "agree" if largest <= TWINS_GOAL else "disagree"
    return (
        f"Twin trials, the same training on other workers, {verdict}: their losses differ by at "
        f"most {_power(largest)} relative (goal {_power(TWINS_GOAL)})."
    )


def _power(value: float) -> str:
    return f"{value:.1e}".replace("-", "\u2011")  # a hyphen that does not end a line
