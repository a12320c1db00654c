"""Relationship recall on samples of genes drawn with replacement.

A gene drawn m times stands in the sample as m genes, and two copies of one gene form no pair; so
the pair (i, j) has weight m_i m_j among the known pairs. With the null resampled it has that weight
in the null too, and the thresholds of the tails move with each sample. With the null fixed they
stay those of the whole map: all that is left is the known pairs, which is cheap at the size of a
genome.

Shapes: n genes, P = n (n - 1) / 2 pairs, R known pairs of one database.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import numpy as np

from phenoscale.maps.gene_pairs import (
    Similarity,
    pair_position,
    pair_similarities,
    similarities_of,
)
from phenoscale.maps.interval import checked_rounds
from phenoscale.maps.tails import SORTED_PAIRS, tail_bounds

Null = Literal["resampled", "fixed"]
"""Whether the thresholds of the tails move with each sample of genes."""

Known = tuple[np.ndarray, np.ndarray]
"""(R,), (R,) rows of a database's known pairs."""


def resampled_recalls(
    maps: Sequence[np.ndarray],
    databases: Sequence[Known],
    tails: tuple[float, float],
    *,
    rounds: int,
    seed: int,
    null: Null,
    similarity: Similarity,
) -> np.ndarray:
    """Recall of each map and database, on the data and on each sample.

    The sample of genes depends on (n, seed) alone, so maps of the same genes are resampled alike. A
    sample without any known pair of some database has no recall there and is drawn again.

    Args:
        maps: each (n, its own d), as `gene_pairs.prepared` gives it.
        databases: known pairs of each.
        tails: lower and upper share of the null.
        rounds: bootstrap samples.
        seed: of the samples.
        null: resampled or fixed.
        similarity: of two genes.

    Returns:
        (1 + rounds, maps, databases); the first row is the data themselves.

    Raises:
        ValueError: for too few rounds, another null, or more pairs than can be resampled.
    """
    checked_rounds(rounds)
    num_genes = len(maps[0])
    _check_null(null, num_genes)
    recalls = np.empty((rounds + 1, len(maps), len(databases)))
    rng = np.random.default_rng(seed)
    drawn = np.ones(num_genes, dtype=np.int64)
    recall_of = (_resampled if null == "resampled" else _fixed)(maps, databases, tails, similarity)
    for row in recalls:
        weights = [drawn[first] * drawn[second] for first, second in databases]
        row[:] = recall_of(drawn, weights)
        drawn = _draw_genes(rng, num_genes, databases)
    return recalls


_RecallOf = Callable[[np.ndarray, list[np.ndarray]], list[list[float]]]
"""From multiplicities (n,) and weights of the known pairs to recall by map and database."""


def _fixed(
    maps: Sequence[np.ndarray],
    databases: Sequence[Known],
    tails: tuple[float, float],
    similarity: Similarity,
) -> _RecallOf:
    hits = []
    for vectors in maps:
        (bounds,) = tail_bounds(vectors, [tails], similarity)
        hits.append(
            [bounds.inside(similarities_of(vectors, a, b, similarity)) for a, b in databases]
        )

    def recall_of(drawn: np.ndarray, weights: list[np.ndarray]) -> list[list[float]]:
        totals = [int(weight.sum()) for weight in weights]
        return [
            [
                float(w[hit].sum() / total)
                for w, total, hit in zip(weights, totals, row, strict=True)
            ]
            for row in hits
        ]

    return recall_of


def _resampled(
    maps: Sequence[np.ndarray],
    databases: Sequence[Known],
    tails: tuple[float, float],
    similarity: Similarity,
) -> _RecallOf:
    positions = [pair_position(first, second, len(maps[0])) for first, second in databases]
    sorted_maps = [_sorted_pairs(vectors, positions, similarity) for vectors in maps]

    def recall_of(drawn: np.ndarray, weights: list[np.ndarray]) -> list[list[float]]:
        return [_weighted_recalls(pairs, drawn, weights, tails) for pairs in sorted_maps]

    return recall_of


def _check_null(null: str, num_genes: int) -> None:
    if null not in get_args(Null):
        raise ValueError(f"null is {null!r}; give one of {', '.join(get_args(Null))}.")
    num_pairs = num_genes * (num_genes - 1) // 2
    if null == "resampled" and num_pairs > SORTED_PAIRS:
        raise ValueError(
            f"{num_genes} genes have {num_pairs:,} pairs; at most {SORTED_PAIRS:,} are resampled. "
            'Give null="fixed", which holds the thresholds of the tails.'
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _SortedPairs:
    """All pairs of one map in ascending order of similarity, ready to be weighted."""

    first: np.ndarray
    """(P,) int32, the pair's first gene."""
    second: np.ndarray
    """(P,) int32, its second gene."""
    tie_starts: np.ndarray
    """Ascending positions at which a block of equal similarities starts, and P at the end."""
    known: list[np.ndarray]
    """(R,) positions of the known pairs of each database."""


def _draw_genes(rng: np.random.Generator, num_genes: int, databases: Sequence[Known]) -> np.ndarray:
    """How often each gene is drawn, (n,) int64, in a sample with a known pair of each database."""
    while True:
        drawn = np.bincount(rng.integers(num_genes, size=num_genes), minlength=num_genes)
        if all((drawn[first] * drawn[second]).any() for first, second in databases):
            return drawn


def _weighted_recalls(
    pairs: _SortedPairs, drawn: np.ndarray, weights: list[np.ndarray], tails: tuple[float, float]
) -> list[float]:
    """Recalls in the sample in which gene i stands drawn[i] times; integers up to the division."""
    num_pairs = len(pairs.first)
    total = (int(drawn.sum()) ** 2 - int((drawn**2).sum())) // 2
    below = _prefix(
        pairs.first, pairs.second, drawn, tails[0], lambda weight: weight / total <= tails[0]
    )
    above = _prefix(
        pairs.first[::-1],
        pairs.second[::-1],
        drawn,
        1 - tails[1],
        lambda weight: (total - weight) / total >= tails[1],
    )
    # A tail never cuts a block of ties: step back to where the block began.
    starts = pairs.tie_starts
    low_end = starts[np.searchsorted(starts, below, side="right") - 1]
    high_start = starts[np.searchsorted(starts, num_pairs - above, side="left")]
    return [
        float(weight[(known < low_end) | (known >= high_start)].sum() / weight.sum())
        for known, weight in zip(pairs.known, weights, strict=True)
    ]


def _prefix(
    first: np.ndarray,
    second: np.ndarray,
    drawn: np.ndarray,
    share: float,
    inside: Callable[[np.ndarray], np.ndarray],
) -> int:
    """Number of leading pairs whose summed weight is `inside` the tail.

    Looks at twice the expected share of the pairs first, and at more only if the tail reaches
    beyond them: a tail is a small part of all pairs, and this is the inner loop of the bootstrap.
    """
    length = math.ceil(2 * share * len(first)) + 1
    while True:
        weight = np.cumsum(drawn[first[:length]] * drawn[second[:length]])
        count = int(np.count_nonzero(inside(weight)))
        if count < length or length >= len(first):
            return count
        length *= 2


def _sorted_pairs(
    vectors: np.ndarray, positions: Sequence[np.ndarray], similarity: Similarity
) -> _SortedPairs:
    similarities = pair_similarities(vectors, similarity)
    order = np.argsort(similarities, kind="stable")
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    ascending = similarities[order]
    starts = np.flatnonzero(ascending[1:] != ascending[:-1]) + 1
    genes = np.arange(len(vectors), dtype=np.int32)
    first = np.repeat(genes, len(vectors) - 1 - genes)
    second = np.concatenate([genes[gene + 1 :] for gene in genes])
    return _SortedPairs(
        first=first[order],
        second=second[order],
        tie_starts=np.concatenate([[0], starts, [len(order)]]),
        known=[rank[position] for position in positions],
    )
