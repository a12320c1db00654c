"""A trial's encoder as a folder: weights, config, model card."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from phenoscale.checkpoint import Checkpoints
from phenoscale.code_version import code_version
from phenoscale.config import BACKBONES_OF, Trial
from phenoscale.export import (
    CONFIG_FILE,
    FORMAT_VERSION,
    WEIGHTS_FILE,
    EncoderFacts,
    kind_of,
    read_one,
    sha256,
    shape_of,
)
from phenoscale.export_graph import write_graphs
from phenoscale.flops import training_flops
from phenoscale.models.build import AnyEncoder, build_encoder, build_model
from phenoscale.results import ROW_FILE, ResultsRow, read_row, write_json
from phenoscale.study_files import CHECKPOINTS, MODEL_FILE, TRIAL_FILE

CARD_FILE = "README.md"
_CARD = """\
# {trial_id}

An encoder of microscopy images: crops of {size_px} x {size_px} pixels to {width} values.

    from phenoscale.export import load_encoder

    encoder = load_encoder({folder!r})
    embeddings = encoder.embed(crops, channels={channels})

Crops are uint8 (B, {count}, {size_px}, {size_px}), embeddings float32 (B, {width}). {takes}
Whole sites of an index: `phenoscale embed {folder} index.parquet --out embeddings.parquet`.
{graphs}
## What it is

| | |
|---|---|
{facts}

## How it was trained

| | |
|---|---|
{training}

config.json holds the whole trial.

## Scores

{scores}

## Use and limits

- For research: to compare the effects of perturbations on cells by images. Not for clinical use.
- Embeddings are comparable where channels and stains are the same, and images became 8 bits by the
  same rule.
- Differences between batches remain in them. Align on negative controls of each experimental batch
  before wells of several are compared (`phenoscale.maps.align`).
- Each channel of each crop is brought to mean 0 and variance 1 first (self-standardization): gain
  and offset of a stain do not matter, and how bright a crop is as a whole is not seen.
{plate}- The licence is for the owner of these weights, and of the images behind them, to give: none
  is stated here.
"""
_PLATE = """\
- The network normalizes by statistics of a plate: give `embed` the crops of one plate at a time,
  some dozens or more.
"""


def export_encoder(
    directory: str | Path,
    out: str | Path,
    *,
    readout: str | None = None,
    graphs: Sequence[str] = (),
    checkpoints: Checkpoints | None = None,
) -> EncoderFacts:
    """Writes a trial's encoder into a folder, whole or not at all.

    Args:
        directory: of the trial.
        out: folder to make.
        readout: what `embed` and the graphs give; by default the study's, and patch_mean where the
            trial has no row.
        graphs: of `GRAPH_FILE` and `ONNX_FILE`.
        checkpoints: of the trial, where they are not in its folder.

    Raises:
        ValueError: if `out` holds something, or the trial has no trained encoder, no such read-out
            or no graph.
    """
    directory, out = Path(directory), Path(out)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ValueError(f"{out} exists and is no empty folder. Give the name of a new one.")
    trial, screen = _read_trial(directory)
    checkpoints = checkpoints or Checkpoints((directory / CHECKPOINTS).resolve())
    encoder, steps = _trained_encoder(directory, trial, screen, checkpoints)
    row = read_row(directory) if (directory / ROW_FILE).exists() else None
    readout = readout or (row.readout if row else "patch_mean")
    part = out.absolute().with_name(f".{out.absolute().name}.{os.getpid()}.part")
    part.mkdir(parents=True)
    try:
        facts = _write(part, encoder, trial, readout, screen["index_fingerprint"], graphs)
        parameters = sum(x.numel() for x in encoder.parameters())
        training = _training(trial, screen, steps, row)
        (part / CARD_FILE).write_text(_card(out, trial, facts, parameters, training, row))
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return facts


def _read_trial(directory: Path) -> tuple[Trial, dict[str, Any]]:
    """A trial, and what of the screen its model needs."""
    try:
        trial = Trial.from_dict(json.loads((directory / TRIAL_FILE).read_text()))
        facts = json.loads((directory / MODEL_FILE).read_text())
    except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{directory} is no trial's folder: {TRIAL_FILE} or {MODEL_FILE} cannot be read "
            f"({error!r}). Give one of STUDY_DIR/trials."
        ) from error
    return trial, facts


def _trained_encoder(
    directory: Path, trial: Trial, facts: dict[str, Any], checkpoints: Checkpoints
) -> tuple[AnyEncoder, int]:
    """The trial's encoder from its last checkpoint, and the updates that made it."""
    if trial.objective.name not in BACKBONES_OF:
        raise ValueError(f"{directory} is the baseline {trial.objective.name}, without an encoder.")
    if trial.is_baseline:  # its seed is all that its weights follow from
        return build_encoder(trial, channels=facts["channels"]), 0
    model = build_model(trial, channels=facts["channels"], num_classes=facts["num_classes"])
    return model.encoder, checkpoints.load_weights(model).steps


def _write(
    folder: Path,
    encoder: AnyEncoder,
    trial: Trial,
    readout: str,
    fingerprint: str,
    graphs: Sequence[str],
) -> EncoderFacts:
    """Writes weights, graphs and config into an existing folder."""
    encoder.eval().requires_grad_(False)
    blank = torch.zeros(1, len(encoder.channels), *[trial.crops.size_px] * 2, dtype=torch.uint8)
    width = read_one(encoder, blank, encoder.channels, readout).shape[1]
    weights = {name: x.contiguous() for name, x in encoder.state_dict().items()}
    save_file(weights, folder / WEIGHTS_FILE)
    (folder / WEIGHTS_FILE).chmod(folder.stat().st_mode & 0o666)  # safetensors lets its owner alone
    facts = EncoderFacts(
        kind=kind_of(encoder),
        backbone=trial.backbone,
        shape=shape_of(trial.backbone),
        channels=list(encoder.channels),
        size_px=trial.crops.size_px,
        readout=readout,
        width=width,
        trial=trial.as_dict(),
        index_fingerprint=fingerprint,
        code_version=code_version(),
        weights_sha256=sha256(folder / WEIGHTS_FILE),
        graphs=write_graphs(folder, encoder, readout, blank, graphs) if graphs else {},
    )
    write_json(
        folder / CONFIG_FILE, {"format_version": FORMAT_VERSION, **dataclasses.asdict(facts)}
    )
    return facts


def _card(
    out: Path,
    trial: Trial,
    written: EncoderFacts,
    parameters: int,
    training: dict[str, str],
    row: ResultsRow | None,
) -> str:
    """The text of README.md."""
    agnostic = written.kind == "channel_agnostic_transformer"
    facts = {
        "backbone": f"{written.backbone}, {written.kind}, {parameters:,} parameters",
        "channels": ", ".join(written.channels),
        "read-out": f"{written.readout}, {written.width} values",
        "screen": f"index fingerprint {written.index_fingerprint}",
        "written by": f"phenoscale {written.code_version}",
        "weights": f"encoder.safetensors, SHA-256 {written.weights_sha256}",
    }
    graphs = [
        f"{file}: the same as a graph that needs no phenoscale, for crops of these channels in "
        f"this order; it differs by at most {difference:.1e}."
        for file, difference in written.graphs.items()
    ]
    return _CARD.format(
        trial_id=trial.id,
        folder=out.name,
        size_px=written.size_px,
        width=written.width,
        count="C" if agnostic else len(written.channels),
        channels=written.channels,
        takes=f"It takes {'any channels' if agnostic else 'exactly these channels'}, in any order.",
        graphs="".join(f"\n{line}\n" for line in graphs),
        facts=_table(facts),
        training=_table(training),
        scores=_scores(row),
        plate=_PLATE if written.kind == "densenet" else "",
    )


def _training(
    trial: Trial, facts: dict[str, Any], steps: int, row: ResultsRow | None
) -> dict[str, str]:
    """How a trial was trained, in words."""
    objective = trial.objective
    if trial.is_baseline:
        return {"objective": f"none: the weights are those that seed {trial.seed} begins with"}
    if objective.name == "wsl":
        aim = f"tell {facts['num_classes']} perturbations apart"
    else:
        aim = f"predict the {objective.mask_ratio:.0%} of each crop that is masked"
    crops = steps * trial.crops.global_batch_size
    flops = training_flops(trial, len(facts["channels"]), facts["num_classes"], crops)
    lines = {
        "objective": f"{objective.label}: {aim}",
        "crops seen": f"{crops:,}, in {steps:,} updates",
        "sites": "not recorded: the trial has no results row, nor is it known to be finished",
        "operations": f"{flops:.3g} FLOPs",
        "optimizer": f"{trial.optim.name}, peak learning rate {trial.optim.lr:g}",
        "seed": str(trial.seed),
    }
    if row:
        lines["sites"] = f"{row.unique_sites:,}, {row.data_fraction:.3g} of the training wells"
        lines["held-out loss"] = f"{row.held_out_loss:.4g}"
        lines["trained by"] = f"phenoscale {row.code_version}"
    return lines


def _scores(row: ResultsRow | None) -> str:
    """The scores of a row, in words."""
    if row is None:
        return "Not scored: the trial has no results row."
    over = f"{row.num_genes} genes, {row.num_relationships} annotated pairs"
    if row.metric == "balanced_accuracy":
        over = f"{row.num_genes} classes, {row.num_relationships} held-out sites"
    head = (
        f"{row.metric} of {row.readout}, fixed before training: **{row.score:.3f}** "
        f"[{row.score_low:.3f}, {row.score_high:.3f}], 95% interval by bootstrap, over {over}. Of "
        "a trial that was picked as the best of several it is somewhat optimistic."
    )
    scores = {name: f"{score:.3f}" for name, score in sorted(row.score_by_readout.items())}
    return f"{head}\n\n| read-out | {row.metric} |\n|---|---|\n{_table(scores)}"


def _table(cells: dict[str, str]) -> str:
    return "\n".join(f"| {name} | {text} |" for name, text in cells.items())
