"""The verb `phenoscale status`: how far a study is, wherever its driver runs."""

from __future__ import annotations

import dataclasses
import json
import time
from typing import TYPE_CHECKING, Annotated

import typer

from phenoscale.cli_study import StudyPlace, study_dir
from phenoscale.terminal import clear_errors, table_console

if TYPE_CHECKING:
    from rich.console import RenderableType

    from phenoscale.status import StudyStatus

_EVERY_S = 2.0


def status(
    study: StudyPlace,
    watch: Annotated[
        bool, typer.Option("--watch", help="Look again and again, until the study ends.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Show how far every trial of a study is: state, step, crops/s, time to go."""
    with clear_errors():
        if as_json:
            typer.echo(json.dumps(dataclasses.asdict(_read(study)), indent=1))
        elif watch:
            _watch(study)
        else:
            table_console().print(_shown(_read(study)))


def _read(study: str) -> StudyStatus:
    from phenoscale.status import read_status

    return read_status(study_dir(study))


def _shown(found: StudyStatus) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    from phenoscale.progress import heard_line, reason_lines, study_table, whole_line

    lines = [found.name, *reason_lines(found), whole_line(found), heard_line(found, time.time())]
    name, *below = (Text(line) for line in lines)
    return Group(name, study_table(found), *below)


def _watch(study: str) -> None:
    """Shows the table until the study's driver has ended, or the reader presses Ctrl-C."""
    from rich.live import Live

    found = _read(study)
    with Live(_shown(found), console=table_console(), auto_refresh=False) as live:
        while found.state in ("running", "finishing"):
            time.sleep(_EVERY_S)
            found = _read(study)
            live.update(_shown(found), refresh=True)
