"""The tables of a report that hold fits, comparisons, forecasts and next runs, as texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from phenoscale.reports.report_tables import Table
from phenoscale.scaling.points import AXES
from phenoscale.wording import (
    hours,
    interval,
    law_name,
    number,
    objective_name,
    share,
    signed,
    significant,
)

if TYPE_CHECKING:
    from phenoscale.scaling.next_runs import NextRuns
    from phenoscale.scaling.summary import ObjectiveScaling, Summary

Scaling = Mapping[str, "ObjectiveScaling"]


def comparisons_table(summary: Summary) -> Table:
    """Which of two objectives has the steeper slope, for each pair that could be compared."""
    rows = []
    for found in summary.comparisons:
        verdict = "not shown"
        if found.difference.excludes_zero:
            verdict = objective_name(found.a if found.difference.value > 0 else found.b)
        tuned = "-"
        if found.untuned:
            tuned = "too few"
            if found.tuned_difference is not None:
                difference = found.tuned_difference
                tuned = signed(difference.value, difference.low, difference.high)
        rows.append(
            (
                f"{objective_name(found.a)} less {objective_name(found.b)}",
                *(
                    signed(slope.value, slope.low, slope.high)
                    for slope in (found.slope_a, found.slope_b, found.difference)
                ),
                f"{found.p_value:.3g}",
                verdict,
                str(found.paired) if found.paired else "not in pairs",
                tuned,
            )
        )
    return Table(
        label="Slopes compared",
        columns=(
            "score per decade of FLOPs",
            "slope of the first",
            "of the second",
            "difference [95%]",
            "p",
            "steeper",
            "configurations in pairs",
            "difference, tuned trials alone",
        ),
        rows=rows,
        kind="wide",
    )


def slopes_table(scaling: Scaling) -> Table:
    """Slope of a straight line of the score, by objective and axis."""
    rows = [
        (
            objective_name(objective),
            *(
                signed(slope.value, slope.low, slope.high)
                if (slope := found.slopes.get(name)) is not None
                else "-"
                for name in AXES
            ),
            str(found.points.num_configurations),
            str(len(found.points.rows)),
        )
        for objective, found in scaling.items()
    ]
    return Table(
        label="Slopes by objective",
        columns=(
            "score per decade [95%] of",
            *AXES.values(),
            "configurations",
            "trials",
        ),
        rows=rows,
        kind="wide",
    )


def laws_table(scaling: Scaling) -> Table:
    """Every law that was fitted, with what the choice hung on."""
    rows = []
    for objective, found in scaling.items():
        choices = [(f"score by {title}", found.choices.get(a)) for a, title in AXES.items()]
        choices.append(("held-out loss by training FLOPs", found.loss))
        for what, choice in choices:
            if choice is None or isinstance(choice, str):
                continue
            for fit in choice.fits:
                rows.append(
                    (
                        f"{objective_name(objective)}, {what}",
                        law_name(fit.law),
                        "yes" if fit is choice.chosen else "",
                        f"{fit.cv_error:.3g}",
                        f"{fit.aicc:.1f}",
                        ", ".join(
                            f"{name} {value:.4g}" + " (at its bound)" * (name in fit.at_bound)
                            for name, value in fit.parameters.items()
                        ),
                    )
                )
    return Table(
        label="Laws",
        columns=("what", "law", "chosen", "leave-one-out error", "AICc", "parameters"),
        rows=rows,
        kind="wide",
    )


def next_runs_table(found: NextRuns) -> Table:
    """What could be run next, those that were chosen first."""
    chosen = {id(candidate) for candidate in found.chosen}
    ranked = [*found.chosen, *(c for c in found.candidates if id(c) not in chosen)][:12]
    rows = [
        (
            f"{objective_name(c.objective)} {c.backbone}",
            "yes" if id(c) in chosen else "",
            share(c.data_fraction),
            f"{c.passes:g}",
            f"{c.seed}, again" if c.repeats else str(c.seed),
            f"{c.flops:.2e}",
            hours(c.gpu_hours),
            interval(c.forecast.value, c.forecast.low, c.forecast.high),
            f"{c.improvement:+.3f}",
            f"{c.uncertainty:.0%}",
            f"{c.beyond:.3g}x" if c.beyond > 1 else "no",
            c.lr_source,
        )
        for c in ranked
    ]
    return Table(
        label="What to run next",
        columns=(
            "run",
            "chosen",
            "data",
            "passes",
            "seed",
            "training FLOPs",
            "time",
            "forecast [95%]",
            "expected gain of the best",
            "variance removed at the target",
            "beyond what was measured",
            "learning rate",
        ),
        rows=rows,
        kind="wide",
    )


def parametric_table(scaling: Scaling) -> Table:
    """Named values of L(N, D) by objective, and how the best size and data grow with compute."""
    rows = []
    for objective, found in scaling.items():
        fit = found.parametric
        if isinstance(fit, str):
            continue
        values = [fit.E, fit.A, fit.B, fit.alpha, fit.beta]
        iso = found.iso_flop
        if not isinstance(iso, str):
            values += [iso.exponent_parameters, iso.exponent_crops]
        cells = [significant(v.value, v.low, v.high) for v in values]
        cells += ["-"] * (7 - len(cells))
        rows.append((objective_name(objective), *cells, str(fit.num_points)))
    names = ("E", "A", "B", "alpha", "beta", "a of N* ~ C^a", "b of D* ~ C^b", "configurations")
    columns = ("L = E + A / N^alpha + B / D^beta", *names)
    return Table(label="L(N, D)", columns=columns, rows=rows, kind="wide")


def iso_flop_table(scaling: Scaling) -> Table:
    """Parameters and crops of least loss for compute budgets, and whether both ways agree."""
    words = {True: "yes", False: "no", None: "cannot be said"}
    rows = []
    for objective, found in scaling.items():
        iso = found.iso_flop
        if isinstance(iso, str):
            continue
        for place, budget in enumerate(iso.budgets.tolist()):
            ends = iso.parameters_low[place], iso.parameters_high[place]
            free = iso.free_parameters[place]
            rows.append(
                (
                    f"{objective_name(objective)} at {budget:.1e} FLOPs",
                    significant(iso.parameters[place], *ends),
                    f"{iso.crops[place]:.3g}",
                    f"{free:.3g}" if np.isfinite(free) else "-",
                    words[iso.agrees[place]],
                )
            )
    return Table(
        label="Compute-optimal size",
        columns=(
            "least held-out loss",
            "parameters by L(N, D) [95%]",
            "crops by L(N, D)",
            "parameters by a cubic",
            "agree",
        ),
        rows=rows,
        kind="wide",
    )


def back_test_table(scaling: Scaling) -> Table:
    """Each forecast of the back-test beside what was measured."""
    rows = []
    for objective, found in scaling.items():
        if isinstance(found.back_test, str):
            continue
        for case in found.back_test.cases:
            rows.append(
                (
                    f"{objective_name(objective)} {case.configuration}",
                    f"{case.flops:.2e}",
                    interval(case.interval.value, case.interval.low, case.interval.high),
                    number(case.observed),
                    "yes" if case.held else "no",
                )
            )
    columns = ("run", "training FLOPs", "forecast [95%]", "scored", "interval held")
    return Table(label="Back-test", columns=columns, rows=rows)
