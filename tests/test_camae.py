"""The channel-agnostic autoencoder: order, number and names of channels, masks, decoders."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from benchmarks.step_camae_loop import ChannelLoopMAE
from phenoscale.backbones import vision_transformer
from phenoscale.models.blocks import CrossAttention
from phenoscale.models.build import build_encoder, build_model
from phenoscale.models.camae import ChannelAgnosticMAE
from phenoscale.models.panel import panel
from phenoscale.models.vit import Encoder, patchify, standardize, take
from phenoscale.train import random_draws
from tests.tiny import of

NAMES = ("DNA", "ER", "RNA")
ELEVEN = tuple("kjihgfedcba")
LABELS = torch.zeros(4, dtype=torch.int64)


def crops_of(channels: int, count: int = 4, size_px: int = 16) -> torch.Tensor:
    rng = np.random.default_rng(channels)
    pixels = rng.integers(0, 256, (count, channels, size_px, size_px), dtype=np.uint8)
    return torch.from_numpy(pixels)


def model_of(**options) -> ChannelAgnosticMAE:
    model = build_model(of("ca_mae", **options), channels=NAMES, num_classes=1)
    assert isinstance(model, ChannelAgnosticMAE)
    return model


@pytest.fixture(scope="module")
def encoder():
    return build_encoder(of("ca_mae"), channels=NAMES).eval()


@pytest.mark.parametrize("count", range(1, 12))
def test_any_number_of_channels_in_any_order_gives_the_same_embedding(encoder, count: int):
    names, crops = ELEVEN[:count], crops_of(count)
    order = np.random.default_rng(1).permutation(count).tolist()
    with torch.no_grad():
        one = encoder.read(crops, names, every_block=True)
        two = encoder.read(crops[:, order], [names[i] for i in order], every_block=True)
    assert one["patch_mean"].shape == (4, 32) and one["per_channel"].shape == (4, 32 * count)
    assert one.keys() == two.keys() >= {"class_token", "patch_sd", "block_1", "block_2"}
    for name, vectors in one.items():
        assert torch.isfinite(vectors).all()
        torch.testing.assert_close(two[name], vectors, atol=1e-5, rtol=1e-5)


def test_channels_embed_in_the_order_of_their_names(encoder):
    """Each is the mean of that channel's own tokens, whatever its place in the crop."""
    crops = crops_of(3)
    with torch.no_grad():
        tokens = encoder(encoder.patches(crops))
        read = encoder.read(crops, ("c", "a", "b"))
    by_place = [tokens[:, 1 + 4 * place : 5 + 4 * place].mean(dim=1) for place in range(3)]
    expected = torch.cat([by_place[1], by_place[2], by_place[0]], dim=1)
    torch.testing.assert_close(read["per_channel"], expected, atol=1e-6, rtol=1e-5)


def test_wrong_names_are_refused(encoder):
    for names in (("a", "b"), ("a", "b", "a"), ()):
        with pytest.raises(ValueError, match="for crops of 3 channels; give one name for each"):
            encoder.read(crops_of(3), names)


def test_each_channel_matters_and_so_does_its_place_in_the_crop(encoder):
    crops = crops_of(3)
    other = crops.clone()
    other[:, 2] = other[:, 2].flip(-1)
    with torch.no_grad():
        one, two = (encoder.read(x, NAMES)["patch_mean"] for x in (crops, other))
    assert (one - two).abs().max() > 1e-3


def test_one_channel_is_a_plain_encoder_of_one_channel():
    """With one channel the two architectures are one: the same weights give the same tokens."""
    agnostic = build_encoder(of("ca_mae"), channels=("DNA",)).eval()
    plain = build_encoder(of("mae"), channels=("DNA",)).eval()
    assert isinstance(plain, Encoder)
    plain.load_state_dict(agnostic.state_dict())
    crops = crops_of(1)
    with torch.no_grad():
        one, two = (e.read(crops, ("DNA",))["class_token"] for e in (agnostic, plain))
    torch.testing.assert_close(one, two)


def test_patches_are_channel_by_channel(encoder):
    crops = crops_of(3)
    whole = standardize(crops)
    expected = torch.cat([patchify(whole[:, c : c + 1], 8) for c in range(3)], dim=1)
    torch.testing.assert_close(encoder.patches(crops), expected)


def test_the_share_is_that_of_all_tokens_not_of_each_channel():
    model = model_of(mask_ratio=0.75)
    draws = torch.rand(4, 12, generator=torch.Generator().manual_seed(0))
    _, removed = model.reconstruct(crops_of(3), draws)
    tokens = removed[..., ::8, ::8].flatten(1)  # a pixel of each patch
    assert (tokens.sum(dim=1) == 9).all()
    kept = (~tokens).unflatten(1, (3, 4)).sum(dim=2)
    assert len(kept.unique()) > 1, "channels keep different numbers of patches"
    ranks = draws.argsort(dim=1).argsort(dim=1)
    assert torch.equal(tokens, ranks >= 3)


@pytest.mark.parametrize("weight", [0.0, 0.3])
@pytest.mark.parametrize("normalized", [False, True])
def test_the_loss_is_that_of_numpy(weight: float, normalized: bool):
    model = model_of(fourier_weight=weight, normalized_targets=normalized).eval()
    crops = crops_of(3)
    draws = torch.rand(4, 12, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        loss = float(model(crops, LABELS, draws))
        everyone = list(range(3))
        patches = model.encoder.patches(crops)
        order, kept, decoded = model.decode(patches, draws, draws, everyone)
        predicted = model.to_pixels(decoded).double().numpy()
    target = patches.double().numpy()
    if normalized:
        mean, var = target.mean(-1, keepdims=True), target.var(-1, keepdims=True, ddof=1)
        target = (target - mean) / np.sqrt(var + 1e-6)
    hidden = np.zeros(target.shape[:2], bool)
    np.put_along_axis(hidden, order[:, kept:].numpy(), True, axis=1)
    mse = np.square(predicted - target)[hidden].mean()

    def images(x: np.ndarray) -> np.ndarray:
        return x.reshape(4, 3, 2, 2, 8, 8).transpose(0, 1, 2, 4, 3, 5).reshape(4, 3, 16, 16)

    spectra = [np.abs(np.fft.fft2(images(x))) for x in (predicted, target)]
    fourier = np.abs(spectra[0] - spectra[1]).mean()
    assert loss == pytest.approx((1 - weight) * mse + weight * fourier, rel=1e-4)


def test_attention_of_all_channels_at_once_is_that_of_each_alone():
    """The papers' code attends from one channel at a time to all; the sums are the same."""
    torch.manual_seed(0)
    attention = CrossAttention(32, 8)
    x, context = torch.randn(2, 12, 32), torch.randn(2, 12, 32)
    whole = attention(x, context)
    parts = [attention(part, context) for part in x.chunk(3, dim=1)]
    torch.testing.assert_close(whole, torch.cat(parts, dim=1))
    query, key, value = attention.query(x), *attention.key_value(context).chunk(2, dim=-1)
    heads = [t.reshape(2, 12, 8, 4).transpose(1, 2) for t in (query, key, value)]
    weights = F.softmax(heads[0] @ heads[1].transpose(-1, -2) / 4**0.5, dim=-1)
    expected = attention.out((weights @ heads[2]).transpose(1, 2).reshape(2, 12, 32))
    torch.testing.assert_close(whole, expected)


@pytest.mark.parametrize("options", [{}, {"fourier_weight": 0.3}, {"channel_subsets": True}])
def test_one_pass_is_that_of_a_loop_over_channels(options: dict):
    """Loss and gradients, against the way of the papers' public code."""
    model = model_of(**options).train()
    loop = ChannelLoopMAE(
        vision_transformer("nano/8"), model.objective, channels=NAMES, size_px=16
    ).train()
    loop.load_state_dict(model.state_dict())
    draws = torch.rand(4, 16, generator=torch.Generator().manual_seed(0))
    losses = [m(crops_of(3), LABELS, draws) for m in (model, loop)]
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-5)
    for loss in losses:
        loss.backward()
    for one, two in zip(model.parameters(), loop.parameters(), strict=True):
        assert (one.grad is None) == (two.grad is None)
        if one.grad is not None and two.grad is not None:
            torch.testing.assert_close(one.grad, two.grad, atol=1e-6, rtol=1e-4)


def test_each_channel_has_a_decoder_of_its_own():
    model = model_of().eval()
    crops, draws = crops_of(3), torch.rand(4, 12)
    with torch.no_grad():
        before, _ = model.reconstruct(crops, draws)
        for parameter in model.decoders[1].parameters():
            parameter.add_(0.1)
        after, _ = model.reconstruct(crops, draws)
    same = [torch.equal(before[:, c], after[:, c]) for c in range(3)]
    assert same == [True, False, True]


def test_what_is_masked_is_not_seen():
    model = model_of().eval()
    crops, draws = crops_of(3), torch.rand(4, 12)
    patches = model.encoder.patches(crops)
    order = draws.argsort(dim=1)
    at = order[:, 6:, None].expand(-1, -1, patches.shape[-1])
    hidden = patches.scatter(1, at, 5.0)
    with torch.no_grad():
        one, two = (model.decode(p, draws, draws, [0, 1, 2])[2] for p in (patches, hidden))
    assert torch.equal(one, two)
    assert not torch.equal(take(patches, order), take(hidden, order))


def test_a_step_on_a_subset_is_a_step_on_those_channels_alone():
    trial = of("ca_mae", channel_subsets=True)
    model = build_model(trial, channels=NAMES, num_classes=1).train()
    whole = build_model(of("ca_mae"), channels=NAMES, num_classes=1)
    assert isinstance(whole, ChannelAgnosticMAE) and isinstance(model, ChannelAgnosticMAE)
    sizes = set()
    for step in range(40):
        draws = random_draws(trial, step, model, crops=4)
        chosen = model._chosen(draws)
        sizes.add(len(chosen))
        if step < 4:
            other = crops_of(3)
            left_out = [c for c in range(3) if c not in chosen]
            other[:, left_out] = 7
            with torch.no_grad():
                assert torch.equal(model(crops_of(3), LABELS, draws), model(other, LABELS, draws))
    assert sizes == {1, 2, 3}
    model.eval()
    with torch.no_grad():
        assert torch.equal(model(crops_of(3), LABELS, draws), whole(crops_of(3), LABELS, draws))


def test_subsets_are_those_of_the_step_whatever_the_worker():
    trial = of("ca_mae", channel_subsets=True)
    model = build_model(trial, channels=NAMES, num_classes=1)
    assert isinstance(model, ChannelAgnosticMAE)
    draws = random_draws(trial, 3, model)
    assert model._chosen(draws[:2]) == model._chosen(draws[6:])


def test_every_parameter_learns():
    model = model_of()
    model(crops_of(3), LABELS, torch.rand(4, 12)).backward()
    still = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert still == []


def test_the_panel_shows_each_channel_where_it_was_masked():
    model = model_of().eval()
    crops, draws = crops_of(3), torch.rand(4, 12)
    original, hidden, filled = panel(model, crops, draws)
    with torch.no_grad():  # as the panel: training takes another kernel for attention
        predicted, removed = model.reconstruct(crops, draws)
    torch.testing.assert_close(original, standardize(crops))
    assert hidden[removed].abs().max() == 0 and torch.equal(hidden[~removed], original[~removed])
    assert torch.equal(filled, torch.where(removed, predicted, original))
    assert removed.float().mean() == 0.5


def test_a_larger_screen_reads_more_channels_than_it_trained_on():
    """Names of the training screen bind the decoders alone."""
    trial = dataclasses.replace(of("ca_mae"), seed=3)
    encoder = build_model(trial, channels=NAMES, num_classes=1).encoder.eval()
    with torch.no_grad():
        read = encoder.read(crops_of(8), tuple("ABCDEFGH"))
    assert read["per_channel"].shape == (4, 8 * 32)
