"""Pairs of wells that share a label across groups, and random pairs that do not.

A label is what should be the same (a perturbation; a position on the plate), a group what should
not matter (an experimental batch; a plate). No n x n matrix is ever held: pairs of one label are
numbered and drawn by number, random pairs are drawn and refused until enough are left.

Shapes: n wells, d width of the embedding, K pairs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import sparse

from phenoscale.maps.vectors import checked_vectors, listed

_ALL_PAIRS = 2_000_000
"""Pairs of wells up to which all are listed, before the random ones are taken from them."""


def unit_rows(
    vectors: npt.ArrayLike, rows: int, row_names: Sequence[str] | None = None
) -> np.ndarray:
    """Checked vectors (n, d) float64, scaled to length 1.

    Raises:
        ValueError: for values that are not finite, another number of rows, or all-zero vectors.
    """
    vectors = checked_vectors(vectors, name="vectors", rows=rows, row_names=row_names)
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    zero = np.flatnonzero(length == 0)
    if len(zero):
        shown = [row if row_names is None else row_names[row] for row in zero.tolist()]
        raise ValueError(
            f"{len(zero)} of {rows} vectors are all zero ({listed(shown)}) and have no cosine; "
            "leave these rows out, and look at the encoder."
        )
    unit: np.ndarray = vectors / length
    return unit


def label_codes(labels: npt.ArrayLike, *, name: str, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers (n,) int64 of the labels, and the sorted labels they stand for.

    Raises:
        ValueError: for another number of rows, or empty cells.
    """
    values = np.asarray(labels, dtype=object)
    if values.shape != (rows,):
        raise ValueError(f"{name} has shape {values.shape}; one for each of {rows} rows is needed.")
    if missing := int(pd.isna(values).sum()):
        raise ValueError(f"{name} is empty in {missing} of {rows} rows; leave these rows out.")
    codes, names = pd.factorize(values, sort=True)
    return codes.astype(np.int64), np.asarray(names, dtype=object)


def pair_sums(unit: np.ndarray, group: np.ndarray, num_groups: int) -> tuple[np.ndarray, ...]:
    """Sum of the cosines of all pairs in each group, (groups,), and the number of pairs, (groups,).

    By |sum of the unit vectors|^2 = n + 2 (sum over pairs), without listing the pairs.

    Args:
        unit: (n, d) vectors of length 1.
        group: (n,) numbers below `num_groups`.
        num_groups: groups; one without wells has no pairs.
    """
    counts = np.bincount(group, minlength=num_groups)
    members = sparse.csr_array(
        (np.ones(len(group)), (group, np.arange(len(group)))), shape=(num_groups, len(group))
    )
    squared = np.square(members @ unit).sum(axis=1)
    return (squared - counts) / 2, counts * (counts - 1) // 2


def pairs_across(
    label: np.ndarray, group: np.ndarray, max_pairs: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, int]:
    """Pairs of one label in two groups: rows (K,), rows (K,), and how many there are in all.

    Every pair once, or `max_pairs` different ones drawn evenly where there are more.

    Args:
        label: (n,) numbers.
        group: (n,) numbers.
        max_pairs: the most to return.
        rng: draws the pairs.
    """
    order = np.lexsort((group, label))
    label, group = label[order], group[order]
    # Sorted so, the partners of a row in later groups follow one another: from the end of its
    # group's block to the end of its label's block.
    label_end = np.searchsorted(label, label, side="right")
    new_block = np.flatnonzero((np.diff(label) != 0) | (np.diff(group) != 0)) + 1
    block_ends = np.append(new_block, len(label))
    group_end = block_ends[np.searchsorted(block_ends, np.arange(len(label)), side="right")]
    cumulative = np.cumsum(label_end - group_end)
    total = int(cumulative[-1])
    number = (
        np.arange(total)
        if total <= max_pairs
        else np.sort(rng.choice(total, max_pairs, replace=False))
    )
    first = np.searchsorted(cumulative, number, side="right")
    before = cumulative[first] - (label_end - group_end)[first]
    second = group_end[first] + number - before
    return order[first], order[second], total


def random_pairs(
    differ: list[np.ndarray], num_pairs: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of rows that differ in all of the given columns: rows (K,), rows (K,).

    Where few wells have few pairs, all are listed and at most `num_pairs` different ones returned;
    otherwise exactly `num_pairs` are drawn with replacement.

    Args:
        differ: columns of numbers, each (n,).
        num_pairs: the most to return.
        rng: draws the pairs.

    Returns:
        Empty arrays if no pair differs in all columns.
    """
    num_rows = len(differ[0])
    if num_rows * (num_rows - 1) // 2 <= _ALL_PAIRS:
        first, second = np.triu_indices(num_rows, k=1)
        kept = _all_differ(differ, first, second)
        first, second = first[kept], second[kept]
        if len(first) > num_pairs:
            drawn = rng.choice(len(first), num_pairs, replace=False)
            first, second = first[drawn], second[drawn]
        return first, second
    found: list[tuple[np.ndarray, np.ndarray]] = []
    missing, drawn_in_vain = num_pairs, 0
    while missing > 0 and drawn_in_vain < _ALL_PAIRS:
        first, second = rng.integers(num_rows, size=(2, 2 * num_pairs))
        kept = np.flatnonzero(_all_differ(differ, first, second))[:missing]
        found.append((first[kept], second[kept]))
        missing -= len(kept)
        drawn_in_vain = drawn_in_vain + len(first) if not len(kept) else 0
    return np.concatenate([x for x, _ in found]), np.concatenate([y for _, y in found])


def _all_differ(columns: list[np.ndarray], first: np.ndarray, second: np.ndarray) -> np.ndarray:
    kept = first != second
    for column in columns:
        kept &= column[first] != column[second]
    return kept
