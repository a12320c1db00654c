"""The rule for learning rates: by hand, downhill with width, and what it refuses."""

from __future__ import annotations

import pytest

from phenoscale.backbones import VISION_TRANSFORMERS, vision_transformer
from phenoscale.rates import TUNED, TunedRate, optim_for, transferred_rate

NANO = TunedRate(lr=8e-3, backbone="nano/8", global_batch_size=64)


def test_the_rule_by_hand():
    # B is 768 wide, nano 32: 24 times. A batch of 1,024 is 16 times that of 64.
    given = transferred_rate(NANO, backbone="B/16", global_batch_size=1024)
    assert given == pytest.approx(8e-3 / 24 * 4)
    given = transferred_rate(NANO, backbone="pico/8", global_batch_size=64)
    assert given == pytest.approx(1.6e-2)


def test_to_itself_it_changes_nothing():
    for row in (row for rows in TUNED.values() for row in rows):
        batch = row.global_batch_size
        assert transferred_rate(row, backbone=row.backbone, global_batch_size=batch) == row.lr


def test_a_wider_backbone_never_gets_a_higher_rate():
    names = sorted(VISION_TRANSFORMERS, key=lambda name: vision_transformer(name).width)
    given = [transferred_rate(NANO, backbone=name, global_batch_size=64) for name in names]
    assert given == sorted(given, reverse=True) and given[0] > given[-1]


def test_a_larger_batch_gets_a_higher_rate():
    batches = (1, 63, 64, 65, 16_384)
    given = [transferred_rate(NANO, backbone="S/16", global_batch_size=b) for b in batches]
    assert given == sorted(given) and len(set(given)) == len(batches)


@pytest.mark.parametrize("objective", TUNED)
def test_a_swept_size_has_its_own_rate_and_others_one_of_the_nearest(objective: str):
    for row in TUNED[objective]:
        optim = optim_for(objective, row.backbone, row.global_batch_size)
        assert (optim.lr, optim.lr_source, optim.name) == (row.lr, "tuned", "adamw")
        larger = optim_for(objective, row.backbone, 4 * row.global_batch_size)
        assert (larger.lr, larger.lr_source) == (pytest.approx(2 * row.lr), "transferred")
    widest = max(TUNED[objective], key=lambda row: vision_transformer(row.backbone).width)
    optim = optim_for(objective, "L/16", 64)
    assert optim.lr_source == "transferred"
    assert optim.lr == transferred_rate(widest, backbone="L/16", global_batch_size=64)


def test_the_table_holds_what_can_be_trained():
    for rows in TUNED.values():
        assert len({(row.backbone, row.global_batch_size) for row in rows}) == len(rows) > 0
        for row in rows:
            assert row.lr > 0 and row.backbone in VISION_TRANSFORMERS


@pytest.mark.parametrize(
    ("objective", "backbone", "batch", "message"),
    [
        ("munet", "MU-net-M", 64, "No learning rate of munet is tuned; there are rates of mae"),
        ("mae", "DenseNet-161", 64, "no backbone 'DenseNet-161' for mae"),
        ("mae", "nano/8", 0, "global_batch_size is 0, but must be positive"),
    ],
)
def test_what_no_sweep_covers_is_refused(objective: str, backbone: str, batch: int, message: str):
    with pytest.raises(ValueError, match=message):
        optim_for(objective, backbone, batch)
