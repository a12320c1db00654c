"""What a person sees while a study runs: what is running, how far it is, how long to go."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from phenoscale.config import Trial
from phenoscale.results import ResultsRow
from phenoscale.status import GONE_S, StatusBoard, StudyStatus, TrialStatus

_QUIET_S = 15  # between progress lines where the output is no terminal
_COLORS = {"running": "green", "done": "dim", "failed": "red", "not_started": "yellow"}


class StudyProgress:
    """A table on a terminal, a line now and then elsewhere."""

    def __init__(self, console: Console, board: StatusBoard, trials: int) -> None:
        """Prepares to show what `board` knows of a study of which `trials` are to run."""
        self._console = console
        self._board = board
        self._trials = trials
        self._ended = 0
        self._said = board.snapshot().started_at
        self._live = Live(
            get_renderable=self._shown, console=console, transient=True, refresh_per_second=2
        )

    def __enter__(self) -> StudyProgress:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()

    def _shown(self) -> RenderableType:
        status = self._board.snapshot()
        running = {n: trial for n, trial in status.trials.items() if trial.state == "running"}
        return Group(running_table(running), Text("  ").append(whole_line(status)))

    def progress(self) -> None:
        """Says how far the study is, where that was not said for a while."""
        if self._console.is_terminal:
            return
        status = self._board.snapshot()
        if status.heard_at - self._said > _QUIET_S and status.share > 0:
            self._said = status.heard_at
            self._console.print(f"  {status.share:.0%} done, {_to_go(status)}", highlight=False)

    def retried(self, trial: str, kind: str, reason: str) -> None:
        """Shows that a trial failed and goes on."""
        self._line(f"[yellow]{trial:<42} tries again[/yellow]: ", f"{kind}: {reason}")

    def done(self, trial: Trial, row: ResultsRow) -> None:
        """Shows a finished trial's score."""
        self._ended += 1
        loss = "" if row.train_loss is None else f"  loss {row.train_loss:.3f}"
        self._line(
            f"{trial.id:<42} ",
            f"{row.metric} {row.score:.3f} [{row.score_low:.3f}, {row.score_high:.3f}]{loss}",
        )
        self.progress()

    def failed(self, trial: Trial, reason: str) -> None:
        """Shows a trial that ended without a row."""
        self._ended += 1
        self._line(f"[red]{trial.id:<42} failed[/red]: ", reason.strip().splitlines()[-1])
        self.progress()

    def _line(self, head: str, text: str) -> None:
        line = Text.from_markup(f"  [dim]\\[{self._ended}/{self._trials}][/dim] {head}")
        self._console.print(line.append(text), soft_wrap=True)


def running_table(trials: dict[str, TrialStatus]) -> Table:
    """Running trials: how far, phase and steps, loss, crops per second, time to go."""
    rows = [
        [
            f"  {name}",
            f"{trial.share:.0%}",
            _phase(trial),
            "" if trial.loss is None or trial.phase != "train" else f"loss {trial.loss:.3f}",
            _speed(trial, " crops/s"),
            "" if trial.left_s is None else f"{_minutes(trial.left_s)} to go",
        ]
        for name, trial in trials.items()
    ]
    return _filled(Table.grid(padding=(0, 2)), rows, ("",) * 6)


def study_table(status: StudyStatus) -> Table:
    """All trials of a study: state, steps, crops per second, time to go, attempts, hours."""
    rows = [
        [
            name,
            trial.state.replace("_", " "),
            _phase(trial) if trial.state == "running" else "",
            _speed(trial) if trial.state == "running" else "",
            "" if trial.left_s is None else _minutes(trial.left_s),
            str(trial.attempts) if trial.attempts > 1 else "",
            f"{trial.gpu_hours:.2g}" if trial.gpu_hours else "",
        ]
        for name, trial in status.trials.items()
    ]
    table = Table(box=None, header_style="bold", pad_edge=False)
    columns = ("trial", "state", "step", "crops/s", "to go", "attempts", "GPU-h")
    styles = [_COLORS.get(trial.state, "") for trial in status.trials.values()]
    return _filled(table, rows, columns, styles)


def _filled(
    table: Table, rows: list[list[str]], columns: tuple[str, ...], styles: Sequence[str] = ()
) -> Table:
    """The table with these rows; where there is no room it is the name that is cut short."""
    table.add_column(columns[0], overflow="ellipsis")
    for number, column in enumerate(columns[1:], 1):
        width = max(len(text) for text in (column, *(row[number] for row in rows)))
        right = bool(column) and number > 1
        table.add_column(
            column, no_wrap=True, min_width=width, justify="right" if right else "left"
        )
    for number, row in enumerate(rows):
        table.add_row(*row, style=styles[number] if styles else None)
    return table


def reason_lines(status: StudyStatus) -> list[str]:
    """Why trials failed, were tried again or were not started: a line each."""
    return [f"{name}: {trial.reason}" for name, trial in status.trials.items() if trial.reason]


def whole_line(status: StudyStatus) -> str:
    """The study in one line: how many trials are in which state, how far it is, how long to go."""
    counts = {state: status.count(state) for state in ("done", "running", "waiting", "failed")}
    words = [f"{n} {state}" for state, n in counts.items() if n or state == "done"]
    if left := status.count("not_started"):
        words.append(f"{left} not started")
    budget = "" if status.max_gpu_hours is None else f" of {status.max_gpu_hours:g}"
    hours = f", {status.gpu_hours:.2g}{budget} GPU-hours" if budget else ""
    end = _to_go(status) if status.state == "running" else status.state
    share = f"{status.share:.0%} done, " if status.state == "running" else ""
    return f"{len(status.trials)} trials: {', '.join(words)}{hours}; {share}{end}"


def heard_line(status: StudyStatus, now: float) -> str:
    """When the driver was last heard of, and what that means."""
    if status.state in ("ended", "interrupted", "broken"):
        return f"The study {status.state} {_minutes(now - status.heard_at)} ago."
    ago = now - status.heard_at
    if ago < GONE_S:
        return f"The driver was heard of {_minutes(ago)} ago."
    return (
        f"The driver was last heard of {_minutes(ago)} ago, so it is gone. The same command with "
        "--resume goes on from what is there."
    )


def _phase(trial: TrialStatus) -> str:
    if trial.step is None or not trial.steps:
        return trial.phase
    return f"{trial.phase} {trial.step:,}/{trial.steps:,}"


def _speed(trial: TrialStatus, unit: str = "") -> str:
    if trial.crops_per_s is None or trial.phase != "train":
        return ""
    return f"{trial.crops_per_s:,.0f}{unit}"


def _to_go(status: StudyStatus) -> str:
    return "starting" if status.left_s is None else f"about {_minutes(status.left_s)} to go"


def _minutes(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
