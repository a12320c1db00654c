"""The curve E + A / N^alpha + B / D^beta and its Huber fit, for many bootstrap rounds at once.

Inside, five numbers stand for the curve: E, ln A and ln B, alpha, beta, where losses are in units
of their geometric mean and N and D of theirs. There A and B are what size and data add to the loss
in the middle of the points and not, as in the published form, of a backbone of one parameter: so
they are of the order of one, and hardly correlated with the exponents.

Shapes: m configurations, R rounds.
"""

from __future__ import annotations

import numpy as np

EXPONENTS = (0.01, 2.0)
"""Smallest and largest alpha and beta. Published ones are 0.05 to 0.8; Hoffmann et al. 2022 start
their search from 0 to 2. At 0.01 a term changes by 2% per decade and is a part of E, at 2 it is
gone within a decade."""
LOWEST = np.array([0.0, -14.0, -14.0, EXPONENTS[0], EXPONENTS[0]])
HIGHEST = np.array([2.0, 3.0, 3.0, EXPONENTS[1], EXPONENTS[1]])
"""Ends of what is searched: terms from a millionth of the loss up, and E from 0."""

_VALUES_AT_ONCE = 50_000  # rounds times configurations whose arrays stay in the cache
_MOST_STEPS = 100
_CALM = 1e-9  # share of the objective; two steps in turn that gain less end a round
_FREE = 0.1  # share of the second step above which a step is short, and gains little for that


def terms(
    theta: np.ndarray, x: np.ndarray, y: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The curve and its two terms.

    Args:
        theta: (R, 5).
        x: (m,) ln N.
        y: (m,) ln D.

    Returns:
        E + A / N^alpha + B / D^beta, A / N^alpha and B / D^beta, (R, m) each.
    """
    of_size = np.exp(theta[:, 1, None] - theta[:, 3, None] * x)
    of_data = np.exp(theta[:, 2, None] - theta[:, 4, None] * y)
    return theta[:, 0, None] + of_size + of_data, of_size, of_data


def slopes(theta: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log of the curve, (R, m), and its derivatives by the five numbers, (R, 5, m)."""
    total, of_size, of_data = terms(theta, x, y)
    found = np.empty((len(theta), 5, total.shape[1]))
    found[:, 0] = 1 / total
    found[:, 1] = of_size / total
    found[:, 2] = of_data / total
    found[:, 3] = -x * found[:, 1]
    found[:, 4] = -y * found[:, 2]
    return np.log(total), found


def huber(residuals: np.ndarray, weights: np.ndarray, delta: float) -> np.ndarray:
    """(R,) weighted sums of half squares up to delta, straight beyond (Huber 1964)."""
    size = np.abs(residuals)
    inner = np.minimum(size, delta)
    return np.asarray((weights * inner * (size - inner / 2)).sum(axis=1))


def refit(
    theta: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    values: np.ndarray,
    weights: np.ndarray,
    delta: float,
) -> tuple[np.ndarray, np.ndarray]:
    """The optimum of each round, from a start near it.

    Levenberg's way between two steps. Newton's has the curvature of the residuals within delta
    alone; where the noise is ten times delta, those are few, and it leaps too far. Reweighted least
    squares (each residual beyond delta counts delta / |residual|) never leaps, since its parabola
    lies above the objective and touches it, and takes hundreds of steps. Their sum, with a share of
    the second that falls with every success, arrives in 5 to 20.

    Args:
        theta: (R, 5) starts.
        x: (m,) ln N.
        y: (m,) ln D.
        values: (R, m) ln of the losses of each round.
        weights: (R, m) how often each configuration counts.
        delta: of Huber's function; infinite for least squares.

    Returns:
        (R, 5) optima, and (R,) the objective there.
    """
    found, reached = np.empty_like(theta), np.empty(len(theta))
    at_once = max(1, _VALUES_AT_ONCE // len(x))
    for first in range(0, len(theta), at_once):
        some = slice(first, first + at_once)
        found[some], reached[some] = _descend(theta[some], x, y, values[some], weights[some], delta)
    return found, reached


def _descend(
    theta: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    values: np.ndarray,
    weights: np.ndarray,
    delta: float,
) -> tuple[np.ndarray, np.ndarray]:
    theta, share = theta.copy(), np.full(len(theta), 1e-2)
    reached = huber(np.log(terms(theta, x, y)[0]) - values, weights, delta)
    calm, live = np.zeros(len(theta), dtype=int), np.arange(len(theta))
    for _ in range(_MOST_STEPS):
        here, given, counts = theta[live], values[live], weights[live]
        step = _step(here, x, y, given, counts, delta, share[live])
        there = np.clip(here + step, LOWEST, HIGHEST)
        objective = huber(np.log(terms(there, x, y)[0]) - given, counts, delta)
        gain = reached[live] - objective
        better = gain >= 0
        small = (np.abs(gain) <= _CALM * reached[live]) & (share[live] < _FREE)
        theta[live[better]], reached[live[better]] = there[better], objective[better]
        share[live] = np.clip(share[live] * np.where(better, 0.2, 6.0), 1e-7, 1e6)
        calm[live] = np.where(small, calm[live] + 1, 0)
        live = live[calm[live] < 2]
        if not len(live):
            break
    return theta, reached


def _step(
    theta: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    values: np.ndarray,
    weights: np.ndarray,
    delta: float,
    share: np.ndarray,
) -> np.ndarray:
    """(R, 5) the step of each round; 0 for numbers that press against an end of their range."""
    fitted, slope = slopes(theta, x, y)
    residuals = fitted - values
    size = np.abs(residuals)
    reweighted = weights * np.minimum(1.0, delta / np.maximum(size, np.finfo(float).tiny))
    gradient = (slope @ (reweighted * residuals)[:, :, None])[:, :, 0]
    pressed = ((theta <= LOWEST) & (gradient > 0)) | ((theta >= HIGHEST) & (gradient < 0))
    curvature = weights * (size <= delta) + share[:, None] * reweighted
    hessian = (slope * curvature[:, None, :]) @ slope.transpose(0, 2, 1)
    gradient = np.where(pressed, 0.0, gradient)
    hessian = np.where(pressed[:, :, None] | pressed[:, None, :], 0.0, hessian)
    every = np.arange(5)
    diagonal = hessian[:, every, every]
    # Damped by its own diagonal too (Marquardt 1963): where size or data hardly matter, their
    # exponents have next to no curvature.
    hessian[:, every, every] += np.where(pressed, 1.0, (share[:, None] + 1e-9) * diagonal + 1e-15)
    return np.asarray(-np.linalg.solve(hessian, gradient[:, :, None])[:, :, 0])
