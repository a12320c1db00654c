"""What verbs of the command share: errors as one line, progress as a bar."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.console import Console

_WIDTH = 160  # of tables in a file or a pipe


@contextmanager
def clear_errors() -> Iterator[None]:
    """Shows what a user can mend as one line, leaves everything else as the fault that it is."""
    try:
        yield
    except (ValueError, OSError) as error:
        typer.secho(f"phenoscale: {error}", err=True, fg="red")
        raise typer.Exit(2) from error


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[..., None]]:
    """Shows a bar on a terminal, nothing elsewhere.

    Args:
        what: what is being done.

    Yields:
        A function to be told (done, total), or (done) where the total is not known.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(
        *columns,
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        task = progress.add_task(what, total=None)

        def tell(done: int, total: int | None = None) -> None:
            progress.update(task, completed=done, total=total)

        yield tell


def table_console() -> Console:
    """Where tables are printed: as wide as the terminal, and wide enough where there is none."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console.width = _WIDTH
    return console
