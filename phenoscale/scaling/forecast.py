"""What a new run is expected to measure, with an interval that knows that the law is a guess.

Outside of the measured range laws part that agree inside it, so rounds are drawn from all of them,
by how probable each is: the interval widens where they disagree.

Probable by Schwarz's criterion, not by AICc, which chooses the value: AICc wants much before it
lets a third parameter pass, and six configurations cannot give it. Of 95% intervals for the upper
third of planted studies (6, 9 and 12 configurations; straight, saturating and logit scores; noise
of 0.01 and 0.02), those by Schwarz weights held in 92 to 100% at each design, and those by Akaike
weights, which were 3% narrower, in 76 to 84% where six were fitted to a saturating score.

Shapes: m configurations, R rounds, k places to predict at.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from phenoscale.maps.interval import Interval, percentile_interval
from phenoscale.scaling.criteria import mixed, schwarz, shares_of
from phenoscale.scaling.laws import Choice, Kind, LawFit

FAR = 10.0
"""Times the largest run measured, beyond which a forecast is no more than a direction."""

RANGE = {"score": (0.0, 1.0), "loss": (0.0, np.inf)}
"""Lowest and highest value that there can be."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Forecast:
    """The score or the loss of a run that was not made."""

    flops: float
    """Training FLOPs of that run."""
    law: str
    """The chosen law, which the value is from."""
    shares: dict[str, float]
    """Law to its share of the rounds that the interval is from."""
    interval: Interval
    """Of a new run: the laws, their uncertainty, and the run's own error."""
    beyond: float
    """Times the largest run measured; 1.0 inside the range."""
    warning: str | None
    """One sentence where the forecast is not to be trusted as it stands."""


def forecast(
    choice: Choice,
    *,
    flops: float,
    rounds: int = 1000,
    seed: int = 0,
    shifts: np.ndarray | None = None,
) -> Forecast:
    """Forecasts a run by its compute.

    Args:
        choice: laws fitted against log10 of training FLOPs.
        flops: of the run.
        rounds: of the bootstrap, R.
        seed: of the rounds.
        shifts: (R, m) as `LawFit.rounds` takes them; none where the new run will be scored on the
            same genes.

    Raises:
        ValueError: if the compute is not positive, or the configurations are too few for an
            interval.
    """
    if not (np.isfinite(flops) and flops > 0):
        raise ValueError(f"flops is {flops}; a forecast needs a positive number of training FLOPs.")
    place = np.array([np.log10(flops)])
    law_value = float(choice.chosen.predict(place)[0])
    draws = new_runs(choice, place, rounds=rounds, seed=seed, shifts=shifts)[:, 0]
    beyond = max(1.0, float(10 ** (place[0] - choice.chosen.x.max())))
    return Forecast(
        flops=float(flops),
        law=choice.chosen.law,
        shares=law_shares(choice),
        interval=percentile_interval(float(possible(law_value, choice.chosen.kind)), draws),
        beyond=beyond,
        warning=_warning(choice.chosen, law_value, beyond),
    )


def new_runs(
    choice: Choice,
    x: np.ndarray,
    *,
    rounds: int = 1000,
    seed: int = 0,
    shifts: np.ndarray | None = None,
) -> np.ndarray:
    """(R, k) what new runs at x (k,) might measure, each round by one of the laws.

    Args:
        choice: laws that were fitted.
        x: (k,) on the axis of the fits.
        rounds: R.
        seed: of rounds and errors.
        shifts: (R, m) as `LawFit.rounds` takes them.

    Raises:
        ValueError: if the configurations are too few for an interval.
    """
    fits = {fit.law: fit for fit in choice.fits}

    def draw(law: str) -> np.ndarray:
        refits = fits[law].rounds(rounds=rounds, seed=seed, shifts=shifts)
        return refits.observe(x, seed=seed + 1)

    return possible(mixed(law_shares(choice), rounds, draw), choice.chosen.kind)


def law_shares(choice: Choice) -> dict[str, float]:
    """Law to its share of the rounds, which add up to 1.

    Schwarz weights exp(-BIC / 2), BIC = m log(RSS / m) + p log m for p parameters, approximate how
    probable the laws are after the data (Raftery 1995, Sociological Methodology 25). The chosen
    law, which cross-validation had a say in, has at least the share of any other. A law with as
    many parameters as there are configurations has no interval, and no share.
    """
    criteria = {
        fit.law: schwarz(fit.y, fit.fitted, len(fit.parameters))
        for fit in choice.fits
        if len(fit.x) > len(fit.parameters)
    }
    return shares_of(criteria, choice.chosen.law)


def possible(values: np.ndarray | float, kind: Kind) -> np.ndarray:
    """Values cut to what there can be: a score lies in [0, 1], a loss is not negative."""
    return np.clip(values, *RANGE[kind])


def _warning(chosen: LawFit, law_value: float, beyond: float) -> str | None:
    low, high = RANGE[chosen.kind]
    if not low <= law_value <= high:
        end = f"falls below {low:.0f}" if law_value < low else f"passes {high:.0f}"
        return (
            f"There {chosen.law} {end}, which no {chosen.kind} can, so it cannot hold that far; "
            "the forecast is cut to what is possible."
        )
    if beyond > FAR:
        return (
            f"This is {beyond:.3g} times the largest run measured; beyond {FAR:.0f} times nothing "
            "here tests the law, so take it as a direction, not as a number."
        )
    return None
