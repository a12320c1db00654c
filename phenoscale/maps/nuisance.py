"""How well plate, experimental batch, plate row and plate column can be read off an embedding.

`position.py` asks the same of the position on the plate by the replicate test.

Shapes: n wells or sites, d width of the embedding.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from phenoscale.maps.interval import Interval, checked_rounds, percentile_interval
from phenoscale.maps.position import checked_wells
from phenoscale.maps.vectors import checked_vectors, listed

TARGETS = ("plate", "experimental_batch", "row", "column")
"""What `predict_nuisance` tries to read off the embedding."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prediction:
    """How well a linear classifier reads one nuisance off the embedding."""

    target: str
    """One of `TARGETS`."""
    accuracy: Interval
    """Balanced accuracy on held-out wells, with a bootstrap interval over wells."""
    chance: float
    """Balanced accuracy of guessing: 1 / num_classes."""
    num_classes: int
    """Classes that were told apart."""
    num_wells: int
    """Wells in these classes."""
    num_classes_left_out: int
    """Classes with fewer wells than there are folds."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class NuisanceReport:
    """What could be predicted, and why the rest could not be tried."""

    predictions: tuple[Prediction, ...]
    """In the order of `TARGETS`."""
    missing: dict[str, str]
    """Target to the reason why it has no prediction."""
    num_wells: int
    """Wells looked at."""


def predict_nuisance(
    vectors: npt.ArrayLike,
    wells: pd.DataFrame,
    *,
    among: Literal["negative_controls", "all"] = "negative_controls",
    folds: int = 5,
    rounds: int = 1000,
    seed: int = 0,
) -> NuisanceReport:
    """Balanced accuracy of linear classifiers for plate, experimental batch, row and column.

    Linear discriminant analysis on standardised values with shrunk covariance (Ledoit-Wolf), all
    classes equally likely: closed form, so hundreds of plates are no burden. All rows of a well
    are in one fold. Among all wells, perturbations that are tied to a place are read as the place;
    so negative controls alone are the default. Read a value below chance as chance: the class that
    a held-out well belongs to lacks that well, so its mean lies a little away from it.

    Args:
        vectors: (n, d), one per well or site.
        wells: experimental_batch, plate, well, negative_control (bool); aligned.
        among: which wells to look at.
        folds: parts of the cross-validation, and the least wells of a class.
        rounds: bootstrap samples of wells for the intervals.
        seed: of folds and samples.

    Raises:
        ValueError: for values that are not finite, missing columns or cells, names that are no
            well, fewer than two folds, or no negative controls.
    """
    if among not in ("negative_controls", "all") or folds < 2:
        raise ValueError(
            f"among is {among!r} and folds {folds}; 'negative_controls' or 'all', and at least 2 "
            "folds are required."
        )
    table = checked_wells(wells, [])
    rows = checked_vectors(vectors, name="vectors", rows=len(table))
    if among != "all":
        kept = table["negative_control"].to_numpy()
        table, rows = table[kept], rows[kept]
    if table.empty:
        raise ValueError(
            f"None of {len(wells)} wells is a negative control; mark them, or give among='all'."
        )
    place = _rows_and_columns(table["well"])
    plate = table["experimental_batch"].astype(str) + "/" + table["plate"].astype(str)
    labels = place.assign(plate=plate, experimental_batch=table["experimental_batch"])
    well = (plate + "/" + table["well"]).to_numpy()
    found: list[Prediction] = []
    missing: dict[str, str] = {}
    for target in TARGETS:
        result = _prediction(
            target,
            rows,
            labels[target].to_numpy(dtype=object),
            well,
            folds,
            checked_rounds(rounds),
            seed,
        )
        if isinstance(result, str):
            missing[target] = result
        else:
            found.append(result)
    return NuisanceReport(predictions=tuple(found), missing=missing, num_wells=len(np.unique(well)))


def _rows_and_columns(wells: pd.Series) -> pd.DataFrame:
    """Row letters and column number of names such as A01, b2 or AF48."""
    parts = wells.str.strip().str.upper().str.extract(r"^([A-Z]{1,2})0*([0-9]{1,2})$")
    bad = parts[0].isna()
    if bad.any():
        raise ValueError(
            f"{bad.sum()} wells have no row and column ({listed(wells[bad].tolist())}); wells are "
            "letters and a number, such as A1, A01 or AF48."
        )
    return parts.set_axis(["row", "column"], axis=1)


def _prediction(
    target: str,
    vectors: np.ndarray,
    labels: np.ndarray,
    well: np.ndarray,
    folds: int,
    rounds: int,
    seed: int,
) -> Prediction | str:
    """The prediction of one target, or why there is none."""
    wells_of = pd.DataFrame({"label": labels, "well": well}).drop_duplicates()["label"]
    counts = wells_of.value_counts()
    enough = counts.index[counts >= folds]
    if len(enough) < 2:
        return (
            f"{len(counts)} classes, {len(enough)} of them with at least {folds} wells; 2 such "
            "classes are required"
        )
    kept = pd.Series(labels).isin(enough).to_numpy()
    vectors, well = vectors[kept], pd.factorize(well[kept])[0]
    classes = pd.factorize(labels[kept])[0]
    model = make_pipeline(
        StandardScaler(),
        LinearDiscriminantAnalysis(
            solver="lsqr", shrinkage="auto", priors=np.full(len(enough), 1 / len(enough))
        ),
    )
    hit = np.empty(len(classes), dtype=bool)
    split = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    for train, test in split.split(vectors, classes, well):
        hit[test] = (
            model.fit(vectors[train], classes[train]).predict(vectors[test]) == classes[test]
        )
    return Prediction(
        target=target,
        accuracy=_balanced_accuracy(hit, classes, well, rounds, seed),
        chance=1 / len(enough),
        num_classes=len(enough),
        num_wells=int(well.max()) + 1,
        num_classes_left_out=len(counts) - len(enough),
    )


def _balanced_accuracy(
    hit: np.ndarray, classes: np.ndarray, well: np.ndarray, rounds: int, seed: int
) -> Interval:
    """Mean over classes of the share of hits; the interval is a bootstrap over each class's wells.

    Drawn class by class, so that no sample lacks one.
    """
    rng = np.random.default_rng(seed)
    values, samples = [], []
    for number in range(int(classes.max()) + 1):
        _, of_well = np.unique(well[classes == number], return_inverse=True)
        hits = np.bincount(of_well, weights=hit[classes == number])
        rows = np.bincount(of_well)
        drawn = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=rounds)
        values.append(hits.sum() / rows.sum())
        samples.append((drawn @ hits) / (drawn @ rows))
    return percentile_interval(float(np.mean(values)), np.mean(samples, axis=0))
