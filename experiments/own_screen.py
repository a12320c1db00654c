"""Which objective, on how much data, does best on your own screen?

Command: python -m experiments.own_screen INDEX [--relationships FILE]
         [--reference timm:NAME=FILE] [--dry-run]
Expected: nothing yet: that is the question. A masked autoencoder or a classifier that does not beat
the untrained encoders of its own kind has learnt nothing that the score can see.

Objectives (two, unless you name others) x two data scales, three untrained initialisations of each
kind of encoder and intensity statistics. With references, encoders that were there before, it also
asks whether training on this screen is worth it. Whole plates are held out, every third one unless
you name them. With known relationships (entity1,entity2 of genes) the score is their recall, for
which every experimental batch needs negative controls; without, the balanced accuracy of a linear
probe that names the perturbation on held-out plates.
"""

from __future__ import annotations

import dataclasses
import shlex
from typing import TYPE_CHECKING, Annotated

import typer

from experiments import grid
from phenoscale.backbones import NO_BACKBONE
from phenoscale.bill import bill_text
from phenoscale.config import RANDOM_WEIGHTS, Crops, Study, Trial, untrained_of
from phenoscale.study_files import StudyFiles, located
from phenoscale.terminal import clear_errors

if TYPE_CHECKING:
    from phenoscale.screens.index import ScreenIndex

DATA_FRACTIONS = (1 / 3, 1.0)
OBJECTIVES = ("mae", "wsl")
LEARNING_RATE = {"mae": 4e-3, "ca_mae": 4e-3, "wsl": 2e-3}  # by hand, for any backbone
MASK_RATIO = 0.5
GLOBAL_BATCH = 64
HELD_OUT_EVERY = 3  # plates in the index's order
UNTRAINED_SEEDS = (0, 1, 2)


def build_study(
    name: str,
    crops: Crops,
    backbone: str,
    *,
    objectives: tuple[str, ...] = OBJECTIVES,
    recall: bool,
    every_block: bool = False,
    seed: int = 0,
    references: tuple[Trial, ...] = (),
) -> Study:
    """The grid over a screen; `crops` says which sites and how they are cut.

    `references` are baselines beside the others (`read_references`).

    Raises:
        ValueError: for an objective that this experiment has no learning rate for.
    """
    if unknown := sorted(set(objectives) - set(LEARNING_RATE)):
        raise ValueError(
            f"There are no trials here for {', '.join(unknown)}; choose among "
            f"{', '.join(LEARNING_RATE)}."
        )
    trained = [
        grid.trained(
            objective,
            backbone,
            dataclasses.replace(crops, data_fraction=fraction),
            lr=LEARNING_RATE[objective],
            mask_ratio=MASK_RATIO,
            seed=seed,
        )
        for objective in objectives
        for fraction in DATA_FRACTIONS
    ]
    blank = dataclasses.replace(crops, passes=0, crops_per_read=1)
    kinds = sorted({untrained_of(objective) for objective in objectives})
    baselines = [
        grid.baseline(kind, backbone, blank, seed=s) for kind in kinds for s in UNTRAINED_SEEDS
    ]
    baselines += [grid.baseline("intensity", NO_BACKBONE, blank), *references]
    return Study(
        name=name,
        question="Which objective, on how much data, does best on this screen?",
        trials=tuple(trained + baselines),
        every_block=every_block,
        metric="recall_0.05_0.95" if recall else "balanced_accuracy",
    )


def held_out_plates(index: ScreenIndex) -> tuple[str, ...]:
    """Every third plate, by its full name."""
    names = index.plates["experimental_batch"] + "/" + index.plates["plate"]
    return tuple(names.iloc[::HELD_OUT_EVERY])


def read_references(
    texts: list[str], crops: Crops, channels: tuple[str, ...], seed: int = 0
) -> tuple[Trial, ...]:
    """A baseline for each reference; loads it, to say which weights it has.

    Args:
        texts: timm:NAME (weights of the model hub), timm:NAME=FILE, timm:NAME=random, or a folder
            that `phenoscale export` wrote.
        crops: of the study.
        channels: of the screen.
        seed: of random weights.

    Raises:
        ValueError: if one cannot be loaded.
    """
    if not texts:
        return ()
    from phenoscale.reference import reference_trial

    return tuple(
        reference_trial(spec, crops, channels=channels, weights=weights, seed=seed)
        for spec, weights in map(split_reference, texts)
    )


def split_reference(text: str) -> tuple[str, str | None]:
    """The spec and the weights of `timm:NAME=FILE`; a folder, whatever its name, is a spec."""
    spec, _, weights = text.partition("=") if text.startswith("timm:") else (text, "", "")
    return spec, weights or None


def without_path(text: str) -> str:
    """A reference as it stands in the command of a report, which names nobody's folders."""
    spec, weights = split_reference(text)
    if not spec.startswith("timm:"):
        return "FOLDER"
    return spec if weights is None else f"{spec}={weights if weights == RANDOM_WEIGHTS else 'FILE'}"


def main(
    index: Annotated[str, typer.Argument(help="Index of the screen, a path or a URL.")],
    name: Annotated[str, typer.Option(help="Name of the study.")] = "own-screen",
    held_out: Annotated[
        list[str] | None, typer.Option(help="Plate (batch/plate) or batch; repeat for more.")
    ] = None,
    relationships: grid.Relationships = None,
    objective: Annotated[
        list[str] | None, typer.Option(help="mae, ca_mae or wsl; repeat for more.")
    ] = None,
    backbone: Annotated[str, typer.Option(help="A name in the table of backbones.")] = "micro/8",
    crop_px: Annotated[int, typer.Option(help="Side of a crop.")] = 64,
    passes: Annotated[int, typer.Option(help="Visits of every site.")] = 24,
    crops_per_read: Annotated[
        int, typer.Option(help="Of the visits, those that one reading of a site serves.")
    ] = 1,
    tolerated_bad_sites: Annotated[
        float, typer.Option(help="Share of unreadable sites to go on without.")
    ] = 0.0,
    every_block: Annotated[
        bool, typer.Option("--every-block", help="Score each block of the transformers too.")
    ] = False,
    reference: Annotated[
        list[str] | None,
        typer.Option(
            help="Encoder to beat: timm:NAME, timm:NAME=WEIGHTS_FILE, timm:NAME=random, or an "
            "exported folder; repeat for more."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the study.")] = 0,
    storage: grid.Storage = grid.STORAGE,
    tracking_uri: grid.TrackingUri = None,
    address: grid.Address = None,
    at_once: grid.AtOnce = None,
    max_gpu_hours: grid.MaxGpuHours = None,
    resume: grid.Resume = False,
    dry_run: grid.DryRun = False,
) -> None:
    """Runs the study on an indexed screen and writes its report."""
    from phenoscale.screens.index import ScreenIndex

    with clear_errors():
        screen = ScreenIndex.open(located(index))
        out = tuple(held_out) if held_out else held_out_plates(screen)
        crops = Crops(
            size_px=crop_px,
            passes=passes,
            crops_per_read=crops_per_read,
            global_batch_size=GLOBAL_BATCH,
            held_out=out,
            tolerated_bad_sites=tolerated_bad_sites,
        )
        study = build_study(
            name,
            crops,
            backbone,
            objectives=tuple(objective or OBJECTIVES),
            recall=bool(relationships),
            every_block=every_block,
            seed=seed,
            references=read_references(reference or [], crops, screen.channels, seed),
        )
        size = grid.screen_size(screen, out)
    if dry_run:
        typer.echo("\n".join(bill_text(study, size)))
        return

    files = StudyFiles.at(
        storage,
        study.name,
        index=located(index),
        relationships=grid.databases(relationships or []),
    )
    options: dict[str, list[object]] = {
        "name": [name],
        "held-out": [*(held_out or [])],
        "relationships": [*grid.without_paths(relationships or [])],
        "objective": [*(objective or [])],
        "backbone": [backbone],
        "crop-px": [crop_px],
        "passes": [passes],
        "crops-per-read": [crops_per_read],
        "tolerated-bad-sites": [tolerated_bad_sites],
        "reference": [without_path(text) for text in reference or []],
        "seed": [seed],
    }
    words = [str(w) for key, values in options.items() for v in values for w in (f"--{key}", v)]
    words += ["--every-block"] * every_block
    command = f"python -m experiments.own_screen INDEX {shlex.join(words)}"
    limits = grid.Limits(at_once=at_once, max_gpu_hours=max_gpu_hours, resume=resume)
    raise typer.Exit(grid.run(study, files, size, command, tracking_uri, address, limits))


if __name__ == "__main__":
    typer.run(main)
