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
from phenoscale.config import Crops, Placement, Trial
from phenoscale.fit import checkpoints_of, fit_here, write_trial
from phenoscale.on_ray import train as on_ray_train
from phenoscale.on_ray.start import start_ray
from phenoscale.record import Record
from phenoscale.results import read_row
from phenoscale.screens.index import ScreenIndex
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
import io, sys
from pathlib import Path
from rich.console import Console
from phenoscale.bill import ScreenSize
from phenoscale.config import Study
from phenoscale.on_ray.study import run_study
from phenoscale.study_files import StudyFiles
from tests.chaos_ray import trial_of
index, relationships, out = map(Path, sys.argv[1:])
size = ScreenSize(
    wells=108, sites_per_well=2, total_sites=288, channels=6, classes=33, site_px=64
)
study = Study(name="lost", question="?", trials=(trial_of(),), bootstrap_rounds=100)
files = StudyFiles(study_dir=out, index=index, relationships=(str(relationships),))
sys.exit(run_study(study, files, size, command="none", console=Console(file=io.StringIO())))
"""


def test_a_lost_driver(screen, undisturbed, tmp_path: Path):
    """The whole of it: driver, head and workers die; the same command goes on from storage."""
    trial, files = trial_of(), StudyFiles(study_dir=tmp_path, **screen)
    words = [str(screen["index"]), str(screen["relationships"]), str(tmp_path)]
    command = [sys.executable, "-c", STUDY, *words]
    first = subprocess.Popen(command, start_new_session=True)
    while steps_kept(trial, files) < 100:
        assert first.poll() is None
        time.sleep(0.1)
    family = psutil.Process(first.pid).children(recursive=True)
    first.kill()
    for process in family:
        process.kill()
    first.wait()
    psutil.wait_procs(family, timeout=30)
    assert subprocess.run(command, timeout=300).returncode == 0
    checkpoints = checkpoints_of(trial, files)
    check(checkpoints.record(checkpoints.latest()), undisturbed, exact=True)
    assert read_row(files.trial_dir(trial)).attempts == 2
