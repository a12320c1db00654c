"""Does training on real nuclei beat the same two baselines, and does it gain with data?

Command: python -m experiments.real_images DATA [--dry-run]     (DATA holds mitocheck_nuclei/)
Expected: on plates that nothing was fitted on, a linear probe tells the 16 phenotype classes apart
better from trained than from untrained encoders; a classifier that trains on the very labels leads
at this size.

Images: 2,211 nuclei of the MitoCheck RNAi screen (HeLa, H2B-GFP; Neumann et al. 2010), 64 x 64 px,
labelled by experts, 45 plates. A class depends on its plate and cells of one movie resemble each
other, so whole plates are held out: from training, from the probe's fit, and as units of the
bootstrap. The expert's class stands in for the perturbation that WSL classifies.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from experiments import grid
from phenoscale.backbones import NO_BACKBONE
from phenoscale.bill import ScreenSize, bill_text
from phenoscale.config import Crops, Study
from phenoscale.terminal import clear_errors

BACKBONE = "micro/8"
DATA_FRACTIONS = (1 / 3, 1.0)
PASSES = {"mae": 48, "wsl": 24}
LEARNING_RATE = {"mae": 4e-3, "wsl": 2e-3}  # by hand; no sweep on these images
MASK_RATIO = 0.5
CROP_PX = 64  # the whole image; flips and quarter turns remain
GLOBAL_BATCH = 64
HELD_OUT_EVERY = 3  # plates in sorted order: every third is held out
UNTRAINED_SEEDS = (0, 1, 2)
FOLDER = "mitocheck_nuclei"
ARTEFACT = "OutOfFocus"  # a class of images, not of cells; it stays, as its experts kept it


def build_study(seed: int, held_out: tuple[str, ...]) -> Study:
    """The grid for the plates that are held out."""
    crops = Crops(size_px=CROP_PX, passes=0, global_batch_size=GLOBAL_BATCH, held_out=held_out)
    trained = [
        grid.trained(
            objective,
            BACKBONE,
            dataclasses.replace(crops, data_fraction=fraction, passes=PASSES[objective]),
            lr=LEARNING_RATE[objective],
            mask_ratio=MASK_RATIO,
            seed=seed,
        )
        for objective in PASSES
        for fraction in DATA_FRACTIONS
    ]
    baselines = [grid.baseline("untrained", BACKBONE, crops, seed=s) for s in UNTRAINED_SEEDS]
    baselines.append(grid.baseline("intensity", NO_BACKBONE, crops))
    return Study(
        name=f"real-images-seed{seed}",
        question="Does training on real nuclei beat untrained encoders and intensity statistics?",
        trials=tuple(trained + baselines),
        metric="balanced_accuracy",
    )


def held_out_plates(plates: list[str]) -> tuple[str, ...]:
    """Every third plate, by its full name."""
    return tuple(sorted(plates)[::HELD_OUT_EVERY])


def read_cells(data: Path) -> list[dict[str, str]]:
    """Rows of the data set's cells.csv.

    Raises:
        ValueError: if the images are not there; the message says what to do.
    """
    import csv

    path = data / FOLDER / "cells.csv"
    if not path.is_file():
        raise ValueError(
            f"{path} is not there. This experiment needs the MitoCheck single-cell sample "
            "(2,211 labelled nuclei, CC BY 4.0; in the public repository "
            "WayScience/phenotypic_profiling, folder 6.single_cell_images) with a table "
            "cells.csv of path, label, plate, well_index. "
            f"Give the folder that holds {FOLDER}/ as the argument."
        )
    with path.open(newline="") as lines:
        return list(csv.DictReader(lines))


def write_index(cells: list[dict[str, str]], data: Path, out: Path) -> Path:
    """Indexes the nuclei in place: wells by spot, the expert's class as perturbation."""
    import pyarrow as pa

    from phenoscale.screens.build import build_index
    from phenoscale.screens.layouts.manifest import MANIFEST_SCHEMA, check_manifest

    counts: dict[tuple[str, str], int] = {}
    rows = []
    for cell in cells:
        spot = (cell["plate"], cell["well_index"])
        counts[spot] = counts.get(spot, 0) + 1
        rows.append(
            {
                "site_id": cell["path"],
                "experimental_batch": "mitocheck",
                "plate": cell["plate"],
                "well": f"spot{cell['well_index']}",
                "site": counts[spot],
                "perturbation": cell["label"],
                "perturbation_type": "none",
                "negative_control": False,
                "cell_type": "HeLa",
                "paths": [cell["path"]],
                "channels": ["DNA"],
            }
        )
    table = check_manifest(pa.Table.from_pylist(rows, schema=MANIFEST_SCHEMA), source="cells.csv")
    out.parent.mkdir(parents=True, exist_ok=True)
    build_index(table, data / FOLDER, out, require_controls=False)
    return out


def main(
    data: Annotated[Path, typer.Argument(help=f"Folder that holds {FOLDER}/.")],
    seed: Annotated[int, typer.Option(help="Seed of the study.")] = 0,
    storage: grid.Storage = grid.STORAGE,
    tracking_uri: grid.TrackingUri = None,
    address: grid.Address = None,
    at_once: grid.AtOnce = None,
    max_gpu_hours: grid.MaxGpuHours = None,
    resume: grid.Resume = False,
    dry_run: grid.DryRun = False,
) -> None:
    """Indexes the nuclei, runs the study on them and writes its report."""
    with clear_errors():
        folder = grid.own_folder(storage, "the images and their index lie on this machine")
        cells = read_cells(data)
    held_out = held_out_plates(list({f"mitocheck/{cell['plate']}" for cell in cells}))
    study = build_study(seed, held_out)
    training = [cell for cell in cells if f"mitocheck/{cell['plate']}" not in held_out]
    wells = len({(cell["plate"], cell["well_index"]) for cell in training})
    size = ScreenSize(
        wells=wells,
        sites_per_well=len(training) / wells,
        total_sites=len(cells),
        channels=1,
        classes=len({cell["label"] for cell in cells}),
        site_px=CROP_PX,
    )
    if dry_run:
        typer.echo("\n".join(bill_text(study, size)))
        return

    from phenoscale.study_files import StudyFiles

    study_dir = folder / study.name
    index = write_index(cells, data.resolve(), study_dir / "index.parquet")
    files = StudyFiles(study_dir=study_dir, index=index)
    limits = grid.Limits(at_once=at_once, max_gpu_hours=max_gpu_hours, resume=resume)
    command = f"python -m experiments.real_images DATA --seed {seed}"
    raise typer.Exit(grid.run(study, files, size, command, tracking_uri, address, limits))


if __name__ == "__main__":
    typer.run(main)
