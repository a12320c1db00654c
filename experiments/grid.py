"""What every experiment shares: the cells of its grid, the options of its command, its run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phenoscale.bill import ScreenSize, bill_text
from phenoscale.config import Crops, Objective, Optim, Placement, Study, Trial
from phenoscale.rates import TUNED

if TYPE_CHECKING:
    from phenoscale.screens.index import ScreenIndex
    from phenoscale.screens.simulated.planted import ScreenSpec
    from phenoscale.study_files import StudyFiles

# Of the simulated screen, without training: crops are two cells wide, and patches of 8 px finer
# than an organelle.
SIMULATED = Crops(size_px=64, passes=0, global_batch_size=64, held_out=("batch3/plate2",))
SITE_PX = 256  # side of its sites

Storage = Annotated[Path, typer.Option(help="Folder for screens and studies.")]
TrackingUri = Annotated[
    str | None, typer.Option(envvar="MLFLOW_TRACKING_URI", help="MLflow store or server.")
]
Address = Annotated[
    str | None, typer.Option(envvar="RAY_ADDRESS", help="Ray cluster; local by default.")
]
Relationships = Annotated[
    list[str] | None,
    typer.Option(
        help="entity1,entity2 table of genes that belong together, or CORUM, HuMAP, Reactome, "
        "SIGNOR, StringDB, or public for these five; repeat for more. Without any, a linear probe "
        "scores."
    ),
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
    lr_source: str = "given",
    placement: Placement | None = None,
) -> Trial:
    """One trained cell; `lr_source` is "given" unless the rate is from a sweep, rule or paper."""
    return Trial(
        objective=Objective(name=objective, mask_ratio=mask_ratio),
        backbone=backbone,
        crops=crops,
        optim=Optim(lr=lr, lr_source=lr_source),
        seed=seed,
        placement=placement or Placement(),
    )


def simulated_rate_source(objective: str, backbone: str, lr: float) -> str:
    """Of a rate on the simulated screen: "tuned" where the sweep of that size agrees, else "given".

    It agrees within half of its step, a factor of the square root of 2, of the best rate that it
    bracketed (learning_rate.py). The length of the training is not compared.
    """
    for row in TUNED.get(objective, ()):
        same = (row.backbone, row.global_batch_size) == (backbone, SIMULATED.global_batch_size)
        if same and abs(math.log2(lr / row.lr)) <= 0.5:
            return "tuned"
    return "given"


def baseline(objective: str, backbone: str, crops: Crops, *, seed: int = 0) -> Trial:
    """One baseline: it trains nothing (`crops.passes` is 0) and goes the same way to its score."""
    return Trial(
        objective=Objective(name=objective),
        backbone=backbone,
        crops=crops,
        optim=Optim(lr=1.0),
        seed=seed,
    )


def databases(given: Sequence[str]) -> tuple[str, ...]:
    """Known relationships as a study reads them: paths, absolute, and names of public databases."""
    from phenoscale.maps.relationships import PUBLIC_DATABASES

    public = {"public": PUBLIC_DATABASES} | {name: (name,) for name in PUBLIC_DATABASES}
    return tuple(one for text in given for one in public.get(text, (str(Path(text).resolve()),)))


def without_paths(given: Sequence[str]) -> list[str]:
    """The same as they stand in the command of a report, which names nobody's folders."""
    return ["FILE" if Path(one).is_absolute() else one for one in databases(given)]


def screen_size(index: ScreenIndex, held_out: tuple[str, ...]) -> ScreenSize:
    """Counts of an indexed screen, for the bill."""
    from phenoscale.screens.subset import Subset

    sites = index.sites(0)
    training = Subset.of(index, held_out=held_out)
    wells = training.num_wells()
    return ScreenSize(
        wells=wells,
        sites_per_well=len(training) / wells,
        total_sites=index.num_sites,
        channels=len(index.channels),
        classes=index.num_classes,
        site_px=int(min(sites.height_px.min(), sites.width_px.min())),
    )


def simulated_size(spec: ScreenSpec) -> ScreenSize:
    """Counts of a simulated screen of which `SIMULATED` holds plates out."""
    plates = spec.experimental_batches * spec.plates_per_batch
    return ScreenSize(
        wells=spec.num_wells - len(SIMULATED.held_out) * spec.num_wells // plates,
        sites_per_well=spec.sites_per_well,
        total_sites=spec.num_sites,
        channels=len(spec.channels),
        classes=spec.num_genes + 1,
        site_px=spec.size_px,
    )


def run_simulated(
    study: Study,
    seed: int,
    storage: Path,
    command: str,
    tracking_uri: str | None,
    address: str | None,
    site_px: int = SITE_PX,
) -> int:
    """Simulates the screen of a seed, or finds it in `storage`, and runs a study on it.

    Returns:
        Its exit code.
    """
    from rich.console import Console

    from phenoscale.screens.simulated.planted import ScreenSpec
    from phenoscale.screens.simulated.prepare import simulated_screen
    from phenoscale.study_files import StudyFiles

    spec = ScreenSpec(seed=seed, size_px=site_px)
    name = f"simulated-seed{seed}" + ("" if site_px == SITE_PX else f"-{site_px}px")
    screen = simulated_screen(spec, storage.resolve() / "screens" / name, Console())
    files = StudyFiles(
        study_dir=storage.resolve() / study.name,
        index=screen / "index.parquet",
        relationships=tuple(str(screen / f"{name}.csv") for name in ("complexes", "opposed")),
        latents=screen / "latents.parquet",
    )
    size, facts = simulated_size(spec), {"seed": seed}
    return run(study, files, size, command, tracking_uri, address, facts)


def simulated_bill(study: Study, seed: int, site_px: int = SITE_PX) -> str:
    """What a study on the simulated screen of a seed costs."""
    from phenoscale.screens.simulated.planted import ScreenSpec

    return "\n".join(bill_text(study, simulated_size(ScreenSpec(seed=seed, size_px=site_px))))


def run(
    study: Study,
    files: StudyFiles,
    size: ScreenSize,
    command: str,
    tracking_uri: str | None,
    address: str | None,
    facts: dict[str, Any] | None = None,
) -> int:
    """Runs a study in this terminal and returns its exit code; `facts` go into its report."""
    from rich.console import Console

    from phenoscale.on_ray.study import run_study

    return run_study(
        study,
        files,
        size,
        command=command,
        console=Console(),
        tracking_uri=tracking_uri,
        address=address,
        facts=facts,
    )
