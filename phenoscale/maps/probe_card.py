"""Every probe of a table of embeddings: which read-out is best, and what it gives away.

Shapes: n rows, d width of a read-out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from phenoscale.maps.probe_blocks import best_block
from phenoscale.maps.probe_features import ridge_probe
from phenoscale.maps.probe_neighbours import knn_probe
from phenoscale.maps.vectors import listed

PROTOCOL = "probes/1"
"""Name and version of the way of probing."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """What is probed, and on what it is tested."""

    label: str
    """Column of the classes."""
    held_out: Collection[str]
    """Experimental batches, or plates as experimental_batch/plate, that nothing is fitted on."""
    group: str = "plate"
    """plate or experimental_batch: what shares nuisance, is never parted and is resampled."""
    neighbours: int = 5
    """Rows that vote in the nearest-neighbour probe."""
    rounds: int = 1000
    """Bootstrap samples of held-out groups behind each interval."""
    seed: int = 0
    """Of the samples."""


def probe_card(
    readouts: Mapping[str, np.ndarray],
    metadata: pd.DataFrame,
    question: Question,
    features: pd.DataFrame | None = None,
) -> dict[str, Any]:
    """Probes every read-out, and reads features off the one that training groups choose.

    Args:
        readouts: name to vectors (n, d); each block of a transformer is one.
        metadata: n rows: experimental_batch, plate, and the label.
        question: what is asked.
        features: n rows of CellProfiler features to regress onto; None for none.

    Returns:
        protocol, label, chosen (a read-out), chance, num_train, num_test, num_classes, left_out
        (reason to number of rows), readouts: name to cross_validated, and linear and nearest as
        mappings of value, low, high; feature_groups: list of mappings as in `FeatureScores.groups`,
        and constant_features, where features were given.

    Raises:
        ValueError: for missing columns, nothing held out, too few groups, classes or rows.
    """
    needed = ["experimental_batch", "plate", question.label]
    if missing := [column for column in needed if column not in metadata]:
        raise ValueError(
            f"The metadata lack {', '.join(missing)}; there are {listed(list(metadata.columns))}."
        )
    batch = metadata["experimental_batch"].astype(str).to_numpy(dtype=object)
    plate = batch + "/" + metadata["plate"].astype(str).to_numpy(dtype=object)
    test = np.isin(batch, list(question.held_out)) | np.isin(plate, list(question.held_out))
    if absent := sorted(set(question.held_out) - set(batch) - set(plate)):
        raise ValueError(
            f"There is no experimental batch or plate {listed(absent)}; plates are named like "
            f"{plate[0]}."
        )
    if question.group not in ("plate", "experimental_batch"):
        raise ValueError(f"group is {question.group!r}; plate or experimental_batch is required.")
    groups = plate if question.group == "plate" else batch
    labels = metadata[question.label].to_numpy(dtype=object)
    kept, left_out = _on_both_sides(labels, test)
    train, test = kept & ~test, kept & test
    sides: dict[str, Any] = {
        "train_labels": labels[train].astype(str),
        "train_groups": groups[train],
        "test_labels": labels[test].astype(str),
        "test_groups": groups[test],
    }
    drawn = {"rounds": question.rounds, "seed": question.seed}
    blocks = best_block(
        train_vectors={name: x[train] for name, x in readouts.items()},
        test_vectors={name: x[test] for name, x in readouts.items()},
        **sides,
        **drawn,
    )
    card: dict[str, Any] = {
        "protocol": PROTOCOL,
        "label": question.label,
        "chosen": blocks.chosen,
        "chance": 1 / len(set(sides["train_labels"])),
        "num_train": int(train.sum()),
        "num_test": int(test.sum()),
        "num_classes": len(set(sides["train_labels"])),
        "left_out": left_out,
        "readouts": {
            name: {
                "cross_validated": blocks.cross_validated[name],
                "linear": dataclasses.asdict(blocks.held_out[name]),
                "nearest": dataclasses.asdict(
                    knn_probe(
                        train_vectors=x[train],
                        test_vectors=x[test],
                        neighbours=question.neighbours,
                        **sides,
                        **drawn,
                    )
                ),
            }
            for name, x in readouts.items()
        },
    }
    if features is not None:
        chosen = readouts[blocks.chosen]
        found = ridge_probe(
            train_vectors=chosen[train],
            train_features=features[train],
            train_groups=sides["train_groups"],
            test_vectors=chosen[test],
            test_features=features[test],
            test_groups=sides["test_groups"],
            **drawn,
        )
        card["feature_groups"] = found.groups.to_dict("records")
        card["constant_features"] = list(found.constant)
    return card


def features_of(
    profiles: pd.DataFrame, metadata: pd.DataFrame, names: Sequence[str]
) -> pd.DataFrame:
    """The features of each row's well, in the order of the rows.

    Args:
        profiles: a row per well: plate, well, experimental_batch where both tables have it, and
            the features.
        metadata: of the embeddings: plate, well, ....
        names: of the features.

    Raises:
        ValueError: for missing columns, a well that stands twice, or rows without one.
    """
    key = [c for c in ("experimental_batch", "plate", "well") if c in profiles and c in metadata]
    if not {"plate", "well"} <= set(key):
        raise ValueError("Both tables need the columns plate and well, so that they can be joined.")
    wells = profiles[key].astype(str).agg("/".join, axis=1)
    if repeated := wells[wells.duplicated()].unique().tolist():
        raise ValueError(f"Wells stand twice among the features: {listed(repeated)}.")
    rows = pd.Index(wells).get_indexer(metadata[key].astype(str).agg("/".join, axis=1))
    if (rows < 0).any():
        raise ValueError(
            f"{np.count_nonzero(rows < 0)} of {len(rows)} rows have no well among the features, "
            f"which has wells like {listed(wells.tolist())}."
        )
    return profiles[list(names)].iloc[rows].reset_index(drop=True)


def _on_both_sides(labels: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, dict[str, int]]:
    """Rows (n,) whose class is on both sides of the split, and how many are left out, and why."""
    empty = pd.isna(labels)
    both = set(labels[test & ~empty]) & set(labels[~test & ~empty])
    known = np.array([label in both for label in labels]) & ~empty
    if not known.any():
        raise ValueError(
            f"No class is both on held-out ({test.sum()} rows) and on other groups "
            f"({(~test).sum()} rows); hold out groups whose classes others have too."
        )
    reasons = {
        "without a label": int(empty.sum()),
        "of a class on one side only": int((~known & ~empty).sum()),
    }
    return known, {reason: count for reason, count in reasons.items() if count}
