"""Nearest-neighbour probes: whether sites of a class lie beside each other, by cosine.

Nothing is fitted: they score the distances that a search by neighbours would use. Each neighbour
has one vote; of classes with as many votes the first in order wins, as in scikit-learn. Embeddings
go in as they are: centre or align them first, for an offset that all share makes all cosines near
1.

Shapes: n training sites (or sites in all), m test sites, d width, G groups, K classes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from sklearn.neighbors import KNeighborsClassifier

from phenoscale.maps.interval import Interval
from phenoscale.maps.probes import (
    accuracy_interval,
    checked_columns,
    checked_split,
    coded_groups,
    correct_sites,
)
from phenoscale.maps.vectors import checked_vectors, listed


def knn_probe(
    *,
    train_vectors: npt.ArrayLike,
    train_labels: npt.ArrayLike,
    train_groups: npt.ArrayLike,
    test_vectors: npt.ArrayLike,
    test_labels: npt.ArrayLike,
    test_groups: npt.ArrayLike,
    neighbours: int = 5,
    rounds: int = 1000,
    seed: int = 0,
) -> Interval:
    """Balanced accuracy of the vote of the nearest training sites, with its interval over groups.

    Args:
        train_vectors: (n, d), no row of zeros.
        train_labels: (n,) class of each.
        train_groups: (n,) name of its plate, well or image.
        test_vectors: (m, d), no row of zeros.
        test_labels: (m,).
        test_groups: (m,), none of them among `train_groups`.
        neighbours: sites that vote, at most n.
        rounds: bootstrap samples.
        seed: of the samples.

    Raises:
        ValueError: as `probes.linear_probe`, for rows of zeros, which have no direction, and for
            fewer neighbours than one or more than training sites.
    """
    split = checked_split(train_labels, train_groups, test_labels, test_groups)
    vote = _vote(neighbours, fewest=len(split.train_labels))
    _check_directions(train_vectors, "train_vectors")
    _check_directions(test_vectors, "test_vectors")
    correct = correct_sites(vote, train_vectors, test_vectors, split)
    return accuracy_interval(correct, split.sites, rounds, seed)


def knn_probe_between_groups(
    *,
    vectors: npt.ArrayLike,
    labels: npt.ArrayLike,
    groups: npt.ArrayLike,
    neighbours: int = 5,
    rounds: int = 1000,
    seed: int = 0,
) -> Interval:
    """Balanced accuracy where each site's neighbours are sought in all other groups.

    Each group is left out once: no split needs to be chosen, and all sites are scored. The interval
    is a bootstrap of groups as test groups; that they are training groups of each other it does not
    see, so it is somewhat narrow.

    Args:
        vectors: (n, d), no row of zeros.
        labels: (n,) class of each.
        groups: (n,) name of its plate, well or image; each class in two of them at least.
        neighbours: sites that vote, at most as many as all groups but the largest hold.
        rounds: bootstrap samples.
        seed: of the samples.

    Raises:
        ValueError: as `knn_probe`, and for a class that only one group has.
    """
    columns = checked_columns(labels=labels, groups=groups)
    classes, label = np.unique(columns["labels"], return_inverse=True)
    names, group = coded_groups(columns["groups"])
    sites = np.zeros((len(names), len(classes)), dtype=np.int64)
    np.add.at(sites, (group, label), 1)
    x = checked_vectors(vectors, name="vectors", rows=len(label))
    _check_directions(x, "vectors")
    if len(classes) < 2:
        raise ValueError(f"The labels are all {classes.tolist()[0]!r}; two classes are required.")
    single = np.flatnonzero((sites > 0).sum(axis=0) == 1)
    if len(single):
        raise ValueError(
            f"{len(single)} classes are in one group only "
            f"({listed(classes[single].tolist())}); their neighbours of other groups are "
            "all of other classes. Leave them out, or group by something finer."
        )
    vote = _vote(neighbours, fewest=len(x) - int(sites.sum(axis=1).max()))
    correct = np.zeros_like(sites)
    for number in range(len(sites)):
        mine = group == number
        vote.fit(x[~mine], label[~mine])
        hit = vote.predict(x[mine]) == label[mine]
        correct[number] = np.bincount(label[mine][hit], minlength=correct.shape[1])
    return accuracy_interval(correct, sites, rounds, seed)


def _vote(neighbours: int, *, fewest: int) -> KNeighborsClassifier:
    if not 1 <= neighbours <= fewest:
        raise ValueError(
            f"neighbours is {neighbours}; it must be from 1 to {fewest}, the training sites that "
            "there are."
        )
    return KNeighborsClassifier(neighbours, metric="cosine", algorithm="brute")


def _check_directions(vectors: npt.ArrayLike, name: str) -> None:
    """Raises ValueError for rows of zeros."""
    zero = np.flatnonzero(~checked_vectors(vectors, name=name).any(axis=1)).tolist()
    if zero:
        raise ValueError(
            f"{name} has {len(zero)} rows of zeros ({listed(zero)}); they have no direction, so no "
            "cosine. Leave them out."
        )
