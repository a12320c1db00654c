"""What is lost of a Ray cluster while a trial trains: a worker, a node, the driver.

`make test-chaos`, a few minutes. Each time the trial goes on from its last checkpoint and ends with
the curve of a trial that nothing happened to.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import ray
from ray.cluster_utils import Cluster

from experiments import grid
from phenoscale.backbones import NO_BACKBONE
from phenoscale.compare import result_of
from phenoscale.config import Crops, Placement, Study, Trial
from phenoscale.fit import checkpoints_of, fit_here, write_trial
from phenoscale.on_ray import train as on_ray_train
from phenoscale.on_ray.start import start_ray
from phenoscale.on_ray.study import INTERRUPTED
from phenoscale.record import Record
from phenoscale.results import ROW_FILE, read_row, read_rows
from phenoscale.screens.index import ScreenIndex
from phenoscale.status import read_status
from phenoscale.study_files import StudyFiles

CROPS = Crops(size_px=32, passes=300, global_batch_size=32, held_out=("batch2/plate2",))


def trial_of(**place) -> Trial:
    """Some 2,000 steps of a tiny trial on workers of Ray Train; a checkpoint every half second."""
    placement = Placement(launcher="ray_train", save_every_s=0.5, **place)
    return grid.trained(
        "mae", "nano/8", CROPS, lr=1e-3, mask_ratio=0.5, seed=3, placement=placement
    )


@pytest.fixture(scope="module")
def screen(tiny_screen: Path) -> dict[str, Path]:
    return {
        "index": tiny_screen / "index.parquet",
        "relationships": tiny_screen / "relationships.csv",
    }


@pytest.fixture(scope="module")
def undisturbed(screen, tmp_path_factory) -> Record:
    """The record of the trial in one process without Ray."""
    files = StudyFiles(study_dir=tmp_path_factory.mktemp("alone"), **screen)
    trial = dataclasses.replace(trial_of(), placement=Placement())
    write_trial(trial, files, ScreenIndex.open(files.index))
    fit = fit_here(lambda cutter, first, last: cutter.stream(first, last))
    return fit(trial, files, lambda update: None).record


def steps_kept(trial: Trial, files: StudyFiles) -> int:
    checkpoints = checkpoints_of(trial, files)
    found = checkpoints.latest()
    return checkpoints.record(found).steps if found else 0


def when(condition: Callable[[], bool], action: Callable[[], None]) -> threading.Thread:
    """Does something as soon as something else is so."""

    def watch() -> None:
        while not condition():
            time.sleep(0.05)
        action()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def workers_of_train() -> list[psutil.Process]:
    return [
        process
        for process in psutil.process_iter(["name", "cmdline"])
        if "RayTrainWorker" in " ".join(process.info["cmdline"] or [])
    ]


def check(record: Record, undisturbed: Record, exact: bool = False) -> None:
    assert record.attempts > 1
    if exact:
        assert record.curve.loss == undisturbed.curve.loss
    np.testing.assert_allclose(record.curve.loss, undisturbed.curve.loss, rtol=1e-5)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_worker(
    workers: int, screen, undisturbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    trial, files = trial_of(workers=workers), StudyFiles(study_dir=tmp_path, **screen)
    cluster = nodes(monkeypatch, cpus=2)
    try:
        killer = when(
            lambda: steps_kept(trial, files) > 100,
            lambda: workers_of_train()[-1].send_signal(signal.SIGKILL),
        )
        record = on_ray_train.train_group(trial, files).record
        killer.join(10)
    finally:
        ray.shutdown()
        cluster.shutdown()
    check(record, undisturbed, exact=workers == 1)


def nodes(monkeypatch: pytest.MonkeyPatch, cpus: int) -> Cluster:
    """A cluster of a head and a node."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    cluster.add_node(num_cpus=cpus)
    start_ray(cluster.address)
    return cluster


def test_a_lost_node(screen, undisturbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    trial, files = trial_of(), StudyFiles(study_dir=tmp_path, **screen)
    cluster = nodes(monkeypatch, cpus=2)
    try:
        lost = next(node for node in cluster.list_all_nodes() if node is not cluster.head_node)

        def lose() -> None:
            for process in workers_of_train():
                process.send_signal(signal.SIGKILL)
            os.kill(lost.all_processes["raylet"][0].process.pid, signal.SIGKILL)

        loser = when(lambda: steps_kept(trial, files) > 100, lose)
        record = on_ray_train.train_group(trial, files).record
        loser.join(10)
    finally:
        ray.shutdown()
        cluster.shutdown()
    check(record, undisturbed, exact=True)


def test_a_node_that_says_it_will_go(
    screen, undisturbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A spot node's notice: the checkpoint that it leads to is the only one of the first third."""
    trial = trial_of()
    trial = dataclasses.replace(
        trial, placement=dataclasses.replace(trial.placement, save_every_s=1e6)
    )
    files = StudyFiles(study_dir=tmp_path, **screen)
    write_trial(trial, files, ScreenIndex.open(files.index))
    cluster = nodes(monkeypatch, cpus=2)
    seen: dict[str, Record] = {}
    try:
        group = threading.Thread(
            target=lambda: seen.update(record=on_ray_train.train_group(trial, files).record)
        )
        group.start()
        while not workers_of_train():
            time.sleep(0.1)
        node = next(
            node
            for node in cluster.list_all_nodes()
            if str(workers_of_train()[0].ppid()) == str(node.all_processes["raylet"][0].process.pid)
        )
        drain = ["drain-node", f"--address={cluster.address}", f"--node-id={node.node_id}"]
        reason = ["--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=spot"]
        subprocess.run(
            [str(Path(sys.executable).with_name("ray")), *drain, *reason]
            + ["--deadline-remaining-seconds=600"],
            check=True,
        )
        while not steps_kept(trial, files):
            time.sleep(0.1)
        kept = steps_kept(trial, files)
        for process in workers_of_train():
            process.send_signal(signal.SIGKILL)
        group.join(300)
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert 0 < kept < len(undisturbed.curve.step) / 3 - 1, "it was not one at a third"
    check(seen["record"], undisturbed, exact=True)


STUDY = """
import sys
from pathlib import Path
from rich.console import Console
from phenoscale.bill import ScreenSize
from phenoscale.on_ray.study import run_study
from phenoscale.study_files import StudyFiles
from tests.chaos_ray import study
index, relationships, out, resume = sys.argv[1:]
size = ScreenSize(
    wells=108, sites_per_well=2, total_sites=288, channels=6, classes=33, site_px=64
)
files = StudyFiles(study_dir=Path(out), index=Path(index), relationships=(relationships,))
told = {"command": "none", "console": Console(width=200), "resume": bool(resume)}
sys.exit(run_study(study(), files, size, **told))
"""


def study() -> Study:
    """A trial of 2,000 steps, and one that is done at once."""
    short = grid.baseline("intensity", NO_BACKBONE, dataclasses.replace(CROPS, passes=0))
    return Study(name="lost", question="?", trials=(trial_of(), short), bootstrap_rounds=100)


def command_of(screen: dict[str, Path], out: Path, *, resume: bool = False) -> list[str]:
    words = [str(screen["index"]), str(screen["relationships"]), str(out), "yes" * resume]
    return [sys.executable, "-c", STUDY, *words]


def results(out: Path) -> dict[str, dict]:
    return {row.trial_id: result_of(row) for row in read_rows(out)}


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_lost_driver(how: signal.Signals, screen, undisturbed, tmp_path: Path):
    """Driver, head and workers die, or Ctrl-C ends them: --resume goes on from storage alone."""
    out, trial, short = tmp_path / "lost", *study().trials
    files = StudyFiles(study_dir=out, **screen)
    none = subprocess.run(command_of(screen, out, resume=True), capture_output=True, text=True)
    assert none.returncode == 1 and "There is no study at" in none.stderr and not out.exists()
    log = (tmp_path / "log").open("w")
    first = subprocess.Popen(command_of(screen, out), start_new_session=True, stdout=log)
    while steps_kept(trial, files) < 100 or not (files.trial_dir(short) / ROW_FILE).exists():
        assert first.poll() is None
        time.sleep(0.1)
    family = psutil.Process(first.pid).children(recursive=True)
    first.send_signal(how)
    if how is signal.SIGKILL:
        for process in family:
            process.kill()
    code = first.wait(60)
    gone, left = psutil.wait_procs(family, timeout=30)
    assert not left, "it left processes behind"
    state = read_status(out).state
    if how is signal.SIGINT:
        assert (code, state) == (INTERRUPTED, "interrupted")
        seen = " ".join((tmp_path / "log").read_text().split())
        assert "interrupted: 1 of 2 trials are left. The same command with --resume" in seen
    else:
        assert state == "running", "nobody was there to say that it is not"
    again = subprocess.run(
        command_of(screen, out, resume=True), capture_output=True, text=True, timeout=300
    )
    assert again.returncode == 0 and "1 of 2 trials to run" in again.stdout
    checkpoints = checkpoints_of(trial, files)
    check(checkpoints.record(checkpoints.latest()), undisturbed, exact=True)
    assert read_row(files.trial_dir(trial)).attempts == 2
    whole = tmp_path / "whole"
    subprocess.run(command_of(screen, whole), check=True, stdout=log, timeout=300)
    assert results(out) == results(whole)
