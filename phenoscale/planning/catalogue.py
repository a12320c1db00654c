"""What could be run next in a study: its grid made larger by a size, by passes and by seeds.

Every candidate is a measured trial with another backbone, data fraction, number of passes or seed;
all else it keeps, so that old and new trials lie on one surface.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from phenoscale.backbones import BACKBONES, BACKBONES_OF, VisionTransformer
from phenoscale.bill import A100_FLOPS, UTILIZATION, Line, ScreenSize, bill_line
from phenoscale.config import Optim, Placement, Trial
from phenoscale.rates import TUNED, TunedRate, optim_for, transferred_rate
from phenoscale.results import ResultsRow
from phenoscale.wording import objective_name

PASSES_FACTORS = (1.0, 2.0)
"""By default: passes as the study has them, and twice as many."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """The trials of one objective that a study has, and their rows."""

    trials: tuple[Trial, ...]
    """Those with a row, one of each set of twins."""
    rows: tuple[ResultsRow, ...]
    """Their rows."""
    begun: frozenset[str]
    """Ids, without placement, of all trials of the study, failed and unfinished ones too."""

    @property
    def backbones(self) -> tuple[str, ...]:
        """Those measured, and of each patch size the next larger in the table of backbones."""
        measured = {trial.backbone for trial in self.trials}
        table = BACKBONES_OF[self.trials[0].objective.name]
        found = set(measured)
        for patch_px in {BACKBONES[name].patch_px for name in measured}:
            kin = [name for name in table if BACKBONES[name].patch_px == patch_px]
            largest = max(kin.index(name) for name in kin if name in measured)
            found.update(kin[largest : largest + 2])
        return tuple(name for name in table if name in found)

    @property
    def data_fractions(self) -> tuple[float, ...]:
        """Those measured."""
        return tuple(sorted({trial.crops.data_fraction for trial in self.trials}))

    @property
    def passes(self) -> tuple[int, ...]:
        """Those measured."""
        return tuple(sorted({trial.crops.passes for trial in self.trials}))

    def seeds_of(self, trial: Trial) -> int:
        """How many seeds of a trial's configuration were measured; 0 for a new one."""
        configuration = _configuration(trial)
        return sum(_configuration(mine) == configuration for mine in self.trials)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Speed:
    """How fast the study's own trials ran: bill's cost per second, and what comes on top."""

    training: float
    """Cost of training (`bill.Line.cost`) that a worker does in a second."""
    embedding: float
    """Cost of embedding that it does in a second."""
    rest_s: float
    """Wall seconds of a trial beside the two: scoring, starting."""


def cell(
    measured: Measured, *, backbone: str, data_fraction: float, passes: int, seed: int | None = None
) -> Trial:
    """A trial of the objective that was perhaps never run.

    Args:
        measured: trials of the objective.
        backbone: name in the table of backbones.
        data_fraction: share of the wells.
        passes: visits of every site.
        seed: None for the smallest that the objective was measured with, or, of a configuration
            that was measured, for the smallest that the study has not begun.

    Raises:
        ValueError: if there can be no such trial.
    """
    pairs = zip(measured.trials, measured.rows, strict=True)
    like, _ = min(
        pairs, key=lambda pair: _unlike(pair[0], pair[1], backbone, data_fraction, passes)
    )
    reads = like.crops.crops_per_read
    crops = dataclasses.replace(
        like.crops,
        data_fraction=data_fraction,
        passes=max(1, round(passes / reads)) * reads,
    )
    optim = like.optim if backbone == like.backbone else _optim(measured, like, backbone)
    first = min(trial.seed for trial in measured.trials) if seed is None else seed
    trial = dataclasses.replace(like, backbone=backbone, crops=crops, optim=optim, seed=first)
    if seed is not None or not measured.seeds_of(trial):
        return trial
    seeds = (dataclasses.replace(trial, seed=number) for number in range(2**31))
    return next(one for one in seeds if unplaced(one).id not in measured.begun)


def candidates(
    measured: Measured,
    screen: ScreenSize,
    *,
    backbones: Sequence[str] = (),
    passes_factors: Sequence[float] = PASSES_FACTORS,
) -> tuple[list[Line], tuple[str, ...]]:
    """What could be run of one objective, each with its bill.

    Args:
        measured: its trials.
        screen: counts of the screen.
        backbones: names; none for `Measured.backbones`. Those that the objective does not train are
            passed over.
        passes_factors: times the passes that were measured.

    Returns:
        One line for each candidate, and sentences on those that were left out.
    """
    table = BACKBONES_OF[measured.trials[0].objective.name]
    sizes = [name for name in backbones if name in table] if backbones else measured.backbones
    passes = sorted({max(1, round(n * f)) for n in measured.passes for f in passes_factors})
    lines: dict[str, Line] = {}
    impossible: list[str] = []
    begun = 0
    for size in sizes:
        for fraction in measured.data_fractions:
            for number in passes:
                try:
                    trial = cell(measured, backbone=size, data_fraction=fraction, passes=number)
                    line = bill_line(trial, screen)
                except ValueError as error:
                    impossible.append(str(error))
                    continue
                if unplaced(trial).id in measured.begun:
                    begun += 1
                else:
                    lines[trial.id] = line
    left_out = []
    name = objective_name(measured.trials[0].objective.label)
    if impossible:
        left_out.append(
            f"{name}: {_counted(len(impossible))} not possible here. The first: {impossible[0]}"
        )
    if begun:
        left_out.append(
            f"{name}: {_counted(begun)} failed or unfinished in the study; its own command goes "
            "on with them."
        )
    return list(lines.values()), tuple(left_out)


def speed_of(lines: Mapping[str, Line], rows: Sequence[ResultsRow]) -> Speed:
    """The median speed of a study's trained trials.

    Args:
        lines: bills of its trials, by id.
        rows: their rows.

    Raises:
        ValueError: if no trial was trained.
    """
    pairs = [(lines[row.trial_id], row) for row in rows if row.trial_id in lines]
    pairs = [(line, row) for line, row in pairs if not row.is_baseline]
    if not pairs:
        raise ValueError(
            "The study has no trained trial, so it has no speed of its own; take the hours of the "
            "bill instead."
        )
    return Speed(
        training=float(np.median([b.cost[0] / (r.train_s * r.workers) for b, r in pairs])),
        embedding=float(np.median([line.cost[1] / row.embed_s for line, row in pairs])),
        rest_s=float(np.median([row.score_s + row.overhead_s for _, row in pairs])),
    )


def hours(line: Line, speed: Speed | None) -> float:
    """Cost of a trial in hours: of an A100 as on the bill, or of a worker at a measured speed."""
    if speed is None:
        return line.gpu_hours
    train, embed = line.cost
    return (train / speed.training + embed / speed.embedding + speed.rest_s) / 3600


def hours_are(speed: Speed | None) -> str:
    """Which hours those are, for a reader."""
    if speed is None:
        return (
            f"GPU-hours of an A100 at {UTILIZATION:.0%} of its {A100_FLOPS / 1e12:.0f} TFLOP/s in "
            "bf16"
        )
    return "hours of one worker at the median speed of the study's own trials"


def unplaced(trial: Trial) -> Trial:
    """The trial without its placement, which changes no result."""
    return dataclasses.replace(trial, placement=Placement())


def _configuration(trial: Trial) -> str:
    """An id that seeds and placements share."""
    return dataclasses.replace(unplaced(trial), seed=0).id


def _counted(number: int) -> str:
    return f"{number} candidates are" if number > 1 else "1 candidate is"


def _unlike(
    trial: Trial, row: ResultsRow, backbone: str, data_fraction: float, passes: int
) -> tuple[float, float, float, str]:
    """How unlike a trial is: its size first, then its data; of equals the lowest loss is first."""
    data = abs(math.log(trial.crops.data_fraction / data_fraction))
    data += abs(math.log(trial.crops.passes / passes))
    return _apart(trial.backbone, backbone), data, row.held_out_loss or 0.0, trial.id


def _apart(one: str, other: str) -> float:
    """Distance of two backbones: of their widths, more between patch sizes, most between kinds."""
    if one == other:
        return 0.0
    a, b = BACKBONES.get(one), BACKBONES.get(other)
    if a is None or b is None or type(a) is not type(b):
        return 1e6
    width = abs(math.log(a.embedding_width / b.embedding_width))
    return 1e-6 + width + 1e3 * (a.patch_px != b.patch_px)


def _optim(measured: Measured, like: Trial, backbone: str) -> Optim:
    """The updates of a backbone that the study has not: as the nearest trial's, at a fitting rate.

    The table of tuned rates speaks only where the study itself goes by tuned rates; elsewhere, on
    another screen, the study's own rate is carried over by the rule of `rates.py`.
    """
    name, batch = like.objective.name, like.crops.global_batch_size
    both = (BACKBONES[like.backbone], BACKBONES.get(backbone))
    if like.optim.name != "adamw" or not all(isinstance(x, VisionTransformer) for x in both):
        return dataclasses.replace(like.optim, lr_source="given")
    if name in TUNED and any(trial.optim.lr_source == "tuned" for trial in measured.trials):
        rate = optim_for(name, backbone, batch)
        lr = rate.lr if rate.lr_source == "tuned" else _rounded(rate.lr)
        return dataclasses.replace(like.optim, lr=lr, lr_source=rate.lr_source)
    own = TunedRate(lr=like.optim.lr, backbone=like.backbone, global_batch_size=batch)
    lr = transferred_rate(own, backbone=backbone, global_batch_size=batch)
    return dataclasses.replace(like.optim, lr=_rounded(lr), lr_source="transferred")


def _rounded(lr: float) -> float:
    return float(f"{lr:.4g}")
