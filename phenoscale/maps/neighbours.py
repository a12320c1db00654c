"""The nearest and the most opposed neighbours of a perturbation in a perturbation map.

Similarity is the cosine. How unusual one is, is told against the similarities of all pairs of the
map, as relationship recall tells it (`recall.py`): a pair lies in the high tail if at least 95% of
all pairs are below it, in the low tail if at most 5% are at or below it, so that chance is 0.10.
From `EXACT_NAMES` perturbations on, counting all pairs would keep a person waiting; the pairs that
the perturbation itself is in stand for them then, and the answer says so.

Shapes: n perturbations, d width of their vectors.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping

import numpy as np
import pandas as pd

from phenoscale.maps.gene_pairs import DECIMALS
from phenoscale.maps.perturbation_map import PerturbationMap
from phenoscale.maps.recall import TAILS
from phenoscale.maps.relationships import unordered_pairs
from phenoscale.maps.vectors import checked_vectors, listed

EXACT_NAMES = 10_000
"""Perturbations up to which all pairs are counted: 50 million, a few seconds."""

ALL_PAIRS, OWN_PAIRS = "all pairs", "own pairs"
_BLOCK = 1024


def neighbours(found: PerturbationMap, name: str, top: int = 10) -> pd.DataFrame:
    """Nearest and most opposed perturbations.

    Args:
        found: the map.
        name: one of its names.
        top: how many of each kind; in a map of fewer than 2 * top + 1 all others are listed once.

    Returns:
        By descending similarity; ties in the order of the map:
        name (str), similarity (float, cosine), rank (int, 1 for the nearest of the n - 1 others),
        percentile (float in [0, 1], share of the null at or below), tail ("high", "low" or "", see
        above), null (`ALL_PAIRS` or `OWN_PAIRS`: what percentile and tail are counted in).

    Raises:
        ValueError: for a name that is not in the map (names near ones), top below 1, a map of one
            perturbation, or vectors without a direction.
    """
    if top < 1:
        raise ValueError(f"top is {top}; at least 1 is required.")
    row = _row_of(found, name)
    unit = _directions(found)
    similarity = np.round(unit @ unit[row], DECIMALS)
    others = np.delete(np.arange(len(unit)), row)
    order = others[np.argsort(-similarity[others], kind="stable")]
    places = np.arange(len(order))
    if len(order) > 2 * top:
        places = np.concatenate([places[:top], places[-top:]])
    shown = similarity[order[places]]
    exact = len(unit) <= EXACT_NAMES
    below, at_or_below, size = (
        _counts_in_all_pairs(unit, shown) if exact else _counts(similarity[others], shown)
    )
    low, high = TAILS
    tail = np.where(below / size >= high, "high", np.where(at_or_below / size <= low, "low", ""))
    return pd.DataFrame(
        {
            "name": [found.names[other] for other in order[places]],
            "similarity": shown,
            "rank": places + 1,
            "percentile": at_or_below / size,
            "tail": tail,
            "null": ALL_PAIRS if exact else OWN_PAIRS,
        }
    )


def known_to(name: str, databases: Mapping[str, pd.DataFrame]) -> dict[str, list[str]]:
    """Which databases relate which perturbations to this one.

    Args:
        name: a perturbation.
        databases: name of a database -> its entity1, entity2.

    Returns:
        Name of the other perturbation -> names of the databases, in their order.
    """
    known: dict[str, list[str]] = {}
    for database, table in databases.items():
        pairs = unordered_pairs(table)
        first, second = pairs["entity1"], pairs["entity2"]
        for other in [*second[first == name], *first[second == name]]:
            known.setdefault(other, []).append(database)
    return known


def _row_of(found: PerturbationMap, name: str) -> int:
    if name in found.names:
        return found.names.index(name)
    folded: dict[str, list[str]] = {}
    for other in found.names:
        folded.setdefault(other.casefold(), []).append(other)
    near = difflib.get_close_matches(name.casefold(), folded, n=5, cutoff=0.6)
    names = [other for key in near for other in folded[key]]
    hint = f"Near are {listed(names)}." if names else f"It holds {listed(found.names)}."
    raise ValueError(
        f"{name} is not in this perturbation map of {len(found.names):,} perturbations. {hint}"
    )


def _directions(found: PerturbationMap) -> np.ndarray:
    """Vectors (n, d) float64 of length 1."""
    vectors = checked_vectors(found.vectors, name="vectors", row_names=found.names)
    if len(vectors) < 2:
        raise ValueError("This perturbation map holds one perturbation; neighbours need others.")
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    if zero := [found.names[row] for row in np.flatnonzero(length == 0)]:
        raise ValueError(
            f"{len(zero)} perturbations have an all-zero vector ({listed(zero)}), which has no "
            "cosine; leave them out of the perturbation map."
        )
    unit: np.ndarray = vectors / length
    return unit


def _counts_in_all_pairs(
    unit: np.ndarray, values: np.ndarray
) -> tuple[np.ndarray, np.ndarray, int]:
    """As `_counts`, in the cosines of all pairs, a block of rows at a time."""
    below = np.zeros(len(values), dtype=np.int64)
    at_or_below = np.zeros(len(values), dtype=np.int64)
    size = 0
    for start in range(0, len(unit), _BLOCK):
        block = np.round(unit[start : start + _BLOCK] @ unit[start:].T, DECIMALS)
        pairs = block[np.triu_indices(len(block), k=1, m=block.shape[1])]
        counted = _counts(pairs, values)
        below, at_or_below, size = below + counted[0], at_or_below + counted[1], size + len(pairs)
    return below, at_or_below, size


def _counts(null: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """How many of the null are below each value, at or below it, and how many there are."""
    thresholds, place = np.unique(values, return_inverse=True)
    # How many thresholds each value of the null reaches, and how many it exceeds: two counts of
    # few bins, instead of sorting the null.
    reached = np.bincount(np.searchsorted(thresholds, null, "right"), minlength=len(thresholds) + 1)
    exceeded = np.bincount(np.searchsorted(thresholds, null, "left"), minlength=len(thresholds) + 1)
    below = np.cumsum(reached)[:-1][place]
    at_or_below = np.cumsum(exceeded)[:-1][place]
    return below, at_or_below, len(null)
