"""A study's directory -> what to run next."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from phenoscale.backbones import backbone as look_up
from phenoscale.bill import Line, ScreenSize, bill, bill_line
from phenoscale.config import Study, Trial
from phenoscale.maps.interval import percentile_interval
from phenoscale.planning.catalogue import (
    PASSES_FACTORS,
    Measured,
    Speed,
    candidates,
    cell,
    hours,
    hours_are,
    speed_of,
    unplaced,
)
from phenoscale.planning.plan_model import (
    Model,
    Side,
    beyond,
    model_of,
    run_text,
    warnings_of,
)
from phenoscale.results import ROW_FILE, ResultsRow, read_rows
from phenoscale.scaling.forecast import FAR
from phenoscale.scaling.next_runs import (
    Candidate,
    Gains,
    NextRuns,
    Rule,
    choose_runs,
    improvement_gains,
    variance_gains,
)
from phenoscale.scaling.points import Points, points_of
from phenoscale.scaling.surface import places_of
from phenoscale.scaling.surface_choice import choose_surface
from phenoscale.study_files import STUDY_FILE, TRIAL_FILE
from phenoscale.wording import objective_name


def read_study(study_dir: Path) -> Study:
    """The study that a directory holds: its trials that have a row, and how they are scored.

    Raises:
        ValueError: if there is no such study, or another version wrote it.
    """
    described = _described(study_dir)
    trials = [_read_trial(path.parent) for path in _files(study_dir, ROW_FILE)]
    if not trials:
        raise ValueError(f"{study_dir} holds no trial with a row yet; run its study first.")
    names = ("name", "question", "readout", "metric", "every_block", "bootstrap_rounds")
    return Study(trials=tuple(trials), **{name: _field(described, name) for name in names})


def read_size(study_dir: Path) -> ScreenSize:
    """The counts of a study's screen that costs depend on; errors as `read_study`."""
    return ScreenSize(**_field(_described(study_dir), "size"))


def read_command(study_dir: Path) -> str:
    """How the study was run, as its report says; errors as `read_study`."""
    return str(_field(_described(study_dir), "command"))


def read_measured(study_dir: Path, points: Points) -> Measured:
    """The trials behind the rows of one objective; errors as `read_study`."""
    begun = [_read_trial(path.parent) for path in _files(study_dir, TRIAL_FILE)]
    by_id = {trial.id: trial for trial in begun}
    if unknown := [row.trial_id for row in points.rows if row.trial_id not in by_id]:
        raise ValueError(
            f"The rows of {', '.join(unknown)} have no {TRIAL_FILE} of that trial beside them, so "
            "nothing can be run like them; was the study copied in parts?"
        )
    return Measured(
        trials=tuple(by_id[row.trial_id] for row in points.rows),
        rows=points.rows,
        begun=frozenset(unplaced(trial).id for trial in begun),
    )


def plan_study(
    study_dir: Path,
    *,
    budget_hours: float | None = None,
    by: Rule = "uncertainty",
    backbones: Sequence[str] = (),
    passes_factors: Sequence[float] = PASSES_FACTORS,
    target_backbone: str | None = None,
    measured_speed: bool = False,
    rounds: int = 1000,
    seed: int = 0,
) -> NextRuns:
    """What to run next in a study.

    Args:
        study_dir: directory of the study.
        budget_hours: what may be spent; None for as much as its trained trials cost.
        by: what is bought per hour: certainty of the target's forecast, or an expected improvement
            of the best score.
        backbones: of the catalogue; none for those measured and the next larger, as far as their
            runs lie within ten times of what was measured.
        passes_factors: times the passes that were measured.
        target_backbone: whose forecast is to be sharpened, on all data and with most passes of the
            catalogue, whatever it costs; None for the largest candidate within the budget.
        measured_speed: whether hours are those of the study's own trials, not of an A100.
        rounds: of the bootstrap behind each forecast.
        seed: of the bootstrap.

    Raises:
        ValueError: if the study cannot be read, no objective has enough configurations, or the
            budget buys nothing.
    """
    for name in (*backbones, *([target_backbone] if target_backbone else [])):
        look_up(name)
    rows, screen = read_rows(study_dir), read_size(study_dir)
    billed = {line.trial.id: line for line in bill(read_study(study_dir), screen)}
    speed = speed_of(billed, rows) if measured_speed else None
    trained = [row for row in rows if not row.is_baseline]
    spent = sum(hours(billed[row.trial_id], speed) for row in trained)
    budget = spent if budget_hours is None else budget_hours
    if not budget > 0:
        raise ValueError(f"The budget is {budget:g} hours; give a positive number.")
    sides, left_out = _sides(
        study_dir, rows, screen, budget, speed, backbones, passes_factors, target_backbone
    )
    if not sides:
        raise ValueError(f"Nothing can be planned. {' '.join(left_out) or 'Nothing was trained.'}")
    best = max(trained, key=lambda row: row.score)
    return _ranked(sides, best, budget, by, speed, left_out, rounds, seed)


def _sides(
    study_dir: Path,
    rows: Sequence[ResultsRow],
    screen: ScreenSize,
    budget: float,
    speed: Speed | None,
    backbones: Sequence[str],
    passes_factors: Sequence[float],
    target_backbone: str | None,
) -> tuple[list[Side], tuple[str, ...]]:
    """The objectives that can be planned for, and sentences on all that was left out."""
    sides: list[Side] = []
    left_out: list[str] = []
    for points in points_of(rows).values():
        try:
            measured = read_measured(study_dir, points)
            lines, reasons = candidates(
                measured, screen, backbones=backbones, passes_factors=passes_factors
            )
            left_out += reasons
            if not backbones:  # whoever names one wants to know, however far it is
                lines, far = _within_reach(points, lines)
                left_out += far
            affordable = [line for line in lines if hours(line, speed) <= budget]
            left_out += _too_dear(points.objective, lines, affordable, budget, speed)
            if not affordable:
                continue
            target = max(affordable, key=lambda line: line.training_flops)
            if target_backbone is not None:
                target = _named_target(measured, screen, target_backbone, passes_factors)
            choice = choose_surface(places_of(points), points.means(points.column("score")))
            sides.append(
                Side(
                    points=points,
                    measured=measured,
                    choice=choice,
                    lines=tuple(affordable),
                    target=target,
                )
            )
        except ValueError as error:
            left_out.append(f"{objective_name(points.objective)}: {error}")
    return sides, tuple(left_out)


def _within_reach(points: Points, lines: Sequence[Line]) -> tuple[list[Line], list[str]]:
    """The candidates whose forecasts can be trusted at all, and a sentence on the others."""
    near = [line for line in lines if beyond(points, line) <= FAR]
    if len(near) == len(lines):
        return near, []
    far = sorted({line.trial.backbone for line in lines} - {line.trial.backbone for line in near})
    names = f" ({', '.join(far)})" if far else ""
    return near, [
        f"{objective_name(points.objective)}: {len(lines) - len(near)} candidates lie more than "
        f"{FAR:.0f} times beyond the compute, size or data measured{names}, where nothing tests a "
        "forecast; name their backbone to rank them too."
    ]


def _too_dear(
    objective: str,
    lines: Sequence[Line],
    affordable: Sequence[Line],
    budget: float,
    speed: Speed | None,
) -> list[str]:
    """A sentence on candidates that cost more than the budget."""
    if len(affordable) == len(lines):
        return []
    cheapest = min(hours(line, speed) for line in lines)
    number = len(lines) - len(affordable)
    text = f"{objective_name(objective)}: {number} of {len(lines)} candidates cost more than "
    text += f"{budget:.3g} hours"
    return [text + ("." if affordable else f"; the cheapest takes {cheapest:.3g}.")]


def _named_target(
    measured: Measured, screen: ScreenSize, backbone: str, passes_factors: Sequence[float]
) -> Line:
    """A backbone on all data, with the most passes of the catalogue."""
    passes = round(measured.passes[-1] * max(passes_factors))
    trial = cell(measured, backbone=backbone, data_fraction=1.0, passes=passes)
    return bill_line(trial, screen)


def _ranked(
    sides: Sequence[Side],
    best: ResultsRow,
    budget: float,
    by: Rule,
    speed: Speed | None,
    left_out: tuple[str, ...],
    rounds: int,
    seed: int,
) -> NextRuns:
    """What each candidate is worth, and which of them to run."""
    model = model_of(sides)
    forecasts = [side.forecasts(side.lines, rounds, seed) for side in sides]
    values = np.concatenate([value for value, _ in forecasts])
    draws = np.concatenate([drawn for _, drawn in forecasts], axis=1)
    removed = model.removed_alone()
    improvement = improvement_gains(draws, best.score)
    gains = improvement if by == "improvement" else _variance_gains(model)
    found = [
        Candidate(
            trial=line.trial,
            flops=line.training_flops,
            gpu_hours=hours(line, speed),
            forecast=percentile_interval(value, drawn),
            improvement=float(better),
            uncertainty=float(share),
            beyond=beyond(side.points, line),
            repeats=side.measured.seeds_of(line.trial) > 0,
        )
        for (side, line), value, drawn, better, share in zip(
            [(side, line) for side in sides for line in side.lines],
            values,
            draws.T,
            improvement(()),
            removed,
            strict=True,
        )
    ]
    costs = np.array([one.gpu_hours for one in found])
    chosen = choose_runs(gains, costs, budget)
    runs = [(found[place].trial, found[place].beyond) for place in chosen]
    return NextRuns(
        budget_hours=budget,
        hours_are=hours_are(speed),
        by=by,
        candidates=tuple(found[i] for i in np.argsort(-gains(()) / costs, kind="stable")),
        chosen=tuple(found[place] for place in chosen),
        target="; ".join(_target_text(side, speed) for side in sides),
        best=f"{best.score:.3f} ({best.trial_id})",
        removed=float(1 - model.variances(chosen).sum() / model.variances().sum()),
        forms={side.points.objective: side.choice.reason for side in sides},
        left_out=left_out,
        warnings=warnings_of(sides, runs),
    )


def _variance_gains(model: Model) -> Gains:
    return variance_gains(model.covariance, model.gradients, model.noise, model.targets)


def _target_text(side: Side, speed: Speed | None) -> str:
    line = side.target
    return (
        f"{run_text(line.trial)} ({line.training_flops:.2g} FLOPs, {hours(line, speed):.2g} hours)"
    )


def _described(study_dir: Path) -> dict[str, Any]:
    """Content of study.json."""
    path = study_dir / STUDY_FILE
    if not path.is_file():
        raise ValueError(
            f"{study_dir} is not a study: it has no {STUDY_FILE}. Give the directory that a study "
            "was written to, for example runs/quickstart-seed0."
        )
    found = json.loads(path.read_text())
    assert isinstance(found, dict)
    return found


def _field(described: dict[str, Any], name: str) -> Any:
    if name not in described:
        raise ValueError(
            f"{STUDY_FILE} has no {name}: an earlier version wrote it. Run the study's command "
            f"again ({described.get('command', 'unknown')}); trials that have a row do not run."
        )
    return described[name]


def _files(study_dir: Path, name: str) -> list[Path]:
    return sorted((study_dir / "trials").glob(f"*/{name}"))


def _read_trial(trial_dir: Path) -> Trial:
    path = trial_dir / TRIAL_FILE
    try:
        return Trial.from_dict(json.loads(path.read_text()))
    except (OSError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} cannot be read as a trial of this version ({type(error).__name__}: {error}). "
            "Go on with the version that wrote it, or give another study."
        ) from error
