"""A study's directory as a real study leaves it, made up: for the tests of mirror and report."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from phenoscale.results import ResultsRow, write_json

METRIC = "recall_0.05_0.95"
TWINS = ("mae-micro-16-f1-s0-train1-00000005", "mae-micro-16-f1-s0-train2-00000005")


def make_row(**changes: Any) -> ResultsRow:
    """A trained trial of an MAE, with some columns changed."""
    columns: dict[str, Any] = {
        "trial_id": "mae-micro-16-f1-s0-0123abcd",
        "objective": "mae",
        "backbone": "micro/16",
        "data_fraction": 1.0,
        "seed": 0,
        "workers": 1,
        "launcher": "in_place",
        "num_parameters": 250_000,
        "optimizer": "adamw",
        "lr": 1e-3,
        "lr_source": "tuned",
        "precision": "fp32",
        "training_flops": 3.0e13,
        "crops_seen": 96_000,
        "unique_sites": 3_000,
        "unique_crops": 48_000,
        "steps": 40,
        "train_loss": 0.41,
        "held_out_loss": 0.43,
        "readout": "patch_mean",
        "metric": METRIC,
        "score": 0.457,
        "score_low": 0.356,
        "score_high": 0.555,
        "protocol": "perturbation-map/2",
        "score_by_readout": {"class_token": 0.31, "patch_mean": 0.457, "patch_sd": 0.483},
        "score_by_alignment": {"pca_cs": 0.457, "tvn": 0.43},
        "score_by_database": {"complexes": 0.5, "opposed": 0.39},
        "nuisance": {"plate": 0.12, "plate_chance": 0.08},
        "num_genes": 240,
        "num_relationships": 600,
        "sites_skipped": 0,
        "attempts": 1,
        "spikes": 0,
        "train_s": 60.0,
        "embed_s": 6.0,
        "score_s": 2.0,
        "overhead_s": 0.4,
        "cpu_s": 66.0,
        "data_cpu_s": 9.0,
        "data_wait_s": 0.5,
        "communication_s": 0.0,
        "checkpoint_s": 0.1,
        "utilization": 0.35,
        "peak_memory_gib": 0.9,
        "peak_gpu_memory_gib": 0.0,
        "index_fingerprint": "f" * 64,
        "code_version": "0.1.0+abc1234",
    }
    return ResultsRow(**(columns | changes))


def make_baseline(objective: str, score: float, **changes: Any) -> ResultsRow:
    """A baseline's row."""
    columns: dict[str, Any] = {
        "trial_id": f"{objective}-s0-00000000",
        "objective": objective,
        "backbone": "micro/16" if objective == "untrained" else "none",
        "data_fraction": 0.0,
        "optimizer": "none",
        "lr": 0.0,
        "lr_source": "none",
        "precision": "none",
        "training_flops": 0.0,
        "crops_seen": 0,
        "unique_sites": 0,
        "unique_crops": 0,
        "steps": 0,
        "train_loss": None,
        "held_out_loss": None,
        "score": score,
        "score_low": score - 0.06,
        "score_high": score + 0.06,
        "score_by_readout": {"patch_mean": score},
        "score_by_alignment": {"pca_cs": score, "tvn": score},
        "attempts": 0,
        "train_s": 0.0,
        "checkpoint_s": 0.0,
        "utilization": 0.0,
    }
    return make_row(**(columns | changes))


def write_trial(study_dir: Path, row: ResultsRow) -> Path:
    """Writes row, curve and, for an MAE, a panel."""
    trial_dir = study_dir / "trials" / row.trial_id
    row.write(trial_dir)
    if not row.is_baseline:
        assert row.train_loss is not None
        steps = list(range(1, row.steps + 1))
        loss = [row.train_loss + math.exp(-4 * step / row.steps) for step in steps]
        curve = {"step": steps, "loss": loss, "lr": [1e-3] * row.steps}
        write_json(trial_dir / "curve.json", curve | {"crops_per_s": [800.0] * row.steps})
        write_json(trial_dir / "trial.json", {"objective": {"name": row.objective}, "lr": 1e-3})
    if row.objective == "mae":
        noise = np.random.default_rng(row.seed).integers(0, 255, (96, 288, 3), dtype=np.uint8)
        Image.fromarray(noise).save(trial_dir / "panel.png")
    return trial_dir


def make_study(study_dir: Path, *, gain: float = 0.16) -> list[ResultsRow]:
    """Twelve trials, a twin under Ray Train, five baselines, comparisons and one failure.

    Args:
        study_dir: directory to make.
        gain: by how much the best trial is above the untrained encoders.
    """
    rows: list[ResultsRow] = []
    for objective, height, per_crop in (("mae", 1.0, 2.0e8), ("wsl", 0.7, 3.5e8)):
        for backbone, size in (("nano/16", 0.6), ("micro/16", 1.0)):
            for share, data_fraction in enumerate((1 / 9, 1 / 3, 1.0)):
                score = 0.29 + gain * height * size * (share + 1) / 3
                crops = round(96_000 * data_fraction)
                name = f"{objective}-{backbone.replace('/', '-')}"
                rows.append(
                    make_row(
                        trial_id=f"{name}-f{data_fraction:.3g}-s0-{len(rows):08x}",
                        objective=objective,
                        backbone=backbone,
                        data_fraction=data_fraction,
                        num_parameters=round(250_000 * size),
                        training_flops=per_crop * size * crops,
                        crops_seen=crops,
                        unique_sites=crops // 32,
                        unique_crops=crops // 2,
                        train_loss=(0.4 if objective == "mae" else 4.0) / (share + 1),
                        held_out_loss=(0.45 if objective == "mae" else 4.4) / (share + 1),
                        score=score,
                        score_low=score - 0.07,
                        score_high=score + 0.07,
                        score_by_readout={"class_token": score - 0.1, "patch_mean": score},
                        overhead_s=0.4 + share / 10,
                    )
                )
    best = max(rows, key=lambda row: row.score)
    for workers, trial_id in enumerate(TWINS, start=1):
        twin = dataclasses.replace(best, trial_id=trial_id, launcher="ray_train", workers=workers)
        rows.append(dataclasses.replace(twin, overhead_s=7.8))
    for seed, score in enumerate((0.28, 0.29, 0.30)):
        rows.append(make_baseline("untrained", score, trial_id=f"untrained-s{seed}", seed=seed))
    rows += [make_baseline("intensity", 0.25), make_baseline("oracle", 0.998)]
    for row in rows:
        write_trial(study_dir, row)
    against = {"untrained (3 initialisations)": 0.29, "intensity statistics": 0.25}
    differences = [
        {
            "against": name,
            "trial_ids": [best.trial_id, "others"],
            "value": best.score - score,
            "low": best.score - score - 0.09,
            "high": best.score - score + 0.09,
        }
        for name, score in against.items()
    ]
    twins = {
        "trial_ids": [best.trial_id, *TWINS],
        "what": "1 worker in place, 1 worker Ray Train, 2 workers Ray Train",
        "max_relative_loss_difference": 3.1e-7,
        "bit_identical_rows": None,
    }
    comparisons = {
        "best": best.trial_id,
        "differences": differences,
        "oracle": {"value": 0.998, "low": 0.99, "high": 1.0},
        "twins": [twins],
    }
    write_json(study_dir / "comparisons.json", comparisons)
    write_json(
        study_dir / "failures.json",
        [{"trial_id": "wsl-nano-16-f1-s1-deadbeef", "error": "loss is not finite at step 7 <b>"}],
    )
    write_json(study_dir / "study.json", study_facts(len(rows) - 5))
    return rows


def study_facts(num_trials: int) -> dict[str, Any]:
    """What `study.json` says."""
    return {
        "name": "quickstart-seed0",
        "question": "Which objective, which backbone, on how much data?",
        "screen": {
            "sites": 3264,
            "wells": 1632,
            "genes": 240,
            "perturbations": 481,
            "experimental_batches": 3,
            "fingerprint": "f" * 64,
            "channels": ["DNA", "ER", "RNA", "AGP", "Mito", "Golgi"],
            "seed": 0,
        },
        "readout": "patch_mean",
        "metric": METRIC,
        "alignment": "PCA-CS on negative controls, all components",
        "num_trials": num_trials,
        "command": "python -m experiments.quickstart --seed 0",
        "wall_s": 480.5,
        "peak_memory_gib": 5.3,
        "chance": 0.1,
    }
