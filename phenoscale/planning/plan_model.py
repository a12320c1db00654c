"""One objective of a study as a plan sees it: what was measured, and what might be.

The surface of its score (`scaling/surface.py`) says what a run would score: forecasts are by the
form that the data speak for, mixed with its rivals. What is uncertain is asked of one wider linear
model, which is too wide to be fitted to so few configurations and so has a prior,

    s = a + b n + c d + e n^2 + f d^2        n, d: decades of parameters and crops from the middle

A form that was chosen holds for certain what was never looked at: a study of one backbone would
know that size does not matter, and a plane that scores never level off. Choosing for a model that
might be wrong, by a prior on what it leaves out, is due to DuMouchel & Jones 1994. On simulated
scores that level off, the forecast ten times beyond the budget missed by 0.036 after runs chosen on
the plane alone, 0.023 after random runs, 0.012 after runs chosen on this model (medians of 60
studies; `benchmarks/plan.py` compares it with other choices).

Shapes: m configurations, k candidates, R rounds; over all objectives together p coefficients, t
targets, one of each objective.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from scipy.linalg import block_diag

from phenoscale.bill import Line
from phenoscale.config import Trial
from phenoscale.planning.catalogue import Measured
from phenoscale.scaling.forecast import FAR, possible
from phenoscale.scaling.next_runs import covariance_of, updated, variance_removed
from phenoscale.scaling.noise import noise_of
from phenoscale.scaling.points import TUNED_SOURCES, Points
from phenoscale.scaling.surface import FORMS, Places, places_of
from phenoscale.scaling.surface_choice import SurfaceChoice, new_runs
from phenoscale.wording import objective_name, share

SLOPE_SD = 0.1
"""Score per tenfold of size or data: what a slope is held to be before anything is measured, zero
give or take this."""
CURVE_SD = 0.03
"""Score per tenfold squared: what a curvature is held to be, zero give or take this. A slope of 0.1
that halves within a decade has 0.035."""
PRIOR_SD = np.array([np.inf, SLOPE_SD, SLOPE_SD, CURVE_SD, CURVE_SD])
"""(5,) prior of the wider model's coefficients; nothing is held of its value in the middle."""
_LEAST_NOISE = 1e-3  # of a score: equal scores do not prove that the next one will be equal
_FEW = 5  # configurations, below which no slope can be chosen (its AICc is infinite)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Side:
    """One objective of a study: what was measured, and what might be."""

    points: Points
    """Its trials."""
    measured: Measured
    """The same, with all that they are."""
    choice: SurfaceChoice
    """Surfaces of its score."""
    lines: tuple[Line, ...]
    """Candidates, each with its bill."""
    target: Line
    """The run whose forecast is to be sharpened."""

    def __post_init__(self) -> None:
        if not any(fit.freedom > 0 for fit in self.choice.fits if fit.basis.form != "constant"):
            number = self.points.num_configurations
            raise ValueError(
                f"{number} configuration{'s' * (number > 1)} cannot tell a slope from noise; a "
                f"forecast needs {max(1, 3 - number)} more, of another size or on other data."
            )

    def gradients(self, places: Places) -> np.ndarray:
        """(k, 5) features of the wider model at places."""
        return wide_features(places, self.choice.chosen.basis.centre)

    def forecasts(
        self, lines: Sequence[Line], rounds: int, seed: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """(k,) scores of runs by the chosen form, and (R, k) draws of what they might measure."""
        places = places_of_lines(lines)
        drawn = new_runs(self.choice, places, rounds=rounds, seed=seed)
        return possible(self.choice.chosen.predict(places), "score"), possible(drawn, "score")

    def errors(self) -> tuple[np.ndarray, np.ndarray]:
        """Standard deviations of the configurations' means, (m,), and of the candidates, (k,).

        A new seed of a measured configuration shares the configuration's own error, so it tells
        less than a new configuration. Without a second seed anywhere, half of the variance about
        the surface is taken for the seeds'.
        """
        seeds = np.bincount(self.points.configuration)
        run_sd = noise_of(self.points, None).run_sd
        about = max(self.choice.chosen.noise, _LEAST_NOISE) ** 2
        run = about / 2 if run_sd is None else run_sd**2
        own = max(about - run * float(np.mean(1 / seeds)), 0.0)
        run = max(run, _LEAST_NOISE**2)
        found = np.array([self.measured.seeds_of(line.trial) for line in self.lines])
        # What one seed more adds to the weight of its configuration.
        before = np.where(found > 0, 1 / (own + run / np.maximum(found, 1)), 0.0)
        added = 1 / (own + run / (found + 1)) - before
        return np.sqrt(own + run / seeds), added**-0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """All objectives of a plan as one linear model: blocks that know nothing of each other."""

    covariance: np.ndarray
    """(p, p) what is known of the coefficients."""
    gradients: np.ndarray
    """(k, p) of the candidates."""
    noise: np.ndarray
    """(k,) their standard deviations."""
    targets: np.ndarray
    """(t, p) gradients of the targets."""

    def variances(self, chosen: Sequence[int] = ()) -> np.ndarray:
        """(t,) variance of each target's forecast once the chosen candidates are run."""
        known = self.covariance
        for place in chosen:
            known = updated(known, self.gradients[place], float(self.noise[place]))
        return np.einsum("tp,pq,tq->t", self.targets, known, self.targets)

    def removed_alone(self) -> np.ndarray:
        """(k,) share of the variance at its objective's target that each candidate removes."""
        arguments = (self.covariance, self.gradients, self.noise, self.targets)
        return np.asarray((variance_removed(*arguments) / self.variances()).max(axis=1))


def beyond(points: Points, line: Line) -> float:
    """Times the largest compute, size or data that was measured, whichever is most; 1.0 inside.

    A large backbone on little data costs no more than what was run, and is as far from it.
    """
    run = {axis: float(10 ** place[0]) for axis, place in places_of_lines([line]).items()}
    return max(1.0, *(run[axis] / float(points.column(axis).max()) for axis in run))


def model_of(sides: Sequence[Side]) -> Model:
    """The linear model of all objectives; candidates in the order of the sides."""
    errors = [side.errors() for side in sides]
    known = [
        covariance_of(side.gradients(places_of(side.points)), means, PRIOR_SD)
        for side, (means, _) in zip(sides, errors, strict=True)
    ]
    return Model(
        covariance=block_diag(*known),
        gradients=block_diag(*(side.gradients(places_of_lines(side.lines)) for side in sides)),
        noise=np.concatenate([runs for _, runs in errors]),
        targets=block_diag(*(side.gradients(places_of_lines([side.target])) for side in sides)),
    )


def wide_features(places: Places, centre: Mapping[str, float]) -> np.ndarray:
    """(k, 5) features of the wider model: its gradients by its coefficients.

    Args:
        places: axis to (k,) log10 of it.
        centre: axis to log10 of the middle of what was measured.
    """
    n, d = (np.asarray(places[axis]) - centre[axis] for axis in FORMS["plane"])
    return np.stack([np.ones_like(n), n, d, n**2, d**2], axis=1)


def places_of_lines(lines: Sequence[Line]) -> dict[str, np.ndarray]:
    """Where runs lie by their bills: axis to (k,) log10 of it."""
    return {
        "num_parameters": np.log10([line.parameters for line in lines]),
        "crops_seen": np.log10([line.crops for line in lines]),
        "training_flops": np.log10([line.training_flops for line in lines]),
    }


def run_text(trial: Trial) -> str:
    """`MAE micro/8 on 33.3% of the wells, 40 passes`: a run as sentences name it."""
    crops = trial.crops
    return (
        f"{objective_name(trial.objective.label)} {trial.backbone} on "
        f"{share(crops.data_fraction)} of the wells, {crops.passes} passes"
    )


def warnings_of(sides: Iterable[Side], runs: Sequence[tuple[Trial, float]]) -> tuple[str, ...]:
    """What is not to be trusted about runs, each with how far it is beyond the measured range."""
    found = []
    for side in sides:
        number = side.points.num_configurations
        if number < _FEW:
            found.append(
                f"{objective_name(side.points.objective)} has {number} configurations, too few to "
                f"choose a slope by; {_FEW - number} more would narrow its forecasts."
            )
    far = [(times, run_text(trial)) for trial, times in runs if times > FAR]
    if far:
        times, text = max(far)
        found.append(
            f"{text} is {times:.3g} times what was measured of its objective, in compute, size "
            f"or data. Beyond {FAR:.0f} times nothing here tests a forecast: take it as a "
            "direction, not a number."
        )
    untuned = {
        f"{objective_name(trial.objective.label)} {trial.backbone} ({trial.optim.lr_source})"
        for trial, _ in runs
        if trial.optim.lr_source not in TUNED_SOURCES
    }
    if untuned:
        found.append(
            f"Learning rates not tuned for their size: {', '.join(sorted(untuned))}. Such a run "
            "may score less than its forecast for that reason alone."
        )
    return tuple(found)
