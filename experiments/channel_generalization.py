"""Does a channel-agnostic encoder carry over to another laboratory's staining?

Command: python -m experiments.channel_generalization [--seed N] [--dry-run]
Expected: on the screen that they train on, CA-MAE and MAE find the planted relationships about
alike. On the other laboratory's, CA-MAE loses less than a plain MAE, which can only be given the
channels that it knows, and gains from the two brightfield channels that no encoder has seen.

The JUMP-CP question of Kraus et al. 2024. The encoders train on the quickstart's screen of six
stains. The other screen has other genes and cells (another seed), its stains stand in another order
and have other strengths, its focus is softer, and two brightfield channels stand among them. MAE
sees its six stains there, by name; CA-MAE the same six, and all eight. Training CA-MAE on random
subsets of the channels is no idea of the paper: the last of the three objectives measures it.

Read-outs: MAE by the mean of its tokens, CA-MAE by the mean of each channel's tokens, side by side
(per_channel). Both were chosen after a look at seed 0, where the mean over all channels had lost
almost everything (experiments/LOG.md); other seeds have not been looked at before.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from experiments import grid
from phenoscale.backbones import NO_BACKBONE
from phenoscale.config import Objective, Optim, Study, Trial
from phenoscale.terminal import clear_errors

if TYPE_CHECKING:
    from phenoscale.screens.simulated.planted import ScreenSpec
    from phenoscale.study_files import StudyFiles
    from phenoscale.transfer import Transfer

BACKBONE = "nano/8"
OBJECTIVES = (
    Objective(name="mae", mask_ratio=0.5),
    Objective(name="ca_mae", mask_ratio=0.5),
    Objective(name="ca_mae", mask_ratio=0.5, channel_subsets=True),
)
PASSES = 16  # of every objective, so that all see the same crops; a step of ca_mae costs six
LEARNING_RATE = 8e-3
UNTRAINED = (("untrained", 0), ("untrained", 1), ("untrained_ca", 0), ("untrained_ca", 1))
OTHER_SEED = 1000  # added to the seed for the screen of the other laboratory
OTHER_SITES_PER_WELL = 1  # eight channels take time; the wells are as many
ROUNDS = 1000


def build_study(seed: int = 0) -> Study:
    """The grid on the screen of one seed."""
    crops = grid.SIMULATED
    seen = dataclasses.replace(crops, passes=PASSES, crops_per_read=4)
    trained = [
        Trial(
            objective=objective,
            backbone=BACKBONE,
            crops=seen,
            optim=Optim(
                lr=LEARNING_RATE,
                lr_source=grid.simulated_rate_source(objective.label, BACKBONE, LEARNING_RATE),
            ),
            seed=seed,
        )
        for objective in OBJECTIVES
    ]
    baselines = [grid.baseline(name, BACKBONE, crops, seed=s) for name, s in UNTRAINED]
    others = [grid.baseline(name, NO_BACKBONE, crops) for name in ("intensity", "oracle")]
    return Study(
        name=f"channel-generalization-seed{seed}",
        question="Does a channel-agnostic encoder carry over to another laboratory's staining?",
        trials=tuple(trained + baselines + others),
    )


def other_screen(seed: int) -> ScreenSpec:
    """The other laboratory's screen."""
    from phenoscale.screens.simulated.planted import ScreenSpec

    return ScreenSpec(
        seed=seed + OTHER_SEED, condition="other_lab", sites_per_well=OTHER_SITES_PER_WELL
    )


def transfers(study: Study, encoders: Path, stains: tuple[str, ...]) -> list[Transfer]:
    """Every encoder on the other screen: on the stains that both have, and all if it takes them."""
    from phenoscale.transfer import Transfer

    cases = [
        Transfer(name="intensity-8", encoder=None),
        Transfer(name="intensity-6", encoder=None, channels=stains),
    ]
    for trial in study.trials:
        if trial.backbone == NO_BACKBONE:
            continue
        name = f"{trial.objective.label}-seed{trial.seed}"
        place = encoders / trial.id
        readout = "patch_mean"
        if trial.has_readout("per_channel"):
            readout = "per_channel"
            cases.append(Transfer(name=f"{name}-8", encoder=place, readout=readout))
        cases.append(Transfer(name=f"{name}-6", encoder=place, channels=stains, readout=readout))
    return cases


def main(
    seed: Annotated[int, typer.Option(help="Seed of screens and study.")] = 0,
    storage: grid.Storage = grid.STORAGE,
    tracking_uri: grid.TrackingUri = None,
    address: grid.Address = None,
    at_once: grid.AtOnce = None,
    max_gpu_hours: grid.MaxGpuHours = None,
    resume: grid.Resume = False,
    dry_run: grid.DryRun = False,
) -> None:
    """Trains on one screen, embeds another, and compares what is recalled there."""
    study = build_study(seed)
    if dry_run:
        typer.echo(grid.simulated_bill(study, seed))
        return
    with clear_errors():
        folder = grid.own_folder(storage, "the encoders are exported and scored on this machine")
    limits = grid.Limits(at_once=at_once, max_gpu_hours=max_gpu_hours, resume=resume)
    command = f"python -m experiments.channel_generalization --seed {seed}"
    if code := grid.run_simulated(study, seed, storage, command, tracking_uri, address, limits):
        raise typer.Exit(code)

    from phenoscale.screens.simulated.cells import CHANNELS
    from phenoscale.study_files import StudyFiles

    study_dir = folder / study.name
    other = Path(grid.prepared_screen(other_screen(seed), storage, f"other-lab-seed{seed}"))
    there = StudyFiles(
        study_dir=study_dir / "transfer",
        index=other / "index.parquet",
        relationships=(str(other / "relationships.csv"),),
    )
    score_all(study, study_dir, there, CHANNELS)


def score_all(study: Study, study_dir: Path, there: StudyFiles, stains: tuple[str, ...]) -> None:
    """Exports the encoders, scores them on the other screen, and prints what came out."""
    import os
    from concurrent.futures import ProcessPoolExecutor, as_completed
    from multiprocessing import get_context

    from phenoscale.export_trial import export_encoder
    from phenoscale.reports.report import write_report
    from phenoscale.results import write_json
    from phenoscale.terminal import progress_bar
    from phenoscale.transfer import TRANSFER_FILE, score_transfer, transfer_difference

    encoders = study_dir / "encoders"
    for trial in study.trials:
        if trial.backbone != NO_BACKBONE and not (encoders / trial.id).exists():
            export_encoder(study_dir / "trials" / trial.id, encoders / trial.id)
    cases = transfers(study, encoders, stains)
    typer.echo(f"the other laboratory's screen: {len(cases)} embeddings")
    rows = {}
    workers = min(len(cases), os.cpu_count() or 1)
    with (
        ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool,
        progress_bar("embedded") as tell,
    ):
        jobs = [pool.submit(score_transfer, case, there, ROUNDS) for case in cases]
        for done, job in enumerate(as_completed(jobs)):
            row = job.result()
            rows[row["name"]] = row
            tell(done + 1, len(cases))
            typer.echo(
                f"  {row['name']:<22}recall {row['recall']:.3f} "
                f"[{row['low']:.3f}, {row['high']:.3f}]"
            )
    seed = study.trials[0].seed
    mae, ca, subsets = (f"{o.label}-seed{seed}" for o in OBJECTIVES)
    untrained = {kind: [f"{k}-seed{s}" for k, s in UNTRAINED if k == kind] for kind, _ in UNTRAINED}
    questions = [
        (f"{ca}-8", [f"{mae}-6"]),
        (f"{ca}-6", [f"{mae}-6"]),
        (f"{ca}-8", [f"{ca}-6"]),
        (f"{subsets}-8", [f"{ca}-8"]),
        (f"{subsets}-6", [f"{ca}-6"]),
        (f"{mae}-6", [f"{name}-6" for name in untrained["untrained"]]),
        (f"{ca}-8", [f"{name}-8" for name in untrained["untrained_ca"]]),
        (f"{ca}-8", ["intensity-8"]),
        (f"{mae}-6", ["intensity-6"]),
    ]
    differences = []
    for one, others in questions:
        found = transfer_difference(one, others, there, ROUNDS)
        differences.append({"of": one, "less": others, **found})
        typer.echo(
            f"  {one} less {' and '.join(others)}: {found['value']:+.3f} "
            f"[{found['low']:+.3f}, {found['high']:+.3f}]"
        )
    path = there.study_dir / TRANSFER_FILE
    write_json(path, {"rows": [rows[case.name] for case in cases], "differences": differences})
    typer.echo(f"  table    {path}")
    typer.echo(f"  report   {write_report(study_dir)}, written again with the other screen")


if __name__ == "__main__":
    typer.run(main)
