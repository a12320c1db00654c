"""Failures by kind, from errors and from what Ray says of processes that are gone."""

from __future__ import annotations

import pytest
import torch

from phenoscale.failures import RETRIES, Failure, failure_of, failure_of_text, read_failure
from phenoscale.feed import StalledError
from phenoscale.guard import NonFiniteError
from phenoscale.screens.errors import MissingImageError, RootVanishedError
from phenoscale.screens.opened import BadSiteError


def raised(error: BaseException, cause: BaseException | None = None) -> BaseException:
    try:
        raise error from cause
    except BaseException as caught:  # noqa: BLE001 - with its traceback
        return caught


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (NonFiniteError("loss nan", {}), "non_finite"),
        (BadSiteError("3 sites"), "bad_sites"),
        (MissingImageError("no file"), "bad_sites"),
        (RootVanishedError("gone"), "storage"),
        (StalledError("no crops"), "stalled"),
        (MemoryError(), "memory"),
        (torch.OutOfMemoryError("CUDA out of memory"), "memory"),
        (ValueError("a bug"), "error"),
        (RuntimeError("crops came"), "error"),
    ],
)
def test_kinds_by_the_error(error, kind):
    assert failure_of(raised(error), {}).kind == kind


def test_what_lies_under_an_error_decides_too():
    assert failure_of(raised(RuntimeError("a task failed"), MemoryError()), {}).kind == "memory"


@pytest.mark.parametrize(
    ("text", "kind", "reason"),
    [
        (
            "The actor died unexpectedly before finishing this task.\n\tclass_name: ImplicitFunc\n"
            "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR",
            "lost",
            "The actor is dead because its worker process has died.",
        ),
        (
            "Task was killed due to the node running low on memory.\nMemory on the node was 23 GB",
            "memory",
            "Task was killed due to the node running low on memory.",
        ),
        (
            '\x1b[36mray::ImplicitFunc.train()\x1b[39m (pid=1)\n  File "x.py", line 1, in f\n'
            "    raise error\nModuleNotFoundError: No module named 'phenoscale'",
            "error",
            "ModuleNotFoundError: No module named 'phenoscale'",
        ),
        ("", "lost", "Its process ended without a word."),
    ],
)
def test_kinds_by_what_ray_says(text, kind, reason):
    failure = failure_of_text(text, {})
    assert (failure.kind, failure.reason) == (kind, reason)


def test_a_worker_group_tells_what_its_workers_met():
    from ray.exceptions import ActorDiedError
    from ray.train import WorkerGroupError

    failure = failure_of(raised(WorkerGroupError("Workers failed", {1: ActorDiedError()})), {})
    assert failure.kind == "lost" and "The actor died" in failure.reason
    full = WorkerGroupError("Workers failed", {0: ActorDiedError(), 1: MemoryError("7 GB")})
    assert failure_of(raised(full), {}).kind == "memory"


def test_the_reason_is_one_sentence_and_names_what_is_no_error_of_ours():
    assert failure_of(raised(StalledError("No crops came.\nLook.")), {}).reason == "No crops came."
    assert failure_of(raised(KeyError("x")), {}).reason == "KeyError: 'x'"


@pytest.mark.parametrize("kind", sorted(RETRIES))
def test_each_kind_is_tried_again_as_often_as_its_table_says(kind):
    again = [
        Failure(kind=kind, reason="", traceback="", attempts=n).is_last for n in range(1, 9)
    ].index(True)
    assert again == RETRIES[kind]


def test_attempts_of_a_kind_are_counted_over_all_that_went_before(tmp_path):
    counts = {"stalled": 1}
    failure = failure_of(raised(MemoryError()), counts)
    assert (failure.attempts, failure.is_last) == (1, False)
    failure = failure_of(raised(MemoryError("again")), counts)
    assert (failure.attempts, failure.is_last) == (2, True)
    assert counts == {"stalled": 1, "memory": 2}
    assert read_failure(tmp_path) is None
    failure.write(tmp_path)
    assert read_failure(tmp_path) == failure
    assert "MemoryError" in failure.traceback and str(failure).startswith("memory, 2 times: ")
