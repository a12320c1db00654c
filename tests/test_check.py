"""Checking an index against its files: counts, and every file that is missing or wrong."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import tifffile

from phenoscale.screens.build import build_index
from phenoscale.screens.check import check_index
from phenoscale.screens.index import ScreenIndex
from phenoscale.screens.index_format import GROUP_ROWS
from tests.screen_on_disk import (
    as_table,
    large_index,
    pixels,
    screen_rows,
    site_row,
    write_images,
)


@pytest.fixture
def index(tmp_path: Path) -> ScreenIndex:
    rows = screen_rows(batches=2, plates=2, wells=8, sites=2)
    write_images(tmp_path, rows)
    return build_index(as_table(rows), tmp_path, tmp_path / "index.parquet")


def files_of(index: ScreenIndex) -> list[Path]:
    assert index.root.folder is not None
    return [Path(index.root.folder, paths[0]) for paths in index.table["paths"].to_pylist()]


@pytest.mark.parametrize("decode", [False, True])
def test_a_sound_index_is_counted(index: ScreenIndex, decode: bool) -> None:
    seen: list[tuple[int, int]] = []
    report = check_index(index, decode, progress=lambda *done: seen.append(done))
    assert report.problems == [] and report.decoded is decode and seen[-1] == (64, 64)
    assert (report.sites, report.wells, report.plates, report.experimental_batches) == (
        64,
        32,
        4,
        2,
    )
    assert (report.perturbations, report.genes) == (7, 6)  # wells 0 and 4 are controls
    assert report.controls_per_batch == {"b0": 4, "b1": 4}
    assert report.channels == ("dna", "er", "actin") and report.sizes_px == {"12 x 10 uint8": 64}
    assert report.sites_of_channel == {"dna": 64, "er": 64, "actin": 64}
    assert (report.path, report.root) == (index.location, index.root.url)
    text = "\n".join(report.lines())
    told = ("b0: 4, b1: 4", "dna, er, actin", "12 x 10 uint8 (64 sites)", "used as they are")
    for expected in (index.fingerprint, *told):
        assert expected in text
    assert ("all pixels" if decode else "headers only") in text and "PROBLEM" not in text


def test_missing_and_damaged_files_are_problems(index: ScreenIndex) -> None:
    files = files_of(index)
    ids = index.table["site_id"].to_pylist()
    files[3].unlink()
    files[5].write_bytes(files[5].read_bytes()[:100])
    tifffile.imwrite(files[9], pixels(0, height=13), photometric="minisblack", metadata=None)
    tifffile.imwrite(files[11], pixels(0).astype(np.uint16), photometric="minisblack")
    report = check_index(index)
    assert [site for site, _ in report.missing] == [ids[3]]
    assert f"{files[3]} does not exist" in report.missing[0][1]
    assert [site for site, _ in report.unreadable] == [ids[5], ids[9], ids[11]]
    reasons = [reason for _, reason in report.unreadable]
    assert "truncated" in reasons[0]
    assert "is 13 x 10 uint8, the index says 12 x 10 uint8; build" in reasons[1]
    assert "is 12 x 10 uint16, the index says 12 x 10 uint8; build" in reasons[2]
    assert len(report.problems) == 4 and report.problems[0].startswith(f"site {ids[3]!r}: ")
    lines = report.lines()
    assert "missing              1" in lines and "unreadable           3" in lines
    assert sum(line.startswith("PROBLEM") for line in lines) == 4


def test_damage_behind_the_header_needs_decoding(index: ScreenIndex) -> None:
    file = files_of(index)[7]
    tifffile.imwrite(file, pixels(7), photometric="minisblack", compression="zlib")
    with tifffile.TiffFile(file) as tiff:
        page = tiff.pages[1]
        offset, length = page.dataoffsets[0], page.databytecounts[0]
    raw = bytearray(file.read_bytes())
    raw[offset : offset + length] = b"\xff" * length
    file.write_bytes(raw)
    assert check_index(index).problems == []
    report = check_index(index, decode=True)
    assert len(report.problems) == 1 and f"{file} cannot be decoded" in report.problems[0]


def test_many_problems_are_shown_in_part(index: ScreenIndex) -> None:
    for file in files_of(index)[:30]:
        file.unlink()
    report = check_index(index)
    assert len(report.missing) == len(report.problems) == 30
    assert report.lines()[-1] == "and 10 more problems; --list FILE names them all"


def test_batches_without_controls_and_channels_without_overlap(tmp_path: Path) -> None:
    rows = [site_row(0, 0, 0, 0), site_row(0, 0, 1, 0), site_row(1, 0, 1, 0)]
    rows[2]["channels"] = ["x", "y", "z"]
    write_images(tmp_path, rows)
    index = build_index(as_table(rows), tmp_path, tmp_path / "i.parquet", require_controls=False)
    report = check_index(index)
    assert report.controls_per_batch == {"b0": 1, "b1": 0}
    assert "['b1'] have no negative controls, others have" in report.problems[0]
    assert "no channel is common to all sites" in report.problems[1]
    without = [site_row(0, 0, 1, 0), site_row(1, 0, 1, 0)]
    index = build_index(as_table(without), tmp_path, tmp_path / "j.parquet", require_controls=False)
    assert check_index(index).problems == []


def test_the_list_names_every_bad_site(index: ScreenIndex, tmp_path: Path) -> None:
    files, ids = files_of(index), index.table["site_id"].to_pylist()
    for number in range(25):
        files[number].unlink()
    files[40].write_bytes(b"")
    report = check_index(index)
    report.write_list(tmp_path / "bad.csv")
    with (tmp_path / "bad.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert [row["site_id"] for row in rows] == [*ids[:25], ids[40]]
    assert [row["problem"] for row in rows] == ["missing"] * 25 + ["unreadable"]
    assert [row["reason"] for row in rows] == [r for _, r in report.missing + report.unreadable]


def test_16_bit_plates_are_read_through_their_scale(tmp_path: Path) -> None:
    rows = screen_rows(1, 2, 4, 1)
    write_images(tmp_path, rows)
    for seed, row in enumerate(rows[4:]):
        image = pixels(seed).astype(np.uint16) * 200
        tifffile.imwrite(tmp_path / row["paths"][0], image, photometric="minisblack")
    index = build_index(as_table(rows), tmp_path, tmp_path / "i.parquet", percentiles=(0.5, 99))
    report = check_index(index, decode=True)
    assert report.problems == [] and report.percentiles == (0.5, 99)
    assert report.sizes_px == {"12 x 10 uint8": 4, "12 x 10 uint16": 4}
    assert "percentiles 0.5 and 99 of each plate and channel become" in "\n".join(report.lines())
    tifffile.imwrite(tmp_path / rows[6]["paths"][0], pixels(0), photometric="minisblack")
    (problem,) = check_index(index).problems
    assert "is 12 x 10 uint8, the index says 12 x 10 uint16" in problem


def test_channels_that_some_sites_lack_are_counted(tmp_path: Path) -> None:
    rows = screen_rows(1, 1, 4, 1)
    rows[1]["channels"] = ["actin", "rna", "dna"]
    write_images(tmp_path, rows)
    report = check_index(build_index(as_table(rows), tmp_path, tmp_path / "i.parquet"))
    assert report.channels == ("dna", "actin")
    assert report.sites_of_channel == {"dna": 4, "er": 3, "actin": 4, "rna": 1}
    text = "\n".join(report.lines())
    assert "of some sites only er (3 sites)" in text and "rna (1 sites)" in text


def test_counts_of_an_index_of_several_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wells, plates and batches that lie in two pieces of the pass count once."""
    monkeypatch.setattr("phenoscale.screens.index._SCAN_GROUPS", 1)
    rows = 2 * GROUP_ROWS + 500
    index = large_index(tmp_path / "i.parquet", rows)
    seen: list[tuple[int, int]] = []
    report = check_index(index, progress=lambda *done: seen.append(done))
    frame = index.metadata()
    wells = frame.groupby(["experimental_batch", "plate", "well"]).ngroups
    assert (report.sites, report.wells, report.plates) == (rows, wells, len(index.plates))
    controls = frame[frame["negative_control"]].groupby("experimental_batch")["well"].nunique()
    assert report.controls_per_batch == controls.to_dict()
    assert [site for site, _ in report.missing] == frame["site_id"].tolist()
    assert seen == [(done, rows) for done in range(1, rows + 1)]
