"""The check that every embedding passes on its way into `maps/`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

_SHOWN = 5
_BLOCK_ROWS = 2**14


def checked_vectors(
    vectors: npt.ArrayLike,
    *,
    name: str,
    rows: int | None = None,
    row_names: Sequence[str] | None = None,
    keep_float32: bool = False,
) -> np.ndarray:
    """Returns vectors as float64 (n, d), or says what is wrong with them.

    Args:
        vectors: (n, d), any real dtype.
        name: what the error calls them.
        rows: the number of rows that the metadata have, if it must agree.
        row_names: (n,) names for the rows in errors; their numbers otherwise.
        keep_float32: whether float32 stays as it is, for tables of which a copy is too much.

    Raises:
        ValueError: for another shape or dtype, no rows or columns, another number of rows, and for
            NaN or infinite values (how many, and in which rows).
    """
    array = np.asarray(vectors)
    if array.ndim != 2 or 0 in array.shape or array.dtype.kind not in "fiu":
        raise ValueError(
            f"{name} must be a table of numbers, one row per item and at least one column; "
            f"got shape {array.shape} and dtype {array.dtype}."
        )
    if rows is not None and len(array) != rows:
        raise ValueError(
            f"{name} has {len(array)} rows but its metadata have {rows}; rows must correspond one "
            "to one."
        )
    if not (keep_float32 and array.dtype == np.float32):
        array = array.astype(np.float64, copy=False)
    values_of_row = np.concatenate([_not_finite(array[rows]) for rows in blocks(len(array))])
    if values_of_row.any():
        bad = np.flatnonzero(values_of_row)
        shown = [row_names[row] if row_names is not None else str(row) for row in bad[:_SHOWN]]
        raise ValueError(
            f"{name} has {values_of_row.sum()} NaN or infinite values in {len(bad)} of "
            f"{len(array)} rows ({', '.join(shown)}{', ...' if len(bad) > _SHOWN else ''}); all "
            "must be finite. Look at the encoder or the images behind these rows."
        )
    return array


def blocks(rows: int) -> Iterator[slice]:
    """Slices that cover so many rows, none of them large in memory."""
    for start in range(0, rows, _BLOCK_ROWS):
        yield slice(start, min(start + _BLOCK_ROWS, rows))


def constant_columns(vectors: np.ndarray) -> np.ndarray:
    """Numbers of the columns of (n, d) that hold one value only."""
    differs = np.zeros(vectors.shape[1], dtype=bool)
    for rows in blocks(len(vectors)):
        differs |= (vectors[rows] != vectors[0]).any(axis=0)
    return np.flatnonzero(~differs)


def _not_finite(block: np.ndarray) -> np.ndarray:
    """How many values of each row are not finite."""
    return np.count_nonzero(~np.isfinite(block), axis=1)


def listed(items: Sequence[object]) -> str:
    """The first few items for an error message, and how many there are beyond them."""
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(str(item) for item in items[:_SHOWN]) + more
