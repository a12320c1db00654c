"""The papers' grids: every row builds and fits, the bill is quick, the laptop's study is small."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
import typer
from typer.testing import CliRunner

from experiments import cvpr2024, grid, neurips2023, papers, quickstart
from experiments.papers import CROPS_PER_GPU, DATASETS, LAPTOP_FRACTIONS, Paper, Row, laptop_study
from phenoscale import flops, gpus, zoo
from phenoscale.backbones import DENSENETS
from phenoscale.bill import ScreenSize, bill
from phenoscale.config import Study
from phenoscale.crops import Plan
from phenoscale.models.build import build_encoder, build_model
from phenoscale.screens.index_format import well_hashes
from phenoscale.screens.simulated.planted import ScreenSpec, design_screen, lay_out_wells
from tests.test_cli import loaded_after

PAPERS = (neurips2023.PAPER, cvpr2024.PAPER)
ROWS = {
    f"{paper.name} {row.system} {row.dataset} {row.mask_ratio or ''}": row
    for paper in PAPERS
    for row in paper.rows
}
NAMES = tuple(f"channel {i}" for i in range(zoo.CHANNELS))


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_a_row_has_the_papers_hyperparameters_and_fits_on_its_gpus(row: Row):
    trial, size = row.trial(), DATASETS[row.dataset]
    optim = trial.optim
    assert (optim.name, optim.betas, optim.weight_decay) == ("lion", (0.9, 0.95), 0.05)
    assert optim.lr == (3e-5 if trial.backbone.startswith("L/") else 1e-4)
    assert (optim.warmup_fraction, optim.lr_source) == (0.1, "paper")
    assert trial.crops.size_px == 256
    assert 38 <= trial.crops.passes <= 100 and 2048 <= trial.crops.global_batch_size <= 16_384
    assert trial.objective.mask_ratio == row.entry.mask_ratio
    assert (trial.crops.sampling == "plate_wise") == (trial.backbone in DENSENETS)
    place = trial.placement
    assert place.gpu and place.workers * CROPS_PER_GPU == trial.crops.global_batch_size
    needed = gpus.gpu_bytes(
        trial,
        size.channels,
        size.classes,
        crops=CROPS_PER_GPU,
        gpus=place.workers,
        strategy=place.strategy,
    )
    assert needed <= gpus.GPU_BYTES * (1 - gpus.RESERVE)
    if trial.objective.name == "wsl":
        assert size.classes > 1


@pytest.mark.parametrize("paper", PAPERS, ids=lambda paper: paper.name)
def test_every_system_of_a_paper_builds(paper: Paper):
    for row in {row.system: row for row in paper.rows}.values():
        with torch.device("meta"):
            build_model(row.trial(), channels=NAMES, num_classes=DATASETS[row.dataset].classes)


def test_the_largest_model_sees_the_papers_crops_on_its_gpus():
    for paper in PAPERS:
        study = paper.study("RPI-93M")
        line = next(
            line
            for line in bill(study, DATASETS["RPI-93M"])
            if (line.trial.objective.label, line.trial.backbone) == ("mae+", "L/8")
        )
        assert 3.5e9 < line.crops < 3.6e9
        assert line.trial.placement.workers == 128
        assert line.tiles == 2_200_000 * 64


def cpu_s_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize("paper", PAPERS, ids=lambda paper: paper.name)
def test_the_bill_is_quick_and_needs_neither_torch_nor_ray(paper: Paper):
    before = cpu_s_of_children()
    text, loaded = loaded_after(
        f'runpy.run_module("experiments.{paper.name}", run_name="__main__")', "--dry-run"
    )
    assert cpu_s_of_children() - before < 2
    assert not loaded & {"torch", "timm", "ray", "mlflow", "pandas", "pyarrow"}
    for name in paper.datasets():
        assert f"{name}: {DATASETS[name].wells:,} images" in text
    for row in paper.rows:
        assert row.trial().id in text
    one, hours, papers_own = text.strip().splitlines()[-3:]
    assert "3.5 billion crops" in one and "40% of the bf16 peak" in hours
    assert "more than 20,000, on 128 A100s" in papers_own


def test_the_hours_of_the_largest_model_by_hand():
    trial = next(system for system in zoo.ZOO if system.name == "MAE-L/8+").trial()
    total = 3.5e9 * 3 * flops.forward_flops(trial, 6, 50)
    _, hours, papers_own = papers.largest_model()
    assert f"{total / (312e12 * 0.4) / 3600:,.0f} GPU-hours" in hours
    assert f"{total / (312e12 * 20_000 * 3600):.1%} of the bf16 peak" in papers_own


def laptop_studies() -> list[Study]:
    return [laptop_study(paper, seed) for paper in PAPERS for seed in (0, 3)]


@pytest.mark.parametrize("study", laptop_studies(), ids=lambda study: study.name)
def test_the_laptops_study_is_the_papers_and_small(study: Study):
    paper = next(paper for paper in PAPERS if study.name.startswith(paper.name))
    trained = [trial for trial in study.trials if not trial.is_baseline]
    assert len(trained) <= len(paper.rows)
    assert {t.objective.label for t in trained} == {
        row.entry.trial().objective.label for row in paper.rows
    }
    assert {t.crops.data_fraction for t in trained} == {
        LAPTOP_FRACTIONS[name] for name in paper.datasets()
    }
    kinds = {
        ("untrained_ca" if t.objective.name == "ca_mae" else "untrained", t.backbone)
        for t in trained
    }
    baselines = {(t.objective.name, t.backbone) for t in study.trials if t.is_baseline}
    assert baselines == kinds | {("intensity", "none")}
    # As many operations as the quickstart's, whose ten minutes on two cores are measured.
    size = simulated_size()
    ours, its = (
        sum(sum(line.cost) for line in bill(s, size)) for s in (study, quickstart.build_study())
    )
    assert ours < its
    for trial in study.trials:
        if trial.is_baseline and trial.backbone != "none":
            build_encoder(trial, channels=NAMES)
        elif not trial.is_baseline:
            build_model(trial, channels=NAMES, num_classes=size.classes)


def simulated_size() -> ScreenSize:
    """The counts that the laptop's bill is made from."""
    return grid.simulated_size(ScreenSpec(seed=0))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_plate_of_the_smallest_share_holds_enough_sites_for_adabn(seed: int):
    spec = ScreenSpec(seed=seed)
    wells = lay_out_wells(spec, design_screen(spec))
    plates = wells["experimental_batch"] + "/" + wells["plate"]
    wells = wells[~plates.isin(grid.SIMULATED.held_out)]
    names = ["experimental_batch", "plate", "well"]
    columns = {name: pa.array(wells[name].tolist(), pa.string()) for name in names}
    hashes = np.asarray(well_hashes(pa.table(columns)))
    kept = int(min(LAPTOP_FRACTIONS.values()) * len(wells) + 0.5)
    chosen = wells[hashes <= np.sort(hashes)[kept - 1]]
    sizes = chosen.groupby(["experimental_batch", "plate"]).size().to_numpy()
    for paper in PAPERS:
        for trial in laptop_study(paper, seed).trials:
            if trial.backbone in DENSENETS and not trial.is_baseline:
                plan = Plan.of(
                    trial.crops, fingerprint="x", seed=0, group_sizes=sizes * spec.sites_per_well
                )
                assert plan.steps > 0


def test_what_the_tables_make_equal_stands_once():
    rows = cvpr2024.PAPER.rows
    twice = Paper(name="twice", question="?", rows=(*rows, *rows))
    assert laptop_study(twice).trials == laptop_study(cvpr2024.PAPER).trials


@pytest.mark.parametrize("text", ["RxRx9=index.parquet", "RxRx1", "RxRx1="])
def test_an_unknown_data_set_is_refused_in_one_line(text: str):
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(papers.command(cvpr2024.PAPER))
    result = CliRunner().invoke(app, ["--index", text])
    assert result.exit_code == 2
    assert "give DATASET=INDEX" in result.stderr


def test_an_index_runs_the_rows_of_its_data_set(tiny_screen: Path, tmp_path: Path, monkeypatch):
    caught = []
    monkeypatch.setattr(grid, "run", lambda *args, **kw: caught.append(args) or 0)
    monkeypatch.setattr(papers, "bill", lambda study, size: [])  # the tiny screen holds no crop
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(papers.command(cvpr2024.PAPER))
    index = tiny_screen / "index.parquet"
    result = CliRunner().invoke(
        app, ["--index", f"RxRx1={index}", "--storage", str(tmp_path)], catch_exceptions=False
    )
    assert result.exit_code == 0
    ((study, files, size, command, *_),) = caught
    assert study.name == "cvpr2024-rxrx1" and study.metric == "balanced_accuracy"
    assert {t.objective.name for t in study.trials} == {"wsl"}
    assert all(t.crops.held_out == ("batch1/plate1",) for t in study.trials)
    assert files.index == index.resolve() and size.channels == 6
    assert command == "python -m experiments.cvpr2024 --index RxRx1=INDEX"


def test_an_index_whose_sites_hold_no_crop_is_refused_before_anything_runs(tiny_screen: Path):
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(papers.command(neurips2023.PAPER))
    result = CliRunner().invoke(app, ["--index", f"RxRx1={tiny_screen / 'index.parquet'}"])
    assert result.exit_code == 2
    assert "crops of 256 px from sites of 64 px" in result.stderr
