"""A study at a URL: its nodes share no disk, and the store alone holds all of it."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import numpy as np
import psutil
import pytest
from ray.cluster_utils import Cluster
from rich.console import Console

from experiments import grid
from phenoscale.backbones import NO_BACKBONE
from phenoscale.bill import ScreenSize
from phenoscale.compare import result_of
from phenoscale.config import Crops, Placement, Study
from phenoscale.fit import checkpoints_of, fit_here
from phenoscale.maps.relationships import load_databases
from phenoscale.on_ray.study import run_study
from phenoscale.on_ray.tune import pending
from phenoscale.reports.study_report import read_study_record
from phenoscale.results import read_rows
from phenoscale.run import run_trial
from phenoscale.screens import storage
from phenoscale.screens.errors import RootVanishedError
from phenoscale.screens.index import ScreenIndex
from phenoscale.screens.simulated.prepare import uploaded_screen
from phenoscale.study_files import SCRATCH_VARIABLE, StudyFiles, in_folder, working_copy
from phenoscale.study_storage import (
    local_copy,
    pull_study,
    pull_trial,
    push_study,
    push_trial,
    train_storage,
)
from tests.fabricated import make_row, make_study
from tests.s3 import LocalS3
from tests.tiny import SCREEN, TINY, TINY_WSL

STUDY = Study(name="s", question="?", trials=(TINY, TINY_WSL), bootstrap_rounds=100)
CROPS = Crops(size_px=32, passes=2, global_batch_size=32, held_out=("batch2/plate2",))
BLANK = dataclasses.replace(CROPS, passes=0)
MAE, TWO = (
    grid.trained("mae", "nano/8", CROPS, lr=3e-3, mask_ratio=0.5, seed=3, placement=placement)
    for placement in (Placement(), Placement(launcher="ray_train", workers=2))
)
BASELINES = (
    grid.baseline("untrained", "nano/8", BLANK),
    grid.baseline("intensity", NO_BACKBONE, BLANK),
    grid.baseline("oracle", NO_BACKBONE, BLANK),
)
STUDY_ON_RAY = Study(
    name="s", question="Without a shared disk?", trials=(MAE, TWO, *BASELINES), bootstrap_rounds=100
)
SECRET = "a-secret-that-nobody-may-see"


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This node's scratch folder."""
    monkeypatch.setenv(SCRATCH_VARIABLE, str(tmp_path / "scratch"))
    return tmp_path / "scratch"


@pytest.fixture
def files(s3: LocalS3) -> StudyFiles:
    return StudyFiles.at(s3.url("runs"), "s", index="s3://bucket/screen/index.parquet")


def on_another_node(files: StudyFiles, folder: Path, monkeypatch: pytest.MonkeyPatch) -> StudyFiles:
    """As a node gets them whose scratch folder is another."""
    monkeypatch.setenv(SCRATCH_VARIABLE, str(folder))
    return pickle.loads(pickle.dumps(files))


def leave_trial(files: StudyFiles, trial=TINY) -> Path:
    """What a trial leaves in the working copy."""
    folder = files.trial_dir(trial)
    (folder / "checkpoints/step_00000001").mkdir(parents=True)
    for name in ("curve.json", "map.parquet", "sites.parquet", "checkpoints/step_00000001/x"):
        (folder / name).write_text(name)
    make_row(trial_id=trial.id).write(folder)
    return folder


def state(folder: Path) -> dict[str, tuple[int, int]]:
    """Each file's inode and time: another after it was written anew."""
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_folder_stays_a_folder(tmp_path: Path):
    files = StudyFiles.at(str(tmp_path / "runs"), "s", index=tmp_path / "index.parquet")
    assert files.study_dir == tmp_path / "runs/s" and files.storage is None
    assert pickle.loads(pickle.dumps(files)) == files
    assert train_storage(files) == (str(tmp_path / "runs/s/tune"), None)
    assert local_copy(str(files.study_dir)) == files.study_dir
    assert local_copy(files.study_dir.as_uri()) == files.study_dir


def test_files_at_a_url(files: StudyFiles, scratch: Path, tmp_path: Path, monkeypatch):
    assert files.storage is not None and "/s?endpoint" in files.storage
    assert files.study_dir.parent == scratch / "study" and files.study_dir.name.startswith("s-")
    assert files.checkpoints_of(TINY).startswith(files.storage.partition("?")[0] + "/trials/mae")
    path, system = train_storage(files)
    assert path.endswith("-runs/s/tune") and system is not None
    pickle.loads(pickle.dumps(system))  # Ray sends it to its workers
    files.write()
    assert StudyFiles.read(files.study_dir) == files
    other = on_another_node(files, tmp_path / "other", monkeypatch)
    assert other == dataclasses.replace(files, study_dir=working_copy(files.storage))
    assert other.study_dir.is_relative_to(tmp_path / "other")


def test_without_the_variable_scratch_is_the_users_own(tmp_path: Path, monkeypatch):
    monkeypatch.delenv(SCRATCH_VARIABLE)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = working_copy("s3://bucket/runs/s").parents[1]
    assert folder.parent == tmp_path and folder.stat().st_mode & 0o777 == 0o700
    folder.rmdir()
    folder.symlink_to(tmp_path)  # as another user may have laid it
    with pytest.raises(ValueError, match="belongs to another user.*PHENOSCALE_SCRATCH"):
        working_copy("s3://bucket/runs/s")


def test_a_trial_goes_from_its_node_to_the_driver(
    files: StudyFiles, s3: LocalS3, tmp_path: Path, monkeypatch
):
    folder = leave_trial(files)
    (folder / "sites.parquet").write_bytes(bytes(2**24))  # goes in parts
    push_trial(files, TINY)
    there = s3.files(files.storage)
    assert there[f"trials/{TINY.id}/sites.parquet"][0] == 2**24
    names = {"curve.json", "map.parquet", "sites.parquet", "row.json"}
    assert there.keys() == {f"trials/{TINY.id}/{name}" for name in names}
    before = state(folder)
    pull_trial(files, TINY)
    assert state(folder) == before, "the driver of one machine finds all of it there"
    driver = on_another_node(files, tmp_path / "driver", monkeypatch)
    pull_trial(driver, TINY)
    found = {path.name for path in driver.trial_dir(TINY).iterdir()}
    assert found == names - {"sites.parquet"}, "comparisons are made from the map"
    assert read_rows(driver.study_dir) == read_rows(files.study_dir)


def test_where_there_is_no_map_the_sites_are_compared(
    files: StudyFiles, tmp_path: Path, monkeypatch
):
    (leave_trial(files) / "map.parquet").unlink()
    push_trial(files, TINY)
    driver = on_another_node(files, tmp_path / "driver", monkeypatch)
    pull_trial(driver, TINY)
    assert (driver.trial_dir(TINY) / "sites.parquet").read_text() == "sites.parquet"


def test_what_is_here_stays_and_what_changed_comes(
    files: StudyFiles, s3: LocalS3, tmp_path: Path, monkeypatch
):
    leave_trial(files)
    push_trial(files, TINY)
    (files.study_dir / "study.json").write_text("{}")
    push_study(files)
    sent = s3.files(files.storage)
    push_trial(files, TINY)
    push_study(files)
    assert s3.files(files.storage) == sent, "nothing is sent twice"
    other = on_another_node(files, tmp_path / "other", monkeypatch)
    pull_study(other)
    before = state(other.study_dir)
    pull_study(other)
    assert state(other.study_dir) == before
    s3.write(files.storage, "study.json", b"{ }")
    pull_study(other)
    after = state(other.study_dir)
    changed = {name for name in after if after[name] != before[name]}
    assert after.keys() == before.keys() and changed == {"study.json"}


def test_half_a_trial_is_no_trial(files: StudyFiles, s3: LocalS3, tmp_path: Path, monkeypatch):
    for trial in STUDY.trials:
        leave_trial(files, trial)
        push_trial(files, trial)
    s3.remove(files.storage, f"trials/{TINY.id}/row.json")
    driver = on_another_node(files, tmp_path / "driver", monkeypatch)
    pull_study(driver)
    assert (driver.trial_dir(TINY) / "curve.json").is_file()
    assert pending(STUDY, driver) == [TINY]
    pull_study(files)  # where its row is still: it never got to the store
    assert pending(STUDY, files) == [TINY]


def test_a_trial_at_a_url_gives_the_row_of_one_in_a_folder(
    tiny_screen: Path, s3: LocalS3, tmp_path: Path
):
    screen = s3.put(tiny_screen)
    rows = []
    for runs, there in ((s3.url("runs"), screen), (str(tmp_path / "runs"), str(tiny_screen))):
        files = StudyFiles.at(
            runs,
            "s",
            index=in_folder(there, "index.parquet"),
            relationships=(in_folder(there, "relationships.csv"),),
            latents=in_folder(there, "latents.parquet"),
        )
        fit = fit_here(lambda cutter, first, last: cutter.stream(first, last))
        told = [run_trial(t, STUDY_ON_RAY, files, fit=fit, tell=len) for t in (MAE, BASELINES[2])]
        rows.append([result_of(row) for row in told])
    assert rows[0] == rows[1]


def test_what_a_removed_study_left_on_a_node_is_not_sent(tiny_screen: Path, s3: LocalS3):
    files = StudyFiles.at(s3.url("runs"), "s", index=tiny_screen / "index.parquet")
    leave_trial(files, MAE)

    def fit(*given):
        raise RuntimeError("a trial that fails")

    with pytest.raises(RuntimeError, match="that fails"):
        run_trial(MAE, STUDY_ON_RAY, files, fit=fit, tell=lambda update: None)
    push_trial(files, MAE)
    there = {name.rpartition("/")[2] for name in s3.files(files.storage)}
    assert there == {"trial.json", "model.json"}


def test_a_row_is_sent_when_all_else_is_there(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(storage, "FIRST_WAIT_S", 0.01)
    files = StudyFiles.at(f"memory://{tmp_path.name}", "s", index="memory://x/index.parquet")
    memory, there = fsspec.filesystem("memory"), f"/{tmp_path.name}/s/trials/{TINY.id}"
    memory.pipe({f"{there}/curve.json/x": b"where this is a folder, no file can be"})
    leave_trial(files)
    with pytest.raises(RootVanishedError, match="Writing trials/.*/curve.json at memory.*0 bytes"):
        push_trial(files, TINY)
    assert memory.isfile(f"{there}/map.parquet") and not memory.exists(f"{there}/row.json")
    memory.rm(f"{there}/curve.json", recursive=True)
    push_trial(files, TINY)
    assert memory.isfile(f"{there}/curve.json") and memory.isfile(f"{there}/row.json")


def test_a_store_that_does_not_answer(files: StudyFiles, monkeypatch):
    monkeypatch.setattr(storage, "FIRST_WAIT_S", 0.01)
    url = "s3://bucket/runs?endpoint_override=http://127.0.0.1:1&region=us-east-1"
    gone = dataclasses.replace(files, storage=url)
    with pytest.raises(RootVanishedError, match="at s3://bucket/runs failed .*same command again"):
        pull_study(gone)


@pytest.mark.parametrize("use", [pull_study, push_study, local_copy])
def test_credentials_in_a_url_are_refused(use, tmp_path: Path):
    url = f"s3://key:{SECRET}@bucket/runs"
    files = StudyFiles.at(url, "s", index="s3://bucket/index.parquet")
    with pytest.raises(ValueError, match="is given with credentials") as refused:
        use(files.storage if use is local_copy else files)
    assert SECRET not in str(refused.value) and SECRET not in str(files.study_dir)


def test_a_name_that_leads_out_is_refused(scratch: Path, tmp_path: Path):
    memory = fsspec.filesystem("memory")
    memory.pipe({f"/{tmp_path.name}/s/study.json": b"{}"})
    memory.store[f"/{tmp_path.name}/s/trials/../row.json"] = memory.store[
        f"/{tmp_path.name}/s/study.json"
    ]
    files = StudyFiles.at(f"memory://{tmp_path.name}", "s", index="memory://x/index.parquet")
    with pytest.raises(ValueError, match="'trials/../row.json', whose name leads out"):
        pull_study(files)
    assert not files.study_dir.exists()


def test_a_link_in_the_working_copy_is_not_followed_out(files: StudyFiles, s3, tmp_path: Path):
    (tmp_path / "elsewhere").mkdir()
    (files.study_dir / "trials").mkdir(parents=True)
    (files.study_dir / "trials" / TINY.id).symlink_to(tmp_path / "elsewhere")
    s3.write(files.storage, f"trials/{TINY.id}/row.json", b"{}")
    with pytest.raises(ValueError, match="leads out of the study"):
        pull_trial(files, TINY)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_store_that_is_no_object_store(tmp_path: Path):
    """It shows files while they are written: they get another name first."""
    files = StudyFiles.at(f"memory://{tmp_path.name}", "s", index="memory://x/index.parquet")
    leave_trial(files)
    push_trial(files, TINY)
    found = fsspec.filesystem("memory").find(f"/{tmp_path.name}")
    assert {name.rpartition("/")[2] for name in found} == {
        "curve.json", "map.parquet", "sites.parquet", "row.json"
    }  # fmt: skip
    (files.trial_dir(TINY) / "row.json").unlink()
    pull_trial(files, TINY)
    assert read_rows(files.study_dir)[0].trial_id == TINY.id


def test_a_copy_to_read_tells_a_report_the_same(s3: LocalS3, scratch: Path, tmp_path: Path):
    make_study(tmp_path / "study")
    url = s3.put(tmp_path / "study")
    folder = local_copy(url)
    assert folder.is_relative_to(scratch / "read")
    ours, theirs = (vars(read_study_record(place)) for place in (folder, tmp_path / "study"))
    assert len(ours["rows"]) > 10 and ours["curves"] and ours["comparisons"]
    for own in ("directory", "summary"):  # where it lies, and arrays that follow from the rows
        del ours[own], theirs[own]
    assert ours == theirs
    with pytest.raises(ValueError, match=r"no study at s3://screens/\d+-nothing: it has no study"):
        local_copy(s3.url("nothing"))


def test_a_simulated_screen_is_copied_once(s3: LocalS3, tiny_screen: Path, scratch: Path):
    url, seen = s3.url("screen"), io.StringIO()
    some = shutil.ignore_patterns("batch2", "plate2")  # one plate's images are enough
    shutil.copytree(tiny_screen, scratch / "rendered", ignore=some)  # a copy had broken off
    uploaded_screen(SCREEN, url, scratch / "rendered", Console(file=seen, width=200))
    assert "copying" in seen.getvalue() and not (scratch / "rendered").exists()
    index = ScreenIndex.open(in_folder(url, "index.parquet"))
    assert index.num_sites == SCREEN.num_sites and index.root.url == url
    databases = load_databases([in_folder(url, f"{name}.csv") for name in ("complexes", "opposed")])
    assert list(databases) == ["complexes", "opposed"]
    before = s3.files(url)
    uploaded_screen(SCREEN, url, scratch / "rendered", Console(file=seen))
    assert s3.files(url) == before and not (scratch / "rendered").exists()
    with pytest.raises(ValueError, match="holds the screen"):
        other = dataclasses.replace(SCREEN, seed=4)
        uploaded_screen(other, url, scratch / "rendered", Console(file=seen))


def test_a_missing_table_of_relationships_at_a_url(s3: LocalS3):
    url = s3.url("tables")
    s3.write(url, "other.csv", b"entity1,entity2\nA,B\n")
    with pytest.raises(ValueError, match="no file of relationships at s3://.*known.csv"):
        load_databases([in_folder(url, "known.csv")])


def run_on_ray(storage: str, screen: str, node: str = "") -> None:
    """Runs the study and ends this process with its exit code.

    Args:
        storage: URL of studies.
        screen: URL of the screen.
        node: scratch folder of a node that does all the work of a cluster; without one a local Ray
            works in the driver's, and runs the trials in place alone.
    """
    study = STUDY_ON_RAY if node else dataclasses.replace(STUDY_ON_RAY, trials=(MAE, *BASELINES))
    cluster = None
    if node:
        cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
        )
        cluster.add_node(num_cpus=5, env_vars={SCRATCH_VARIABLE: node})
    files = StudyFiles.at(
        storage,
        study.name,
        index=in_folder(screen, "index.parquet"),
        relationships=(in_folder(screen, "relationships.csv"),),
        latents=in_folder(screen, "latents.parquet"),
    )
    size = ScreenSize(
        wells=108, sites_per_well=2, total_sites=288, channels=6, classes=33, site_px=64
    )
    address = cluster.address if cluster else None
    code = run_study(
        study, files, size, command="none", console=Console(width=200), address=address
    )
    if cluster:
        cluster.shutdown()
    sys.exit(code)


def started(folder: Path, *words: str) -> subprocess.Popen[bytes]:
    """`run_on_ray` in a process of its own, whose scratch folder is `folder`."""
    call = "from tests.test_study_storage import run_on_ray; run_on_ray(*sys.argv[1:])"
    return subprocess.Popen(
        [sys.executable, "-c", f"import sys; {call}", *words],
        cwd=Path(__file__).parents[1],
        env=os.environ | {SCRATCH_VARIABLE: str(folder), "RAY_AUTH_MODE": "disabled"},
    )


def kill(driver: subprocess.Popen[bytes]) -> None:
    """Ends a driver and all of its Ray at once."""
    family = psutil.Process(driver.pid).children(recursive=True) if driver.poll() is None else []
    driver.kill()
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    driver.wait()
    psutil.wait_procs(family, timeout=30)


def rows_there(s3: LocalS3, study: str) -> dict[str, tuple[int, int]]:
    """The rows in the store: size and time of each."""
    return {name: x for name, x in s3.files(study).items() if name.endswith("/row.json")}


@pytest.fixture(scope="module")
def resumed(
    tiny_screen: Path, s3: LocalS3, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """URL of a study, and the folder of three scratch folders.

    Its first driver was lost. The second knew the URL alone, and its node had a disk of its own.
    """
    storage, screen = s3.url("runs"), s3.put(tiny_screen)
    study, folder = in_folder(storage, STUDY_ON_RAY.name), tmp_path_factory.mktemp("scratch")
    lost = started(folder / "lost", storage, screen)
    try:
        while not (done := rows_there(s3, study)):
            assert lost.poll() is None
            time.sleep(0.1)
    finally:
        kill(lost)
    assert len(done) <= len(BASELINES)
    second = started(folder / "driver", storage, screen, str(folder / "node"))
    try:
        assert second.wait(600) == 0
    finally:
        kill(second)
    assert done.items() <= rows_there(s3, study).items(), "what was done is not done again"
    return study, folder


@pytest.mark.slow
def test_a_study_at_a_url_gives_the_rows_of_one_in_a_folder(
    resumed: tuple[str, Path], tiny_screen: Path, tmp_path: Path
):
    copy = local_copy(resumed[0])
    rows = {row.trial_id: row for row in read_rows(copy)}
    assert rows.keys() == {trial.id for trial in STUDY_ON_RAY.trials}
    files = StudyFiles(
        study_dir=tmp_path / "alone",
        index=tiny_screen / "index.parquet",
        relationships=(str(tiny_screen / "relationships.csv"),),
        latents=tiny_screen / "latents.parquet",
    )
    fit = fit_here(lambda cutter, first, last: cutter.stream(first, last))
    for trial in (MAE, *BASELINES):
        row = run_trial(trial, STUDY_ON_RAY, files, fit=fit, tell=lambda update: None)
        assert result_of(rows[trial.id]) == result_of(row)
    one, two = (json.loads((copy / f"trials/{t.id}/curve.json").read_text()) for t in (MAE, TWO))
    np.testing.assert_allclose(one["loss"], two["loss"], rtol=1e-5)


@pytest.mark.slow
def test_the_store_holds_all_of_it_and_a_driver_what_it_reads(
    resumed: tuple[str, Path], s3: LocalS3, monkeypatch
):
    study, folder = resumed
    there = s3.files(study)
    assert {"study.json", "files.json", "comparisons.json", "report.html"} <= there.keys()
    assert "mlflow.json" not in there, "the runs of a store that lies with the driver"
    for trial in (MAE, TWO):
        assert f"trials/{trial.id}/sites.parquet" in there
        assert any(f"trials/{trial.id}/checkpoints/step_" in name for name in there)
    monkeypatch.setenv(SCRATCH_VARIABLE, str(folder / "driver"))
    driver = working_copy(study)
    assert read_rows(driver) == read_rows(local_copy(study))
    assert checkpoints_of(TWO, StudyFiles.read(driver)).latest() is not None
    assert (driver / "report.html").read_bytes() and not list(driver.rglob("sites.parquet"))
    assert list((folder / "node").rglob("sites.parquet")), "a node keeps what it made"
    assert not {path.name for path in folder.rglob("*")} & {"checkpoints", "tune"}
