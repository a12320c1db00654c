"""What a study says at its end: what was found and where it is, what is left, what failed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from phenoscale.budget import Budget
from phenoscale.failures import Failure
from phenoscale.study_files import StudyFiles
from phenoscale.tracking import StudyMirror


def say_result(
    console: Console,
    files: StudyFiles,
    comparisons: dict[str, Any],
    report: Path,
    mirror: StudyMirror,
) -> None:
    """What a person reads first, and where the rest is."""
    for problem in mirror.problems:
        console.print(f"[yellow]{problem}[/yellow]", highlight=False)
    told, seeds = comparisons["best"], len(comparisons["seeds"])
    told = f"{told} and its other seeds ({seeds} in all)" if seeds > 1 else told
    for difference in comparisons["differences"]:
        console.print(
            f"  {told} less {difference['against']}: {difference['value']:+.3f} "
            f"[{difference['low']:+.3f}, {difference['high']:+.3f}]",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    study = files.storage or files.study_dir
    console.print(f"  report   {report}", highlight=False, soft_wrap=True)
    console.print(f"  rows     phenoscale results {study}", highlight=False, soft_wrap=True)
    console.print(f"  MLflow   phenoscale ui {study}", highlight=False, soft_wrap=True)
    console.print(f"  next     phenoscale plan {study}", highlight=False, soft_wrap=True)


def say_left_over(console: Console, over: Mapping[str, str], budget: Budget) -> None:
    """Which trials the budget left out, and how to go on."""
    if not over:
        return
    known = [budget.expected_hours(name) for name in over]
    hours = sum(hours for hours in known if hours is not None)
    console.print(
        f"[yellow]{len(over)} trials were not started[/yellow]: {budget.spent_hours():.2g} of "
        f"{budget.limit_hours:g} GPU-hours are spent, they are expected to take {hours:.2g} more. "
        "The same command with a larger --max-gpu-hours goes on with them.",
        highlight=False,
        soft_wrap=True,
    )
    for name, reason in over.items():
        console.print(f"  {name:<42} {reason}", highlight=False, markup=False, soft_wrap=True)


def say_failed(console: Console, failures: Mapping[str, Failure]) -> None:
    """Which trials failed, and why."""
    if not failures:
        return
    console.print(
        f"[red]{len(failures)} trials failed[/red]: {', '.join(failures)}",
        highlight=False,
        soft_wrap=True,
    )
    for name, failure in failures.items():
        line = Text(f"  {name:<42} ", style="red").append(str(failure), style="default")
        console.print(line, soft_wrap=True)


def say_interrupted(console: Console, left: int, trials: int) -> None:
    """How to go on with a study that Ctrl-C ended."""
    console.print(
        f"[yellow]interrupted[/yellow]: {left} of {trials} trials are left. The same command with "
        "--resume goes on, each from its last checkpoint.",
        highlight=False,
        soft_wrap=True,
    )
