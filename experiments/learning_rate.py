"""At which learning rate does each size train best, and how does that rate change with width?

Command: python -m experiments.learning_rate [--seed N] [--seeds N] [--objective NAME] [--dry-run]
Expected: the best rate falls as the backbone widens, and by less than 1/width: that is what theory
asks of AdamW for matrices between hidden layers (Yang et al. 2022, arXiv 2203.03466), and backbones
this narrow are to a good part something else.

Objectives (mae and wsl unless you name others) x three backbones x six rates, factors of 2 apart
around those that the other experiments use. Of each size the rate with the lowest loss on held-out
plates is the best one, never that with the highest score. A parabola in log2(rate) through the
lowest point and its neighbours refines it. No best rate is given where the lowest point is the
first or the last (the sweep has not bracketed it), or where all losses are about the same (the
training was too short to tell). Trainings are short: longer ones may want lower rates. Sites are
cut to a quarter of the quickstart's, since embedding them would cost more than training here.

The outcome stands in `phenoscale/rates.py`, as the rates of swept sizes and the rule for others.
"""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations
from typing import Annotated

import numpy as np
import typer

from experiments import grid
from phenoscale.backbones import vision_transformer
from phenoscale.config import Study
from phenoscale.results import ResultsRow, read_rows, write_json
from phenoscale.study_files import in_folder, located
from phenoscale.terminal import clear_errors

BACKBONES = ("pico/8", "nano/8", "micro/8")  # 16, 32 and 48 values wide
OBJECTIVES = ("mae", "wsl")
LOWEST_RATE = {"mae": 2e-3, "ca_mae": 2e-3, "wsl": 1e-3}
NUM_RATES = 6  # each twice the one before
PASSES, CROPS_PER_READ = 8, 2
MASK_RATIO = 0.5
SITE_PX = 128
FLAT = 0.01  # losses within this share of the lowest do not tell rates apart
RATES_FILE = "learning_rates.json"
VERDICTS = {
    "bracketed": "",
    "edge": "; not bracketed: lowest at the edge",
    "flat": f"; not bracketed: within {FLAT:.0%} of one another",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class BestRate:
    """What the sweep says of one size."""

    objective: str
    """Label of the objective."""
    backbone: str
    """Name of the backbone."""
    width: int
    """Values per token of that backbone."""
    swept: tuple[float, ...]
    """The rates that count, ascending."""
    losses: tuple[float, ...]
    """Held-out loss at each of them, the mean over seeds."""
    lowest_at: float
    """The swept rate with the lowest held-out loss."""
    verdict: str
    """bracketed; edge (lowest at the first or last rate); flat (all losses within `FLAT`)."""
    best: float | None
    """The vertex of the parabola; None unless bracketed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slope:
    """How the best rate of an objective changes with width."""

    objective: str
    """Label of the objective."""
    sizes: int
    """Bracketed sizes."""
    slope: float
    """Of log2(best rate) over log2(width), by least squares."""
    lowest: float
    """The lowest slope between two of the sizes."""
    highest: float
    """The highest."""


def build_study(seed: int = 0, seeds: int = 1, objectives: Sequence[str] = OBJECTIVES) -> Study:
    """The sweep on the screen of one seed, with so many initialisations of each cell.

    Raises:
        ValueError: for an objective that has no rates here, or fewer than one initialisation.
    """
    if unknown := sorted(set(objectives) - set(LOWEST_RATE)):
        raise ValueError(
            f"There are no rates here for {', '.join(unknown)}; choose among "
            f"{', '.join(LOWEST_RATE)}."
        )
    if seeds < 1:
        raise ValueError(f"seeds is {seeds}, but must be 1 or more.")
    crops = dataclasses.replace(grid.SIMULATED, passes=PASSES, crops_per_read=CROPS_PER_READ)
    return Study(
        name=f"learning-rate-seed{seed}",
        question="At which learning rate does each size train best?",
        trials=tuple(
            grid.trained(
                objective,
                name,
                crops,
                lr=LOWEST_RATE[objective] * 2**i,
                mask_ratio=MASK_RATIO,
                seed=seed + j,
            )
            for objective in dict.fromkeys(objectives)
            for name in BACKBONES
            for i in range(NUM_RATES)
            for j in range(seeds)
        ),
    )


def best_rates(rows: Sequence[ResultsRow]) -> list[BestRate]:
    """The best rate of each objective and backbone, by held-out loss; baselines do not count.

    A rate that lacks a seed which others of its size have does not count either.

    Raises:
        ValueError: if trials of an objective saw different numbers of crops.
    """
    cells: dict[tuple[str, str], dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    crops: dict[str, set[int]] = defaultdict(set)
    for row in rows:
        if row.held_out_loss is not None:
            cells[row.objective, row.backbone][row.lr].append(row.held_out_loss)
            crops[row.objective].add(row.crops_seen)
    if mixed := {name: sorted(seen) for name, seen in crops.items() if len(seen) > 1}:
        raise ValueError(
            f"The trials saw different numbers of crops, {mixed}: their losses do not compare. "
            "Give another --storage, or remove the older trials."
        )
    found = [_best_rate(*cell, points) for cell, points in cells.items()]
    return sorted(found, key=lambda best: (best.objective, best.width, best.backbone))


def _best_rate(objective: str, backbone: str, points: dict[float, list[float]]) -> BestRate:
    seeds = max(len(losses) for losses in points.values())
    swept = tuple(sorted(lr for lr, losses in points.items() if len(losses) == seeds))
    losses = tuple(float(np.mean(points[lr])) for lr in swept)
    at = int(np.argmin(losses))
    verdict = "bracketed" if 0 < at < len(swept) - 1 else "edge"
    if max(losses) - min(losses) < FLAT * min(losses):
        verdict = "flat"
    best = None
    if verdict == "bracketed":
        around = slice(at - 1, at + 2)
        a, b, _ = np.polyfit(np.log2(swept[around]) - math.log2(swept[at]), losses[around], 2)
        best = swept[at] * 2.0 ** float(-b / (2 * a)) if a > 0 else swept[at]
    return BestRate(
        objective=objective,
        backbone=backbone,
        width=vision_transformer(backbone).width,
        swept=swept,
        losses=losses,
        lowest_at=swept[at],
        verdict=verdict,
        best=best,
    )


def slopes(found: Sequence[BestRate]) -> list[Slope]:
    """The slope of each objective that has two bracketed sizes or more."""
    result = []
    for objective in dict.fromkeys(best.objective for best in found):
        points = [
            (math.log2(best.width), math.log2(best.best))
            for best in found
            if best.objective == objective and best.best is not None
        ]
        pairs = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in combinations(points, 2) if a[0] != b[0]]
        if pairs:
            x, y = np.array(points).T
            result.append(
                Slope(
                    objective=objective,
                    sizes=len(points),
                    slope=float(np.polyfit(x, y, 1)[0]),
                    lowest=min(pairs),
                    highest=max(pairs),
                )
            )
    return result


def table(found: Sequence[BestRate], trends: Sequence[Slope]) -> list[str]:
    """Both as lines of text."""
    text = [
        f"{'objective':<11}{'backbone':<10}{'width':>6}{'best rate':>11}  held-out loss by rate"
    ]
    for best in found:
        rate = "-" if best.best is None else f"{best.best:.2e}"
        losses = ", ".join(
            f"{lr:.3g}: {loss:.4f}" for lr, loss in zip(best.swept, best.losses, strict=True)
        )
        text.append(
            f"{best.objective:<11}{best.backbone:<10}{best.width:>6}{rate:>11}  {losses}"
            + VERDICTS[best.verdict]
        )
    text += [
        f"{trend.objective}: best rate ~ width^{trend.slope:+.2f} over {trend.sizes} sizes, "
        f"{trend.lowest:+.2f} to {trend.highest:+.2f} between two of them"
        for trend in trends
    ]
    return text


def main(
    seed: Annotated[int, typer.Option(help="Seed of the screen, and of the first trials.")] = 0,
    seeds: Annotated[int, typer.Option(help="Initialisations of each cell.")] = 1,
    objective: Annotated[
        list[str] | None, typer.Option(help="mae, wsl or ca_mae; repeat for more.")
    ] = None,
    storage: grid.Storage = grid.STORAGE,
    tracking_uri: grid.TrackingUri = None,
    address: grid.Address = None,
    at_once: grid.AtOnce = None,
    max_gpu_hours: grid.MaxGpuHours = None,
    resume: grid.Resume = False,
    dry_run: grid.DryRun = False,
) -> None:
    """Sweeps the rates, and prints and writes the best one of each size."""
    with clear_errors():
        study = build_study(seed, seeds, objective or OBJECTIVES)
    if dry_run:
        typer.echo(grid.simulated_bill(study, seed, SITE_PX))
        return
    words = ["python -m experiments.learning_rate", f"--seed {seed}", f"--seeds {seeds}"]
    command = " ".join(words + [f"--objective {name}" for name in objective or []])
    limits = grid.Limits(at_once=at_once, max_gpu_hours=max_gpu_hours, resume=resume)
    code = grid.run_simulated(study, seed, storage, command, tracking_uri, address, limits, SITE_PX)

    from phenoscale.study_storage import local_copy

    with clear_errors():
        study_dir = local_copy(in_folder(str(located(storage)), study.name))
        found = best_rates(read_rows(study_dir))
    trends = slopes(found)
    typer.echo("\n".join(table(found, trends)))
    path = write_json(
        study_dir / RATES_FILE,
        {
            "rates": [dataclasses.asdict(best) for best in found],
            "slopes": [dataclasses.asdict(trend) for trend in trends],
        },
    )
    typer.echo(f"  rates    {path}")
    raise typer.Exit(code)


if __name__ == "__main__":
    typer.run(main)
