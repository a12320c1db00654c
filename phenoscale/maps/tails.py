"""Where the tails of a perturbation map begin, exactly, without holding all its pairs.

The null of relationship recall is the similarity of all pairs, 146 million of them in a map of
17,063 genes. A pair is in the lower tail when (pairs at most as similar) / P <= the lower share,
and in the upper when (pairs less similar) / P >= the upper share, as `compute_recall` of
EFAAR_benchmarking 1.0 counts. Both are comparisons with one order statistic of the null each
(`tail_bounds`), so two numbers decide about every known pair.

Small maps are sorted. In large ones a sample of pairs brackets the order statistic; one pass in
float32 counts the pairs below the bracket and keeps those inside; those that float32 cannot tell
from it are compared in float64. The result is that of sorting all cosines in float64.

Shapes: n perturbations, d width of the embedding, P = n (n - 1) / 2 pairs, R known pairs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from phenoscale.maps.gene_pairs import Similarity, cosines_of, pair_similarities

SORTED_PAIRS = 2**22
"""Pairs that are sorted as a whole (2,897 perturbations); beyond, the tails alone are looked at."""

_SAMPLED_PAIRS = 2**17
_MARGIN_SD = 6.0  # of the sampled share, on both sides of a bracket
_BLOCK_ROWS = 512
_MOST_UNCLEAR = 2**23  # pairs that are compared in float64; with more, nearly all of them tie


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bounds:
    """Where the two tails begin."""

    below: float
    """Less similar pairs are in the lower tail."""
    above: float
    """More similar pairs are in the upper tail."""

    def inside(self, similarity: np.ndarray) -> np.ndarray:
        """Which similarities (R,) are in a tail, bool (R,)."""
        return (similarity < self.below) | (similarity > self.above)


def tail_bounds(
    vectors: np.ndarray,
    tails: Sequence[tuple[float, float]],
    similarity: Similarity = "cosine",
) -> list[Bounds]:
    """Bounds of each pair of tails.

    Args:
        vectors: (n, d) float64, as `gene_pairs.prepared` gives them.
        tails: lower and upper share of the null, each.
        similarity: of two genes; distances are always sorted, 8 bytes a pair.
    """
    num_pairs = len(vectors) * (len(vectors) - 1) // 2
    places = [place for tail in tails for place in _places(num_pairs, tail)]
    if num_pairs <= SORTED_PAIRS or similarity != "cosine":
        null = pair_similarities(vectors, similarity)
        null.sort()
        values = [_at(null, place) for place in places]
    else:
        values = _streamed(vectors, places)
    return [Bounds(below=values[i], above=values[i + 1]) for i in range(0, len(values), 2)]


def sorted_bounds(ascending: np.ndarray, tails: tuple[float, float]) -> Bounds:
    """Bounds of one pair of tails in a null (P,) that is sorted already."""
    low, high = _places(len(ascending), tails)
    return Bounds(below=_at(ascending, low), above=_at(ascending, high))


def _places(num_pairs: int, tails: tuple[float, float]) -> tuple[int, int]:
    """Which of the ascending null, from 0, bound the tails; -1 and P stand before and after all.

    Shares are compared as the reference compares them, count / P with the share in floating point.
    """
    low = int(tails[0] * num_pairs)
    low += (low + 1) / num_pairs <= tails[0]
    low -= low / num_pairs > tails[0]
    high = int(tails[1] * num_pairs)
    high += high / num_pairs < tails[1]
    high -= (high - 1) / num_pairs >= tails[1]
    return low, high - 1


def _at(ascending: np.ndarray, place: int) -> float:
    if place < 0:
        return -np.inf
    return float(ascending[place]) if place < len(ascending) else np.inf


def _streamed(unit: np.ndarray, places: Sequence[int]) -> list[float]:
    """The order statistics at some places of the null of a large map."""
    num_pairs = len(unit) * (len(unit) - 1) // 2
    narrow = unit.astype(np.float32)
    # |computed - true| of a sum of d products of numbers whose squares sum to 1 (Higham 2002, 3.5)
    error = (unit.shape[1] + 4) * float(np.finfo(np.float32).eps)
    sample = _sampled(narrow)
    brackets = []
    for place in places:
        share = place / num_pairs
        margin = _MARGIN_SD * np.sqrt(share * (1 - share) / len(sample)) + 1 / len(sample)
        ends = np.quantile(sample, np.clip([share - margin, share + margin], 0, 1))
        brackets.append((float(ends[0]) - 2 * error, float(ends[1]) + 2 * error))
    while True:
        kept = _scan(narrow, brackets)
        missed = [
            not (inside.below <= place < inside.below + len(inside.cosine))
            for place, inside in zip(places, kept, strict=True)
        ]
        if not any(missed):
            break
        brackets = [
            (low - (high - low), high + (high - low)) if miss else (low, high)
            for miss, (low, high) in zip(missed, brackets, strict=True)
        ]
    return [_exact(unit, one, place, error) for place, one in zip(places, kept, strict=True)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Inside:
    """The pairs inside a bracket, and how many are below it."""

    below: int
    first: np.ndarray
    second: np.ndarray
    cosine: np.ndarray


def _sampled(narrow: np.ndarray) -> np.ndarray:
    """Cosines of randomly drawn pairs, float32; always the same ones."""
    rng = np.random.default_rng(0)
    first = rng.integers(len(narrow), size=_SAMPLED_PAIRS)
    second = (first + rng.integers(1, len(narrow), size=_SAMPLED_PAIRS)) % len(narrow)
    return cosines_of(narrow, first, second)


def _scan(narrow: np.ndarray, brackets: Sequence[tuple[float, float]]) -> list[_Inside]:
    """One pass over all pairs, block by block."""
    below = [0] * len(brackets)
    parts: list[list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = [[] for _ in brackets]
    for start in range(0, len(narrow), _BLOCK_ROWS):
        block = narrow[start : start + _BLOCK_ROWS] @ narrow[start:].T
        rows, columns = block.shape
        block[:, :rows][np.tril_indices(rows)] = np.nan  # itself, and pairs that stand elsewhere
        flat = block.ravel()
        for number, (low, high) in enumerate(brackets):
            # The rarer side is looked at, so that few pairs are picked out.
            if low < 0:
                picked = np.flatnonzero(flat <= high)
                inside = flat[picked] >= low
                below[number] += len(picked) - int(np.count_nonzero(inside))
            else:
                picked = np.flatnonzero(flat >= low)
                inside = flat[picked] <= high
                everyone = flat.size - rows * (rows + 1) // 2
                below[number] += everyone - len(picked)
            picked = picked[inside]
            parts[number].append(
                (start + picked // columns, start + picked % columns, flat[picked])
            )
    joined = [tuple(np.concatenate(x) for x in zip(*part, strict=True)) for part in parts]
    return [
        _Inside(below=count, first=first, second=second, cosine=cosine)
        for count, (first, second, cosine) in zip(below, joined, strict=True)
    ]


def _exact(unit: np.ndarray, inside: _Inside, place: int, error: float) -> float:
    """The order statistic at `place`, in float64, from the pairs around it in float32."""
    rank = place - inside.below
    nearby = np.partition(inside.cosine, rank)[rank]
    # Order statistics move by no more than the values do: all further than this are on its side.
    lower = inside.cosine < nearby - 2 * error
    unclear = np.flatnonzero(~lower & (inside.cosine <= nearby + 2 * error))
    if len(unclear) > _MOST_UNCLEAR:
        raise ValueError(
            f"{len(unclear):,} pairs of the perturbation map are as similar as the threshold of a "
            "tail: its vectors lie in a few directions. Has the encoder collapsed?"
        )
    exact = np.sort(cosines_of(unit, inside.first[unclear], inside.second[unclear]))
    return float(exact[rank - np.count_nonzero(lower)])
