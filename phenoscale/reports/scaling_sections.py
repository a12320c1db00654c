"""The sections of a report that hold scores, fits and forecasts, or why there are none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from phenoscale.reports.figures import Figure
from phenoscale.reports.report_parts import Section
from phenoscale.reports.scaling_tables import (
    back_test_table,
    comparisons_table,
    iso_flop_table,
    laws_table,
    next_runs_table,
    parametric_table,
    slopes_table,
)
from phenoscale.reports.score_figures import how_to_read
from phenoscale.reports.study_report import StudyRecord
from phenoscale.scaling.next_runs import NextRuns
from phenoscale.scaling.points import AXES
from phenoscale.scaling.summary import Summary
from phenoscale.wording import hours, listed, objective_name

Figures = Mapping[str, Sequence[Figure]]


def score_sections(
    record: StudyRecord, figures: Figures, next_runs: NextRuns | str
) -> list[Section]:
    """Scores against compute, data, size and cost, slopes, and what to run next."""
    scaling, summary = record.summary.objectives, record.summary
    compared = (
        "Whether slopes differ is asked on the same genes, and where they can be paired on the "
        "configurations that both have, so the slopes of the first table are of those alone."
    )
    found = [
        Section(
            id="compute",
            title="Score against training compute",
            figures=tuple(figures["compute"]),
            texts=(how_to_read(record.rows, scaling), *_refusals(summary, "training_flops")),
        ),
        Section(
            id="slopes",
            title="Which objective scales better",
            texts=(compared, *summary.refused) if len(scaling) > 1 else summary.refused,
            tables=(comparisons_table(summary), slopes_table(scaling)),
        ),
        Section(
            id="next",
            title="What to run next",
            texts=_next_texts(next_runs),
            tables=() if isinstance(next_runs, str) else (next_runs_table(next_runs),),
        ),
        Section(id="data", title="Score against data", figures=tuple(figures["data"])),
        Section(
            id="parameters",
            title="Score against parameters",
            figures=tuple(figures["parameters"]),
            texts=_refusals(summary, "num_parameters"),
        ),
        Section(id="cost", title="Score against cost", figures=tuple(figures["cost"])),
    ]
    if figures["databases"]:
        found.append(
            Section(
                id="databases",
                title="Score by database",
                figures=tuple(figures["databases"]),
            )
        )
    return found


def scaling_sections(summary: Summary, figures: Figures) -> list[Section]:
    """Losses, sizes and data for a budget, links, back-test, noise and laws."""
    scaling = summary.objectives

    def refused(field: str) -> tuple[str, ...]:
        whys = {name: getattr(found, field) for name, found in scaling.items()}
        return tuple(
            f"{objective_name(name)}: {why}" for name, why in whys.items() if isinstance(why, str)
        )

    agreement = tuple(
        f"{objective_name(name)}: {found.iso_flop.reason}"
        for name, found in scaling.items()
        if not isinstance(found.iso_flop, str)
    )
    noise = [(objective_name(name), " ".join(found.noise.text)) for name, found in scaling.items()]
    return [
        Section(
            id="held-out",
            title="Held-out loss against training compute",
            figures=tuple(figures["held_out"]),
            texts=refused("loss"),
        ),
        Section(
            id="size",
            title="Size and data for a compute budget",
            texts=(*refused("parametric"), *agreement),
            figures=tuple(figures["iso_flop"]),
            tables=(parametric_table(scaling), iso_flop_table(scaling)),
        ),
        Section(
            id="links",
            title="From loss to score",
            texts=refused("links"),
            figures=tuple(figures["links"]),
        ),
        Section(
            id="back-test",
            title="Back-test: would the forecast have held?",
            texts=refused("back_test"),
            figures=tuple(figures["back_test"]),
            tables=(back_test_table(scaling),),
        ),
        Section(id="noise", title="Noise", facts=tuple(noise)),
        Section(
            id="laws",
            title="Laws and residuals",
            figures=tuple(figures["residuals"]),
            tables=(laws_table(scaling),),
            folded="Every law that was fitted, and what the chosen ones leave",
        ),
    ]


def _next_texts(found: NextRuns | str) -> tuple[str, ...]:
    """How the next runs were ranked, what is not to be trusted, and what is not among them."""
    if isinstance(found, str):
        return (found,)
    bought = {
        "uncertainty": "certainty of the forecast for the target",
        "improvement": "expected gain of the best score",
    }
    return (
        f"Ranked by what an hour buys: {bought[found.by]}. Target: {found.target}. Together the "
        f"chosen remove {found.removed:.0%} of its variance. Time is in {found.hours_are}; the "
        f"budget, {hours(found.budget_hours)}, is what the study's trials cost. `phenoscale plan` "
        "asks with another budget and writes an experiment file.",
        *found.warnings,
        *found.left_out,
    )


def _refusals(summary: Summary, axis: str) -> tuple[str, ...]:
    """Why there is no law, or no interval of one, along an axis."""
    texts = []
    without = []
    for name, found in summary.objectives.items():
        choice = found.choices.get(axis)
        if isinstance(choice, str):
            texts.append(f"{objective_name(name)} has no law along {AXES[axis]}: {choice}")
        elif choice is not None and axis not in found.bands:
            without.append(objective_name(name))
    if without:
        texts.append(
            f"{listed(without)}: as many configurations as the law has parameters, so nothing is "
            "left to tell its interval by."
        )
    return tuple(texts)
