"""The parametric law around its optimum: leverages, noise, and the bias of its bend.

Shapes: m configurations.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from phenoscale.scaling.parametric_rounds import HIGHEST, LOWEST, slopes, terms


@dataclasses.dataclass(frozen=True, kw_only=True)
class Linearised:
    """The curve around its optimum."""

    slope: np.ndarray
    """(5, m) derivatives of ln of the curve; 0 for numbers at an end of their range."""
    inverse: np.ndarray
    """(5, 5) inverse of the sum of their products."""
    fitted: np.ndarray
    """(m,) ln of the curve."""
    residuals: np.ndarray
    """(m,) values less fitted."""

    @property
    def noise(self) -> float:
        """Standard deviation of a configuration about the curve."""
        freedom = len(self.fitted) - len(LOWEST)
        return math.sqrt(float(np.sum(self.residuals**2)) / freedom)

    @property
    def leverages(self) -> np.ndarray:
        """(m,) diagonal of the hat matrix."""
        return np.einsum("im,ij,jm->m", self.slope, self.inverse, self.slope)


def linearised(theta: np.ndarray, x: np.ndarray, y: np.ndarray, values: np.ndarray) -> Linearised:
    """The curve around an optimum.

    Args:
        theta: (5,) the optimum, as in `parametric_rounds.py`.
        x: (m,) ln N.
        y: (m,) ln D.
        values: (m,) ln of the losses.
    """
    fitted, slope = (found[0] for found in slopes(theta[None], x, y))
    slope[(theta <= LOWEST) | (theta >= HIGHEST)] = 0
    return Linearised(
        slope=slope,
        inverse=np.linalg.pinv(slope @ slope.T, hermitian=True),
        fitted=fitted,
        residuals=values - fitted,
    )


def bend_bias(
    theta: np.ndarray, x: np.ndarray, y: np.ndarray, bend: Linearised, covariance: np.ndarray
) -> np.ndarray:
    """By how much the five numbers are expected to miss because the curve bends (Box 1971).

    The mean bend of ln of the curve under the numbers' own scatter, projected on its slopes. Second
    derivatives of the logarithm are those of the curve over the curve, less products of the first.

    Args:
        theta: (5,) the optimum.
        x: (m,) ln N.
        y: (m,) ln D.
        bend: the curve around it.
        covariance: (5, 5) of the five numbers.

    Returns:
        (5,).
    """
    total, of_size, of_data = (found[0] for found in terms(theta[None], x, y))
    size = covariance[1, 1] - 2 * x * covariance[1, 3] + x**2 * covariance[3, 3]
    data = covariance[2, 2] - 2 * y * covariance[2, 4] + y**2 * covariance[4, 4]
    first = np.einsum("im,ij,jm->m", bend.slope, covariance, bend.slope)
    mean_bend = (of_size * size + of_data * data) / total - first
    return np.asarray(-0.5 * bend.inverse @ (bend.slope @ mean_bend))
