"""Compound against gene: is a compound more similar to the genes it is known to act on?

The recipe is `compound_gene_benchmark` of EFAAR_benchmarking (recursionpharma, commit 1ff8a788). A
gene with a measured activity of at most `ACTIVE_NM` is active on a compound; one between that and
`INACTIVE_NM` counts neither way. Negatives are drawn from the other genes of the truth table,
max(2 x actives, 20), without replacement, anew for each seed. The score of a pair is the absolute
cosine, at each concentration of the compound, and its largest over concentrations ("max").

Average precision and ROC AUC are those of scikit-learn, ties included, written for many draws at
once: precision is taken at the score of each active, among all scores that are no smaller.

Shapes: m rows of the map, d width, S seeds, K concentrations of a compound and their maximum, A
active genes, T = A + negatives.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pandas as pd

from phenoscale.maps.interval import percentile_interval
from phenoscale.maps.vectors import checked_vectors, listed

ACTIVE_NM = 1000.0
INACTIVE_NM = 10_000.0
MIN_NEGATIVES = 20
ROUNDS = 1000
"""Bootstrap samples of compounds."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Compound:
    """One compound that can be scored."""

    rows: np.ndarray
    """Rows of the map, by rising concentration."""
    concentrations: list[float]
    """Of these rows."""
    active: np.ndarray
    """(A,) columns of the genes."""
    eligible: np.ndarray
    """Columns of the genes that negatives are drawn from, by sorted name."""
    num_negatives: int
    """Genes to draw."""


def compound_gene(
    rows: pd.DataFrame, means: np.ndarray, truth: pd.DataFrame, *, seeds: int = 100
) -> dict[str, Any]:
    """Average precision and ROC AUC of known compound-gene pairs.

    Args:
        rows: m rows of the map: perturbation_type (CRISPR, COMPOUND), perturbation, concentration.
        means: (m, d).
        truth: treatment, gene_symbol, nM_value.
        seeds: draws of negatives, with the seeds 0, 1, ....

    Returns:
        seeds, counts (name -> int), and by_concentration: concentration (str) or "max" -> dict of
        num_compounds, and for each of average_precision_mean, average_precision_median and
        auc_roc_mean (over compounds): the mean over seeds, and with _sd, _random, _random_sd its sd
        (n - 1) over seeds and the same two for uniformly random scores; average_precision_low and
        _high, the 95% interval of average_precision_mean over compounds.

    Raises:
        ValueError: for fewer than 2 seeds, no gene or compound of the truth in the map, or no
            compound left to score.
    """
    if seeds < 2:
        raise ValueError(f"seeds is {seeds}; at least 2 draws are required for their spread.")
    genes, compounds, counts = _compounds(rows, truth)
    length = np.linalg.norm(checked_vectors(means, name="means", rows=len(rows)), axis=1)
    if zero := rows["perturbation"][length == 0].tolist():
        raise ValueError(f"{len(zero)} rows of the map are all-zero ({listed(zero)}); no cosine.")
    unit = means / length[:, None]
    gene_unit = unit[genes].T
    precisions: dict[float | str, list[np.ndarray]] = {}
    areas: dict[float | str, list[np.ndarray]] = {}
    sizes: dict[float | str, list[tuple[int, int]]] = {}
    for compound in compounds:
        similarity = np.abs(unit[compound.rows] @ gene_unit)
        scores = np.stack([_drawn(similarity, compound, seed) for seed in range(seeds)])
        scores = np.concatenate([scores, scores.max(axis=1, keepdims=True)], axis=1)
        precision, area = average_precision_and_auc(scores, len(compound.active))
        keys: list[float | str] = [*compound.concentrations, "max"]
        for place, concentration in enumerate(keys):
            precisions.setdefault(concentration, []).append(precision[:, place])
            areas.setdefault(concentration, []).append(area[:, place])
            sizes.setdefault(concentration, []).append((len(compound.active), scores.shape[2]))
    keys = [*sorted(key for key in precisions if not isinstance(key, str)), "max"]
    random = _random_scores([sizes[key] for key in keys], seeds)
    return {
        "seeds": seeds,
        "counts": counts,
        "by_concentration": {
            str(key): _summary(np.stack(precisions[key]), np.stack(areas[key]), *chance)
            for key, chance in zip(keys, random, strict=True)
        },
    }


def average_precision_and_auc(scores: np.ndarray, num_active: int) -> tuple[np.ndarray, np.ndarray]:
    """Average precision and ROC AUC (...) of scores (..., T) of which the first A are active."""
    active = scores[..., :num_active]
    above = scores[..., None, :] >= active[..., :, None]  # (..., A, T)
    precision = above[..., :num_active].sum(axis=-1) / above.sum(axis=-1)
    negative = scores[..., None, num_active:]
    wins = (active[..., :, None] > negative) + 0.5 * (active[..., :, None] == negative)
    return precision.mean(axis=-1), wins.mean(axis=(-2, -1))


def _drawn(similarity: np.ndarray, compound: _Compound, seed: int) -> np.ndarray:
    """Scores (K - 1, T) of the active genes and of the negatives of one seed."""
    picks = np.random.default_rng(seed).choice(
        len(compound.eligible), compound.num_negatives, replace=False
    )
    drawn: np.ndarray = similarity[:, np.concatenate([compound.active, compound.eligible[picks]])]
    return drawn


def _compounds(
    rows: pd.DataFrame, truth: pd.DataFrame
) -> tuple[np.ndarray, list[_Compound], dict[str, int]]:
    """Rows of the map that are genes of the truth, the compounds to score, and what was dropped."""
    measured = truth.dropna(subset=["treatment", "gene_symbol", "nM_value"])
    compound_rows = rows[
        (rows["perturbation_type"] == "COMPOUND") & rows["concentration"].notna()
    ].sort_values("concentration")
    gene_rows = _gene_rows(rows, measured)
    column = {name: place for place, name in enumerate(gene_rows["perturbation"])}
    known = measured[measured["gene_symbol"].isin(gene_rows["perturbation"])]
    of_compound = compound_rows.groupby("perturbation").indices
    counts = {
        "num_truth_rows_incomplete": len(truth) - len(measured),
        "num_genes": len(column),
        "num_genes_not_in_map": int(measured["gene_symbol"].nunique()) - len(column),
        "num_compounds_not_in_map": 0,
        "num_compounds_without_active_gene": 0,
        "num_compounds_with_too_few_negatives": 0,
    }
    compounds = []
    for name in measured["treatment"].unique():
        pairs = known[known["treatment"] == name]
        active = pairs["gene_symbol"][pairs["nM_value"] <= ACTIVE_NM].unique()
        weak = pairs["gene_symbol"][pairs["nM_value"].between(ACTIVE_NM, INACTIVE_NM)].unique()
        excluded = {*active, *weak}
        eligible = [place for gene, place in column.items() if gene not in excluded]
        num_negatives = max(2 * len(active), MIN_NEGATIVES)
        if name not in of_compound:
            counts["num_compounds_not_in_map"] += 1
        elif not len(active):
            counts["num_compounds_without_active_gene"] += 1
        elif len(eligible) < num_negatives:
            counts["num_compounds_with_too_few_negatives"] += 1
        else:
            placed = compound_rows.iloc[of_compound[name]]
            compounds.append(
                _Compound(
                    rows=placed.index.to_numpy(),
                    concentrations=placed["concentration"].tolist(),
                    active=np.array([column[gene] for gene in active]),
                    eligible=np.array(eligible),
                    num_negatives=num_negatives,
                )
            )
    if not compounds:
        raise ValueError(
            f"No compound of the truth can be scored ({counts}); each needs a row in the map, a "
            f"gene of at most {ACTIVE_NM:g} nM and {MIN_NEGATIVES} other genes."
        )
    counts["num_compounds"] = len(compounds)
    return gene_rows.index.to_numpy(), compounds, counts


def _gene_rows(rows: pd.DataFrame, measured: pd.DataFrame) -> pd.DataFrame:
    """Rows of the map that are genes of the truth, by name."""
    gene_rows = rows[
        (rows["perturbation_type"] == "CRISPR")
        & rows["concentration"].isna()
        & rows["perturbation"].isin(measured["gene_symbol"])
    ]
    if gene_rows.empty:
        raise ValueError(
            f"None of the {measured['gene_symbol'].nunique()} genes of the truth is in the map; "
            f"they are named like {listed(measured['gene_symbol'].unique().tolist())}."
        )
    return gene_rows.sort_values("perturbation")


def _random_scores(
    sizes: list[list[tuple[int, int]]], seeds: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Average precision and ROC AUC (compounds, S) of random scores, for each concentration.

    The scores come in the order of EFAAR_benchmarking, so the figures equal its baseline.
    """
    totals = [total for one in sizes for _, total in one]
    drawn = np.stack([np.random.default_rng(seed).random(sum(totals)) for seed in range(seeds)])
    ends = iter(np.cumsum(totals))
    found = []
    for one in sizes:
        values = []
        for num_active, total in one:
            end = next(ends)
            values.append(average_precision_and_auc(drawn[:, end - total : end], num_active))
        found.append((np.stack([ap for ap, _ in values]), np.stack([auc for _, auc in values])))
    return found


def _summary(
    precision: np.ndarray, area: np.ndarray, random_precision: np.ndarray, random_area: np.ndarray
) -> dict[str, float]:
    """Figures of one concentration from values (compounds, S)."""
    figures: dict[str, float] = {"num_compounds": len(precision)}
    for name, values, chance in (
        ("average_precision_mean", precision.mean(axis=0), random_precision.mean(axis=0)),
        (
            "average_precision_median",
            np.median(precision, axis=0),
            np.median(random_precision, axis=0),
        ),
        ("auc_roc_mean", area.mean(axis=0), random_area.mean(axis=0)),
    ):
        figures |= {
            name: float(values.mean()),
            f"{name}_sd": float(values.std(ddof=1)),
            f"{name}_random": float(chance.mean()),
            f"{name}_random_sd": float(chance.std(ddof=1)),
        }
    of_compound = precision.mean(axis=1)
    picks = np.random.default_rng(0).integers(len(of_compound), size=(ROUNDS, len(of_compound)))
    interval = percentile_interval(float(of_compound.mean()), of_compound[picks].mean(axis=1))
    return figures | {
        "average_precision_low": interval.low,
        "average_precision_high": interval.high,
    }
