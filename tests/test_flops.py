"""Parameter and FLOP formulas against the built models and torch's own counter, on every row."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from phenoscale import flops
from phenoscale.backbones import BACKBONES_OF, DENSENETS, NO_BACKBONE, backbone
from phenoscale.config import TRAINED_OBJECTIVES, Crops, Objective, Trial
from phenoscale.models.build import build_model, empty_encoder
from phenoscale.zoo import CHANNELS, CLASSES, ZOO, System
from tests.tiny import TINY

NAMES = tuple(f"channel {i}" for i in range(CHANNELS))
CROPS = 2  # of a plate where batch norm is taken plate by plate
OF_THE_ZOO = {(system.objective, system.backbone) for system in ZOO}
OTHERS = [  # the large ones differ in numbers alone
    (o, name)
    for o in TRAINED_OBJECTIVES
    for name in BACKBONES_OF[o]
    if (o, name) not in OF_THE_ZOO and name[0] not in "BLHG"
]


def trial_of(objective: str, name: str, size_px: int = 64, **options) -> Trial:
    by_plate = {"sampling": "plate_wise", "crops_per_plate": CROPS} if name in DENSENETS else {}
    return dataclasses.replace(
        TINY,
        objective=Objective(name=objective, **options),
        backbone=name,
        crops=Crops(size_px=size_px, **by_plate),
    )


def side_of(name: str) -> int:
    """A side that the backbone can take: 14 divides no power of two."""
    return 84 if name == "H/14" else 64


def meta_model(trial: Trial, classes: int = CLASSES) -> torch.nn.Module:
    """The trial's model without memory: shapes alone."""
    with torch.device("meta"):
        return build_model(trial, channels=NAMES, num_classes=classes)


def parameters_of(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@torch.no_grad()
def counted(trial: Trial, model: torch.nn.Module) -> float:
    """What torch counts in the model's forward pass, per crop."""
    size_px = trial.crops.size_px
    crops = torch.empty(CROPS, CHANNELS, size_px, size_px, dtype=torch.uint8, device="meta")
    labels = torch.empty(CROPS, dtype=torch.int64, device="meta")
    draws = torch.empty(CROPS, model.draws + model.shared_draws, device="meta")
    # The counter does not know the CPU's flash attention; the plain one is made of products that it
    # knows.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(crops, labels, draws)
    return counter.get_total_flops() / CROPS


@pytest.mark.parametrize("system", ZOO, ids=lambda system: system.name)
def test_a_row_of_the_zoo_is_the_built_model(system: System):
    trial = system.trial()
    # The crops of a plate stand together, and the counter is given two.
    trial = dataclasses.replace(
        trial, crops=dataclasses.replace(trial.crops, crops_per_plate=CROPS)
    )
    model = meta_model(trial)
    assert parameters_of(model) == flops.model_parameters(trial, CHANNELS, CLASSES)
    encoder = parameters_of(model.get_submodule("encoder"))
    assert encoder == flops.trial_encoder_parameters(trial, CHANNELS)
    # The bar is 2%; nothing is left out.
    assert flops.forward_flops(trial, CHANNELS, CLASSES) == counted(trial, model)


@pytest.mark.parametrize(("objective", "name"), OTHERS)
def test_so_has_every_other_pair_its_parameters(objective: str, name: str):
    trial = trial_of(objective, name, side_of(name))
    model, agnostic = meta_model(trial, classes=50), objective == "ca_mae"
    shape = backbone(name)
    encoder = flops.encoder_parameters(shape, CHANNELS, agnostic=agnostic)
    assert parameters_of(model.get_submodule("encoder")) == encoder
    rest = (
        shape.embedding_width * 50 + 50
        if objective == "wsl"
        else flops.decoder_parameters(shape, CHANNELS, agnostic=agnostic)
    )
    assert parameters_of(model) == encoder + rest
    assert flops.model_parameters(trial, CHANNELS, 50) == encoder + rest


@pytest.mark.parametrize(
    ("objective", "name", "size_px", "options"),
    [
        ("mae", "nano/8", 64, {"mask_ratio": 0.5}),
        ("mae", "nano/16", 128, {"mask_ratio": 0.25, "fourier_weight": 0.01}),
        ("mae", "tiny/8", 192, {"normalized_targets": True}),
        ("mae", "micro/8", 56, {"fourier_weight": 0.5}),
        ("wsl", "tiny/8", 64, {}),
        ("ca_mae", "nano/8", 32, {"mask_ratio": 0.6}),
        ("ca_mae", "S/16", 128, {"fourier_weight": 0.01, "normalized_targets": True}),
        ("munet", "MU-net-nano", 40, {"mask_ratio": 0.25, "fourier_weight": 0.01}),
        ("munet", "MU-net-M", 128, {"mask_ratio": 0.5}),
        ("wsl", "DenseNet-nano", 50, {}),
        ("wsl", "DenseNet-nano", 253, {}),
    ],
)
def test_flops_follow_size_masks_and_losses(objective, name, size_px, options):
    trial = trial_of(objective, name, size_px, **options)
    assert flops.forward_flops(trial, CHANNELS, CLASSES) == counted(trial, meta_model(trial))


def test_channel_subsets_cost_the_mean_over_how_many_there_are(monkeypatch):
    """Every number of channels is as likely; each is counted by itself."""
    trial = trial_of("ca_mae", "nano/8", channel_subsets=True)
    from phenoscale.models.camae import ChannelAgnosticMAE

    costs, model = [], meta_model(trial)
    for number in range(1, CHANNELS + 1):
        monkeypatch.setattr(
            ChannelAgnosticMAE, "_chosen", lambda self, draws, n=number: list(range(n))
        )
        costs.append(counted(trial, model))
    assert len(set(costs)) == CHANNELS
    mean = sum(costs) / CHANNELS
    assert flops.forward_flops(trial, CHANNELS, CLASSES) == pytest.approx(mean, abs=1)
    everything = trial_of("ca_mae", "nano/8")
    assert flops.forward_flops(everything, CHANNELS, CLASSES) == costs[-1]


def test_training_is_three_forwards_of_every_crop():
    trial = trial_of("mae", "nano/8")
    forward = flops.forward_flops(trial, CHANNELS, CLASSES)
    assert flops.training_flops(trial, CHANNELS, CLASSES, 7) == 21 * forward


def test_masking_saves_encoder_work():
    lightly, heavily = (trial_of("mae", "B/16", 256, mask_ratio=ratio) for ratio in (0.25, 0.75))
    assert flops.forward_flops(heavily, 6, 50) < flops.forward_flops(lightly, 6, 50)


@pytest.mark.parametrize("name", ["nano/8", "S/16", "DenseNet-nano", "MU-net-nano"])
def test_embedding_is_what_torch_counts_in_reading_every_readout(name: str):
    kinds = {"untrained": False}
    if name in BACKBONES_OF["untrained_ca"]:
        kinds["untrained_ca"] = True
    side = side_of(name)
    for kind, agnostic in kinds.items():
        trial = dataclasses.replace(
            TINY, objective=Objective(name=kind), backbone=name, crops=Crops(size_px=side, passes=0)
        )
        with torch.device("meta"):
            encoder = empty_encoder(name, channels=NAMES, size_px=side, agnostic=agnostic).eval()
        tiles = torch.empty(3, CHANNELS, side, side, dtype=torch.uint8, device="meta")
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            encoder.read(tiles, NAMES)
        assert flops.embedding_flops(trial, CHANNELS, 3) == counter.get_total_flops()


def test_a_head_is_no_part_of_embedding():
    mae, wsl = trial_of("mae", "nano/8"), trial_of("wsl", "nano/8")
    assert flops.embedding_flops(mae, 6, 5) == flops.embedding_flops(wsl, 6, 5)
    head = 2 * backbone("nano/8").embedding_width * 50
    assert flops.embedding_flops(wsl, 6, 5) == 5 * (flops.forward_flops(wsl, 6, 50) - head)


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
