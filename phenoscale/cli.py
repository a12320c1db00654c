"""The command `phenoscale`: thin verbs over the package; imports wait until a verb needs them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from phenoscale import (
    cli_map,
    cli_models,
    cli_plan,
    cli_probe,
    cli_score,
    cli_status,
    cli_submit,
)
from phenoscale.cli_index import index_app
from phenoscale.cli_study import StudyPlace, study_dir
from phenoscale.terminal import clear_errors, progress_bar

app = typer.Typer(
    help="Scaling studies for high-content microscopy.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(index_app, name="index")

TrackingUri = Annotated[
    str | None, typer.Option(envvar="MLFLOW_TRACKING_URI", help="MLflow store or server.")
]


@app.command()
def synth(
    out: Annotated[Path, typer.Argument(help="Folder to make.")],
    seed: Annotated[int, typer.Option(help="Seed of the screen.")] = 0,
    complexes: Annotated[int, typer.Option(help="Planted complexes of four genes.")] = 60,
    opposed: Annotated[int, typer.Option(help="Complexes opposed to another.")] = 15,
    controls: Annotated[int, typer.Option(help="Control wells per experimental batch.")] = 64,
) -> None:
    """Simulate a screen with planted relationships, and index it."""
    with clear_errors():
        from rich.console import Console

        from phenoscale.screens.simulated.planted import ScreenSpec
        from phenoscale.screens.simulated.prepare import simulated_screen

        spec = ScreenSpec(
            seed=seed, num_complexes=complexes, num_opposed=opposed, controls_per_batch=controls
        )
        typer.echo(f"{simulated_screen(spec, out, Console())}/index.parquet")


@index_app.command("check")
def index_check(
    index: Annotated[str, typer.Argument(help="Index to check, a path or a URL.")],
    decode: Annotated[bool, typer.Option(help="Read every pixel, not headers alone.")] = False,
    listing: Annotated[
        Path | None, typer.Option("--list", help="CSV to write all bad sites to.")
    ] = None,
) -> None:
    """Count what an index holds and name what is wrong; exit code 1 if anything is."""
    with clear_errors():
        from phenoscale.screens.check import check_index
        from phenoscale.screens.index import ScreenIndex

        with progress_bar("checking") as tell:
            report = check_index(ScreenIndex.open(index), decode=decode, progress=tell)
        typer.echo("\n".join(report.lines()))
        if listing is not None:
            report.write_list(listing)
        raise typer.Exit(1 if report.problems else 0)


@index_app.command("show")
def index_show(
    index: Annotated[str, typer.Argument(help="Index to show, a path or a URL.")],
    out: Annotated[Path, typer.Option(help="PNG to write.")] = Path("contact_sheet.png"),
    sites: Annotated[int, typer.Option(min=1, help="Random sites to draw.")] = 8,
    seed: Annotated[int, typer.Option(help="Chooses the sites.")] = 0,
) -> None:
    """Draw random sites, a column per channel, as training will see them."""
    with clear_errors():
        from phenoscale.screens.index import ScreenIndex
        from phenoscale.screens.sheet import write_sheet

        rows = write_sheet(ScreenIndex.open(index), out, sites=sites, seed=seed)
        typer.echo(f"{out}: rows {', '.join(map(str, rows))} of the index")


@app.command()
def pack(
    index: Annotated[str, typer.Argument(help="Index of the screen, a path or a URL.")],
    out: Annotated[str, typer.Argument(help="Folder of the packed copy, a path or a URL.")],
    codec: Annotated[
        Literal["raw", "blosc"] | None,
        typer.Option(help="raw: fastest to cut (the default on disk); blosc: less to fetch (S3)."),
    ] = None,
    tolerated_bad_sites: Annotated[
        float, typer.Option(help="Share of unreadable sites that may be left out.")
    ] = 0.0,
    address: Annotated[
        str | None, typer.Option(help="Ray cluster; a local Ray if it is not given.")
    ] = None,
) -> None:
    """Copy a screen into a store that is fast to train from; a stopped run goes on."""
    with clear_errors():
        from rich.console import Console

        from phenoscale.on_ray.pack import pack_screen

        report = pack_screen(
            index,
            out,
            Console(),
            raw=None if codec is None else codec == "raw",
            tolerated_bad_sites=tolerated_bad_sites,
            address=address,
        )
        typer.echo("\n".join(report.lines()))


@app.command()
def train(
    index: Annotated[Path, typer.Argument(help="Index of the screen.")],
    out: Annotated[Path, typer.Option(help="Directory for the trial.")] = Path("runs/trial"),
    objective: Annotated[str, typer.Option(help="wsl, munet, mae or ca_mae.")] = "mae",
    backbone: Annotated[str, typer.Option(help="A name in the table of backbones.")] = "nano/16",
    passes: Annotated[int, typer.Option(help="Visits of every site.")] = 10,
    data_fraction: Annotated[float, typer.Option(help="Share of the wells.")] = 1.0,
    crop_px: Annotated[int, typer.Option(help="Side of a crop.")] = 128,
    global_batch_size: Annotated[int, typer.Option(help="Crops per update.")] = 64,
    crops_per_read: Annotated[
        int, typer.Option(help="Of the visits, those that one reading of a site serves.")
    ] = 1,
    sampling: Annotated[
        str, typer.Option(help="shuffled, plate_wise or class_balanced.")
    ] = "shuffled",
    crops_per_plate: Annotated[
        int, typer.Option(help="With plate_wise: crops of a plate that stand together.")
    ] = 16,
    tolerated_bad_sites: Annotated[
        float, typer.Option(help="Share of unreadable sites to go on without.")
    ] = 0.0,
    mask_ratio: Annotated[float, typer.Option(help="Share of patches that are removed.")] = 0.75,
    fourier_weight: Annotated[
        float, typer.Option(help='Share of the Fourier loss; 0.01 in the papers\' "+" models.')
    ] = 0.0,
    normalized_targets: Annotated[
        bool, typer.Option(help="Predict patches of zero mean and unit variance.")
    ] = False,
    channel_subsets: Annotated[
        bool, typer.Option(help="Train ca_mae on random channels in each step.")
    ] = False,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 3e-3,
    optimizer: Annotated[str, typer.Option(help="adamw, lion or muon.")] = "adamw",
    precision: Annotated[
        str, typer.Option(help="fp32, bf16, or auto: bf16 where the hardware has it.")
    ] = "auto",
    average: Annotated[
        float, typer.Option(help="Decay of a moving average of the weights; 0 for none.")
    ] = 0.0,
    rollback: Annotated[
        bool, typer.Option(help="Go back to the last milestone at the first spike of the loss.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of the trial.")] = 0,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
    crops_at_once: Annotated[
        int | None, typer.Option(help="Crops that go through the model together; all by default.")
    ] = None,
    compiled: Annotated[bool, typer.Option(help="Compile the model's layers.")] = False,
    recompute: Annotated[
        bool, typer.Option(help="Compute activations again instead of keeping them.")
    ] = False,
    profile: Annotated[bool, typer.Option(help="Write a trace of some steps.")] = False,
    checkpoints: Annotated[
        str | None, typer.Option(help="Folder or URL of checkpoints; in --out by default.")
    ] = None,
) -> None:
    """Train one trial in this process, without Ray or MLflow."""
    with clear_errors():
        from phenoscale import config
        from phenoscale.fit import fit_here, write_trial
        from phenoscale.parallel import prepare_process
        from phenoscale.screens.index import ScreenIndex
        from phenoscale.study_files import StudyFiles

        trial = config.Trial(
            objective=config.Objective(
                name=objective,
                mask_ratio=mask_ratio,
                fourier_weight=fourier_weight,
                normalized_targets=normalized_targets,
                channel_subsets=channel_subsets,
            ),
            backbone=backbone,
            crops=config.Crops(
                size_px=crop_px,
                data_fraction=data_fraction,
                passes=passes,
                global_batch_size=global_batch_size,
                crops_per_read=crops_per_read,
                sampling=sampling,
                crops_per_plate=crops_per_plate,
                tolerated_bad_sites=tolerated_bad_sites,
            ),
            optim=config.Optim(
                lr=lr, name=optimizer, precision=precision, average=average, rollback=rollback
            ),
            seed=seed,
            placement=config.Placement(
                threads=threads,
                crops_at_once=crops_at_once,
                compiled=compiled,
                recompute=recompute,
                profile=profile,
            ),
        )
        prepare_process(threads)

        def tell(update: dict[str, object]) -> None:
            typer.echo(
                f"step {update['step']}/{update['steps']}  loss {update['loss']:.4f}  "
                f"{update['crops_per_s']:.0f} crops/s"
            )

        files = StudyFiles(study_dir=out, index=index, checkpoints=checkpoints)
        write_trial(trial, files, ScreenIndex.open(index))
        fit = fit_here(lambda cutter, first, last: cutter.stream(first, last))
        fitted = fit(trial, files, tell)
        typer.echo(f"{fitted.train_s:.1f} s, checkpoints in {files.checkpoints_of(trial)}")


app.command()(cli_models.export)
app.command()(cli_models.embed)
app.command()(cli_score.score)
app.command()(cli_probe.probe)
app.command()(cli_plan.plan)
app.command()(cli_plan.forecast)
app.command()(cli_status.status)
app.command()(cli_submit.submit)
app.add_typer(cli_map.map_app, name="map")


@app.command()
def results(
    study: StudyPlace,
    as_json: Annotated[
        bool, typer.Option("--json", help="A JSON list instead of a table.")
    ] = False,
) -> None:
    """Print the results rows of a study, one per trial and baseline."""
    with clear_errors():
        from phenoscale.results import read_rows

        rows = read_rows(study_dir(study))
        if as_json:
            typer.echo(json.dumps([row.as_dict() for row in rows], indent=1))
            return
        typer.echo(f"{'trial':<46}{'crops':>9}{'FLOPs':>10}{'loss':>8}{'score':>8}  interval")
        for row in rows:
            loss = "-" if row.train_loss is None else f"{row.train_loss:.3f}"
            typer.echo(
                f"{row.trial_id:<46}{row.crops_seen:>9,}{row.training_flops:>10.2e}{loss:>8}"
                f"{row.score:>8.3f}  [{row.score_low:.3f}, {row.score_high:.3f}]"
            )
        typer.echo(f"score: {rows[0].metric if rows else 'no rows yet'}; all columns with --json")


@app.command()
def report(
    studies: Annotated[
        list[str],
        typer.Argument(help="Directory or URL of a study; several are compared on one page."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Page that compares several studies; comparison.html by default."),
    ] = None,
) -> None:
    """Write the report of a study anew from its rows, or a page that compares several studies."""
    with clear_errors():
        from phenoscale.reports.comparison_report import COMPARISON_FILE, write_comparison
        from phenoscale.reports.report import write_report

        study_dirs = [study_dir(study) for study in studies]
        if len(study_dirs) > 1:
            typer.echo(write_comparison(study_dirs, out or Path(COMPARISON_FILE)))
            return
        if out is not None:
            raise ValueError(
                f"--out is {out}, the page that compares several studies, but one study was given; "
                "its report is report.html in its own directory. Leave --out out, or give more."
            )
        typer.echo(write_report(study_dirs[0]))


@app.command()
def sync(study: StudyPlace, tracking_uri: TrackingUri = None) -> None:
    """Mirror the rows of a study to MLflow, as often as you like: nothing is logged twice."""
    with clear_errors():
        from phenoscale.mirror_store import MirrorError
        from phenoscale.tracking import sync as sync_study

        if "://" in study and tracking_uri is None:
            raise ValueError(
                "A study at a URL has no MLflow store beside it. Give --tracking-uri, or "
                "MLFLOW_TRACKING_URI, of the server that it is to be mirrored to."
            )
        try:
            typer.echo(f"{sync_study(study_dir(study), tracking_uri)} trials mirrored")
        except MirrorError as error:
            raise OSError(str(error)) from error


@app.command()
def models(
    as_json: Annotated[
        bool, typer.Option("--json", help="A JSON list instead of a table.")
    ] = False,
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="The table of docs/models.md.")
    ] = False,
) -> None:
    """Print the model zoo: parameters, FLOPs, memory and GPUs of every system."""
    from phenoscale import zoo

    typer.echo(zoo.as_json() if as_json else zoo.markdown() if as_markdown else zoo.table())


@app.command()
def ui(
    study_dir: Annotated[
        Path, typer.Argument(help="Directory of a study, such as runs/quickstart-seed0.")
    ],
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1.")] = 5000,
) -> None:
    """Open the MLflow dashboard of a study on this machine's loopback."""
    with clear_errors():
        import os
        import subprocess

        from phenoscale.mirror_links import ui_page
        from phenoscale.mirror_store import ui_command
        from phenoscale.tracking import ENVIRONMENT

        typer.echo(f"{ui_page(study_dir, port)}   (Ctrl-C ends it)")
        raise typer.Exit(
            subprocess.call(ui_command(study_dir, port), env={**ENVIRONMENT, **os.environ})
        )


if __name__ == "__main__":
    app()
