"""Strategy and pieces of a batch by memory: arithmetic on papers' trials and made-up cards."""

from __future__ import annotations

import dataclasses

import pytest

from phenoscale import gpus
from phenoscale.config import Crops, Objective, Optim, Placement, Trial
from phenoscale.layout import LEAST_CROPS, Layout, layout_of
from tests.tiny import TINY, of

CHANNELS, CLASSES = 6, 1000


def paper(backbone: str, workers: int, batch: int = 2048, **place) -> Trial:
    return Trial(
        objective=Objective(name="mae"),
        backbone=backbone,
        crops=Crops(size_px=256, passes=1, global_batch_size=batch),
        optim=Optim(lr=1e-4, name="lion", precision="bf16"),
        placement=Placement(launcher="ray_train", workers=workers, gpu=True, **place),
    )


def laid(trial: Trial, gigabytes: float = 80) -> Layout:
    workers = trial.placement.workers
    return layout_of(trial, CHANNELS, CLASSES, workers=workers, gpu_bytes=gigabytes * 1e9)


def used(trial: Trial, layout: Layout) -> float:
    """Bytes on each GPU with the layout's crops."""
    workers = trial.placement.workers
    return gpus.gpu_bytes(
        trial,
        CHANNELS,
        CLASSES,
        crops=layout.crops_at_once or trial.crops.global_batch_size // workers,
        gpus=workers,
        strategy=layout.strategy,
    )


def test_what_fits_is_replicated_and_taken_whole():
    assert laid(paper("S/16", 64)) == Layout(strategy="ddp", crops_at_once=None)


def test_a_share_that_does_not_fit_goes_in_the_largest_pieces_that_do():
    trial = paper("L/16", 2)
    layout = laid(trial)
    assert layout.strategy == "ddp"
    room = 80e9 * (1 - gpus.RESERVE)
    assert used(trial, layout) <= room
    one_more = dataclasses.replace(layout, crops_at_once=layout.crops_at_once + 1)
    assert used(trial, one_more) > room


def test_a_model_that_leaves_too_little_room_is_sharded():
    trial = paper("G/8", 16, recompute=True)
    assert laid(trial).strategy == "ddp"
    layout = laid(trial, gigabytes=34)
    assert layout.strategy == "fsdp" and used(trial, layout) <= 30.6e9
    assert laid(paper("S/16", 16), gigabytes=1.2).strategy == "fsdp"


def test_what_is_asked_for_is_done():
    asked = paper("S/16", 4, strategy="fsdp", crops_at_once=32)
    assert laid(asked) == Layout(strategy="fsdp", crops_at_once=32)
    on_cpu = dataclasses.replace(TINY, placement=Placement(crops_at_once=3))
    assert layout_of(on_cpu, 2, 3, workers=1) == Layout(strategy="ddp", crops_at_once=3)
    assert layout_of(TINY, 2, 3, workers=1) == Layout()


def test_one_gpu_shards_nothing():
    layout = laid(paper("S/16", 1), gigabytes=1.5)
    assert layout.strategy == "ddp" and 0 < layout.crops_at_once < LEAST_CROPS


def test_crops_of_a_plate_stay_together():
    trial = dataclasses.replace(
        of("wsl", "DenseNet-nano"), placement=Placement(launcher="ray_train", gpu=True)
    )
    state = gpus.gpu_bytes(trial, 2, 3, crops=0, gpus=1, strategy="ddp")
    one = gpus.activation_bytes(trial, 2, 3)
    memory = (state + 5.5 * one) / (1 - gpus.RESERVE)
    assert layout_of(trial, 2, 3, workers=1, gpu_bytes=memory).crops_at_once == 4
    with pytest.raises(ValueError, match="leaves no room for 4 crops on 1 GPUs.*more workers"):
        layout_of(trial, 2, 3, workers=1, gpu_bytes=(state + 3.5 * one) / (1 - gpus.RESERVE))
