"""The best size and the best amount of data for each compute budget, by two ways.

By the parametric law: its optimum at C = k N D (Hoffmann et al. 2022, equation 4). Its exponents
are fitted by the full objective, whose starts are those of variable projection, so nothing is
gained by fitting a second surface here.

Law-free, beside it: each size's loss at the budget, read off its own trials, and a cubic through
the sizes. Not the usual parabola: the sides of an isoFLOP profile rise with different exponents, so
that a parabola's minimum is off even without noise (arXiv 2603.22339).

Whether they agree is judged by where the law-free optimum would lie if the law held. The interval
of the law's own optimum would not do: a cubic through a few sizes scatters more widely, and under a
true law it lay outside that interval in 40 to 60% of simulated studies, outside its own in 2 to 5%.

Symbols: C training FLOPs, b budgets, S sets of losses.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy.interpolate import PchipInterpolator

from phenoscale.maps.interval import COVERAGE, Interval
from phenoscale.scaling.parametric import PARAMETERS, ParametricFit, corrected_interval
from phenoscale.scaling.repeats import effective_crops

_NUM_BUDGETS = 5
_FEWEST_SIZES = 4  # that a cubic can go through
_SIMULATED = 1000
_SAME_BUDGET = 0.05  # in ln: FLOPs that lie closer are one budget
_NOT_CONSTANT = 1.5  # FLOPs per N D, largest over smallest, from which the reader is told


@dataclasses.dataclass(frozen=True, kw_only=True)
class IsoFlop:
    """Optima at a few budgets."""

    budgets: np.ndarray
    """(b,) training FLOPs."""
    parameters: np.ndarray
    """(b,) best number of parameters, N*, by the law."""
    crops: np.ndarray
    """(b,) best number of crops, D*, by the law, none of them repeated."""
    parameters_low: np.ndarray
    """(b,) lower end of the 95% interval of N*."""
    parameters_high: np.ndarray
    """(b,) its upper end."""
    exponent_parameters: Interval
    """a of N* ~ C^a."""
    exponent_crops: Interval
    """b of D* ~ C^b; a and b sum to 1."""
    flops_per_product: float
    """k of C = k N D: geometric mean over the trials."""
    flops_per_product_range: float
    """Largest of the trials' own k over their smallest."""
    free_parameters: np.ndarray
    """(b,) N* of a cubic through the sizes; nan where it cannot be said."""
    agrees: tuple[bool | None, ...]
    """Whether the two are as near as the noise lets them be; None where there is no law-free N*."""
    reason: str
    """How agreement is judged, why some budgets have none, and what else to mind."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Profile:
    """Where each size was measured: distinct places, sorted by N, then D; s of them."""

    log_parameters: np.ndarray
    """(s,) ln N."""
    log_flops: np.ndarray
    """(s,) ln C."""
    log_loss: np.ndarray
    """(s,) mean ln loss of the trials there."""
    log_law: np.ndarray
    """(s,) ln of the law there."""
    noise: np.ndarray
    """(s,) standard deviation of `log_loss` from chance: between seeds, or, without any, of what
    the law leaves unexplained."""


def iso_flop(
    num_parameters: np.ndarray,
    num_crops: np.ndarray,
    loss: np.ndarray,
    flops: np.ndarray,
    *,
    fit: ParametricFit,
    num_unique: np.ndarray | None = None,
    budgets: np.ndarray | None = None,
    seed: int = 0,
) -> IsoFlop:
    """Optimum of the law at each budget, and a law-free one beside it.

    N* = G (C / k)^a and D* = (C / k)^b / G with G = (alpha A / (beta B))^(1 / (alpha + beta)),
    a = beta / (alpha + beta) and b = alpha / (alpha + beta). k is not 6 here: a vision transformer
    counts patches, and a masked autoencoder leaves most of them out and has a decoder.

    Args:
        num_parameters: (n,) N of each trial.
        num_crops: (n,) D, crops seen.
        loss: (n,) what the fit was made on.
        flops: (n,) C.
        fit: of these trials.
        num_unique: (n,) what the fit was given.
        budgets: (b,) C; None for those that four sizes or more were trained at, where there are two
            or more such, or five from the smallest trial to the largest.
        seed: of the noise that agreement is judged by.
    """
    n, d, flops = (np.asarray(one, dtype=np.float64) for one in (num_parameters, num_crops, flops))
    ratio = np.log(flops / (n * d))
    factor = float(np.exp(ratio.mean()))
    times = float(np.exp(np.ptp(ratio)))
    effective = d if num_unique is None else effective_crops(d, num_unique)
    profile = _profile(n, d, flops, np.asarray(loss), np.log(fit.predict(n, effective)), fit)
    if budgets is None:
        budgets = _default_budgets(profile)
    budgets = np.asarray(budgets, dtype=np.float64)
    values = np.array([[getattr(fit, name).value for name in PARAMETERS]])
    best = _best_sizes(values, budgets / factor)[0]
    intervals = [
        corrected_interval(*pair)
        for pair in zip(best, _best_sizes(fit.draws, budgets / factor).T, strict=True)
    ]
    a = corrected_interval(fit.beta.value / (fit.alpha.value + fit.beta.value), shares(fit))
    free, agrees, why = _law_free(profile, budgets, seed)
    outside = int(np.sum((best < n.min()) | (best > n.max())))
    return IsoFlop(
        budgets=budgets,
        parameters=best,
        crops=budgets / factor / best,
        parameters_low=np.array([one.low for one in intervals]),
        parameters_high=np.array([one.high for one in intervals]),
        exponent_parameters=a,
        exponent_crops=Interval(value=1 - a.value, low=1 - a.high, high=1 - a.low),
        flops_per_product=factor,
        flops_per_product_range=times,
        free_parameters=free,
        agrees=agrees,
        reason=" ".join([*why, *_cautions(outside, len(budgets), factor, times)]),
    )


def shares(fit: ParametricFit) -> np.ndarray:
    """(R,) a = beta / (alpha + beta) in each bootstrap round."""
    alpha, beta = fit.draws[:, 3], fit.draws[:, 4]
    return np.asarray(beta / (alpha + beta))


def _best_sizes(values: np.ndarray, product: np.ndarray) -> np.ndarray:
    """(R, b) N* of each row of E, A, B, alpha, beta at each N D."""
    _, a, b, alpha, beta = (column[:, None] for column in values.T)
    log_g = np.log(alpha * a) - np.log(beta * b)
    found = (log_g + beta * np.log(product)) / (alpha + beta)
    # Not below one parameter and one crop, where rounds in which one of them does not matter go.
    return np.asarray(np.exp(np.clip(found, 0, np.log(product))))


def _profile(
    n: np.ndarray,
    d: np.ndarray,
    flops: np.ndarray,
    loss: np.ndarray,
    log_law: np.ndarray,
    fit: ParametricFit,
) -> _Profile:
    places, member = np.unique(np.stack([n, d], axis=1), axis=0, return_inverse=True)
    member = member.reshape(-1)
    counts = np.bincount(member)
    flops, mean, law = (
        np.bincount(member, weights=one) / counts for one in (np.log(flops), np.log(loss), log_law)
    )
    squares = float(np.sum((np.log(loss) - mean[member]) ** 2))
    if freedom := len(n) - len(counts):
        noise = np.sqrt(squares / freedom / counts)
    else:
        left = max(1, fit.num_points - len(PARAMETERS))
        noise = np.full(len(counts), np.sqrt(np.sum(fit.residuals**2) / left))
    return _Profile(
        log_parameters=np.log(places[:, 0]),
        log_flops=flops,
        log_loss=mean,
        log_law=law,
        noise=noise,
    )


def _default_budgets(profile: _Profile) -> np.ndarray:
    """Those that four sizes or more were trained at; with one or none, five along all trials."""
    order = np.argsort(profile.log_flops)
    logs = profile.log_flops[order]
    groups = np.split(order, np.flatnonzero(np.diff(logs) > _SAME_BUDGET) + 1)
    shared = [
        profile.log_flops[one].mean()
        for one in groups
        if len(np.unique(profile.log_parameters[one])) >= _FEWEST_SIZES
        and np.ptp(profile.log_flops[one]) <= 2 * _SAME_BUDGET
    ]
    # One comes about by chance, as the diagonal of a grid of sizes and data fractions.
    return np.exp(shared if len(shared) > 1 else np.linspace(logs[0], logs[-1], _NUM_BUDGETS))


def _law_free(
    profile: _Profile, budgets: np.ndarray, seed: int
) -> tuple[np.ndarray, tuple[bool | None, ...], list[str]]:
    """N* (b,) of the cubics, whether they agree with the law, and sentences."""
    errors = np.random.default_rng(seed).standard_normal((_SIMULATED, len(profile.log_law)))
    sets = np.concatenate([profile.log_loss[None], profile.log_law + profile.noise * errors])
    free: list[float] = []
    agrees: list[bool | None] = []
    few = at_end = 0
    for budget in np.log(budgets):
        sizes, losses = _at_budget(profile, float(budget), sets)
        if len(sizes) < _FEWEST_SIZES:
            few += 1
            free.append(np.nan)
            agrees.append(None)
            continue
        found = _cubic_minimum(sizes, losses)
        free.append(float(np.exp(found[0])))
        simulated = found[1:][np.isfinite(found[1:])]
        if np.isnan(found[0]) or len(simulated) < _SIMULATED / 2:
            at_end += 1
            agrees.append(None)
            continue
        low, high = np.quantile(simulated, ((1 - COVERAGE) / 2, (1 + COVERAGE) / 2))
        agrees.append(bool(low <= found[0] <= high))
    return np.array(free), tuple(agrees), _reasons(len(budgets), few, at_end)


def _at_budget(profile: _Profile, budget: float, sets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sizes (z,) measured at the budget or on both sides of it, and their ln losses there (S, z).

    Between a size's own trials the logarithms are joined by a monotone cubic (Fritsch & Carlson
    1980), by a line where there are two.
    """
    sizes, losses = [], []
    for size in np.unique(profile.log_parameters):
        mine = np.flatnonzero(profile.log_parameters == size)
        mine = mine[np.argsort(profile.log_flops[mine])]
        x = profile.log_flops[mine]
        if not x[0] - _SAME_BUDGET <= budget <= x[-1] + _SAME_BUDGET or np.any(np.diff(x) <= 0):
            continue
        joined = PchipInterpolator(x, sets[:, mine], axis=1) if len(x) > 1 else None
        sizes.append(size)
        losses.append(joined(np.clip(budget, x[0], x[-1])) if joined else sets[:, mine[0]])
    return np.array(sizes), np.array(losses).T


def _cubic_minimum(sizes: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """(S,) where the cubic of least squares through (S, z) losses is lowest; nan if at an end."""
    middle = sizes.mean()
    x = sizes - middle
    constant, first, second, third = (losses @ np.linalg.pinv(np.vander(x, 4, increasing=True)).T).T
    del constant
    root = second**2 - 3 * third * first
    # Of the two places without slope, the one where the cubic is convex; written so that it stays
    # finite as the cubic turns into a parabola.
    with np.errstate(invalid="ignore", divide="ignore"):
        found = -first / (second + np.sqrt(root))
    inside = (found > x[0]) & (found < x[-1])
    return np.where(inside, found + middle, np.nan)


def _reasons(budgets: int, few: int, at_end: int) -> list[str]:
    said = []
    if few < budgets:
        said.append(
            "The two agree where the cubic's optimum lies among 95% of those that it would have "
            "if the law held and chance alone moved the losses: as it does between seeds, or, "
            "without any, as the law's own residuals say, which makes a disagreement hard to see."
        )
    if few:
        said.append(
            f"At {few} of {budgets} budgets fewer than {_FEWEST_SIZES} sizes were measured, there "
            "or on both sides of it, too few for a cubic."
        )
    if at_end:
        said.append(
            f"At {at_end} of {budgets} the cubic, or the law with this noise, has no lowest point "
            "between the smallest and the largest size measured there."
        )
    return said


def _cautions(outside: int, budgets: int, factor: float, times: float) -> list[str]:
    said = []
    if outside:
        said.append(
            f"At {outside} of {budgets} budgets the law's best size is smaller or larger than any "
            "that was trained."
        )
    if times > _NOT_CONSTANT:
        said.append(
            f"FLOPs are {factor:.3g} per parameter and crop on average, but {times:.2g} times more "
            "in one trial than in another, so that best sizes hold to about that factor."
        )
    return said
