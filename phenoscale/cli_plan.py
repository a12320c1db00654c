"""The verbs `phenoscale plan` and `phenoscale forecast`: what to run next, what it would score."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from phenoscale.cli_study import StudyPlace, study_dir
from phenoscale.terminal import clear_errors, table_console

if TYPE_CHECKING:
    from phenoscale.planning.run_forecast import RunForecast
    from phenoscale.scaling.next_runs import NextRuns

AsJson = Annotated[bool, typer.Option("--json", help="JSON instead of a table.")]


def plan(
    study: StudyPlace,
    budget: Annotated[
        float | None,
        typer.Option(help="GPU-hours to spend; by default what the study's trials cost."),
    ] = None,
    by: Annotated[
        Literal["uncertainty", "improvement"],
        typer.Option(
            help="What each hour is to buy: certainty of the target's forecast, or a better score."
        ),
    ] = "uncertainty",
    backbone: Annotated[
        list[str] | None,
        typer.Option(
            help="Of the catalogue; repeat for more. By default those of the study and, of each "
            "patch size, the next larger."
        ),
    ] = None,
    passes_factor: Annotated[
        list[float] | None,
        typer.Option(min=0.01, help="Times the study's passes; repeat for more. By default 1, 2."),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            help="Backbone whose forecast is to be sharpened, at any cost of its own; by default "
            "the largest candidate within the budget."
        ),
    ] = None,
    measured: Annotated[
        bool,
        typer.Option("--measured", help="Count hours at the speed of the study's own trials."),
    ] = False,
    out: Annotated[Path, typer.Option(help="Experiment file to write.")] = Path("next_runs.py"),
    force: Annotated[bool, typer.Option(help="Replace that file.")] = False,
    rows: Annotated[int, typer.Option(min=1, help="Candidates to print.")] = 20,
    rounds: Annotated[int, typer.Option(help="Of the bootstrap behind forecasts.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Rank what could be run next by what an hour of it buys, and write it as an experiment."""
    with clear_errors():
        from phenoscale.planning.catalogue import PASSES_FACTORS
        from phenoscale.planning.plan import plan_study, read_study
        from phenoscale.planning.plan_file import write_experiment

        directory = study_dir(study)
        found = plan_study(
            directory,
            budget_hours=budget,
            by=by,
            backbones=backbone or (),
            passes_factors=passes_factor or PASSES_FACTORS,
            target_backbone=target,
            measured_speed=measured,
            rounds=rounds,
            seed=seed,
        )
        planned = read_study(directory)
        path = write_experiment(
            found, out, study_name=planned.name, question=planned.question, replace=force
        )
        if as_json:
            typer.echo(json.dumps(found.as_dict(), indent=1))
            return
        _print_plan(found, planned.name, rows)
        typer.echo(f"{path}: python {path} {study} --dry-run")


def forecast(
    study: StudyPlace,
    objective: Annotated[str, typer.Option(help="Label of a measured objective, such as mae.")],
    backbone: Annotated[str, typer.Option(help="A name in the table of backbones.")],
    data_fraction: Annotated[float, typer.Option(help="Share of the wells.")] = 1.0,
    passes: Annotated[
        int | None, typer.Option(help="Visits of every site; by default the most measured.")
    ] = None,
    rounds: Annotated[int, typer.Option(help="Of the bootstrap.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Say what a run that was not made would score, and how far that is to be trusted."""
    with clear_errors():
        from phenoscale.planning.run_forecast import forecast_run

        found = forecast_run(
            study_dir(study),
            objective=objective,
            backbone=backbone,
            data_fraction=data_fraction,
            passes=passes,
            rounds=rounds,
            seed=seed,
        )
        if as_json:
            whole = dataclasses.asdict(found)
            typer.echo(json.dumps(whole | {"trial": found.trial.id}, indent=1))
            return
        for line in _forecast_lines(found):
            typer.echo(line)


def _print_plan(plan: NextRuns, name: str, rows: int) -> None:
    """The table of candidates, and below it what it means."""
    from rich.table import Table

    from phenoscale.wording import interval, number, objective_name, share

    console = table_console()
    picked = {candidate.trial.id: place for place, candidate in enumerate(plan.chosen, start=1)}
    table = Table(
        title=f"Next runs of {name}: {plan.budget_hours:.3g} {plan.hours_are}, ranked by "
        f"{plan.by} per hour",
        title_justify="left",
    )
    table.add_column("run", justify="right")
    table.add_column("trial")
    for head in ("data", "passes", "seed", "hours", "FLOPs", "forecast", "improvement",
                 "uncertainty", "beyond", "rate"):  # fmt: skip
        table.add_column(head, justify="right")
    shown = [
        candidate
        for place, candidate in enumerate(plan.candidates)
        if place < rows or candidate.trial.id in picked
    ]
    for candidate in shown:
        seen = candidate.forecast
        table.add_row(
            str(picked.get(candidate.trial.id, "")),
            f"{objective_name(candidate.objective)} {candidate.backbone}",
            share(candidate.data_fraction),
            str(candidate.passes),
            "again, " * candidate.repeats + str(candidate.seed),
            f"{candidate.gpu_hours:.2g}",
            f"{candidate.flops:.1e}",
            interval(seen.value, seen.low, seen.high),
            number(candidate.improvement),
            f"-{candidate.uncertainty:.0%}",
            f"{candidate.beyond:.2g}x" if candidate.beyond > 1 else "-",
            candidate.lr_source,
        )
    console.print(table)
    hidden = len(plan.candidates) - len(shown)
    notes = [
        f"run: the order in which {len(plan.chosen)} are chosen, "
        f"{sum(candidate.gpu_hours for candidate in plan.chosen):.3g} hours in all; together they "
        f"remove {plan.removed:.0%} of the variance of the target's forecast.",
        f"uncertainty: what one run alone removes of that of {plan.target}.",
        f"improvement: expected gain of one run over the best score so far, {plan.best}.",
        "beyond: times the largest compute, size or data measured, whichever is most.",
        "again: another seed of a measured trial.",
        *(f"{objective}: {reason}" for objective, reason in plan.forms.items()),
        *plan.left_out,
        *([f"{hidden} more candidates are not shown (--rows)."] if hidden else []),
    ]
    for note in notes:
        console.print(note, style="dim", highlight=False, markup=False)
    for warning in plan.warnings:
        console.print(warning, style="yellow", highlight=False, markup=False)


def _forecast_lines(found: RunForecast) -> list[str]:
    from phenoscale.planning.plan_model import run_text
    from phenoscale.scaling.forecast import FAR
    from phenoscale.wording import interval

    seen, range_text = found.interval, "within the compute, size and data that were measured"
    if found.beyond > 1:
        range_text = f"{found.beyond:.3g} times what was measured, in compute, size or data"
    lines = [
        f"{run_text(found.trial)}: {found.parameters:,} parameters, {found.crops:,} crops, "
        f"{found.flops:.2e} training FLOPs, {range_text}",
        f"score by size and data ({found.form}): {interval(seen.value, seen.low, seen.high)}, 95% "
        "interval of a new run",
    ]
    if found.by_compute is not None:
        seen = found.by_compute.interval
        lines.append(
            f"score by compute alone ({found.by_compute.law}): "
            f"{interval(seen.value, seen.low, seen.high)}"
        )
    lines.append(found.reason)
    warnings = list(found.warnings)
    if found.by_compute is not None and found.by_compute.warning and found.beyond <= FAR:
        warnings.append(found.by_compute.warning)
    return lines + warnings
