"""The curves of one-variable laws and their weighted least squares, for all rounds at once.

Each solver takes x (m,), values (R, m) and weights (R, m), and returns (R,) of each parameter. A
weight of 0 leaves a configuration out, so cross-validation and the bootstrap are one call each.

Shapes: m configurations, R rounds, k places to predict at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
from scipy.special import expit, logit

Kind = Literal["score", "loss"]
Parameters = Mapping[str, np.ndarray]

PARAMETERS = {
    "log_linear": ("intercept", "slope"),
    "power": ("asymptote", "amplitude", "exponent"),
    "logit": ("intercept", "slope"),
}
"""Law to the names of its parameters."""
ASYMPTOTE_BOUND = {"score": 1.0, "loss": 0.0}
"""The highest ceiling of a score and the lowest floor of a loss."""

_LN10 = float(np.log(10))
# The distance to the asymptote shrinks by 0.2% to 100,000-fold over the measured range: a flatter
# curve is a straight line, a steeper one a step at the first configuration. Beyond 10 per decade,
# which no law of learning comes near, the amplitude at x = 0 would overflow.
_EXPONENT_TIMES_RANGE = (1e-3, 5.0)
_LARGEST_EXPONENT = 10.0
_NUM_EXPONENTS = 64  # of the grid that finds the valley; golden section goes down in it
_LARGEST_LOGIT = 12.0  # at both ends of the measured range: 6 in a million
_AT_BOUND = 1e-6


def curve(law: str, parameters: Parameters, x: np.ndarray, *, kind: Kind) -> np.ndarray:
    """Values of a law.

    Args:
        law: a key of PARAMETERS.
        parameters: each scalar or (R, 1).
        x: (k,).
        kind: a power law rises to its asymptote for scores and falls to it for losses.

    Returns:
        (k,) or (R, k).
    """
    if law == "power":
        # The sum of logarithms first: amplitude and 10^-x may be far apart.
        with np.errstate(divide="ignore"):
            gap = 10 ** (np.log10(parameters["amplitude"]) - parameters["exponent"] * x)
        return np.asarray(parameters["asymptote"] + (gap if kind == "loss" else -gap))
    line = parameters["intercept"] + parameters["slope"] * x
    return np.asarray(expit(line) if law == "logit" else line)


def solve(
    law: str, x: np.ndarray, values: np.ndarray, weights: np.ndarray, *, kind: Kind
) -> dict[str, np.ndarray]:
    """Weighted least squares on the values themselves, round by round.

    Args:
        law: a key of PARAMETERS.
        x: (m,), not all equal.
        values: (R, m); those of a round may leave the range that the law itself has.
        weights: (R, m), each round with as many different x as the law has parameters.
        kind: what the values are.

    Returns:
        (R,) of each parameter, within its bounds.
    """
    if law == "log_linear":
        intercept, slope = _line(x, values, weights)
        return {"intercept": intercept, "slope": slope}
    if law == "logit":
        return _logistic(x, values, weights)
    if kind == "score":
        return _rising_power(x, values, weights, ceiling=ASYMPTOTE_BOUND[kind])
    solved = _rising_power(x, -values, weights, ceiling=-ASYMPTOTE_BOUND[kind])
    return solved | {"asymptote": -solved["asymptote"]}


def at_bound(
    law: str, parameters: Mapping[str, float], x: np.ndarray, *, kind: Kind
) -> tuple[str, ...]:
    """Names of the parameters that lie at a bound and are thus no estimates."""
    if law == "logit":
        ends = _ends(parameters, x)
        return ("slope",) if np.abs(ends).max() > _LARGEST_LOGIT - _AT_BOUND else ()
    if law != "power":
        return ()
    found = []
    if abs(parameters["asymptote"] - ASYMPTOTE_BOUND[kind]) < _AT_BOUND:
        found.append("asymptote")
    off = np.abs(np.log(parameters["exponent"] / _exponents(x)[[0, -1]]))
    if off.min() < _AT_BOUND:
        found.append("exponent")
    return tuple(found)


def leverages(
    law: str, parameters: Mapping[str, float], x: np.ndarray, *, kind: Kind
) -> np.ndarray:
    """(m,) diagonal of the hat matrix of the linearised law, parameters at a bound held fixed."""
    place = (x - x.min()) / np.ptp(x)
    bounds = at_bound(law, parameters, x, kind=kind)
    if law == "power":
        gap = 10 ** (-parameters["exponent"] * np.ptp(x) * place)
        columns = {"asymptote": place**0, "amplitude": gap, "exponent": place * gap}
        jacobian = np.stack([c for name, c in columns.items() if name not in bounds], axis=1)
    elif law == "logit":
        fitted = curve(law, _arrays(parameters), x, kind=kind)
        steepness = fitted * (1 - fitted)
        free = np.abs(_ends(parameters, x)) < _LARGEST_LOGIT - _AT_BOUND
        jacobian = (steepness * np.stack([1 - place, place])).T[:, free]
    else:
        jacobian = np.stack([place**0, place], axis=1)
    return np.asarray((np.linalg.qr(jacobian)[0] ** 2).sum(axis=1))


def _arrays(parameters: Mapping[str, float]) -> dict[str, np.ndarray]:
    return {name: np.asarray(value) for name, value in parameters.items()}


def _line(x: np.ndarray, values: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Intercept and slope (R,) of straight lines, closed form; x is (m,) or (R, m)."""
    total = weights.sum(axis=1)
    mean_x = (weights * x).sum(axis=1) / total
    origin = values[:, :1]  # so that equal values have a slope of exactly 0
    mean = origin[:, 0] + (weights * (values - origin)).sum(axis=1) / total
    off_x = x - mean_x[:, None]
    slope = (weights * off_x * (values - mean[:, None])).sum(axis=1) / (weights * off_x**2).sum(
        axis=1
    )
    return mean - slope * mean_x, slope


def _exponents(x: np.ndarray) -> np.ndarray:
    """Grid of exponents per unit of x, lowest to highest that is allowed."""
    low, high = np.array(_EXPONENT_TIMES_RANGE) / np.ptp(x)
    return np.geomspace(low, min(high, _LARGEST_EXPONENT), _NUM_EXPONENTS)


def _rising_power(
    x: np.ndarray, values: np.ndarray, weights: np.ndarray, *, ceiling: float
) -> dict[str, np.ndarray]:
    """K - A 10^(-c x) with K <= ceiling and A >= 0, by variable projection (Golub & Pereyra 1973).

    For a given c the best K and A are linear, so what is left is a search along c: a grid finds the
    valley, golden section its floor.
    """
    start = x.min()

    def at(exponent: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Best K, A at x = start, and sum of squares, each (R,), for exponents (R,) or (1,)."""
        gap = np.exp(-_LN10 * exponent[:, None] * (x - start))
        bend = 1 - gap  # rises from 0, and stays well-conditioned where c is small
        first, rise = _line(bend, values, weights)
        capped = first + rise > ceiling
        at_ceiling = (weights * (ceiling - values) * gap).sum(axis=1) / (weights * gap**2).sum(
            axis=1
        )
        mean = (weights * values).sum(axis=1) / weights.sum(axis=1)
        falls = rise <= 0
        amplitude = np.where(falls, 0, np.where(capped, np.maximum(at_ceiling, 0), rise))
        asymptote = np.where(
            falls, np.minimum(mean, ceiling), np.where(capped, ceiling, first + rise)
        )
        off = values - asymptote[:, None] + amplitude[:, None] * gap
        return asymptote, amplitude, (weights * off**2).sum(axis=1)

    grid = np.log(_exponents(x))
    errors = np.stack([at(np.exp(grid[[place]]))[2] for place in range(len(grid))], axis=1)
    best = errors.argmin(axis=1)
    low, high = grid[np.maximum(best - 1, 0)], grid[np.minimum(best + 1, len(grid) - 1)]
    exponent = np.exp(_golden(lambda place: at(np.exp(place))[2], low, high))
    asymptote, amplitude, _ = at(exponent)
    return {
        "asymptote": asymptote,
        "amplitude": amplitude * 10 ** (exponent * start),
        "exponent": exponent,
    }


def _golden(
    function: Callable[[np.ndarray], np.ndarray], low: np.ndarray, high: np.ndarray
) -> np.ndarray:
    """Minimum between low and high, each (R,), by golden section; one search each round."""
    ratio = (np.sqrt(5) - 1) / 2
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    at_left, at_right = function(left), function(right)
    for _ in range(40):  # 0.618^40 is 4e-9 of the bracket, about what doubles can tell apart
        lower = at_left < at_right
        low, high = np.where(lower, low, left), np.where(lower, right, high)
        left, right = (
            np.where(lower, high - ratio * (high - low), right),
            np.where(lower, left, low + ratio * (high - low)),
        )
        new = function(np.where(lower, left, right))
        at_left, at_right = np.where(lower, new, at_right), np.where(lower, at_left, new)
    return (low + high) / 2


def _ends(parameters: Mapping[str, float], x: np.ndarray) -> np.ndarray:
    """(2,) logits at the ends of the measured range."""
    return parameters["intercept"] + parameters["slope"] * np.array([x.min(), x.max()])


def _logistic(x: np.ndarray, values: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """1 / (1 + exp(-(a + b x))) by Levenberg-Marquardt steps from a line through the logits.

    The unknowns are the logits at both ends of the measured range, which bounds make sense for.
    """
    start, span = x.min(), np.ptp(x)
    place = (x - start) / span
    basis = np.stack([1 - place, place], axis=1)
    first, rise = _line(place, logit(np.clip(values, 0.01, 0.99)), weights)
    ends = np.stack([first, first + rise], axis=1)
    ends = np.clip(ends, -_LARGEST_LOGIT, _LARGEST_LOGIT)
    damping = np.full(len(values), 1e-4)
    error = (weights * (values - expit(ends @ basis.T)) ** 2).sum(axis=1)
    for _ in range(100):
        fitted = expit(ends @ basis.T)
        steepness = fitted * (1 - fitted)
        hessian = np.einsum("rm,mi,mj->rij", weights * steepness**2, basis, basis)
        gradient = (weights * steepness * (values - fitted)) @ basis
        diagonal = np.einsum("rii->ri", hessian) * (1 + damping[:, None]) + 1e-300
        off = hessian[:, 0, 1]
        scale = diagonal[:, 0] * diagonal[:, 1] - off**2
        step = (gradient * diagonal[:, ::-1] - gradient[:, ::-1] * off[:, None]) / scale[:, None]
        tried = np.clip(ends + step, -_LARGEST_LOGIT, _LARGEST_LOGIT)
        new = (weights * (values - expit(tried @ basis.T)) ** 2).sum(axis=1)
        better = new <= error
        moved = np.abs(tried - ends).max()
        ends = np.where(better[:, None], tried, ends)
        error = np.where(better, new, error)
        damping = np.where(better, np.maximum(damping / 5, 1e-12), damping * 5)
        if moved < 1e-9:
            break
    slope = (ends[:, 1] - ends[:, 0]) / span
    return {"intercept": ends[:, 0] - slope * start, "slope": slope}
