"""What the fits of a study say in plain sentences, and why they cannot say more."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from phenoscale.maps.interval import Interval
from phenoscale.results import ResultsRow
from phenoscale.scaling.next_runs import Candidate, NextRuns
from phenoscale.scaling.noise import difference_text
from phenoscale.scaling.slopes import Comparison
from phenoscale.scaling.summary import ObjectiveScaling, Summary
from phenoscale.wording import (
    hours,
    interval,
    listed,
    metric_name,
    number,
    objective_name,
    share,
    signed,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Duel:
    """A comparison, seen from one of its sides."""

    other: str
    """The other side."""
    slope: Interval
    """Of this side."""
    other_slope: Interval
    """Of the other."""
    difference: Interval
    """Slope of this side less the other's."""
    found: Comparison
    """The comparison."""


def which_scales_better(objectives: Sequence[str], summary: Summary) -> str:
    """The objective with the steepest slope and its differences to the others, or why none.

    Args:
        objectives: those that were trained, at least one.
        summary: the fits.
    """
    if len(objectives) == 1:
        return (
            "Which objective scales better cannot be said: "
            f"{objective_name(objectives[0])} is the only one that was trained."
        )
    if not summary.comparisons:
        why = summary.refused[0] if summary.refused else "No two of them were compared."
        return f"Which objective scales better cannot be said. {why}"
    steepest, duels = _steepest(summary.comparisons)
    name, others = objective_name(steepest), [objective_name(duel.other) for duel in duels]
    slope = f"slopes of {_slope(duels[0].slope)} for {name}"
    for duel, other in zip(duels, others, strict=True):
        slope += f", {_slope(duel.other_slope)} for {other}"
    slope += " per tenfold training compute"
    told = [
        f"{_slope(duel.difference)} to {other} (p = {duel.found.p_value:.2g})"
        for duel, other in zip(duels, others, strict=True)
    ]
    clear = all(duel.difference.excludes_zero for duel in duels)
    hang = sorted({b for d in duels if d.found.hangs_on_untuned for b in d.found.untuned})
    doubt = (
        f"; this hangs on trials whose learning rate was not tuned for their size: {listed(hang)}"
        if hang
        else ""
    )
    if clear and len(duels) == len(objectives) - 1:
        return (
            f"{name} scales better than {listed(others)}: {slope}, a difference of "
            f"{listed(told)}{doubt}."
        )
    return (
        f"Which objective scales better is not shown: {slope}, but a difference of "
        f"{listed(told)}, {'which is not' if len(told) == 1 else 'not all of them'} clear of 0."
    )


def _slope(slope: Interval) -> str:
    return signed(slope.value, slope.low, slope.high)


def _steepest(comparisons: Sequence[Comparison]) -> tuple[str, list[_Duel]]:
    """The objective with the steepest slope, and all its comparisons, the closest first."""
    slopes: dict[str, float] = {}
    for found in comparisons:
        slopes.setdefault(found.a, found.slope_a.value)
        slopes.setdefault(found.b, found.slope_b.value)
    steepest = max(slopes, key=lambda name: slopes[name])
    duels = []
    for found in comparisons:
        off = found.difference
        if found.a == steepest:
            duels.append(
                _Duel(
                    other=found.b,
                    slope=found.slope_a,
                    other_slope=found.slope_b,
                    difference=off,
                    found=found,
                )
            )
        elif found.b == steepest:
            turned = Interval(value=-off.value, low=-off.high, high=-off.low)
            duels.append(
                _Duel(
                    other=found.a,
                    slope=found.slope_b,
                    other_slope=found.slope_a,
                    difference=turned,
                    found=found,
                )
            )
    return steepest, sorted(duels, key=lambda duel: duel.difference.value)


def what_next(best: ResultsRow, found: NextRuns | str) -> str:
    """What the next hours buy: the first run to make with its forecast, or why none is known."""
    if isinstance(found, str):
        return f"What the next GPU-hour buys cannot be said. {found}"
    if not found.chosen:
        why = " ".join(found.left_out) or "No candidate would tell anything new."
        return f"What the next GPU-hour buys cannot be said. {why}"
    first = found.chosen[0]
    top = max(found.chosen, key=lambda run: run.improvement)
    many = f"{len(found.chosen)} runs" if len(found.chosen) > 1 else "one run"
    text = (
        f"The next {hours(found.budget_hours)} ({found.hours_are}) are best spent on {many}, which "
        f"would take {found.removed:.0%} off the variance of the forecast for the largest: "
    )
    if top is not first:
        text += f"first {_forecast_of(first)}; the most promising, {_forecast_of(top)}"
    else:
        text += _forecast_of(first)
    return (
        f"{text} {metric_name(best.metric)}, an expected gain of {number(top.improvement)} on the "
        f"best so far, {number(best.score)}."
    )


def _forecast_of(run: Candidate) -> str:
    reached = interval(run.forecast.value, run.forecast.low, run.forecast.high)
    return f"{describe(run)} ({hours(run.gpu_hours)}), forecast {reached}"


def describe(candidate: Candidate) -> str:
    """A run that was not made, in words."""
    seed = " with another seed" if candidate.repeats else ""
    return (
        f"{objective_name(candidate.objective)} {candidate.backbone} on "
        f"{share(candidate.data_fraction)} of the training wells, {candidate.passes} passes{seed}"
    )


def scaling_notes(
    best: ResultsRow | None, summary: Summary, next_runs: NextRuns | str
) -> list[str]:
    """What else the fits say, or cannot say, one sentence or two each."""
    notes = [_lead(best, summary)] if best is not None else []
    for found in summary.comparisons:
        pair = f"{objective_name(found.a)} and {objective_name(found.b)}"
        notes.append(f"{pair}: {found.crossing_text} {'' if found.paired else found.pairing}")
    notes += summary.refused
    for objective, scaling in summary.objectives.items():
        if not isinstance(scaling.back_test, str):
            notes.append(f"Back-test of {objective_name(objective)}: {scaling.back_test.text}")
        untuned = scaling.points.untuned
        if untuned:
            notes.append(
                f"The learning rate of {objective_name(objective)} was not tuned for "
                f"{listed(list(untuned))}: with a better one these might score higher."
            )
    if not isinstance(next_runs, str):
        notes += next_runs.warnings
    return [note.strip() for note in notes if note.strip()]


def _lead(best: ResultsRow, summary: Summary) -> str:
    """Whether the best configuration leads the next by more than seeds differ by."""
    scaling = summary.objectives.get(best.objective)
    if scaling is None:
        return ""
    means, seeds, place = _of_best(best, scaling)
    rest = [other for other in range(len(means)) if other != place]
    if not rest:
        return ""
    second = max(rest, key=lambda other: means[other])
    lead = difference_text(means[place] - means[second], scaling.noise, seeds[place], seeds[second])
    if lead is None:
        return ""
    backbone, data_fraction, _ = scaling.points.keys[second]
    name = objective_name(best.objective)
    return f"The best {name} and {name} {backbone} on {share(data_fraction)} are close. {lead}"


def _of_best(best: ResultsRow, scaling: ObjectiveScaling) -> tuple[list[float], list[int], int]:
    """Mean score and seeds of each configuration, and which one the best trial is of."""
    points = scaling.points
    means = points.means(points.column("score")).tolist()
    seeds = [len(group) for group in points.by_configuration]
    same = [
        place
        for place, group in enumerate(points.by_configuration)
        if best.trial_id in {row.trial_id for row in group}
    ]
    # The best trial may be a twin that does not count beside the first: then its equal stands here.
    place = same[0] if same else max(range(len(means)), key=lambda place: means[place])
    return means, seeds, place
