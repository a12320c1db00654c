"""What a person sees while a study runs: what is running, how far it is, how long to go."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from phenoscale.config import Trial
from phenoscale.results import ResultsRow

_QUIET_S = 15  # between progress lines where the output is no terminal


class StudyProgress:
    """Bars on a terminal, a line now and then elsewhere."""

    def __init__(self, console: Console, costs: Mapping[str, tuple[float, float]]) -> None:
        """Prepares to show trials whose (training, embedding) cost is known, in any one unit."""
        self._console = console
        self._costs = costs
        self._total = sum(train + embed for train, embed in costs.values())
        self._done: dict[str, float] = {}
        self._ended = 0
        self._bars = Progress(
            TextColumn("  {task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[note]}", style="dim"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._whole = self._bars.add_task(f"study of {len(costs)} trials", total=1.0, note="")
        self._tasks: dict[str, TaskID] = {}
        self._start = self._said = time.monotonic()

    def __enter__(self) -> StudyProgress:
        self._start = time.monotonic()
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bars.stop()

    def progress(self, update: Mapping[str, Any]) -> None:
        """Takes what a trial told."""
        name, phase = str(update["trial"]), str(update["phase"])
        if phase == "done" or name not in self._costs:
            return
        train, embed = self._costs[name]
        share = update["step"] / update["steps"] if "step" in update else 1.0
        done = {"train": train * share, "embed": train + embed * share}.get(phase, train + embed)
        self._done[name] = done
        note = phase
        if "loss" in update:
            note += f"  loss {update['loss']:.3f}  {update['crops_per_s']:.0f} crops/s"
        if "waited" in update:
            note += f"  waiting {update['waited']:.0%}"
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(name, total=1.0, note=note)
        self._bars.update(self._tasks[name], completed=done / (train + embed or 1.0), note=note)
        self._show_whole()

    def done(self, trial: Trial, row: ResultsRow) -> None:
        """Shows a finished trial's score."""
        self._end(trial)
        loss = "" if row.train_loss is None else f"  loss {row.train_loss:.3f}"
        self._line(
            f"{trial.id:<42} {row.metric} {row.score:.3f} "
            f"[{row.score_low:.3f}, {row.score_high:.3f}]{loss}"
        )

    def failed(self, trial: Trial, reason: str) -> None:
        """Shows a trial that ended without a row."""
        self._end(trial)
        self._line(f"[red]{trial.id:<42} failed[/red]: {reason.strip().splitlines()[-1]}")

    def _end(self, trial: Trial) -> None:
        self._ended += 1
        self._done[trial.id] = sum(self._costs[trial.id])
        if trial.id in self._tasks:
            self._bars.remove_task(self._tasks.pop(trial.id))
        self._show_whole()

    def _line(self, text: str) -> None:
        self._console.print(
            f"  [dim]\\[{self._ended}/{len(self._costs)}][/dim] {text}",
            highlight=False,
            soft_wrap=True,
        )

    def _show_whole(self) -> None:
        share = sum(self._done.values()) / (self._total or 1.0)
        elapsed = time.monotonic() - self._start
        left = "starting"
        if share > 0.02:
            left = f"about {_minutes(elapsed * (1 - share) / share)} to go"
        self._bars.update(self._whole, completed=share, note=left)
        if not self._console.is_terminal and time.monotonic() - self._said > _QUIET_S:
            self._said = time.monotonic()
            self._console.print(f"  {share:.0%} done, {left}", highlight=False)


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"
