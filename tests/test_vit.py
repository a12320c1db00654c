"""The encoder: its first layer, its patches, and its blocks against timm's own transformer."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models.vision_transformer import ParallelScalingBlock, VisionTransformer

from phenoscale.backbones import vision_transformer
from phenoscale.models.blocks import positions
from phenoscale.models.build import build_encoder, build_model
from phenoscale.models.vit import (
    Encoder,
    patchify,
    put,
    standardize,
    take,
    unpatchify,
)
from tests.tiny import CHANNELS, TINY, TINY_WSL, tiny_batch


def crops_of(count: int = 3, channels: int = 2, size_px: int = 16) -> torch.Tensor:
    rng = np.random.default_rng(count + 10 * channels + 100 * size_px)
    pixels = rng.integers(0, 256, (count, channels, size_px, size_px), dtype=np.uint8)
    return torch.from_numpy(pixels)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return build_encoder(TINY, channels=CHANNELS).eval()


@given(
    count=st.integers(1, 3),
    channels=st.integers(1, 6),
    side=st.integers(1, 4),
    patch=st.integers(1, 8),
)
@settings(max_examples=40)
def test_patches_go_there_and_back(count: int, channels: int, side: int, patch: int):
    crops = crops_of(count, channels, side * patch)
    patches = patchify(crops, patch)
    assert patches.shape == (count, side**2, channels * patch**2)
    assert torch.equal(unpatchify(patches, patch, channels), crops)


def test_patches_are_what_a_plain_loop_cuts():
    crops = crops_of(2, 3, 24).numpy()
    expected = [
        [
            crop[:, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8].reshape(-1)
            for row in range(3)
            for column in range(3)
        ]
        for crop in crops
    ]
    np.testing.assert_array_equal(patchify(torch.from_numpy(crops), 8).numpy(), expected)


def test_patches_of_a_rectangle_go_row_by_row():
    crop = torch.arange(2 * 6).reshape(1, 1, 2, 6)
    assert patchify(crop, 2).tolist() == [[[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]]]


def test_standardize_is_that_of_numpy():
    crops = crops_of()
    pixels = crops.numpy().astype(np.float64)
    mean, sd = (f(pixels, axis=(2, 3), keepdims=True) for f in (np.mean, np.std))
    got = standardize(crops)
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got.numpy(), (pixels - mean) / sd, atol=1e-5)


def test_standardize_looks_at_each_channel_of_each_crop_alone():
    """Gain and offset of a stain do not matter, and neither do the neighbours."""
    crops = crops_of().float()
    gain = torch.rand(3, 2, 1, 1) + 0.5
    torch.testing.assert_close(
        standardize(crops * gain + 7), standardize(crops), atol=1e-4, rtol=1e-4
    )
    torch.testing.assert_close(standardize(crops)[1:2], standardize(crops[1:2]))


def test_a_constant_channel_becomes_zero():
    crops = crops_of()
    crops[0, 1] = 200
    assert torch.equal(standardize(crops)[0, 1], torch.zeros(16, 16))


def test_positions_are_the_sines_and_cosines_of_row_and_column():
    """Vaswani et al. 2017, section 3.5, for half of the width each; MAE's fixed positions."""
    side, width = 3, 16
    rates = 10_000.0 ** -(np.arange(width // 4) / (width // 4))
    got = positions(side, width).numpy()
    assert got.shape == (side**2, width)
    for number, value in enumerate(got):
        row, column = divmod(number, side)
        waves = [f(x * rates) for f in (np.sin, np.cos) for x in (row, column)]
        np.testing.assert_allclose(np.sort(value), np.sort(np.concatenate(waves)), atol=1e-6)
    assert len(np.unique(got.round(4), axis=0)) == side**2


def test_take_gathers_rows():
    tokens = torch.arange(2 * 4 * 3).reshape(2, 4, 3)
    numbers = torch.tensor([[3, 0], [1, 1]])
    expected = torch.stack([tokens[0, [3, 0]], tokens[1, [1, 1]]])
    assert torch.equal(take(tokens, numbers), expected)


def test_put_undoes_take():
    tokens = torch.randn(2, 5, 3)
    numbers = torch.tensor([[3, 0], [1, 4]])
    got = put(tokens, numbers, -take(tokens, numbers))
    expected = tokens.clone()
    for crop, rows in enumerate(numbers):
        expected[crop, rows] *= -1
    assert torch.equal(got, expected)


@pytest.mark.parametrize("name", ["nano/8", "S/16"])
def test_the_encoder_is_timms_vision_transformer(name: str):
    """The same weights in timm's model, whose patches come by convolution, give the same tokens."""
    shape, channels, size_px = vision_transformer(name), 3, 32
    torch.manual_seed(0)
    ours = Encoder(shape, channels=("a", "b", "c"), size_px=size_px).eval()
    timms = VisionTransformer(
        img_size=size_px,
        patch_size=shape.patch_px,
        in_chans=channels,
        num_classes=0,
        embed_dim=shape.width,
        depth=shape.depth,
        num_heads=shape.heads,
        mlp_ratio=shape.mlp_width / shape.width,
        qkv_bias=False,
        qk_norm=True,
        init_values=shape.layer_scale,
        no_embed_class=True,
        norm_layer=functools.partial(torch.nn.LayerNorm, eps=1e-6),
        block_fn=ParallelScalingBlock,
    ).eval()
    state = ours.state_dict()
    weight = state.pop("projection.weight")
    state["patch_embed.proj.weight"] = weight.reshape(-1, channels, *[shape.patch_px] * 2)
    state["patch_embed.proj.bias"] = state.pop("projection.bias")
    state["cls_token"] = state.pop("class_token").reshape(1, 1, -1)
    state["pos_embed"] = ours.positions.unsqueeze(0)
    timms.load_state_dict(state)
    crops = standardize(crops_of(2, channels, size_px))
    with torch.no_grad():
        tokens = ours(patchify(crops, shape.patch_px))
        torch.testing.assert_close(tokens, timms.forward_features(crops), atol=1e-5, rtol=1e-5)


def test_keeping_every_patch_in_any_order_changes_only_the_order(encoder: Encoder):
    patches = patchify(standardize(crops_of()), 8)
    order = torch.stack([torch.randperm(4) for _ in range(3)])
    with torch.no_grad():
        whole, shuffled = encoder(patches), encoder(patches, order)
    torch.testing.assert_close(shuffled[:, 0], whole[:, 0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(shuffled[:, 1:], take(whole[:, 1:], order), atol=1e-5, rtol=1e-5)


def test_what_is_not_kept_is_not_seen(encoder: Encoder):
    patches = patchify(standardize(crops_of()), 8)
    kept = torch.tensor([[0, 2], [1, 3], [2, 1]])
    other = patches.clone()
    for crop, numbers in enumerate(kept):
        other[crop, [n for n in range(4) if n not in numbers]] = 9.0
    with torch.no_grad():
        tokens = encoder(patches, kept)
        assert tokens.shape == (3, 3, 32)
        assert torch.equal(tokens, encoder(other, kept))
        assert not torch.allclose(encoder(patches), encoder(other))


def test_places_matter(encoder: Encoder):
    """The same patch elsewhere is another token: positions reach the blocks."""
    patch = torch.randn(1, 1, 2 * 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        tokens = encoder(patch.expand(1, 4, -1))[0, 1:]
    assert torch.cdist(tokens, tokens).add(torch.eye(4)).min() > 0.1


def test_the_seed_alone_decides_the_weights():
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    one = build_model(TINY, channels=CHANNELS, num_classes=3).state_dict()
    assert torch.equal(torch.random.get_rng_state(), state), "building moved the global generator"
    torch.manual_seed(6)
    two = build_model(TINY, channels=CHANNELS, num_classes=3).state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("trial", [TINY, TINY_WSL], ids=lambda t: t.objective.name)
def test_the_untrained_baseline_is_the_encoder_that_training_starts_from(trial):
    """The two differ by training alone, so that training is what a comparison measures."""
    model = build_model(trial, channels=CHANNELS, num_classes=3)
    start = model.get_submodule("encoder").state_dict()
    untrained = build_encoder(trial, channels=CHANNELS).state_dict()
    assert start.keys() == untrained.keys()
    assert all(torch.equal(start[name], untrained[name]) for name in start)


def test_the_model_takes_what_the_stream_gives(encoder: Encoder):
    crops = torch.from_numpy(tiny_batch(TINY, 0)["crops"])
    assert crops.dtype == torch.uint8
    tokens = encoder(patchify(standardize(crops), 8))
    assert tokens.shape == (8, 1 + 4, 32) and tokens.dtype == torch.float32


def dropping(rate: float, depth: int = 4) -> Encoder:
    """An encoder of that many blocks whose last one a share of the crops skips."""
    shape = dataclasses.replace(vision_transformer("nano/8"), drop_path=rate, depth=depth)
    torch.manual_seed(0)
    return Encoder(shape, channels=CHANNELS, size_px=16)


def test_a_crop_skips_the_blocks_that_its_draws_say():
    """Rates rise in equal steps (0, .2, .4, .6); what is not skipped counts for more."""
    encoder = dropping(0.6).train()
    patches = encoder.patches(crops_of())
    draws = torch.tensor([[0.0, 0.19, 0.39, 0.59], [0.9, 0.9, 0.9, 0.9], [0.0, 0.21, 0.39, 0.61]])
    with torch.no_grad():
        tokens = encoder(patches, draws=draws)
        for crop, used in enumerate(([0], [0, 1, 2, 3], [0, 1, 3])):
            x = encoder._begin(patches[crop : crop + 1])
            for number in used:
                x = x + (encoder.blocks[number](x) - x) / (1 - 0.2 * number)
            torch.testing.assert_close(
                tokens[crop : crop + 1], encoder.norm(x), atol=1e-5, rtol=1e-4
            )


def test_nothing_is_skipped_outside_training_or_without_drop_path():
    patches = patchify(standardize(crops_of()), 8)
    dropped, plain = dropping(0.6), dropping(0.0)
    plain.load_state_dict(dropped.state_dict())
    assert (dropped.draws, plain.draws) == (4, 0)
    with torch.no_grad():
        assert torch.equal(dropped.eval()(patches), plain.train()(patches))


def test_papers_sizes_have_the_papers_drop_path():
    """Kraus et al. 2023, public code: 0.1 for S and B, 0.3 for L, in equal steps from 0."""
    with torch.device("meta"):
        for name, last in (("S/16", 0.1), ("B/8", 0.1), ("L/16", 0.3)):
            shape = vision_transformer(name)
            encoder = Encoder(shape, channels=CHANNELS, size_px=16)
            assert encoder.draws == shape.depth and shape.drop_path == last


def test_blocks_are_read_as_encoders_cut_off_there():
    encoder = dropping(0.0).eval()
    crops = crops_of()
    with torch.no_grad():
        read = encoder.read(crops, CHANNELS, every_block=True)
        for count in range(1, 5):
            cut = dropping(0.0, depth=count).eval()
            cut.load_state_dict(encoder.state_dict(), strict=False)
            expected = cut(cut.patches(crops))[:, 1:].mean(dim=1)
            torch.testing.assert_close(read[f"block_{count}"], expected, atol=1e-6, rtol=1e-5)
    assert torch.equal(read["block_4"], read["patch_mean"])


def test_channels_go_by_name(encoder: Encoder):
    crops = crops_of()
    with torch.no_grad():
        read = encoder.read(crops, CHANNELS)
        turned = encoder.read(crops.flip(1), CHANNELS[::-1])
    assert all(torch.equal(read[name], turned[name]) for name in read)
    with pytest.raises(ValueError, match="takes exactly DNA, Actin, in any order"):
        encoder.read(crops, ("DNA", "Tubulin"))
    with pytest.raises(ValueError, match="2 channel names, DNA, DNA, for crops of 2"):
        encoder.read(crops, ("DNA", "DNA"))
