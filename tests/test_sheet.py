"""The contact sheet: its pixels are those of the sites, as crops have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from phenoscale.screens.build import build_index
from phenoscale.screens.images.readers import read_site
from phenoscale.screens.index import ScreenIndex
from phenoscale.screens.sheet import write_sheet
from tests.screen_on_disk import as_table, pixels, screen_rows, write_images

EDGE, GAP, TEXT = 224, 6, 16


def sheet_of(index: ScreenIndex, out: Path, **options: Any) -> tuple[list[int], np.ndarray]:
    """The rows that were drawn, and the sheet, uint8 (H, W)."""
    rows = write_sheet(index, out, **options)
    with Image.open(out) as image:
        assert image.format == "PNG" and image.mode == "L"
        return rows, np.asarray(image)


def place(number: int, channel: int) -> tuple[int, int]:
    """Top and left of a tile: two sites of three channels beside each other, under a caption."""
    top = TEXT + number // 2 * (TEXT + EDGE + GAP) + TEXT
    return top, (number % 2 * 3 + channel) * (EDGE + GAP)


def read(index: ScreenIndex, row: int) -> np.ndarray:
    (site,) = index.take([row]).to_pylist()
    channels = index.channel_sets[site["channel_set"]]
    scale = index.scale(row, site["channel_set"])
    return read_site(index.root, site["paths"], channels, index.channels, scale)


def test_tiles_are_the_sites_by_the_scale_of_the_index(tmp_path: Path):
    rows = screen_rows(1, 4, 4, 1)
    write_images(tmp_path, rows)
    for seed, row in enumerate(rows[4:12]):  # two plates of 16 bits, one of them dark
        image = pixels(seed).astype(np.uint16) * (200 if seed < 4 else 3) + 100
        tifffile.imwrite(tmp_path / row["paths"][0], image, photometric="minisblack")
    index = build_index(as_table(rows), tmp_path, tmp_path / "i.parquet")
    drawn, sheet = sheet_of(index, tmp_path / "new" / "sheet.png", sites=6)
    assert drawn == sorted(set(drawn)) and len(drawn) == 6
    assert sheet.shape == (TEXT + 3 * (TEXT + EDGE + GAP), 6 * EDGE + 5 * GAP)
    for number, row in enumerate(drawn):
        for channel, plane in enumerate(read(index, row)):
            top, left = place(number, channel)
            np.testing.assert_array_equal(sheet[top : top + 12, left : left + 10], plane)


def test_large_sites_are_averaged_down(tmp_path: Path):
    rows = screen_rows(1, 1, 4, 1)
    for seed, row in enumerate(rows):
        path = tmp_path / row["paths"][0]
        path.parent.mkdir(exist_ok=True)
        image = pixels(seed, height=2 * EDGE, width=2 * EDGE)
        tifffile.imwrite(path, image, photometric="minisblack")
    index = build_index(as_table(rows), tmp_path, tmp_path / "i.parquet")
    drawn, sheet = sheet_of(index, tmp_path / "sheet.png", sites=2)
    for number, row in enumerate(drawn):
        for channel, plane in enumerate(read(index, row)):
            top, left = place(number, channel)
            mean = plane.reshape(EDGE, 2, EDGE, 2).mean(axis=(1, 3))
            tile = sheet[top : top + EDGE, left : left + EDGE].astype(float)
            assert np.abs(tile - mean).max() <= 1


def test_sites_come_from_as_many_plates_as_there_are(tmp_path: Path):
    rows = screen_rows(2, 3, 4, 2)
    write_images(tmp_path, rows)
    index = build_index(as_table(rows), tmp_path, tmp_path / "i.parquet")
    plates = [(row["experimental_batch"], row["plate"]) for row in rows]
    chosen = []
    for seed in range(4):
        drawn = write_sheet(index, tmp_path / "s.png", sites=6, seed=seed)
        assert len({plates[row] for row in drawn}) == 6
        chosen.append(drawn)
        assert write_sheet(index, tmp_path / "s.png", sites=6, seed=seed) == drawn
    assert len({tuple(drawn) for drawn in chosen}) > 1
    every = write_sheet(index, tmp_path / "s.png", sites=1000)
    assert every == list(range(len(rows)))


def test_long_and_foreign_names_and_unreadable_sites_are_shown_as_text(tmp_path: Path):
    rows = [
        row | {"plate": "Platte-µ-板-" * 30, "perturbation": "siRNA\n" * 50}
        if not row["negative_control"]
        else row
        for row in screen_rows(1, 1, 4, 1)
    ]
    write_images(tmp_path, rows)
    index = build_index(as_table(rows), tmp_path, tmp_path / "i.parquet")
    files = [tmp_path / paths[0] for paths in index.table["paths"].to_pylist()]
    before = sheet_of(index, tmp_path / "a.png", sites=4)[1]
    files[1].unlink()
    files[2].write_bytes(b"no image")
    rows_drawn, after = sheet_of(index, tmp_path / "b.png", sites=4)
    assert rows_drawn == [0, 1, 2, 3] and after.shape == before.shape
    for number in range(4):
        top, left = place(number, 1)
        tile = after[top : top + EDGE, left : left + EDGE]
        if number in (1, 2):
            assert 20 < np.sum(tile < 128) < 0.2 * tile.size  # text on white, no picture
            assert (tile[:12, :10] == 255).all()
        else:
            np.testing.assert_array_equal(tile, before[top : top + EDGE, left : left + EDGE])


def test_sites_without_a_common_channel_are_refused(tmp_path: Path):
    rows = screen_rows(1, 1, 2, 1)
    rows[1]["channels"] = ["x", "y", "z"]
    write_images(tmp_path, rows)
    index = build_index(as_table(rows), tmp_path, tmp_path / "i.parquet", require_controls=False)
    with pytest.raises(ValueError, match="no channel that all its sites have"):
        write_sheet(index, tmp_path / "sheet.png")


@pytest.mark.parametrize(("channels", "shape"), [(1, (2, 6)), (4, (7, 4)), (7, (7, 7))])
def test_few_channels_leave_room_for_sites_beside_each_other(
    tmp_path: Path, channels: int, shape: tuple[int, int]
):
    names = [f"c{i}" for i in range(channels)]
    rows = [row | {"channels": names} for row in screen_rows(1, 1, 7, 1)]
    for seed, row in enumerate(rows):
        path = tmp_path / row["paths"][0]
        path.parent.mkdir(exist_ok=True)
        tifffile.imwrite(path, pixels(seed, channels=channels), photometric="minisblack")
    index = build_index(as_table(rows), tmp_path, tmp_path / "i.parquet")
    down, across = shape
    drawn, sheet = sheet_of(index, tmp_path / "sheet.png", sites=7)
    assert sheet.shape == (TEXT + down * (TEXT + EDGE + GAP), across * (EDGE + GAP) - GAP)
    top, left = TEXT + (down - 1) * (TEXT + EDGE + GAP) + TEXT, (channels - 1) * (EDGE + GAP)
    np.testing.assert_array_equal(sheet[top : top + 12, left : left + 10], read(index, 6)[-1])
