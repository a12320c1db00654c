"""Would the forecast have held? The largest runs, forecast from the smaller ones."""

from __future__ import annotations

import dataclasses

import numpy as np

from phenoscale.maps.interval import Interval, percentile_interval
from phenoscale.scaling.forecast import new_runs, possible
from phenoscale.scaling.laws import choose_law
from phenoscale.scaling.points import Points
from phenoscale.wording import number, share

_LEAST_BELOW = 3  # a straight line and one more, without which it has no interval
_SAME_COMPUTE = np.log10(1.01)  # runs within 1% of one another stand on one side of the cut


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One configuration above the cut."""

    configuration: str
    """Backbone and data fraction."""
    flops: float
    """Training FLOPs."""
    observed: float
    """Its score, mean over its seeds."""
    interval: Interval
    """Forecast of a new run there, from the configurations below the cut alone."""
    held: bool
    """Whether the score lies in the interval."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BackTest:
    """Forecasts of the largest runs beside what they measured."""

    cut_flops: float
    """Training FLOPs up to which configurations were fitted."""
    fitted: int
    """Configurations up to the cut."""
    law: str
    """The law that they chose."""
    cases: tuple[Case, ...]
    """The configurations above the cut, in order of compute."""
    error: float
    """Root mean square of forecast less score."""
    naive_error: float
    """The same of forecasting the best score up to the cut for all."""
    held: int
    """How many scores lie in their intervals."""
    text: str
    """The same in one sentence."""


def back_test(
    points: Points, *, cut: float | None = None, rounds: int = 1000, seed: int = 0
) -> BackTest:
    """Fits the configurations below a cut of compute and forecasts those above it.

    Args:
        points: of one objective.
        cut: training FLOPs; by default the upper third or so of the configurations lie above it,
            at least three below.
        rounds: of the bootstrap.
        seed: of the rounds.

    Raises:
        ValueError: if there are too few configurations on either side of the cut.
    """
    x = points.log10("training_flops")
    score = points.means(points.column("score"))
    below = x <= (_default_cut(x) if cut is None else np.log10(cut) + 1e-9)
    if below.sum() < _LEAST_BELOW or below.all():
        raise ValueError(
            f"{below.sum()} configurations lie up to the cut and {(~below).sum()} above it; a "
            f"back-test needs at least {_LEAST_BELOW} and 1. Give another cut."
        )
    choice = choose_law(x[below], score[below], kind="score")
    above = np.flatnonzero(~below)[np.argsort(x[~below], kind="stable")]
    draws = new_runs(choice, x[above], rounds=rounds, seed=seed)
    values = possible(choice.chosen.predict(x[above]), "score")
    cases = []
    for place, configuration in enumerate(above):
        interval = percentile_interval(values[place], draws[:, place])
        backbone, data_fraction, _ = points.keys[configuration]
        cases.append(
            Case(
                configuration=f"{backbone} on {share(data_fraction)} of the training wells",
                flops=float(10 ** x[configuration]),
                observed=float(score[configuration]),
                interval=interval,
                held=bool(interval.low <= score[configuration] <= interval.high),
            )
        )
    test = BackTest(
        cut_flops=float(10 ** x[below].max()),
        fitted=int(below.sum()),
        law=choice.chosen.law,
        cases=tuple(cases),
        error=float(np.sqrt(np.mean((values - score[above]) ** 2))),
        naive_error=float(np.sqrt(np.mean((score[below].max() - score[above]) ** 2))),
        held=sum(case.held for case in cases),
        text="",
    )
    return dataclasses.replace(test, text=_text(test))


def _default_cut(x: np.ndarray) -> float:
    """log10 of the compute that parts off the number nearest to a third, but never equal runs."""
    ordered = np.sort(x)
    cuts = [
        place
        for place in range(_LEAST_BELOW, len(x))
        if ordered[place] - ordered[place - 1] > _SAME_COMPUTE
    ]
    if not cuts:
        raise ValueError(
            f"{len(x)} configurations, with at least {_LEAST_BELOW} up to a cut of compute, leave "
            f"none above it; a back-test needs {_LEAST_BELOW + 1} or more of different compute."
        )
    place = min(cuts, key=lambda cut: abs(len(x) - cut - len(x) / 3))
    return float(ordered[place - 1])


def _text(test: BackTest) -> str:
    verdict = "better" if test.error < test.naive_error else "no better"
    return (
        f"From the {test.fitted} configurations up to {test.cut_flops:.1e} training FLOPs, "
        f"{test.law} forecast the {len(test.cases)} above with an error of {number(test.error)}, "
        f"{verdict} than taking the best score below the cut for all ({number(test.naive_error)}); "
        f"{test.held} of {len(test.cases)} intervals held."
    )
