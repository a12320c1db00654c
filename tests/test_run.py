"""What a launcher hands back is held against the plan, over all workers and attempts."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from phenoscale.fit import Fitted
from phenoscale.record import Record
from phenoscale.run import _check_delivery
from phenoscale.screens.cutter import BadSiteError, CropCutter
from phenoscale.study_files import StudyFiles
from tests.tiny import TINY

CROPS = dataclasses.replace(
    TINY.crops, passes=2, global_batch_size=32, tolerated_bad_sites=0.01, held_out=("batch1",)
)
TRIAL = dataclasses.replace(TINY, crops=CROPS)


@pytest.fixture
def files(tiny_screen: Path, tmp_path: Path) -> StudyFiles:
    files = StudyFiles(study_dir=tmp_path, index=tiny_screen / "index.parquet")
    files.trial_dir(TRIAL).mkdir(parents=True)
    return files


def fitted(files: StudyFiles, *, crops: int = 0, bad_rows: tuple[int, ...] = ()) -> Fitted:
    """What two workers hand back that went on from step 3."""
    cutter = CropCutter(index_path=str(files.index), crops=CROPS, seed=TRIAL.seed)
    return Fitted(
        record=Record(bad_rows=list(bad_rows)),
        train_s=1.0,
        data_cpu_s=0.0,
        first_step=3,
        crops=(cutter.plan.steps - 3) * 32 + crops,
        matmul_peak=1e11,
        workers=[{"crops": 1, "train_s": 1.0, "data_wait_s": 0.1}] * 2,
    )


def test_all_crops_came_and_bad_sites_are_listed(files: StudyFiles):
    _check_delivery(TRIAL, files, fitted(files, bad_rows=(150,)))
    lines = (files.trial_dir(TRIAL) / "bad_sites.csv").read_text().splitlines()
    assert lines[0] == "row,site_id" and len(lines) == 2 and lines[1].startswith("150,")


@pytest.mark.parametrize("crops", [-1, 1])
def test_a_crop_too_few_or_too_many_is_a_fault(files: StudyFiles, crops: int):
    with pytest.raises(RuntimeError, match="crops came, .* were planned"):
        _check_delivery(TRIAL, files, fitted(files, crops=crops))


def test_bad_sites_count_over_all_workers_and_attempts(files: StudyFiles):
    """Of 144 sites one is tolerated; each worker may have met one alone."""
    with pytest.raises(BadSiteError, match="2 of 144 sites could not be read"):
        _check_delivery(TRIAL, files, fitted(files, bad_rows=(150, 151)))
