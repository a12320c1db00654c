"""A contact sheet: random sites, a column per channel, as training will see them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from phenoscale.screens.errors import ImageError
from phenoscale.screens.images.readers import read_site
from phenoscale.screens.index import ScreenIndex

_EDGE_PX, _GAP_PX, _TEXT_PX = 224, 6, 16
_TILES_ACROSS = 6


def write_sheet(index: ScreenIndex, out: Path, *, sites: int = 8, seed: int = 0) -> list[int]:
    """Draws random sites as a PNG: a column per channel, sites below, or beside, each other.

    Grey values are those that crops have (8 bits by the index's rule), not stretched per image, so
    that a plate which is dark or washed out looks so. Sites come from as many plates as there are.

    Args:
        index: the screen.
        out: PNG to write.
        sites: number of rows.
        seed: chooses the sites.

    Returns:
        The rows of the index that were drawn. A site that cannot be read shows its error.

    Raises:
        ValueError: if the sites have no channel in common.
    """
    if not index.channels:
        raise ValueError(
            f"The screen {index.location} has no channel that all its sites have, so there is "
            f"nothing to show side by side. It has the channels {index.channel_sets}."
        )
    rows = _spread(index, sites, seed)
    channels = len(index.channels)
    across = max(1, _TILES_ACROSS // channels)  # sites beside each other where channels are few
    width = across * channels * (_EDGE_PX + _GAP_PX) - _GAP_PX
    height = _TEXT_PX + -(-len(rows) // across) * (_EDGE_PX + _TEXT_PX + _GAP_PX)
    sheet = Image.new("L", (width, height), 255)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=_TEXT_PX - 4)
    for column in range(across * channels):
        name = index.channels[column % channels]
        draw.text((column * (_EDGE_PX + _GAP_PX), 0), name, fill=0, font=font)
    for number, (row, site) in enumerate(zip(rows, index.take(rows).to_pylist(), strict=True)):
        left = number % across * channels * (_EDGE_PX + _GAP_PX)
        top = _TEXT_PX + number // across * (_EDGE_PX + _TEXT_PX + _GAP_PX)
        cell = Image.new("L", (channels * (_EDGE_PX + _GAP_PX) - _GAP_PX, _EDGE_PX + _TEXT_PX), 255)
        _draw_site(cell, font, index, row, site)
        sheet.paste(cell, (left, top))
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(out, format="PNG")
    return rows


def _draw_site(
    cell: Image.Image, font: Any, index: ScreenIndex, row: int, site: dict[str, Any]
) -> None:
    """Caption and channels of a site, or what is wrong with it."""
    draw = ImageDraw.Draw(cell)
    caption = (
        f"{site['perturbation']}: {site['well']} site {site['site']}, {site['plate']}, "
        f"{site['experimental_batch']}"
    )
    draw.text((0, 0), caption, fill=0, font=font)
    names = index.channel_sets[site["channel_set"]]
    try:
        scale = index.scale(row, site["channel_set"])
        pixels = read_site(index.root, site["paths"], names, index.channels, scale)
    except ImageError as error:
        draw.text((0, 2 * _TEXT_PX), str(error), fill=0, font=font)
        return
    for column, plane in enumerate(pixels):
        tile = Image.fromarray(plane)
        tile.thumbnail((_EDGE_PX, _EDGE_PX), Image.Resampling.BOX)
        cell.paste(tile, (column * (_EDGE_PX + _GAP_PX), _TEXT_PX))


def _spread(index: ScreenIndex, sites: int, seed: int) -> list[int]:
    """Rows of sites on different plates, as far as there are plates enough; ascending."""
    rng = np.random.default_rng(seed)
    plates = rng.permutation(len(index.plates))
    count = min(sites, index.num_sites)
    found: set[int] = set()
    turn = 0
    while len(found) < count:
        facts = index.plates.iloc[int(plates[turn % len(plates)])]
        found.add(int(facts["first_row"] + rng.integers(facts["rows"])))
        turn += 1
    return sorted(found)
