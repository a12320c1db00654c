"""The verb `phenoscale submit`: a study as a job of a Ray cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from phenoscale.terminal import clear_errors

DETACHED = 130
"""Exit code after Ctrl-C, as a shell has it; the job goes on."""


def submit(
    experiment: Annotated[
        str | None,
        typer.Argument(help="Module, such as experiments.quickstart, or file (next_runs.py)."),
    ] = None,
    options: Annotated[
        list[str] | None, typer.Argument(help="Options of the experiment, after --.")
    ] = None,
    address: Annotated[
        str,
        typer.Option(envvar="RAY_API_SERVER_ADDRESS", help="Job server of the cluster."),
    ] = "http://127.0.0.1:8265",
    working_dir: Annotated[
        Path, typer.Option(help="Folder with the code; it goes to the cluster.")
    ] = Path("."),
    name: Annotated[
        str | None, typer.Option(help="Name of the job; by default the experiment's.")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow/--no-follow", help="Show its log until it ends.")
    ] = True,
    attach: Annotated[
        str | None, typer.Option(metavar="ID", help="Follow this job; submit nothing.")
    ] = None,
) -> None:
    """Run an experiment on a cluster; the exit code is the experiment's own.

    143: the job was stopped; 125: it never ran; 130: Ctrl-C, the job goes on; 2: it was refused.
    """
    with clear_errors():
        if (experiment is None) == (attach is None):
            raise ValueError(
                "give either an experiment to submit, such as experiments.quickstart, or "
                "--attach ID of a job to follow."
            )
        from phenoscale.on_ray.submit import Cluster

        cluster = Cluster(address)
        job = attach or cluster.submit(experiment or "", options or [], working_dir, name)
        at = f"--address {cluster.shown}"
        ways = (
            f"  again    phenoscale submit --attach {job} {at}\n"
            f"  state    RAY_AUTH_MODE=token ray job status {job} {at}\n"
            f"  stop     RAY_AUTH_MODE=token ray job stop {job} {at}"
        )
        if not follow:
            typer.echo(f"job {job} is submitted\n{ways}")
            return
        typer.echo(f"job {job} at {cluster.shown}; Ctrl-C leaves it running", err=True)
        try:
            ended = cluster.follow(job, lambda text: typer.echo(text, nl=False))
        except KeyboardInterrupt:
            typer.echo(f"\njob {job} goes on without this terminal\n{ways}", err=True)
            raise typer.Exit(DETACHED) from None
        except OSError:
            typer.echo(f"job {job} may go on\n{ways}", err=True)
            raise
    typer.secho(ended.text, err=True, fg="red" if ended.code else None)
    raise typer.Exit(ended.code)
