"""One-variable laws: a score or a loss against log10 of compute, crops or parameters.

`log_linear`, a + b x, is what the papers draw. `power` is K - A 10^(-c x) with a ceiling K <= 1 for
scores, and E + A 10^(-c x) with a floor E >= 0 for losses. `logit`, 1 / (1 + exp(-(a + b x))), is
for scores between 0 and 1. All are least squares on the values as measured, so that their errors
compare.

Exponents lie between what changes the distance to the asymptote by 0.2% and by 100,000-fold over
the measured range, and below 10. A parameter at its bound is named in `LawFit.at_bound`.

Shapes: m configurations, R rounds, k places to predict at.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from phenoscale.scaling.criteria import ROUNDING, aicc
from phenoscale.scaling.law_curves import PARAMETERS, Kind, at_bound, curve, leverages, solve
from phenoscale.scaling.resample import different, observed, other_studies

LAWS = tuple(PARAMETERS)
"""What a law may be called."""
_LAWS_OF = {"score": ("log_linear", "logit", "power"), "loss": ("log_linear", "power")}
"""Laws by kind, the plainest first."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LawRounds:
    """A law as other studies of the same configurations might have found it."""

    law: str
    """One of LAWS."""
    kind: Kind
    """What the law gives, a score or a loss."""
    parameters: dict[str, np.ndarray]
    """Name to (R,)."""
    noise: np.ndarray
    """(R,) standard deviation of the error of one configuration, with seeds as those fitted."""

    def predict(self, x: np.ndarray) -> np.ndarray:
        """(R, k) values of the law at x (k,)."""
        columns = {name: value[:, None] for name, value in self.parameters.items()}
        return curve(self.law, columns, np.asarray(x, dtype=np.float64), kind=self.kind)

    def observe(self, x: np.ndarray, *, seed: int = 0) -> np.ndarray:
        """(R, k) what new configurations at x (k,) might measure: the law and their own errors.

        The error is the same everywhere. Where the planted one grew threefold along the range, 90%
        intervals of a new configuration at its end held 76 to 86% at 6 to 16 configurations.
        """
        return observed(self.predict(x), self.noise, seed=seed)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LawFit:
    """One law, fitted by least squares."""

    law: str
    """One of LAWS."""
    kind: Kind
    """What was fitted, a score or a loss."""
    parameters: dict[str, float]
    """log_linear and logit: intercept, slope; power: asymptote, amplitude, exponent. Per unit of x,
    which is a decade where x is log10 of an axis."""
    x: np.ndarray
    """(m,) where the configurations lie."""
    y: np.ndarray
    """(m,) what they have."""
    fitted: np.ndarray
    """(m,) what the law says."""
    leverages: np.ndarray
    """(m,) diagonal of the hat matrix of the law's linearisation."""
    at_bound: tuple[str, ...]
    """Parameters that lie at their bound: they are no estimates."""
    aicc: float
    """Akaike's criterion for few points (Hurvich & Tsai 1989); infinite where they are too few for
    it. The noise counts as a parameter, and one at its bound too."""
    cv_error: float
    """Root mean square of the errors at each configuration by the fit without it, in units of y;
    infinite where a fit without it is impossible."""

    def predict(self, x: np.ndarray) -> np.ndarray:
        """(k,) values of the law at x (k,)."""
        parameters = {name: np.asarray(value) for name, value in self.parameters.items()}
        return curve(self.law, parameters, np.asarray(x, dtype=np.float64), kind=self.kind)

    def rounds(
        self, *, rounds: int = 1000, seed: int = 0, shifts: np.ndarray | None = None
    ) -> LawRounds:
        """Refits on what other studies might have measured, see resample.py.

        Args:
            rounds: how many, R.
            seed: of the draws; fits on the same configurations in the same order share theirs.
            shifts: (R, m) added to the values of each round: the scores under its bootstrap sample
                of genes less the scores.

        Raises:
            ValueError: if there are no more configurations than parameters, or the shifts are not
                (R, m).
        """
        studies = other_studies(
            self.y,
            self.fitted,
            self.leverages,
            parameters=len(self.parameters),
            rounds=rounds,
            seed=seed,
            shifts=shifts,
            places=self.x,
        )
        return LawRounds(
            law=self.law,
            kind=self.kind,
            parameters=solve(self.law, self.x, studies.values, studies.weights, kind=self.kind),
            noise=studies.noise,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """The law that the data speak for, beside the others."""

    chosen: LawFit
    """The one to read."""
    fits: tuple[LawFit, ...]
    """All that could be fitted, the plainest first."""
    refused: dict[str, str]
    """Law that could not be fitted to the reason why."""
    reason: str
    """One sentence: why it was chosen, with the figures."""


def fit_law(law: str, x: np.ndarray, y: np.ndarray, *, kind: Kind) -> LawFit:
    """Least squares of one law, with leave-one-out error and AICc.

    Args:
        law: one of LAWS.
        x: (m,), log10 of an axis.
        y: (m,) mean over the seeds of each configuration.
        kind: "score" rises with x and is at most 1; "loss" falls and is at least 0. Asked of power
            laws alone.

    Raises:
        ValueError: if the law is unknown or not one for this kind, values are not finite, there are
            fewer configurations (or fewer different x) than parameters, or the law cannot have such
            values.
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    _check(law, x, y, kind)
    m, num_parameters = len(x), len(PARAMETERS[law])
    weights = np.vstack([np.ones((1, m)), 1 - np.eye(m)])  # all, then each left out
    can_leave_out = different(x, weights[1:]).min() >= num_parameters
    weights = weights if can_leave_out else weights[:1]
    solved = solve(law, x, np.broadcast_to(y, weights.shape), weights, kind=kind)
    parameters = {name: float(values[0]) for name, values in solved.items()}
    if parameters.get("amplitude") == 0:
        moves, end = ("rise", "ceiling") if kind == "score" else ("fall", "floor")
        raise ValueError(
            f"The {kind}s do not {moves} along the axis, so no power law leads to a {end}; use "
            "log_linear."
        )
    without = {name: values[1:, None] for name, values in solved.items()}
    errors = np.diag(curve(law, without, x, kind=kind)) - y if can_leave_out else np.inf
    fitted = curve(law, {name: values[0] for name, values in solved.items()}, x, kind=kind)
    return LawFit(
        law=law,
        kind=kind,
        parameters=parameters,
        x=x,
        y=y,
        fitted=fitted,
        leverages=leverages(law, parameters, x, kind=kind),
        at_bound=at_bound(law, parameters, x, kind=kind),
        aicc=aicc(y, fitted, num_parameters),
        cv_error=float(np.sqrt(np.mean(np.square(errors)))),
    )


def choose_law(x: np.ndarray, y: np.ndarray, *, kind: Kind) -> Choice:
    """The law with the smallest leave-one-out error, if AICc agrees; the plainest on ties.

    Logit and power, in this order, replace the straight line, or what replaced it, only where both
    their leave-one-out error and their AICc are smaller.

    Args:
        x: (m,), log10 of an axis.
        y: (m,) mean over the seeds of each configuration.
        kind: "score" or "loss"; a loss has no logit law.

    Raises:
        ValueError: if not even a straight line can be fitted.
    """
    fits, refused = [fit_law("log_linear", x, y, kind=kind)], {}
    for law in _LAWS_OF[kind][1:]:
        try:
            fits.append(fit_law(law, x, y, kind=kind))
        except ValueError as error:
            refused[law] = str(error)
    chosen = fits[0]
    rounding = ROUNDING * np.abs(chosen.y).max()
    for fit in fits[1:]:
        if fit.cv_error < chosen.cv_error - rounding and fit.aicc < chosen.aicc:
            chosen = fit
    return Choice(chosen=chosen, fits=tuple(fits), refused=refused, reason=_reason(chosen, fits))


def _check(law: str, x: np.ndarray, y: np.ndarray, kind: Kind) -> None:
    """Refuses what the law cannot be fitted to."""
    if kind not in _LAWS_OF or law not in _LAWS_OF[kind]:
        offered = "; ".join(f"{name}: {', '.join(laws)}" for name, laws in _LAWS_OF.items())
        raise ValueError(f"There is no law {law!r} for kind {kind!r}. Use one of {offered}.")
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(f"x and y have shapes {x.shape} and {y.shape}; both must be (m,) alike.")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("x or y holds values that are not finite; leave those configurations out.")
    required = len(PARAMETERS[law])
    if len(x) < required:
        raise ValueError(
            f"{len(x)} configurations are too few for the {required} parameters of {law}; it needs "
            f"{required - len(x)} more."
        )
    if (found := int(different(x, np.ones((1, len(x))))[0])) < required:
        raise ValueError(
            f"The {len(x)} configurations lie at {found} different places of the axis, too few for "
            f"the {required} parameters of {law}; it needs {required - found} more."
        )
    if law == "logit" and not (y.min() > 0 and y.max() < 1):
        raise ValueError(
            f"The scores reach from {y.min():.4g} to {y.max():.4g}; logit needs all of them above "
            "0 and below 1."
        )
    if law == "power" and (y.max() > 1 if kind == "score" else y.min() < 0):
        raise ValueError(
            f"The {kind}s reach from {y.min():.4g} to {y.max():.4g}; power needs "
            f"{'scores of at most 1' if kind == 'score' else 'losses of at least 0'}."
        )


def _reason(chosen: LawFit, fits: list[LawFit]) -> str:
    """One sentence with the figures of all laws that were compared."""
    if len(fits) == 1:
        return "log_linear is the only law that these configurations allow."
    figures = "; ".join(f"{f.law} {f.cv_error:.3g} and {f.aicc:.1f}" for f in fits)
    verdict = f"{chosen.law} is better than a straight line by both"
    if chosen.law == "log_linear":
        verdict = "log_linear stays, since no other law is better by both"
    bound = f"; at its bound, so no estimate: {', '.join(chosen.at_bound)}" * bool(chosen.at_bound)
    return f"Leave-one-out error and AICc: {figures}, so {verdict}{bound}."
