"""How far scores scatter, and from what: seeds, the genes that are scored, the law itself.

Run noise is what another seed changes. Evaluation noise is what another sample of genes would
change; the part of it that is not the same for all trials shows as run noise or lack of fit too.
Lack of fit is what the law misses even where the mean of many seeds is known.

Shapes: n trials, m configurations, p parameters of the law, R rounds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy import stats

from phenoscale.maps.interval import COVERAGE
from phenoscale.scaling.laws import LawFit
from phenoscale.scaling.points import Points
from phenoscale.wording import number

# A standard deviation from f degrees of freedom has a relative standard error of about
# 1 / sqrt(2 f): 25% where f is 8.
_ADVISED_FREEDOM = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Noise:
    """Standard deviations of one objective's score, by source, in units of the score."""

    num_seeds: int
    """Seeds of the configuration that has most."""
    freedom: int
    """Degrees of freedom that `run_sd` is known by: trials less configurations."""
    run_sd: float | None
    """Between seeds of one configuration, pooled; None without a second seed anywhere."""
    gene_sd: float
    """Of one score over samples of genes (or held-out groups), from the scores' intervals."""
    gene_shared: float | None
    """Share of that variance that moves all trials alike; None without kept samples, or with one
    trial."""
    lack_of_fit_sd: float | None
    """Of configurations about the law beyond run noise; None where seeds or law are missing."""
    lack_of_fit_p: float | None
    """That a law which holds would leave so much; None like `lack_of_fit_sd`."""
    text: tuple[str, ...]
    """The same in plain sentences."""


def noise_of(points: Points, fit: LawFit | None) -> Noise:
    """Takes the scatter of an objective's scores apart.

    Run noise: root mean square within configurations, on n - m degrees of freedom. Lack of fit:
    F test of the mean square about the law, m - p degrees of freedom, against that within
    configurations (Draper & Smith 1998, section 2.1), and its variance component by the mean
    squares' expectations, as in a one-way analysis of variance (Searle et al. 1992, chapter 3).

    Args:
        points: of one objective.
        fit: law of its scores by configuration, in the order of `points`; None if there is none.
    """
    scores = points.column("score")
    seeds = np.bincount(points.configuration)
    freedom = len(scores) - len(seeds)
    within = scores - points.means(scores)[points.configuration]
    run_sd = float(np.sqrt(np.sum(within**2) / freedom)) if freedom else None
    widths = points.column("score_high") - points.column("score_low")
    gene_sd = float(np.sqrt(np.mean(widths**2)) / (2 * stats.norm.ppf((1 + COVERAGE) / 2)))
    lack_sd, lack_p = None, None
    if run_sd and fit is not None and len(seeds) > len(fit.parameters):
        lack_sd, lack_p = _lack_of_fit(points, fit, run_sd)
    noise = Noise(
        num_seeds=int(seeds.max()),
        freedom=freedom,
        run_sd=run_sd,
        gene_sd=gene_sd,
        gene_shared=_shared(points),
        lack_of_fit_sd=lack_sd,
        lack_of_fit_p=lack_p,
        text=(),
    )
    sentences = (_run_text(noise), _gene_text(points, noise), _law_text(points, fit, noise))
    return dataclasses.replace(noise, text=tuple(text for text in sentences if text))


def difference_text(
    difference: float, noise: Noise, seeds_a: int = 1, seeds_b: int = 1
) -> str | None:
    """A warning where two scores differ by less than two draws of seeds would.

    The bound is t sd sqrt(1 / seeds_a + 1 / seeds_b), t Student's 97.5% point on the degrees of
    freedom that sd is known by; 1.96 sqrt(2) sd for single runs and a well-known sd.

    Args:
        difference: of two configurations' scores, each the mean of its seeds.
        noise: of the objective.
        seeds_a: trials behind one score.
        seeds_b: trials behind the other.

    Returns:
        The sentence, or None where the difference is larger or the run noise is not known.
    """
    if noise.run_sd is None:
        return None
    bound = _seed_bound(noise) * float(np.sqrt(1 / seeds_a + 1 / seeds_b))
    if abs(difference) >= bound:
        return None
    runs = "two runs" if seeds_a == seeds_b == 1 else f"means of {seeds_a} and {seeds_b} runs"
    return (
        f"The difference of {number(abs(difference))} may be the seeds' alone: {runs} of one and "
        f"the same configuration differ by up to {number(bound)} in 95 of 100 cases."
    )


def gene_shifts(points: Points, *, rounds: int) -> np.ndarray | None:
    """(R, m) score on a sample of genes less the score, mean over seeds; None without samples.

    Two objectives of a study get the same samples round by round; over again where R is larger.
    """
    if points.score_samples is None:
        return None
    shifts = points.means((points.score_samples - points.column("score")[:, None]).T)
    return np.resize(shifts, (rounds, shifts.shape[1]))


def beyond_residuals(
    x: Sequence[np.ndarray], shifts: Sequence[np.ndarray], *, paired: bool = True
) -> list[np.ndarray]:
    """What samples of genes do to straight lines beyond what their residuals already show.

    Of a shift, the part that differs from configuration to configuration without order is in the
    residuals too. A bootstrap that adds whole shifts to residuals counts it twice: 90% intervals of
    a slope difference then held the truth in up to 98% of simulated studies; without shifts in as
    few as 35%, where genes move the slopes themselves; by this in 89 to 96%.

    So of the shifts' coordinates along the lines, with covariance K, the part D that such noise has
    there is taken away: T K T' = K - D for T = D^1/2 V (1 - 1 / L)^1/2 V' D^-1/2, where V and L are
    the eigenvectors and eigenvalues of D^-1/2 K D^-1/2, and shares below 0 count as 0.

    Args:
        x: (m,) log10 of the axis, of each line.
        shifts: (R, m), see `gene_shifts`, of each line.
        paired: whether the lines have the same configurations in the same order.

    Returns:
        (R, m) of each line, without the samples' own mean.
    """
    bases = [np.linalg.qr(np.stack([np.ones(len(one)), one], axis=1))[0] for one in x]
    centred = [one - one.mean(axis=0) for one in shifts]
    along = [s @ basis for s, basis in zip(centred, bases, strict=True)]  # (R, 2) each
    off = [s - a @ basis.T for s, a, basis in zip(centred, along, bases, strict=True)]
    scatter = np.diag([np.mean(o**2) * o.shape[1] / max(o.shape[1] - 2, 1) for o in off])
    if paired:
        stacked = np.stack(off)
        scatter = np.einsum("arm,brm->ab", stacked, stacked) / len(off[0])
        scatter /= max(len(x[0]) - 2, 1)
    values, vectors = np.linalg.eigh(np.kron(scatter, np.eye(2)))
    tiny = np.finfo(np.float64).tiny ** 0.5  # no scatter at all: then nothing is taken away
    root = np.sqrt(np.maximum(values, max(1e-12 * values.max(), tiny)))
    out, back = vectors * root @ vectors.T, vectors / root @ vectors.T
    together = np.concatenate(along, axis=1)
    ratio, turned = np.linalg.eigh(back @ np.cov(together.T) @ back)
    share = np.sqrt(1 - 1 / np.maximum(ratio, 1))
    kept = together @ (out @ (turned * share) @ turned.T @ back).T
    return [kept[:, 2 * place : 2 * place + 2] @ basis.T for place, basis in enumerate(bases)]


def scored_over(points: Points) -> str:
    """What a score's interval draws again, in words."""
    metrics = {row.metric for row in points.rows}
    return "held-out groups" if metrics == {"balanced_accuracy"} else "genes"


def _shared(points: Points) -> float | None:
    """Mean covariance of two trials over the samples, as a share of the mean variance of one."""
    if points.score_samples is None or len(points.rows) < 2:
        return None
    covariance = np.cov(points.score_samples)
    n, own = len(covariance), np.trace(covariance)
    if own <= 0:
        return None
    return float(max(0.0, (covariance.sum() - own) / (n - 1) / own))


def _seed_bound(noise: Noise) -> float:
    """By how much the mean of many seeds and one more may differ in 95 of 100 cases."""
    assert noise.run_sd is not None
    return float(stats.t.ppf((1 + COVERAGE) / 2, noise.freedom) * noise.run_sd)


def _lack_of_fit(points: Points, fit: LawFit, run_sd: float) -> tuple[float, float]:
    """Standard deviation of the configurations about the law, and p-value of the F test."""
    seeds = np.bincount(points.configuration)
    n, m = int(seeds.sum()), len(seeds)
    law_freedom = m - len(fit.parameters)
    about_law = np.sum(seeds * (points.means(points.column("score")) - fit.fitted) ** 2)
    about_law /= law_freedom
    p_value = float(stats.f.sf(about_law / run_sd**2, law_freedom, n - m))
    each = (n - np.sum(seeds**2) / n) / (m - 1)  # seeds of a configuration, where all have as many
    return float(np.sqrt(max(about_law - run_sd**2, 0) / each)), p_value


def _run_text(noise: Noise) -> str:
    if noise.run_sd is None:
        return (
            "Run noise is not known, since no configuration was trained with a second seed. A "
            f"second seed for {_ADVISED_FREEDOM} configurations tells its standard deviation to "
            "about 25%."
        )
    doubt = ""
    if noise.freedom < _ADVISED_FREEDOM:
        more = _ADVISED_FREEDOM - noise.freedom
        doubt = f"; {more} more run{'s' * (more > 1)} with further seeds would tell it to about 25%"
    return (
        f"Run noise: seeds of one configuration have a standard deviation of "
        f"{number(noise.run_sd)} ({noise.freedom} degree{'s' * (noise.freedom > 1)} of freedom"
        f"{doubt}), so two runs that differ by less than {number(_seed_bound(noise) * 2**0.5)} may "
        "differ by the seed alone."
    )


def _gene_text(points: Points, noise: Noise) -> str:
    what = scored_over(points)
    shared = "what moves all trials alike cancels where they are compared in pairs"
    if noise.gene_shared is not None:
        shared = (
            f"{noise.gene_shared:.0%} of that variance moves all trials alike, so it cancels where "
            "they are compared in pairs"
        )
    return (
        f"Evaluation noise: another sample of {what} would move a score by a standard deviation of "
        f"{number(noise.gene_sd)}; {shared}."
    )


def _law_text(points: Points, fit: LawFit | None, noise: Noise) -> str:
    """What the law misses, or why that is not known; empty without a law."""
    if fit is None or points.num_configurations <= len(fit.parameters):
        return ""
    if noise.lack_of_fit_p is None or noise.lack_of_fit_sd is None:
        residuals = points.means(points.column("score")) - fit.fitted
        freedom = len(residuals) - len(fit.parameters)
        return (
            "Lack of fit cannot be told from run noise: configurations scatter about the law with "
            f"a standard deviation of {number(float(np.sqrt(np.sum(residuals**2) / freedom)))}, "
            "both together."
            if noise.run_sd is None
            else "Lack of fit was not tested: all seeds of each configuration have the same score."
        )
    verdict = f"p = {number(noise.lack_of_fit_p)} in an F test against the seeds"
    if noise.lack_of_fit_p < 1 - COVERAGE:
        return (
            f"The law misses something: beyond run noise configurations lie off it by a standard "
            f"deviation of {number(noise.lack_of_fit_sd)} ({verdict})."
        )
    return f"The law leaves no more than run noise explains ({verdict})."
