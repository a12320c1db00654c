"""Parameter and FLOP formulas against the built models and torch's own counter."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from phenoscale import flops
from phenoscale.backbones import BACKBONES, NO_BACKBONE, backbone
from phenoscale.config import Crops, Objective, Trial
from phenoscale.models.build import build_model
from tests.tiny import TINY

CHANNELS, CLASSES, CROPS = 6, 50, 2


def trial_of(objective: str, name: str, size_px: int = 64, mask_ratio: float = 0.75) -> Trial:
    return dataclasses.replace(
        TINY,
        objective=Objective(name=objective, mask_ratio=mask_ratio),
        backbone=name,
        crops=Crops(size_px=size_px),
    )


def meta_model(trial: Trial) -> torch.nn.Module:
    """The trial's model without memory: shapes alone."""
    with torch.device("meta"):
        return build_model(trial, channels=CHANNELS, num_classes=CLASSES)


def counted(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("name", BACKBONES)
def test_parameters_are_those_of_the_built_model(name: str):
    model, shape = meta_model(trial_of("mae", name)), backbone(name)
    encoder = flops.encoder_parameters(shape, CHANNELS)
    assert counted(model.get_submodule("encoder")) == encoder
    assert counted(model) - encoder == flops.decoder_parameters(shape, CHANNELS)


def test_a_classifier_adds_a_linear_head():
    model = meta_model(trial_of("wsl", "micro/8"))
    encoder = flops.encoder_parameters(backbone("micro/8"), CHANNELS)
    assert counted(model) == encoder + 48 * CLASSES + CLASSES


@pytest.mark.parametrize(
    ("objective", "name", "size_px", "mask_ratio"),
    [
        *[(objective, name, 128, 0.75) for objective in ("mae", "wsl") for name in BACKBONES],
        ("mae", "nano/16", 128, 0.5),
        ("mae", "L/16", 256, 0.75),
        ("wsl", "tiny/8", 64, 0.5),
    ],
)
def test_flops_are_those_that_torch_counts(
    objective: str, name: str, size_px: int, mask_ratio: float
):
    trial = trial_of(objective, name, size_px, mask_ratio)
    model = meta_model(trial)
    patches = model.get_submodule("encoder").num_patches
    crops = torch.empty(CROPS, CHANNELS, size_px, size_px, dtype=torch.uint8, device="meta")
    labels = torch.empty(CROPS, dtype=torch.int64, device="meta")
    noise = torch.empty(CROPS, patches, device="meta")
    # The counter does not know the CPU's flash attention; the plain one is made of products that it
    # knows.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(crops, labels, noise)
    assert counter.get_total_flops() == CROPS * flops.forward_flops(trial, CHANNELS, CLASSES)


def test_training_is_three_forwards_of_every_crop():
    trial = trial_of("mae", "nano/8")
    forward = flops.forward_flops(trial, CHANNELS, CLASSES)
    assert flops.training_flops(trial, CHANNELS, CLASSES, 7) == 21 * forward


def test_masking_saves_encoder_work():
    lightly, heavily = (trial_of("mae", "B/16", 256, ratio) for ratio in (0.25, 0.75))
    assert flops.forward_flops(heavily, 6, 50) < flops.forward_flops(lightly, 6, 50)


def test_embedding_encodes_every_patch_of_every_tile():
    mae, wsl = trial_of("mae", "nano/8"), trial_of("wsl", "nano/8")
    assert flops.embedding_flops(mae, 6, 5) == flops.embedding_flops(wsl, 6, 5)
    head = 2 * backbone("nano/8").width * CLASSES
    assert flops.embedding_flops(wsl, 6, 5) == 5 * (flops.forward_flops(wsl, 6, CLASSES) - head)


def test_baselines_train_for_nothing():
    untrained = dataclasses.replace(
        TINY, objective=Objective(name="untrained"), crops=Crops(size_px=64, passes=0)
    )
    intensity = dataclasses.replace(
        untrained, objective=Objective(name="intensity"), backbone=NO_BACKBONE
    )
    assert flops.training_flops(untrained, 6, 50, 0) == 0
    assert flops.embedding_flops(untrained, 6, 1) > 0
    assert flops.embedding_flops(intensity, 6, 1) == 0
