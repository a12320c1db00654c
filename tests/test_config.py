"""The values that describe a study: identity, round trips, refusals."""

from __future__ import annotations

import dataclasses
import json

import pytest

from phenoscale.backbones import NO_BACKBONE
from phenoscale.config import Crops, Objective, Optim, Placement, Study, Trial, num_steps
from tests.tiny import TINY

BASELINE = Trial(
    objective=Objective(name="intensity"),
    backbone=NO_BACKBONE,
    crops=Crops(size_px=16, passes=0),
    optim=Optim(lr=1.0),
)


def changed(**fields) -> Trial:
    return dataclasses.replace(TINY, **fields)


def other_crops(**fields) -> Trial:
    return changed(crops=dataclasses.replace(TINY.crops, **fields))


def other_optim(**fields) -> Trial:
    return changed(optim=dataclasses.replace(TINY.optim, **fields))


def test_the_id_is_pinned():
    """A change of this id orphans every study on disk; make one only on purpose."""
    assert TINY.id == "mae-nano_8-f1-s0-86d0e977"


def test_the_id_reads_as_what_the_trial_is():
    trial = other_crops(data_fraction=1 / 3)
    assert dataclasses.replace(trial, seed=4).id.startswith("mae-nano_8-f0.333-s4-")
    assert BASELINE.id.startswith("intensity-s0-")


@pytest.mark.parametrize(
    "other",
    [
        changed(seed=1),
        changed(backbone="micro/8"),
        changed(objective=Objective(name="wsl", mask_ratio=0.5)),
        changed(objective=Objective(name="mae", mask_ratio=0.75)),
        other_crops(size_px=32),
        other_crops(data_fraction=0.5),
        other_crops(passes=2),
        other_crops(global_batch_size=16),
        other_crops(held_out=("batch1/plate1",)),
        other_crops(tolerated_bad_sites=0.1),
        other_optim(lr=1e-3),
        other_optim(weight_decay=0.1),
        other_optim(betas=(0.9, 0.999)),
        other_optim(warmup_fraction=0.2),
        other_optim(clip_norm=2.0),
    ],
    ids=lambda trial: trial.id,
)
def test_every_field_that_changes_the_result_changes_the_hash(other: Trial):
    assert digest(other) != digest(TINY)


def test_the_placement_changes_the_name_but_not_the_hash():
    twin = changed(placement=Placement(launcher="ray_train", workers=2))
    assert digest(twin) == digest(TINY)
    assert twin.id == f"{TINY.id}-train2"
    assert changed(placement=Placement(threads=4)).id == TINY.id


def digest(trial: Trial) -> str:
    return next(part for part in trial.id.split("-") if len(part) == 8 and int(part, 16) >= 0)


@pytest.mark.parametrize(
    "trial",
    [
        TINY,
        BASELINE,
        other_crops(held_out=("batch1", "batch2/plate1")),
        changed(placement=Placement(launcher="ray_train", workers=4, gpu=True, threads=2)),
    ],
    ids=lambda trial: trial.id,
)
def test_a_trial_survives_json(trial: Trial):
    assert Trial.from_dict(json.loads(json.dumps(trial.as_dict()))) == trial


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: Crops(size_px=0), "size_px is 0"),
        (lambda: Crops(size_px=16, data_fraction=0.0), "data_fraction is 0.0"),
        (lambda: Crops(size_px=16, data_fraction=1.5), "data_fraction is 1.5"),
        (lambda: Crops(size_px=16, passes=-1), "passes is -1"),
        (lambda: Crops(size_px=16, global_batch_size=0), "global_batch_size is 0"),
        (lambda: Crops(size_px=16, tolerated_bad_sites=1.0), "tolerated_bad_sites is 1.0"),
        (lambda: Objective(name="gan"), "one of wsl, mae, untrained, intensity, oracle"),
        (lambda: Objective(name="mae", mask_ratio=1.0), "mask_ratio is 1.0"),
        (lambda: Optim(lr=0.0), "lr is 0.0"),
        (lambda: Optim(lr=1.0, warmup_fraction=1.0), "warmup_fraction is 1.0"),
        (lambda: Optim(lr=1.0, clip_norm=0.0), "clip_norm is 0.0"),
        (lambda: Placement(launcher="slurm"), "in_place or ray_train"),
        (lambda: Placement(workers=2), "workers=2"),
        (lambda: Placement(gpu=True), 'Give launcher="ray_train"'),
        (lambda: Placement(launcher="ray_train", workers=0), "workers is 0"),
        (lambda: Placement(threads=0), "threads is 0"),
        (lambda: changed(seed=-1), "seed is -1"),
        (lambda: changed(seed=2**31), "seed is 2147483648"),
        (
            lambda: changed(objective=Objective(name="mae", mask_ratio=0.1)),
            "keeps 4 of the 4 patches",
        ),
        (
            lambda: changed(objective=Objective(name="mae", mask_ratio=0.9)),
            "keeps 0 of the 4 patches",
        ),
        (lambda: changed(backbone="H/14"), "nano/16, nano/8, micro/16"),
        (lambda: other_crops(size_px=20), "multiple of 8"),
        (lambda: other_crops(passes=0), "every other objective on at least one pass"),
        (lambda: dataclasses.replace(BASELINE, backbone="nano/8"), '"none"'),
        (lambda: dataclasses.replace(BASELINE, crops=TINY.crops), "a baseline trains on nothing"),
        (
            lambda: changed(placement=Placement(launcher="ray_train", workers=3)),
            "does not divide among 3 workers",
        ),
    ],
)
def test_what_cannot_work_is_refused_when_it_is_made(make, complaint: str):
    with pytest.raises(ValueError, match=complaint):
        make()


def test_a_study_refuses_what_it_cannot_run():
    Study(name="s", question="?", trials=(TINY, BASELINE))
    with pytest.raises(ValueError, match=f"{TINY.id}.*twice"):
        Study(name="s", question="?", trials=(TINY, BASELINE, TINY))
    with pytest.raises(ValueError, match="at least one trial"):
        Study(name="s", question="?", trials=())
    with pytest.raises(ValueError, match="patch_mean, class_token, patch_sd"):
        Study(name="s", question="?", trials=(TINY,), readout="mean")
    with pytest.raises(ValueError, match="balanced_accuracy"):
        Study(name="s", question="?", trials=(TINY,), metric="accuracy")


def test_steps_are_whole_global_batches():
    crops = Crops(size_px=16, passes=3, global_batch_size=8)
    assert num_steps(crops, 10) == 3  # 30 crops: 3 batches of 8, 6 crops left
    assert num_steps(crops, 8) == 3
    with pytest.raises(ValueError, match="fewer crops than one global batch of 8"):
        num_steps(crops, 2)
