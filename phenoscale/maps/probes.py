"""Linear probes: how well a linear classifier reads labels off frozen embeddings.

The probe is a multinomial logistic regression on standardised features, fitted on training groups
(plates, wells, images: whatever shares nuisance) and scored by balanced accuracy on groups it has
never seen. The interval is a bootstrap over the test groups, because sites of one group are not
independent. `probe_neighbours`, `probe_features` and `probe_blocks` split and draw by the same
functions.

Shapes: n training sites, m test sites, d width of the embedding, G test groups, K classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from phenoscale.maps.interval import Interval, checked_rounds, percentile_interval
from phenoscale.maps.vectors import checked_vectors, listed

MIN_TEST_GROUPS = 2
"""Test groups that a bootstrap needs. With fewer than about ten the interval is too narrow."""

_MAX_ITERATIONS = 2000


def linear_probe(
    *,
    train_vectors: npt.ArrayLike,
    train_labels: npt.ArrayLike,
    train_groups: npt.ArrayLike,
    test_vectors: npt.ArrayLike,
    test_labels: npt.ArrayLike,
    test_groups: npt.ArrayLike,
    rounds: int = 1000,
    seed: int = 0,
) -> Interval:
    """Balanced accuracy of a linear probe with its 95% percentile interval over test groups.

    Args:
        train_vectors: (n, d).
        train_labels: (n,) class of each.
        train_groups: (n,) name of its plate, well or image.
        test_vectors: (m, d).
        test_labels: (m,).
        test_groups: (m,), none of them among `train_groups`.
        rounds: bootstrap samples.
        seed: of the samples.

    Raises:
        ValueError: for values that are not finite, lengths or widths that differ, a group on both
            sides of the split, fewer than `MIN_TEST_GROUPS` test groups, fewer than two classes, or
            a test class without training sites.
    """
    values = linear_probe_samples(
        train_vectors=train_vectors,
        train_labels=train_labels,
        train_groups=train_groups,
        test_vectors=test_vectors,
        test_labels=test_labels,
        test_groups=test_groups,
        rounds=rounds,
        seed=seed,
    )
    return percentile_interval(values[0], values[1:])


def linear_probe_samples(
    *,
    train_vectors: npt.ArrayLike,
    train_labels: npt.ArrayLike,
    train_groups: npt.ArrayLike,
    test_vectors: npt.ArrayLike,
    test_labels: npt.ArrayLike,
    test_groups: npt.ArrayLike,
    rounds: int = 1000,
    seed: int = 0,
) -> np.ndarray:
    """Balanced accuracy on the data (first) and on each sample of test groups, (1 + rounds,).

    Embeddings of one split get the same samples, one by one. Arguments and errors as
    `linear_probe`.
    """
    split = checked_split(train_labels, train_groups, test_labels, test_groups)
    correct = correct_sites(linear_classifier(), train_vectors, test_vectors, split)
    value, samples = _bootstrap([correct], split.sites, rounds, seed)
    return np.concatenate([value, samples[:, 0]])


def paired_probe_difference(
    *,
    embeddings_a: Sequence[tuple[npt.ArrayLike, npt.ArrayLike]],
    embeddings_b: Sequence[tuple[npt.ArrayLike, npt.ArrayLike]],
    train_labels: npt.ArrayLike,
    train_groups: npt.ArrayLike,
    test_labels: npt.ArrayLike,
    test_groups: npt.ArrayLike,
    rounds: int = 1000,
    seed: int = 0,
) -> Interval:
    """Mean balanced accuracy of side a less that of side b, on the same samples of test groups.

    Several embeddings on one side are several initialisations of one thing.

    Args:
        embeddings_a: (train_vectors (n, d), test_vectors (m, d)) of each embedding; d may differ.
        embeddings_b: the same for the other side.
        train_labels: (n,) class of each training site.
        train_groups: (n,) its plate, well or image.
        test_labels: (m,) class of each test site.
        test_groups: (m,) its group, none of them among `train_groups`.
        rounds: bootstrap samples.
        seed: of the samples.

    Raises:
        ValueError: as `linear_probe`, and for a side without embeddings.
    """
    if not len(embeddings_a) or not len(embeddings_b):
        raise ValueError(
            f"embeddings_a has {len(embeddings_a)} and embeddings_b {len(embeddings_b)} "
            "embeddings; each side needs at least one."
        )
    split = checked_split(train_labels, train_groups, test_labels, test_groups)
    value, samples = _bootstrap(
        [
            correct_sites(linear_classifier(), train, test, split)
            for train, test in (*embeddings_a, *embeddings_b)
        ],
        split.sites,
        rounds,
        seed,
    )
    first_b = len(embeddings_a)
    return percentile_interval(
        value[:first_b].mean() - value[first_b:].mean(),
        samples[:, :first_b].mean(axis=1) - samples[:, first_b:].mean(axis=1),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Split:
    """Labels and groups of a split, checked and coded."""

    train_labels: np.ndarray
    """(n,) class number."""
    test_labels: np.ndarray
    """(m,) class number."""
    test_groups: np.ndarray
    """(m,) group number."""
    sites: np.ndarray
    """(G, K) test sites of each class in each group."""


def checked_split(
    train_labels: npt.ArrayLike,
    train_groups: npt.ArrayLike,
    test_labels: npt.ArrayLike,
    test_groups: npt.ArrayLike,
) -> Split:
    """Checks and codes a split; errors as `linear_probe`."""
    columns = checked_columns(
        train_labels=train_labels,
        train_groups=train_groups,
        test_labels=test_labels,
        test_groups=test_groups,
    )
    train_classes, train_codes = np.unique(columns["train_labels"], return_inverse=True)
    if len(train_classes) < 2:
        raise ValueError(
            f"The training labels are all {train_classes.tolist()[0]!r}; two classes are required."
        )
    groups, group_codes = checked_groups(columns["train_groups"], columns["test_groups"])
    test_codes = pd.Index(train_classes).get_indexer(columns["test_labels"])
    if (test_codes < 0).any():
        unseen = np.unique(columns["test_labels"][test_codes < 0]).tolist()
        raise ValueError(
            f"{len(unseen)} test classes have no training sites ({listed(unseen)}); the probe "
            "cannot know them. Leave them out, or split so that each class is on both sides."
        )
    sites = np.zeros((len(groups), len(train_classes)), dtype=np.int64)
    np.add.at(sites, (group_codes, test_codes), 1)
    return Split(
        train_labels=train_codes, test_labels=test_codes, test_groups=group_codes, sites=sites
    )


def checked_groups(
    train_groups: np.ndarray, test_groups: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Names (G,) of the test groups and the number (m,) of each test site's.

    Raises:
        ValueError: for a group on both sides, and fewer than `MIN_TEST_GROUPS` test groups.
    """
    shared = np.intersect1d(train_groups, test_groups).tolist()
    if shared:
        raise ValueError(
            f"{len(shared)} groups stand on both sides of the split ({listed(shared)}); sites that "
            "share a group leak its nuisance into the score. Split by group."
        )
    return coded_groups(test_groups)


def coded_groups(test_groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Names (G,) of the test groups and the number (m,) of each test site's; errors if too few."""
    groups, group_codes = np.unique(test_groups, return_inverse=True)
    if len(groups) < MIN_TEST_GROUPS:
        raise ValueError(
            f"The test sites come from {len(groups)} group ({listed(groups.tolist())}); an "
            f"interval needs at least {MIN_TEST_GROUPS}. Hold out more, or group by something "
            "finer."
        )
    return groups, group_codes


def drawn_groups(num_groups: int, rounds: int, seed: int) -> np.ndarray:
    """How often each group stands in the data (first row, ones) and in each sample (rounds, G)."""
    checked_rounds(rounds)
    picks = np.random.default_rng(seed).integers(num_groups, size=(rounds, num_groups))
    drawn = np.stack([np.bincount(pick, minlength=num_groups) for pick in picks])
    return np.concatenate([np.ones((1, num_groups), dtype=np.int64), drawn])


def linear_classifier() -> Pipeline:
    """The linear probe, not yet fitted.

    Classes are weighted because the score is balanced accuracy. The penalty is scikit-learn's
    default, the same for all embeddings: a probe tuned per embedding would compare the tuning.
    """
    return make_pipeline(
        StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=_MAX_ITERATIONS)
    )


def checked_columns(**given: npt.ArrayLike) -> dict[str, np.ndarray]:
    """Columns by name, each as long as its groups: train_labels and train_groups, and so on."""
    columns = {name: np.asarray(column) for name, column in given.items()}
    for name, column in columns.items():
        side = columns[name.replace("labels", "groups")]
        if column.ndim != 1 or not len(column) or column.shape != side.shape:
            raise ValueError(
                f"{name} has shape {column.shape}, its groups have {side.shape}; one label and one "
                "group for each site are required."
            )
        if missing := int(pd.isna(column).sum()):
            raise ValueError(f"{name} is empty for {missing} sites; leave out sites without it.")
    return columns


def accuracy_interval(correct: np.ndarray, sites: np.ndarray, rounds: int, seed: int) -> Interval:
    """Balanced accuracy with its interval over groups.

    Args:
        correct: (G, K) correctly classified sites of each class in each group.
        sites: (G, K) all of them.
        rounds: bootstrap samples.
        seed: of the samples.
    """
    value, samples = _bootstrap([correct], sites, rounds, seed)
    return percentile_interval(value[0], samples[:, 0])


def _bootstrap(
    correct: Sequence[np.ndarray], sites: np.ndarray, rounds: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Balanced accuracy of each embedding on the data (E,) and on each sample (rounds, E)."""
    drawn = drawn_groups(len(sites), rounds, seed)
    scores = np.stack(
        [balanced_accuracy(drawn @ counts, drawn @ sites) for counts in correct], axis=1
    )
    return scores[0], scores[1:]


def correct_sites(
    probe: Pipeline | KNeighborsClassifier,
    train_vectors: npt.ArrayLike,
    test_vectors: npt.ArrayLike,
    split: Split,
) -> np.ndarray:
    """Correctly classified test sites (G, K) of each class in each group."""
    train = checked_vectors(train_vectors, name="train_vectors", rows=len(split.train_labels))
    test = checked_vectors(test_vectors, name="test_vectors", rows=len(split.test_labels))
    if train.shape[1] != test.shape[1]:
        raise ValueError(
            f"train_vectors have width {train.shape[1]}, test_vectors {test.shape[1]}; both must "
            "come from the same encoder."
        )
    probe.fit(train, split.train_labels)
    hit = probe.predict(test) == split.test_labels
    correct = np.zeros_like(split.sites)
    np.add.at(correct, (split.test_groups[hit], split.test_labels[hit]), 1)
    return correct


def balanced_accuracy(correct: np.ndarray, sites: np.ndarray) -> np.ndarray:
    """Mean accuracy (rounds,) over the classes that the sample holds, from counts (rounds, K)."""
    present = sites > 0
    accuracy = np.divide(correct, sites, out=np.zeros(sites.shape), where=present)
    balanced: np.ndarray = accuracy.sum(axis=1) / present.sum(axis=1)
    return balanced
