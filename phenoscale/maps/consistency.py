"""Perturbation signal and replicate consistency: do wells of one perturbation look alike?

Signal consistency: are the replicates of a perturbation more alike than those of perturbations that
do nothing (mean pairwise cosine)? Signal magnitude: are they further from the controls (energy
distance)? Both as in EFAAR_benchmarking 1.0. Replicate consistency: is the same perturbation in two
experimental batches more alike than two different ones (Kraus et al. 2024, arXiv 2404.10242)?

Two p-values are given for signal, from the same null. `p_value` is EFAAR's, the share of the null
at or beyond the value; it can be 0. `p_value_plus_one` is (count + 1) / (size + 1), a valid test
(Phipson & Smyth 2010); select perturbations by this one. It is never below 1 / (size + 1): after
Benjamini-Hochberg at 0.05 a null of 1000 finds nothing where under 2% of perturbations are active.

Shapes: n wells, d width of the embedding, P perturbations.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import cramervonmises_2samp, false_discovery_control, ks_2samp

from phenoscale.maps.gene_pairs import cosines_of
from phenoscale.maps.replicate_pairs import (
    label_codes,
    pairs_across,
    random_pairs,
    unit_rows,
)
from phenoscale.maps.signal_null import (
    Signal,
    control_rows,
    energy_distance,
    mean_pairwise_cosine,
    signal_against,
)
from phenoscale.maps.vectors import checked_vectors

MAX_CONTROLS = 1000
"""Control wells that stand for all in the energy distance, as in EFAAR_benchmarking."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SignificantShare:
    """How many perturbations are significant after Benjamini-Hochberg."""

    share: float
    """num_significant / num_tested."""
    num_significant: int
    """Adjusted p-value at most the level."""
    num_tested: int
    """p-values that are not NaN."""
    num_missing: int
    """NaN: perturbations without a figure, not tested."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReplicateConsistency:
    """Cosines of the same perturbation across groups against those of different ones.

    The p-values count the pairs as independent, which pairs that share a well are not: they are far
    too small with many pairs. Compare encoders by the statistics.
    """

    ks_statistic: float
    """Two-sample Kolmogorov-Smirnov statistic, 0 to 1."""
    ks_p_value: float
    """Its two-sided p-value."""
    cvm_statistic: float
    """Two-sample Cramer-von Mises statistic; it grows with the number of pairs."""
    cvm_p_value: float
    """Its p-value, SciPy's asymptotic one, which is rounding below about 1e-6."""
    mean_same: float
    """Mean cosine of pairs of the same perturbation."""
    mean_random: float
    """Mean cosine of pairs of different perturbations."""
    num_same_pairs: int
    """Pairs of the same perturbation that were used."""
    num_same_pairs_in_all: int
    """Pairs of the same perturbation that there are."""
    num_random_pairs: int
    """Pairs of different perturbations that were used."""
    num_perturbations: int
    """Perturbations with a pair across groups."""
    num_without_pair: int
    """Perturbations in one group only, in no pair."""


def signal_consistency(
    vectors: npt.ArrayLike,
    perturbations: npt.ArrayLike,
    null_perturbations: Sequence[str] | None = None,
    *,
    controls: npt.ArrayLike | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> Signal:
    """Mean pairwise cosine of the replicates of each perturbation, with empirical p-values.

    As `pert_signal_consistency_benchmark` in EFAAR_benchmarking 1.0, but for null perturbations of
    one replicate: EFAAR counts them as larger than any value, here they are left out and told.

    Without `null_perturbations` the null is pseudo-perturbations: as many negative-control wells as
    the perturbation has replicates, drawn at random without replacement, `draws` times for each
    number of replicates. They come from all plates, so align first: a plate effect that replicates
    share and the draws do not would pass for signal.

    Args:
        vectors: (n, d), aligned, one per well.
        perturbations: (n,) names.
        null_perturbations: perturbations without effect, as a rule unexpressed genes.
        controls: (n,) bool, negative-control wells; they are not tested.
        draws: pseudo-perturbations for each number of replicates.
        seed: of the draws.

    Raises:
        ValueError: for values that are not finite, all-zero vectors, lengths that differ, no null,
            no null perturbation with two replicates, or fewer controls than there are replicates.
    """
    labels = np.asarray(perturbations, dtype=object)
    unit = unit_rows(vectors, len(labels))
    code, names = label_codes(labels, name="perturbations", rows=len(labels))
    control = control_rows(controls, len(labels))
    if null_perturbations is None and not len(control):
        raise ValueError(
            "Neither null_perturbations nor negative controls are given; a p-value needs a null. "
            "Name unexpressed genes, or mark the negative-control wells."
        )
    return signal_against(
        mean_pairwise_cosine(unit),
        code,
        names,
        not_tested=control,
        null_perturbations=null_perturbations,
        pool=control,
        draws=draws,
        rng=np.random.default_rng(seed),
        count_ties=True,
    )


def signal_magnitude(
    vectors: npt.ArrayLike,
    perturbations: npt.ArrayLike,
    controls: npt.ArrayLike,
    null_perturbations: Sequence[str] | None = None,
    *,
    max_controls: int = MAX_CONTROLS,
    draws: int = 1000,
    seed: int = 0,
) -> Signal:
    """Energy distance of each perturbation's replicates to control wells, with empirical p-values.

    2 E|x - y| - E|x - x'| - E|y - y'| over replicates x and controls y (Szekely & Rizzo 2013), as
    `pert_signal_magnitude_benchmark` in EFAAR_benchmarking 1.0. EFAAR draws `max_controls` controls
    without a seed; here the seed fixes them.

    Without `null_perturbations` the controls are halved at random: all are compared with one half
    (at most `max_controls`), from the other come pseudo-perturbations of as many wells as the
    perturbation has replicates, `draws` times. A well in both would lie too near to itself.

    Args:
        vectors: (n, d), aligned, one per well.
        perturbations: (n,) names.
        controls: (n,) bool, negative-control wells; they are not tested.
        null_perturbations: perturbations without effect, as a rule unexpressed genes.
        max_controls: controls to compare with.
        draws: pseudo-perturbations for each number of replicates.
        seed: of the draws.

    Raises:
        ValueError: as `signal_consistency`, and for no controls.
    """
    labels = np.asarray(perturbations, dtype=object)
    wells = checked_vectors(vectors, name="vectors", rows=len(labels))
    code, names = label_codes(labels, name="perturbations", rows=len(labels))
    control = control_rows(controls, len(labels))
    if not len(control) or max_controls < 1:
        raise ValueError(
            f"{len(control)} wells are negative controls and max_controls is {max_controls}; both "
            "must be at least 1."
        )
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(control)
    half = len(control) if null_perturbations is not None else (len(control) + 1) // 2
    return signal_against(
        energy_distance(wells, shuffled[:half][:max_controls]),
        code,
        names,
        not_tested=control,
        null_perturbations=null_perturbations,
        pool=shuffled[half:],
        draws=draws,
        rng=rng,
        count_ties=False,
    )


def significant_share(p_values: npt.ArrayLike, level: float = 0.05) -> SignificantShare:
    """Share of perturbations that are significant after Benjamini-Hochberg.

    Args:
        p_values: (P,) in 0 to 1; NaN are perturbations without a figure.
        level: of the false discovery rate.

    Raises:
        ValueError: for values outside 0 to 1, a level outside 0 to 1, or no value but NaN.
    """
    values = np.asarray(p_values, dtype=np.float64)
    tested = values[~np.isnan(values)]
    if not len(tested):
        raise ValueError(f"None of {len(values)} p-values is a number; more replicates are needed.")
    if not 0 < level < 1 or tested.min() < 0 or tested.max() > 1:
        raise ValueError(
            f"level is {level}, p-values span {tested.min()} to {tested.max()}; all lie in 0 to 1."
        )
    significant = int(np.count_nonzero(false_discovery_control(tested) <= level))
    return SignificantShare(
        share=significant / len(tested),
        num_significant=significant,
        num_tested=len(tested),
        num_missing=len(values) - len(tested),
    )


def replicate_consistency(
    vectors: npt.ArrayLike,
    perturbations: npt.ArrayLike,
    groups: npt.ArrayLike,
    *,
    num_pairs: int = 100_000,
    seed: int = 0,
) -> ReplicateConsistency:
    """Cosines of the same perturbation across groups against pairs of different ones across groups.

    Leave negative controls out: they are one perturbation with more wells than all others.

    Args:
        vectors: (n, d), aligned, one per well.
        perturbations: (n,) names.
        groups: (n,) experimental batches, or plates (named with their experimental batch).
        num_pairs: the most pairs of each kind; where there are more, so many are drawn.
        seed: of the draws.

    Raises:
        ValueError: for values that are not finite, all-zero vectors, lengths that differ, empty
            cells, or fewer than two pairs of one kind.
    """
    labels = np.asarray(perturbations, dtype=object)
    unit = unit_rows(vectors, len(labels))
    label, names = label_codes(labels, name="perturbations", rows=len(labels))
    group, _ = label_codes(groups, name="groups", rows=len(labels))
    rng = np.random.default_rng(seed)
    first, second, total = pairs_across(label, group, num_pairs, rng)
    rows, other_rows = random_pairs([label, group], num_pairs, rng)
    pairs = pd.DataFrame({"label": label, "group": group}).drop_duplicates()
    across = int(np.count_nonzero(np.bincount(pairs["label"]) > 1))
    return compare_pairs(
        cosines_of(unit, first, second),
        cosines_of(unit, rows, other_rows),
        num_same_pairs_in_all=total,
        num_perturbations=across,
        num_without_pair=len(names) - across,
    )


def compare_pairs(
    same: np.ndarray,
    random: np.ndarray,
    *,
    num_same_pairs_in_all: int,
    num_perturbations: int,
    num_without_pair: int,
) -> ReplicateConsistency:
    """Two distributions of cosines, (K,) and (L,), side by side; each needs at least two."""
    if min(len(same), len(random)) < 2:
        raise ValueError(
            f"There are {len(same)} pairs of one perturbation (or position) and {len(random)} of "
            "different ones across groups; at least 2 of each are required. Give several that are "
            "repeated in several experimental batches or plates, and thousands of num_pairs."
        )
    ks, cvm = ks_2samp(same, random), cramervonmises_2samp(same, random)
    return ReplicateConsistency(
        ks_statistic=float(ks.statistic),
        ks_p_value=float(ks.pvalue),
        cvm_statistic=float(cvm.statistic),
        cvm_p_value=float(cvm.pvalue),
        mean_same=float(same.mean()),
        mean_random=float(random.mean()),
        num_same_pairs=len(same),
        num_same_pairs_in_all=num_same_pairs_in_all,
        num_random_pairs=len(random),
        num_perturbations=num_perturbations,
        num_without_pair=num_without_pair,
    )
