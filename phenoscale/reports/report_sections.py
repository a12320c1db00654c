"""The sections of a study's report: what stands under each heading, and what cannot be said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from phenoscale.reports.figures import Figure
from phenoscale.reports.report_methods import methods
from phenoscale.reports.report_parts import Section
from phenoscale.reports.report_tables import (
    differences_table,
    failures_table,
    nuisances_table,
    overhead_table,
    readouts_table,
    transfer_table,
    trials_table,
    twins_table,
)
from phenoscale.reports.scaling_sections import scaling_sections, score_sections
from phenoscale.reports.study_report import StudyRecord, panels, study_facts
from phenoscale.scaling.next_runs import NextRuns

Figures = Mapping[str, Sequence[Figure]]


def study_sections(
    record: StudyRecord, figures: Figures, next_runs: NextRuns | str
) -> tuple[Section, ...]:
    """All sections in the order of the page.

    Args:
        record: the study.
        figures: by section, as `make_figures` has them, and `maps`.
        next_runs: what to run next, or why that is not known.
    """
    sections = [
        Section(
            id="baselines",
            title="The best trial against the baselines",
            tables=(differences_table(record.comparisons),),
            texts=_unless(record.comparisons.get("differences"), "Nothing was compared."),
        ),
        Section(id="study", title="What was studied", facts=tuple(study_facts(record))),
    ]
    if any(not row.is_baseline for row in record.rows):
        sections += score_sections(record, figures, next_runs)
        sections += scaling_sections(record.summary, figures)
    sections += _other_sections(record, figures)
    sections += _table_sections(record)
    sections.append(
        Section(
            id="methods",
            title="How each number was computed",
            facts=tuple(methods(record, bool(figures["maps"]))),
            folded="Definitions",
        )
    )
    return tuple(sections)


def _other_sections(record: StudyRecord, figures: Figures) -> list[Section]:
    sections = []
    if figures["transfer"]:
        sections.append(
            Section(
                id="transfer",
                title="Channel generalisation: another laboratory's screen",
                figures=tuple(figures["transfer"]),
                tables=(transfer_table(record.transfer),),
            )
        )
    if figures["loss"]:
        sections.append(
            Section(
                id="curves",
                title="Loss curves",
                texts=(
                    "Each objective has a loss of its own kind: compare curves within a figure, "
                    "not between figures.",
                ),
                figures=tuple(figures["loss"]),
                folded="Training loss by step",
            )
        )
    if figures["maps"] and record.best is not None:
        trial = record.best.trial_id
        sections.append(
            Section(
                id="map",
                title="The perturbation map of the best trial",
                texts=(
                    f"{trial}, the headline read-out. `phenoscale map show GENE --map "
                    f"trials/{trial}` lists a gene's neighbours, in the folder of this report.",
                ),
                figures=tuple(figures["maps"]),
                full_width=True,
            )
        )
    pictures = panels(record)
    nothing = "No trial left a picture: only trials that reconstruct crops have one."
    sections.append(
        Section(
            id="reconstructions",
            title="Original, masked, reconstructed",
            texts=_unless(pictures, nothing),
            pictures=pictures,
        )
    )
    return sections


def _table_sections(record: StudyRecord) -> list[Section]:
    rows, links = record.rows, {}
    texts: tuple[str, ...] = ()
    if record.mirror is not None:
        links = record.mirror.links
        texts = ("Names lead to the trials in MLflow.",)
        if not record.mirror.has_server:
            texts = (
                f"Names lead to the trials in MLflow while `phenoscale ui {record.name}` runs, "
                "started in the folder that holds the study.",
            )
    readouts, nuisances = readouts_table(rows), nuisances_table(rows)
    twins, failures = (
        twins_table(record.comparisons),
        failures_table(record.failures, record.without_paths),
    )
    sections = [
        Section(
            id="trials",
            title="All trials and baselines",
            texts=texts,
            tables=(trials_table(rows, links),),
            folded=f"{len(rows)} rows, all columns",
        ),
        Section(
            id="readouts",
            title="Read-outs",
            texts=("The headline read-out was fixed before training; the others are to compare.",),
            tables=(readouts,),
            folded="Scores by read-out",
        ),
        Section(
            id="alignment",
            title="Alignment and nuisance",
            texts=(
                "The headline score under each alignment, for alignment alone can decide a "
                "conclusion; and how well a linear classifier tells from the aligned negative "
                "controls what should not matter. Values near chance are good.",
            ),
            tables=(nuisances,),
            folded="Scores by alignment, and nuisance",
        ),
        Section(
            id="twins",
            title="Twins: the same training on other workers",
            texts=_unless(twins.rows, "This study has no twins."),
            tables=(twins,),
        ),
        Section(
            id="overhead",
            title="Overhead of the grid",
            texts=(
                "Wall seconds that a trial held its slot beyond training, embedding and scoring.",
            ),
            tables=(overhead_table(rows),),
        ),
        Section(
            id="failed",
            title="Failed trials",
            texts=_unless(failures.rows, "None."),
            tables=(failures,),
        ),
    ]
    empty = {"trials": rows, "readouts": readouts.rows, "alignment": nuisances.rows}
    return [section for section in sections if empty.get(section.id, True)]


def _unless(there: object, text: str) -> tuple[str, ...]:
    return () if there else (text,)
