"""The bill: arithmetic by hand, and the same steps as the plan that training follows."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from phenoscale import flops, gpus
from phenoscale.backbones import NO_BACKBONE
from phenoscale.bill import A100_FLOPS, UTILIZATION, ScreenSize, bill, bill_text
from phenoscale.config import Crops, Objective, Placement, Study, Trial
from phenoscale.screens.cutter import CropCutter
from phenoscale.screens.index import ScreenIndex
from phenoscale.screens.subset import Subset
from tests.tiny import TINY

SIZE = ScreenSize(wells=5, sites_per_well=4, total_sites=24, channels=2, classes=3, site_px=40)


def study(*trials: Trial) -> Study:
    return Study(name="s", question="?", trials=trials)


def with_crops(**fields) -> Trial:
    return dataclasses.replace(TINY, crops=dataclasses.replace(TINY.crops, **fields))


UNTRAINED = dataclasses.replace(
    TINY, objective=Objective(name="untrained"), crops=Crops(size_px=16, passes=0)
)
INTENSITY = dataclasses.replace(
    UNTRAINED, objective=Objective(name="intensity"), backbone=NO_BACKBONE
)


def test_a_line_by_hand():
    (line,) = bill(study(with_crops(passes=3)), SIZE)
    # 5 wells x 4 sites x 3 passes = 60 crops: 7 whole batches of 8.
    assert (line.steps, line.crops) == (7, 56)
    assert line.training_flops == flops.training_flops(TINY, 2, 3, 56)
    # 40 px hold 2 x 2 whole tiles of 16 px, in each of 24 sites.
    assert line.embedding_flops == flops.embedding_flops(TINY, 2, 24 * 4)
    seconds = (line.training_flops + line.embedding_flops) / (A100_FLOPS * UTILIZATION)
    assert line.gpu_hours == pytest.approx(seconds / 3600)


def test_baselines_cost_no_training():
    untrained, intensity = bill(study(UNTRAINED, INTENSITY), SIZE)
    assert untrained.steps == untrained.crops == untrained.training_flops == 0
    assert untrained.embedding_flops > 0 and untrained.parameters > 0
    assert intensity.parameters == intensity.embedding_flops == intensity.gpu_hours == 0


@pytest.mark.parametrize("fraction", [1.0, 0.9, 0.5, 1 / 3, 0.3, 0.07])
@pytest.mark.parametrize("held_out", [(), ("batch1/plate1",), ("batch2",)])
def test_the_bill_counts_the_steps_that_training_makes(
    tiny_screen: Path, fraction: float, held_out: tuple[str, ...]
):
    trial = with_crops(data_fraction=fraction, held_out=held_out, passes=5)
    path = tiny_screen / "index.parquet"
    wells = len(Subset.of(ScreenIndex.open(path), 1.0, held_out)) // 2
    size = dataclasses.replace(SIZE, wells=wells, sites_per_well=2)
    (line,) = bill(study(trial), size)
    cutter = CropCutter(index_path=str(path), crops=trial.crops, seed=0)
    assert line.steps == cutter.plan.steps


def test_half_a_well_counts_as_the_index_counts_it():
    """Both round half up; Python's own rounding would take 2 of 5 wells."""
    (line,) = bill(study(with_crops(data_fraction=0.5, passes=2)), SIZE)
    assert line.crops == 3 * 4 * 2


def test_costs_follow_the_data():
    small, large = bill(study(with_crops(data_fraction=0.5), with_crops(passes=8)), SIZE)
    assert small.cost[0] < large.cost[0]
    assert small.cost[1] == large.cost[1] > 0


def test_what_cannot_run_is_refused_before_anything_is_spent():
    with pytest.raises(ValueError, match="crops of 48 px from sites of 40 px"):
        bill(study(with_crops(size_px=48)), SIZE)
    with pytest.raises(ValueError, match="fewer crops than one global batch"):
        bill(study(with_crops(data_fraction=0.2)), SIZE)


def test_the_text_names_every_trial_and_sums_up():
    twin = dataclasses.replace(TINY, placement=Placement(launcher="ray_train", workers=2, gpu=True))
    trials = (TINY, twin, UNTRAINED, INTENSITY)
    lines, text = bill(study(*trials), SIZE), bill_text(study(*trials), SIZE)
    body = dict(zip([t.id for t in trials], text[2:], strict=False))
    assert all(line.startswith(name) for name, line in body.items())
    # parameters, steps, crops, FLOPs, workers, GPUs, GPU-h
    assert body[twin.id].split()[1:4] == [f"{lines[1].parameters:,}", "2", "16"]
    assert body[twin.id].split()[5:7] == ["2", "2"]
    assert "4 trials (2 trained, 2 baselines), 4 steps, 32 crops" in text[-2]
    assert f"{sum(line.gpu_hours for line in lines):.2g} GPU-hours" in text[-1]
    # GB on each GPU, last; none without one.
    assert body[twin.id].split()[8] == f"{lines[1].gpu_bytes / 1e9:.1f}"
    assert [body[t.id].split()[8] for t in (TINY, UNTRAINED, INTENSITY)] == ["-"] * 3


def test_memory_is_that_of_a_workers_share():
    place = Placement(launcher="ray_train", workers=2, gpu=True, strategy="fsdp")
    sharded = dataclasses.replace(TINY, placement=place)
    (line,) = bill(study(sharded), SIZE)
    expected = gpus.gpu_bytes(TINY, 2, 3, crops=4, gpus=2, strategy="fsdp")
    assert line.gpu_bytes == expected > 0
    (replicated,) = bill(
        study(dataclasses.replace(TINY, placement=dataclasses.replace(place, strategy="ddp"))), SIZE
    )
    assert replicated.gpu_bytes != expected


def test_columns_hold_the_counts_of_a_large_screen():
    """Long ids, billions of crops, thousands of hours."""
    place = Placement(launcher="ray_train", workers=128, gpu=True, recompute=True, strategy="fsdp")
    large = dataclasses.replace(
        TINY,
        objective=Objective(name="ca_mae", fourier_weight=0.01, channel_subsets=True),
        backbone="L/8",
        crops=Crops(size_px=256, passes=50, global_batch_size=16_384),
        placement=place,
    )
    size = dataclasses.replace(SIZE, wells=93_000_000, sites_per_well=1, channels=6, site_px=2048)
    head, rule, line, *_, last = bill_text(study(large), size)
    assert len(head) == len(rule) == len(line) and line.startswith(f"{large.id} ")
    assert line.split()[3] == "4,649,992,192"
    hours = bill(study(large), size)[0].gpu_hours
    assert hours > 1000 and f"{hours:,.0f} GPU-hours" in last
