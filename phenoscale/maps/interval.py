"""One number with its bootstrap interval: how every score and every difference is reported."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

COVERAGE = 0.95


@dataclasses.dataclass(frozen=True, kw_only=True)
class Interval:
    """A figure and the ends of its 95% interval."""

    value: float
    """The figure on the data themselves, not the mean of the bootstrap."""
    low: float
    """Lower end."""
    high: float
    """Upper end."""

    def __post_init__(self) -> None:
        ends = (self.value, self.low, self.high)
        if not all(math.isfinite(end) for end in ends) or self.low > self.high:
            raise ValueError(
                f"value, low, high are {ends}; all must be finite and low must not exceed high."
            )

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 lies outside: for a difference, whether its sign is clear."""
        return self.low > 0 or self.high < 0


def percentile_interval(value: float, samples: np.ndarray) -> Interval:
    """Percentile bootstrap interval (Efron & Tibshirani 1993, chapter 13).

    Args:
        value: the figure on the data themselves.
        samples: (rounds,) the figure on each bootstrap sample.
    """
    outside = (1 - COVERAGE) / 2
    low, high = np.quantile(samples, (outside, 1 - outside))
    return Interval(value=float(value), low=float(low), high=float(high))


def checked_rounds(rounds: int) -> int:
    """Refuses bootstraps too short to have a 2.5% and a 97.5% percentile."""
    required = round(2 / (1 - COVERAGE))
    if rounds < required:
        raise ValueError(
            f"rounds is {rounds}; a {COVERAGE:.0%} interval needs at least {required}, usually "
            "1000."
        )
    return rounds
