"""How each number of a report was computed, in its own words."""

from __future__ import annotations

from phenoscale.reports.study_report import StudyRecord
from phenoscale.scaling.resample import MANY_CONFIGURATIONS


def methods(record: StudyRecord, has_map: bool) -> list[tuple[str, str]]:
    """Terms and their definitions; those of scaling only where a trial was trained."""
    study = record.study
    chance = f" Chance is {study['chance']:.3g}." if study.get("chance") is not None else ""
    alignment = f" ({study['alignment']})" if study.get("alignment") else ""
    found = [
        (
            "Recall of known relationships",
            "`recall_0.05_0.95`: the share of annotated pairs of genes whose cosine similarity "
            "lies among the lowest 5% or the highest 5% of all pairs of genes in the perturbation "
            f"map.{chance}",
        ),
        (
            "Balanced accuracy",
            "The mean over classes of the share of held-out sites that a linear probe names "
            "rightly.",
        ),
        (
            "Perturbation map",
            f"Crops averaged to sites, sites to wells, aligned{alignment}, wells to guides, guides "
            "to genes.",
        ),
    ]
    if has_map:
        found.append(
            (
                "Pictures of the map",
                "Cosine similarity of the aligned vectors; the order of the heat map and the "
                "clusters come from average linkage, the plane from t-SNE. They are to look at: "
                "nothing is scored on them.",
            )
        )
    found += [
        (
            "Intervals of scores",
            "95% bootstrap; over genes for recall, over whole held-out groups for accuracy. Paired "
            "differences take the same bootstrap sample for both sides; several initialisations "
            "enter by their mean.",
        ),
        (
            "Baselines",
            "The same backbone untrained, several initialisations; intensity statistics of each "
            "channel; both through the same read-out, alignment and score. Oracle: the true latent "
            "parameters of a simulated screen instead of an embedding.",
        ),
        (
            "Training FLOPs",
            "Arithmetic on backbone and steps, forward and backward; not measured.",
        ),
        (
            "Cost",
            "Wall seconds of training, embedding and scoring, times the workers of the trial.",
        ),
        (
            "Data",
            "The share of training wells. Smaller shares lie inside larger ones; held-out plates "
            "are removed first. In the figure, points of one share stand slightly apart so that "
            "their intervals can be seen.",
        ),
        (
            "Losses",
            "Train loss: mean over the last tenth of the steps. Held-out loss: after the last "
            "step, on the held-out plates. Points of a loss curve are means over neighbouring "
            "steps, at most 150 a curve.",
        ),
        (
            "Overhead and memory",
            "Overhead: time in the slot less training, embedding and scoring. Peak memory of a "
            "trial: its largest process.",
        ),
    ]
    return found + (_SCALING if record.summary.objectives else [])


_SCALING = [
    (
        "Configuration",
        "All that a trial is but its seed. Laws are fitted to the means over the seeds of each "
        "configuration; twins count once.",
    ),
    (
        "Laws",
        "Least squares on the score against log10 of the axis: a straight line; a power law with a "
        "ceiling of at most 1; a straight line on the logit. For losses a straight line and a "
        "power law with a floor of at least 0. The straight line stands unless another has both "
        "the smaller leave-one-configuration-out error and the smaller AICc.",
    ),
    (
        "Intervals of laws",
        f"95%. Below {MANY_CONFIGURATIONS} configurations a wild bootstrap: each keeps its place "
        "and gets its fitted value plus its own residual with a random sign, enlarged for leverage "
        "(HC3), and whole rounds spread as Student's t does. From there on configurations are "
        "drawn again with replacement. Scores also move with the sample of genes, the same one for "
        "all trials.",
    ),
    (
        "Difference of slopes",
        "Straight lines of both objectives, refitted to the same samples of genes and, where they "
        "share most of their configurations and at least three, to those with the same signs for "
        "both. The p-value is two-sided, from the rounds.",
    ),
    (
        "L(N, D)",
        "E + A / N^alpha + B / D^beta of the held-out loss, on its logarithm (Hoffmann et al. "
        f"2022, approach 3): least squares below {MANY_CONFIGURATIONS} configurations, from there "
        "on Huber's loss. Its rounds draw noise half from each configuration's own residual, half "
        "from the variance that all share; percentiles are corrected for the median's bias. N: "
        "parameters of the encoder. D: crops seen, repeats discounted (Muennighoff et al. 2023).",
    ),
    (
        "Compute-optimal size",
        "The parameters with the least loss for a budget by L(N, D), and beside it by a cubic "
        "through the losses of each size at that budget, without a law. They agree where they are "
        "as near as the noise lets them be.",
    ),
    (
        "From loss to score",
        "Score against held-out loss, a straight line in the loss or its logarithm. It counts as a "
        "law only if it predicts left-out configurations better than their mean, falls, and does "
        "so in a permutation test (p < 0.05).",
    ),
    (
        "Forecast",
        "The interval is that of a new run, its own noise included, with laws mixed by their "
        "Schwarz weights, so that it widens where they part. Beyond ten times the largest run it "
        "is a direction, not a number.",
    ),
    (
        "Back-test",
        "The configurations with the most compute, about a third, are forecast from the others.",
    ),
    (
        "What to run next",
        "Expected gain: the mean over the forecast of how far a run lies above the best score so "
        "far. Variance removed: by how much the run would narrow the forecast at the target.",
    ),
]
