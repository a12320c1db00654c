"""The mirror in MLflow: a real SQLite store, written twice, locked, and out of reach."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from phenoscale.mirror_links import MirrorRuns
from phenoscale.mirror_store import MirrorError, ui_command
from phenoscale.results import write_json
from phenoscale.tracking import StudyMirror, sync
from tests.fabricated import METRIC, make_baseline, make_row, make_study, study_facts, write_trial

mlflow = pytest.importorskip("mlflow")
NOBODY = "http://127.0.0.1:9"
NAME = "quickstart-seed0"
LONG = "mae-long-s0-00000099"


@pytest.fixture(autouse=True)
def _short_waits_and_no_server_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr("phenoscale.tracking.RETRY_WAITS_S", (0.1, 0.1))


@pytest.fixture(scope="module")
def mirrored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that was mirrored as the driver does it: open, each trial, finish."""
    study_dir = tmp_path_factory.mktemp("runs") / "folder, with a space" / NAME
    write_json(study_dir / "study.json", study_facts(14))
    mirror = StudyMirror(study_dir, default_store(study_dir))
    mirror.open()
    rows = make_study(study_dir)
    (study_dir / "report.html").write_text("<html></html>")
    (study_dir / "figures").mkdir()
    for kind in ("png", "svg", "part"):
        (study_dir / "figures" / f"cost.{kind}").write_bytes(b"drawn")
    mirror.trial(write_trial(study_dir, make_row(steps=1500, trial_id=LONG)))
    for row in rows:
        mirror.trial(study_dir / "trials" / row.trial_id)
    mirror.finish()
    assert mirror.problems == []
    return study_dir


def default_store(study_dir: Path) -> str:
    return f"sqlite:///{study_dir}/mlflow.db"


def content(uri: str) -> dict[str, Any]:
    """Everything a store holds about its one study: runs by name, with every metric point."""
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(NAME)
    found = {}
    for run in client.search_runs([experiment.experiment_id]):
        run_id = run.info.run_id
        points = {
            name: [(p.step, p.value, p.timestamp) for p in client.get_metric_history(run_id, name)]
            for name in run.data.metrics
        }
        files = sorted(f.path for f in client.list_artifacts(run_id))
        info = (run_id, run.info.status, run.info.start_time, run.info.end_time)
        found[run.info.run_name] = (info, run.data.params, run.data.tags, points, files)
    return found


def test_a_study_becomes_a_parent_and_a_child_per_row(mirrored: Path) -> None:
    runs = content(default_store(mirrored))
    assert len(runs) == 1 + 20  # 15 trials, 5 baselines
    (parent_id, status, *_), params, tags, points, files = runs[NAME]
    assert status == "FAILED"  # failures.json names a trial
    assert tags["phenoscale.study"] == NAME
    assert {"results.json", "results.csv", "report.html", "comparisons.json"} <= set(files)
    client = mlflow.MlflowClient(tracking_uri=default_store(mirrored))
    pictures = [file.path for file in client.list_artifacts(parent_id, "figures")]
    assert sorted(pictures) == ["figures/cost.png", "figures/cost.svg"]
    assert points["trials"][0][1] == 15 and points["failed_trials"][0][1] == 1
    assert points["difference_to_untrained/low"][0][1] == pytest.approx(0.07)
    assert params["screen.sites"] == "3264"
    children = [run for name, run in runs.items() if name != NAME]
    assert {tags["mlflow.parentRunId"] for _, _, tags, _, _ in children} == {parent_id}


def test_a_trial_has_parameters_steps_scores_costs_and_files(mirrored: Path) -> None:
    info, params, tags, points, files = content(default_store(mirrored))[LONG]
    assert info[1] == "FINISHED"
    assert info[3] - info[2] == 68_400  # train + embed + score + overhead, ms
    assert params["objective"] == "mae" and params["data_fraction"] == "1.0"
    assert params["trial.objective.name"] == "mae"
    assert tags["trial_id"] == LONG and tags["backbone"] == "micro/16"
    assert tags["fingerprint"] == "f" * 64 and tags["code_version"] == "0.1.0+abc1234"
    assert [step for step, _, _ in points["loss"]] == list(range(1, 1501))  # 4 calls of <= 1000
    assert points["loss"][-1][1] == pytest.approx(0.41 + 0.0183156, rel=1e-5)
    times = [when for _, _, when in points["loss"]]
    assert times == sorted(times) and times[-1] - info[2] == 60_000
    assert points[METRIC][0][1] == 0.457 and points[f"{METRIC}/patch_sd"][0][1] == 0.483
    assert points["cpu_s"][0][1] == 66.0 and points["peak_memory_gib"][0][1] == 0.9
    assert files == ["panel.png", "row.json"]


def test_a_baseline_has_no_loss_rather_than_a_number(mirrored: Path) -> None:
    _, _, tags, points, files = content(default_store(mirrored))["oracle-s0-00000000"]
    assert "train_loss" not in points and "loss" not in points
    assert tags["phenoscale.kind"] == "baseline" and files == ["row.json"]


def test_mirroring_again_changes_nothing(mirrored: Path) -> None:
    before = content(default_store(mirrored))
    assert sync(mirrored, default_store(mirrored)) == 20
    assert content(default_store(mirrored)) == before


def test_a_half_written_trial_is_completed_without_doubles(mirrored: Path) -> None:
    uri = default_store(mirrored)
    before = content(uri)
    client = mlflow.MlflowClient(tracking_uri=uri)
    run_id = before[LONG][0][0]
    client.delete_tag(run_id, "phenoscale.mirrored")  # as if the driver had died before the end
    client.update_run(run_id, status="RUNNING")
    row_file = mirrored / "trials" / LONG / "row.json"
    row_file.touch()  # a copy of the study has other file times
    sync(mirrored, uri)
    assert content(uri) == before


def test_runs_are_left_for_the_report_to_link_to(mirrored: Path) -> None:
    runs = content(default_store(mirrored))
    left = MirrorRuns.read(mirrored)
    assert left is not None and left.parent == runs[NAME][0][0]
    assert left.runs == {name: run[0][0] for name, run in runs.items() if name != NAME}
    before = (mirrored / "mlflow.json").stat().st_mtime_ns
    sync(mirrored, default_store(mirrored))
    assert (mirrored / "mlflow.json").stat().st_mtime_ns == before
    page = left.link("abc")
    assert page == f"http://127.0.0.1:5000/#/experiments/{left.experiment_id}/runs/abc"
    assert not left.has_server


def test_a_link_to_a_server_has_no_password(tmp_path: Path) -> None:
    mirror = StudyMirror(tmp_path, "https://me:secret@team.example/ml")
    left = mirror.mirrored({"a": "b"})
    left.write(tmp_path)
    assert "secret" not in (tmp_path / "mlflow.json").read_text()
    assert left == MirrorRuns.read(tmp_path)
    assert left.links == {"a": "https://team.example/ml/#/experiments//runs/b"}


def test_a_trial_measured_again_is_a_run_of_its_own(tmp_path: Path, mirrored: Path) -> None:
    uri = default_store(mirrored)
    client = mlflow.MlflowClient(tracking_uri=uri)
    other = tmp_path / NAME
    write_trial(other, make_row(trial_id=LONG, steps=5, score=0.4))
    experiment = client.get_experiment_by_name(NAME).experiment_id
    before = len(client.search_runs([experiment]))
    sync(other, uri)
    runs = client.search_runs([experiment])
    assert len(runs) == before + 1
    scores = sorted(run.data.metrics[METRIC] for run in runs if run.info.run_name == LONG)
    assert scores == [0.4, 0.457]
    (added,) = [run for run in runs if run.data.metrics.get(METRIC) == 0.4]
    client.delete_run(added.info.run_id)


def test_an_unreachable_server_leaves_the_study_alone(tmp_path: Path) -> None:
    study_dir = tmp_path / "s"
    trial_dir = write_trial(study_dir, make_row())
    before = (trial_dir / "row.json").read_bytes()
    mirror = StudyMirror(study_dir, "http://user:secret@127.0.0.1:9")
    began = time.monotonic()
    mirror.open()
    mirror.trial(trial_dir)
    mirror.finish()
    assert time.monotonic() - began < 8
    (problem,) = mirror.problems
    assert f"phenoscale sync {study_dir} --tracking-uri http://***@127.0.0.1:9" in str(problem)
    assert "secret" not in str(problem) and "\n" not in str(problem)
    assert (trial_dir / "row.json").read_bytes() == before
    with pytest.raises(MirrorError, match="phenoscale sync"):
        sync(study_dir, NOBODY)


def test_a_store_that_comes_back_is_caught_up_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mirrored: Path
) -> None:
    study_dir = tmp_path / "late"
    uri = default_store(mirrored)  # a store that exists: nothing is migrated here
    monkeypatch.setattr("phenoscale.mirror_store.PROBE_S", 0.1)
    mirror = StudyMirror(study_dir, uri)
    with sqlite3.connect(mirrored / "mlflow.db", isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")  # somebody holds the store
        mirror.open()
        assert "locked" in str(mirror.problems[0])
        mirror.trial(write_trial(study_dir, make_row(steps=3)))
        other.execute("ROLLBACK")
    mirror.finish()
    assert mirror.problems == []
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("late")
    assert len(client.search_runs([experiment.experiment_id])) == 2
    client.delete_experiment(experiment.experiment_id)


def test_a_damaged_curve_is_said_and_not_logged(tmp_path: Path, mirrored: Path) -> None:
    trial_dir = write_trial(tmp_path / "torn", make_row(steps=3))
    write_json(trial_dir / "curve.json", {"step": [1, 2, 3], "loss": [1.0, 2.0]})
    with pytest.raises(MirrorError, match="3 steps and 2 values of loss"):
        sync(tmp_path / "torn", default_store(mirrored))
    client = mlflow.MlflowClient(tracking_uri=default_store(mirrored))
    client.delete_experiment(client.get_experiment_by_name("torn").experiment_id)


def test_sync_refuses_what_is_no_study(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a study"):
        sync(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_dashboard_listens_on_loopback_only(tmp_path: Path, mirrored: Path) -> None:
    command = ui_command(mirrored, port=5055)
    assert command[:4] == [sys.executable, "-m", "mlflow", "server"]
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert command[command.index("--port") + 1] == "5055"
    assert command[command.index("--backend-store-uri") + 1] == default_store(mirrored)
    assert command[command.index("--workers") + 1] == "1"
    with pytest.raises(ValueError, match="phenoscale sync"):
        ui_command(tmp_path)
    with pytest.raises(ValueError, match="open it in a browser"):
        ui_command(NOBODY)


def test_the_default_store_lies_in_the_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert StudyMirror(tmp_path).tracking_uri == default_store(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://team:5000")
    assert StudyMirror(tmp_path).tracking_uri == "http://team:5000"
    assert StudyMirror(tmp_path, "sqlite:////x/m.db").tracking_uri == "sqlite:////x/m.db"


def test_importing_the_mirror_imports_no_mlflow() -> None:
    code = "import sys, phenoscale.tracking; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_baselines_alone_make_a_study(tmp_path: Path, mirrored: Path) -> None:
    write_trial(tmp_path / "alone", make_baseline("intensity", 0.25))
    assert sync(tmp_path / "alone", default_store(mirrored)) == 1
    client = mlflow.MlflowClient(tracking_uri=default_store(mirrored))
    experiment = client.get_experiment_by_name("alone")
    statuses = {run.info.status for run in client.search_runs([experiment.experiment_id])}
    assert statuses == {"FINISHED"}
    client.delete_experiment(experiment.experiment_id)
