"""The check that every embedding passes on its way into `maps/`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_SHOWN = 5


def checked_vectors(
    vectors: npt.ArrayLike,
    *,
    name: str,
    rows: int | None = None,
    row_names: Sequence[str] | None = None,
) -> np.ndarray:
    """Returns vectors as float64 (n, d), or says what is wrong with them.

    Args:
        vectors: (n, d), any real dtype.
        name: what the error calls them.
        rows: the number of rows that the metadata have, if it must agree.
        row_names: (n,) names for the rows in errors; their numbers otherwise.

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
    array = array.astype(np.float64, copy=False)
    finite = np.isfinite(array)
    if not finite.all():
        bad = np.flatnonzero(~finite.all(axis=1))
        shown = [row_names[row] if row_names is not None else str(row) for row in bad[:_SHOWN]]
        raise ValueError(
            f"{name} has {np.count_nonzero(~finite)} NaN or infinite values in {len(bad)} of "
            f"{len(array)} rows ({', '.join(shown)}{', ...' if len(bad) > _SHOWN else ''}); all "
            "must be finite. Look at the encoder or the images behind these rows."
        )
    return array


def listed(items: Sequence[object]) -> str:
    """The first few items for an error message, and how many there are beyond them."""
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(str(item) for item in items[:_SHOWN]) + more
