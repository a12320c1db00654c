"""Site embeddings: tiles by hand, read-outs by definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from phenoscale import embed
from phenoscale.config import READOUTS
from phenoscale.embed import embed_sites, embed_tiles, tile, tiles_of
from phenoscale.models.build import build_encoder
from phenoscale.models.vit import patchify, standardize
from tests.tiny import CHANNELS, TINY


@pytest.fixture(scope="module")
def encoder():
    return build_encoder(TINY, channels=CHANNELS).eval()


def images_of(sites: int = 3, height: int = 40, width: int = 50) -> np.ndarray:
    rng = np.random.default_rng(4)
    return rng.integers(0, 256, (sites, len(CHANNELS), height, width), dtype=np.uint8)


def test_tiles_are_what_a_plain_loop_cuts():
    images = images_of()
    expected = [
        image[:, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16]
        for image in images
        for row in range(2)
        for column in range(3)
    ]
    np.testing.assert_array_equal(tile(torch.from_numpy(images), 16).numpy(), expected)


def test_a_site_without_a_whole_tile_is_an_error():
    with pytest.raises(ValueError, match="Sites of 15 x 50 px hold no tile of 16 px"):
        tile(torch.zeros(1, 1, 15, 50), 16)


def test_readouts_by_definition(encoder):
    images = images_of()
    read = embed_sites(encoder, images, 16, CHANNELS)
    assert set(read) == set(READOUTS) - {"per_channel"}
    for site, image in enumerate(images):
        tiles = tile(torch.from_numpy(image[None]), 16)
        with torch.no_grad():
            tokens = encoder(patchify(standardize(tiles), 8)).double().numpy()
        expected = {
            "class_token": tokens[:, 0].mean(axis=0),
            "patch_mean": tokens[:, 1:].mean(axis=(0, 1)),
            "patch_sd": tokens[:, 1:].std(axis=1).mean(axis=0),
        }
        for name, vector in expected.items():
            assert read[name].dtype == np.float32 and read[name].shape == (3, 32)
            np.testing.assert_allclose(read[name][site], vector, atol=1e-5, err_msg=name)


def test_a_site_is_embedded_alike_in_any_company(encoder):
    images = images_of(sites=4)
    together, alone = (
        embed_sites(encoder, images, 16, CHANNELS),
        embed_sites(encoder, images[2:3], 16, CHANNELS),
    )
    for name, vectors in alone.items():
        np.testing.assert_allclose(together[name][2], vectors[0], atol=1e-5)


def test_pixels_beyond_the_whole_tiles_do_not_matter(encoder):
    images = images_of()
    cropped = np.ascontiguousarray(images[:, :, :32, :48])
    one, two = (
        embed_sites(encoder, images, 16, CHANNELS),
        embed_sites(encoder, cropped, 16, CHANNELS),
    )
    assert all(np.array_equal(one[name], two[name]) for name in one)


def test_the_gain_of_a_stain_does_not_matter(encoder):
    """Self-standardization is part of inference; here each tile's pixels are doubled exactly."""
    images = images_of() // 2
    one, two = (
        embed_sites(encoder, images, 16, CHANNELS),
        embed_sites(encoder, images * 2, 16, CHANNELS),
    )
    for name in one:
        np.testing.assert_allclose(one[name], two[name], atol=1e-3)


def test_corners_are_those_of_the_tiles():
    """Pixels that hold their own place say where a tile was cut."""
    y, x = np.mgrid[:40, :50]
    tiles = tile(torch.from_numpy(np.stack([x, y])[None].astype(np.uint8)), 16)
    np.testing.assert_array_equal(tiles[:, :, 0, 0].numpy(), tiles_of(40, 50, 16))


def test_embeddings_of_tiles_average_to_those_of_their_site(encoder, monkeypatch):
    """However many tiles are encoded together: here 4 of the 18."""
    images, names = images_of(), ["patch_sd", "block_1"]
    expected = embed_sites(encoder, images, 16, CHANNELS, every_block=True)
    monkeypatch.setitem(embed.TILES_AT_ONCE, "cpu", 4)
    tiles = embed_tiles(encoder, torch.from_numpy(images), 16, CHANNELS, names)
    assert list(tiles) == names
    for name, x in tiles.items():
        assert x.shape == (3, 6, 32) and x.dtype == torch.float32
        np.testing.assert_allclose(x.mean(dim=1).numpy(), expected[name], atol=1e-5)
        assert x.std(dim=1).min() > 1e-3, "tiles of a site differ"


def test_bf16_is_close_and_not_the_same(encoder):
    images = torch.from_numpy(images_of())
    full, half = (
        embed_tiles(encoder, images, 16, CHANNELS, ["patch_mean"], precision=precision)[
            "patch_mean"
        ]
        for precision in ("fp32", "bf16")
    )
    assert half.dtype == torch.float32
    difference = (full - half).abs().max().item()
    assert 1e-4 < difference < 0.1
