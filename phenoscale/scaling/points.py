"""The results rows of one objective as arrays: what every fit reads.

Symbols, in this folder alone: N parameters, D crops seen, C training FLOPs, as the literature has
them. n trials, m configurations, G bootstrap samples of genes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from phenoscale.results import ResultsRow

AXES = {
    "training_flops": "training FLOPs",
    "crops_seen": "crops seen",
    "num_parameters": "parameters",
}
"""What a score can be drawn against: column of the row, and its name for a reader."""


COMPARABLE = ("metric", "protocol", "index_fingerprint")
"""Columns of the row in which trials must agree for their scores to compare."""
TUNED_SOURCES = ("tuned", "paper")
"""Sources of a learning rate that was found for its very size."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Points:
    """The trained trials of one objective, one entry each."""

    objective: str
    """Label of the objective."""
    rows: tuple[ResultsRow, ...]
    """Their rows."""
    configuration: np.ndarray
    """(n,) int: trials of one number differ in nothing but the seed; 0 to m - 1."""
    score_samples: np.ndarray | None
    """(n, G) score on each bootstrap sample of genes, the same samples for all trials of a study;
    None where they were not kept."""

    def column(self, name: str) -> np.ndarray:
        """(n,) float64 of a column of the row, such as training_flops, held_out_loss or score."""
        return np.array([getattr(row, name) for row in self.rows], dtype=np.float64)

    def means(self, values: np.ndarray) -> np.ndarray:
        """Mean over the seeds of each configuration: (..., n) to (..., m)."""
        seeds = np.bincount(self.configuration)
        member = self.configuration[:, None] == np.arange(len(seeds))
        return np.asarray(values @ (member / seeds))

    def log10(self, name: str) -> np.ndarray:
        """(m,) log10 of a positive column, by configuration."""
        return self.means(np.log10(self.column(name)))

    @property
    def num_configurations(self) -> int:
        """How many configurations there are, m."""
        return int(self.configuration.max()) + 1

    @property
    def keys(self) -> tuple[tuple[str, float, int], ...]:
        """(m,) backbone, data fraction and crops seen of each configuration, to match others by."""
        return tuple(_key(seeds[0]) for seeds in self.by_configuration)

    @property
    def by_configuration(self) -> tuple[tuple[ResultsRow, ...], ...]:
        """(m,) the rows of each configuration's seeds."""
        seeds: list[list[ResultsRow]] = [[] for _ in range(self.num_configurations)]
        for row, place in zip(self.rows, self.configuration.tolist(), strict=True):
            seeds[place].append(row)
        return tuple(map(tuple, seeds))

    @property
    def untuned(self) -> tuple[str, ...]:
        """Backbones whose learning rate was neither tuned for their size nor a paper's."""
        return tuple(
            sorted({row.backbone for row in self.rows if row.lr_source not in TUNED_SOURCES})
        )

    def only(self, kept: np.ndarray) -> Points | None:
        """The trials where `kept` (n,) is true, with configurations numbered anew; None if none."""
        places = np.flatnonzero(kept)
        if not len(places):
            return None
        _, configuration = np.unique(self.configuration[places], return_inverse=True)
        return Points(
            objective=self.objective,
            rows=tuple(self.rows[place] for place in places),
            configuration=configuration,
            score_samples=None if self.score_samples is None else self.score_samples[places],
        )


def check_comparable(rows: Sequence[ResultsRow], *, whose: str, advice: str) -> None:
    """Refuses rows whose scores nothing may join.

    Args:
        rows: any.
        whose: the subject of the message.
        advice: what to do, a sentence.

    Raises:
        ValueError: if the rows are of two metrics, protocols or screens.
    """
    for name in COMPARABLE:
        found = sorted({str(getattr(row, name)) for row in rows})
        if len(found) > 1:
            raise ValueError(
                f"{whose} have {len(found)} values of {name} ({', '.join(found)}), so their "
                f"scores are not comparable. {advice}"
            )


def points_of(
    rows: Sequence[ResultsRow], samples: Mapping[str, Sequence[float]] | None = None
) -> dict[str, Points]:
    """The trained trials by objective, in order of compute.

    Of twins, one training placed twice, the first by id counts: they are one measurement.

    Args:
        rows: of one study, or of several on one screen.
        samples: by trial id, its score on each bootstrap sample of genes.

    Raises:
        ValueError: if rows of two metrics, protocols or screens are mixed, which no fit may join.
    """
    trained = [row for row in rows if not row.is_baseline]
    check_comparable(trained, whose="The rows", advice="Fit each by itself.")
    points = {}
    for objective in sorted({row.objective for row in trained}):
        mine: dict[tuple[object, ...], ResultsRow] = {}
        for row in sorted(trained, key=lambda row: row.trial_id):
            if row.objective == objective:
                mine.setdefault((*_identity(row), row.seed), row)
        ordered = sorted(
            mine.values(), key=lambda r: (r.training_flops, r.backbone, r.lr, r.trial_id)
        )
        numbers: dict[tuple[object, ...], int] = {}
        configuration = [numbers.setdefault(_identity(row), len(numbers)) for row in ordered]
        points[objective] = Points(
            objective=objective,
            rows=tuple(ordered),
            configuration=np.array(configuration),
            score_samples=_stacked(ordered, samples or {}),
        )
    return points


def _identity(row: ResultsRow) -> tuple[object, ...]:
    """All that tells configurations apart; seeds and placements do not."""
    return (*_key(row), row.num_parameters, row.optimizer, row.lr, row.steps)


def _key(row: ResultsRow) -> tuple[str, float, int]:
    return row.backbone, row.data_fraction, row.crops_seen


def _stacked(
    rows: Sequence[ResultsRow], samples: Mapping[str, Sequence[float]]
) -> np.ndarray | None:
    """Samples of all rows, or None if one lacks them or has another number of them."""
    found = [samples.get(row.trial_id, ()) for row in rows]
    lengths = {len(one) for one in found}
    if not found or len(lengths) > 1 or lengths == {0}:
        return None
    return np.array(found, dtype=np.float64)
