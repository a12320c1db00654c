"""What a study says in plain sentences: what was found, what was not, and how far to trust it.

The first sentence is the answer. Where training does not beat a baseline, it says so.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from phenoscale.results import ResultsRow
from phenoscale.wording import (
    ALIGNMENT_NAMES,
    METRIC_NAMES,
    interval,
    number,
    objective_name,
    share,
)

ORACLE_GOAL = 0.9
TWINS_GOAL = 1e-5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Findings:
    """The sentences of a report."""

    answer: tuple[str, ...]
    """What was found, what was not, and the caveats of both: the first words of the report."""
    notes: tuple[str, ...]
    """What else is shown, or is not, one sentence or two each."""


def find(
    rows: Sequence[ResultsRow],
    study: Mapping[str, Any],
    comparisons: Mapping[str, Any],
    failures: Sequence[Mapping[str, Any]],
) -> Findings:
    """Puts a study into words.

    Args:
        rows: all rows of the study.
        study: content of `study.json`; may be empty.
        comparisons: content of `comparisons.json`; may be empty.
        failures: content of `failures.json`: mappings with `trial_id` and `error`.
    """
    trained = [row for row in rows if not row.is_baseline]
    best = best_row(rows, comparisons)
    notes = [
        _missing_comparisons(trained, comparisons),
        _compare("backbone", {row.backbone: row.backbone for row in trained}, trained),
        _data_scale(trained, best),
        _alignments(rows, best),
        _twins(comparisons),
        _mixed(rows),
        _skipped(rows),
        _failed(failures),
    ]
    answer = [_answer(rows, best, comparisons)]
    if best is not None:
        objectives = {row.objective: objective_name(row.objective) for row in trained}
        answer += [
            _compare("objective", objectives, trained) or _only_objective(objectives),
            _caveats(rows, trained, best, study, comparisons),
        ]
    return Findings(answer=tuple(answer), notes=tuple(note for note in notes if note))


def best_row(rows: Sequence[ResultsRow], comparisons: Mapping[str, Any]) -> ResultsRow | None:
    """The trained trial that was compared with the baselines, else that with the highest score."""
    trained = [row for row in rows if not row.is_baseline]
    named = [row for row in trained if row.trial_id == comparisons.get("best")]
    return max(named or trained, key=lambda row: row.score, default=None)


def _score(row: ResultsRow) -> str:
    return interval(row.score, row.score_low, row.score_high)


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
    metric = METRIC_NAMES.get(best.metric, best.metric)
    differences = comparisons.get("differences", [])
    if not differences:
        return (
            "Whether training helps cannot be said: no trial was compared with a baseline. The "
            f"highest {metric} is {_score(best)}, of {_describe(best)}."
        )
    beaten = [d for d in differences if d["low"] > 0]
    unbeaten = [d for d in differences if d["low"] <= 0]
    if not unbeaten:
        names = _baselines(beaten, beaten=True)
        gains = " and ".join(f"{_difference(d)} above {_short(d)}" for d in beaten)
        return (
            f"Training beat {names}: {_describe(best)} reached a {metric} of {_score(best)}, which "
            f"is {gains} (paired differences with 95% intervals, clear of 0)."
        )
    text = (
        f"Training did not beat {_baselines(unbeaten, beaten=False)}: the best trained encoder, "
        f"{_describe(best)}, reached a {metric} of {_score(best)}, and "
        + " and ".join(f"its paired difference to {_below(d)}" for d in unbeaten)
    )
    if beaten:
        text += "; it did beat " + " and ".join(f"{_short(d)}, by {_difference(d)}" for d in beaten)
    return text + "."


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
    scores = ", ".join(f"{names[key]} {_score(tops[key])}" for key in ranked)
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


def _only_objective(objectives: Mapping[str, str]) -> str:
    (name,) = objectives.values()
    return f"Objectives cannot be compared: {name} is the only one that was trained."


def _caveats(
    rows: Sequence[ResultsRow],
    trained: Sequence[ResultsRow],
    best: ResultsRow,
    study: Mapping[str, Any],
    comparisons: Mapping[str, Any],
) -> str:
    if len(trained) == 1:
        text = "That is the only trained trial, so nothing was selected"
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


def _missing_comparisons(trained: Sequence[ResultsRow], comparisons: Mapping[str, Any]) -> str:
    told = " ".join(d["against"] for d in comparisons.get("differences", []))
    lacking = [name for name in ("untrained", "intensity") if name not in told]
    if not trained or not lacking:
        return ""
    names = " and ".join(objective_name(name) for name in lacking)
    return f"The best trial was not compared with these baselines: {names}."


def _data_scale(trained: Sequence[ResultsRow], best: ResultsRow | None) -> str:
    if best is None:
        return ""
    same = [r for r in trained if (r.objective, r.backbone) == (best.objective, best.backbone)]
    least = min(same, key=lambda row: row.data_fraction)
    most = max(same, key=lambda row: row.data_fraction)
    if least.data_fraction == most.data_fraction:
        return "Whether more data helps cannot be said: the best cell has one data fraction only."
    name = f"{objective_name(best.objective)} {best.backbone}"
    scores = (
        f"{name} scores {_score(least)} on {share(least.data_fraction)} of the wells and "
        f"{_score(most)} on {share(most.data_fraction)}"
    )
    if most.score_low > least.score_high:
        return f"More data helps: {scores}."
    if most.score_high < least.score_low:
        return f"More data hurts: {scores}."
    return f"Whether more data helps is not shown: {scores}, and the intervals overlap."


def _alignments(rows: Sequence[ResultsRow], best: ResultsRow | None) -> str:
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


def _twins(comparisons: Mapping[str, Any]) -> str:
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


def _mixed(rows: Sequence[ResultsRow]) -> str:
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


def _skipped(rows: Sequence[ResultsRow]) -> str:
    most = max((row.sites_skipped for row in rows), default=0)
    return f"Unreadable sites were skipped, up to {most:,} in a trial." if most else ""


def _failed(failures: Sequence[Mapping[str, Any]]) -> str:
    if not failures:
        return ""
    if len(failures) == 1:
        return "1 trial failed and is missing from everything above."
    return f"{len(failures)} trials failed and are missing from everything above."
