"""Replicate test on plate positions: how alike are wells that share nothing but their position?

Replicates of a perturbation often lie at the same position of every plate, so an embedding that
sees the position (edge wells dry out, rows are seeded in turn) "replicates" without any effect.
What this test finds is to be taken off what replicates seem to show.

Shapes: n wells, d width of the embedding.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from phenoscale.maps.consistency import ReplicateConsistency, compare_pairs
from phenoscale.maps.gene_pairs import cosines_of
from phenoscale.maps.replicate_pairs import (
    label_codes,
    pair_sums,
    pairs_across,
    random_pairs,
    unit_rows,
)
from phenoscale.maps.vectors import listed

PERCENTILE = 95
"""Of the null, above which a position counts as replicating; so chance is 0.05."""

_NULL_FIGURES = 5000
"""Figures of single positions in the null of `position_null`, from 20 to 100 shuffles."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PositionNull:
    """How alike wells at one position of different plates are."""

    pairs: ReplicateConsistency
    """Pairs at the same position on different plates against pairs at different positions on
    different plates; a position stands where a perturbation stands in that class."""
    share: float
    """Share of positions whose mean pairwise cosine is above their threshold; chance is 0.05."""
    table: pd.DataFrame
    """well (str), num_wells (int), mean_cosine, threshold (float), replicates (bool): one row for
    each position with wells on two plates."""
    num_wells: int
    """Wells that were used."""
    num_wells_left_out: int
    """Wells that were not: no negative controls, or further wells of a perturbation at a position
    that has one already."""
    num_one_perturbation: int
    """Positions that hold one perturbation on all plates although the wells have several: there,
    position and perturbation cannot be told apart."""


def position_null(
    vectors: npt.ArrayLike,
    wells: pd.DataFrame,
    *,
    among: Literal["negative_controls", "all"] = "negative_controls",
    num_pairs: int = 100_000,
    seed: int = 0,
) -> PositionNull:
    """The replicate test on plate positions in place of perturbations.

    A position's figure is the mean cosine of all pairs of its wells. Its threshold is the 95th
    percentile of the same figure of as many wells after the wells of each plate have been shuffled
    among its positions, 20 to 100 times, pooled over positions with that number of wells. So plates
    stay what they are, and chance is 0.05 (a little less where a plate has few positions, as a
    shuffle brings some wells back together).

    Negative controls alone are taken as alike whatever their names. Among all wells, only wells of
    different perturbations are compared: of the wells of one perturbation at one position one is
    kept, drawn by the seed.

    Args:
        vectors: (n, d), one per well.
        wells: experimental_batch, plate, well, perturbation, negative_control (bool); aligned.
        among: which wells to look at.
        num_pairs: the most pairs of each kind for `pairs`.
        seed: of the draws.

    Raises:
        ValueError: for values that are not finite, all-zero vectors, missing columns or cells, a
            well that stands in two rows, fewer than two positions on every plate, no position on
            two plates, or (among all wells) one perturbation at every position.
    """
    if among not in ("negative_controls", "all"):
        raise ValueError(f"among is {among!r}; 'negative_controls' or 'all' is required.")
    table = checked_wells(wells, ["perturbation"])
    if table.duplicated(["experimental_batch", "plate", "well"]).any():
        raise ValueError(
            "Some wells stand in several rows; position_null needs one row a well. Average sites "
            "with wells_from_sites first."
        )
    unit = unit_rows(vectors, len(table))
    rng = np.random.default_rng(seed)
    used = np.flatnonzero(table["negative_control"]) if among != "all" else np.arange(len(table))
    num_confounded = _num_one_perturbation(table.iloc[used])
    if among == "all":
        _refuse_confounded(table, num_confounded)
        used = rng.permutation(used)
        repeated = table.iloc[used].duplicated(["well", "perturbation"]).to_numpy()
        used = np.sort(used[~repeated])
    table, unit = table.iloc[used], unit[used]
    position, names = label_codes(table["well"], name="well", rows=len(table))
    plate = table.groupby(["experimental_batch", "plate"]).ngroup().to_numpy()
    apart = (
        label_codes(table["perturbation"], name="perturbation", rows=len(table))[0]
        if among == "all"
        else np.arange(len(table))
    )
    _check_positions(position, plate, among)
    figures = _scored_positions(unit, position, plate, apart, names, rng)
    return PositionNull(
        pairs=_position_pairs(unit, position, plate, apart, num_pairs, rng),
        share=float(figures["replicates"].mean()),
        table=figures,
        num_wells=len(table),
        num_wells_left_out=len(wells) - len(table),
        num_one_perturbation=num_confounded,
    )


def checked_wells(wells: pd.DataFrame, more: list[str]) -> pd.DataFrame:
    """The columns that place a well, negative_control and `more`, checked; a fresh index.

    Raises:
        ValueError: for missing columns, empty cells, or a negative_control that is not bool.
    """
    required = ["experimental_batch", "plate", "well", "negative_control", *more]
    if absent := [column for column in required if column not in wells.columns]:
        raise ValueError(
            f"The wells lack the columns {absent}; {required} are required, there are "
            f"{listed(list(wells.columns))}."
        )
    table = wells[required].reset_index(drop=True)
    if empty := [column for column in required if table[column].isna().any()]:
        raise ValueError(f"{empty} have empty cells; every well needs all of {required}.")
    if table["negative_control"].dtype != bool:
        raise ValueError(
            f"negative_control has dtype {table['negative_control'].dtype}; True or False for each "
            "well is required."
        )
    return table.assign(well=table["well"].astype(str))


def _num_one_perturbation(table: pd.DataFrame) -> int:
    """Positions on several plates that hold one perturbation, if the wells have several."""
    if table["perturbation"].nunique() < 2:
        return 0
    by_position = table.groupby("well")["perturbation"].agg(["nunique", "size"])
    return int(((by_position["nunique"] == 1) & (by_position["size"] > 1)).sum())


def _refuse_confounded(table: pd.DataFrame, num_confounded: int) -> None:
    if (table.groupby("well")["perturbation"].nunique() > 1).any():
        return
    raise ValueError(
        f"All {table['well'].nunique()} positions hold one perturbation each on all plates "
        f"({num_confounded} of them on several plates), so position and perturbation cannot be "
        "told apart: whatever replicates may be either. Use negative controls alone "
        "(among='negative_controls'), or plates with different layouts."
    )


def _check_positions(position: np.ndarray, plate: np.ndarray, among: str) -> None:
    on_plates = np.bincount(position) if len(position) else np.zeros(1, dtype=np.int64)
    per_plate = np.bincount(plate) if len(plate) else np.zeros(1, dtype=np.int64)
    if on_plates.max() < 2 or per_plate.max() < 2:
        kind = "negative-control wells" if among != "all" else "wells of different perturbations"
        raise ValueError(
            f"{len(position)} {kind} lie at {np.count_nonzero(on_plates)} positions of "
            f"{np.count_nonzero(per_plate)} plates, at most {on_plates.max()} at one position and "
            f"{per_plate.max()} on one plate; the test needs a position on 2 plates and 2 "
            "positions on a plate."
        )


def position_means(unit: np.ndarray, position: np.ndarray, apart: np.ndarray) -> np.ndarray:
    """Mean cosine (positions,) of pairs at each position that differ in `apart`; NaN for none."""
    num_positions = int(position.max()) + 1
    sums, pairs = pair_sums(unit, position, num_positions)
    key = position * (int(apart.max()) + 1) + apart
    _, inverse, counts = np.unique(key, return_inverse=True, return_counts=True)
    rows = np.flatnonzero(counts[inverse] > 1)
    if len(rows):
        _, first, both = np.unique(key[rows], return_index=True, return_inverse=True)
        at = position[rows][first]
        alike, alike_pairs = pair_sums(unit[rows], both, len(first))
        sums = sums - np.bincount(at, weights=alike, minlength=num_positions)
        pairs = pairs - np.bincount(at, weights=alike_pairs, minlength=num_positions)
    return np.divide(sums, pairs, out=np.full(num_positions, np.nan), where=pairs > 0)


def _scored_positions(
    unit: np.ndarray,
    position: np.ndarray,
    plate: np.ndarray,
    apart: np.ndarray,
    names: np.ndarray,
    rng: np.random.Generator,
) -> pd.DataFrame:
    sizes = np.bincount(position)
    observed = position_means(unit, position, apart)
    by_plate = np.lexsort((np.arange(len(plate)), plate))
    null = np.empty((np.clip(_NULL_FIGURES // len(names), 20, 100), len(names)))
    for row in null:
        shuffled = np.empty_like(position)
        # Sorted by plate, then at random within it: a permutation of the wells of each plate.
        shuffled[np.lexsort((rng.random(len(plate)), plate))] = position[by_plate]
        row[:] = position_means(unit, shuffled, apart)
    threshold = np.full(len(names), np.nan)
    for size in np.unique(sizes[sizes > 1]):
        threshold[sizes == size] = np.nanpercentile(null[:, sizes == size], PERCENTILE)
    table = pd.DataFrame(
        {"well": names, "num_wells": sizes, "mean_cosine": observed, "threshold": threshold}
    ).assign(replicates=observed > threshold)
    return table[~np.isnan(observed)].reset_index(drop=True)


def _position_pairs(
    unit: np.ndarray,
    position: np.ndarray,
    plate: np.ndarray,
    apart: np.ndarray,
    num_pairs: int,
    rng: np.random.Generator,
) -> ReplicateConsistency:
    first, second, total = pairs_across(position, plate, num_pairs, rng)
    rows, other_rows = random_pairs([position, plate, apart], num_pairs, rng)
    wells_at = np.bincount(position)
    return compare_pairs(
        cosines_of(unit, first, second),
        cosines_of(unit, rows, other_rows),
        num_same_pairs_in_all=total,
        num_perturbations=int(np.count_nonzero(wells_at > 1)),
        num_without_pair=int(np.count_nonzero(wells_at == 1)),
    )
