"""Means, variances and scatter of some rows of a large table, block by block.

Blocks are merged by the pairwise update of Chan, Golub & LeVeque (1983), so a large offset costs no
precision, and the triangle of a QR decomposition grows block by block, so singular values have the
precision of a decomposition of the whole.

Shapes: n rows, d width, k width after a linear map.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from phenoscale.maps.vectors import blocks


@dataclasses.dataclass(frozen=True, kw_only=True)
class Moments:
    """Of some rows."""

    count: int
    """Rows."""
    mean: np.ndarray
    """(k,) float64."""
    squares: np.ndarray
    """(k,) float64, sums of squared distances from the mean."""
    largest: np.ndarray
    """(k,) float64, largest absolute values."""
    scatter: np.ndarray | None
    """(k, k) float64, sums of products of distances from the mean, where it was asked for."""

    @property
    def sd(self) -> np.ndarray:
        """(k,) standard deviations, by n."""
        sd: np.ndarray = np.sqrt(self.squares / self.count)
        return sd


def moments_of(
    vectors: np.ndarray,
    rows: np.ndarray,
    change: Callable[[np.ndarray], np.ndarray] | None = None,
    *,
    scatter: bool = False,
) -> Moments:
    """Moments of some rows of a table.

    Args:
        vectors: (n, d).
        rows: (m,) their numbers, one at least.
        change: of rows (m, d) into rows (m, k); nothing by default.
        scatter: whether products are summed too.
    """
    count, mean, squares, products, largest = 0, np.zeros(1), np.zeros(1), np.zeros((1, 1)), None
    for part in blocks(len(rows)):
        block = vectors[rows[part]]
        block = block.astype(np.float64) if change is None else change(block)
        here = block.mean(axis=0)
        apart = block - here
        step = here - mean
        weight = count * len(block) / (count + len(block))
        squares = squares + np.einsum("ij,ij->j", apart, apart) + weight * step**2
        if scatter:
            products = products + apart.T @ apart + weight * np.outer(step, step)
        mean = mean + step * (len(block) / (count + len(block)))
        most = np.abs(block).max(axis=0)
        largest = most if largest is None else np.maximum(largest, most)
        count += len(block)
    assert largest is not None, "no rows"
    return Moments(
        count=count,
        mean=mean,
        squares=squares,
        largest=largest,
        scatter=products if scatter else None,
    )


def triangle_of(vectors: np.ndarray, rows: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """The triangle R (at most d, d) of a QR decomposition of some rows less a mean.

    Its singular values and right singular vectors are those of the rows.
    """
    triangle: np.ndarray = np.empty((0, vectors.shape[1]))
    for part in blocks(len(rows)):
        block = vectors[rows[part]].astype(np.float64) - mean
        triangle = np.asarray(np.linalg.qr(np.concatenate([triangle, block]), mode="r"))
    return triangle
