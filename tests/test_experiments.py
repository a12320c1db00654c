"""Experiments: their grids, and the real images' index and split."""

import inspect

import numpy as np
import pytest
from typer import Typer
from typer.testing import CliRunner

from experiments import (
    channel_generalization,
    cvpr2024,
    grid,
    laptop_study,
    learning_rate,
    own_screen,
    papers,
    quickstart,
    real_images,
)
from phenoscale.config import num_steps
from phenoscale.rates import TUNED, TunedRate


def test_the_quickstart_is_the_grid_that_it_says():
    study = quickstart.build_study(seed=5)
    trained = [t for t in study.trials if not t.is_baseline and t.placement.launcher == "in_place"]
    cells = {(t.objective.name, t.backbone, t.crops.data_fraction) for t in trained}
    assert len(cells) == len(trained) == 2 * 2 * 3
    assert {t.seed for t in trained} == {5}
    for name in quickstart.BACKBONES:
        untrained = [
            t for t in study.trials if (t.objective.name, t.backbone) == ("untrained", name)
        ]
        assert len({t.seed for t in untrained}) == 3
    assert {"intensity", "oracle"} <= {t.objective.name for t in study.trials}


def test_the_quickstart_has_twins_beside_a_trial_in_place():
    trials = quickstart.build_study().trials
    twins = [t for t in trials if t.placement.launcher == "ray_train"]
    assert sorted(t.placement.workers for t in twins) == [1, 2]
    for twin in twins:
        assert twin.id.rpartition("-")[0] in {t.id for t in trials}


def test_cost_follows_the_data_since_passes_are_fixed():
    steps = {
        t.crops.data_fraction: num_steps(t.crops, round(t.crops.data_fraction * 2720))
        for t in quickstart.build_study().trials
        if t.objective.name == "mae"
    }
    small, _, whole = (steps[f] for f in quickstart.DATA_FRACTIONS)
    assert whole / small == pytest.approx(9, rel=0.02)


def test_the_laptop_study_has_seeds_of_twelve_configurations_of_each_objective():
    study = laptop_study.build_study(seed=5, num_seeds=3)
    trained = [trial for trial in study.trials if not trial.is_baseline]
    cells = {(t.objective.name, t.backbone, t.crops.data_fraction) for t in trained}
    assert len(cells) == 2 * 12
    assert len(trained) == 3 * len(cells)
    sources = {(t.objective.name, t.optim.lr_source) for t in trained}
    assert sources == {("mae", "tuned"), ("wsl", "given")}


def test_a_rate_is_tuned_where_the_sweep_of_its_size_agrees(monkeypatch):
    rows = (
        TunedRate(lr=8e-3 * 2**0.4, backbone="nano/8", global_batch_size=64),
        TunedRate(lr=8e-3 * 2**0.6, backbone="pico/8", global_batch_size=64),
    )
    monkeypatch.setitem(TUNED, "mae", rows)
    monkeypatch.delitem(TUNED, "wsl", raising=False)
    sources = {
        (t.objective.name, t.backbone): t.optim.lr_source
        for t in quickstart.build_study().trials
        if not t.is_baseline
    }
    assert sources.pop(("mae", "nano/8")) == "tuned"
    assert set(sources.values()) == {"given"} and len(sources) == 3
    others = channel_generalization.build_study().trials
    found = [(t.objective.label, t.optim.lr_source) for t in others if not t.is_baseline]
    assert found == [("mae", "tuned"), ("ca_mae", "given"), ("ca_mae~", "given")]
    monkeypatch.setitem(
        TUNED, "mae", (TunedRate(lr=8e-3, backbone="nano/8", global_batch_size=32),)
    )
    assert grid.simulated_rate_source("mae", "nano/8", 8e-3) == "given"


@pytest.mark.parametrize(
    "main",
    [
        channel_generalization.main, laptop_study.main, learning_rate.main, own_screen.main,
        papers.command(cvpr2024.PAPER), quickstart.main, real_images.main,
    ],
)  # fmt: skip
def test_every_experiment_can_be_limited_and_resumed(main):
    options = inspect.signature(main).parameters
    assert {"at_once", "max_gpu_hours", "resume"} <= options.keys()
    app = Typer()
    app.command()(main)
    seen = CliRunner().invoke(app, ["--help"], terminal_width=200).output
    assert all(option in seen for option in ("--at-once", "--max-gpu-hours", "--resume"))


@pytest.mark.parametrize("experiment", [quickstart, laptop_study])
def test_a_study_that_is_not_in_this_storage_is_not_resumed_nor_is_its_screen_made(
    experiment, tmp_path
):
    app = Typer()
    app.command()(experiment.main)
    seen = CliRunner().invoke(app, ["--storage", str(tmp_path), "--resume"])
    assert seen.exit_code == 2 and f"There is no study at {tmp_path}" in seen.stderr
    assert not list(tmp_path.iterdir())


def test_an_own_screen_is_held_against_references(tiny_screen, tmp_path):
    app, index = Typer(), str(tiny_screen / "index.parquet")
    app.command()(own_screen.main)

    def bill(*words: str):
        return CliRunner().invoke(app, [index, "--crop-px", "32", "--dry-run", *words])

    plain, seen = bill(), bill("--reference", "timm:test_vit=random", "--seed", "1")
    assert plain.exit_code == seen.exit_code == 0, seen.output
    assert plain.output.count("\nreference-") == 0
    (line,) = [x for x in seen.output.splitlines() if x.startswith("reference-")]
    assert line.startswith("reference-timm_test_vit-s1-")
    wrong = bill("--reference", f"timm:test_vit={tmp_path / 'none.pth'}")
    assert wrong.exit_code == 2 and "There is no file" in wrong.stderr


def test_a_reference_is_named_without_its_folder():
    assert own_screen.split_reference("timm:a.b=x/y=z.pth") == ("timm:a.b", "x/y=z.pth")
    assert own_screen.split_reference("timm:a") == ("timm:a", None)
    assert own_screen.split_reference("my=folder") == ("my=folder", None)
    texts = ["timm:a=/home/me/w.pth", "timm:a=random", "timm:a", "/home/me/encoder"]
    shown = [own_screen.without_path(text) for text in texts]
    assert shown == ["timm:a=FILE", "timm:a=random", "timm:a", "FOLDER"]


def test_real_images_say_what_to_do_when_they_are_absent(tmp_path):
    with pytest.raises(ValueError, match="Give the folder that holds mitocheck_nuclei"):
        real_images.read_cells(tmp_path)


def test_every_third_plate_is_held_out_whatever_the_order():
    plates = [f"mitocheck/p{i:02}" for i in range(10)]
    held_out = real_images.held_out_plates(plates[::-1])
    assert held_out == tuple(plates[::3])


def test_real_nuclei_are_indexed_in_place_and_split_by_plate(real_data, tmp_path):
    from phenoscale.screens.index import ScreenIndex
    from phenoscale.screens.subset import Subset

    cells = real_images.read_cells(real_data)
    path = real_images.write_index(cells, real_data, tmp_path / "index.parquet")
    index = ScreenIndex.open(path)
    assert (index.num_sites, index.channels, len(index.labels()[1])) == (2211, ("DNA",), 16)
    held_out = real_images.held_out_plates(list({f"mitocheck/{c['plate']}" for c in cells}))
    study = real_images.build_study(0, held_out)
    metadata = index.metadata()
    for trial in study.trials:
        seen = set(metadata["plate"].iloc[Subset.of(index, 1.0, trial.crops.held_out).rows()])
        tested = set(metadata["plate"].iloc[index.held_out_rows(trial.crops.held_out)])
        assert len(seen) + len(tested) == 45 and not seen & tested
    tested = np.unique(index.labels()[0][index.held_out_rows(held_out)])
    trained = np.unique(index.labels()[0][Subset.of(index, 1.0, held_out).rows()])
    assert set(tested) <= set(trained)
