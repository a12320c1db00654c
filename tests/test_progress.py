"""What a person sees while a study runs."""

from __future__ import annotations

import dataclasses
import io

import pytest
from rich.console import Console

from phenoscale import progress as module
from phenoscale.progress import StudyProgress
from tests.fabricated import make_row
from tests.tiny import TINY

OTHER = dataclasses.replace(TINY, seed=1)
COSTS = {TINY.id: (60.0, 20.0), OTHER.id: (15.0, 5.0)}


class Clock:
    """Time that passes when a test says so."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module.time, "monotonic", clock)
    return clock


def console_of(terminal: bool) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, force_terminal=terminal, width=120, color_system=None), out


def update(trial, phase: str, step: int | None = None) -> dict:
    told: dict = {"trial": trial.id, "phase": phase}
    if step is not None:
        told |= {"step": step, "steps": 10}
    return told


def test_elsewhere_than_on_a_terminal_lines_tell_how_far_and_how_long(clock: Clock):
    console, out = console_of(False)
    with StudyProgress(console, COSTS) as shown:
        clock.now += 16
        shown.progress(update(TINY, "train", 1))  # 6 of 100 done after 16 s
        clock.now += 4
        shown.progress(update(TINY, "train", 5))  # not yet: the last line is 4 s old
        clock.now += 20
        shown.progress(update(TINY, "embed", 5))  # 60 + 10 of 100 after 40 s
    lines = out.getvalue().splitlines()
    assert lines == ["  6% done, about 4.2 min to go", "  70% done, about 17 s to go"]


def test_nothing_is_forecast_from_the_first_seconds(clock: Clock):
    console, out = console_of(False)
    with StudyProgress(console, COSTS) as shown:
        clock.now += 16
        shown.progress(update(OTHER, "train", 1))  # 1.5 of 100
    assert out.getvalue() == "  2% done, starting\n"


def test_ended_trials_are_lines_with_their_score(clock: Clock):
    console, out = console_of(False)
    with StudyProgress(console, COSTS) as shown:
        shown.done(TINY, make_row(score=0.5, score_low=0.25, score_high=0.75, train_loss=0.125))
        shown.failed(OTHER, "Traceback ...\nValueError: no images\n")
    first, second = out.getvalue().splitlines()
    assert first.split() == [
        "[1/2]", TINY.id, "recall_0.05_0.95", "0.500", "[0.250,", "0.750]", "loss", "0.125"
    ]  # fmt: skip
    assert second.split() == ["[2/2]", OTHER.id, "failed:", "ValueError:", "no", "images"]


def test_a_failed_trial_counts_as_ended(clock: Clock):
    console, out = console_of(False)
    with StudyProgress(console, COSTS) as shown:
        clock.now += 20
        shown.failed(TINY, "out of memory")
    assert "80% done, about 5 s to go" in out.getvalue()


def test_what_is_no_trial_of_the_study_is_passed_over(clock: Clock):
    console, out = console_of(False)
    with StudyProgress(console, COSTS) as shown:
        clock.now += 100
        shown.progress({"trial": "another", "phase": "train", "step": 9, "steps": 10})
        shown.progress(update(TINY, "done"))
    assert out.getvalue() == ""


def test_a_terminal_shows_a_bar_for_what_runs_and_one_for_the_whole():
    console, out = console_of(True)
    with StudyProgress(console, COSTS) as shown:
        shown.progress(update(TINY, "train", 5) | {"loss": 0.5, "crops_per_s": 1234.0})
        shown.done(OTHER, make_row())
    text = out.getvalue()
    for expected in ("study of 2 trials", TINY.id, "train  loss 0.500  1234 crops/s", "[1/2]"):
        assert expected in text
    assert "to go" in text
