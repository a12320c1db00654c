"""The parametric law of a loss: L(N, D) = E + A / N^alpha + B / D^beta.

Fitted as approach 3 of Hoffmann et al. 2022 (arXiv 2203.15556, appendix D.2): the Huber loss of log
observed less log fitted, over E, A, B >= 0 and the two exponents, by L-BFGS from a grid of starts.

With their delta of 1e-3 and noise of 1e-2 that is a median regression. It passes through five of
nine configurations and leaves nothing to tell their noise by, so below MANY_CONFIGURATIONS the
default is least squares on the log.

Shapes: n trials, m configurations, R rounds, k places to predict at.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from scipy.stats import norm

from phenoscale.maps.interval import COVERAGE, Interval, checked_rounds
from phenoscale.scaling.parametric_bend import Linearised, bend_bias, linearised
from phenoscale.scaling.parametric_rounds import refit, terms
from phenoscale.scaling.parametric_search import best_starts, optimum
from phenoscale.scaling.repeats import effective_crops
from phenoscale.scaling.resample import MANY_CONFIGURATIONS, drawn_weights, wild_values

PARAMETERS = ("E", "A", "B", "alpha", "beta")
PUBLISHED_DELTA = 1e-3
_FEWEST_PLACES = 3  # sizes, and amounts of data: two fix no exponent
_SAME_PLACE = 0.05  # in ln: sizes that lie closer tell no exponent
_LEAST_EFFECT = 1e-4  # of the loss, between the ends of what was trained
_MOST_APART = 0.99  # share of draws that must differ from the value
_MOST_MOVED = 0.5  # standard deviations
_LARGEST_LEVERAGE = 0.99  # a configuration that the fit goes through tells nothing of its noise


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParametricFit:
    """The fitted law; the values are those of one curve, and may be put into the formula."""

    E: Interval
    """Loss that neither size nor data removes."""
    A: Interval
    """What size adds to the loss: A / N^alpha, N in parameters."""
    B: Interval
    """What data add: B / D^beta, D in crops."""
    alpha: Interval
    """Exponent of size."""
    beta: Interval
    """Exponent of data."""
    num_points: int
    """Configurations that were fitted, m."""
    huber_delta: float
    """Residual, in ln, beyond which the fit counts its size and not its square; infinite for least
    squares."""
    residuals: np.ndarray
    """(m,) ln of the observed less ln of the fitted loss, in the order of the labels."""
    draws: np.ndarray
    """(R, 5) E, A, B, alpha, beta of each bootstrap round."""
    bias: np.ndarray
    """(5,) by how much E, ln A, ln B, alpha and beta are expected to miss since the curve bends
    (Box 1971). To be subtracted where one is read by itself, never from the curve: its predictions
    miss by much less as they are."""

    def predict(self, num_parameters: np.ndarray, num_crops: np.ndarray) -> np.ndarray:
        """(k,) the law at sizes and crops, those of `effective_crops` where they repeat."""
        values = np.array([[getattr(self, name).value for name in PARAMETERS]])
        return _law(values, num_parameters, num_crops)[0]

    def predict_rounds(self, num_parameters: np.ndarray, num_crops: np.ndarray) -> np.ndarray:
        """(R, k) the same in each bootstrap round."""
        return _law(self.draws, num_parameters, num_crops)


def fit_parametric(
    num_parameters: np.ndarray,
    num_crops: np.ndarray,
    loss: np.ndarray,
    *,
    num_unique: np.ndarray | None = None,
    configurations: np.ndarray | None = None,
    huber_delta: float | None = None,
    rounds: int = 1000,
    seed: int = 0,
) -> ParametricFit:
    """Fits the law, and again on what other studies of the same configurations might have measured.

    Few configurations keep their places and get new noise, half of it their own residual's (which
    also serves where noise is uneven) and half of the variance that all share (nine residuals tell
    little of each). Many are drawn again with replacement. `benchmarks/coverage.py` holds intervals
    and values against planted laws; docs/scaling_coverage.md has its table.

    Args:
        num_parameters: (n,) N of each trial.
        num_crops: (n,) D, crops seen.
        loss: (n,) above 0.
        num_unique: (n,) crops among them that do not overlap; given, D is `effective_crops`.
        configurations: (n,) label of the configuration of each trial: seeds of one share theirs
            and count as one, with the mean of their logs. None where every trial is its own.
        huber_delta: None for least squares below MANY_CONFIGURATIONS and the published 1e-3 from
            there on.
        rounds: of the bootstrap, R.
        seed: of the bootstrap.

    Raises:
        ValueError: if values are not finite and above 0, or the configurations are too few for
            five numbers and an interval, lie at fewer than three sizes or amounts of data, or have
            losses that do not fall with one of them.
    """
    crops = num_crops if num_unique is None else effective_crops(num_crops, num_unique)
    x = _by_configuration("num_parameters", num_parameters, configurations)
    y = _by_configuration("num_crops", crops, configurations)
    values = _by_configuration("loss", loss, configurations)
    _check_places(x, y)
    delta = _delta(huber_delta, len(x))
    middle = np.array([values.mean(), x.mean(), y.mean()])
    x, y, values = x - middle[1], y - middle[2], values - middle[0]
    theta = optimum(x, y, values, delta)
    _check_terms(theta, x, y)
    bend = linearised(theta, x, y, values)
    given, weights = _resampled(values, bend, rounds=checked_rounds(rounds), seed=seed)
    starts = best_starts(x, y, given, weights, delta)
    drawn, _ = refit(starts, x, y, given, weights, delta)
    found, draws = _outside(theta[None], middle)[0], _outside(drawn, middle)
    intervals = {
        name: corrected_interval(found[place], draws[:, place])
        for place, name in enumerate(PARAMETERS)
    }
    few = len(x) < MANY_CONFIGURATIONS
    covariance = bend.noise**2 * bend.inverse if few else np.cov(drawn.T)
    bias = bend_bias(theta, x, y, bend, covariance)
    bias[0] *= np.exp(middle[0])
    bias[1:3] += middle[1:] * bias[3:]
    return ParametricFit(
        **intervals,
        num_points=len(x),
        huber_delta=delta,
        residuals=bend.residuals,
        draws=draws,
        bias=bias,
    )


def corrected_interval(value: float, draws: np.ndarray, *, coverage: float = COVERAGE) -> Interval:
    """Percentile interval, corrected for what the median of the draws misses the value by.

    Efron 1981. Where a fitted floor is too low the draws' are lower still, as much again: plain 90%
    percentiles of E held the truth in 89% of 500 studies of 9 configurations, missing it two
    to three times as often above as below, corrected ones in 91%. For 60 configurations drawn with
    replacement, plain ones of the median regression at delta = 1e-3 are too wide (93 to 98%).

    Args:
        value: on the data themselves.
        draws: (R,) in the bootstrap rounds.
        coverage: share of studies whose interval should hold the truth.
    """
    below, above = np.mean(draws < value), np.mean(draws > value)
    moved = 0.0
    # Draws that equal the value are at an end of its range, and have no median to correct by.
    if below + above > _MOST_APART:
        moved = float(np.clip(norm.ppf(below), -_MOST_MOVED, _MOST_MOVED))
    reach = norm.ppf((1 + coverage) / 2)
    low, high = np.quantile(draws, norm.cdf(2 * moved + np.array([-reach, reach])))
    return Interval(value=float(value), low=float(low), high=float(high))


def _resampled(
    values: np.ndarray, bend: Linearised, *, rounds: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Values and weights of each round, (R, m) each."""
    shape = (rounds, len(values))
    if len(values) >= MANY_CONFIGURATIONS:
        weights = drawn_weights(len(values), rounds=rounds, seed=seed)
        return np.broadcast_to(values, shape), weights
    own = bend.residuals**2 / (1 - np.minimum(bend.leverages, _LARGEST_LEVERAGE))
    shared = np.sqrt((own + bend.noise**2) / 2)
    given = wild_values(
        bend.fitted,
        shared,
        np.zeros(len(values)),
        parameters=len(PARAMETERS),
        rounds=rounds,
        seed=seed,
    )
    return given, np.ones(shape)


def _by_configuration(
    name: str, values: np.ndarray, configurations: np.ndarray | None
) -> np.ndarray:
    """(m,) mean ln over the trials of each configuration, in order of the labels."""
    values = np.asarray(values, dtype=np.float64)
    if not np.all(np.isfinite(values) & (values > 0)):
        raise ValueError(
            f"{name} has values that are not finite and above 0; the parametric law needs sizes, "
            "crops and losses that are. Leave such trials out."
        )
    if configurations is None:
        return np.log(values)
    _, labels = np.unique(configurations, return_inverse=True)
    return np.bincount(labels, weights=np.log(values)) / np.bincount(labels)


def _check_places(x: np.ndarray, y: np.ndarray) -> None:
    """Refuses what five numbers cannot be told from."""
    # Six, not five: a curve through all its points has no residuals, and so no interval.
    missing = len(PARAMETERS) + 1 - len(x)
    if missing > 0:
        raise ValueError(
            f"{len(x)} configurations were given; the parametric law has {len(PARAMETERS)} "
            f"parameters and needs one more to tell the noise by, so it needs {missing} more."
        )
    for name, places in (("sizes of backbone", x), ("amounts of data", y)):
        different = _num_different(places)
        if different < _FEWEST_PLACES:
            raise ValueError(
                f"The configurations have {different} different {name}; the parametric law needs "
                f"{_FEWEST_PLACES} to tell an exponent from the floor. Add trials at "
                f"{_FEWEST_PLACES - different} more."
            )


def _check_terms(theta: np.ndarray, x: np.ndarray, y: np.ndarray) -> None:
    """Refuses a best fit in which size or data do nothing: its exponent is any number."""
    total, of_size, of_data = terms(theta[None], x, y)
    for name, term in (("the size of the backbone", of_size), ("the amount of data", of_data)):
        if np.ptp(term / total) < _LEAST_EFFECT:
            raise ValueError(
                f"The losses do not fall with {name}, so its exponent cannot be told. Train a "
                "wider range of it, or each configuration longer."
            )


def _num_different(places: np.ndarray) -> int:
    """How many of the (m,) places lie apart from the last that was counted."""
    number, last = 0, -math.inf
    for place in np.sort(places):
        if place > last + _SAME_PLACE:
            number, last = number + 1, float(place)
    return number


def _delta(given: float | None, configurations: int) -> float:
    if given is None:
        return PUBLISHED_DELTA if configurations >= MANY_CONFIGURATIONS else math.inf
    if not given > 0:
        raise ValueError(f"huber_delta is {given}; it must be above 0, such as {PUBLISHED_DELTA}.")
    return given


def _outside(theta: np.ndarray, middle: np.ndarray) -> np.ndarray:
    """(R, 5) E, A, B, alpha, beta of the published form."""
    scale = np.exp(middle[0])
    found = theta.copy()
    found[:, 0] *= scale
    found[:, 1:3] = scale * np.exp(theta[:, 1:3] + theta[:, 3:] * middle[1:])
    return found


def _law(values: np.ndarray, num_parameters: np.ndarray, num_crops: np.ndarray) -> np.ndarray:
    """(R, k) the law of each row of E, A, B, alpha, beta."""
    inside = values.copy()
    inside[:, 1:3] = np.log(values[:, 1:3])
    return terms(inside, np.log(num_parameters), np.log(num_crops))[0]
