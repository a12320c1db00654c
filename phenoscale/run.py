"""The life of one trial: train, embed, score, write the row.

The same code in place and under Ray Train. Whoever launches a trial supplies `fit`,
which trains it here or on a worker group.
"""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from phenoscale import flops, parallel, train
from phenoscale.code_version import code_version
from phenoscale.config import Study, Trial
from phenoscale.embed_screen import embed_screen
from phenoscale.fit import Fitted, Tell, checkpoints_of, write_evidence, write_trial
from phenoscale.guard import NonFiniteError
from phenoscale.maps.relationships import load_databases
from phenoscale.maps.score import Score, score_probe, score_recall
from phenoscale.models.build import AnyEncoder, build_encoder, build_model
from phenoscale.models.classifier import Classifier
from phenoscale.models.panel import MaskedModel, panel
from phenoscale.record import Record
from phenoscale.reference import reference_encoder
from phenoscale.results import CURVE_FILE, NOT_TRAINED, ResultsRow, write_json, write_samples
from phenoscale.screens.cutter import CropCutter
from phenoscale.screens.index import ScreenIndex
from phenoscale.screens.opened import BadSiteError, Batch
from phenoscale.screens.site_reader import SiteReader
from phenoscale.screens.storage import open_file
from phenoscale.slot import Slot
from phenoscale.study_files import (
    BAD_SITES_FILE,
    MAP_FILE,
    PANEL_FILE,
    SITES_FILE,
    WORKERS_FILE,
    StudyFiles,
)

_PANEL_CROPS = 3


def run_trial(
    trial: Trial,
    study: Study,
    files: StudyFiles,
    *,
    fit: Callable[[Trial, StudyFiles, Tell], Fitted],
    tell: Tell,
) -> ResultsRow:
    """Runs a trial or baseline from nothing, or from its last checkpoint, to its row on disk.

    Raises:
        ValueError: if a trained trial holds nothing out, or its study lacks what its score needs.
    """
    slot = Slot()
    if not trial.is_baseline and not trial.crops.held_out:
        raise ValueError(
            f"Trial {trial.id} holds nothing out, and its row needs a held-out loss. Name plates "
            "(experimental_batch/plate) or experimental batches in crops.held_out."
        )
    parallel.prepare_process(trial.placement.threads)
    directory = files.trial_dir(trial)
    if files.storage is not None:
        # What an earlier study at this URL left on this node would be pushed as this trial's.
        shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True, exist_ok=True)
    index = ScreenIndex.open(files.index)
    channels, classes = index.channels, index.num_classes
    write_trial(trial, files, index)

    fitted = None
    encoder: AnyEncoder | None = None
    model_loss: float | None = None
    clock = time.perf_counter()
    if not trial.is_baseline:
        try:
            fitted = fit(trial, files, tell)
        except NonFiniteError as error:
            # The worker that met it wrote it too, but perhaps on a node that shares no disk.
            write_evidence(directory, error.evidence, index)
            raise
        _check_delivery(trial, files, fitted)
        model = build_model(trial, channels=channels, num_classes=classes)
        checkpoints_of(trial, files).load_weights(model)
        write_json(directory / CURVE_FILE, dataclasses.asdict(fitted.record.curve))
        clock = time.perf_counter()
        model_loss = train.held_out_loss(trial, model, held_out_batches(trial, files))
        if not isinstance(model, Classifier):
            write_panel(directory / PANEL_FILE, trial, model, files)
        encoder = model.encoder
    elif trial.objective.name in ("untrained", "untrained_ca"):
        encoder = build_encoder(trial, channels=channels)
    elif trial.objective.name == "reference":
        encoder = reference_encoder(trial, channels=channels)
    reader = SiteReader(index_path=str(files.index), crops=trial.crops)
    embeddings, skipped = embed_trial(trial, study, encoder, reader, files, tell)
    embed_s = time.perf_counter() - clock

    clock = time.perf_counter()
    tell({"trial": trial.id, "phase": "score"})
    # A baseline without the study's read-out, a timm model among them, has its own, the first.
    readout = study.readout if study.readout in embeddings else next(iter(embeddings))
    score = _score(trial, study, files, index, embeddings, readout, skipped)
    score_s = time.perf_counter() - clock

    record = fitted.record if fitted else Record(precision=NOT_TRAINED)
    loss = record.curve.loss
    crops_seen = record.steps * trial.crops.global_batch_size
    operations = flops.training_flops(trial, len(channels), classes, crops_seen)
    unique = _cutter(trial, files).num_sites if fitted else 0
    used = slot.used()
    row = ResultsRow(
        trial_id=trial.id,
        objective=trial.objective.label,
        backbone=trial.shown_backbone,
        data_fraction=float(trial.crops.data_fraction) if fitted else 0.0,
        seed=trial.seed,
        workers=trial.placement.workers,
        launcher=trial.placement.launcher,
        num_parameters=sum(p.numel() for p in encoder.parameters()) if encoder is not None else 0,
        optimizer=trial.optim.name if fitted else NOT_TRAINED,
        lr=trial.optim.lr if fitted else 0.0,
        lr_source=trial.optim.lr_source if fitted else NOT_TRAINED,
        precision=record.precision,
        training_flops=operations,
        crops_seen=crops_seen,
        unique_sites=min(unique, crops_seen),
        unique_crops=min(unique * _crops_in_site(trial, index), crops_seen),
        steps=record.steps,
        train_loss=float(np.mean(loss[-max(1, len(loss) // 10) :])) if fitted else None,
        held_out_loss=model_loss,
        readout=readout,
        metric=study.metric,
        score=score.headline.value,
        score_low=score.headline.low,
        score_high=score.headline.high,
        protocol=score.protocol,
        score_by_readout=score.by_readout,
        score_by_alignment=score.by_alignment,
        score_by_database=score.by_database,
        nuisance=score.nuisance,
        num_genes=score.num_genes,
        num_relationships=score.num_relationships,
        sites_skipped=len(skipped),
        attempts=record.attempts,
        spikes=len(record.spikes),
        train_s=record.train_s,
        embed_s=embed_s,
        score_s=score_s,
        overhead_s=used.wall_s - (fitted.train_s if fitted else 0.0) - embed_s - score_s,
        cpu_s=used.cpu_s + (fitted.cpu_s if fitted else 0.0),
        data_cpu_s=fitted.data_cpu_s if fitted else 0.0,
        data_wait_s=record.data_wait_s,
        communication_s=record.communication_s,
        checkpoint_s=record.checkpoint_s,
        utilization=_utilization(operations, fitted) if fitted else 0.0,
        peak_memory_gib=max(used.peak_memory_gib, fitted.peak_memory_gib if fitted else 0.0),
        peak_gpu_memory_gib=fitted.peak_gpu_memory_gib if fitted else 0.0,
        index_fingerprint=index.fingerprint,
        code_version=code_version(),
    )
    write_samples(directory, score.samples.tolist())
    row.write(directory)
    return row


def _crops_in_site(trial: Trial, index: ScreenIndex) -> int:
    """Crops that fit side by side into the screen's smallest site."""
    sites = index.sites(0)
    return int(min(sites.height_px.min(), sites.width_px.min()) // trial.crops.size_px) ** 2


def _utilization(operations: float, fitted: Fitted) -> float:
    """Operations of training as a share of what the workers could do in its time."""
    return operations / (fitted.record.train_s * fitted.matmul_peak * len(fitted.workers))


def embed_trial(
    trial: Trial,
    study: Study,
    encoder: AnyEncoder | None,
    reader: SiteReader,
    files: StudyFiles,
    tell: Tell,
) -> tuple[dict[str, np.ndarray], list[int]]:
    """Embeds every site of the index, or takes the statistics or latents of a baseline instead.

    Returns:
        As `embed_screen`.
    """
    if trial.objective.name == "oracle":
        return {"latents": _latents(files)}, []

    def told(done: int, sites: int) -> None:
        tell({"trial": trial.id, "phase": "embed", "step": done, "steps": sites})

    return embed_screen(reader, encoder, trial.crops.size_px, told, every_block=study.every_block)


def held_out_batches(trial: Trial, files: StudyFiles) -> Iterator[Batch]:
    """One crop of each held-out site, cut in this thread."""
    cutter = _cutter(trial, files, held_out=True)
    return cutter.stream(0, cutter.plan.steps)


def _cutter(trial: Trial, files: StudyFiles, held_out: bool = False) -> CropCutter:
    return CropCutter(
        index_path=str(files.index), crops=trial.crops, seed=trial.seed, held_out=held_out
    )


def _check_delivery(trial: Trial, files: StudyFiles, fitted: Fitted) -> None:
    """Every planned crop was trained on, once; and where a site stood in for another, says which.

    Raises:
        RuntimeError: if the workers got more or fewer crops than the plan has.
        BadSiteError: if all workers and attempts together met more bad sites than are tolerated.
    """
    batch, cutter = trial.crops.global_batch_size, _cutter(trial, files)
    planned = cutter.plan.steps * batch
    delivered = fitted.first_step * batch + fitted.crops
    if delivered != planned:
        raise RuntimeError(f"Trial {trial.id}: {delivered} crops came, {planned} were planned.")
    directory = files.trial_dir(trial)
    write_json(directory / WORKERS_FILE, fitted.workers)
    if fitted.record.bad_rows:
        table = ScreenIndex.open(files.index).take(fitted.record.bad_rows)
        lines = zip(fitted.record.bad_rows, table["site_id"].to_pylist(), strict=True)
        text = "".join(f"{row},{site_id}\n" for row, site_id in lines)
        (directory / BAD_SITES_FILE).write_text("row,site_id\n" + text)
    if len(fitted.record.bad_rows) > int(trial.crops.tolerated_bad_sites * cutter.num_sites):
        raise BadSiteError(
            f"Trial {trial.id}: {len(fitted.record.bad_rows)} of {cutter.num_sites} sites could "
            "not be read, more than the tolerated share of "
            f"{trial.crops.tolerated_bad_sites:g}. They are listed in "
            f"{directory / BAD_SITES_FILE}."
        )


def write_panel(path: Path, trial: Trial, model: MaskedModel, files: StudyFiles) -> None:
    """Draws held-out crops as a grid.

    Per crop the rows original, masked, reconstructed; a column a channel.
    """
    batch = next(held_out_batches(trial, files))
    crops = torch.from_numpy(batch["crops"][:_PANEL_CROPS])
    draws = train.random_draws(trial, 2**31, model, crops=len(crops))
    model.eval()
    shown = panel(model, crops, draws).numpy()  # (3, B, C, s, s), standardized
    low, high = np.quantile(shown[0], (0.01, 0.99), axis=(-2, -1), keepdims=True)
    grey = np.clip((shown - low) / np.maximum(high - low, 1e-6), 0, 1)
    framed = np.pad(grey, [(0, 0)] * 3 + [(1, 1), (1, 1)], constant_values=1.0)
    kinds, crop, channel, side, _ = framed.shape
    grid = framed.transpose(1, 0, 3, 2, 4).reshape(crop * kinds * side, channel * side)
    Image.fromarray((grid * 255).astype(np.uint8)).save(path)


def _score(
    trial: Trial,
    study: Study,
    files: StudyFiles,
    index: ScreenIndex,
    embeddings: dict[str, np.ndarray],
    readout: str,
    skipped: list[int],
) -> Score:
    """Scores by the study's metric.

    Leaves sites.parquet, and for recall map.parquet, in the trial's folder.
    """
    kept = np.setdiff1d(np.arange(index.num_sites), skipped)
    metadata = index.metadata().iloc[kept].reset_index(drop=True)
    embeddings = {name: vectors[kept] for name, vectors in embeddings.items()}
    directory = files.trial_dir(trial)
    columns = {name: pa.array(list(x.astype(np.float32))) for name, x in embeddings.items()}
    pq.write_table(
        pa.table({"site_id": pa.array(metadata["site_id"]), **columns}), directory / SITES_FILE
    )
    rounds = study.bootstrap_rounds
    if study.metric == "balanced_accuracy":
        held_out = np.isin(kept, index.held_out_rows(trial.crops.held_out))
        return score_probe(embeddings, metadata, held_out, readout=readout, rounds=rounds)
    if not files.relationships:
        raise ValueError(
            "Recall needs known relationships: give the path of an entity1,entity2 table."
        )
    databases = load_databases(files.relationships)
    score, table = score_recall(embeddings, metadata, databases, readout=readout, rounds=rounds)
    pq.write_table(table, directory / MAP_FILE)
    return score


def _latents(files: StudyFiles) -> np.ndarray:
    """True phenotype of each site's well, float64 (number of sites, latents)."""
    if files.latents is None:
        raise ValueError("The oracle needs the true phenotypes: give the path of latents.parquet.")
    key = ["experimental_batch", "plate", "well"]
    sites = ScreenIndex.open(files.index).metadata()[key]
    latents = pd.read_parquet(open_file(files.latents))
    columns = [name for name in latents.columns if name.startswith("latent_")]
    joined = sites.merge(latents[key + columns], on=key, how="left", validate="many_to_one")
    return joined[columns].to_numpy(dtype=np.float64)
