"""The table of backbones against the papers' sizes, and its look-up."""

from __future__ import annotations

import pytest

from phenoscale.backbones import BACKBONES, NO_BACKBONE, backbone
from phenoscale.flops import decoder_parameters, encoder_parameters


@pytest.mark.parametrize("name", [NO_BACKBONE, "B16", "b/16", ""])
def test_an_unknown_name_lists_those_there_are(name: str):
    with pytest.raises(ValueError) as error:
        backbone(name)
    assert repr(name) in str(error.value)
    assert all(known in str(error.value) for known in BACKBONES)


@pytest.mark.parametrize("name", BACKBONES)
def test_every_row_can_be_built(name: str):
    shape = backbone(name)
    assert int(name.split("/")[1]) == shape.patch_px
    for width, heads in ((shape.width, shape.heads), (shape.decoder_width, shape.decoder_heads)):
        assert width % heads == 0
        assert width % 4 == 0, "sin-cos positions need four values per frequency"


@pytest.mark.parametrize(("name", "millions"), [("S/16", 22), ("B/16", 86), ("L/16", 304)])
def test_encoders_have_the_size_that_the_papers_give(name: str, millions: float):
    """ViT-S, -B and -L without the head of 1000 classes (Dosovitskiy et al. 2021, table 1)."""
    assert encoder_parameters(backbone(name), 3) / 1e6 == pytest.approx(millions, rel=0.02)


def test_the_giant_has_1_9_billion_parameters():
    """Kenyon-Dean et al. 2025 (arXiv 2411.02572)."""
    shape = backbone("G/8")
    assert round((encoder_parameters(shape, 6) + decoder_parameters(shape, 6)) / 1e9, 1) == 1.9


def test_the_papers_decoder_has_about_25_million_parameters():
    assert decoder_parameters(backbone("B/16"), 6) / 1e6 == pytest.approx(26, rel=0.06)


def test_sizes_grow_down_the_table():
    sizes = [encoder_parameters(backbone(n), 6) for n in BACKBONES if n.endswith("/16")]
    assert sizes == sorted(sizes)
