"""The values that describe a study: identity, round trips, refusals."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest

from phenoscale.backbones import NO_BACKBONE
from phenoscale.config import Crops, Objective, Optim, Placement, Study, Trial, num_steps
from tests.tiny import TINY, ZOO, of

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
    assert TINY.id == "mae-nano_8-f1-s0-7c97c60d"


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
        other_optim(name="lion"),
        other_optim(precision="bf16"),
        of("ca_mae"),
        of("mae", fourier_weight=0.01),
        of("mae", normalized_targets=True),
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
    sharded = Placement(launcher="ray_train", workers=2, strategy="fsdp", compiled=True)
    assert changed(placement=sharded).id == f"{TINY.id}-train2-fsdp-compiled"
    assert changed(placement=Placement(recompute=True)).id == f"{TINY.id}-recompute"


def test_names_show_the_options_that_matter():
    assert of("mae", fourier_weight=0.01).objective.label == "mae+"
    assert of("ca_mae", channel_subsets=True).objective.label == "ca_mae~"
    assert of("mae", fourier_weight=0.01).id.startswith("mae_plus-nano_8-")
    assert of("ca_mae", channel_subsets=True).id.startswith("ca_mae_subsets-nano_8-")
    assert len({trial.id for trial in ZOO}) == len(ZOO)


def digest(trial: Trial) -> str:
    return next(part for part in trial.id.split("-") if re.fullmatch("[0-9a-f]{8}", part))


@pytest.mark.parametrize(
    "trial",
    [
        TINY,
        BASELINE,
        *ZOO[2:],
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
        (
            lambda: Objective(name="gan"),
            "one of wsl, munet, mae, ca_mae, untrained, unt",
        ),
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
        (lambda: changed(backbone="M/16"), "no backbone 'M/16' for mae.*nano/16, nano/8, micro/16"),
        (lambda: changed(backbone="MU-net-M"), "no backbone 'MU-net-M' for mae"),
        (lambda: changed(backbone="H/14"), "16 px do not divide into patches of 14 px"),
        (lambda: of("munet"), "for munet. Choose one of MU-net-nano, MU-net-M, MU-net-L"),
        (lambda: of("wsl", "DenseNet-161"), "too small for DenseNet-161.* at least 32"),
        (
            lambda: changed(objective=Objective(name="wsl"), backbone="DenseNet-nano"),
            'Give sampling="plate_wise" and crops_per_plate of 2 or more',
        ),
        (
            lambda: dataclasses.replace(
                of("wsl", "DenseNet-nano"),
                placement=Placement(launcher="ray_train", workers=4),
            ),
            "global_batch_size=8 in units of 4 crops of a plate is too small for 4 workers",
        ),
        (lambda: Objective(name="wsl", fourier_weight=0.01), "an option of munet, mae, ca_mae"),
        (lambda: Objective(name="mae", fourier_weight=1.0), "fourier_weight is 1.0"),
        (lambda: Objective(name="munet", normalized_targets=True), "an option of mae, ca_mae"),
        (lambda: Objective(name="mae", channel_subsets=True), "an option of ca_mae"),
        (lambda: Optim(lr=1.0, name="sgd"), "one of adamw, lion, muon"),
        (lambda: Optim(lr=1.0, lr_source="luck"), "one of given, tuned, transferred, paper"),
        (lambda: Optim(lr=1.0, average=1.0), r"average is 1.0, but must be a decay in \[0, 1\)"),
        (lambda: Optim(lr=1.0, precision="fp16"), "precision is 'fp16'"),
        (lambda: Placement(strategy="zero"), "ddp, fsdp or None"),
        (lambda: Placement(launcher="ray_train", workers=2, min_workers=3), "1 to the 2 workers"),
        (
            lambda: Placement(launcher="ray_train", workers=2, min_workers=1),
            "min_workers=1 without GPUs",
        ),
        (lambda: Placement(crops_at_once=0), "crops_at_once is 0"),
        (lambda: Placement(save_every_s=0.0), "save_every_s is 0.0"),
        (lambda: Placement(stall_s=0.0), "stall_s is 0.0"),
        (lambda: other_crops(size_px=20), "multiple of 8"),
        (lambda: other_crops(passes=0), "every other objective on at least one pass"),
        (lambda: dataclasses.replace(BASELINE, backbone="nano/8"), '"none"'),
        (lambda: dataclasses.replace(BASELINE, crops=TINY.crops), "a baseline trains on nothing"),
        (
            lambda: changed(placement=Placement(launcher="ray_train", workers=9)),
            "global_batch_size=8 is too small for 9 workers",
        ),
        (
            lambda: dataclasses.replace(
                of("wsl", "DenseNet-nano"), placement=Placement(crops_at_once=6)
            ),
            "crops_at_once=6 tears the 4 crops of a plate apart",
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
    convolutional = of("munet", "MU-net-nano")
    with pytest.raises(ValueError, match=f"{convolutional.id}.*no read-out class_token"):
        Study(name="s", question="?", trials=(TINY, convolutional), readout="class_token")
    with pytest.raises(ValueError, match=f"{TINY.id}.*no read-out per_channel"):
        Study(name="s", question="?", trials=(TINY, of("ca_mae")), readout="per_channel")


def test_steps_are_whole_global_batches():
    crops = Crops(size_px=16, passes=3, global_batch_size=8)
    assert num_steps(crops, 10) == 3  # 30 crops: 3 batches of 8, 6 crops left
    assert num_steps(crops, 8) == 3
    with pytest.raises(ValueError, match="fewer crops than one global batch of 8"):
        num_steps(crops, 2)
