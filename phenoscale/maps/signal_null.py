"""What `consistency.py` holds a perturbation's signal against: nulls and empirical p-values.

A statistic is a function of rows (K,), the number of the group of each (K,), and the number of
groups G; it returns one value per group, (G,), NaN where a group has too few rows.

Shapes: n wells, d width of the embedding, G groups of rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from phenoscale.maps.gene_pairs import DECIMALS
from phenoscale.maps.replicate_pairs import pair_sums
from phenoscale.maps.vectors import listed

Statistic = Callable[[np.ndarray, np.ndarray, int], np.ndarray]

MIN_REPLICATES_MAGNITUDE = 5
"""Replicates for an energy distance, as in EFAAR_benchmarking."""

_LEAST_SQUARED_DISTANCE = 1e-8
"""EFAAR's energy distance is geomloss's, which clamps squared distances here before the square root
(geomloss 0.3.1, `distances` in _legacy/utils.py), those of a point to itself included: the mean
distance within a sample of n is 1e-4 / n too large. Kept, so that figures agree."""

_ROWS_AT_ONCE = 20_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Signal:
    """Signal of each perturbation and the null that it was held against."""

    table: pd.DataFrame
    """perturbation (str), num_replicates (int), value, p_value, p_value_plus_one (float), sorted by
    perturbation; neither controls nor null perturbations. NaN where replicates are too few."""
    null: pd.DataFrame
    """perturbation (str, None for pseudo-perturbations), num_replicates (int), value (float)."""
    matched: bool
    """Whether the null is made of pseudo-perturbations, matched in the number of replicates."""
    num_too_few: int
    """Perturbations in `table` with too few replicates for a figure."""
    num_null_too_few: int
    """Null perturbations left out because they have too few replicates."""
    num_null_absent: int
    """Names among the null perturbations that no well has."""


def mean_pairwise_cosine(unit: np.ndarray) -> Statistic:
    """Mean cosine of all pairs in each group: (|sum of unit vectors|^2 - n) / (n (n - 1)).

    Args:
        unit: (n, d) vectors of length 1.
    """

    def statistic(rows: np.ndarray, group: np.ndarray, num_groups: int) -> np.ndarray:
        sums, pairs = pair_sums(unit[rows], group, num_groups)
        mean = np.divide(sums, pairs, out=np.full(num_groups, np.nan), where=pairs > 0)
        return np.round(np.clip(mean, -1, 1), DECIMALS)

    return statistic


def energy_distance(wells: np.ndarray, reference: np.ndarray) -> Statistic:
    """Energy distance of each group to the reference rows: 2 E|x - y| - E|x - x'| - E|y - y'|.

    Args:
        wells: (n, d).
        reference: rows of the control wells.
    """
    # Distances do not change when all is shifted; near 0, squares lose fewer digits.
    centre = wells[reference].mean(axis=0)
    controls = wells[reference] - centre
    within_controls = _mean_distance(controls, controls)

    def statistic(rows: np.ndarray, group: np.ndarray, num_groups: int) -> np.ndarray:
        rows = rows[np.argsort(group, kind="stable")]
        ends = np.cumsum(np.bincount(group, minlength=num_groups))
        found = np.full(num_groups, np.nan)
        for number, piece in enumerate(np.split(rows, ends[:-1])):
            if len(piece) >= MIN_REPLICATES_MAGNITUDE:
                x = wells[piece] - centre
                across = 2 * _mean_distance(x, controls)
                found[number] = across - _mean_distance(x, x) - within_controls
        return found

    return statistic


def _mean_distance(x: np.ndarray, y: np.ndarray) -> float:
    squared = np.square(x).sum(axis=1)[:, None] - 2 * x @ y.T + np.square(y).sum(axis=1)
    return float(np.sqrt(np.maximum(squared, _LEAST_SQUARED_DISTANCE)).mean())


def control_rows(controls: npt.ArrayLike | None, rows: int) -> np.ndarray:
    """Row numbers of the negative controls; none for None.

    Raises:
        ValueError: for anything but one bool a row.
    """
    if controls is None:
        return np.empty(0, dtype=np.int64)
    control = np.asarray(controls)
    if control.dtype != bool or control.shape != (rows,):
        raise ValueError(
            f"controls has dtype {control.dtype} and shape {control.shape}; one bool for each of "
            f"the {rows} rows is required."
        )
    return np.flatnonzero(control)


def signal_against(
    statistic: Statistic,
    code: np.ndarray,
    names: np.ndarray,
    *,
    not_tested: np.ndarray,
    null_perturbations: Sequence[str] | None,
    pool: np.ndarray,
    draws: int,
    rng: np.random.Generator,
    count_ties: bool,
) -> Signal:
    """The statistic of every perturbation, and its p-values against the null.

    Args:
        statistic: see above.
        code: (n,) number of each row's perturbation.
        names: (P,) the perturbations.
        not_tested: rows of negative controls.
        null_perturbations: names; None for pseudo-perturbations.
        pool: rows that pseudo-perturbations are drawn from.
        draws: pseudo-perturbations for each number of replicates.
        rng: draws them.
        count_ties: whether `p_value` counts null values equal to a perturbation's own.

    Raises:
        ValueError: for no perturbation left to test or no null.
    """
    rows = np.setdiff1d(np.arange(len(code)), not_tested)
    used, group = np.unique(code[rows], return_inverse=True)
    table = pd.DataFrame(
        {
            "perturbation": names[used],
            "num_replicates": np.bincount(group, minlength=len(used)),
            "value": statistic(rows, group, len(used)),
        }
    )
    absent = null_too_few = 0
    if null_perturbations is None:
        null = _pseudo_null(table, pool, statistic, draws, rng)
    else:
        is_null = table["perturbation"].isin(list(null_perturbations))
        absent = len(set(null_perturbations)) - int(is_null.sum())
        null_too_few = int(table.loc[is_null, "value"].isna().sum())
        null = table[is_null & table["value"].notna()].reset_index(drop=True)
        table = table[~is_null].reset_index(drop=True)
        if null.empty:
            raise ValueError(
                f"None of {len(set(null_perturbations))} null perturbations "
                f"({listed(list(null_perturbations))}) gives a figure: no well has {absent} of "
                f"them, {null_too_few} have too few replicates. Give others, or None for "
                "pseudo-perturbations drawn from negative controls."
            )
    if table.empty:
        raise ValueError(
            f"No perturbation is left to test: {len(not_tested)} of {len(code)} wells are negative "
            "controls and the others null perturbations."
        )
    return Signal(
        table=_with_p_values(table, null, null_perturbations is None, count_ties),
        null=null,
        matched=null_perturbations is None,
        num_too_few=int(table["value"].isna().sum()),
        num_null_too_few=null_too_few,
        num_null_absent=absent,
    )


def _pseudo_null(
    table: pd.DataFrame,
    pool: np.ndarray,
    statistic: Statistic,
    draws: int,
    rng: np.random.Generator,
) -> pd.DataFrame:
    sizes = np.unique(table.loc[table["value"].notna(), "num_replicates"])
    if len(sizes) and sizes[-1] > len(pool):
        raise ValueError(
            f"A perturbation has {sizes[-1]} replicates and pseudo-perturbations are drawn from "
            f"{len(pool)} negative-control wells; as many as it has replicates are required. Give "
            "null_perturbations instead, or more controls."
        )
    if draws < 1:
        raise ValueError(f"draws is {draws}; at least 1 is required, usually 200 to 1000.")
    pieces = []
    for size in sizes.tolist():
        at_once = max(1, _ROWS_AT_ONCE // size)
        for start in range(0, draws, at_once):
            count = min(at_once, draws - start)
            rows = np.stack([rng.choice(pool, size, replace=False) for _ in range(count)])
            group = np.repeat(np.arange(count), size)
            values = statistic(rows.ravel(), group, count)
            pieces.append(pd.DataFrame({"num_replicates": size, "value": values}))
    if not pieces:
        return pd.DataFrame({"perturbation": [], "num_replicates": [], "value": []})
    null = pd.concat(pieces, ignore_index=True)
    null.insert(0, "perturbation", pd.Series([None] * len(null), dtype=object))
    return null


def _with_p_values(
    table: pd.DataFrame, null: pd.DataFrame, matched: bool, count_ties: bool
) -> pd.DataFrame:
    table = table.assign(p_value=np.nan, p_value_plus_one=np.nan)
    tested = table["value"].notna().to_numpy()
    sizes = table["num_replicates"].to_numpy()
    value = table["value"].to_numpy()
    p_value, plus_one = np.full(len(table), np.nan), np.full(len(table), np.nan)
    for size in np.unique(sizes[tested]) if matched else [None]:
        same = tested if size is None else tested & (sizes == size)
        drawn = null if size is None else null[null["num_replicates"] == size]
        against = np.sort(drawn["value"].to_numpy(dtype=np.float64))
        at_least = len(against) - np.searchsorted(against, value[same], side="left")
        above = len(against) - np.searchsorted(against, value[same], side="right")
        p_value[same] = (at_least if count_ties else above) / len(against)
        plus_one[same] = (at_least + 1) / (len(against) + 1)
    return table.assign(p_value=p_value, p_value_plus_one=plus_one)
