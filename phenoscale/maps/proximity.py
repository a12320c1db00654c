"""Chromosome-arm proximity bias of CRISPR screens: how strong it is, and a correction.

A Cas9 cut can cost the cell the rest of the chromosome arm, so knockouts of unrelated genes of one
arm look alike (Lazar et al. 2024, Nature Genetics, doi 10.1038/s41588-024-01758-y). The correction
takes from every gene the mean vector of the unexpressed genes of its arm, whose knockouts have no
other effect. Both follow the authors' code (recursionpharma/proxbias: `arm_centering.py`, and
`bm_metrics` in `metrics.py`).

The measure is the probability that a pair of genes of one arm has a larger cosine than a pair of
two arms, ties counted half: the relative effect of the Brunner-Munzel test, 0.5 without bias. Its
p-value is that of shuffling the genes among the arms, because pairs that share a gene are not
independent, as that test would take them to be.

Arms are a table of the user's: gene symbols of one genome build, never shipped here.

Shapes: n genes, d width of the embedding, P pairs of genes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import rankdata

from phenoscale.maps.gene_pairs import cosines_of
from phenoscale.maps.replicate_pairs import unit_rows
from phenoscale.maps.vectors import checked_vectors, listed

MIN_UNEXPRESSED = 21
"""Unexpressed genes that the mean of an arm needs: more than 20, as in proxbias. The mean of few is
mostly noise, and taking it off all genes of the arm would make them alike."""

MIN_PAIRS = 21
"""Pairs within an arm for a figure of its own: more than 20, as in proxbias."""

MAX_PAIRS = 1_000_000
"""Pairs of genes up to which the measure is exact; beyond, this many are drawn with the seed."""

_WORDS = {"true": True, "1": True, "false": False, "0": False}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProximityCorrection:
    """A map without the mean of each arm's unexpressed genes."""

    vectors: np.ndarray
    """(n, d) float64, in the order given."""
    arms: pd.DataFrame
    """arm (str), num_genes, num_unexpressed (int; genes in the map), corrected (bool)."""
    arms_left: tuple[str, ...]
    """Arms with too few unexpressed genes, whose genes are as they were."""
    genes_without_arm: tuple[str, ...]
    """Genes of the map that the table of arms lacks, left as they were."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProximityBias:
    """How far cosines within chromosome arms exceed those between arms."""

    probability: float
    """Of a pair within an arm to exceed a pair between arms, ties half; 0.5 without bias."""
    p_value: float
    """One-sided, (count + 1) / (shuffles + 1) of genes shuffled among arms."""
    mean_within: float
    """Mean cosine within arms."""
    mean_between: float
    """Mean cosine between arms."""
    num_within: int
    """Pairs within arms that were used."""
    num_between: int
    """Pairs between arms that were used."""
    exact: bool
    """Whether all pairs were used; otherwise `MAX_PAIRS` drawn with replacement."""
    arms: pd.DataFrame
    """arm (str), num_genes, num_within, num_between (int), probability (float): pairs within the
    arm against pairs of one of its genes with another arm's; NaN below `MIN_PAIRS` of either."""
    genes_without_arm: tuple[str, ...]
    """Genes of the map that the table of arms lacks, not used."""


def load_arms(path: str | Path) -> pd.DataFrame:
    """Reads which chromosome arm each gene lies on, and whether the screen's cells express it.

    Args:
        path: CSV with the header `gene,arm` or `gene,arm,expressed`; arms named as the user likes
            (1p, chr1q), expressed true, false, 1 or 0.

    Returns:
        gene, arm (str), and expressed (bool) if it was given; each gene once.

    Raises:
        ValueError: for a missing file, missing columns, empty cells, another word in expressed, or
            a gene on two arms or with two answers.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"There is no table of arms at {path}; give a CSV gene,arm[,expressed].")
    # Default NA parsing would read a gene that is called NA as a missing value.
    table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    columns = [c for c in ("gene", "arm", "expressed") if c in table.columns]
    if columns[:2] != ["gene", "arm"]:
        raise ValueError(
            f"{path} has the columns {list(table.columns)}; gene and arm are required, expressed "
            "is needed for the correction."
        )
    table = table[columns]
    empty = (table == "").any(axis=1)
    if table.empty or empty.any():
        raise ValueError(
            f"{path} has {len(table)} rows, {empty.sum()} of them with an empty cell; at least one "
            "row is required and every cell. Leave genes out that are not known."
        )
    if "expressed" in columns:
        words = table["expressed"].str.lower()
        if wrong := sorted(set(words) - set(_WORDS)):
            raise ValueError(f"{path} has {listed(wrong)} in expressed; true or false is required.")
        table = table.assign(expressed=words.map(_WORDS).astype(bool))
    table = table.drop_duplicates(ignore_index=True)
    if twice := table.loc[table["gene"].duplicated(), "gene"].tolist():
        raise ValueError(
            f"{path} gives {len(twice)} genes different arms or expression ({listed(twice)}); one "
            "row a gene is required."
        )
    return table


def correct_proximity_bias(
    vectors: npt.ArrayLike,
    names: Sequence[str],
    arms: pd.DataFrame,
    *,
    min_unexpressed: int = MIN_UNEXPRESSED,
) -> ProximityCorrection:
    """Subtracts from each gene the mean vector of the unexpressed genes of its chromosome arm.

    Args:
        vectors: (n, d), aligned and aggregated to genes, not scaled to unit length.
        names: (n,) genes, each once.
        arms: gene, arm, expressed (bool), as `load_arms` gives them.
        min_unexpressed: unexpressed genes in the map that an arm needs; arms with fewer are left.

    Raises:
        ValueError: for values that are not finite, repeated names, no expressed column, no gene on
            an arm, or no arm with enough unexpressed genes.
    """
    checked = checked_vectors(vectors, name="vectors", rows=len(names), row_names=list(names))
    if "expressed" not in arms.columns or min_unexpressed < 1:
        raise ValueError(
            f"The table of arms has the columns {list(arms.columns)} and min_unexpressed is "
            f"{min_unexpressed}; the correction needs expressed (true or false for each gene) and "
            "at least 1."
        )
    row = _rows_of_arms(names, arms)
    corrected = checked.copy()
    rows = []
    for arm, table in row.groupby("arm"):
        unexpressed = table.loc[~table["expressed"].astype(bool), "row"].to_numpy()
        enough = len(unexpressed) >= min_unexpressed
        if enough:
            corrected[table["row"]] -= checked[unexpressed].mean(axis=0)
        rows.append((arm, len(table), len(unexpressed), enough))
    summary = pd.DataFrame(rows, columns=["arm", "num_genes", "num_unexpressed", "corrected"])
    if not summary["corrected"].any():
        raise ValueError(
            f"None of {len(summary)} arms has {min_unexpressed} unexpressed genes in the map (most "
            f"{summary['num_unexpressed'].max()}); nothing can be corrected. Use a screen with "
            "more unexpressed genes, or a lower min_unexpressed if the noise is worth it."
        )
    return ProximityCorrection(
        vectors=corrected,
        arms=summary,
        arms_left=tuple(summary.loc[~summary["corrected"], "arm"]),
        genes_without_arm=_without_arm(names, row),
    )


def proximity_bias(
    vectors: npt.ArrayLike,
    names: Sequence[str],
    arms: pd.DataFrame,
    *,
    shuffles: int = 200,
    seed: int = 0,
) -> ProximityBias:
    """Probability that cosines within arms exceed those between arms.

    For before and after a correction call it on both maps with the same seed: the pairs are the
    same. After a correction the unexpressed genes themselves are centred on 0 arm by arm, which
    pushes their cosines below those between arms; judge a correction on the expressed genes alone.

    Args:
        vectors: (n, d), one per gene.
        names: (n,) genes, each once.
        arms: gene, arm, as `load_arms` gives them.
        shuffles: of the genes among the arms.
        seed: of the drawn pairs and the shuffles.

    Raises:
        ValueError: for values that are not finite, all-zero vectors, repeated names, or no pair of
            one kind.
    """
    table = _rows_of_arms(names, arms)
    unit = unit_rows(vectors, len(names), list(names))[table["row"].to_numpy()]
    arm, arm_names = pd.factorize(table["arm"], sort=True)
    rng = np.random.default_rng(seed)
    exact = len(unit) * (len(unit) - 1) // 2 <= MAX_PAIRS
    first, second = _gene_pairs(len(unit), exact, rng)
    cosines = cosines_of(unit, first, second)
    within = arm[first] == arm[second]
    num_within = int(within.sum())
    if num_within == 0 or num_within == len(within):
        raise ValueError(
            f"{len(unit)} genes on {len(arm_names)} arms give {num_within} pairs within an arm and "
            f"{len(within) - num_within} between arms; genes of several arms are required."
        )
    ranks = rankdata(cosines)
    observed = _superiority(ranks, within)
    at_least = 0
    for _ in range(shuffles):
        shuffled = rng.permutation(arm)
        at_least += _superiority(ranks, shuffled[first] == shuffled[second]) >= observed
    return ProximityBias(
        probability=observed,
        p_value=(at_least + 1) / (shuffles + 1),
        mean_within=float(cosines[within].mean()),
        mean_between=float(cosines[~within].mean()),
        num_within=num_within,
        num_between=len(within) - num_within,
        exact=exact,
        arms=_by_arm(cosines, arm, arm_names, first, second),
        genes_without_arm=_without_arm(names, table),
    )


def _rows_of_arms(names: Sequence[str], arms: pd.DataFrame) -> pd.DataFrame:
    """The rows of `arms` of the genes in the map, with their row there, in the map's order."""
    index = pd.Index(names)
    if absent := [column for column in ("gene", "arm") if column not in arms.columns]:
        raise ValueError(f"The table of arms lacks {absent}; gene and arm are required.")
    for what, genes in (("map", index), ("table of arms", pd.Index(arms["gene"]))):
        if repeated := genes[genes.duplicated()].unique().tolist():
            raise ValueError(f"{listed(repeated)} stand in the {what} more than once; once each.")
    row = index.get_indexer(pd.Index(arms["gene"]))
    found = arms.assign(row=row)[row >= 0].sort_values("row", ignore_index=True)
    if found.empty:
        raise ValueError(
            f"None of {len(arms)} genes in the table of arms is in the map; its genes are named "
            f"like {listed(list(names))}, the table's like {listed(arms['gene'].tolist())}. Use "
            "the same gene symbols in both."
        )
    return found


def _without_arm(names: Sequence[str], rows: pd.DataFrame) -> tuple[str, ...]:
    known = set(rows["row"])
    return tuple(name for row, name in enumerate(names) if row not in known)


def _gene_pairs(
    num_genes: int, exact: bool, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of genes, or `MAX_PAIRS` drawn evenly with replacement."""
    if exact:
        first, second = np.triu_indices(num_genes, k=1)
        return first, second
    first = rng.integers(num_genes, size=MAX_PAIRS)
    # Another gene, each of the n - 1 equally likely.
    second = (first + rng.integers(1, num_genes, size=MAX_PAIRS)) % num_genes
    return first, second


def _superiority(ranks: np.ndarray, within: np.ndarray) -> float:
    """P(within > between) + P(equal) / 2, from ranks (P,) of all pairs (Mann-Whitney)."""
    num_within = np.count_nonzero(within)
    num_between = len(within) - num_within
    return float((ranks[within].mean() - (num_within + 1) / 2) / num_between)


def _by_arm(
    cosines: np.ndarray, arm: np.ndarray, arm_names: pd.Index, first: np.ndarray, second: np.ndarray
) -> pd.DataFrame:
    found = []
    for number, name in enumerate(arm_names):
        one, two = arm[first] == number, arm[second] == number
        touching = one | two
        within = (one & two)[touching]
        num_within, num_between = int(within.sum()), int((~within).sum())
        enough = min(num_within, num_between) >= MIN_PAIRS
        value = _superiority(rankdata(cosines[touching]), within) if enough else np.nan
        found.append((name, int((arm == number).sum()), num_within, num_between, value))
    columns = ["arm", "num_genes", "num_within", "num_between", "probability"]
    return pd.DataFrame(found, columns=columns)
