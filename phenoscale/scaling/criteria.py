"""How fits are told apart, and how rounds are shared out among those that remain.

Shapes: n values, R rounds, k places to predict at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

ROUNDING = 1e-12
"""Of the largest value: residuals below it are rounding, not misfit."""


def aicc(values: np.ndarray, fitted: np.ndarray, num_parameters: int) -> float:
    """Akaike's criterion of least squares for few points (Hurvich & Tsai 1989).

    n log(RSS / n) + 2k + 2k (k + 1) / (n - k - 1), k the parameters and the noise; infinite where n
    is too small for it.
    """
    n, k = len(values), num_parameters + 1
    if n - k - 1 <= 0:
        return float("inf")
    return n * _log_mean_square(values, fitted) + 2 * k + 2 * k * (k + 1) / (n - k - 1)


def schwarz(values: np.ndarray, fitted: np.ndarray, num_parameters: int) -> float:
    """BIC of least squares, n log(RSS / n) + p log n (Schwarz 1978)."""
    n = len(values)
    return n * _log_mean_square(values, fitted) + num_parameters * float(np.log(n))


def shares_of(criteria: Mapping[str, float], chosen: str) -> dict[str, float]:
    """Name to its share of the rounds, exp(-criterion / 2) over their sum.

    Args:
        criteria: name to AICc or BIC, the chosen one's among them or not.
        chosen: has at least the share of any other, since more than the criterion spoke for it.
    """
    lowest = min(criteria.values(), default=0.0)
    told = {**criteria, chosen: lowest}
    weights = {name: float(np.exp((lowest - one) / 2)) for name, one in told.items()}
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}


def mixed(
    shares: Mapping[str, float], rounds: int, draw: Callable[[str], np.ndarray]
) -> np.ndarray:
    """(R, k) rounds of several fits, each for its share of them.

    Args:
        shares: name to share; they add up to 1.
        rounds: R.
        draw: from a name to all R rounds of that fit, (R, k).
    """
    ends = np.round(rounds * np.cumsum([0.0, *shares.values()])).astype(int)
    parts = [
        draw(name)[start:end]
        for name, start, end in zip(shares, ends[:-1], ends[1:], strict=True)
        if start < end
    ]
    return np.concatenate(parts)


def _log_mean_square(values: np.ndarray, fitted: np.ndarray) -> float:
    rounding = ROUNDING * (np.abs(values).max() or 1.0)
    return float(np.log(max(float(np.mean((values - fitted) ** 2)), rounding**2)))
