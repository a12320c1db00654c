"""Average precision of positive pairs among negative ones, through the package copairs.

copairs finds the pairs, ranks them, draws the null and corrects the p values (Kalinin et al.,
bioRxiv 2024.04.01.587631; copairs 0.5). Here it is guarded: sizes are checked before
it starts, its cache is a folder of this call, and rows it cannot rank honestly are refused.

copairs holds similarities as float32, and of two equal ones it ranks the positive first; rows that
all point the same way would score 1. Its null depends on what an earlier call left in its cache
(~/.copairs), so each call here gets an empty one and depends on its arguments alone.

Shapes: n rows, d width of the embedding.
"""

from __future__ import annotations

import dataclasses
import importlib
import tempfile
from types import ModuleType

import numpy as np
import pandas as pd

from phenoscale.maps.interval import Interval, checked_rounds, percentile_interval
from phenoscale.maps.rankable import Rules, check_directions, check_negatives, check_size

MAX_NULL = 100_000_000
"""Largest null, draws x pairs of one query; copairs holds 2 bytes of it in each thread."""

RETRIEVED_BELOW = 0.05
"""A perturbation counts as retrieved when its corrected p value is below this."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Draws:
    """Sizes and seed of what is drawn."""

    null_size: int = 10_000
    """Random rankings behind each p value; the least p value is 1 / (null_size + 1)."""
    rounds: int = 1000
    """Bootstrap samples of perturbations."""
    seed: int = 0
    """Of both."""


DRAWS = Draws()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Retrieval:
    """The result of one retrieval task."""

    task: str
    """Name of the task."""
    mean_average_precision: Interval
    """Mean over perturbations, with a 95% bootstrap interval over perturbations."""
    chance: float
    """The same mean of the average precision that random ranks have on average."""
    fraction_retrieved: float
    """Share of perturbations with a corrected p value below `RETRIEVED_BELOW`."""
    num_perturbations: int
    """Perturbations (genes, targets) that the mean is over."""
    num_queries: int
    """Rankings: one per row, or per row and target where a row has several."""
    num_unpaired: int
    """Rows of the task that have no positive or no negative, so that they are no queries."""
    num_left_out: int
    """Rows that the task has no use for: controls, rows without a gene, guide or target."""
    table: pd.DataFrame
    """One row per perturbation: its name, num_queries, mean_average_precision, chance, p_value,
    corrected_p_value, retrieved (bool)."""


def rank_pairs(
    task: str,
    vectors: np.ndarray,
    frame: pd.DataFrame,
    rules: Rules,
    entity: str,
    *,
    query: np.ndarray | None = None,
    absolute: bool = False,
    draws: Draws,
    num_left_out: int = 0,
) -> Retrieval:
    """Ranks the pairs of each row and takes the mean over the values of `entity`.

    Args:
        task: name of the result.
        vectors: (n, d) float64, finite.
        frame: n rows with the columns of `rules`, without nulls.
        rules: which pairs are positive and which negative.
        entity: the column whose values are the perturbations, or `rules.label`.
        query: (n,) bool, rows that may be queries; all if None.
        absolute: rank by the absolute cosine.
        draws: sizes and seed of null and bootstrap.
        num_left_out: rows that the caller has left out, for the result.

    Raises:
        ValueError: without copairs, for rows that cannot be ranked, too many pairs, no positive or
            no negative pair, or fewer than two perturbations with queries.
    """
    checked_rounds(draws.rounds)
    if len(frame) < 2:
        raise ValueError(
            f"{task}: {len(frame)} rows are of use for it and {num_left_out} are not (controls, "
            "rows without a gene, guide or target); at least 2 are required."
        )
    check_directions(vectors)
    check_size(frame, rules)
    meta, names = _coded(frame, rules, entity)
    if rules.label is not None:
        check_negatives(frame, rules)
    scores = _average_precision(task, vectors, meta, rules, absolute)
    query = np.ones(len(frame), dtype=bool) if query is None else query
    paired = (scores["n_pos_pairs"] > 0) & (scores["n_total_pairs"] > scores["n_pos_pairs"])
    queries = scores[paired.to_numpy() & query[scores["row"].to_numpy()]].reset_index(drop=True)
    table = _by_entity(queries, entity, draws)
    if names is not None:
        table[entity] = names[table[entity].to_numpy(dtype=np.int64)]
    return _result(
        task, table, draws,
        num_queries=len(queries),
        num_unpaired=int(query.sum()) - queries["row"].nunique(),
        num_left_out=num_left_out,
    )  # fmt: skip


def _average_precision(
    task: str, vectors: np.ndarray, meta: pd.DataFrame, rules: Rules, absolute: bool
) -> pd.DataFrame:
    """One row per query: row, the columns of the rules, average_precision, pair counts."""
    ranked_by, options = _copairs("map"), {}
    if rules.label is not None:
        ranked_by, options = _copairs("map.multilabel"), {"multilabel_col": rules.label}
    try:
        scores: pd.DataFrame = ranked_by.average_precision(
            meta,
            vectors,
            pos_sameby=list(rules.positive_same),
            pos_diffby=list(rules.positive_different),
            neg_sameby=list(rules.negative_same),
            neg_diffby=list(rules.negative_different),
            distance="abs_cosine" if absolute else "cosine",
            progress_bar=False,
            **options,
        )
    except _copairs("matching").UnpairedException as error:
        raise ValueError(
            f"{task}: {error} Positive pairs share {list(rules.positive_same)} and differ in "
            f"{list(rules.positive_different)}, negative pairs share {list(rules.negative_same)} "
            f"and differ in {list(rules.negative_different)}; the {len(meta)} rows need some of "
            "both."
        ) from error
    return scores


def _result(
    task: str,
    table: pd.DataFrame,
    draws: Draws,
    *,
    num_queries: int,
    num_unpaired: int,
    num_left_out: int,
) -> Retrieval:
    if len(table) < 2:
        raise ValueError(
            f"{task}: {len(table)} perturbations have queries with positives and negatives "
            f"({num_unpaired} rows have none); an interval needs at least 2."
        )
    scores = table["mean_average_precision"].to_numpy(dtype=np.float64)
    picks = np.random.default_rng(draws.seed).integers(len(table), size=(draws.rounds, len(table)))
    return Retrieval(
        task=task,
        mean_average_precision=percentile_interval(
            float(scores.mean()), scores[picks].mean(axis=1)
        ),
        chance=float(table["chance"].mean()),
        fraction_retrieved=float(table["retrieved"].mean()),
        num_perturbations=len(table),
        num_queries=num_queries,
        num_unpaired=num_unpaired,
        num_left_out=num_left_out,
        table=table,
    )


def _by_entity(queries: pd.DataFrame, entity: str, draws: Draws) -> pd.DataFrame:
    """Mean average precision, chance and p values of each perturbation, in order of its code."""
    if queries.empty:
        return pd.DataFrame({entity: []})
    longest = int(queries["n_total_pairs"].max())
    if longest * draws.null_size > MAX_NULL:
        raise ValueError(
            f"A query has {longest} pairs and null_size is {draws.null_size}; their product may be "
            f"at most {MAX_NULL}. Take a smaller null_size, or negatives on the same plate."
        )
    counts = queries[["n_pos_pairs", "n_total_pairs"]].to_numpy(dtype=np.int64)
    kinds, kind = np.unique(counts, axis=0, return_inverse=True)
    expected_ap = _copairs("map.normalization").expected_ap
    expected = np.array([expected_ap(int(pos), int(total - pos)) for pos, total in kinds])
    queries = queries.assign(chance=expected[kind.ravel()])
    with tempfile.TemporaryDirectory() as cache:
        table = _copairs("map").mean_average_precision(
            queries,
            sameby=[entity],
            null_size=draws.null_size,
            threshold=RETRIEVED_BELOW,
            seed=draws.seed,
            progress_bar=False,
            cache_dir=cache,
        )
    grouped = queries.groupby(entity)["chance"].agg(["size", "mean"])
    table = table.merge(grouped, left_on=entity, right_index=True)
    table = table.rename(
        columns={"size": "num_queries", "mean": "chance", "below_corrected_p": "retrieved"}
    )
    columns = ["num_queries", "mean_average_precision", "chance", "p_value", "corrected_p_value"]
    return table[[entity, *columns, "retrieved"]].reset_index(drop=True)


def _coded(
    frame: pd.DataFrame, rules: Rules, entity: str
) -> tuple[pd.DataFrame, np.ndarray | None]:
    """The columns of the rules as numbers, and the names of the entity's numbers."""
    meta = pd.DataFrame({"row": np.arange(len(frame))})
    names = None
    for column in dict.fromkeys([*rules.columns, entity]):
        if column == rules.label:
            meta[column] = frame[column].to_numpy(dtype=object)
            continue
        codes, values = pd.factorize(frame[column].to_numpy(), sort=True)
        meta[column] = codes
        if column == entity:
            names = np.asarray(values, dtype=object)
    return meta, names


def _copairs(module: str) -> ModuleType:
    try:
        return importlib.import_module(f"copairs.{module}")
    except ImportError as error:
        raise ValueError(
            "Retrieval needs the package copairs: pip install 'phenoscale[maps]'."
        ) from error
