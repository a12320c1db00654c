"""The verbs `phenoscale export` and `phenoscale embed`: what a study leaves to those who use it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from phenoscale.terminal import clear_errors, progress_bar


def export(
    trial: Annotated[Path, typer.Argument(help="A trial's folder: STUDY_DIR/trials/TRIAL_ID.")],
    out: Annotated[Path, typer.Option(help="Folder to make; it must not exist, or be empty.")],
    readout: Annotated[
        str | None,
        typer.Option(
            help="patch_mean, class_token, patch_sd, per_channel, block_1, ...: what embed gives; "
            "the study's, or patch_mean, if it is not given."
        ),
    ] = None,
    graph: Annotated[
        bool, typer.Option("--graph", help="Write encoder.pt2 too, which needs torch alone.")
    ] = False,
    onnx: Annotated[
        bool, typer.Option("--onnx", help="Write encoder.onnx too; needs the extra onnx.")
    ] = False,
    checkpoints: Annotated[
        str | None,
        typer.Option(help="Folder or URL of the study's checkpoints; the trial's by default."),
    ] = None,
) -> None:
    """Write a trial's encoder into a folder that is loaded without its study."""
    with clear_errors():
        from phenoscale.export_graph import GRAPH_FILE, ONNX_FILE
        from phenoscale.export_trial import export_encoder

        graphs = [GRAPH_FILE] * graph + [ONNX_FILE] * onnx
        elsewhere = None
        if checkpoints is not None:
            from phenoscale.fit import checkpoints_at
            from phenoscale.study_files import in_folder

            elsewhere = checkpoints_at(in_folder(checkpoints, trial.resolve().name))
        facts = export_encoder(trial, out, readout=readout, graphs=graphs, checkpoints=elsewhere)
        typer.echo(f"{out}: {facts.backbone}, {facts.readout}, {facts.width} values")
        for file, difference in facts.graphs.items():
            typer.echo(f"{out / file}: differs from the encoder by at most {difference:.1e}")


def embed(
    encoder: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="Folder that phenoscale export wrote, or timm:NAME, a timm model."
        ),
    ],
    index: Annotated[str, typer.Argument(help="Index of the screen, a path or a URL.")],
    out: Annotated[
        str, typer.Option(help="Folder of Parquet shards to make or to finish, a path or a URL.")
    ],
    channels: Annotated[
        list[str] | None,
        typer.Option(
            help="A channel to use; give it again for each. If not given: the encoder's own, or "
            "all of the screen's where the encoder takes any."
        ),
    ] = None,
    readout: Annotated[
        list[str] | None,
        typer.Option(help="A read-out to write; give it again for each. All if not given."),
    ] = None,
    every_block: Annotated[
        bool, typer.Option("--every-block", help="Read each block of a transformer too.")
    ] = False,
    level: Annotated[str, typer.Option(help="What a row is: site, well, or crop.")] = "site",
    actors: Annotated[
        int | None,
        typer.Option(min=1, help="Processes that encode, on Ray; in this process if not given."),
    ] = None,
    gpu: Annotated[
        bool | None,
        typer.Option("--gpu/--cpu", help="Where it encodes; on GPUs where there are any."),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(help="Ray cluster to run on; --actors are as many as it has room for."),
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of each process.")] = 1,
    tolerated_bad_sites: Annotated[
        float, typer.Option(help="Share of unreadable sites to go on without.")
    ] = 0.0,
    weights: Annotated[
        str | None,
        typer.Option(help="Of a timm model: a file, or random; from the hub if not given."),
    ] = None,
    feed: Annotated[
        str | None,
        typer.Option(help="How channels go into a timm model: one_by_one or three_by_three."),
    ] = None,
    crop_px: Annotated[
        int | None,
        typer.Option(help="Side of a tile; needed for timm models of no fixed input size."),
    ] = None,
    precision: Annotated[str, typer.Option(help="Of products: fp32 or bf16.")] = "fp32",
) -> None:
    """Embed every site of a screen; given again, the command goes on where it stopped."""
    with clear_errors(), progress_bar("embedding") as tell:
        import torch

        from phenoscale.embed_index import Runner, embed_index, in_place
        from phenoscale.embed_plan import EmbedOptions
        from phenoscale.parallel import prepare_process

        prepare_process(threads)
        options = EmbedOptions(
            channels=tuple(channels) if channels else None,
            readouts=tuple(readout) if readout else None,
            every_block=every_block,
            level=level,
            weights=weights,
            feed=feed,
            size_px=crop_px,
            precision=precision,
            tolerated_bad_sites=tolerated_bad_sites,
        )
        run: Runner = in_place
        on_ray = bool(actors or address)
        if on_ray:
            from phenoscale.on_ray.embed import on_actors

            run = on_actors(actors=actors, gpu=gpu, threads=threads, address=address)
        elif gpu and not torch.cuda.is_available():
            raise ValueError("--gpu was given, but torch finds no GPU here. Leave it out.")
        device = "cuda" if torch.cuda.is_available() and gpu is not False and not on_ray else "cpu"
        report = embed_index(encoder, index, out, tell, options, device=device, run=run)
    for line in report.lines():
        typer.echo(line)
    for line in report.warnings():
        typer.echo(line, err=True)
