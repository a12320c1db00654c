from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from phenoscale.screens.check import check_index
from phenoscale.screens.index import ScreenIndex, build_index
from tests.screen_on_disk import as_table, pixels, screen_rows, site_row, write_images


@pytest.fixture
def index(tmp_path: Path) -> ScreenIndex:
    rows = screen_rows(batches=2, plates=2, wells=8, sites=2)
    write_images(tmp_path, rows)
    return build_index(as_table(rows), tmp_path, tmp_path / "index.parquet")


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
    assert report.channels == ("dna", "er", "actin") and report.sizes_px == {"12 x 10": 64}
    text = "\n".join(report.lines())
    for expected in (index.fingerprint, "b0: 4, b1: 4", "dna, er, actin", "12 x 10 (64 sites)"):
        assert expected in text
    assert ("all pixels" if decode else "headers only") in text and "PROBLEM" not in text


def test_missing_and_damaged_files_are_problems(index: ScreenIndex) -> None:
    files = [index.root / paths[0] for paths in index.table["paths"].to_pylist()]
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
    assert "has (13, 10) pixels, the index says (12, 10)" in reasons[1]
    assert "has uint16 pixels" in reasons[2]
    assert len(report.problems) == 4 and report.problems[0].startswith(f"site {ids[3]!r}: ")
    lines = report.lines()
    assert "missing              1" in lines and "unreadable           3" in lines
    assert sum(line.startswith("PROBLEM") for line in lines) == 4


def test_damage_behind_the_header_needs_decoding(index: ScreenIndex) -> None:
    file = index.root / index.table["paths"][7].as_py()[0]
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
    for paths in index.table["paths"].to_pylist()[:30]:
        (index.root / paths[0]).unlink()
    report = check_index(index)
    assert len(report.missing) == len(report.problems) == 30
    assert report.lines()[-1] == "and 10 more problems"


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
