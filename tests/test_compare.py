"""Comparisons of a finished study: the best configuration, all its seeds, against the baselines."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from experiments import grid
from phenoscale.backbones import NO_BACKBONE
from phenoscale.compare import write_comparisons
from phenoscale.config import Study
from phenoscale.maps.recall import paired_difference, recall_samples
from phenoscale.maps.relationships import load_relationships
from phenoscale.results import write_samples
from phenoscale.study_files import StudyFiles
from tests.fabricated import make_baseline, make_row

GENES = [f"G{number:02d}" for number in range(40)]
CROPS = dataclasses.replace(grid.SIMULATED, passes=2)
ROUNDS = 60


def trained(fraction: float, seed: int):
    crops = dataclasses.replace(CROPS, data_fraction=fraction)
    return grid.trained("mae", "nano/8", crops, lr=1e-3, mask_ratio=0.5, seed=seed)


SIGNAL = {(1.0, 0): 1.6, (1.0, 1): 1.2, (0.5, 0): 1.9, (0.5, 1): 0.2}  # of a complex's genes
TRIALS = {trained(*cell): signal for cell, signal in SIGNAL.items()}
INTENSITY = grid.baseline("intensity", NO_BACKBONE, grid.SIMULATED)
STUDY = Study(name="s", question="?", trials=(*TRIALS, INTENSITY), bootstrap_rounds=ROUNDS)


def perturbation_map(signal: float, seed: int) -> np.ndarray:
    """Ten complexes of four genes."""
    rng = np.random.default_rng(seed)
    return np.repeat(rng.normal(size=(10, 8)), 4, axis=0) * signal + rng.normal(size=(40, 8))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    pairs = [
        f"{GENES[4 * c + i]},{GENES[4 * c + j]}" for c in range(10) for i, j in ((0, 1), (2, 3))
    ]
    known = folder / "known.csv"
    known.write_text("\n".join(["entity1,entity2", *pairs]) + "\n")
    files = StudyFiles(study_dir=folder / "s", index=folder, relationships=(str(known),))
    for number, trial in enumerate(STUDY.trials):
        vectors = perturbation_map(TRIALS.get(trial, 0.4), number)
        values = recall_samples(vectors, GENES, load_relationships(known), rounds=ROUNDS)
        changes = {
            "trial_id": trial.id,
            "score": float(values[0]),
            "score_low": float(values.min()),
            "score_high": float(values.max()),
        }
        row = make_baseline("intensity", **changes | {"readout": "statistics"})
        if not trial.is_baseline:
            changes |= {"seed": trial.seed, "data_fraction": trial.crops.data_fraction}
            row = make_row(backbone=trial.backbone, **changes)
        directory = files.trial_dir(trial)
        row.write(directory)
        write_samples(directory, values[1:].tolist())
        columns = {"gene": pa.array(GENES), row.readout: pa.array(list(vectors))}
        pq.write_table(pa.table(columns), directory / "map.parquet")
        (directory / "curve.json").write_text('{"step": [1], "loss": [1.0]}')
    return files


def test_the_best_configuration_is_that_of_the_highest_mean_not_of_the_luckiest_seed(files):
    found = write_comparisons(STUDY, files)
    whole = [trained(1.0, seed) for seed in (0, 1)]
    lucky = trained(0.5, 0)
    assert found["seeds"] == [trial.id for trial in whole]
    assert found["best"] in found["seeds"] and found["best"] != lucky.id
    assert found["picked_from"] == 2
    known = load_relationships(files.relationships[0])
    maps = [perturbation_map(TRIALS[trial], STUDY.trials.index(trial)) for trial in whole]
    other = perturbation_map(0.4, len(TRIALS))
    (difference,) = found["differences"]
    expected = paired_difference(maps, [other], GENES, known, rounds=ROUNDS)
    assert difference["against"] == "intensity statistics"
    assert (difference["value"], difference["low"], difference["high"]) == dataclasses.astuple(
        expected
    )
    each = [recall_samples(one, GENES, known, rounds=ROUNDS) for one in maps]
    assert found["mean"]["value"] == pytest.approx(np.mean([values[0] for values in each]))
    low, high = np.quantile(np.mean(each, axis=0)[1:], (0.025, 0.975))
    assert (found["mean"]["low"], found["mean"]["high"]) == pytest.approx((low, high))


def test_without_other_seeds_the_best_trial_stands_for_itself(files):
    alone = dataclasses.replace(STUDY, trials=(trained(0.5, 0), trained(1.0, 1), INTENSITY))
    found = write_comparisons(alone, files)
    assert found["seeds"] == [found["best"]] == [trained(0.5, 0).id]
    assert found["mean"] is None
