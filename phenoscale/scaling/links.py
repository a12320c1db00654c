"""Score from compute in two links: compute to held-out loss, loss to score.

The second link need not exist. Of 46 downstream tasks of language models, 39% scaled predictably;
the others were inverse, without trend, not monotonic, noisy or sudden (Lourie, Hu & Cho 2025, arXiv
2507.00885). So it is tested before it is used.

Shapes: m configurations, P permutations, R rounds.
"""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np

from phenoscale.maps.interval import Interval, percentile_interval
from phenoscale.scaling.forecast import possible
from phenoscale.scaling.laws import LawFit, choose_law, fit_law
from phenoscale.scaling.points import Points
from phenoscale.wording import number, objective_name

FORMS = ("loss", "log10 loss")
"""What the score may be a straight line in; the plainer first."""
SIGNIFICANT = 0.05

_LEAST = 4  # the order of 3 configurations has a probability of 1/6 by chance, that of 4 of 1/24
_ALL_ORDERS = 7  # configurations, of which all 5,040 orders are tried
_DRAWN_ORDERS = 9_999


@dataclasses.dataclass(frozen=True, kw_only=True)
class Links:
    """Both links of one objective, and whether the second is one."""

    loss_law: LawFit
    """Held-out loss against log10 of training FLOPs."""
    score_law: LawFit
    """Score as a straight line in `form`."""
    form: str
    """One of FORMS: the one with the smaller leave-one-out error."""
    is_law: bool
    """Whether the score follows the loss, so that a forecast may go through it."""
    p_value: float
    """Share of orders of the scores that would look as much like a law."""
    error: float
    """Root mean square error of the score at each configuration by the line without it."""
    constant_error: float
    """The same by the mean of the other scores."""
    why: str
    """One sentence: why the score follows the loss, or why not."""


def fit_links(points: Points, *, seed: int = 0) -> Links:
    """Fits both links and tests the second.

    The score follows the loss if lower losses go with higher scores, the leave-one-out error is
    below that of a constant, and a permutation test says that this is no accident: scores are dealt
    out to the configurations anew, in all orders where m <= 7, and the line is chosen and judged
    again each time.

    Args:
        points: of one objective.
        seed: of the orders, where not all are tried.

    Raises:
        ValueError: for fewer than four configurations, or losses that are all equal.
    """
    loss = points.means(points.column("held_out_loss"))
    score = points.means(points.column("score"))
    if len(loss) < _LEAST:
        raise ValueError(
            f"There are {len(loss)} configurations of {objective_name(points.objective)}; whether "
            f"the score follows the loss can be tested with {_LEAST} or more."
        )
    if np.ptp(loss) <= 1e-9 * np.abs(loss).max():
        raise ValueError(
            f"All configurations of {objective_name(points.objective)} have the held-out loss "
            f"{number(float(loss[0]))}, so it cannot tell their scores apart."
        )
    forms = {FORMS[0]: loss} | ({FORMS[1]: np.log10(loss)} if loss.min() > 0 else {})
    lines = {form: fit_law("log_linear", x, score, kind="score") for form, x in forms.items()}
    form = min(lines, key=lambda name: lines[name].cv_error)
    error = lines[form].cv_error
    slope = lines[form].parameters["slope"]
    constant_error = _constant_error(score)
    p_value = _p_value(list(forms.values()), score, seed)
    is_law = slope < 0 and error < constant_error and p_value < SIGNIFICANT
    return Links(
        loss_law=choose_law(points.log10("training_flops"), loss, kind="loss").chosen,
        score_law=lines[form],
        form=form,
        is_law=is_law,
        p_value=p_value,
        error=error,
        constant_error=constant_error,
        why=_why(slope, error, constant_error, p_value, is_law),
    )


def two_link_forecast(links: Links, *, flops: float, rounds: int = 1000, seed: int = 0) -> Interval:
    """The score of a new run by its compute, through the loss.

    Both links are refitted with the same signs, so an error of the loss that shows in the score
    counts once; the new run has an error of its own in each link.

    Args:
        links: of one objective.
        flops: of the run.
        rounds: of the bootstrap.
        seed: of the rounds.

    Raises:
        ValueError: if the score does not follow the loss, or the configurations are too few for an
            interval.
    """
    if not links.is_law:
        raise ValueError(links.why)
    place = np.array([np.log10(flops)])
    refits = links.loss_law.rounds(rounds=rounds, seed=seed)
    losses = _in_form(refits.observe(place, seed=seed + 1)[:, 0], links.form)
    line = links.score_law.rounds(rounds=rounds, seed=seed)
    errors = line.noise * np.random.default_rng(seed + 2).standard_normal(rounds)
    scores = line.parameters["intercept"] + line.parameters["slope"] * losses + errors
    loss = _in_form(links.loss_law.predict(place), links.form)
    value = float(possible(links.score_law.predict(loss), "score")[0])
    return percentile_interval(value, possible(scores, "score"))


def _in_form(loss: np.ndarray, form: str) -> np.ndarray:
    """The loss as the score is a line in it; one that a law takes below 0 counts as 0."""
    cut = possible(loss, "loss")
    return cut if form == FORMS[0] else np.log10(np.maximum(cut, np.finfo(np.float64).tiny))


def _p_value(forms: list[np.ndarray], score: np.ndarray, seed: int) -> float:
    """Share of orders with a line of the right sign that gains as much over a constant."""
    m = len(score)
    if m <= _ALL_ORDERS:
        orders = np.array(list(itertools.permutations(range(m))))  # the measured one first
        assert len(orders) == math.factorial(m)
    else:
        rng = np.random.default_rng(seed)
        drawn = rng.permuted(np.tile(np.arange(m), (_DRAWN_ORDERS, 1)), axis=1)
        orders = np.vstack([np.arange(m), drawn])
    dealt = score[orders]  # (P, m)
    error = np.min([_falling_error(x, dealt) for x in forms], axis=0)
    rounding = 1e-9 * np.ptp(score)
    return float(np.mean(error <= error[0] + rounding)) if np.isfinite(error[0]) else 1.0


def _falling_error(x: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """(P,) leave-one-out error of a line through x (m,), scores (P, m); infinite if it rises."""
    basis = np.linalg.qr(np.stack([np.ones(len(x)), x], axis=1))[0]
    residuals = scores - scores @ basis @ basis.T
    own = np.maximum(1 - (basis**2).sum(axis=1), 1e-12)
    error = np.sqrt(np.mean((residuals / own) ** 2, axis=1))
    return np.where(scores @ (x - x.mean()) < 0, error, np.inf)


def _constant_error(score: np.ndarray) -> float:
    """Leave-one-out error of the mean."""
    m = len(score)
    return float(np.sqrt(np.mean(((score - score.mean()) * m / (m - 1)) ** 2)))


def _why(slope: float, error: float, constant_error: float, p_value: float, is_law: bool) -> str:
    figures = (
        f"leave-one-out error {number(error)}, {number(constant_error)} without the loss; "
        f"p = {number(p_value)} in a permutation test"
    )
    if is_law:
        return f"The score follows the held-out loss: lower losses have higher scores ({figures})."
    if slope >= 0:
        reason = "lower losses do not have higher scores"
    elif error >= constant_error:
        reason = "a line in the loss predicts it no better than its mean does"
    else:
        reason = "what it gains may be an accident"
    return (
        f"The score does not follow the held-out loss, so it is not forecast through it: {reason} "
        f"({figures})."
    )
