"""Every kind of trial from a screen's images to its row on disk, without Ray."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from phenoscale.config import Study, Trial
from phenoscale.embed_screen import embed_screen
from phenoscale.fit import fit_here
from phenoscale.models.build import build_encoder
from phenoscale.results import ResultsRow
from phenoscale.run import run_trial
from phenoscale.screens.cutter import CropCutter
from phenoscale.screens.index import ScreenIndex
from phenoscale.screens.site_reader import SiteReader
from phenoscale.study_files import MAP_FILE, PANEL_FILE, SITES_FILE, StudyFiles
from tests.tiny import of

HELD_OUT = ("batch2/plate2",)


def on_screen(trial: Trial) -> Trial:
    crops = dataclasses.replace(
        trial.crops,
        size_px=32,
        global_batch_size=32,
        held_out=HELD_OUT,
    )
    return dataclasses.replace(trial, crops=crops)


CA_MAE = on_screen(of("ca_mae"))
MUNET = on_screen(of("munet", "MU-net-nano"))
ADABN = on_screen(of("wsl", "DenseNet-nano"))
UNTRAINED_CA = on_screen(of("untrained_ca"))
TRIALS = (CA_MAE, MUNET, ADABN, UNTRAINED_CA)


def silent(update: dict[str, object]) -> None:
    """A trial that nobody listens to."""


@pytest.fixture(scope="module")
def files(tiny_screen: Path, tmp_path_factory: pytest.TempPathFactory) -> StudyFiles:
    return StudyFiles(
        study_dir=tmp_path_factory.mktemp("systems"),
        index=tiny_screen / "index.parquet",
        relationships=(str(tiny_screen / "relationships.csv"),),
    )


@pytest.fixture(scope="module")
def rows(files: StudyFiles) -> dict[Trial, ResultsRow]:
    study = Study(name="s", question="?", trials=TRIALS, every_block=True, bootstrap_rounds=40)
    fit = fit_here(lambda cutter, first, last: cutter.stream(first, last))
    return {t: run_trial(t, study, files, fit=fit, tell=silent) for t in TRIALS}


def test_rows_say_what_was_trained(rows: dict[Trial, ResultsRow]):
    assert [row.objective for row in rows.values()] == ["ca_mae", "munet", "wsl", "untrained_ca"]
    for trial, row in rows.items():
        assert row.backbone == trial.backbone and row.num_parameters > 0
        assert (row.training_flops > 0) == (not trial.is_baseline)
        assert (row.held_out_loss is not None) == (not trial.is_baseline)


def test_each_encoder_is_scored_by_its_own_readouts(rows: dict[Trial, ResultsRow]):
    transformer = {"patch_mean", "patch_sd", "class_token", "per_channel", "block_1", "block_2"}
    assert set(rows[CA_MAE].score_by_readout) == transformer
    assert set(rows[UNTRAINED_CA].score_by_readout) == transformer
    assert set(rows[MUNET].score_by_readout) == {"patch_mean", "patch_sd"}
    assert set(rows[ADABN].score_by_readout) == {"patch_mean", "patch_sd"}


def test_the_last_block_is_the_whole_encoder(rows: dict[Trial, ResultsRow], files: StudyFiles):
    table = pq.read_table(files.trial_dir(CA_MAE) / MAP_FILE)
    last, mean, first = (
        np.array(table[n].to_pylist()) for n in ("block_2", "patch_mean", "block_1")
    )
    np.testing.assert_allclose(last, mean, rtol=1e-4, atol=1e-4)
    assert np.abs(first - mean).max() > 0.1
    sites = pq.read_table(files.trial_dir(CA_MAE) / SITES_FILE)
    assert len(sites["per_channel"][0].as_py()) == 6 * 32


@pytest.mark.parametrize("trial", [CA_MAE, MUNET], ids=lambda t: t.objective.name)
def test_autoencoders_leave_a_panel(rows: dict[Trial, ResultsRow], files: StudyFiles, trial: Trial):
    image = np.asarray(Image.open(files.trial_dir(trial) / PANEL_FILE))
    assert image.shape == (3 * 3 * 34, 6 * 34)
    assert len(np.unique(image)) > 50
    assert not (files.trial_dir(ADABN) / PANEL_FILE).exists()


def test_held_out_crops_of_plates_come_in_units(files: StudyFiles):
    """A plate's last crops that make no whole unit are left out, and no batch mixes a unit."""
    cutter = CropCutter(index_path=str(files.index), crops=ADABN.crops, seed=0, held_out=True)
    index = ScreenIndex.open(files.index)
    (plate,) = index.held_out_ranges(HELD_OUT)
    seen = [row for b in cutter.stream(0, cutter.plan.steps) for row in b["rows"].tolist()]
    assert set(seen) <= set(plate) and len(set(seen)) == len(seen) == len(plate) // 4 * 4
    both = dataclasses.replace(ADABN.crops, held_out=("batch2",))
    cutter = CropCutter(index_path=str(files.index), crops=both, seed=0, held_out=True)
    first = index.held_out_ranges(HELD_OUT)[0].start
    for batch in cutter.stream(0, cutter.plan.steps):
        units = (batch["rows"] >= first).reshape(-1, 4)
        assert (units == units[:, :1]).all()


def test_a_plate_gives_the_statistics_of_its_own_embeddings(files: StudyFiles):
    """A site of one plate does not care what the other plates look like."""
    encoder = build_encoder(ADABN, channels=ScreenIndex.open(files.index).channels)
    reader = SiteReader(index_path=str(files.index), crops=ADABN.crops)
    whole, bad = embed_screen(reader, encoder, 32, lambda done, sites: None)
    assert bad == []

    class LastPlate(SiteReader):
        @property
        def plates(self) -> list[range]:
            return super().plates[-1:]

    last = LastPlate(index_path=str(files.index), crops=ADABN.crops)
    alone, _ = embed_screen(last, encoder, 32, lambda done, sites: None)
    rows = reader.plates[-1]
    for name in whole:
        np.testing.assert_array_equal(whole[name][rows], alone[name][rows])


def test_a_plate_whose_sampled_sites_are_bad_takes_no_other_plates_statistics(files: StudyFiles):
    channels = ScreenIndex.open(files.index).channels
    tolerant = dataclasses.replace(ADABN.crops, tolerated_bad_sites=0.5)

    class Damaged(SiteReader):
        """Of the last plate one site is left, and not one of those that are tried first."""

        def read(self, first: int, last: int) -> dict[str, np.ndarray]:
            batch = super().read(first, last)
            plate = self.plates[-1]
            gone = [row in plate and row != plate[1] for row in batch["rows"]]
            batch["images"][gone] = 0
            return batch | {"bad": np.where(gone, batch["rows"], -1)}

    class LastPlate(Damaged):
        @property
        def plates(self) -> list[range]:
            return super().plates[-1:]

    kinds = (Damaged, LastPlate)
    readers = [kind(index_path=str(files.index), crops=tolerant) for kind in kinds]
    whole, alone = (
        embed_screen(r, build_encoder(ADABN, channels=channels), 32, lambda d, s: None)[0]
        for r in readers
    )
    left = readers[0].plates[-1][1]
    assert np.isfinite(whole["patch_mean"][left]).all()
    for name in whole:
        np.testing.assert_allclose(whole[name][left], alone[name][left], atol=1e-6)


def test_channels_are_chosen_by_name(files: StudyFiles):
    reader = SiteReader(index_path=str(files.index), crops=CA_MAE.crops)
    names = reader.channels
    encoder = build_encoder(CA_MAE, channels=names)
    some, _ = embed_screen(reader, encoder, 32, lambda d, s: None, channels=names[:2])
    turned, _ = embed_screen(reader, encoder, 32, lambda d, s: None, channels=names[1::-1])
    assert some["per_channel"].shape == (288, 2 * 32)
    np.testing.assert_allclose(some["per_channel"], turned["per_channel"], atol=1e-5)
    with pytest.raises(ValueError, match="no channel Brightfield; it has DNA, ER"):
        embed_screen(reader, encoder, 32, lambda d, s: None, channels=("DNA", "Brightfield"))
    plain = build_encoder(on_screen(of("mae")), channels=names)
    with pytest.raises(ValueError, match="this encoder takes exactly DNA, ER"):
        embed_screen(reader, plain, 32, lambda d, s: None, channels=names[:2])
