"""What a person sees while a study runs."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import pytest
from rich.console import Console

from phenoscale.progress import StudyProgress
from phenoscale.status import StatusBoard
from tests.fabricated import make_row
from tests.tiny import TINY

OTHER = dataclasses.replace(TINY, seed=1)
COSTS = {TINY.id: (60.0, 20.0), OTHER.id: (15.0, 5.0)}


class Clock:
    """Time that passes when a test says so."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Shown:
    """A study's board and display, told together as the driver tells them."""

    def __init__(self, folder: Path, clock: Clock, terminal: bool = False) -> None:
        self.out = io.StringIO()
        console = Console(file=self.out, force_terminal=terminal, width=160, color_system=None)
        self.board = StatusBoard(folder, "small", COSTS, COSTS, clock=clock)
        self.display = StudyProgress(console, self.board, len(COSTS))

    def told(self, trial, phase: str, step: int | None = None, **more: float) -> None:
        update = {"trial": trial.id, "phase": phase, **more}
        self.board.told(update | ({} if step is None else {"step": step, "steps": 10}))
        self.display.progress()

    def done(self, trial, **row) -> None:
        self.board.done(trial.id)
        self.display.done(trial, make_row(**row))

    def failed(self, trial, reason: str) -> None:
        self.board.failed(trial.id, reason)
        self.display.failed(trial, reason)

    def lines(self) -> list[str]:
        return self.out.getvalue().splitlines()


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_elsewhere_than_on_a_terminal_lines_tell_how_far_and_how_long(tmp_path, clock: Clock):
    shown = Shown(tmp_path, clock)
    with shown.display:
        clock.now += 16
        shown.told(TINY, "train", 1)  # 6 of 100 done after 16 s
        clock.now += 4
        shown.told(TINY, "train", 5)  # not yet: the last line is 4 s old
        clock.now += 20
        shown.told(TINY, "embed", 5)  # 60 + 10 of 100 after 40 s
    assert shown.lines() == ["  6% done, about 4.2 min to go", "  70% done, about 17 s to go"]


def test_nothing_is_forecast_from_the_first_seconds(tmp_path, clock: Clock):
    shown = Shown(tmp_path, clock)
    clock.now += 16
    shown.told(OTHER, "train", 1)  # 1.5 of 100
    assert shown.lines() == ["  2% done, starting"]


def test_ended_trials_are_lines_with_their_score(tmp_path, clock: Clock):
    shown = Shown(tmp_path, clock)
    shown.display.retried(TINY.id, "lost", "its [node] is gone")
    shown.done(TINY, score=0.5, score_low=0.25, score_high=0.75, train_loss=0.125)
    shown.failed(OTHER, "error, 2 times: ValueError: no images")
    again, first, second = shown.lines()
    assert again.split() == [
        "[0/2]", TINY.id, "tries", "again:", "lost:", "its", "[node]", "is", "gone"
    ]  # fmt: skip
    assert first.split() == [
        "[1/2]", TINY.id, "recall_0.05_0.95", "0.500", "[0.250,", "0.750]", "loss", "0.125"
    ]  # fmt: skip
    assert second.endswith(f"{OTHER.id:<42} failed: error, 2 times: ValueError: no images")


def test_a_failed_trial_counts_as_ended(tmp_path, clock: Clock):
    shown = Shown(tmp_path, clock)
    clock.now += 20
    shown.failed(TINY, "memory: full")
    assert "80% done, about 5 s to go" in shown.out.getvalue()


def test_what_is_no_trial_of_the_study_is_passed_over(tmp_path, clock: Clock):
    shown = Shown(tmp_path, clock)
    clock.now += 100
    shown.told(dataclasses.replace(TINY, seed=9), "train", 9)
    shown.told(TINY, "done")
    assert shown.lines() == []


def test_a_terminal_shows_a_bar_for_what_runs_and_a_line_for_the_whole(tmp_path, clock: Clock):
    shown = Shown(tmp_path, clock, terminal=True)
    with shown.display:
        clock.now += 10
        shown.told(TINY, "train", 2, loss=0.75, crops_per_s=999.0)
        clock.now += 10
        shown.told(TINY, "train", 5, loss=0.5, crops_per_s=1234.0)
        shown.done(OTHER)
    text = shown.out.getvalue()
    for expected in (TINY.id, "train 5/10", "loss 0.500", "1,234 crops/s", "28 s to go", "[1/2]"):
        assert expected in text
    assert "2 trials: 1 done, 1 running; 50% done, about 20 s to go" in text
