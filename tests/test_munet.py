"""The masked U-Net: what it sees, what its loss is, what it is embedded by."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from phenoscale.models.build import build_model
from phenoscale.models.munet import MaskedUNet
from phenoscale.models.vit import standardize
from tests.tiny import CHANNELS, of

LABELS = torch.zeros(3, dtype=torch.int64)


def model_of(**options) -> MaskedUNet:
    trial = of("munet", "MU-net-nano", size_px=32, **options)
    model = build_model(trial, channels=CHANNELS, num_classes=1)
    assert isinstance(model, MaskedUNet)
    return model


@pytest.fixture(scope="module")
def crops() -> torch.Tensor:
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.integers(0, 256, (3, 2, 32, 32), dtype=np.uint8))


@pytest.fixture(scope="module")
def draws() -> torch.Tensor:
    return torch.rand(3, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("ratio", "squares"), [(0.25, 4), (0.5, 8)])
def test_squares_with_the_most_noise_are_removed_in_all_channels(
    ratio: float, squares: int, crops: torch.Tensor, draws: torch.Tensor
):
    _, removed = model_of(mask_ratio=ratio).reconstruct(crops, draws)
    assert removed.shape == crops.shape and torch.equal(removed[:, 0], removed[:, 1])
    corners = removed[:, 0, ::8, ::8].flatten(1)
    assert torch.equal(removed[:, 0, 7::8, 7::8].flatten(1), corners)
    ranks = draws.argsort(dim=1).argsort(dim=1)
    assert torch.equal(corners, ranks >= 16 - squares)


@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_the_loss_is_that_of_numpy(weight: float, crops: torch.Tensor, draws: torch.Tensor):
    model = model_of(mask_ratio=0.25, fourier_weight=weight)
    with torch.no_grad():
        loss = float(model(crops, LABELS, draws))
        predicted, removed = model.reconstruct(crops, draws)
    guess, target = predicted.double().numpy(), standardize(crops).double().numpy()
    mse = np.square(guess - target)[removed.numpy()].mean()
    spectra = [np.abs(np.fft.fft2(image)) for image in (guess, target)]
    fourier = np.abs(spectra[0] - spectra[1]).mean()
    assert loss == pytest.approx((1 - weight) * mse + weight * fourier, rel=1e-4)


def test_what_is_masked_is_not_seen(crops: torch.Tensor, draws: torch.Tensor):
    """Standardization looks at the whole crop, so the hidden pixels change places only."""
    model = model_of(mask_ratio=0.25)
    predicted, removed = model.reconstruct(crops, draws)
    other = crops.clone()
    for crop, where, hidden in zip(crops, other, removed, strict=True):
        where[hidden] = crop[hidden].reshape(2, -1).flip(-1).flatten()
    assert not torch.equal(other, crops)
    again, _ = model.reconstruct(other, draws)
    torch.testing.assert_close(predicted, again, atol=1e-4, rtol=1e-4)
    seen = crops.clone()
    seen[:, :, :8] = seen[:, :, :8].flip(-1)
    assert not torch.allclose(model.reconstruct(seen, draws)[0], predicted, atol=1e-2)


def test_the_embedding_is_the_pooled_bottleneck(crops: torch.Tensor):
    encoder = model_of().encoder
    with torch.no_grad():
        bottleneck = encoder(standardize(crops))[-1].double().numpy()
        read = encoder.read(crops, CHANNELS)
        turned = encoder.read(crops.flip(1), CHANNELS[::-1])
    assert bottleneck.shape == (3, 64, 4, 4) and set(read) == {"patch_mean", "patch_sd"}
    np.testing.assert_allclose(read["patch_mean"], bottleneck.mean(axis=(2, 3)), atol=1e-5)
    np.testing.assert_allclose(read["patch_sd"], bottleneck.std(axis=(2, 3)), atol=1e-5)
    assert torch.equal(turned["patch_mean"], read["patch_mean"]), "channels go by name"


def test_other_channels_are_refused(crops: torch.Tensor):
    encoder = model_of().encoder
    with pytest.raises(ValueError, match="channels DNA, ER; this encoder takes exactly DNA, Actin"):
        encoder.read(crops, ("DNA", "ER"))
    with pytest.raises(ValueError, match="3 channel names, DNA, Actin, ER, for crops of 2"):
        encoder.read(crops, ("DNA", "Actin", "ER"))


def test_a_crop_is_filled_alike_in_any_company(crops: torch.Tensor, draws: torch.Tensor):
    model = model_of()
    whole, _ = model.reconstruct(crops, draws)
    alone, _ = model.reconstruct(crops[1:2], draws[1:2])
    torch.testing.assert_close(whole[1:2], alone, atol=1e-5, rtol=1e-4)


def test_every_parameter_learns(crops: torch.Tensor, draws: torch.Tensor):
    model = model_of()
    model(crops, LABELS, draws).backward()
    still = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert still == []
