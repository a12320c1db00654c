"""The search for the best read-out of an encoder: chosen on training groups, scored on others.

The best block of a transformer is often not the last (Kenyon-Dean et al. 2025, arXiv 2411.02572).
Which one is best is itself learnt from data: picked by the score that is reported, it would be
flattered by as many tries as there are blocks. Here the choice rests on cross-validation within the
training groups, and the held-out groups are scored after it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from sklearn.model_selection import GroupKFold

from phenoscale.maps.interval import Interval
from phenoscale.maps.probes import (
    accuracy_interval,
    balanced_accuracy,
    checked_columns,
    checked_split,
    correct_sites,
    linear_classifier,
)
from phenoscale.maps.vectors import checked_vectors, listed


@dataclasses.dataclass(frozen=True, kw_only=True)
class BestBlock:
    """The read-out that training groups choose, and what it is worth on held-out ones."""

    chosen: str
    """Its name."""
    score: Interval
    """Balanced accuracy of its linear probe on the held-out groups."""
    cross_validated: dict[str, float]
    """Balanced accuracy of each read-out in cross-validation over training groups: what the choice
    saw."""
    held_out: dict[str, Interval]
    """Of each read-out, what its probe scores on the held-out groups: for the figure. The highest
    of these is flattered; `score` is not."""


def best_block(
    *,
    train_vectors: Mapping[str, npt.ArrayLike],
    train_labels: npt.ArrayLike,
    train_groups: npt.ArrayLike,
    test_vectors: Mapping[str, npt.ArrayLike],
    test_labels: npt.ArrayLike,
    test_groups: npt.ArrayLike,
    folds: int = 5,
    rounds: int = 1000,
    seed: int = 0,
) -> BestBlock:
    """Chooses among read-outs by cross-validation over training groups, and scores the choice.

    Of read-outs with the same score the first is taken. A class that only one training group has
    is never recognized in cross-validation, by any read-out.

    Args:
        train_vectors: read-out to (n, d); d may differ.
        train_labels: (n,) class of each training site.
        train_groups: (n,) its plate or experimental_batch: the folds of the choice hold groups out,
            as the test does.
        test_vectors: read-out to (m, d), the same names.
        test_labels: (m,).
        test_groups: (m,), none of them among `train_groups`.
        folds: of the cross-validation; as many as training groups where these are fewer.
        rounds: bootstrap samples behind each interval.
        seed: of the samples.

    Raises:
        ValueError: as `probes.linear_probe`; for read-outs that differ between the sides, fewer
            than two folds or training groups, and folds that leave one class to train on.
    """
    if not train_vectors or train_vectors.keys() != test_vectors.keys():
        apart = sorted(train_vectors.keys() ^ test_vectors.keys())
        raise ValueError(
            f"The sides have {len(train_vectors)} and {len(test_vectors)} read-outs "
            f"({listed(apart)} on one side only); both need the same ones, and one at least."
        )
    split = checked_split(train_labels, train_groups, test_labels, test_groups)
    columns = checked_columns(train_labels=train_labels, train_groups=train_groups)
    labels, groups = columns["train_labels"], columns["train_groups"]
    parts = _folds(labels, groups, folds)
    cross_validated = {
        name: _cross_validated(vectors, labels, parts, name)
        for name, vectors in train_vectors.items()
    }
    chosen = max(cross_validated, key=lambda name: cross_validated[name])
    # The choice is made, and no held-out vector was looked at.
    held_out = {
        name: accuracy_interval(
            correct_sites(linear_classifier(), train_vectors[name], test_vectors[name], split),
            split.sites,
            rounds,
            seed,
        )
        for name in train_vectors
    }
    return BestBlock(
        chosen=chosen,
        score=held_out[chosen],
        cross_validated=cross_validated,
        held_out=held_out,
    )


def _folds(
    labels: np.ndarray, groups: np.ndarray, folds: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Training and test rows of each fold, the same for all read-outs."""
    number = min(folds, len(np.unique(groups)))
    if number < 2:
        raise ValueError(
            f"folds is {folds} and the training sites come from {len(np.unique(groups))} groups; "
            "a choice by cross-validation needs two of each."
        )
    parts = list(GroupKFold(number).split(labels, groups=groups))
    for place, (train, _) in enumerate(parts, start=1):
        if len(np.unique(labels[train])) < 2:
            raise ValueError(
                f"Fold {place} of {number} leaves training sites of the class {labels[train][0]} "
                "alone; give more groups that hold several classes, or more folds."
            )
    return parts


def _cross_validated(
    vectors: npt.ArrayLike,
    labels: np.ndarray,
    parts: list[tuple[np.ndarray, np.ndarray]],
    name: str,
) -> float:
    """Balanced accuracy over all training sites, each predicted while its group was held out."""
    x = checked_vectors(vectors, name=f"train_vectors of {name}", rows=len(labels))
    classes, codes = np.unique(labels, return_inverse=True)
    correct = np.zeros((1, len(classes)), dtype=np.int64)
    for train, test in parts:
        predicted = linear_classifier().fit(x[train], codes[train]).predict(x[test])
        correct += np.bincount(codes[test][predicted == codes[test]], minlength=len(classes))
    return float(balanced_accuracy(correct, np.bincount(codes)[None])[0])
