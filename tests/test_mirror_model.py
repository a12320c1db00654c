"""The best encoder as a registered model: what is downloaded embeds as the trial's own."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from phenoscale.checkpoint import Checkpoints
from phenoscale.config import Trial
from phenoscale.export import load_encoder
from phenoscale.mirror_model import model_name
from phenoscale.models.build import build_model
from phenoscale.results import write_json
from phenoscale.tracking import sync
from tests.fabricated import METRIC, make_baseline, make_row, write_trial
from tests.tiny import CHANNELS, CLASSES, TINY, record_of

mlflow = pytest.importorskip("mlflow")
NAME = "best/of: all"
MODEL = "best-of- all"
BETTER = dataclasses.replace(TINY, seed=1)


def make_trial(study_dir: Path, trial: Trial, score: float) -> torch.nn.Module:
    """A trial's folder with a row and a checkpoint; returns its encoder."""
    row = make_row(trial_id=trial.id, seed=trial.seed, steps=3, backbone=trial.backbone)
    row = dataclasses.replace(row, score=score, score_low=score - 0.1, score_high=score + 0.1)
    folder = write_trial(study_dir, row)
    write_json(folder / "trial.json", trial.as_dict())
    facts = {"channels": CHANNELS, "num_classes": CLASSES, "index_fingerprint": "f" * 64}
    write_json(folder / "model.json", facts)
    torch.manual_seed(trial.seed)
    model = build_model(trial, channels=CHANNELS, num_classes=CLASSES)
    with Checkpoints(folder / "checkpoints") as checkpoints:
        checkpoints.save(model, torch.optim.AdamW(model.parameters()), record_of(3))
    return model.encoder.eval()


def embedded(encoder: torch.nn.Module, crops: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return encoder.read(torch.from_numpy(crops), CHANNELS)["patch_mean"].numpy()  # type: ignore


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, torch.nn.Module]:
    """A study whose best trial is mirrored; its store's URI; the best trial's encoder."""
    study_dir = tmp_path_factory.mktemp("runs") / "study"
    encoder = make_trial(study_dir, TINY, 0.4)
    write_json(study_dir / "study.json", {"name": NAME, "metric": METRIC})
    write_json(study_dir / "comparisons.json", {"best": TINY.id})
    uri = f"sqlite:///{study_dir}/mlflow.db"
    sync(study_dir, uri)
    return study_dir, uri, encoder


def note_of(client: mlflow.MlflowClient) -> str:
    return client.get_experiment_by_name(NAME).tags["mlflow.note.content"]


def test_the_best_encoder_is_registered_once_and_a_better_one_takes_its_name(
    study: tuple[Path, str, torch.nn.Module], tmp_path: Path
) -> None:
    study_dir, uri, encoder = study
    client = mlflow.MlflowClient(tracking_uri=uri)
    (first,) = client.search_model_versions(f"name = '{MODEL}'")
    assert client.get_model_version_by_alias(MODEL, "best").version == first.version
    assert first.tags["score"] == "0.4000" and first.tags["interval"] == "0.400 [0.300, 0.500]"
    assert first.tags["metric"] == METRIC and first.tags["trial_id"] == TINY.id
    assert first.description.startswith(f"# {TINY.id}")
    assert client.get_run(first.run_id).data.tags["trial_id"] == TINY.id
    assert f"(#/models/best-of-%20all/versions/{first.version})" in note_of(client)

    mlflow.set_tracking_uri(uri)
    folder = mlflow.artifacts.download_artifacts(f"models:/{MODEL}@best", dst_path=str(tmp_path))
    crops = np.random.default_rng(0).integers(0, 255, (3, 2, 16, 16), dtype=np.uint8)
    loaded = load_encoder(folder).embed(crops, channels=CHANNELS)
    np.testing.assert_array_equal(loaded, embedded(encoder, crops))

    experiment = client.get_experiment_by_name(NAME).experiment_id
    (parent,) = client.search_runs([experiment], "tags.`phenoscale.kind` = 'study'")
    client.delete_tag(parent.info.run_id, "phenoscale.mirrored")  # it is written once more
    sync(study_dir, uri)
    assert len(client.search_model_versions(f"name = '{MODEL}'")) == 1

    make_trial(study_dir, BETTER, 0.6)
    write_json(study_dir / "comparisons.json", {"best": BETTER.id})
    sync(study_dir, uri)
    assert len(client.search_model_versions(f"name = '{MODEL}'")) == 2
    best = client.get_model_version_by_alias(MODEL, "best")
    assert best.tags["trial_id"] == BETTER.id and best.run_id != first.run_id


def test_what_cannot_be_registered_is_said(
    study: tuple[Path, str, torch.nn.Module], tmp_path: Path
) -> None:
    _, uri, _ = study
    client = mlflow.MlflowClient(tracking_uri=uri)
    gone = tmp_path / "gone"
    make_trial(gone, TINY, 0.4)
    shutil.rmtree(gone / "trials" / TINY.id / "checkpoints")
    write_json(gone / "comparisons.json", {"best": TINY.id})
    bare = tmp_path / "bare"
    row = make_baseline("untrained", 0.3)
    write_trial(bare, row)
    write_json(bare / "comparisons.json", {"best": row.trial_id})
    for study_dir, why in (
        (gone, "holds no whole checkpoint"),
        (bare, "the best is the baseline untrained"),
    ):
        sync(study_dir, uri)
        note = client.get_experiment_by_name(study_dir.name).tags["mlflow.note.content"]
        assert "No encoder is registered: " in note and why in note
        assert str(tmp_path) not in note
        assert client.search_registered_models(f"name = '{study_dir.name}'") == []


def test_names_have_no_signs_that_mlflow_refuses() -> None:
    assert model_name(NAME) == MODEL
