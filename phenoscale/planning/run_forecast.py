"""What a run that was not made would score: by its size and data, and by its compute alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from phenoscale.backbones import backbone as look_up
from phenoscale.bill import bill_line
from phenoscale.config import Trial
from phenoscale.maps.interval import Interval, percentile_interval
from phenoscale.planning.catalogue import cell
from phenoscale.planning.plan import read_measured, read_size
from phenoscale.planning.plan_model import Side, beyond, warnings_of
from phenoscale.results import read_rows
from phenoscale.scaling.forecast import Forecast, forecast
from phenoscale.scaling.laws import choose_law
from phenoscale.scaling.points import points_of
from phenoscale.scaling.surface import places_of
from phenoscale.scaling.surface_choice import choose_surface


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunForecast:
    """What one named run would score."""

    trial: Trial
    """The run."""
    parameters: int
    """Of its encoder."""
    crops: int
    """That it would see."""
    flops: float
    """Of its training."""
    interval: Interval
    """Its score by size and data, 95% interval of a new run."""
    form: str
    """Of that surface, as sentences name it."""
    reason: str
    """Why that form."""
    by_compute: Forecast | None
    """Its score by compute alone; None where compute tells nothing."""
    beyond: float
    """Times the largest compute, size or data of the objective that was measured; 1.0 inside."""
    warnings: tuple[str, ...]
    """What is not to be trusted."""


def forecast_run(
    study_dir: Path,
    *,
    objective: str,
    backbone: str,
    data_fraction: float = 1.0,
    passes: int | None = None,
    rounds: int = 1000,
    seed: int = 0,
) -> RunForecast:
    """What a run would score, by what its study measured.

    Args:
        study_dir: directory of the study.
        objective: label of a measured objective.
        backbone: name in the table of backbones.
        data_fraction: share of the wells.
        passes: visits of every site; None for the most that the objective was measured with.
        rounds: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        ValueError: if the objective was not measured or too little, or there can be no such run.
    """
    look_up(backbone)
    found = points_of(read_rows(study_dir))
    if objective not in found:
        raise ValueError(
            f"The study has no trained trial of {objective!r}; it has trials of "
            f"{', '.join(found) or 'no objective'}."
        )
    points = found[objective]
    measured = read_measured(study_dir, points)
    trial = cell(
        measured,
        backbone=backbone,
        data_fraction=data_fraction,
        passes=measured.passes[-1] if passes is None else passes,
    )
    line = bill_line(trial, read_size(study_dir))
    scores = points.means(points.column("score"))
    choice = choose_surface(places_of(points), scores)
    side = Side(points=points, measured=measured, choice=choice, lines=(line,), target=line)
    (value,), draws = side.forecasts((line,), rounds, seed)
    try:
        laws = choose_law(points.log10("training_flops"), scores, kind="score")
        by_compute = forecast(laws, flops=line.training_flops, rounds=rounds, seed=seed)
    except ValueError:  # a single compute, or fewer configurations than a line's interval needs
        by_compute = None
    times = beyond(points, line)
    return RunForecast(
        trial=trial,
        parameters=line.parameters,
        crops=line.crops,
        flops=line.training_flops,
        interval=percentile_interval(value, draws[:, 0]),
        form=choice.chosen.basis.label,
        reason=choice.reason,
        by_compute=by_compute,
        beyond=times,
        warnings=warnings_of([side], [(trial, times)]),
    )
