"""A whole small study on real Ray, MLflow and files: what the quickstart does, in a minute."""

import dataclasses
import io
import json
import math

import numpy as np
import pytest
from rich.console import Console

from experiments import grid
from phenoscale.backbones import NO_BACKBONE
from phenoscale.bill import ScreenSize
from phenoscale.compare import result_of
from phenoscale.config import Crops, Placement, Study
from phenoscale.fit import checkpoints_of, fit_here
from phenoscale.on_ray.study import run_study
from phenoscale.results import read_row, read_rows, read_samples
from phenoscale.run import run_trial
from phenoscale.screens.cutter import CropCutter
from phenoscale.screens.index import ScreenIndex
from phenoscale.study_files import StudyFiles

CROPS = Crops(size_px=32, passes=2, global_batch_size=32, held_out=("batch2/plate2",))
BLANK = dataclasses.replace(CROPS, passes=0)


def cell(objective, place=None, lr=3e-3, fraction=1.0):
    crops = dataclasses.replace(CROPS, data_fraction=fraction)
    return grid.trained(objective, "nano/8", crops, lr=lr, mask_ratio=0.5, seed=3, placement=place)


MAE, WSL = cell("mae"), cell("wsl", fraction=0.5)
ONE = cell("mae", Placement(launcher="ray_train"))
TWO = cell("mae", Placement(launcher="ray_train", workers=2))
SHARDED = cell("mae", Placement(launcher="ray_train", workers=2, strategy="fsdp", recompute=True))
DIVERGING = cell("mae", lr=1e30)
BASELINES = (
    grid.baseline("untrained", "nano/8", BLANK),
    grid.baseline("intensity", NO_BACKBONE, BLANK),
    grid.baseline("oracle", NO_BACKBONE, BLANK),
)
STUDY = Study(
    name="small",
    question="Does all of it run?",
    trials=(MAE, WSL, TWO, SHARDED, ONE, DIVERGING, *BASELINES),
    bootstrap_rounds=100,
)
SIZE = ScreenSize(wells=108, sites_per_well=2, total_sites=288, channels=6, classes=33, site_px=64)


def run(files, study=STUDY):
    """Runs the study and returns its exit code and what a person saw."""
    screen = io.StringIO()
    code = run_study(
        study,
        files,
        SIZE,
        command="none",
        console=Console(file=screen, width=200),
        facts={"seed": 0},
    )
    return code, screen.getvalue()


@pytest.fixture(scope="module")
def files(tiny_screen, tmp_path_factory):
    return StudyFiles(
        study_dir=tmp_path_factory.mktemp("study") / "small",
        index=tiny_screen / "index.parquet",
        relationships=(str(tiny_screen / "relationships.csv"),),
        latents=tiny_screen / "latents.parquet",
    )


@pytest.fixture(scope="module")
def first(files):
    return run(files)


def losses(files, trial):
    return json.loads((files.trial_dir(trial) / "curve.json").read_text())["loss"]


def test_one_failing_trial_stops_no_other_and_is_named(first, files):
    code, seen = first
    assert code == 1
    rows = {row.trial_id for row in read_rows(files.study_dir)}
    assert rows == {t.id for t in STUDY.trials} - {DIVERGING.id}
    assert f"1 trials failed: {DIVERGING.id}" in seen
    assert f"{DIVERGING.id:<42} non_finite: Trial {DIVERGING.id}: loss nan" in seen
    failures = json.loads((files.study_dir / "failures.json").read_text())
    assert [(f["trial_id"], f["kind"]) for f in failures] == [(DIVERGING.id, "non_finite")]
    assert "nothing was updated" in failures[0]["error"]
    evidence = json.loads((files.trial_dir(DIVERGING) / "non_finite.json").read_text())
    cutter = CropCutter(index_path=str(files.index), crops=CROPS, seed=DIVERGING.seed)
    (batch,) = cutter.stream(evidence["step"], evidence["step"] + 1)
    assert batch["rows"].tolist() == evidence["rows"], "the step can be made again"
    names = ScreenIndex.open(files.index).metadata()["site_id"][evidence["rows"]]
    assert evidence["site_ids"] == names.tolist()
    assert "Traceback" not in seen


def test_a_study_leaves_what_fits_and_further_trials_need(first, files):
    rows = read_rows(files.study_dir)
    samples = read_samples(files.study_dir, rows)
    assert {len(samples[row.trial_id]) for row in rows} == {STUDY.bootstrap_rounds}
    row = read_row(files.trial_dir(MAE))
    assert row.unique_crops == min(4 * row.unique_sites, row.crops_seen)  # 64 px cut to 32 px
    assert row.score_by_database == {"relationships": row.score}
    assert StudyFiles.read(files.study_dir) == files
    description = json.loads((files.study_dir / "study.json").read_text())
    assert ScreenSize(**description["size"]) == SIZE
    paths = [str(files.index), str(files.latents), *files.relationships]
    report = (files.study_dir / "report.html").read_text()
    assert not any(path in report or path in str(description) for path in paths)


def test_relationships_of_other_genes_are_refused_before_training(files, tmp_path):
    other = tmp_path / "other.csv"
    other.write_text("entity1,entity2\nTP53,MDM2\n")
    wrong = dataclasses.replace(files, study_dir=tmp_path / "s", relationships=(str(other),))
    with pytest.raises(ValueError, match="other: None of 1 relationships has both genes"):
        run(wrong)
    assert not (tmp_path / "s" / "trials").exists()


def test_in_place_and_one_ray_train_worker_give_the_same_row_bit_for_bit(first, files):
    here, there = (read_row(files.trial_dir(trial)) for trial in (MAE, ONE))
    assert (here.launcher, there.launcher) == ("in_place", "ray_train")
    assert result_of(here) == result_of(there)
    assert losses(files, MAE) == losses(files, ONE)


def test_two_workers_give_the_losses_of_one(first, files):
    for trial in (TWO, SHARDED):
        np.testing.assert_allclose(losses(files, trial), losses(files, MAE), rtol=1e-5)
    twins = json.loads((files.study_dir / "comparisons.json").read_text())["twins"]
    assert [set(t["trial_ids"]) for t in twins] == [{MAE.id, ONE.id, TWO.id, SHARDED.id}]
    assert "2 workers under Ray Train (fsdp, recompute)" in twins[0]["what"]
    assert twins[0]["bit_identical_rows"] is True
    assert 0 < twins[0]["max_relative_loss_difference"] <= 1e-5


def test_without_ray_the_same_trial_gives_the_same_row(first, files, tmp_path):
    alone = dataclasses.replace(files, study_dir=tmp_path)
    row = run_trial(
        MAE, STUDY, alone, fit=fit_here(lambda c, first, last: c.stream(first, last)), tell=print
    )
    assert result_of(row) == result_of(read_row(files.trial_dir(MAE)))
    assert losses(alone, MAE) == losses(files, MAE)


def test_a_killed_trial_goes_on_from_its_checkpoint_with_the_same_losses(first, files, tmp_path):
    alone = dataclasses.replace(files, study_dir=tmp_path)

    class Killed(BaseException):
        pass

    def dies(cutter, first, last):
        for step in range(first, last):
            if step == 8:
                raise Killed
            yield from cutter.stream(step, step + 1)

    with pytest.raises(Killed):
        fit_here(dies)(MAE, alone, lambda update: None)
    kept = checkpoints_of(MAE, alone)
    assert kept.record(kept.latest()).steps == 5
    seen = []

    def rest(cutter, first, last):
        seen.append(first)
        return cutter.stream(first, last)

    fitted = fit_here(rest)(MAE, alone, lambda update: None)
    assert seen == [5]
    assert fitted.record.curve.loss == losses(files, MAE)
    assert fitted.record.attempts == 2


def test_rows_hold_what_the_trial_did(first, files):
    row = read_row(files.trial_dir(WSL))
    steps = math.floor(2 * 108 * 0.5 * 2 / 32)
    assert (row.steps, row.crops_seen, row.unique_sites) == (steps, steps * 32, 108)
    assert row.train_s > 0 and row.data_cpu_s > 0 and row.peak_memory_gib > 0.1
    assert row.train_loss is not None and 2 < row.train_loss < 4  # ln 33 = 3.5
    assert (row.optimizer, row.lr, row.lr_source, row.precision) == ("adamw", 3e-3, "given", "fp32")
    assert (row.attempts, row.spikes, row.communication_s) == (1, 0, 0.0)
    assert 0 < row.utilization < 1 and 0 < row.checkpoint_s < row.train_s
    oracle = read_row(files.trial_dir(BASELINES[2]))
    assert (oracle.train_loss, oracle.readout, oracle.crops_seen) == (None, "latents", 0)
    assert set(row.score_by_readout) == {"patch_mean", "class_token", "patch_sd"}


def test_progress_says_how_far_the_study_is(first):
    _, seen = first
    assert f"{len(STUDY.trials)} of {len(STUDY.trials)} trials to run" in seen
    assert f"[{len(STUDY.trials)}/{len(STUDY.trials)}]" in seen
    assert "report" in seen


def test_a_second_run_runs_only_what_has_no_row(first, files):
    before = {p: p.stat().st_mtime_ns for p in files.study_dir.glob("trials/*/row.json")}
    code, seen = run(files)
    assert f"1 of {len(STUDY.trials)} trials to run" in seen and code == 1
    assert before == {p: p.stat().st_mtime_ns for p in files.study_dir.glob("trials/*/row.json")}


def test_a_run_without_work_keeps_the_figures_of_the_one_that_had_it(first, files):
    path = files.study_dir / "study.json"
    before = json.loads(path.read_text())
    assert before["wall_s"] > 0
    whole = dataclasses.replace(STUDY, trials=tuple(t for t in STUDY.trials if t != DIVERGING))
    code, seen = run(files, whole)
    after = json.loads(path.read_text())
    assert "0 of" in seen and code == 0
    assert all(after[name] == before[name] for name in ("wall_s", "peak_memory_gib"))


def test_report_and_mlflow_hold_every_row(first, files):
    page = (files.study_dir / "report.html").read_text()
    for row in read_rows(files.study_dir):
        assert row.trial_id in page
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{files.study_dir}/mlflow.db")
    (experiment,) = [e for e in client.search_experiments() if e.name == STUDY.name]
    runs = client.search_runs([experiment.experiment_id])
    ends = {r.data.tags.get("trial_id"): r.info.status for r in runs}
    rows = {row.trial_id: "FINISHED" for row in read_rows(files.study_dir)}
    assert ends.items() >= rows.items()
    assert ends.keys() - rows.keys() == {None, DIVERGING.id}


def test_another_screen_in_the_same_directory_is_refused(first, files):
    path = files.study_dir / "study.json"
    kept = path.read_text()
    try:
        path.write_text(json.dumps({"screen": {"fingerprint": "f" * 64}}))
        with pytest.raises(ValueError, match="holds a study of the screen ffffffffffff"):
            run(files)
    finally:
        path.write_text(kept)


def test_a_trial_that_holds_nothing_out_is_refused_before_it_trains(files, tmp_path):
    trial = dataclasses.replace(MAE, crops=dataclasses.replace(CROPS, held_out=()))
    alone = dataclasses.replace(files, study_dir=tmp_path)
    with pytest.raises(ValueError, match="holds nothing out"):
        run_trial(trial, STUDY, alone, fit=lambda *_: pytest.fail("it trained"), tell=print)
    assert not list(tmp_path.iterdir())
