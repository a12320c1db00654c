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
    encoder: Annotated[Path, typer.Argument(help="Folder that phenoscale export wrote.")],
    index: Annotated[str, typer.Argument(help="Index of the screen, a path or a URL.")],
    out: Annotated[Path, typer.Option(help="Parquet file to write.")],
    channels: Annotated[
        list[str] | None,
        typer.Option(
            help="A channel to use; give it again for each. If not given: the encoder's own, or "
            "all of the screen's where the encoder takes any."
        ),
    ] = None,
    every_block: Annotated[
        bool, typer.Option("--every-block", help="Read each block of a transformer too.")
    ] = False,
    tolerated_bad_sites: Annotated[
        float, typer.Option(help="Share of unreadable sites to go on without.")
    ] = 0.0,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1, ...; a GPU where there is one.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
) -> None:
    """Embed every site of a screen with an exported encoder."""
    with clear_errors(), progress_bar("embedding") as tell:
        import torch

        from phenoscale.embed_index import embed_index
        from phenoscale.parallel import prepare_process

        prepare_process(threads)
        written, bad = embed_index(
            encoder,
            index,
            out,
            tell,
            channels=channels,
            every_block=every_block,
            tolerated_bad_sites=tolerated_bad_sites,
            device=device or ("cuda" if torch.cuda.is_available() else "cpu"),
        )
    if bad:
        typer.echo(f"{bad} unreadable sites are left out", err=True)
    typer.echo(f"{out}: {written} sites")
