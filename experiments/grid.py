"""What every experiment shares: the cells of its grid, the options of its command, its run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from phenoscale.bill import ScreenSize
from phenoscale.config import Crops, Objective, Optim, Placement, Study, Trial

if TYPE_CHECKING:
    from phenoscale.study_files import StudyFiles

Storage = Annotated[Path, typer.Option(help="Folder for screens and studies.")]
TrackingUri = Annotated[
    str | None, typer.Option(envvar="MLFLOW_TRACKING_URI", help="MLflow store or server.")
]
Address = Annotated[
    str | None, typer.Option(envvar="RAY_ADDRESS", help="Ray cluster; local by default.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the bill and stop.")]


def trained(
    objective: str,
    backbone: str,
    crops: Crops,
    *,
    lr: float,
    mask_ratio: float,
    seed: int,
    placement: Placement | None = None,
) -> Trial:
    """One trained cell."""
    return Trial(
        objective=Objective(name=objective, mask_ratio=mask_ratio),
        backbone=backbone,
        crops=crops,
        optim=Optim(lr=lr),
        seed=seed,
        placement=placement or Placement(),
    )


def baseline(objective: str, backbone: str, crops: Crops, *, seed: int = 0) -> Trial:
    """One baseline: it trains nothing (`crops.passes` is 0) and goes the same way to its score."""
    return Trial(
        objective=Objective(name=objective),
        backbone=backbone,
        crops=crops,
        optim=Optim(lr=1.0),
        seed=seed,
    )


def run(
    study: Study,
    files: StudyFiles,
    size: ScreenSize,
    command: str,
    tracking_uri: str | None,
    address: str | None,
    facts: dict[str, Any] | None = None,
) -> NoReturn:
    """Runs a study in this terminal and exits with its code; `facts` go into its report."""
    from rich.console import Console

    from phenoscale.on_ray.study import run_study

    code = run_study(
        study,
        files,
        size,
        command=command,
        console=Console(),
        tracking_uri=tracking_uri,
        address=address,
        facts=facts,
    )
    raise typer.Exit(code)
