"""Relationship recall: how many known relationships lie in the tails of a perturbation map.

The null is the cosine similarity of all pairs of genes in the map. A known pair counts when it lies
in the lowest 5% or the highest 5% of the null, so chance is 0.10. Ties follow `compute_recall` of
EFAAR_benchmarking 1.0: a pair is low when (null values <= its own) / (size of the null) <= 0.05,
and high when (null values < its own) / size >= 0.95; a block of ties across a threshold is outside
as a whole.

Intervals are a bootstrap over genes, because pairs that share a gene are not independent
(`gene_bootstrap.py`). With a resampled null they are conservative, since the product of two
multiplicities varies more than one: on 150 simulated maps of 240 genes 95% intervals held the
expected recall in 99 to 100%.

A map whose distances mean something but whose directions do not (a UMAP, a cell count) is scored by
similarity="euclidean", the negative distance.

Shapes: n genes, d width of the embedding, P = n (n - 1) / 2 pairs, R known pairs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from phenoscale.maps.gene_bootstrap import Null, resampled_recalls
from phenoscale.maps.gene_pairs import Similarity, known_pairs, prepared, similarities_of
from phenoscale.maps.interval import Interval, percentile_interval
from phenoscale.maps.tails import SORTED_PAIRS, sorted_bounds, tail_bounds
from phenoscale.maps.vectors import listed

TAILS = (0.05, 0.95)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatabaseRecall:
    """Recall of one database's relationships."""

    recall: dict[str, Interval]
    """For each pair of tails, by name (recall_0.05_0.95)."""
    chance: dict[str, float]
    """What a map without any signal has, by the same names: the size of the tails."""
    num_pairs: int
    """Known pairs with both genes in the map."""
    num_entities: int
    """Genes in the map."""
    null: Null
    """Whether the thresholds moved with each bootstrap sample."""


def tail_recall(
    null: npt.ArrayLike, known: npt.ArrayLike, tails: tuple[float, float] = TAILS
) -> float:
    """Share of known values in the tails of the null.

    Args:
        null: (P,) similarities of all pairs, known ones included.
        known: (R,) similarities of the known pairs.
        tails: lower and upper share of the null, 0 <= lower < upper <= 1.
    """
    ascending, values = np.sort(np.asarray(null)), np.asarray(known)
    if not len(ascending) or not len(values):
        raise ValueError(
            f"{len(ascending)} null and {len(values)} known values; both are required."
        )
    return float(np.mean(sorted_bounds(ascending, _checked_tails(tails)).inside(values)))


def relationship_recall(
    vectors: npt.ArrayLike,
    names: Sequence[str],
    pairs: pd.DataFrame,
    tails: Sequence[tuple[float, float]] = (TAILS,),
    similarity: Similarity = "cosine",
) -> dict[str, float]:
    """Recall of known relationships in a perturbation map.

    Args:
        vectors: (n, d) one per gene, aligned and aggregated.
        names: (n,) gene names.
        pairs: entity1, entity2; order within a pair, repeats, self pairs and genes outside the map
            do not count.
        tails: pairs of shares; one score each.
        similarity: cosine, or euclidean for the negative distance.

    Returns:
        recall_{lower}_{upper} for each of `tails` (recall_0.05_0.95), num_pairs: known pairs with
        both genes in the map, num_entities: genes in the map.

    Raises:
        ValueError: for values that are not finite, an all-zero or constant map, duplicate names,
            lengths that differ, fewer than `MIN_GENES` genes, no overlap, fewer than `MIN_PAIRS`
            known pairs.
    """
    ready = prepared(vectors, names, similarity)
    first, second = known_pairs(names, pairs)
    known = similarities_of(ready, first, second, similarity)
    checked = [_checked_tails(tail) for tail in tails]
    bounds = tail_bounds(ready, checked, similarity)
    scores: dict[str, float] = {
        tail_name(tail): float(np.mean(bound.inside(known)))
        for tail, bound in zip(checked, bounds, strict=True)
    }
    return scores | {"num_pairs": len(known), "num_entities": len(ready)}


def recall_by_database(
    vectors: npt.ArrayLike,
    names: Sequence[str],
    databases: Mapping[str, pd.DataFrame],
    *,
    tails: Sequence[tuple[float, float]] = (TAILS,),
    rounds: int = 1000,
    seed: int = 0,
    null: Null | None = None,
    similarity: Similarity = "cosine",
) -> dict[str, DatabaseRecall]:
    """Recall of several databases in one map, with 95% intervals over genes.

    Args:
        vectors: (n, d) as in `relationship_recall`.
        names: (n,) gene names.
        databases: name to its entity1, entity2.
        tails: pairs of shares; one score each.
        rounds: bootstrap samples of genes, the same for all databases.
        seed: of the samples.
        null: resampled or fixed (`gene_bootstrap.py`); by default resampled up to `SORTED_PAIRS`
            pairs of genes and fixed beyond.
        similarity: cosine, or euclidean.

    Raises:
        ValueError: as `relationship_recall`, with the name of the database; none given.
    """
    if not databases:
        raise ValueError("No database of relationships was given; at least one is required.")
    ready = prepared(vectors, names, similarity)
    if null is None:
        null = "resampled" if len(ready) * (len(ready) - 1) // 2 <= SORTED_PAIRS else "fixed"
    known = {}
    for name, pairs in databases.items():
        try:
            known[name] = known_pairs(names, pairs)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    recalls = {
        tail_name(tail): resampled_recalls(
            [ready],
            list(known.values()),
            _checked_tails(tail),
            rounds=rounds,
            seed=seed,
            null=null,
            similarity=similarity,
        )[:, 0]
        for tail in tails
    }
    return {
        name: DatabaseRecall(
            recall={
                key: percentile_interval(values[0, number], values[1:, number])
                for key, values in recalls.items()
            },
            chance={tail_name(tail): chance(tail) for tail in tails},
            num_pairs=len(known[name][0]),
            num_entities=len(ready),
            null=null,
        )
        for number, name in enumerate(databases)
    }


def bootstrap_recall(
    vectors: npt.ArrayLike,
    names: Sequence[str],
    pairs: pd.DataFrame,
    rounds: int = 1000,
    seed: int = 0,
    tails: tuple[float, float] = TAILS,
    null: Null = "resampled",
) -> Interval:
    """Recall with its 95% percentile interval over genes.

    Args:
        vectors: (n, d) as in `relationship_recall`.
        names: (n,) gene names.
        pairs: entity1, entity2 as in `relationship_recall`.
        rounds: bootstrap samples.
        seed: of the samples.
        tails: lower and upper share of the null.
        null: resampled, or fixed for large maps.

    Raises:
        ValueError: as `relationship_recall`, and for fewer than 40 rounds.
    """
    values = recall_samples(vectors, names, pairs, rounds, seed, tails, null)
    return percentile_interval(values[0], values[1:])


def recall_samples(
    vectors: npt.ArrayLike,
    names: Sequence[str],
    pairs: pd.DataFrame,
    rounds: int = 1000,
    seed: int = 0,
    tails: tuple[float, float] = TAILS,
    null: Null = "resampled",
) -> np.ndarray:
    """Recall on the data (first) and on each bootstrap sample of genes, (1 + rounds,).

    Maps of the same genes and pairs get the same samples, one by one. Arguments and errors as
    `bootstrap_recall`.
    """
    return _samples([vectors], names, pairs, rounds, seed, tails, null)[:, 0]


def paired_difference(
    maps_a: Sequence[npt.ArrayLike],
    maps_b: Sequence[npt.ArrayLike],
    names: Sequence[str],
    pairs: pd.DataFrame,
    rounds: int = 1000,
    seed: int = 0,
    tails: tuple[float, float] = TAILS,
    null: Null = "resampled",
) -> Interval:
    """Mean recall of `maps_a` less mean recall of `maps_b`, both on the same samples of genes.

    Several maps on one side are several initialisations of one thing. The interval is over genes
    only: it does not hold the spread between initialisations.

    Args:
        maps_a: each (n, its own d), rows in the order of `names`.
        maps_b: the same for the other side.
        names: (n,) gene names, the same for all maps.
        pairs: entity1, entity2 as in `relationship_recall`.
        rounds: bootstrap samples.
        seed: of the samples.
        tails: lower and upper share of the null.
        null: resampled, or fixed for large maps.

    Raises:
        ValueError: as `bootstrap_recall`, and for a side without maps.
    """
    if not len(maps_a) or not len(maps_b):
        raise ValueError(
            f"maps_a has {len(maps_a)} maps and maps_b {len(maps_b)}; each side needs at least one."
        )
    values = _samples([*maps_a, *maps_b], names, pairs, rounds, seed, tails, null)
    difference = values[:, : len(maps_a)].mean(axis=1) - values[:, len(maps_a) :].mean(axis=1)
    return percentile_interval(difference[0], difference[1:])


def restrict(
    vectors: npt.ArrayLike, names: Sequence[str], genes: Collection[str]
) -> tuple[np.ndarray, list[str]]:
    """The part of a map that holds some genes only, such as expressed or annotated ones.

    The null of a score is then over these genes too.

    Args:
        vectors: (n, d).
        names: (n,) gene names.
        genes: those to keep; others of them that the map lacks do not matter.

    Raises:
        ValueError: if none of them is in the map.
    """
    wanted = set(genes)
    kept = [row for row, name in enumerate(names) if name in wanted]
    if not kept:
        raise ValueError(
            f"None of the {len(wanted)} genes to keep is in the map; it has {listed(list(names))}, "
            f"they are {listed(sorted(wanted))}."
        )
    return np.asarray(vectors)[kept], [names[row] for row in kept]


def tail_name(tails: tuple[float, float]) -> str:
    """Name of a score: recall_0.05_0.95."""
    return f"recall_{tails[0]}_{tails[1]}"


def chance(tails: tuple[float, float] = TAILS) -> float:
    """Recall of a map without signal: the size of both tails."""
    return tails[0] + (1 - tails[1])


def _samples(
    maps: Sequence[npt.ArrayLike],
    names: Sequence[str],
    pairs: pd.DataFrame,
    rounds: int,
    seed: int,
    tails: tuple[float, float],
    null: Null,
) -> np.ndarray:
    """Recall of each map by cosine, (1 + rounds, maps); the first row is the data."""
    ready = [prepared(vectors, names) for vectors in maps]
    known = known_pairs(names, pairs)
    return resampled_recalls(
        ready,
        [known],
        _checked_tails(tails),
        rounds=rounds,
        seed=seed,
        null=null,
        similarity="cosine",
    )[:, :, 0]


def _checked_tails(tails: tuple[float, float]) -> tuple[float, float]:
    low, high = tails
    if not 0 <= low < high <= 1:
        raise ValueError(f"tails are {tails}; 0 <= lower < upper <= 1 is required, as in {TAILS}.")
    return low, high
