"""Encoders on another screen: the same scores as a trial's where the screen is the trial's own."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from experiments import channel_generalization
from phenoscale.backbones import NO_BACKBONE
from phenoscale.config import Study
from phenoscale.export_trial import export_encoder
from phenoscale.results import ResultsRow
from phenoscale.run import run_trial
from phenoscale.study_files import StudyFiles
from phenoscale.transfer import Transfer, score_transfer, transfer_difference
from tests.tiny import of

TRIAL = of("untrained_ca", size_px=32)
ROUNDS = 40


@pytest.fixture(scope="module")
def files(tiny_screen: Path, tmp_path_factory: pytest.TempPathFactory) -> StudyFiles:
    return StudyFiles(
        study_dir=tmp_path_factory.mktemp("transfer"),
        index=tiny_screen / "index.parquet",
        relationships=(str(tiny_screen / "relationships.csv"),),
    )


@pytest.fixture(scope="module")
def row(files: StudyFiles) -> ResultsRow:
    study = Study(name="s", question="?", trials=(TRIAL,), bootstrap_rounds=ROUNDS)
    return run_trial(TRIAL, study, files, fit=lambda *_: pytest.fail("trains"), tell=lambda _: None)


def test_on_its_own_screen_an_encoder_scores_as_its_trial(row: ResultsRow, files: StudyFiles):
    folder = files.study_dir / "encoder"
    export_encoder(files.trial_dir(TRIAL), folder)
    there = dataclasses.replace(files, study_dir=files.study_dir / "there")
    found = score_transfer(Transfer(name="all", encoder=folder), there, ROUNDS)
    interval = [found[end] for end in ("recall", "low", "high")]
    assert interval == [row.score, row.score_low, row.score_high]
    assert found["by_readout"] == row.score_by_readout
    assert len(found["channels"]) == 6

    some = Transfer(name="some", encoder=folder, channels=("Mito", "DNA"))
    fewer = score_transfer(some, there, ROUNDS)
    assert fewer["channels"] == ["Mito", "DNA"] and fewer["recall"] != found["recall"]
    by_channel = dataclasses.replace(some, name="by channel", readout="per_channel")
    assert score_transfer(by_channel, there, ROUNDS)["recall"] == fewer["by_readout"]["per_channel"]
    difference = transfer_difference("all", ["some"], there, ROUNDS)
    assert difference["value"] == pytest.approx(found["recall"] - fewer["recall"])
    assert difference["low"] <= difference["value"] <= difference["high"]
    assert transfer_difference("all", ["all"], there, ROUNDS)["value"] == 0


def test_what_was_scored_is_not_embedded_again(row: ResultsRow, files: StudyFiles):
    there = dataclasses.replace(files, study_dir=files.study_dir / "there")
    gone = Transfer(name="all", encoder=files.study_dir / "no such folder")
    assert score_transfer(gone, there, ROUNDS)["name"] == "all"


def test_intensity_statistics_need_no_encoder(files: StudyFiles):
    there = dataclasses.replace(files, study_dir=files.study_dir / "there")
    found = score_transfer(Transfer(name="intensity", encoder=None), there, ROUNDS)
    assert found["readout"] == "statistics" and 0 <= found["recall"] <= 1


def test_the_experiment_asks_what_it_says():
    study = channel_generalization.build_study(seed=3)
    trained = [t for t in study.trials if not t.is_baseline]
    assert [t.objective.label for t in trained] == ["mae", "ca_mae", "ca_mae~"]
    assert len({t.crops for t in trained}) == 1, "all see the same crops"
    there, here = (
        channel_generalization.other_screen(3),
        ("DNA", "ER", "RNA", "AGP", "Mito", "Golgi"),
    )
    assert there.seed != 3 and len(there.channels) == 8 and {*here} < {*there.channels}
    assert [c for c in there.channels if c in here] != list(here)
    cases = channel_generalization.transfers(study, Path("encoders"), here)
    names = [case.name for case in cases]
    assert len(set(names)) == len(names)
    networks = [t for t in study.trials if t.backbone != NO_BACKBONE]
    agnostic = [t for t in networks if "ca" in t.objective.name]
    assert len(cases) == 2 + len(networks) + len(agnostic)
    assert {"mae-seed3-6", "ca_mae-seed3-6", "ca_mae-seed3-8", "ca_mae~-seed3-8"} <= set(names)
    assert "mae-seed3-8" not in names, "a plain encoder takes no channel that it does not know"
