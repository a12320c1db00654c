"""The rule from 16 to 8 bits: against numpy, per plate and channel, and as the index applies it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from phenoscale.screens.build import build_index
from phenoscale.screens.images.readers import read_site
from phenoscale.screens.index import ScreenIndex
from phenoscale.screens.scale import SITES_PER_PLATE, percentile_range
from tests.screen_on_disk import CHANNELS, as_table, site_row

PERCENTILES = (1.0, 99.0)


@given(
    values=st.lists(st.integers(0, 2**16 - 1), min_size=1, max_size=300),
    ends=st.tuples(st.sampled_from([0, 0.1, 1, 25, 50, 75, 99, 99.9, 100]), st.floats(0, 100)),
)
def test_percentiles_are_those_of_numpy(values: list[int], ends: tuple[float, float]):
    counts = np.bincount(values, minlength=2**16)
    percentiles = (ends[0], round(ends[1], 3))
    expected = np.percentile(values, percentiles, method="inverted_cdf")
    assert percentile_range(counts, percentiles) == tuple(expected)


def test_percentiles_of_a_whole_plate_are_those_of_numpy():
    """Five million pixels, few distinct values: shares fall on steps of the histogram."""
    rng = np.random.default_rng(0)
    values = rng.poisson(300, 5_000_000).astype(np.uint16)
    counts = np.bincount(values, minlength=2**16)
    for percentiles in ((0.1, 99.9), (0.0, 100.0), (5.0, 50.0)):
        expected = np.percentile(values, percentiles, method="inverted_cdf")
        assert percentile_range(counts, percentiles) == tuple(expected)


def image_of(seed: int, level: int, channels: int = 3) -> np.ndarray:
    """uint16 (C, 12, 10): each channel brighter than the one before, on a level of its plate."""
    rng = np.random.default_rng(seed)
    spread = rng.integers(0, 1000, (channels, 12, 10))
    return (level + 2000 * np.arange(channels)[:, None, None] + spread).astype(np.uint16)


def write_deep(root: Path, rows: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Writes 16-bit images, brighter on plate p1; returns them by site_id."""
    images = {}
    for seed, row in enumerate(rows):
        image = image_of(seed, 30_000 if row["plate"] == "p1" else 1000, len(row["channels"]))
        path = root / row["paths"][0]
        path.parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(path, image, photometric="minisblack", planarconfig="separate")
        images[row["site_id"]] = image
    return images


def plate_rows(plates: int = 2, wells: int = 6, sites: int = 1) -> list[dict[str, Any]]:
    return [site_row(0, p, w, s) for p in range(plates) for w in range(wells) for s in range(sites)]


def scale_of(index: ScreenIndex, plate: int = 0) -> dict[str, tuple[float, float]]:
    facts = index.facts.plates.to_pandas().iloc[plate]
    ranges = zip(facts["low"], facts["high"], strict=True)
    return dict(zip(facts["scaled_channels"], ranges, strict=True))


def test_every_plate_and_channel_has_its_own_scale(tmp_path: Path):
    rows = plate_rows()
    images = write_deep(tmp_path, rows)
    index = build_index(as_table(rows), tmp_path, tmp_path / "i.parquet", percentiles=PERCENTILES)
    assert index.facts.percentiles == PERCENTILES
    for number, plate in enumerate(("p0", "p1")):
        pixels = np.stack([images[row["site_id"]] for row in rows if row["plate"] == plate])
        found = scale_of(index, number)
        assert list(found) == CHANNELS
        for channel, name in enumerate(CHANNELS):
            values = pixels[:, channel].ravel()
            expected = np.percentile(values, PERCENTILES, method="inverted_cdf")
            assert found[name] == tuple(expected)
    assert scale_of(index, 0)["er"][1] < scale_of(index, 1)["dna"][0]


def test_the_index_stores_the_scale_and_readers_apply_it(tmp_path: Path):
    rows = plate_rows()
    images = write_deep(tmp_path, rows)
    build_index(as_table(rows), tmp_path, tmp_path / "i.parquet", percentiles=PERCENTILES)
    index = ScreenIndex.open(tmp_path / "i.parquet")
    for number, site in enumerate(index.table.to_pylist()):
        scale = index.scale(number, site["channel_set"])
        assert scale is not None
        shown = read_site(index.root, site["paths"], CHANNELS, ["actin", "dna"], scale)
        for plane, channel in zip(shown, (2, 0), strict=True):
            low, high = scale[channel]
            grey = images[site["site_id"]][channel].astype(float)
            expected = np.clip(np.round((grey - low) / (high - low) * 255), 0, 255)
            np.testing.assert_array_equal(plane, expected.astype(np.uint8))
            assert np.ptp(plane) > 200


def test_the_sample_is_chosen_by_name_and_not_by_order(tmp_path: Path):
    rows = plate_rows(plates=1, wells=12, sites=4)
    images = write_deep(tmp_path, rows)
    shuffled = [rows[i] for i in np.random.default_rng(3).permutation(len(rows))]
    one = build_index(as_table(rows), tmp_path, tmp_path / "i.parquet")
    other = build_index(as_table(shuffled), tmp_path, tmp_path / "j.parquet")
    assert len(rows) == 3 * SITES_PER_PLATE and one.fingerprint == other.fingerprint
    # It is a sample: not all sites, and never fewer than stated.
    found = scale_of(one)["dna"]
    every = np.stack([image[0] for image in images.values()])
    assert found != tuple(np.percentile(every, (0.1, 99.9), method="inverted_cdf"))
    more = [*rows, *(site_row(0, 1, w, 0) for w in range(3))]
    write_deep(tmp_path, more)
    with_more = build_index(as_table(more), tmp_path, tmp_path / "k.parquet")
    assert scale_of(with_more) == scale_of(one)


def test_a_channel_of_few_sites_has_a_scale_too(tmp_path: Path):
    """Whichever sites are sampled: no 16-bit channel is left to a range that nobody measured."""
    rows = plate_rows(plates=1, wells=30)
    for row in rows[:2]:
        row["channels"] = ["dna", "rna", "actin"]
    images = write_deep(tmp_path, rows)
    index = build_index(as_table(rows), tmp_path, tmp_path / "i.parquet", percentiles=PERCENTILES)
    values = np.stack([images[row["site_id"]][1] for row in rows[:2]])
    expected = np.percentile(values, PERCENTILES, method="inverted_cdf")
    assert scale_of(index)["rna"] == tuple(expected)


@pytest.mark.parametrize("bad", [3, SITES_PER_PLATE + 4])
def test_readable_sites_stand_in_for_damaged_ones_of_the_sample(tmp_path: Path, bad: int):
    rows = plate_rows(plates=1, wells=SITES_PER_PLATE + 12)
    images = write_deep(tmp_path, rows)
    for row in rows:
        path = tmp_path / row["paths"][0]
        tifffile.imwrite(path, images[row["site_id"]], photometric="minisblack", compression="zlib")
    for row in rows[:bad]:
        break_pixels(tmp_path / row["paths"][0])
    index = build_index(
        as_table(rows),
        tmp_path,
        tmp_path / "i.parquet",
        damaged="leave_out",
        require_controls=False,
    )
    assert SITES_PER_PLATE + 12 - bad <= index.num_sites < SITES_PER_PLATE + 12
    good = build_index(
        as_table(rows[bad:]), tmp_path, tmp_path / "good.parquet", require_controls=False
    )
    assert scale_of(index) == scale_of(good) != {}


def break_pixels(path: Path) -> None:
    """Damage behind a sound header."""
    with tifffile.TiffFile(path) as tiff:
        offset, length = tiff.pages[0].dataoffsets[0], tiff.pages[0].databytecounts[0]
    raw = bytearray(path.read_bytes())
    raw[offset : offset + length] = b"\xff" * length
    path.write_bytes(raw)


def test_images_of_8_bits_have_no_scale(tmp_path: Path):
    rows = plate_rows()
    write_deep(tmp_path, rows)
    for row in rows:
        if row["plate"] == "p0":
            image = np.full((3, 12, 10), 7, np.uint8)
            tifffile.imwrite(tmp_path / row["paths"][0], image, photometric="minisblack")
    index = build_index(as_table(rows), tmp_path, tmp_path / "i.parquet")
    assert index.scale(0, 0) is None and scale_of(index, 0) == {}
    assert len(scale_of(index, 1)) == 3 and index.facts.percentiles == (0.1, 99.9)
    low, high = scale_of(index, 1)["dna"]
    assert 30_000 <= low < high < 31_000
