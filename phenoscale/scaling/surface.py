"""A score, or the log of a loss, over size and data together, by least squares.

The widest form is a plane, s = a + b n + c d, with n and d the decades of parameters and crops from
the middle of what was measured. Nested in it: a line over compute (b and c equal, as far as C
follows N D), over crops or over parameters alone, and a constant. That is what 6 to 16
configurations can carry, and near them it is the first two terms of any law.

Far from them scores level off, so each form also comes bent: x is replaced by

    (1 - 10^(-g x)) / (g ln 10)

a power law of exponent g with the slope of the straight form in the middle, for g of BENDS. The
coefficients stay linear; the bend counts as one more parameter.

Shapes: m configurations, p coefficients, R rounds, k places to predict at.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from phenoscale.scaling.criteria import aicc
from phenoscale.scaling.points import AXES, Points
from phenoscale.scaling.resample import MANY_CONFIGURATIONS, observed, other_studies

FORMS: dict[str, tuple[str, ...]] = {
    "constant": (),
    "compute": ("training_flops",),
    "crops": ("crops_seen",),
    "parameters": ("num_parameters",),
    "plane": ("num_parameters", "crops_seen"),
}
"""Form to the axes that it has a slope along."""
BENDS = (0.25, 0.5, 1.0)
"""Exponents of the bent forms: the slope halves within 1.2, 0.6 and 0.3 decades."""
_SAME_PLACE = 1e-2  # decades: configurations that lie closer tell no slope

Places = Mapping[str, np.ndarray]
"""Axis, one of points.AXES, to log10 of it at each place."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Basis:
    """What a form makes of places."""

    form: str
    """One of FORMS."""
    bend: float
    """0 for the straight form, or one of BENDS."""
    centre: dict[str, float]
    """Axis to log10 of the middle of what was measured."""

    @property
    def label(self) -> str:
        """The form as sentences name it."""
        return f"{self.form} bent by {self.bend:g}" if self.bend else self.form

    @property
    def num_parameters(self) -> int:
        """Coefficients, and the bend where there is one."""
        return 1 + len(FORMS[self.form]) + (self.bend > 0)

    def features(self, places: Places) -> np.ndarray:
        """(k, p) a one, and the decades along each axis of the form, bent."""
        columns = [np.ones(len(next(iter(places.values()))))]
        for axis in FORMS[self.form]:
            x = np.asarray(places[axis], dtype=np.float64) - self.centre[axis]
            rate = self.bend * np.log(10)
            columns.append(-np.expm1(-rate * x) / rate if self.bend else x)
        return np.stack(columns, axis=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SurfaceRounds:
    """A surface as other studies of the same configurations might have found it."""

    basis: Basis
    """Its form."""
    coefficients: np.ndarray
    """(R, p)."""
    noise: np.ndarray
    """(R,) standard deviation of the error of one configuration, with seeds as those fitted."""

    def predict(self, places: Places) -> np.ndarray:
        """(R, k) values of the surface."""
        return np.asarray(self.coefficients @ self.basis.features(places).T)

    def observe(self, places: Places, *, seed: int = 0) -> np.ndarray:
        """(R, k) what new configurations might measure: the surface and their own errors."""
        return observed(self.predict(places), self.noise, seed=seed)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Surface:
    """One form, fitted by least squares."""

    basis: Basis
    """Its form."""
    coefficients: np.ndarray
    """(p,) value in the middle, then the slope there per decade of each axis of the form."""
    design: np.ndarray
    """(m, p) features of the configurations."""
    values: np.ndarray
    """(m,) what they have."""
    fitted: np.ndarray
    """(m,) what the surface says."""
    leverages: np.ndarray
    """(m,) diagonal of the hat matrix."""
    aicc: float
    """Akaike's criterion for few points (Hurvich & Tsai 1989), the noise counted as a parameter;
    infinite where they are too few for it."""
    cv_error: float
    """Root mean square of the errors at each configuration by the fit without it; infinite where a
    fit without it is impossible."""

    @property
    def freedom(self) -> int:
        """Configurations beyond the parameters."""
        return len(self.values) - self.basis.num_parameters

    @property
    def noise(self) -> float:
        """Standard deviation of a configuration about the surface; 0 where none is left over."""
        squares = float(np.sum((self.values - self.fitted) ** 2))
        return float(np.sqrt(squares / self.freedom)) if self.freedom > 0 else 0.0

    def predict(self, places: Places) -> np.ndarray:
        """(k,) values of the surface."""
        return np.asarray(self.basis.features(places) @ self.coefficients)

    def rounds(
        self, *, rounds: int = 1000, seed: int = 0, shifts: np.ndarray | None = None
    ) -> SurfaceRounds:
        """Refits on what other studies might have measured, see resample.py; the bend stays.

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
            self.values,
            self.fitted,
            self.leverages,
            parameters=self.basis.num_parameters,
            rounds=rounds,
            seed=seed,
            shifts=shifts,
        )
        if len(self.values) < MANY_CONFIGURATIONS:  # all rounds have one design
            coefficients = studies.values @ np.linalg.pinv(self.design).T
        else:
            root = np.sqrt(studies.weights)
            # Of equal fits the shortest, where a draw leaves several.
            inverses = np.linalg.pinv(root[:, :, None] * self.design)
            coefficients = (inverses @ (root * studies.values)[:, :, None])[:, :, 0]
        return SurfaceRounds(
            basis=self.basis,
            coefficients=coefficients,
            noise=studies.noise,
        )


def places_of(points: Points) -> dict[str, np.ndarray]:
    """Where the configurations lie: axis to (m,) log10 of it."""
    return {axis: points.log10(axis) for axis in AXES}


def fit_surface(form: str, places: Places, values: np.ndarray, *, bend: float = 0.0) -> Surface:
    """Least squares of one form, with leave-one-out error and AICc.

    Args:
        form: one of FORMS.
        places: axis to (m,) log10 of it.
        values: (m,) mean over the seeds of each configuration: scores, or logs of losses.
        bend: 0, or the exponent of a bent form.

    Raises:
        ValueError: if the form is unknown, values are not finite, or the configurations are too few
            for the parameters, or too much alike.
    """
    if form not in FORMS:
        raise ValueError(f"There is no form {form!r} of a surface; use one of {', '.join(FORMS)}.")
    values = np.asarray(values, dtype=np.float64)
    if any(len(logs) != len(values) for logs in places.values()):
        raise ValueError(
            f"There are {len(values)} values and {[len(x) for x in places.values()]} places along "
            "the axes; a place for each value is required."
        )
    if not all(np.isfinite(numbers).all() for numbers in (values, *places.values())):
        raise ValueError(
            "Places or values are not finite; leave those configurations out before the fit."
        )
    centre = {axis: float(np.mean(logs)) for axis, logs in places.items()}
    basis = Basis(form=form, bend=bend, centre=centre)
    m, required = len(values), basis.num_parameters
    if m < required:
        raise ValueError(
            f"{m} configurations are too few for the {required} parameters of the form "
            f"{basis.label}; it needs {required - m} more."
        )
    if FORMS[form] and _narrowest(form, places) < _SAME_PLACE:
        raise ValueError(
            f"The {m} configurations do not spread along {_named(form)}, so no slope can be told; "
            "the form needs runs of another size, or on other data."
        )
    design = basis.features(places)
    inverse = np.linalg.pinv(design)
    coefficients = inverse @ values
    fitted, leverages = design @ coefficients, np.einsum("mp,pm->m", design, inverse)
    alone = leverages > 1 - 1e-9  # without this configuration the form cannot be fitted
    left_out = (values - fitted) / np.where(alone, 1.0, 1 - leverages)
    return Surface(
        basis=basis,
        coefficients=coefficients,
        design=design,
        values=values,
        fitted=fitted,
        leverages=leverages,
        aicc=aicc(values, fitted, required),
        cv_error=float("inf") if alone.any() else float(np.sqrt(np.mean(left_out**2))),
    )


def _narrowest(form: str, places: Places) -> float:
    """Spread of the configurations, in decades, along the direction in which they spread least."""
    logs = np.stack([places[axis] for axis in FORMS[form]], axis=1)
    return float(np.linalg.svd(logs - logs.mean(axis=0), compute_uv=False)[-1])


def _named(form: str) -> str:
    names = [AXES[axis] for axis in FORMS[form]]
    return names[0] if len(names) == 1 else f"{' and '.join(names)} apart"
