"""What a run is worth before it is made: arithmetic on a linear model, and on draws of forecasts.

A run's score is j . c + noise, j the gradient of the model at the run and c its coefficients. What
is known of c before the run is a covariance S; after it, exactly (linear-Gaussian update),

    S' = S - (S j)(S j)' / (noise^2 + j' S j)

so the variance g' S g of the forecast at a target with gradient g falls by
(g' S j)^2 / (noise^2 + j' S j), whatever the run will score.

Shapes: k candidates, p coefficients, t targets, m configurations, R rounds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from phenoscale.config import Trial
from phenoscale.maps.interval import Interval

Gains = Callable[[Sequence[int]], np.ndarray]
"""Candidates already chosen to what each of the k would add to them, (k,)."""
Rule = Literal["uncertainty", "improvement"]
_LITTLE = 1e-3  # of what the chosen are worth: a run that adds less is not bought


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """A run that could be made, and what it is worth."""

    trial: Trial
    """All of it."""
    flops: float
    """Training FLOPs."""
    gpu_hours: float
    """Its cost, training and embedding, in the hours of `NextRuns.hours_are`."""
    forecast: Interval
    """Its score, 95% interval of a new run."""
    improvement: float
    """Expected improvement of the study's best score by this run alone."""
    uncertainty: float
    """Share of the variance of its objective's target forecast that this run alone removes."""
    beyond: float
    """Times the largest compute, size or data of its objective that was measured, whichever is
    most; 1.0 inside."""
    repeats: bool
    """Whether it is a new seed of a configuration that was measured."""

    @property
    def objective(self) -> str:
        """Label of the objective."""
        return self.trial.objective.label

    @property
    def backbone(self) -> str:
        """Name of the backbone."""
        return self.trial.backbone

    @property
    def data_fraction(self) -> float:
        """Share of the wells."""
        return self.trial.crops.data_fraction

    @property
    def passes(self) -> int:
        """Visits of every site."""
        return self.trial.crops.passes

    @property
    def seed(self) -> int:
        """Its seed."""
        return self.trial.seed

    @property
    def lr_source(self) -> str:
        """Where its learning rate is from."""
        return self.trial.optim.lr_source

    def as_dict(self) -> dict[str, Any]:
        """Flat plain values, for JSON."""
        names = ("objective", "backbone", "data_fraction", "passes", "seed", "lr_source")
        return {
            "trial_id": self.trial.id,
            **{name: getattr(self, name) for name in names},
            "lr": self.trial.optim.lr,
            "flops": self.flops,
            "gpu_hours": self.gpu_hours,
            "forecast": dataclasses.asdict(self.forecast),
            "improvement": self.improvement,
            "uncertainty": self.uncertainty,
            "beyond": self.beyond,
            "repeats": self.repeats,
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class NextRuns:
    """Candidates by what they are worth, and those to run."""

    budget_hours: float
    """What may be spent."""
    hours_are: str
    """Which hours those are."""
    by: Rule
    """What the ranking and the choice go by, each per hour."""
    candidates: tuple[Candidate, ...]
    """All that fit in the budget, the best first, each as if it were the only one."""
    chosen: tuple[Candidate, ...]
    """Those to run, in the order in which they were picked; together they fit in the budget."""
    target: str
    """The forecasts whose variance `Candidate.uncertainty` speaks of."""
    best: str
    """The best score so far, and whose it is."""
    removed: float
    """Share of the targets' variance that the chosen remove together."""
    forms: dict[str, str]
    """Objective to why its forecasts are of this form."""
    left_out: tuple[str, ...]
    """Which candidates are not here, how many, and why."""
    warnings: tuple[str, ...]
    """What is not to be trusted."""

    def as_dict(self) -> dict[str, Any]:
        """Nested plain values, for JSON; the chosen by their trial ids."""
        whole = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return whole | {
            "candidates": [candidate.as_dict() for candidate in self.candidates],
            "chosen": [candidate.trial.id for candidate in self.chosen],
        }


def covariance_of(design: np.ndarray, noise: np.ndarray, prior_sd: np.ndarray) -> np.ndarray:
    """(p, p) what is known of the coefficients: inverse of X' W X + prior, W = 1 / noise^2.

    Args:
        design: (m, p) gradients at the configurations.
        noise: (m,) standard deviation of each configuration's mean.
        prior_sd: (p,) what each coefficient is held to be before anything is measured, zero give or
            take this; infinite where nothing is held.
    """
    weighted = design / noise[:, None] ** 2
    return np.asarray(np.linalg.inv(weighted.T @ design + np.diag(prior_sd**-2.0)))


def updated(covariance: np.ndarray, gradient: np.ndarray, noise: float) -> np.ndarray:
    """(p, p) covariance of the coefficients when a run with this gradient (p,) is added."""
    moved = covariance @ gradient
    return np.asarray(covariance - np.outer(moved, moved) / (noise**2 + gradient @ moved))


def variance_removed(
    covariance: np.ndarray, gradients: np.ndarray, noise: np.ndarray, targets: np.ndarray
) -> np.ndarray:
    """(k, t) by how much each run alone lowers the variance at each target.

    Args:
        covariance: (p, p) of the coefficients.
        gradients: (k, p) of the runs.
        noise: (k,) their standard deviations.
        targets: (t, p) gradients of the targets.
    """
    moved = gradients @ covariance
    own = noise**2 + np.einsum("kp,kp->k", moved, gradients)
    return np.asarray((moved @ targets.T) ** 2 / own[:, None])


def variance_gains(
    covariance: np.ndarray, gradients: np.ndarray, noise: np.ndarray, targets: np.ndarray
) -> Gains:
    """Gains in the variance summed over the targets; arguments as `variance_removed`."""

    def gains(chosen: Sequence[int]) -> np.ndarray:
        known = covariance
        for run in chosen:
            known = updated(known, gradients[run], float(noise[run]))
        return np.asarray(variance_removed(known, gradients, noise, targets).sum(axis=1))

    return gains


def improvement_gains(draws: np.ndarray, best: float) -> Gains:
    """Gains in the expected best score: the mean over rounds of max(0, new run - best so far).

    Args:
        draws: (R, k) what the runs might score, with their own errors.
        best: the best score measured.
    """

    def gains(chosen: Sequence[int]) -> np.ndarray:
        reached = np.maximum(best, draws[:, list(chosen)].max(axis=1, initial=best))
        return np.asarray(np.maximum(draws - reached[:, None], 0).mean(axis=0))

    return gains


def choose_runs(gains: Gains, costs: np.ndarray, budget: float) -> tuple[int, ...]:
    """Runs that are worth most together within a budget, in the order in which they were picked.

    Greedy: the affordable run of the largest gain per cost, then the next, gains counted anew after
    each. Greedy by cost may fill the budget with small runs where one large run is worth more, so a
    second choice begins with the single run of the largest gain, and the better of the two stands
    (Khuller, Moss & Naor 1999, for coverage).

    Args:
        gains: what each run adds to those chosen.
        costs: (k,) positive.
        budget: most that the chosen may cost together.

    Returns:
        Places of the chosen, none twice; empty if no run is affordable.
    """
    affordable = costs <= budget
    if not affordable.any():
        return ()
    largest = int(np.argmax(np.where(affordable, gains(()), -np.inf)))
    plain, worth = _greedy((), gains, costs, budget)
    guarded, guarded_worth = _greedy((largest,), gains, costs, budget)
    return guarded if guarded_worth > worth else plain


def _greedy(
    start: tuple[int, ...], gains: Gains, costs: np.ndarray, budget: float
) -> tuple[tuple[int, ...], float]:
    """The choice that begins with `start`, and what it is worth."""
    chosen: list[int] = []
    worth = 0.0
    while True:
        added = gains(chosen)
        left = costs <= budget - costs[chosen].sum() + 1e-9 * budget
        left[chosen] = False
        left &= added > _LITTLE * worth
        if not left.any():
            return tuple(chosen), worth
        pick = start[len(chosen)] if len(chosen) < len(start) else None
        if pick is None:
            pick = int(np.argmax(np.where(left, added / costs, -np.inf)))
        worth += float(added[pick])
        chosen.append(pick)
