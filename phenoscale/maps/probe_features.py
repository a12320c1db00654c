"""Ridge probes: which CellProfiler features can be read off an embedding, group by group.

Each feature is predicted from the standardised embedding by ridge regression and scored by R2 on
groups (plates, wells, images) that the regression has never seen. The penalty of each feature is
chosen by leave-one-out over the training sites (scikit-learn's RidgeCV). Sites of a group share
nuisance, so that choice is on the low side; the held-out score pays for it and is not flattered.

Shapes: n training sites, m test sites, d width, F scored features, G test groups, S samples.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from phenoscale.maps.interval import percentile_interval
from phenoscale.maps.probes import checked_columns, checked_groups, drawn_groups
from phenoscale.maps.vectors import checked_vectors, listed

PENALTIES = tuple(float(10.0**power) for power in range(-2, 7))
"""Penalties to choose among, for standardised embeddings."""
_METADATA = "Metadata_"
_NO_VARIANCE = 1e-12  # of a feature's sum of squares, below which a sample holds it constant


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureScores:
    """How well features are read off an embedding."""

    features: pd.DataFrame
    """One row per scored feature: feature, feature_group, r2, penalty."""
    groups: pd.DataFrame
    """One row per feature group: feature_group, num_features, r2 (the mean), r2_low and r2_high
    (its 95% interval over test groups), num_below_zero (features predicted worse than by their
    mean)."""
    constant: tuple[str, ...]
    """Features that do not vary over the training or the test sites: not scored."""
    metadata: tuple[str, ...]
    """Columns that are no features, by their name, and were skipped."""


def ridge_probe(
    *,
    train_vectors: npt.ArrayLike,
    train_features: pd.DataFrame,
    train_groups: npt.ArrayLike,
    test_vectors: npt.ArrayLike,
    test_features: pd.DataFrame,
    test_groups: npt.ArrayLike,
    rounds: int = 1000,
    seed: int = 0,
) -> FeatureScores:
    """R2 of each CellProfiler feature on held-out groups, and its mean by group of features.

    R2 is 1 less the sum of squared errors over that around the test sites' mean, as in
    `sklearn.metrics.r2_score`; it has no lower bound, so look at `num_below_zero` beside a mean. A
    bootstrap sample of the test groups has a mean of its own, and fewer different groups, so its R2
    is lower on average: with few groups an interval lies low. In a sample that holds a feature
    constant, the mean is taken over the other features.

    Args:
        train_vectors: (n, d).
        train_features: (n, F) of numbers, columns named Compartment_Group_..., such as
            Cells_Texture_Contrast_DNA_3_0; columns Metadata_... are skipped.
        train_groups: (n,) name of its plate, well or image.
        test_vectors: (m, d).
        test_features: (m, F), the same columns.
        test_groups: (m,), none of them among `train_groups`.
        rounds: bootstrap samples.
        seed: of the samples.

    Raises:
        ValueError: for values that are not finite numbers, rows or columns that differ, groups as
            `probes.linear_probe` refuses them, and if no feature varies.
    """
    names, skipped = _feature_names(train_features, test_features)
    y_train = _numbers(train_features, names, "train_features")
    y_test = _numbers(test_features, names, "test_features")
    x_train = checked_vectors(train_vectors, name="train_vectors", rows=len(y_train))
    x_test = checked_vectors(test_vectors, name="test_vectors", rows=len(y_test))
    if x_train.shape[1] != x_test.shape[1]:
        raise ValueError(
            f"train_vectors have width {x_train.shape[1]}, test_vectors {x_test.shape[1]}; both "
            "must come from the same encoder."
        )
    group = _coded(train_groups, test_groups, len(y_train), len(y_test))
    varies = (np.ptp(y_train, axis=0) > 0) & (np.ptp(y_test, axis=0) > 0)
    if not varies.any():
        raise ValueError(f"None of the {len(names)} features varies over both sides; none scored.")
    y_train, y_test = y_train[:, varies], y_test[:, varies]
    # Features of any unit go in standardised, so that one range of penalties suits them all.
    mean, sd = y_train.mean(axis=0), y_train.std(axis=0)
    ridge = RidgeCV(alphas=PENALTIES, alpha_per_target=True)
    probe = make_pipeline(StandardScaler(), ridge).fit(x_train, (y_train - mean) / sd)
    predicted = probe.predict(x_test).reshape(y_test.shape) * sd + mean
    kept = [name for name, one in zip(names, varies, strict=True) if one]
    r2 = _r2(y_test, predicted, group, rounds, seed)
    features = pd.DataFrame(
        {
            "feature": kept,
            "feature_group": [feature_group(name) for name in kept],
            "r2": r2[0],
            "penalty": np.broadcast_to(ridge.alpha_, len(kept)),
        }
    )
    return FeatureScores(
        features=features,
        groups=_by_group(features, r2[1:]),
        constant=tuple(name for name, one in zip(names, varies, strict=True) if not one),
        metadata=tuple(skipped),
    )


def feature_group(name: str) -> str:
    """Compartment and kind of a feature: Cells_Texture of Cells_Texture_Contrast_DNA_3_0."""
    return "_".join(name.split("_")[:2])


def _feature_names(train: pd.DataFrame, test: pd.DataFrame) -> tuple[list[str], list[str]]:
    """Names of the features in the order of `train`, and of the columns skipped."""
    one, other = (
        [str(name) for name in table.columns if not str(name).startswith(_METADATA)]
        for table in (train, test)
    )
    apart = sorted(set(one) ^ set(other))
    if apart or len(set(one)) < len(one) or len(set(other)) < len(other) or not one:
        raise ValueError(
            f"train_features and test_features have {len(one)} and {len(other)} features, "
            f"{len(apart)} of them on one side only ({listed(apart)}); both need the same ones, "
            "one at least, each once."
        )
    return one, [str(name) for name in train.columns if str(name).startswith(_METADATA)]


def _numbers(table: pd.DataFrame, names: list[str], name: str) -> np.ndarray:
    """The features of a table as finite float64 (rows, F)."""
    other = [n for n in names if not pd.api.types.is_numeric_dtype(table[n])]
    if other:
        raise ValueError(
            f"{name} has {len(other)} columns that are no numbers ({listed(other)}); name them "
            f"{_METADATA}... or leave them out."
        )
    return checked_vectors(table[names].to_numpy(dtype=np.float64, na_value=np.nan), name=name)


def _coded(train: npt.ArrayLike, test: npt.ArrayLike, n: int, m: int) -> np.ndarray:
    """Number (m,) of each test site's group."""
    # The rows stand for the labels that other probes have: one group for each of them.
    columns = checked_columns(
        train_labels=np.arange(n), train_groups=train, test_labels=np.arange(m), test_groups=test
    )
    return checked_groups(columns["train_groups"], columns["test_groups"])[1]


def _r2(
    y: np.ndarray, predicted: np.ndarray, group: np.ndarray, rounds: int, seed: int
) -> np.ndarray:
    """R2 (1 + S, F) on the data and on each sample of groups; NaN where a sample is constant."""
    y_centred = y - y.mean(axis=0)  # sums of squares of large numbers would lose their digits
    num_groups = int(group.max()) + 1

    def by_group(values: np.ndarray) -> np.ndarray:
        sums = np.zeros((num_groups, values.shape[1]))
        np.add.at(sums, group, values)
        return sums

    drawn = drawn_groups(num_groups, rounds, seed)
    sites = (drawn @ np.bincount(group, minlength=num_groups))[:, None]
    error = drawn @ by_group((y - predicted) ** 2)
    total = drawn @ by_group(y_centred**2) - (drawn @ by_group(y_centred)) ** 2 / sites
    defined = total > _NO_VARIANCE * total[0]
    return 1 - np.divide(error, total, out=np.full(total.shape, np.nan), where=defined)


def _by_group(features: pd.DataFrame, samples: np.ndarray) -> pd.DataFrame:
    """The rows of `FeatureScores.groups`."""
    rows = []
    for name, mine in features.groupby("feature_group", sort=True):
        r2, drawn = mine["r2"].to_numpy(), samples[:, mine.index]
        defined = np.isfinite(drawn)
        counts = defined.sum(axis=1)
        if not (counts > 0).any():
            raise ValueError(
                f"No sample of the test groups lets {name} vary; hold out more groups."
            )
        means = np.where(defined, drawn, 0).sum(axis=1)[counts > 0] / counts[counts > 0]
        interval = percentile_interval(float(r2.mean()), means)
        rows.append(
            {
                "feature_group": name,
                "num_features": len(mine),
                "r2": interval.value,
                "r2_low": interval.low,
                "r2_high": interval.high,
                "num_below_zero": int((r2 < 0).sum()),
            }
        )
    return pd.DataFrame(rows)
