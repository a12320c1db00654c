"""Paired comparisons of a finished study: best encoder against each baseline, twin against twin.

Computed from rows, maps and curves on disk; written to comparisons.json for the report.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from phenoscale.config import Study, Trial, untrained_of
from phenoscale.maps.interval import Interval, percentile_interval
from phenoscale.maps.probes import paired_probe_difference
from phenoscale.maps.recall import paired_difference
from phenoscale.maps.relationships import all_pairs, load_databases
from phenoscale.results import CURVE_FILE, ResultsRow, read_rows, read_samples, write_json
from phenoscale.scaling.points import points_of
from phenoscale.screens.index import ScreenIndex
from phenoscale.study_files import COMPARISONS_FILE, MAP_FILE, SITES_FILE, StudyFiles

MEASURED = (  # columns of a row that describe the run's cost or place, not its result
    "trial_id workers launcher lr_source attempts train_s embed_s score_s overhead_s cpu_s "
    "data_cpu_s data_wait_s communication_s checkpoint_s utilization peak_memory_gib "
    "peak_gpu_memory_gib"
).split()


def write_comparisons(study: Study, files: StudyFiles) -> dict[str, Any]:
    """Compares what the study's rows allow and writes comparisons.json."""
    rows = [
        row for row in read_rows(files.study_dir) if row.trial_id in {t.id for t in study.trials}
    ]
    configurations = [seeds for p in points_of(rows).values() for seeds in p.by_configuration]
    best = max(configurations, key=_mean_score, default=())
    oracle = next((row for row in rows if row.objective == "oracle"), None)
    result = {
        "best": max(best, key=lambda row: row.score).trial_id if best else None,
        "seeds": [row.trial_id for row in best],
        "picked_from": len(configurations),
        "mean": dataclasses.asdict(_mean(files, best)) if len(best) > 1 else None,
        "differences": _differences(study, files, best, rows) if best else [],
        "oracle": {"value": oracle.score, "low": oracle.score_low, "high": oracle.score_high}
        if oracle
        else None,
        "twins": _twins(study, files, {row.trial_id: row for row in rows}),
    }
    write_json(files.study_dir / COMPARISONS_FILE, result)
    return result


def _mean(files: StudyFiles, seeds: Sequence[ResultsRow]) -> Interval:
    """Mean score of several seeds, over the same samples."""
    samples = read_samples(files.study_dir, seeds)
    return percentile_interval(
        _mean_score(seeds), np.mean([samples[row.trial_id] for row in seeds], axis=0)
    )


def _mean_score(seeds: Sequence[ResultsRow]) -> float:
    return fmean(row.score for row in seeds)


def _differences(
    study: Study, files: StudyFiles, best: Sequence[ResultsRow], rows: Sequence[ResultsRow]
) -> list[dict[str, Any]]:
    """Best trained encoder, mean of its seeds, less each baseline, on the same samples."""
    kind = (untrained_of(best[0].objective), best[0].backbone)
    untrained = [r for r in rows if (r.objective, r.backbone) == kind]
    intensity = [r for r in rows if r.objective == "intensity"]
    sides = [
        (f"untrained {best[0].backbone}, mean of {len(untrained)} initialisations", untrained),
        ("intensity statistics", intensity),
    ]
    density = [
        dataclasses.replace(r, readout="density")
        for r in intensity
        if "density" in r.score_by_readout
    ]
    sides.append(("density (stained share and pieces of each channel)", density))
    for name in sorted({r.backbone for r in rows if r.objective == "reference"}):
        same = [r for r in rows if (r.objective, r.backbone) == ("reference", name)]
        sides.append((f"reference {name}", same))
    if untrained:
        luckiest = max(untrained, key=lambda row: row.score)
        sides.append((f"untrained {best[0].backbone}, its luckiest initialisation", [luckiest]))
    return [
        {
            "against": name,
            "trial_ids": [row.trial_id for row in side],
            **dataclasses.asdict(_paired(study, files, best, side)),
        }
        for name, side in sides
        if side
    ]


def _paired(
    study: Study, files: StudyFiles, best: Sequence[ResultsRow], side: Sequence[ResultsRow]
) -> Interval:
    """Mean score of `best` less that of `side`."""
    everyone = [*best, *side]
    rounds = study.bootstrap_rounds
    if study.metric == "balanced_accuracy":
        index = ScreenIndex.open(files.index)
        crops = next(t for t in study.trials if t.id == best[0].trial_id).crops
        metadata = index.metadata()
        held_out = np.isin(np.arange(index.num_sites), index.held_out_rows(crops.held_out))
        plates = (metadata["experimental_batch"] + "/" + metadata["plate"]).to_numpy()
        labels = metadata["perturbation"].to_numpy()
        vectors = [_column(files, r, SITES_FILE) for r in everyone]
        split = [(x[~held_out], x[held_out]) for x in vectors]
        return paired_probe_difference(
            embeddings_a=split[: len(best)],
            embeddings_b=split[len(best) :],
            train_labels=labels[~held_out],
            train_groups=plates[~held_out],
            test_labels=labels[held_out],
            test_groups=plates[held_out],
            rounds=rounds,
        )
    names = _names(files, best[0])
    maps = [_column(files, r, MAP_FILE) for r in everyone]
    if any(_names(files, r) != names for r in everyone):
        raise ValueError(f"The maps of {[r.trial_id for r in everyone]} hold different genes.")
    pairs = all_pairs(load_databases(files.relationships))
    return paired_difference(maps[: len(best)], maps[len(best) :], names, pairs, rounds=rounds)


def _twins(study: Study, files: StudyFiles, rows: dict[str, ResultsRow]) -> list[dict[str, Any]]:
    """Trials that differ in their placement alone: how far their loss curves lie apart."""
    groups: dict[Trial, list[Trial]] = {}
    for trial in study.trials:
        if trial.id in rows and not trial.is_baseline:
            groups.setdefault(_unplaced(trial), []).append(trial)
    found = []
    for twins in (group for group in groups.values() if len(group) > 1):
        curves = [_losses(files.trial_dir(trial)) for trial in twins]
        one_worker = [rows[t.id] for t in twins if t.placement.workers == 1]
        apart = max(float(np.max(np.abs(c - curves[0]) / np.abs(curves[0]))) for c in curves[1:])
        found.append(
            {
                "trial_ids": [trial.id for trial in twins],
                "what": ", ".join(_place_of(trial) for trial in twins),
                "max_relative_loss_difference": apart,
                "bit_identical_rows": all(
                    result_of(r) == result_of(one_worker[0]) for r in one_worker
                )
                if len(one_worker) > 1
                else None,
            }
        )
    return found


def result_of(row: ResultsRow) -> dict[str, Any]:
    """The columns of a row that its trial determines, without those of its run's cost and place."""
    return {name: x for name, x in dataclasses.asdict(row).items() if name not in MEASURED}


def _unplaced(trial: Trial) -> Trial:
    return dataclasses.replace(trial, placement=type(trial.placement)())


def _place_of(trial: Trial) -> str:
    place = trial.placement
    text = f"{place.workers} worker{'s' * (place.workers > 1)} "
    text += "in place" if place.launcher == "in_place" else "under Ray Train"
    return text + (f" ({', '.join(place.options)})" if place.options else "")


def _losses(directory: Path) -> np.ndarray:
    return np.array(json.loads((directory / CURVE_FILE).read_text())["loss"])


def _names(files: StudyFiles, row: ResultsRow) -> list[str]:
    path = files.study_dir / "trials" / row.trial_id / MAP_FILE
    return pq.read_table(path, columns=["gene"])["gene"].to_pylist()


def _column(files: StudyFiles, row: ResultsRow, file: str) -> np.ndarray:
    path = files.study_dir / "trials" / row.trial_id / file
    table = pq.read_table(path, columns=[row.readout])
    return np.array(table[row.readout].to_pylist(), dtype=np.float64)
