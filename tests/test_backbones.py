"""The table of backbones: its rows, and its look-up. Sizes against the papers: test_zoo.py."""

from __future__ import annotations

import pytest

from phenoscale.backbones import (
    BACKBONES,
    BACKBONES_OF,
    DENSENETS,
    NO_BACKBONE,
    UNETS,
    VISION_TRANSFORMERS,
    backbone,
    vision_transformer,
)
from phenoscale.flops import decoder_parameters, encoder_parameters


@pytest.mark.parametrize("name", [NO_BACKBONE, "B16", "b/16", ""])
def test_an_unknown_name_lists_those_there_are(name: str):
    with pytest.raises(ValueError) as error:
        backbone(name)
    assert repr(name) in str(error.value)
    assert all(known in str(error.value) for known in BACKBONES)


@pytest.mark.parametrize(
    ("name", "objective"),
    [("MU-net-M", "mae"), ("MU-net-M", "wsl"), ("DenseNet-161", "ca_mae"), ("B/16", "munet")],
)
def test_an_objective_takes_its_own_backbones_alone(name: str, objective: str):
    with pytest.raises(ValueError, match=f"no backbone '{name}' for {objective}") as error:
        backbone(name, objective)
    assert all(known in str(error.value) for known in BACKBONES_OF[objective])
    assert backbone(name) is BACKBONES[name]


@pytest.mark.parametrize("name", VISION_TRANSFORMERS)
def test_a_transformer_can_be_built(name: str):
    shape = vision_transformer(name)
    assert int(name.split("/")[1]) == shape.patch_px
    for part in (shape, shape.decoder, shape.channel_decoder):
        assert part.width % part.heads == 0
        assert part.width % 4 == 0, "sin-cos positions need four values per frequency"
    assert 0 <= shape.drop_path < 1


def test_a_densenet_counts_its_maps():
    """DenseNet-161 ends in 2,208 maps (Huang et al. 2017)."""
    shape = DENSENETS["DenseNet-161"]
    assert shape.embedding_width == 2208
    assert shape.smallest_px == 32
    small = DENSENETS["DenseNet-nano"]
    # 8 maps, two layers of 4: 16, halved to 8, two more: 16.
    assert small.embedding_width == 16
    assert small.smallest_px == 8


def test_a_unet_masks_what_one_place_of_its_last_scale_stands_for():
    assert UNETS["MU-net-nano"].patch_px == 8
    assert UNETS["MU-net-M"].patch_px == UNETS["MU-net-L"].patch_px == 16
    assert UNETS["MU-net-M"].embedding_width == 1120


@pytest.mark.parametrize("patch_px", [8, 16])
def test_sizes_grow_down_the_table(patch_px: int):
    names = [n for n in VISION_TRANSFORMERS if n.endswith(f"/{patch_px}")]
    sizes = [encoder_parameters(backbone(name), 6) for name in names]
    assert len(sizes) >= 5 and sizes == sorted(sizes)


def test_a_decoder_is_smaller_than_its_encoder():
    for name, shape in VISION_TRANSFORMERS.items():
        if name.split("/")[0] in ("tiny", "B", "L", "H", "G"):  # S has the decoder of L
            assert decoder_parameters(shape, 6) < encoder_parameters(shape, 6)
