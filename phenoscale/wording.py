"""How names and numbers are written for a reader: in sentences, tables and figures."""

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


def objective_name(objective: str) -> str:
    """The label of an objective as it is written in sentences."""
    bare = objective.rstrip("+~")
    name = OBJECTIVE_NAMES.get(bare, bare) + "+" * objective.count("+")
    return name + " on channel subsets" * objective.count("~")


def number(value: float) -> str:
    """Three decimals, and more where they would say 0 of a number that is not 0."""
    return f"{value:.3f}" if value == 0 or abs(value) >= 5e-4 else f"{value:.1g}"


def interval(value: float, low: float, high: float) -> str:
    """`0.457 [0.356, 0.555]`."""
    return f"{number(value)} [{number(low)}, {number(high)}]"


def share(data_fraction: float) -> str:
    """A data fraction in per cent."""
    return f"{100 * data_fraction:.3g}%"
