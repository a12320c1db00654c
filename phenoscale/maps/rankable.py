"""What is looked at before pairs are ranked: the rules of the pairs, their number, the vectors.

Shapes: n rows, d width of the embedding.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import sparse

from phenoscale.maps.vectors import listed

MAX_PAIRS = 20_000_000
"""Pairs of rows that one call may rank; copairs holds about 100 bytes for each."""

MIN_SPREAD = 1e-4
"""Least mean squared distance of the unit vectors from their mean; float32 ranks no less."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rules:
    """Columns that a positive or a negative pair shares, and columns that all differ in it."""

    positive_same: Sequence[str]
    positive_different: Sequence[str] = ()
    negative_same: Sequence[str] = ()
    negative_different: Sequence[str] = ()
    label: str | None = None
    """The column that holds lists of labels: same is one in common, different is none."""

    @property
    def columns(self) -> list[str]:
        """All columns, each once."""
        positive = [*self.positive_same, *self.positive_different]
        return list(dict.fromkeys([*positive, *self.negative_same, *self.negative_different]))


def num_pairs(frame: pd.DataFrame, same: Sequence[str], different: Sequence[str]) -> int:
    """Unordered pairs of rows that agree in all of `same` and differ in all of `different`.

    By inclusion and exclusion over `different`, so that no pair is ever listed.
    """
    total = 0
    for size in range(len(different) + 1):
        for equal in itertools.combinations(different, size):
            columns = [*same, *equal]
            counts = (
                frame.groupby(columns, sort=False).size().to_numpy()
                if columns
                else np.array([len(frame)])
            )
            total += (-1) ** size * int((counts * (counts - 1) // 2).sum())
    return total


def check_size(frame: pd.DataFrame, rules: Rules) -> None:
    """Refuses more than `MAX_PAIRS` pairs, before any is made."""
    if rules.label is not None:  # copairs joins all rows with all others to compare the lists
        pairs = len(frame) * (len(frame) - 1) // 2
    else:
        pairs = num_pairs(frame, rules.positive_same, rules.positive_different) + num_pairs(
            frame, rules.negative_same, rules.negative_different
        )
    if pairs > MAX_PAIRS:
        raise ValueError(
            f"The {len(frame)} rows make {pairs} pairs to rank; at most {MAX_PAIRS} fit (about 100 "
            "bytes each). Score fewer plates at a time, take negatives on the same plate, or give "
            "one consensus profile per perturbation."
        )


def check_directions(vectors: np.ndarray) -> None:
    """Refuses rows (n, d) that are all zero or point nearly the same way."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    if zero := np.flatnonzero(length == 0).tolist():
        raise ValueError(
            f"{len(zero)} rows have an all-zero vector (rows {listed(zero)}), which has no cosine; "
            "leave them out."
        )
    unit = vectors / length
    spread = float(np.mean(np.sum((unit - unit.mean(axis=0)) ** 2, axis=1)))
    if spread < MIN_SPREAD:
        raise ValueError(
            f"The {len(vectors)} rows point nearly the same way (mean squared distance of the unit "
            f"vectors {spread:.1e}, at least {MIN_SPREAD} is required), so that float32 cannot "
            "rank them. Align on negative controls first; else the encoder has collapsed."
        )


def check_negatives(frame: pd.DataFrame, rules: Rules) -> None:
    """Refuses queries without negatives: copairs 0.5.5 takes those of another row, or stops."""
    labels = frame[rules.label].reset_index(drop=True).explode()
    codes, values = pd.factorize(labels)
    member = sparse.csr_array(
        (np.ones(len(codes), dtype=np.int16), (labels.index.to_numpy(), codes)),
        shape=(len(frame), len(values)),
    )
    shared = (member @ member.T).toarray() > 0
    positive, negative = shared, ~shared
    for columns, pair in ((rules.positive_different, "positive"), (rules.negative_different, "")):
        for column in columns:
            if column != rules.label:
                codes = pd.factorize(frame[column].to_numpy())[0]
                differs = codes[:, None] != codes[None, :]
                if pair:
                    positive = positive & differs
                else:
                    negative = negative & differs
    if alone := np.flatnonzero(positive.any(axis=1) & ~negative.any(axis=1)).tolist():
        raise ValueError(
            f"{len(alone)} rows share a label with every row they are compared with (rows "
            f"{listed(alone)} of the task), so they have no negatives; leave them out or add "
            "perturbations."
        )
