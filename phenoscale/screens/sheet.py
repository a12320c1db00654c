"""A contact sheet: random sites, a column per channel, as training will see them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from phenoscale.screens.errors import ImageError
from phenoscale.screens.index import ScreenIndex
from phenoscale.screens.readers import read_site

_EDGE_PX, _GAP_PX, _TEXT_PX = 224, 6, 16


def write_sheet(index: ScreenIndex, out: Path, *, sites: int = 8, seed: int = 0) -> list[int]:
    """Draws random sites as a PNG: a row per site, a column per channel, one scale for all.

    Grey values are those that crops have (8 bits by the index's rule), not stretched per image, so
    that a plate which is dark or washed out looks so. Sites come from as many plates as there are.

    Args:
        index: the screen.
        out: PNG to write.
        sites: number of rows.
        seed: chooses the sites.

    Returns:
        The rows of the index that were drawn. A site that cannot be read shows its error.
    """
    rows = _spread(index, sites, seed)
    table = index.take(rows)
    height = _TEXT_PX + len(rows) * (_EDGE_PX + _TEXT_PX + _GAP_PX)
    width = len(index.channels) * (_EDGE_PX + _GAP_PX) - _GAP_PX
    sheet = Image.new("L", (width, height), 255)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=_TEXT_PX - 4)
    for column, name in enumerate(index.channels):
        draw.text((column * (_EDGE_PX + _GAP_PX), 0), name, fill=0, font=font)
    for line, (number, site) in enumerate(zip(rows, table.to_pylist(), strict=True)):
        top = _TEXT_PX + line * (_EDGE_PX + _TEXT_PX + _GAP_PX)
        caption = (
            f"{site['experimental_batch']} / {site['plate']} / {site['well']} / site "
            f"{site['site']}: {site['perturbation']}"
        )
        draw.text((0, top), caption, fill=0, font=font)
        channels = index.channel_sets[site["channel_set"]]
        try:
            pixels = read_site(
                index.root,
                site["paths"],
                channels,
                index.channels,
                index.scale(number, site["channel_set"]),
            )
        except ImageError as error:
            draw.text((0, top + 2 * _TEXT_PX), str(error), fill=0, font=font)
            continue
        for column, plane in enumerate(pixels):
            tile = Image.fromarray(plane)
            tile.thumbnail((_EDGE_PX, _EDGE_PX), Image.Resampling.BOX)
            sheet.paste(tile, (column * (_EDGE_PX + _GAP_PX), top + _TEXT_PX))
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(out, format="PNG")
    return rows


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
