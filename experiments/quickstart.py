"""Which objective, on how much data, finds the planted biology of a simulated screen?

Command: python -m experiments.quickstart [--seed N] [--dry-run]
Expected: masked autoencoders gain with data and beat, in recall of the planted relationships, both the same
backbone untrained and intensity statistics; the oracle of true phenotypes is near 1, chance is 0.10.

Two objectives x two backbones x three data scales, three untrained initialisations of each backbone,
intensity statistics, the oracle, and twins of one trial under Ray Train. Passes are fixed, so a trial's cost
follows its data. Read-out, alignment and baselines are fixed here, before anything is trained.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from phenoscale.backbones import NO_BACKBONE
from phenoscale.bill import ScreenSize, bill_text
from phenoscale.config import Crops, Objective, Optim, Placement, Study, Trial

BACKBONES = ("nano/16", "micro/16")
DATA_FRACTIONS = (1 / 9, 1 / 3, 1.0)
PASSES = {"mae": 24, "wsl": 16}  # about equal time: a classifier's step encodes every patch
MASK_RATIO = 0.5  # two thirds of the papers' 0.75: a 128 px crop has 64 patches, not 256
LEARNING_RATE = {"mae": 3e-3, "wsl": 2e-3}
CROP_PX = 128
GLOBAL_BATCH = 64
HELD_OUT = ("batch3/plate2",)
UNTRAINED_SEEDS = (0, 1, 2)


def build_study(seed: int = 0) -> Study:
    """The grid for the screen of one seed."""
    trained = [
        trial(objective, name, fraction, seed)
        for objective in PASSES
        for name in BACKBONES
        for fraction in DATA_FRACTIONS
    ]
    twins = [
        trial(
            "mae", BACKBONES[0], DATA_FRACTIONS[0], seed, Placement(launcher="ray_train", workers=n)
        )
        for n in (2, 1)
    ]
    baselines = [baseline("untrained", name, s) for name in BACKBONES for s in UNTRAINED_SEEDS]
    baselines += [baseline(name, NO_BACKBONE, 0) for name in ("intensity", "oracle")]
    return Study(
        name=f"quickstart-seed{seed}",
        question="Which objective, which backbone, on how much data, finds the planted relationships?",
        trials=tuple(trained + twins + baselines),
    )


def trial(
    objective: str, name: str, fraction: float, seed: int, placement: Placement = Placement()
) -> Trial:
    """One trained cell of the grid."""
    return Trial(
        objective=Objective(name=objective, mask_ratio=MASK_RATIO),
        backbone=name,
        crops=Crops(
            size_px=CROP_PX,
            data_fraction=fraction,
            passes=PASSES[objective],
            global_batch_size=GLOBAL_BATCH,
            held_out=HELD_OUT,
        ),
        optim=Optim(lr=LEARNING_RATE[objective]),
        seed=seed,
        placement=placement,
    )


def baseline(objective: str, name: str, seed: int) -> Trial:
    """One baseline: it trains nothing and goes the same way to its score."""
    return Trial(
        objective=Objective(name=objective),
        backbone=name,
        crops=Crops(size_px=CROP_PX, passes=0, held_out=HELD_OUT),
        optim=Optim(lr=1.0),
        seed=seed,
    )


def main(
    seed: Annotated[int, typer.Option(help="Seed of screen and study.")] = 0,
    storage: Annotated[Path, typer.Option(help="Folder for screens and studies.")] = Path("runs"),
    tracking_uri: Annotated[
        str | None, typer.Option(envvar="MLFLOW_TRACKING_URI", help="MLflow store or server.")
    ] = None,
    address: Annotated[
        str | None, typer.Option(envvar="RAY_ADDRESS", help="Ray cluster; local by default.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the bill and stop.")] = False,
) -> None:
    """Simulates a screen, runs the study on it and writes its report."""
    from phenoscale.screens.planted import ScreenSpec

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

    from phenoscale.on_ray.study import run_study
    from phenoscale.screens.prepare import simulated_screen
    from phenoscale.study_files import StudyFiles

    console = Console()
    screen = simulated_screen(
        spec, storage.resolve() / "screens" / f"simulated-seed{seed}", console
    )
    files = StudyFiles(
        study_dir=storage.resolve() / study.name,
        index=screen / "index.parquet",
        relationships=screen / "relationships.csv",
        latents=screen / "latents.parquet",
    )
    command = f"python -m experiments.quickstart --seed {seed}"
    raise typer.Exit(
        run_study(
            study,
            files,
            size,
            command=command,
            console=console,
            facts={"seed": seed},
            tracking_uri=tracking_uri,
            address=address,
        )
    )


if __name__ == "__main__":
    typer.run(main)
