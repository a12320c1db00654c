"""How names and numbers stand before a reader: in sentences, tables and figures."""

from __future__ import annotations

OBJECTIVE_NAMES = {
    "mae": "MAE",
    "wsl": "WSL",
    "ca_mae": "CA-MAE",
    "munet": "MU-net",
    "untrained": "untrained",
    "untrained_ca": "untrained channel-agnostic",
    "reference": "reference",
    "intensity": "intensity statistics",
    "oracle": "oracle",
}
# Of medium lightness: readable on white and on near-black.
OBJECTIVE_COLOURS = {
    "mae": "#3d7fd6",
    "mae+": "#1f9fb8",
    "wsl": "#d9822b",
    "munet": "#2e9e6b",
    "ca_mae": "#9a63c9",
    "ca_mae+": "#c2557a",
    "ca_mae~": "#8a9a2b",
}
_OTHER_COLOUR = "#b0683f"
ALIGNMENT_NAMES = {
    "pca_cs": "PCA-CS",
    "tvn": "TVN",
    "center_scale": "centre-scale",
    "none": "no alignment",
}
METRIC_NAMES = {
    "recall_0.05_0.95": "recall of known relationships",
    "balanced_accuracy": "balanced accuracy",
}
LAW_NAMES = {
    "log_linear": "straight line",
    "power": "power law",
    "logit": "logit line",
}


def objective_name(objective: str) -> str:
    """The label of an objective as it is written in sentences."""
    bare = objective.rstrip("+~")
    name = OBJECTIVE_NAMES.get(bare, bare) + "+" * objective.count("+")
    return name + " on channel subsets" * objective.count("~")


def objective_colour(objective: str) -> str:
    """The colour of an objective, in every figure and in MLflow."""
    return OBJECTIVE_COLOURS.get(objective, _OTHER_COLOUR)


def metric_name(metric: str) -> str:
    """A metric as it is written in sentences and on axes."""
    return METRIC_NAMES.get(metric, metric)


def law_name(law: str) -> str:
    """A law as a legend has it."""
    return LAW_NAMES.get(law, law)


def number(value: float) -> str:
    """Three decimals, and more where they would say 0 of a number that is not 0."""
    return f"{value:.3f}" if value == 0 or abs(value) >= 5e-4 else f"{value:.1g}"


def interval(value: float, low: float, high: float) -> str:
    """`0.457 [0.356, 0.555]`."""
    return f"{number(value)} [{number(low)}, {number(high)}]"


def signed(value: float, low: float, high: float) -> str:
    """`+0.144 [+0.082, +0.212]`: of a difference or a slope."""
    first, *ends = (f"{end:+.3f}" for end in (value, low, high))
    return f"{first} [{', '.join(ends)}]"


def significant(value: float, low: float, high: float) -> str:
    """`1.23e+07 [9.8e+06, 1.6e+07]`: three significant digits, for what spans powers of ten."""
    first, *ends = (f"{end:.3g}" for end in (value, low, high))
    return f"{first} [{', '.join(ends)}]"


def share(data_fraction: float) -> str:
    """A data fraction in per cent."""
    return f"{100 * data_fraction:.3g}%"


def listed(names: list[str], word: str = "and") -> str:
    """`a`, `a and b`, `a, b and c`."""
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} {word} {names[-1]}"


def hours(value: float) -> str:
    """Hours with two significant digits, minutes or seconds where they are few."""
    if value >= 1:
        return f"{value:.2g} hours" if value < 100 else f"{value:,.0f} hours"
    if value * 60 >= 1:
        return f"{value * 60:.2g} minutes"
    return f"{value * 3600:.2g} seconds"
