"""Everything that the rows of a study say about scaling, or why they cannot say it.

What a few rows cannot carry is refused by the function that was asked, in a sentence; here that
sentence stands in the place of the fit, so that a report can print it.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from phenoscale.maps.interval import Interval, percentile_interval
from phenoscale.results import ResultsRow
from phenoscale.scaling.back_test import BackTest, back_test
from phenoscale.scaling.iso_flop import IsoFlop, iso_flop
from phenoscale.scaling.laws import Choice, choose_law, fit_law
from phenoscale.scaling.links import Links, fit_links
from phenoscale.scaling.noise import Noise, beyond_residuals, gene_shifts, noise_of
from phenoscale.scaling.parametric import ParametricFit, fit_parametric
from phenoscale.scaling.points import AXES, Points, points_of
from phenoscale.scaling.slopes import Comparison, compare_slopes

ROUNDS = 1000
_BAND_POINTS = 60
_BEYOND = 3.0  # bands go on to this many times the largest value measured
Found = TypeVar("Found")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Band:
    """A fitted law along its axis, with the 95% interval of the law itself."""

    x: np.ndarray
    """(k,) values of the axis, not their logarithms."""
    value: np.ndarray
    """(k,) the law."""
    low: np.ndarray
    """(k,) lower end."""
    high: np.ndarray
    """(k,) upper end."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectiveScaling:
    """What the trials of one objective say; a text says why something is not known."""

    objective: str
    """Label of the objective."""
    points: Points
    """Its trials."""
    choices: dict[str, Choice | str]
    """Law of the score by axis."""
    bands: dict[str, Band]
    """The chosen laws by axis, where they have an interval."""
    slopes: dict[str, Interval]
    """Score gained per tenfold of each axis, by the straight line; missing where refused."""
    loss: Choice | str
    """Law of the held-out loss along compute."""
    parametric: ParametricFit | str
    """The held-out loss by parameters and crops, crops discounted for repeats."""
    iso_flop: IsoFlop | str
    """The best size and data for each compute."""
    links: Links | str
    """Compute to loss to score."""
    back_test: BackTest | str
    """How the smaller trials would have forecast the larger."""
    noise: Noise
    """How far scores scatter, and from what."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
    """What a study says about scaling."""

    objectives: dict[str, ObjectiveScaling]
    """By label."""
    comparisons: tuple[Comparison, ...]
    """Of each two objectives' slopes along compute."""
    refused: tuple[str, ...]
    """Why other comparisons, or all fits together, could not be made."""


def summarise(rows: Sequence[ResultsRow], samples: Mapping[str, Sequence[float]]) -> Summary:
    """Fits what can be fitted.

    Args:
        rows: of a study, baselines among them.
        samples: by trial id, the score on each bootstrap sample (`results.read_samples`).
    """
    try:
        points = points_of(rows, samples)
    except ValueError as error:
        return Summary(objectives={}, comparisons=(), refused=(str(error),))
    comparisons, refused = [], []
    for a, b in itertools.combinations(points.values(), 2):
        compared = _or_why(lambda a=a, b=b: compare_slopes(a, b, rounds=ROUNDS))  # type: ignore[misc]
        if isinstance(compared, str):
            refused.append(f"{a.objective} and {b.objective} cannot be compared: {compared}")
        else:
            comparisons.append(compared)
    return Summary(
        objectives={name: _objective(one) for name, one in points.items()},
        comparisons=tuple(comparisons),
        refused=tuple(refused),
    )


def _objective(points: Points) -> ObjectiveScaling:
    score = points.means(points.column("score"))
    samples = gene_shifts(points, rounds=ROUNDS)
    choices: dict[str, Choice | str] = {}
    bands: dict[str, Band] = {}
    slopes: dict[str, Interval] = {}
    for axis in AXES:
        x = points.log10(axis)
        choices[axis] = choice = _or_why(lambda x=x: choose_law(x, score, kind="score"))  # type: ignore[misc]
        if isinstance(choice, str):
            continue
        shifts = None if samples is None else beyond_residuals([x], [samples])[0]
        band = _or_why(lambda c=choice, s=shifts: _band(c, s))  # type: ignore[misc]
        slope = _or_why(lambda x=x, s=shifts: _slope(x, score, s))  # type: ignore[misc]
        if isinstance(band, Band) and isinstance(slope, Interval):
            bands[axis], slopes[axis] = band, slope
    compute = choices["training_flops"]
    loss = points.means(points.column("held_out_loss"))
    x = points.log10("training_flops")
    parametric = _or_why(lambda: _parametric(points))
    return ObjectiveScaling(
        objective=points.objective,
        points=points,
        choices=choices,
        bands=bands,
        slopes=slopes,
        loss=_or_why(lambda: choose_law(x, loss, kind="loss")),
        parametric=parametric,
        iso_flop=parametric
        if isinstance(parametric, str)
        else _or_why(lambda: _iso_flop(points, parametric)),
        links=_or_why(lambda: fit_links(points)),
        back_test=_or_why(lambda: back_test(points)),
        noise=noise_of(points, None if isinstance(compute, str) else compute.chosen),
    )


def _or_why(fit: Callable[[], Found]) -> Found | str:
    """What was asked for, or the sentence that refuses it."""
    try:
        return fit()
    except ValueError as error:
        return str(error)


def _band(choice: Choice, shifts: np.ndarray | None) -> Band:
    fit = choice.chosen
    x = np.linspace(fit.x.min(), fit.x.max() + np.log10(_BEYOND), _BAND_POINTS)
    drawn = fit.rounds(rounds=ROUNDS, shifts=shifts).predict(x)
    low, high = np.quantile(drawn, (0.025, 0.975), axis=0)
    return Band(x=10**x, value=fit.predict(x), low=low, high=high)


def _slope(x: np.ndarray, score: np.ndarray, shifts: np.ndarray | None) -> Interval:
    line = fit_law("log_linear", x, score, kind="score")
    drawn = line.rounds(rounds=ROUNDS, shifts=shifts).parameters["slope"]
    return percentile_interval(line.parameters["slope"], drawn)


def _parametric(points: Points) -> ParametricFit:
    return fit_parametric(
        points.column("num_parameters"),
        points.column("crops_seen"),
        points.column("held_out_loss"),
        num_unique=points.column("unique_crops"),
        configurations=points.configuration,
        rounds=ROUNDS,
    )


def _iso_flop(points: Points, fit: ParametricFit) -> IsoFlop:
    return iso_flop(
        points.column("num_parameters"),
        points.column("crops_seen"),
        points.column("held_out_loss"),
        points.column("training_flops"),
        fit=fit,
        num_unique=points.column("unique_crops"),
    )
