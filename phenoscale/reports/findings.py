"""What a study says in plain sentences: what was found, what was not, and how far to trust it.

Three sentences are the answer: the best trial against the baselines, which objective scales better,
and what the next GPU-hour buys. Where training does not beat a baseline, the first says so.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from phenoscale.reports.scaling_findings import scaling_notes, what_next, which_scales_better
from phenoscale.reports.study_notes import (
    alignments,
    data_scale,
    missing_comparisons,
    missing_trials,
    mixed_rows,
    score_of,
    skipped_sites,
    twins,
)
from phenoscale.results import ResultsRow
from phenoscale.scaling.next_runs import NextRuns
from phenoscale.scaling.summary import Summary
from phenoscale.wording import (
    interval,
    metric_name,
    objective_name,
    share,
)

ORACLE_GOAL = 0.9


@dataclasses.dataclass(frozen=True, kw_only=True)
class Findings:
    """The sentences of a report."""

    answer: tuple[str, ...]
    """What was found and what was not: the first words of the report."""
    notes: tuple[str, ...]
    """The caveats, and what else is shown, or is not, one sentence or two each."""


def find(
    rows: Sequence[ResultsRow],
    study: Mapping[str, Any],
    comparisons: Mapping[str, Any],
    failures: Sequence[Mapping[str, Any]],
    summary: Summary,
    next_runs: NextRuns | str,
) -> Findings:
    """Puts a study into words.

    Args:
        rows: all rows of the study.
        study: content of `study.json`; may be empty.
        comparisons: content of `comparisons.json`; may be empty.
        failures: content of `failures.json`: mappings with `trial_id` and `error`.
        summary: what the rows say about scaling.
        next_runs: what to run next, or why that is not known.
    """
    trained = [row for row in rows if not row.is_baseline]
    best = best_row(rows, comparisons)
    objectives = {row.objective: objective_name(row.objective) for row in trained}
    answer = [_answer(rows, best, comparisons)]
    caveats = ""
    if best is not None:
        answer += [which_scales_better(list(objectives), summary), what_next(best, next_runs)]
        caveats = _caveats(rows, trained, best, study, comparisons)
    notes = [
        missing_trials(rows, failures, study),
        caveats,
        mixed_rows(rows),
        missing_comparisons(trained, comparisons),
        *scaling_notes(best, summary, next_runs),
        _compare("objective", objectives, trained),
        _compare("backbone", {row.backbone: row.backbone for row in trained}, trained),
        data_scale(trained, best),
        alignments(rows, best),
        twins(comparisons),
        skipped_sites(rows),
    ]
    return Findings(answer=tuple(answer), notes=tuple(note for note in notes if note))


def best_row(rows: Sequence[ResultsRow], comparisons: Mapping[str, Any]) -> ResultsRow | None:
    """The trained trial that was compared with the baselines, else that with the highest score."""
    trained = [row for row in rows if not row.is_baseline]
    named = [row for row in trained if row.trial_id == comparisons.get("best")]
    return max(named or trained, key=lambda row: row.score, default=None)


def _describe(row: ResultsRow) -> str:
    wells = "all training wells"
    if row.data_fraction < 1:
        wells = f"{share(row.data_fraction)} of the training wells"
    crops = f"{row.crops_seen:,} crops"
    return f"the {objective_name(row.objective)} with backbone {row.backbone} on {wells} ({crops})"


def _difference(difference: Mapping[str, Any]) -> str:
    return interval(difference["value"], difference["low"], difference["high"])


def _answer(
    rows: Sequence[ResultsRow], best: ResultsRow | None, comparisons: Mapping[str, Any]
) -> str:
    if not rows:
        return "Nothing was measured: this study holds no results rows."
    if best is None:
        return (
            "Whether training helps cannot be said: this study holds baselines only "
            f"({len(rows)}), no trained trial."
        )
    metric, reached = metric_name(best.metric), _reached(best, comparisons)
    differences = comparisons.get("differences", [])
    if not differences:
        return (
            "Whether training helps cannot be said: no trial was compared with a baseline. The "
            f"highest {metric} is {score_of(best)}, of {_describe(best)}."
        )
    beaten = [d for d in differences if d["low"] > 0]
    unbeaten = [d for d in differences if d["low"] <= 0]
    if not unbeaten:
        names = _baselines(beaten, beaten=True)
        gains = " and ".join(f"{_difference(d)} above {_short(d)}" for d in beaten)
        return (
            f"Training beat {names}: {_describe(best)} reached a {metric} of {reached}, "
            f"which is {gains} (paired differences with 95% intervals, clear of 0)."
        )
    text = (
        f"Training did not beat {_baselines(unbeaten, beaten=False)}: the best trained encoder, "
        f"{_describe(best)}, reached a {metric} of {reached}, and "
        + " and ".join(f"its paired difference to {_below(d)}" for d in unbeaten)
    )
    if beaten:
        text += "; it did beat " + " and ".join(f"{_short(d)}, by {_difference(d)}" for d in beaten)
    return text + "."


def _reached(best: ResultsRow, comparisons: Mapping[str, Any]) -> str:
    """The score that was compared: of the best trial, or the mean of its configuration's seeds."""
    if not comparisons.get("mean"):
        return score_of(best)
    return f"{_difference(comparisons['mean'])}, the mean of {len(comparisons['seeds'])} seeds"


def _below(difference: Mapping[str, Any]) -> str:
    verdict = "below 0" if difference["high"] < 0 else "not clear of 0"
    if difference["high"] < 0 and _short(difference).startswith("untrained"):
        verdict += ": training made it worse"
    return f"{_short(difference)} is {_difference(difference)}, {verdict}"


def _baselines(differences: Sequence[Mapping[str, Any]], *, beaten: bool) -> str:
    names = (" and " if beaten else " or ").join(d["against"] for d in differences)
    if len(differences) == 1:
        return f"the baseline {names}"
    two, more = (
        ("both baselines", "all baselines") if beaten else ("either baseline", "any baseline")
    )
    return f"{two if len(differences) == 2 else more}, {names}"


def _short(difference: Mapping[str, Any]) -> str:
    return str(difference["against"]).split(" (")[0]


def _compare(kind: str, names: Mapping[str, str], trained: Sequence[ResultsRow]) -> str:
    """Best trial of each objective or backbone; empty where there is only one of them."""
    tops = {
        key: max((row for row in trained if getattr(row, kind) == key), key=lambda row: row.score)
        for key in names
    }
    ranked = sorted(tops, key=lambda key: -tops[key].score)
    if len(ranked) < 2:
        return ""
    scores = ", ".join(f"{names[key]} {score_of(tops[key])}" for key in ranked)
    first, others = ranked[0], ranked[1:]
    apart = [key for key in others if tops[key].score_high < tops[first].score_low]
    if len(apart) == len(others):
        return (
            f"The best {kind} is {names[first]}: the intervals are apart (best trials: {scores})."
        )
    return (
        f"Which {kind} is better is not shown: the 95% intervals of their best trials overlap "
        f"({scores}), and they were not compared in pairs."
    )


def _caveats(
    rows: Sequence[ResultsRow],
    trained: Sequence[ResultsRow],
    best: ResultsRow,
    study: Mapping[str, Any],
    comparisons: Mapping[str, Any],
) -> str:
    if len(trained) == 1:
        text = "That is the only trained trial, so nothing was selected"
    elif comparisons.get("mean"):
        text = (
            f"The best configuration was picked as the highest mean of "
            f"{comparisons['picked_from']} by the very scores that are reported, so its score and "
            "its differences are somewhat optimistic"
        )
    elif best.score == max(row.score for row in trained):
        text = (
            f"The best trial was picked as the highest of {len(trained)} trained trials by the "
            "very score that is reported, so its score and its differences are somewhat optimistic"
        )
    else:
        text = "The best trial was named by the study and is not the trial with the highest score"
    oracle = comparisons.get("oracle")
    for row in rows:
        if row.objective == "oracle" and oracle is None:
            oracle = {"value": row.score, "low": row.score_low, "high": row.score_high}
    if oracle is None:
        text += "; there is no oracle here, so what could be reached at best is not known"
    else:
        text += (
            "; the oracle (the true latent parameters, aggregated the same way) reaches "
            f"{_difference(oracle)}"
        )
        if oracle["value"] < ORACLE_GOAL:
            text += f", below the {ORACLE_GOAL} that a sound study needs"
    if study.get("chance") is not None:
        text += f"; chance is {study['chance']:.3g}"
    return text + "."
