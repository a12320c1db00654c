"""The pairs of genes of a perturbation map: how similar they are, and which are known.

Shapes: n genes, d width of the embedding, P = n (n - 1) / 2 pairs, R known pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.spatial.distance import pdist

from phenoscale.maps.relationships import unordered_pairs
from phenoscale.maps.vectors import checked_vectors, listed

Similarity = Literal["cosine", "euclidean"]
"""Of two genes: the cosine of their vectors, or their negative distance."""

MIN_GENES = 20
"""Genes that a perturbation map needs to be scored; as MIN_REQ_ENT_CNT in EFAAR_benchmarking."""

MIN_PAIRS = 10
"""Known pairs with both genes in the map that a score needs."""

DECIMALS = 12
"""Similarities are rounded here, so that equal ones tie whatever order the BLAS added them in."""

_BLOCK = 1024
_PAIRS_AT_ONCE = 2**11


def prepared(
    vectors: npt.ArrayLike, names: Sequence[str], similarity: Similarity = "cosine"
) -> np.ndarray:
    """Checked vectors (n, d), float64; scaled to length 1 where the cosine is asked for.

    Raises:
        ValueError: for values that are not finite, another number of names, fewer than `MIN_GENES`
            genes, a constant map, all-zero vectors, which have no cosine, a single column, of which
            the cosine is a sign, or another similarity.
    """
    if similarity not in get_args(Similarity):
        raise ValueError(
            f"similarity is {similarity!r}; give one of {', '.join(get_args(Similarity))}."
        )
    vectors = checked_vectors(vectors, name="vectors", rows=len(names), row_names=list(names))
    if len(names) < MIN_GENES:
        raise ValueError(
            f"The perturbation map has {len(names)} genes; recall needs at least {MIN_GENES}. Use "
            "a screen with more genes."
        )
    if not (vectors != vectors[0]).any():
        raise ValueError(
            f"All {len(names)} genes have the same, constant vector; has the encoder collapsed?"
        )
    if similarity == "euclidean":
        return vectors
    if vectors.shape[1] == 1:
        raise ValueError(
            "The perturbation map has one column, of which the cosine is a mere sign; give "
            'similarity="euclidean".'
        )
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    if zero := [names[int(row)] for row in np.flatnonzero(length == 0)]:
        raise ValueError(
            f"{len(zero)} genes have an all-zero vector ({listed(zero)}), which has no cosine; "
            "leave them out of the perturbation map."
        )
    unit: np.ndarray = vectors / length
    return unit


def known_pairs(names: Sequence[str], pairs: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Rows (R,), (R,) of the known pairs with both genes in the map; the first row is the smaller.

    Args:
        names: (n,) gene names.
        pairs: entity1, entity2; order within a pair, repeats and self pairs do not count.

    Raises:
        ValueError: for duplicate names, no overlap, or fewer than `MIN_PAIRS` known pairs.
    """
    index = pd.Index(names)
    if repeated := index[index.duplicated()].unique().tolist():
        raise ValueError(
            f"Gene names must be unique in a perturbation map; repeated are {listed(repeated)}. "
            "Aggregate wells and guides to genes first."
        )
    unordered = unordered_pairs(pairs)
    rows = np.stack(
        [index.get_indexer(pd.Index(unordered[column])) for column in ("entity1", "entity2")]
    )
    rows = rows[:, (rows >= 0).all(axis=0)]
    if not rows.size:
        raise ValueError(
            f"None of {len(unordered)} relationships has both genes in the map; its genes are "
            f"named like {listed(list(names))}, the database has "
            f"{listed(unordered['entity1'].unique().tolist())}. Use the same gene symbols in both."
        )
    if rows.shape[1] < MIN_PAIRS:
        raise ValueError(
            f"{rows.shape[1]} of {len(unordered)} relationships have both genes in the map; recall "
            f"needs at least {MIN_PAIRS}. Use a larger database or a screen with more of its genes."
        )
    return rows.min(axis=0), rows.max(axis=0)


def pair_position(first: np.ndarray, second: np.ndarray, num_genes: int) -> np.ndarray:
    """Place (R,) of the pairs first < second among all P: (0, 1), (0, 2), ..., (1, 2), ...."""
    first, second = first.astype(np.int64), second.astype(np.int64)
    place: np.ndarray = first * num_genes - first * (first + 1) // 2 + second - first - 1
    return place


def pair_cosines(unit: np.ndarray) -> np.ndarray:
    """Cosines (P,) of all pairs; by blocks of rows, so the full n x n matrix is never held."""
    num_genes = len(unit)
    cosines = np.empty(num_genes * (num_genes - 1) // 2)
    end = 0
    for start in range(0, num_genes, _BLOCK):
        block = unit[start : start + _BLOCK] @ unit[start:].T
        for row, values in enumerate(block):
            start_of_row, end = end, end + len(values) - row - 1
            cosines[start_of_row:end] = values[row + 1 :]
    return np.round(cosines, DECIMALS, out=cosines)


def pair_similarities(vectors: np.ndarray, similarity: Similarity) -> np.ndarray:
    """Similarities (P,) of all pairs of `prepared` vectors, in the order of `pair_position`."""
    if similarity == "cosine":
        return pair_cosines(vectors)
    return _as_similarity(pdist(vectors))


def similarities_of(
    vectors: np.ndarray, first: np.ndarray, second: np.ndarray, similarity: Similarity
) -> np.ndarray:
    """Similarities (R,) of some pairs of `prepared` vectors, as `pair_similarities` has them."""
    if similarity == "cosine":
        return cosines_of(vectors, first, second)
    apart = [
        np.sqrt(np.square(vectors[first[part]] - vectors[second[part]]).sum(axis=1))
        for part in _parts(len(first))
    ]
    return _as_similarity(np.concatenate(apart))


def _as_similarity(distance: np.ndarray) -> np.ndarray:
    np.round(distance, DECIMALS, out=distance)
    return np.negative(distance, out=distance)


def cosines_of(unit: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Cosines (R,) of some pairs of rows, in the dtype of `unit`; rounded where that is float64."""
    cosines = np.empty(len(first), dtype=unit.dtype)
    for part in _parts(len(first)):
        np.einsum("rd,rd->r", unit[first[part]], unit[second[part]], out=cosines[part])
    return np.round(cosines, DECIMALS, out=cosines) if unit.dtype == np.float64 else cosines


def _parts(pairs: int) -> list[slice]:
    return [slice(start, start + _PAIRS_AT_ONCE) for start in range(0, pairs, _PAIRS_AT_ONCE)]
