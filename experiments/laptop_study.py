"""How does recall of planted biology grow with backbone, data and compute, beyond run noise?

Command: python -m experiments.laptop_study [--seed N] [--seeds N] [--dry-run]
Expected: recall of both objectives rises with data; the masked autoencoder's more steeply with
compute than the classifier's, as the papers found on far more. Twelve configurations of each,
three seeds: enough for fits with intervals, for run noise, and for a back-test.

Two objectives x three backbones x four data scales x seeds, on the quickstart's screen, with half
as many passes more, and a crop to each reading of a site, since crops of one reading stand close
together and hold classifiers back. Rates of mae are those of the sweep of each size; of wsl no rate
was bracketed, so what compares the two says so. An hour on two cores.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from experiments import grid
from phenoscale.backbones import NO_BACKBONE
from phenoscale.config import Study, Trial
from phenoscale.rates import TUNED, optim_for

BACKBONES = ("pico/8", "nano/8", "micro/8")
DATA_FRACTIONS = (1 / 27, 1 / 9, 1 / 3, 1.0)
PASSES = {"mae": 60, "wsl": 36}  # about equal time: a classifier's step encodes every patch
MASK_RATIO = 0.5
GIVEN_RATE = 4e-3  # of wsl, for every size
NUM_SEEDS = 3
UNTRAINED_SEEDS = (0, 1, 2)


def build_study(seed: int = 0, num_seeds: int = NUM_SEEDS) -> Study:
    """The grid for the screen of one seed; trials have the seeds 0 to `num_seeds` - 1."""
    cells = [
        _trained(objective, backbone, fraction, trial_seed)
        for objective in PASSES
        for backbone in BACKBONES
        for fraction in DATA_FRACTIONS
        for trial_seed in range(num_seeds)
    ]
    untrained = [
        grid.baseline("untrained", backbone, grid.SIMULATED, seed=trial_seed)
        for backbone in BACKBONES
        for trial_seed in UNTRAINED_SEEDS
    ]
    others = [grid.baseline(name, NO_BACKBONE, grid.SIMULATED) for name in ("intensity", "oracle")]
    return Study(
        name=f"laptop-seed{seed}",
        question="How does recall grow with backbone, data and compute, and what is next?",
        trials=tuple(cells + untrained + others),
    )


def _trained(objective: str, backbone: str, fraction: float, seed: int) -> Trial:
    crops = dataclasses.replace(grid.SIMULATED, data_fraction=fraction, passes=PASSES[objective])
    lr, lr_source = GIVEN_RATE, "given"
    if objective in TUNED:
        optim = optim_for(objective, backbone, crops.global_batch_size)
        lr, lr_source = optim.lr, optim.lr_source
    return grid.trained(
        objective,
        backbone,
        crops,
        lr=lr,
        lr_source=lr_source,
        mask_ratio=MASK_RATIO,
        seed=seed,
    )


def main(
    seed: Annotated[int, typer.Option(help="Seed of the screen.")] = 0,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of each configuration.")] = NUM_SEEDS,
    storage: grid.Storage = grid.STORAGE,
    tracking_uri: grid.TrackingUri = None,
    address: grid.Address = None,
    at_once: grid.AtOnce = None,
    max_gpu_hours: grid.MaxGpuHours = None,
    resume: grid.Resume = False,
    dry_run: grid.DryRun = False,
) -> None:
    """Simulates the screen, runs the study on it and writes its report."""
    study = build_study(seed, seeds)
    if dry_run:
        typer.echo(grid.simulated_bill(study, seed))
        return
    limits = grid.Limits(at_once=at_once, max_gpu_hours=max_gpu_hours, resume=resume)
    command = f"python -m experiments.laptop_study --seed {seed} --seeds {seeds}"
    raise typer.Exit(
        grid.run_simulated(study, seed, storage, command, tracking_uri, address, limits)
    )


if __name__ == "__main__":
    typer.run(main)
