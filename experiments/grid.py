"""What every experiment shares: the cells of its grid, the options of its command, its run."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phenoscale.bill import ScreenSize, bill_text
from phenoscale.config import Crops, Objective, Optim, Placement, Study, Trial
from phenoscale.rates import TUNED
from phenoscale.study_files import StudyFiles, in_folder, located, working_copy
from phenoscale.terminal import clear_errors

if TYPE_CHECKING:
    from phenoscale.screens.index import ScreenIndex
    from phenoscale.screens.simulated.planted import ScreenSpec
# Of the simulated screen, without training: crops are two cells wide, and patches of 8 px finer
# than an organelle.
SIMULATED = Crops(size_px=64, passes=0, global_batch_size=64, held_out=("batch3/plate2",))
SITE_PX = 256  # side of its sites

Storage = Annotated[str, typer.Option(help="Folder for screens and studies, or a URL of one.")]
STORAGE = "runs"
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
AtOnce = Annotated[
    int | None,
    typer.Option(min=1, help="Most trials at a time; by default as many as there is room for."),
]
MaxGpuHours = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        help="Start no trial that would take the study beyond these GPU-hours, earlier runs and "
        "baselines included. A worker without a GPU counts as one: worker-hours.",
    ),
]
Resume = Annotated[
    bool,
    typer.Option("--resume", help="Go on with a study in this storage, or say that there is none."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the bill and stop.")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """How far a run of a study may go."""

    at_once: int | None = None
    """Most trials at a time; None for as many as there is room for."""
    max_gpu_hours: float | None = None
    """GPU-hours beyond which no trial starts; None for no limit."""
    resume: bool = False
    """Whether there must be a study to go on with."""


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
    """Known relationships as a study reads them: absolute paths, URLs, names of databases."""
    from phenoscale.maps.relationships import PUBLIC_DATABASES

    public = {"public": PUBLIC_DATABASES} | {name: (name,) for name in PUBLIC_DATABASES}
    return tuple(one for text in given for one in public.get(text, (str(located(text)),)))


def without_paths(given: Sequence[str]) -> list[str]:
    """The same as they stand in the command of a report, which names nobody's folders."""
    from phenoscale.maps.relationships import PUBLIC_DATABASES

    return [one if one in PUBLIC_DATABASES else "FILE" for one in databases(given)]


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
    storage: str,
    command: str,
    tracking_uri: str | None,
    address: str | None,
    limits: Limits = Limits(),
    site_px: int = SITE_PX,
) -> int:
    """Simulates the screen of a seed, or finds it in `storage`, and runs a study on it.

    Returns:
        Its exit code.
    """
    from phenoscale.on_ray.job import check_lasting
    from phenoscale.screens.simulated.planted import ScreenSpec

    spec = ScreenSpec(seed=seed, size_px=site_px)
    name = f"simulated-seed{seed}" + ("" if site_px == SITE_PX else f"-{site_px}px")
    with clear_errors():
        check_lasting(storage)  # this and the next before minutes go into a screen
        if limits.resume:
            _check_begun(StudyFiles.at(storage, study.name, index=""))
        screen = prepared_screen(spec, storage, name)
    files = StudyFiles.at(
        storage,
        study.name,
        index=located(in_folder(screen, "index.parquet")),
        relationships=tuple(in_folder(screen, f"{one}.csv") for one in ("complexes", "opposed")),
        latents=located(in_folder(screen, "latents.parquet")),
    )
    size, facts = simulated_size(spec), {"seed": seed}
    return run(study, files, size, command, tracking_uri, address, limits, facts)


def _check_begun(files: StudyFiles) -> None:
    from phenoscale.description import check_resumable
    from phenoscale.study_storage import pull_study

    pull_study(files)
    check_resumable(files)


def prepared_screen(spec: ScreenSpec, storage: str, name: str) -> str:
    """Simulates a screen into `storage`, or finds it there; its folder or URL."""
    from rich.console import Console

    from phenoscale.screens.simulated.prepare import simulated_screen, uploaded_screen

    screen = in_folder(str(located(storage)), f"screens/{name}")
    if "://" in screen:
        uploaded_screen(spec, screen, working_copy(screen, "screens"), Console())
    else:
        simulated_screen(spec, Path(screen), Console())
    return screen


def own_folder(storage: str, why: str) -> Path:
    """A folder that studies are written to, where a URL will not do.

    Raises:
        ValueError: for a URL.
    """
    place = located(storage)
    if isinstance(place, str):
        raise ValueError(f"--storage is a URL, but {why}. Give a folder that all nodes see.")
    return place


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
    limits: Limits = Limits(),
    facts: dict[str, Any] | None = None,
) -> int:
    """Runs a study in this terminal and returns its exit code; `facts` go into its report."""
    from rich.console import Console

    from phenoscale.on_ray.job import check_lasting
    from phenoscale.on_ray.study import run_study

    with clear_errors():  # a cluster without room, a study that is not there: one line each
        check_lasting(files.storage or str(files.study_dir))
        return run_study(
            study,
            files,
            size,
            command=command,
            console=Console(),
            tracking_uri=tracking_uri,
            address=address,
            facts=facts,
            **dataclasses.asdict(limits),
        )
