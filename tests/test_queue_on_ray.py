"""The grid's queue on a real Ray: failures that stay apart, retries, budget, what is left out."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import signal
import threading
import time

import psutil
import pytest
from rich.console import Console

from experiments import grid
from phenoscale.backbones import NO_BACKBONE
from phenoscale.bill import ScreenSize
from phenoscale.config import Crops, Placement, Study
from phenoscale.failures import read_failure
from phenoscale.fit import checkpoints_of, fit_here
from phenoscale.on_ray.start import start_ray, stop_ray
from phenoscale.on_ray.study import run_study
from phenoscale.results import read_row
from phenoscale.status import read_status
from phenoscale.study_files import StudyFiles

CROPS = Crops(size_px=32, passes=2, global_batch_size=32, held_out=("batch2/plate2",))
SIZE = ScreenSize(wells=108, sites_per_well=2, total_sites=288, channels=6, classes=33, site_px=64)


def cell(backbone: str = "nano/8", passes: int = 2, **place):
    crops = dataclasses.replace(CROPS, passes=passes)
    placement = Placement(save_every_s=0.1, **place)
    return grid.trained(
        "mae", backbone, crops, lr=1e-3, mask_ratio=0.5, seed=3, placement=placement
    )


KILLED = cell(passes=16)  # the dearest, so the first
STALLED = cell(stall_s=1e-9)
ORACLE = grid.baseline("oracle", NO_BACKBONE, dataclasses.replace(CROPS, passes=0))
NEW = cell("pico/8")


def study_of(*trials) -> Study:
    return Study(name="queue", question="Does it go on?", trials=trials, bootstrap_rounds=100)


def run(files: StudyFiles, study: Study, **options) -> tuple[int, str]:
    screen = io.StringIO()
    console = Console(file=screen, width=200)
    return run_study(study, files, SIZE, command="none", console=console, **options), (
        screen.getvalue()
    )


@pytest.fixture(scope="module")
def ray():
    start_ray()
    yield
    stop_ray()


@pytest.fixture(scope="module")
def files(tiny_screen, tmp_path_factory) -> StudyFiles:
    return StudyFiles(
        study_dir=tmp_path_factory.mktemp("queue") / "queue",
        index=tiny_screen / "index.parquet",
        relationships=(str(tiny_screen / "relationships.csv"),),
        latents=tiny_screen / "latents.parquet",
    )


def kill_the_trial(files: StudyFiles) -> None:
    """Ends the process of the trial that runs, as soon as it has a checkpoint."""
    while not checkpoints_of(KILLED, files).latest():
        time.sleep(0.02)
    for process in psutil.Process().children(recursive=True):
        if "_trainable" in " ".join(process.cmdline()) or "ImplicitFunc" in process.name():
            os.kill(process.pid, signal.SIGKILL)
            return
    raise AssertionError("no trial's process was found")


@pytest.fixture(scope="module")
def first(ray, files):
    killer = threading.Thread(target=kill_the_trial, args=(files,), daemon=True)
    killer.start()
    code, seen = run(files, study_of(STALLED, KILLED, ORACLE), at_once=1)
    killer.join(1)
    assert not killer.is_alive()
    return code, seen


def test_a_trial_whose_process_is_killed_goes_on_from_its_checkpoint(first, files, tmp_path):
    _, seen = first
    assert f"{KILLED.id:<42} tries again: lost: " in seen
    row = read_row(files.trial_dir(KILLED))
    assert row.attempts == 2
    assert read_failure(files.trial_dir(KILLED)) is None, "it succeeded"
    alone = dataclasses.replace(files, study_dir=tmp_path)
    fitted = fit_here(lambda cutter, first, last: cutter.stream(first, last))(
        KILLED, alone, lambda update: None
    )
    curve = json.loads((files.trial_dir(KILLED) / "curve.json").read_text())
    assert curve["loss"] == fitted.record.curve.loss


def test_a_failure_is_tried_again_by_its_kind_and_then_told_with_its_reason(first, files):
    code, seen = first
    assert code == 1
    assert f"{STALLED.id:<42} tries again: stalled: " in seen
    assert f"{STALLED.id:<42} stalled, 2 times: " in seen.splitlines()[-1]
    (listed,) = json.loads((files.study_dir / "failures.json").read_text())
    failure = read_failure(files.trial_dir(STALLED))
    assert failure is not None and failure.is_last and "StalledError" in failure.traceback
    assert listed == {
        "trial_id": STALLED.id, "kind": "stalled", "attempts": 2, "error": failure.reason
    }  # fmt: skip


def test_the_status_says_what_became_of_each(first, files):
    status = read_status(files.study_dir)
    assert status.state == "ended"
    assert {name: (t.state, t.attempts) for name, t in status.trials.items()} == {
        STALLED.id: ("failed", 2), KILLED.id: ("done", 2), ORACLE.id: ("done", 1)
    }  # fmt: skip
    assert status.trials[STALLED.id].reason.startswith("stalled, 2 times: ")
    row = read_row(files.trial_dir(KILLED))
    assert status.trials[KILLED.id].gpu_hours * 3600 > row.train_s


def test_one_at_a_time_is_one_at_a_time(first, files):
    status = read_status(files.study_dir)
    spans = sorted((t.started_at, t.ended_at) for t in status.trials.values())
    assert all(before[1] <= after[0] for before, after in zip(spans, spans[1:], strict=False))


def test_a_budget_leaves_out_what_does_not_fit_and_a_larger_one_goes_on_with_it(first, files):
    """A backbone more: of a finished study only the new cells run."""
    # Where a trial runs, or how long it waits, is no part of what it is.
    mended = dataclasses.replace(STALLED, placement=dataclasses.replace(KILLED.placement))
    study = study_of(mended, KILLED, ORACLE, NEW)
    rows = {p: p.stat().st_mtime_ns for p in files.study_dir.glob("trials/*/row.json")}
    spent = sum(t.gpu_hours for t in read_status(files.study_dir).trials.values())
    code, seen = run(files, study, max_gpu_hours=spent)
    assert code == 0 and "2 of 4 trials to run" in seen
    assert "2 trials were not started" in seen and "a larger --max-gpu-hours" in seen
    for trial in (mended, NEW):
        assert f"{trial.id:<42} over budget: expected 0.0" in seen
    status = read_status(files.study_dir)
    assert status.trials[NEW.id].state == "not_started"
    assert status.gpu_hours == pytest.approx(spent, rel=1e-3), "nothing ran, nothing is forgotten"

    code, seen = run(files, study, max_gpu_hours=1.0, resume=True)
    assert code == 0 and "not started" not in seen
    assert json.loads((files.study_dir / "failures.json").read_text()) == []
    assert read_failure(files.trial_dir(STALLED)) is None, "it succeeded this time"
    after = {p: p.stat().st_mtime_ns for p in files.study_dir.glob("trials/*/row.json")}
    assert after.keys() - rows.keys() == {files.trial_dir(t) / "row.json" for t in (mended, NEW)}
    assert {path: after[path] for path in rows} == rows


def test_on_cpus_the_cheapest_trial_goes_first_and_tells_what_the_others_take(ray, files, tmp_path):
    own = dataclasses.replace(files, study_dir=tmp_path / "budget")
    code, seen = run(own, study_of(KILLED, NEW), max_gpu_hours=0.0)
    assert code == 0 and "2 trials were not started" in seen
    assert f"{NEW.id:<42} over budget: expected unknown" in seen
    code, seen = run(own, study_of(KILLED, NEW), max_gpu_hours=1e-6)
    assert code == 0 and "1 trials were not started" in seen
    assert [p.parent.name for p in own.study_dir.glob("trials/*/row.json")] == [NEW.id]


def test_what_no_node_can_hold_is_refused_before_anything_is_written(ray, files, tmp_path):
    own = dataclasses.replace(files, study_dir=tmp_path / "refused")
    trials = (cell(launcher="ray_train", gpu=True), cell(launcher="ray_train", workers=32), ORACLE)
    with pytest.raises(ValueError, match="2 of 3 trials can never run here") as caught:
        run(own, study_of(*trials))
    assert "it needs 1 GPUs, and no node has any" in str(caught.value)
    assert "it needs 64.01 CPU" in str(caught.value)
    assert not own.study_dir.exists()


def test_a_study_that_is_not_there_is_not_resumed(files, tmp_path):
    own = dataclasses.replace(files, study_dir=tmp_path / "none")
    with pytest.raises(ValueError, match=r"There is no study at .*none to go on with"):
        run(own, study_of(ORACLE), resume=True)
    assert not own.study_dir.exists()
