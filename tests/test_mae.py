"""The masked autoencoder: what it sees, what it predicts, what its loss is."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from phenoscale.config import Objective
from phenoscale.models.build import build_model
from phenoscale.models.mae import MaskedAutoencoder
from phenoscale.models.panel import panel
from phenoscale.models.vit import patchify, standardize, take, unpatchify
from tests.tiny import CHANNELS, TINY

PATCH, SIZE, PATCHES = 8, 32, 16
LABELS = torch.zeros(5, dtype=torch.int64)


def model_of(mask_ratio: float = 0.75) -> MaskedAutoencoder:
    trial = dataclasses.replace(
        TINY,
        objective=Objective(name="mae", mask_ratio=mask_ratio),
        crops=dataclasses.replace(TINY.crops, size_px=SIZE),
    )
    model = build_model(trial, channels=CHANNELS, num_classes=1)
    assert isinstance(model, MaskedAutoencoder)
    return model.eval()


def predictions(
    model: MaskedAutoencoder, patches: torch.Tensor, noise: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers of the masked patches, (B, M), and what is predicted for them, (B, M, P)."""
    order, decoded = model.decode(patches, noise)
    predicted = model.to_pixels(model.norm(decoded[:, model.num_kept :]))
    return order[:, model.num_kept :], predicted


@pytest.fixture(scope="module")
def model() -> MaskedAutoencoder:
    return model_of()


@pytest.fixture(scope="module")
def crops() -> torch.Tensor:
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.integers(0, 256, (5, len(CHANNELS), SIZE, SIZE), dtype=np.uint8))


@pytest.fixture(scope="module")
def noise() -> torch.Tensor:
    return torch.rand(5, PATCHES, generator=torch.Generator().manual_seed(1))


def test_the_mask_ratio_is_kept(crops: torch.Tensor, noise: torch.Tensor):
    patches = patchify(standardize(crops), PATCH)
    for ratio, removed in ((0.25, 4), (0.5, 8), (0.75, 12), (0.9, 14)):
        model = model_of(ratio)
        with torch.no_grad():
            masked, predicted = predictions(model, patches, noise)
        assert masked.shape == (5, removed)
        assert predicted.shape == (5, removed, len(CHANNELS) * PATCH**2)
        assert model.num_kept == PATCHES - removed


def test_the_patches_with_the_most_noise_are_removed(
    model: MaskedAutoencoder, crops: torch.Tensor, noise: torch.Tensor
):
    masked, _ = predictions(model, patchify(standardize(crops), PATCH), noise)
    for numbers, values in zip(masked.tolist(), noise.tolist(), strict=True):
        ranks = sorted(range(PATCHES), key=lambda n: values[n])
        assert set(numbers) == set(ranks[4:])


def test_the_loss_is_a_plain_mean_over_masked_pixels(
    model: MaskedAutoencoder, crops: torch.Tensor, noise: torch.Tensor
):
    """Against numpy with an explicit mask, 1 where removed, as in the public MAE code."""
    with torch.no_grad():
        loss = float(model(crops, LABELS, noise))
        numbers, predicted = predictions(model, patchify(standardize(crops), PATCH), noise)
    pixels = crops.numpy().astype(np.float64)
    pixels -= pixels.mean(axis=(2, 3), keepdims=True)
    pixels /= pixels.std(axis=(2, 3), keepdims=True)
    target = patchify(torch.from_numpy(pixels), PATCH).numpy()
    mask, guess = np.zeros((5, PATCHES)), np.zeros_like(target)
    for crop in range(5):
        mask[crop, numbers[crop]] = 1
        guess[crop, numbers[crop]] = predicted[crop].numpy()
    per_patch = ((guess - target) ** 2).mean(axis=-1)
    assert loss == pytest.approx((per_patch * mask).sum() / mask.sum(), rel=1e-5)


def test_predictions_do_not_see_what_is_masked(
    model: MaskedAutoencoder, crops: torch.Tensor, noise: torch.Tensor
):
    patches = patchify(standardize(crops), PATCH)
    with torch.no_grad():
        masked, predicted = predictions(model, patches, noise)
        at = masked.unsqueeze(-1).expand(-1, -1, patches.shape[-1])
        _, same = predictions(model, patches.scatter(1, at, 5.0), noise)
        order = noise.argsort(dim=1)
        seen = patches.clone()
        seen[torch.arange(5), order[:, 0]] = 5.0
        _, other = predictions(model, seen, noise)
    assert torch.equal(predicted, same)
    assert not torch.allclose(predicted, other), "predictions ignore the kept patches too"


def test_predictions_differ_by_place(
    model: MaskedAutoencoder, crops: torch.Tensor, noise: torch.Tensor
):
    """All masked patches have one token: only their positions tell them apart."""
    _, predicted = predictions(model, patchify(standardize(crops), PATCH), noise)
    apart = torch.cdist(predicted[0], predicted[0]) + 1e9 * torch.eye(12)
    assert apart.min() > 1e-3


def test_kept_and_masked_patches_alike_carry_their_place_into_the_decoder(crops: torch.Tensor):
    """With nothing but places in its tokens, the decoder cannot tell which patches were kept."""
    model = model_of()
    torch.nn.init.zeros_(model.to_decoder.weight)
    torch.nn.init.zeros_(model.mask_token)
    patches = patchify(standardize(crops), PATCH)
    first = torch.arange(PATCHES).expand(5, -1) / PATCHES
    with torch.no_grad():
        masked, predicted = predictions(model, patches, first)
        other_masked, other = predictions(model, patches, 1 - first)
    one, two = (x[0].tolist() for x in (masked, other_masked))
    both = sorted(set(one) & set(two))
    assert both == list(range(4, 12))
    torch.testing.assert_close(
        predicted[:, [one.index(n) for n in both]],
        other[:, [two.index(n) for n in both]],
        atol=1e-5,
        rtol=1e-5,
    )


def test_the_order_of_the_kept_patches_does_not_matter(
    model: MaskedAutoencoder, crops: torch.Tensor, noise: torch.Tensor
):
    """Noise that keeps the same patches in another order predicts the same."""
    patches = patchify(standardize(crops), PATCH)
    kept = noise.argsort(dim=1)[:, :4]
    swapped = noise.scatter(1, kept, noise.gather(1, kept).flip(1))
    with torch.no_grad():
        masked, predicted = predictions(model, patches, noise)
        masked_too, again = predictions(model, patches, swapped)
    assert torch.equal(masked, masked_too)
    torch.testing.assert_close(predicted, again, atol=1e-5, rtol=1e-5)


def test_the_loss_knows_no_labels(
    model: MaskedAutoencoder, crops: torch.Tensor, noise: torch.Tensor
):
    assert torch.equal(model(crops, LABELS, noise), model(crops, LABELS + 1, noise))


def test_every_parameter_learns(crops: torch.Tensor, noise: torch.Tensor):
    model = model_of()
    model(crops, LABELS, noise).backward()
    still = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert still == []


def test_the_panel_shows_original_masked_and_reconstructed(
    model: MaskedAutoencoder, crops: torch.Tensor, noise: torch.Tensor
):
    original, hidden, filled = panel(model, crops, noise)
    torch.testing.assert_close(original, standardize(crops))
    masked, predicted = predictions(model, patchify(standardize(crops), PATCH), noise)
    mask = torch.zeros(5, PATCHES).scatter(1, masked, 1.0)
    removed = unpatchify(
        mask.unsqueeze(-1).expand(-1, -1, len(CHANNELS) * PATCH**2), PATCH, len(CHANNELS)
    ).bool()
    assert removed.float().mean() == 0.75
    assert hidden[removed].abs().max() == 0
    for shown in (hidden, filled):
        assert torch.equal(shown[~removed], original[~removed])
    torch.testing.assert_close(take(patchify(filled, PATCH), masked), predicted.detach())


def image_loss(model: MaskedAutoencoder, crops: torch.Tensor, noise: torch.Tensor, weight: float):
    """The whole loss by NumPy, from the reconstructed image alone."""
    with torch.no_grad():
        predicted, removed = model.reconstruct(crops, noise)
    guess, hidden = predicted.double().numpy(), removed.numpy()
    target = standardize(crops).double().numpy()
    mse = np.square(guess - target)[hidden].mean()
    spectra = [np.abs(np.fft.fft2(image)) for image in (guess, target)]
    return (1 - weight) * mse + weight * np.abs(spectra[0] - spectra[1]).mean()


def test_the_fourier_loss_is_that_of_numpys_fft_on_images(crops: torch.Tensor, noise: torch.Tensor):
    objective = Objective(name="mae", mask_ratio=0.75, fourier_weight=0.3)
    model = build_model(
        dataclasses.replace(
            TINY, objective=objective, crops=dataclasses.replace(TINY.crops, size_px=SIZE)
        ),
        channels=CHANNELS,
        num_classes=1,
    )
    with torch.no_grad():
        loss = float(model(crops, LABELS, noise))
    assert loss == pytest.approx(image_loss(model, crops, noise, 0.3), rel=1e-5)


def test_normalized_targets_are_those_of_the_public_code(crops: torch.Tensor, noise: torch.Tensor):
    """He et al. 2022: each patch less its mean, over the root of its sample variance and 1e-6."""
    objective = Objective(name="mae", mask_ratio=0.75, normalized_targets=True)
    model = build_model(
        dataclasses.replace(
            TINY, objective=objective, crops=dataclasses.replace(TINY.crops, size_px=SIZE)
        ),
        channels=CHANNELS,
        num_classes=1,
    )
    patches = patchify(standardize(crops), PATCH)
    with torch.no_grad():
        loss = float(model(crops, LABELS, noise))
        masked, predicted = predictions(model, patches, noise)
        filled, removed = model.reconstruct(crops, noise)
    target = take(patches, masked).double().numpy()
    mean, var = target.mean(-1, keepdims=True), target.var(-1, keepdims=True, ddof=1)
    normal = (target - mean) / np.sqrt(var + 1e-6)
    assert loss == pytest.approx(np.square(predicted.double().numpy() - normal).mean(), rel=1e-5)
    # What a person is shown is back on the scale of the crop.
    shown = take(patchify(filled, PATCH), masked).double().numpy()
    np.testing.assert_allclose(shown, predicted * np.sqrt(var + 1e-6) + mean, atol=1e-5)
    assert removed.float().mean() == 0.75
