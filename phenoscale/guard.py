"""What must not pass in silence: a loss or gradient that is no number, and a loss that jumps."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from phenoscale.config import Trial
from phenoscale.parallel import gathered

SPIKE_WINDOW = 64
"""Steps that a loss is compared with."""
SPIKE_DEVIATIONS = 10.0
"""Robust standard deviations above their median from which a loss counts as a spike."""
_LEAST = 0.02  # of the median: the smallest standard deviation that is believed


def is_spike(before: Sequence[float], loss: float) -> bool:
    """Whether a loss lies far above those of the last `SPIKE_WINDOW` steps.

    More than `SPIKE_DEVIATIONS` standard deviations above their median, the deviation taken from
    the median absolute one. False until half a window is there.
    """
    window = np.asarray(before[-SPIKE_WINDOW:])
    if len(window) < SPIKE_WINDOW // 2:
        return False
    median = float(np.median(window))
    deviation = 1.4826 * float(np.median(np.abs(window - median)))
    return loss > median + SPIKE_DEVIATIONS * max(deviation, _LEAST * abs(median))


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What is needed to make a failed step again: `CropCutter.stream(step, step + 1)` cuts it."""

    trial_id: str
    """The trial."""
    step: int
    """The step, nothing of which was applied."""
    workers: list[int]
    """Ranks whose own loss was no number; empty where the gradient alone was none."""
    losses: list[float | None]
    """Loss of each worker's share; None for one that is no number."""
    gradient_is_finite: bool
    """Whether the gradient's norm was a number."""
    rows: list[int]
    """Index rows of the global batch's crops, in order."""


class NonFiniteError(RuntimeError):
    """A loss or gradient is nan or infinite; nothing was updated with it."""

    def __init__(self, message: str, evidence: dict[str, Any]) -> None:
        """Keeps what `Evidence` holds beside the message."""
        super().__init__(message)
        self.evidence = evidence


def non_finite(
    trial: Trial, step: int, loss: float, grad_norm: float, rows: Sequence[int]
) -> NonFiniteError:
    """The error of a step whose loss or gradient is no number; called on all workers together.

    Args:
        trial: the trial.
        step: the step.
        loss: of this worker's share.
        grad_norm: of the whole gradient.
        rows: index rows of this worker's crops.
    """
    everyone = gathered((loss, list(rows)))
    losses = [float(one[0]) for one in everyone]
    guilty = [rank for rank, value in enumerate(losses) if not math.isfinite(value)]
    evidence = Evidence(
        trial_id=trial.id,
        step=step,
        workers=guilty,
        losses=[value if math.isfinite(value) else None for value in losses],
        gradient_is_finite=math.isfinite(grad_norm),
        rows=[row for one in everyone for row in one[1]],
    )
    if guilty:
        what = f"loss {losses[guilty[0]]} at step {step}, worker {guilty[0]}"
        seen = everyone[guilty[0]][1]
    else:
        what, seen = f"gradient of norm {grad_norm} at step {step}", evidence.rows
    message = (
        f"Trial {trial.id}: {what}; nothing was updated. The crops are of the index rows {seen}. "
        f"Lower the learning rate ({trial.optim.lr:g}) or look at these sites."
    )
    return NonFiniteError(message, dataclasses.asdict(evidence))
