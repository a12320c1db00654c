"""DenseNet with adaptive batch norm, held against timm's with the plain one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from timm.models.densenet import DenseNet as TimmDenseNet

from phenoscale.backbones import DENSENETS
from phenoscale.models.build import build_encoder, build_model
from phenoscale.models.classifier import Classifier
from phenoscale.models.densenet import DenseNetEncoder
from phenoscale.models.vit import standardize
from tests.tiny import CHANNELS, CLASSES, of

TRIAL = of("wsl", "DenseNet-nano", size_px=32)


@pytest.fixture(scope="module")
def crops() -> torch.Tensor:
    rng = np.random.default_rng(0)
    scale = np.linspace(20, 255, 8)[:, None, None, None]  # no two crops, and no two halves, alike
    pixels = np.cumsum(rng.normal(0, 1, (8, 2, 32, 32)), axis=-1) % 1 * scale
    return torch.from_numpy(pixels.astype(np.uint8))


def encoder_of(crops_per_plate: int | None = None) -> DenseNetEncoder:
    torch.manual_seed(0)
    return DenseNetEncoder(
        DENSENETS["DenseNet-nano"], channels=CHANNELS, size_px=32, crops_per_plate=crops_per_plate
    )


def timms(encoder: DenseNetEncoder) -> TimmDenseNet:
    """The same weights in timm's model, whose batch norm is in training mode."""
    shape = DENSENETS["DenseNet-nano"]
    model = TimmDenseNet(
        growth_rate=shape.growth, block_config=shape.blocks, in_chans=2, num_classes=0
    )
    missing, unexpected = model.load_state_dict(encoder.state_dict(), strict=False)
    assert not unexpected
    assert all("running" in name or "num_batches" in name for name in missing)
    return model.train()


def test_on_one_batch_it_is_plain_batch_norm(crops: torch.Tensor):
    encoder = encoder_of()
    with torch.no_grad():
        expected = timms(encoder).forward_features(standardize(crops))
        torch.testing.assert_close(encoder(standardize(crops)), expected, atol=1e-5, rtol=1e-5)
        encoder.adapt(crops, CHANNELS)  # and so it is by the statistics of that batch
        torch.testing.assert_close(encoder(standardize(crops)), expected, atol=1e-4, rtol=1e-4)


def test_each_plate_of_a_batch_is_normalized_by_itself(crops: torch.Tensor):
    encoder = encoder_of(crops_per_plate=4)
    plain = timms(encoder)
    with torch.no_grad():
        got = encoder(standardize(crops))
        halves = [plain.forward_features(standardize(half)) for half in crops.split(4)]
        whole = plain.forward_features(standardize(crops))
    torch.testing.assert_close(got, torch.cat(halves), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(got, whole, atol=1e-2)


def test_after_adapting_a_crop_embeds_alike_in_any_company(crops: torch.Tensor):
    encoder = encoder_of().eval()
    encoder.adapt(crops, CHANNELS)
    with torch.no_grad():
        whole = encoder.read(crops, CHANNELS)["patch_mean"]
        alone = encoder.read(crops[3:4], CHANNELS)["patch_mean"]
        turned = encoder.read(crops[3:4].flip(1), CHANNELS[::-1])["patch_mean"]
    torch.testing.assert_close(whole[3:4], alone, atol=1e-5, rtol=1e-5)
    assert torch.equal(turned, alone), "channels go by name"
    encoder.adapt(crops[4:], CHANNELS)
    with torch.no_grad():
        other = encoder.read(crops[3:4], CHANNELS)["patch_mean"]
    assert not torch.allclose(other, alone, atol=1e-3), "another plate, other statistics"


def test_the_embedding_is_the_penultimate_layer(crops: torch.Tensor):
    model = build_model(TRIAL, channels=CHANNELS, num_classes=CLASSES)
    assert isinstance(model, Classifier)
    with torch.no_grad():
        read = model.encoder.read(crops, CHANNELS)
        places = model.encoder.places(crops, torch.zeros(8, 0))
    assert set(read) == {"patch_mean", "patch_sd"} and read["patch_mean"].shape == (8, 16)
    torch.testing.assert_close(read["patch_mean"], places.mean(dim=1))
    assert model.head.in_features == 16


def test_statistics_are_no_part_of_the_weights(crops: torch.Tensor):
    encoder = encoder_of()
    before = {name: x.clone() for name, x in encoder.state_dict().items()}
    encoder.adapt(crops, CHANNELS)
    after = encoder.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(x, after[name]) for name, x in before.items())
    assert not any("running" in name for name in after)


def test_every_parameter_learns(crops: torch.Tensor):
    model = build_model(TRIAL, channels=CHANNELS, num_classes=CLASSES)
    model(crops, torch.arange(8) % CLASSES, torch.zeros(8, 0)).backward()
    still = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert still == []


def test_the_seed_decides_the_untrained_encoder():
    one, two = (build_encoder(TRIAL, channels=CHANNELS).state_dict() for _ in range(2))
    start = build_model(TRIAL, channels=CHANNELS, num_classes=CLASSES).encoder.state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert all(torch.equal(one[name], start[name]) for name in one)
