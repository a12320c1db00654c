"""What a study's driver leaves for whoever asks how far it is."""

from __future__ import annotations

import dataclasses
import json
import re
import time
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from phenoscale import cli_status
from phenoscale.progress import heard_line
from phenoscale.results import write_json
from phenoscale.status import STATUS_FILE, StatusBoard, StudyStatus, read_status, spent_hours


class Clock:
    """Time that passes when a test says so."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


COSTS = {"a": (60.0, 20.0), "b": (15.0, 5.0)}


@pytest.fixture
def clock() -> Clock:
    return Clock()


def board_in(folder: Path, clock=time.time, **options) -> StatusBoard:
    return StatusBoard(folder, "small", ["done before", "a", "b"], COSTS, clock=clock, **options)


def test_a_trial_goes_through_its_states_and_phases(tmp_path: Path, clock: Clock):
    board = board_in(tmp_path, clock, hours={"a": 1.5, "b": 0.0, "done before": 0.5}.__getitem__)
    assert [t.state for t in board.snapshot().trials.values()] == ["done", "waiting", "waiting"]
    board.told({"trial": "a", "phase": "start"})
    clock.now += 10
    board.told({"trial": "a", "phase": "train", "step": 1, "steps": 10, "loss": 0.5,
                "crops_per_s": 99.0})  # fmt: skip
    clock.now += 10
    board.told({"trial": "a", "phase": "train", "step": 6, "steps": 10})
    trial = board.snapshot().trials["a"]
    assert (trial.state, trial.phase, trial.step, trial.steps) == ("running", "train", 6, 10)
    assert (trial.loss, trial.crops_per_s, trial.attempts) == (0.5, 99.0, 1)
    assert trial.share == pytest.approx(36 / 80)
    # 30 of 80 in the ten seconds since its first word, so 44 more take
    assert trial.left_s == pytest.approx(44 / 3)
    study = board.snapshot()
    assert study.share == pytest.approx(0.36)
    assert study.left_s == pytest.approx(20 * 0.64 / 0.36)
    assert (study.gpu_hours, trial.gpu_hours) == (2.0, 1.5)
    board.told({"trial": "a", "phase": "embed", "step": 1, "steps": 2})
    assert board.snapshot().trials["a"].share == pytest.approx(70 / 80)
    board.done("a")
    board.failed("b", "memory: full")
    study = board.snapshot()
    assert [t.state for t in study.trials.values()] == ["done", "done", "failed"]
    assert study.trials["b"].reason == "memory: full" and study.share == 1.0


def test_a_trial_that_goes_on_from_a_checkpoint_is_forecast_by_what_it_did_since(
    tmp_path: Path, clock: Clock
):
    board = board_in(tmp_path, clock)
    board.told({"trial": "a", "phase": "start"})
    board.told({"trial": "a", "phase": "train", "step": 8, "steps": 10})
    clock.now += 6
    board.told({"trial": "a", "phase": "retry", "kind": "lost", "reason": "gone"})
    trial = board.snapshot().trials["a"]
    assert (trial.state, trial.attempts, trial.reason) == ("running", 2, "lost: gone")
    board.told({"trial": "a", "phase": "train", "step": 8, "steps": 10})
    clock.now += 6
    board.told({"trial": "a", "phase": "train", "step": 9, "steps": 10})
    assert board.snapshot().trials["a"].left_s == pytest.approx(26)  # 6 of 80 in 6 s, 26 left


def test_a_trial_that_lost_its_process_begins_again_with_a_new_one(tmp_path: Path):
    board = board_in(tmp_path)
    for phase in ("start", "train", "retry", "start", "train"):
        board.told({"trial": "a", "phase": phase, "kind": "lost", "reason": "gone"})
    assert board.snapshot().trials["a"].attempts == 2


def test_the_file_holds_all_of_it_and_is_written_at_changes_and_in_between(tmp_path: Path):
    pushes: list[float] = []
    with board_in(tmp_path, push=lambda: pushes.append(time.time())) as board:
        board.told({"trial": "a", "phase": "start"})
        board.failed("b", "error: a bug")
        deadline = time.monotonic() + 20
        while read_status(tmp_path).count("failed") == 0:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        heard = read_status(tmp_path).heard_at
        while read_status(tmp_path).heard_at == heard:
            assert time.monotonic() < deadline, "no heartbeat"
            time.sleep(0.05)
        board.says("ended")
    left = read_status(tmp_path)
    assert left.state == "ended" and left.trials["b"].reason == "error: a bug"
    assert len(pushes) == 2, "at the start and at the end, and each half minute"
    assert StudyStatus.from_dict(json.loads(json.dumps(dataclasses.asdict(left)))) == left


def test_what_ends_a_driver_is_told(tmp_path: Path):
    for error, state in ((KeyboardInterrupt, "interrupted"), (RuntimeError, "broken")):
        with pytest.raises(error), board_in(tmp_path):
            raise error
        assert read_status(tmp_path).state == state


def test_hours_of_earlier_runs_are_read_back(tmp_path: Path):
    assert spent_hours(tmp_path) == {}
    board_in(tmp_path, hours=lambda trial: 0.25).write()
    assert spent_hours(tmp_path) == {"done before": 0.25, "a": 0.25, "b": 0.25}


@pytest.fixture
def command():
    app = typer.Typer()
    app.command()(cli_status.status)
    return lambda *words: CliRunner().invoke(app, list(map(str, words)))


def test_the_command_shows_every_trial_and_the_whole(tmp_path: Path, command):
    board = board_in(tmp_path, max_gpu_hours=4.0, hours=lambda trial: 0.5)
    board.told({"trial": "a", "phase": "start"})
    board.told({"trial": "a", "phase": "train", "step": 5, "steps": 1000, "crops_per_s": 1234.0})
    board.failed("b", "memory, 2 times: full")
    board.write()
    shown = command(tmp_path).output
    rows = {line.split()[0]: line for line in shown.splitlines() if line.strip()}
    assert "train 5/1,000" in rows["a"] and "1,234" in rows["a"] and "running" in rows["a"]
    assert "failed" in rows["b"] and rows["b:"] == "b: memory, 2 times: full"
    assert "3 trials: 1 done, 1 running, 1 failed, 1.5 of 4 GPU-hours; 20% done" in shown
    assert re.search(r"The driver was heard of \d+ s ago\.", shown)
    assert json.loads(command(tmp_path, "--json").output)["trials"]["a"]["step"] == 5


def test_watching_ends_with_the_study(tmp_path: Path, command):
    board = board_in(tmp_path)
    board.says("ended")
    board.write()
    seen = command(tmp_path, "--watch")
    assert seen.exit_code == 0 and "The study ended " in seen.output


def test_a_driver_that_was_not_heard_of_for_long_is_gone(tmp_path: Path, clock: Clock):
    status = board_in(tmp_path, clock).snapshot()
    assert "so it is gone" not in heard_line(status, clock.now + 50)
    assert heard_line(status, clock.now + 3000) == (
        "The driver was last heard of 50.0 min ago, so it is gone. The same command with --resume "
        "goes on from what is there."
    )


def test_what_is_no_study_or_of_another_version_is_refused(tmp_path: Path, command):
    none = command(tmp_path)
    assert none.exit_code == 2 and "has no status.json" in none.stderr
    write_json(tmp_path / STATUS_FILE, {"name": "x", "trials": {"a": {"colour": 1}}})
    other = command(tmp_path)
    assert other.exit_code == 2 and "another version" in other.stderr


def test_a_study_at_a_url_is_asked_from_anywhere(
    tmp_path: Path, command, s3, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PHENOSCALE_SCRATCH", str(tmp_path / "scratch"))
    (tmp_path / "study").mkdir()
    write_json(tmp_path / "study" / "study.json", {"name": "small"})
    board_in(tmp_path / "study").write()
    seen = command(s3.put(tmp_path / "study"))
    assert seen.exit_code == 0, seen.output
    assert "3 trials: 1 done, 2 waiting" in seen.output
