"""Which objective, on how much data, finds the planted biology of a simulated screen?

Command: python -m experiments.quickstart [--seed N] [--dry-run]
Expected: masked autoencoders gain with data and beat, in recall of the planted relationships, both
the same backbone untrained and intensity statistics; the oracle of true phenotypes is near 1,
chance is 0.10. As found, they do not beat the baseline's other read-out, density (LOG.md).

Two objectives x two backbones x three data scales, three untrained initialisations of each
backbone, intensity statistics, the oracle, and twins of one trial under Ray Train. Passes are
fixed, so a trial's cost follows its data. Read-out, alignment and baselines are fixed here, before
anything is trained.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from experiments import grid
from phenoscale.backbones import NO_BACKBONE
from phenoscale.config import Placement, Study, Trial

BACKBONES = ("pico/8", "nano/8")
DATA_FRACTIONS = (1 / 9, 1 / 3, 1.0)
PASSES = {"mae": 40, "wsl": 24}  # about equal time: a classifier's step encodes every patch
CROPS_PER_READ = 4
MASK_RATIO = 0.5  # two thirds of the papers' 0.75: a crop has 64 patches here, not 256
LEARNING_RATE = {"mae": 8e-3, "wsl": 4e-3}  # by hand, before there was a sweep
UNTRAINED_SEEDS = (0, 1, 2)
TWIN_WORKERS = (2, 1)  # of the smallest trial under Ray Train, beside its run in place


def build_study(seed: int = 0) -> Study:
    """The grid for the screen of one seed."""
    crops = grid.SIMULATED

    def trained(
        objective: str, name: str, fraction: float, place: Placement | None = None
    ) -> Trial:
        seen = dataclasses.replace(
            crops,
            data_fraction=fraction,
            passes=PASSES[objective],
            crops_per_read=CROPS_PER_READ,
        )
        lr = LEARNING_RATE[objective]
        return grid.trained(
            objective,
            name,
            seen,
            lr=lr,
            lr_source=grid.simulated_rate_source(objective, name, lr),
            mask_ratio=MASK_RATIO,
            seed=seed,
            placement=place,
        )

    cells = [
        trained(objective, name, fraction)
        for objective in PASSES
        for name in BACKBONES
        for fraction in DATA_FRACTIONS
    ]
    twins = [
        trained("mae", BACKBONES[0], DATA_FRACTIONS[0], Placement(launcher="ray_train", workers=n))
        for n in TWIN_WORKERS
    ]
    untrained = [
        grid.baseline("untrained", name, crops, seed=s)
        for name in BACKBONES
        for s in UNTRAINED_SEEDS
    ]
    others = [grid.baseline(name, NO_BACKBONE, crops) for name in ("intensity", "oracle")]
    return Study(
        name=f"quickstart-seed{seed}",
        question=(
            "Which objective, which backbone, on how much data, finds the planted relationships?"
        ),
        trials=tuple(cells + twins + untrained + others),
    )


def main(
    seed: Annotated[int, typer.Option(help="Seed of screen and study.")] = 0,
    storage: grid.Storage = grid.STORAGE,
    tracking_uri: grid.TrackingUri = None,
    address: grid.Address = None,
    at_once: grid.AtOnce = None,
    max_gpu_hours: grid.MaxGpuHours = None,
    resume: grid.Resume = False,
    dry_run: grid.DryRun = False,
) -> None:
    """Simulates a screen, runs the study on it and writes its report."""
    study = build_study(seed)
    if dry_run:
        typer.echo(grid.simulated_bill(study, seed))
        return
    limits = grid.Limits(at_once=at_once, max_gpu_hours=max_gpu_hours, resume=resume)
    command = f"python -m experiments.quickstart --seed {seed}"
    raise typer.Exit(
        grid.run_simulated(study, seed, storage, command, tracking_uri, address, limits)
    )


if __name__ == "__main__":
    typer.run(main)
