"""The mirror in MLflow: a real SQLite store, written twice, locked, and out of reach."""

from __future__ import annotations

import dataclasses
import json
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.mlflow_writers import write_together
from phenoscale.mirror_links import MirrorRuns, ui_page
from phenoscale.mirror_store import MirrorError, ui_command, without_password
from phenoscale.mirror_values import MOST_METRICS, TABLE_FILE
from phenoscale.mirror_view import VIEW_TAG, view_fragment
from phenoscale.results import write_json
from phenoscale.tracking import StudyMirror, sync
from tests.fabricated import METRIC, make_baseline, make_row, make_study, study_facts, write_trial
from tests.tiny import TINY

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
    with sqlite3.connect(uri.removeprefix("sqlite:///")) as tables:  # thousands of points at once
        stored = tables.execute("select run_uuid, key, step, value, timestamp from metrics")
        by_run: dict[str, dict[str, list[Any]]] = {}
        for run_id, key, *point in sorted(stored):
            by_run.setdefault(run_id, {}).setdefault(key, []).append(tuple(point))
    found = {}
    for run in client.search_runs([experiment.experiment_id]):
        run_id = run.info.run_id
        points = by_run.get(run_id, {})
        files = sorted(f.path for f in client.list_artifacts(run_id))
        info = (run_id, run.info.status, run.info.start_time, run.info.end_time)
        found[run.info.run_name] = (info, run.data.params, run.data.tags, points, files)
    return found


def test_a_study_becomes_a_parent_and_a_child_per_row(mirrored: Path) -> None:
    runs = content(default_store(mirrored))
    assert len(runs) == 1 + 20 + 1  # 15 trials, 5 baselines, a failure
    (parent_id, status, *_), params, tags, points, files = runs[NAME]
    assert status == "FAILED"  # failures.json names a trial
    assert tags["phenoscale.study"] == NAME
    assert {"results.json", "results.csv", "report.html", "comparisons.json"} <= set(files)
    client = mlflow.MlflowClient(tracking_uri=default_store(mirrored))
    pictures = [file.path for file in client.list_artifacts(parent_id, "figures")]
    assert sorted(pictures) == ["figures/cost.png", "figures/cost.svg"]
    assert len(points) <= MOST_METRICS
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
    assert tags["phenoscale.study"] == NAME and tags["seed"] == "0" and tags["workers"] == "1"
    assert tags["objective"] == "mae" and tags["data_fraction"] == "1.0000"
    assert "0.457 [0.356, 0.555]" in tags["mlflow.note.content"]
    assert [step for step, _, _ in points["loss"]] == list(range(1, 1501))  # 4 calls of <= 1000
    assert points["loss"][-1][1] == pytest.approx(0.41 + 0.0183156, rel=1e-5)
    times = [when for _, _, when in points["loss"]]
    assert times == sorted(times) and times[-1] - info[2] == 60_000
    assert points[METRIC][0][1] == 0.457 and points[f"{METRIC}_low"][0][1] == 0.356
    assert points["log10_training_flops"][0][1] == pytest.approx(13.4771, abs=1e-4)
    assert points["cpu_s"][0][1] == 66.0 and points["peak_memory_gib"][0][1] == 0.9
    assert files == [TABLE_FILE, "panel.png", "row.json"]


def test_a_baseline_has_no_loss_rather_than_a_number(mirrored: Path) -> None:
    _, _, tags, points, files = content(default_store(mirrored))["oracle-s0-00000000"]
    assert "train_loss" not in points and "loss" not in points
    assert tags["phenoscale.kind"] == "baseline" and files == [TABLE_FILE, "row.json"]
    assert "log10_training_flops" not in points


def test_numbers_beyond_forty_are_in_a_table_of_the_run(tmp_path: Path, mirrored: Path) -> None:
    study_dir, uri = tmp_path / "blocks", default_store(mirrored)
    readouts = {f"block_{n}": n / 100 for n in range(1, 61)}
    row = make_row(score_by_readout=readouts | {"patch_mean": 0.457})
    trial_dir = write_trial(study_dir, row)
    curve = {"step": [1, 2]} | {f"part_{n}": [1.0, 0.5] for n in range(30)}
    write_json(trial_dir / "curve.json", curve)
    write_json(trial_dir / "workers.json", [{"crops": 10, "train_s": 2.0, "data_wait_s": 0.5}])
    sync(study_dir, uri)
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("blocks")
    (run,) = client.search_runs([experiment.experiment_id], "tags.`phenoscale.kind` = 'trial'")
    assert len(run.data.metrics) == MOST_METRICS and "part_0" in run.data.metrics
    local = client.download_artifacts(run.info.run_id, TABLE_FILE, str(tmp_path))
    table = json.loads(Path(local).read_text())
    assert table["columns"] == ["group", "name", "value"]
    lines = {(group, name): value for group, name, value in table["data"]}
    assert lines["score_by_readout", "block_60"] == 0.6 and lines["row", "num_genes"] == 240
    assert lines["worker_0", "crops_per_s"] == 5.0 and lines["worker_0", "waited_share"] == 0.25
    for field, value in dataclasses.asdict(row).items():  # no number of the row is lost
        if isinstance(value, int | float) and not field.startswith("score"):
            assert field in run.data.metrics or field in run.data.params or ("row", field) in lines
    client.delete_experiment(experiment.experiment_id)


def test_the_first_click_leads_to_trials_and_charts(mirrored: Path) -> None:
    uri = default_store(mirrored)
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(NAME)
    note = content(uri)[NAME][2]["mlflow.note.content"]
    assert experiment.tags["mlflow.note.content"] == note
    assert "Best trial: mae-micro-16-f1-s0-00000005, recall of known relationships **0.450" in note
    assert "- best less intensity statistics: +0.200 [" in note and "1 failed" in note
    assert f"({view_fragment(experiment.experiment_id)})" in note
    assert "No encoder is registered: " in note and str(mirrored) not in note
    view = json.loads(json.loads(experiment.tags[VIEW_TAG])["state"])
    assert {"tags.`objective`", f"metrics.`{METRIC}`"} <= set(view["selectedColumns"])
    kinds = [chart["type"] for chart in view["compareRunCharts"]]
    assert kinds == ["SCATTER", "BAR", "LINE"]


def test_a_failure_is_a_failed_run_until_its_trial_has_a_row(
    tmp_path: Path, mirrored: Path
) -> None:
    study_dir, uri = tmp_path / "mended", default_store(mirrored)
    mirror = StudyMirror(study_dir, uri)
    mirror.failed(TINY, "Traceback\nOSError: s3://key:secret@store/x is out of reach")
    mirror.failed(TINY, "Traceback\nOSError: the node is gone")
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("mended").experiment_id
    (run,) = client.search_runs([experiment], "tags.`phenoscale.kind` = 'trial'")
    assert run.info.status == "FAILED" and run.info.run_name == TINY.id
    assert run.data.tags["phenoscale.reason"] == "Traceback\nOSError: the node is gone"
    assert run.data.tags["backbone"] == TINY.backbone and run.data.tags["objective"] == "mae"
    assert run.data.tags["seed"] == "0" and run.data.tags["data_fraction"] == "1.0000"
    mirror.trial(write_trial(study_dir, make_row(trial_id=TINY.id, steps=3)))
    (good,) = client.search_runs([experiment], "tags.`phenoscale.kind` = 'trial'")
    assert good.info.status == "FINISHED"
    (old,) = client.search_runs([experiment], "tags.`phenoscale.kind` = 'superseded'")
    assert old.info.run_id == run.info.run_id and old.info.status == "FAILED"
    assert old.data.tags["phenoscale.superseded"] == good.info.run_id
    assert mirror.problems == []
    client.delete_experiment(experiment)


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://me:pa@ss!secret@db.example/x",
        "https://team.example/?user=me&password=secret#top",
        "OSError at s3://key:secret@host/bucket",
        "mysql://h/db?ssl_token=secret",
    ],
)
def test_passwords_are_not_shown(text: str) -> None:
    assert "secret" not in without_password(text) and "***" in without_password(text)


def test_nothing_in_a_store_names_a_password(tmp_path: Path, mirrored: Path) -> None:
    study_dir, uri = tmp_path / "quiet", default_store(mirrored)
    write_trial(study_dir, make_row(steps=3))
    told = "cannot reach postgresql://me:swordfish@db/x?password=swordfish"
    write_json(study_dir / "failures.json", [{"trial_id": "mae-x", "error": told}])
    sync(study_dir, uri)
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("quiet")
    assert "swordfish" not in str(experiment.tags)
    for run in client.search_runs([experiment.experiment_id]):
        assert "swordfish" not in str(run.to_dictionary())
        folder = tmp_path / run.info.run_id
        folder.mkdir()
        client.download_artifacts(run.info.run_id, "", str(folder))
        kept = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
        assert b"swordfish" not in kept
    client.delete_experiment(experiment.experiment_id)


def test_drivers_that_write_together_lose_and_double_nothing(tmp_path: Path) -> None:
    store = tmp_path / "mlflow.db"  # which none of them finds: they create it together, too
    written = write_together(tmp_path, f"sqlite:///{store}", store, processes=3, points=400)
    assert written.points == written.expected == 1200
    assert written.doubled == 0 and written.problems == []


def test_mirroring_again_changes_nothing(mirrored: Path) -> None:
    before = content(default_store(mirrored))
    assert sync(mirrored, default_store(mirrored)) == 20
    assert content(default_store(mirrored)) == before


def test_a_half_written_trial_is_completed_without_doubles(mirrored: Path) -> None:
    uri = default_store(mirrored)
    before = content(uri)
    client = mlflow.MlflowClient(tracking_uri=uri)
    run_id = before[LONG][0][0]
    for run in (run_id, before[NAME][0][0]):  # as if the driver had died before the end
        client.delete_tag(run, "phenoscale.mirrored")
    client.update_run(run_id, status="RUNNING")
    row_file = mirrored / "trials" / LONG / "row.json"
    row_file.touch()  # a copy of the study has other file times
    sync(mirrored, uri)
    assert content(uri) == before


def test_runs_are_left_for_the_report_to_link_to(mirrored: Path) -> None:
    runs = content(default_store(mirrored))
    left = MirrorRuns.read(mirrored)
    assert left is not None and left.parent == runs[NAME][0][0]
    with_row = {name: run for name, run in runs.items() if run[0][1] == "FINISHED"}
    assert left.runs == {name: run[0][0] for name, run in with_row.items()}
    before = (mirrored / "mlflow.json").stat().st_mtime_ns
    sync(mirrored, default_store(mirrored))
    assert (mirrored / "mlflow.json").stat().st_mtime_ns == before
    page = left.link("abc")
    assert page == f"http://127.0.0.1:5000/#/experiments/{left.experiment_id}/runs/abc"
    assert not left.has_server


def test_a_link_to_a_server_has_no_password() -> None:
    server = "https://me:secret@team.example/ml"
    left = MirrorRuns(tracking_uri=server, experiment_id="7", parent="a", runs={"a": "b"})
    assert left.links == {"a": "https://team.example/ml/#/experiments/7/runs/b"}
    assert left.view() == f"https://team.example/ml/{view_fragment('7')}"


def test_the_dashboard_opens_on_the_view(tmp_path: Path, mirrored: Path) -> None:
    left = MirrorRuns.read(mirrored)
    assert left is not None
    page = f"http://127.0.0.1:5055/{view_fragment(left.experiment_id)}"
    assert ui_page(mirrored, 5055) == page
    assert ui_page(tmp_path, 5055) == "http://127.0.0.1:5055/#/experiments/1/runs"


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
    monkeypatch.setattr("phenoscale.mirror_store.LOCK_S", 0.1)
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
    hosts = command[command.index("--allowed-hosts") + 1].split(",")
    assert {host.partition(":")[0] for host in hosts} == {"localhost", "127.0.0.1"}
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
