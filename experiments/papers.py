"""What the files of the two papers share: data sets, rows, bills, and a scale for laptops.

A row is a system of the zoo on a data set. At the papers' scale its hyperparameters are theirs; on
a laptop each backbone is replaced by one that a laptop trains, and each data set by a share of a
simulated screen.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Literal

import typer

from experiments import grid
from phenoscale import flops, gpus, zoo
from phenoscale.backbones import NO_BACKBONE
from phenoscale.bill import A100_FLOPS, UTILIZATION, ScreenSize, bill, bill_text
from phenoscale.config import Crops, Optim, Placement, Study, Trial, untrained_of
from phenoscale.study_files import StudyFiles, located
from phenoscale.terminal import clear_errors

CROPS_PER_GPU = 128  # 16,384 on 128 A100s; 2,048 on the 16 of CA-MAE-S/16
HELD_OUT_EVERY = 50  # plates in the index's order; the papers do not say what they hold out


def _screen(images: int, classes: int, site_px: int, embedded: int) -> ScreenSize:
    return ScreenSize(
        wells=images,  # wells x sites is what counts: each image stands for a well of one site
        sites_per_well=1,
        total_sites=embedded,
        channels=zoo.CHANNELS,
        classes=classes,
        site_px=site_px,
    )


# Images, classes, side of a site, sites to embed. The benchmark of what is trained on RPI sets is
# RxRx3, 64 tiles of 256 px to a site. The papers round RxRx1-2M, RxRx3 and the RPI sets.
DATASETS = {
    "RxRx1": _screen(125_510, 1_139, 512, 125_510),
    "RxRx1-2M": _screen(1_700_000, 16_500, 512, 1_700_000),  # from memory; sites as in RxRx1
    "RxRx3": _screen(2_200_000, 17_063 + 1_674 + 1, 2048, 2_200_000),  # genes, compounds, control
    "RPI-52M": _screen(52_000_000, 1, 2048, 2_200_000),  # no row needs its classes
    "RPI-93M": _screen(93_000_000, 1, 2048, 2_200_000),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A system on a data set."""

    system: str
    """Name in the zoo: objective, backbone, masks and losses stand there."""
    dataset: str
    """Name in `DATASETS`."""
    passes: int
    """Epochs."""
    global_batch_size: int
    """Crops per optimizer update."""
    lr: float
    """Peak learning rate of Lion."""
    mask_ratio: float | None = None
    """Share of patches that are removed, where it is not the zoo's."""

    @property
    def entry(self) -> zoo.System:
        """The system, with this row's masks."""
        entry = next(entry for entry in zoo.ZOO if entry.name == self.system)
        if self.mask_ratio is None:
            return entry
        return dataclasses.replace(entry, mask_ratio=self.mask_ratio)

    def trial(self, held_out: tuple[str, ...] = ()) -> Trial:
        """The row at the papers' scale, on as many GPUs as its batch fills.

        `Optim` has the papers' betas (0.9, 0.95), weight decay (0.05) and warm-up (10%).
        """
        trial = self.entry.trial()
        crops = dataclasses.replace(
            trial.crops,
            passes=self.passes,
            global_batch_size=self.global_batch_size,
            held_out=held_out,
        )
        optim = dataclasses.replace(trial.optim, lr=self.lr, lr_source="paper")
        return self._placed(dataclasses.replace(trial, crops=crops, optim=optim))

    def _placed(self, trial: Trial) -> Trial:
        """A GPU for `CROPS_PER_GPU` crops; layers are computed again where all would not fit."""
        classes, workers = DATASETS[self.dataset].classes, self.global_batch_size // CROPS_PER_GPU
        for recompute in (False, True):
            place = Placement(launcher="ray_train", workers=workers, gpu=True, recompute=recompute)
            placed = dataclasses.replace(trial, placement=place)
            try:
                number, how = gpus.gpus_needed(
                    placed, zoo.CHANNELS, classes, crops_per_gpu=CROPS_PER_GPU
                )
            except ValueError:
                continue
            if number <= workers:
                place = dataclasses.replace(place, strategy=how)
                return dataclasses.replace(trial, placement=place)
        raise ValueError(f"{self.system} does not fit on {workers} GPUs; give a larger batch.")


def rows(table: Iterable[tuple[str, str, int, int, float]]) -> tuple[Row, ...]:
    """Rows of a table of system, data set, passes, global batch and rate."""
    return tuple(
        Row(system=system, dataset=dataset, passes=passes, global_batch_size=batch, lr=lr)
        for system, dataset, passes, batch, lr in table
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Paper:
    """One paper's grid."""

    name: str
    """Name of its studies and of its file."""
    question: str
    """What it asks."""
    rows: tuple[Row, ...]
    """Its models."""

    def datasets(self) -> list[str]:
        """Those that its rows train on, from small to large."""
        return [name for name in DATASETS if any(row.dataset == name for row in self.rows)]

    def study(self, dataset: str, *, recall: bool = True, held_out: tuple[str, ...] = ()) -> Study:
        """The rows of a data set, at the paper's scale."""
        return Study(
            name=f"{self.name}-{dataset.lower()}",
            question=self.question,
            trials=tuple(row.trial(held_out) for row in self.rows if row.dataset == dataset),
            metric="recall_0.05_0.95" if recall else "balanced_accuracy",
        )

    def bill(self) -> list[str]:
        """The bills of all its data sets, and its largest model against the paper's own count."""
        text = []
        for name in self.datasets():
            size = DATASETS[name]
            text += [f"{name}: {size.wells:,} images", *bill_text(self.study(name), size), ""]
        return text + largest_model()


PAPERS_CROPS, PAPERS_GPUS, PAPERS_HOURS = 3.5e9, 128, 20_000  # each "more than", of ViT-L/8+
_TF32_FLOPS = 156e12  # dense peak, NVIDIA A100 datasheet


def largest_model() -> list[str]:
    """ViT-L/8+ on RPI-93M: our operations, and what the paper's hours would make of them."""
    trial = next(entry for entry in zoo.ZOO if entry.name == "MAE-L/8+").trial()
    one = flops.training_flops(trial, zoo.CHANNELS, zoo.CLASSES, 1)
    total = one * PAPERS_CROPS
    hours = total / (A100_FLOPS * UTILIZATION) / 3600
    rate = total / (PAPERS_HOURS * 3600)
    return [
        f"MAE-L/8+ on RPI-93M, training alone: the paper's {PAPERS_CROPS / 1e9} billion crops of "
        f"{one / 1e9:,.0f} GFLOPs are {total:.3g} FLOPs.",
        f"On A100s at {UTILIZATION:.0%} of the bf16 peak: {hours:,.0f} GPU-hours.",
        f"The paper: more than {PAPERS_HOURS:,}, on {PAPERS_GPUS} A100s. {PAPERS_HOURS:,} would be "
        f"{rate / A100_FLOPS:.1%} of the bf16 peak, {rate / _TF32_FLOPS:.1%} of that of TF32.",
    ]


LAPTOP_BACKBONES = {
    "S/16": "pico/8",
    "B/16": "nano/8",
    "B/8": "nano/8",
    "L/16": "micro/8",
    "L/8": "micro/8",
    "DenseNet-161": "DenseNet-nano",
    "MU-net-M": "MU-net-nano",
    "MU-net-L": "MU-net-nano",
}
LAPTOP_CA_BACKBONE = "nano/16"  # of every size: it has six times the tokens of the others
LAPTOP_FRACTIONS = {
    "RxRx1": 1 / 9,
    "RxRx1-2M": 1 / 3,
    "RxRx3": 1 / 3,
    "RPI-52M": 2 / 3,
    "RPI-93M": 1.0,
}
LAPTOP_RATES = {"mae": 8e-3, "wsl": 4e-3, "munet": 8e-3, "ca_mae": 8e-3}  # by hand
LAPTOP_MAE_MASK = 0.5  # other objectives and rows of their own: as the papers
LAPTOP_PASSES, LAPTOP_CROPS_PER_READ = 6, 3


def laptop_study(paper: Paper, seed: int = 0) -> Study:
    """The paper's systems on the simulated screen; what the tables above make equal stands once."""
    crops = grid.SIMULATED
    trained = dict.fromkeys(_laptop_trial(row, crops, seed) for row in paper.rows)
    kinds = dict.fromkeys((untrained_of(t.objective.name), t.backbone) for t in trained)
    untrained = [grid.baseline(kind, name, crops) for kind, name in kinds]
    intensity = grid.baseline("intensity", NO_BACKBONE, crops)
    return Study(
        name=f"{paper.name}-laptop-seed{seed}",
        question=paper.question,
        trials=(*trained, *untrained, intensity),
    )


def _laptop_trial(row: Row, crops: Crops, seed: int) -> Trial:
    trial = row.entry.trial()
    objective = trial.objective
    name = LAPTOP_BACKBONES[trial.backbone]
    if row.mask_ratio is None and objective.name == "mae":
        objective = dataclasses.replace(objective, mask_ratio=LAPTOP_MAE_MASK)
    return Trial(
        objective=objective,
        backbone=LAPTOP_CA_BACKBONE if objective.name == "ca_mae" else name,
        crops=dataclasses.replace(
            crops,
            data_fraction=LAPTOP_FRACTIONS[row.dataset],
            passes=LAPTOP_PASSES,
            crops_per_read=LAPTOP_CROPS_PER_READ,
            sampling=trial.crops.sampling,
        ),
        optim=Optim(lr=LAPTOP_RATES[objective.name]),
        seed=seed,
    )


def command(paper: Paper) -> Callable[..., None]:
    """The command line of a paper's file."""

    def main(
        scale: Annotated[
            Literal["paper", "laptop"], typer.Option(help="laptop: on a simulated screen.")
        ] = "paper",
        index: Annotated[
            list[str] | None,
            typer.Option(help="DATASET=INDEX to train its rows on; repeat for more."),
        ] = None,
        relationships: grid.Relationships = None,
        seed: Annotated[int, typer.Option(help="Seed of the laptop's screen and study.")] = 0,
        storage: grid.Storage = grid.STORAGE,
        tracking_uri: grid.TrackingUri = None,
        address: grid.Address = None,
        at_once: grid.AtOnce = None,
        max_gpu_hours: grid.MaxGpuHours = None,
        resume: grid.Resume = False,
        dry_run: grid.DryRun = False,
    ) -> None:
        """Prints the bill, or trains on a laptop's screen or on the data sets that are given."""
        words = f"python -m experiments.{paper.name}"
        limits = grid.Limits(at_once=at_once, max_gpu_hours=max_gpu_hours, resume=resume)
        if scale == "laptop":
            study = laptop_study(paper, seed)
            words += f" --scale laptop --seed {seed}"
            if dry_run:
                typer.echo(grid.simulated_bill(study, seed))
                return
            code = grid.run_simulated(study, seed, storage, words, tracking_uri, address, limits)
            raise typer.Exit(code)
        with clear_errors():
            given = dict(_given(text) for text in index or [])
        if dry_run or not given:
            typer.echo("\n".join(paper.bill()))
            return

        known = grid.databases(relationships or [])
        words += "".join(f" --relationships {w}" for w in grid.without_paths(relationships or []))
        codes = []
        for name, path in given.items():
            study, size = _on_index(paper, name, path, recall=bool(known))
            files = StudyFiles.at(storage, study.name, index=path, relationships=known)
            told = f"{words} --index {name}=INDEX"
            codes.append(grid.run(study, files, size, told, tracking_uri, address, limits))
        raise typer.Exit(max(codes))

    return main


def _given(text: str) -> tuple[str, Path | str]:
    name, _, path = text.partition("=")
    if name not in DATASETS or not path:
        raise ValueError(f"--index is {text!r}; give DATASET=INDEX, of {', '.join(DATASETS)}.")
    return name, located(path)


def _on_index(
    paper: Paper, dataset: str, path: Path | str, *, recall: bool
) -> tuple[Study, ScreenSize]:
    """The rows of a data set and the counts of its index, once their bill can be paid."""
    from phenoscale.screens.index import ScreenIndex

    with clear_errors():
        screen = ScreenIndex.open(path)
        names = screen.plates["experimental_batch"] + "/" + screen.plates["plate"]
        held_out = tuple(names.iloc[::HELD_OUT_EVERY])
        study = paper.study(dataset, recall=recall, held_out=held_out)
        size = grid.screen_size(screen, held_out)
        bill(study, size)  # says what cannot run before anything does
    return study, size
