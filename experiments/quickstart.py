"""Which objective, on how much data, finds the planted biology of a simulated screen?

Command: python -m experiments.quickstart [--seed N] [--dry-run]
Expected: masked autoencoders gain with data and beat, in recall of the planted relationships, both
the same backbone untrained and intensity statistics; the oracle of true phenotypes is near 1,
chance is 0.10.

Two objectives x two backbones x three data scales, three untrained initialisations of each
backbone, intensity statistics, the oracle, and twins of one trial under Ray Train. Passes are
fixed, so a trial's cost follows its data. Read-out, alignment and baselines are fixed here, before
anything is trained.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from experiments import grid
from phenoscale.backbones import NO_BACKBONE
from phenoscale.bill import ScreenSize, bill_text
from phenoscale.config import Crops, Placement, Study, Trial

BACKBONES = ("pico/8", "nano/8")
DATA_FRACTIONS = (1 / 9, 1 / 3, 1.0)
PASSES = {"mae": 40, "wsl": 24}  # about equal time: a classifier's step encodes every patch
CROPS_PER_READ = 4
MASK_RATIO = 0.5  # two thirds of the papers' 0.75: a crop has 64 patches here, not 256
LEARNING_RATE = {"mae": 8e-3, "wsl": 4e-3}
CROP_PX = 64  # two cells wide, and patches finer than an organelle
GLOBAL_BATCH = 64
HELD_OUT = ("batch3/plate2",)
UNTRAINED_SEEDS = (0, 1, 2)
TWIN_WORKERS = (2, 1)  # of the smallest trial under Ray Train, beside its run in place


def build_study(seed: int = 0) -> Study:
    """The grid for the screen of one seed."""
    crops = Crops(size_px=CROP_PX, passes=0, global_batch_size=GLOBAL_BATCH, held_out=HELD_OUT)

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
            objective, name, seen, lr=lr, mask_ratio=MASK_RATIO, seed=seed, placement=place
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
    storage: grid.Storage = Path("runs"),
    tracking_uri: grid.TrackingUri = None,
    address: grid.Address = None,
    dry_run: grid.DryRun = False,
) -> None:
    """Simulates a screen, runs the study on it and writes its report."""
    from phenoscale.screens.simulated.planted import ScreenSpec

    spec, study = ScreenSpec(seed=seed), build_study(seed)
    plates = spec.experimental_batches * spec.plates_per_batch
    wells = spec.num_wells - len(HELD_OUT) * spec.num_wells // plates
    size = ScreenSize(
        wells=wells,
        sites_per_well=spec.sites_per_well,
        total_sites=spec.num_sites,
        channels=6,
        classes=spec.num_genes + 1,
        site_px=spec.size_px,
    )
    if dry_run:
        typer.echo("\n".join(bill_text(study, size)))
        return

    from rich.console import Console

    from phenoscale.screens.simulated.prepare import simulated_screen
    from phenoscale.study_files import StudyFiles

    folder = storage.resolve() / "screens" / f"simulated-seed{seed}"
    screen = simulated_screen(spec, folder, Console())
    files = StudyFiles(
        study_dir=storage.resolve() / study.name,
        index=screen / "index.parquet",
        relationships=screen / "relationships.csv",
        latents=screen / "latents.parquet",
    )
    command = f"python -m experiments.quickstart --seed {seed}"
    grid.run(study, files, size, command, tracking_uri, address, facts={"seed": seed})


if __name__ == "__main__":
    typer.run(main)
