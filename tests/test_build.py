"""From a manifest and image files to an index: what is refused, named, listed and left out."""

from __future__ import annotations

import contextlib
import csv
import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tifffile

from phenoscale.screens.build import build_index, damaged_csv, map_sites
from phenoscale.screens.images.readers import read_site
from phenoscale.screens.index import ScreenIndex
from phenoscale.screens.storage import Root
from tests.screen_on_disk import CHANNELS, as_table, pixels, screen_rows, write_images

Screen = tuple[Path, list[dict[str, Any]]]


@pytest.fixture
def screen(tmp_path: Path) -> Screen:
    rows = screen_rows()
    write_images(tmp_path / "screen", rows)
    return tmp_path / "screen", rows


def listed(out: Path) -> dict[str, str]:
    """site_id to reason, as damaged.csv has them."""
    with damaged_csv(out).open(newline="") as lines:
        return {row["site_id"]: row["reason"] for row in csv.DictReader(lines)}


def test_build_and_open_agree(screen: Screen) -> None:
    root, rows = screen
    seen: list[tuple[int, int]] = []
    built = build_index(
        as_table(rows), root, root / "i.parquet", progress=lambda *done: seen.append(done)
    )
    opened = ScreenIndex.open(root / "i.parquet")
    assert opened.table.equals(built.table) and opened.fingerprint == built.fingerprint
    assert opened.root == built.root == Root.of(root)
    assert opened.num_sites == len(rows) == 64 and opened.channels == tuple(CHANNELS)
    assert seen[-1] == (64, 64) and [done for done, _ in seen] == sorted({d for d, _ in seen})
    for number, site in enumerate(opened.table.to_pylist()):
        assert site["site_id"] == rows[number]["site_id"]
        assert (site["height_px"], site["width_px"], site["dtype"]) == (12, 10, "uint8")
        image = read_site(opened.root, site["paths"], CHANNELS, opened.channels)
        np.testing.assert_array_equal(image, pixels(number))
    assert sorted(os.listdir(root)) == ["i.parquet", "images"]


def test_the_order_of_the_manifest_and_the_place_of_the_index_do_not_count(
    screen: Screen, tmp_path: Path
) -> None:
    root, rows = screen
    index = build_index(as_table(rows), root, tmp_path / "a.parquet")
    shuffled = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    other = build_index(as_table(shuffled), Root.of(root), root / "deep" / "b.parquet")
    assert other.fingerprint == index.fingerprint and other.table.equals(index.table)


def test_further_columns_pass_through(screen: Screen, tmp_path: Path) -> None:
    root, rows = screen
    further = {
        "seeded": pa.array([i % 3 == 0 for i in range(64)]),
        "dose_rank": pa.array(range(64), pa.int16()),
        "assay": pa.array([None if i % 2 else f"a{i}" for i in range(64)]),
    }
    table = as_table(rows)
    for name, column in further.items():
        table = table.append_column(name, column)
    index = build_index(table.take(np.arange(64)[::-1]), root, tmp_path / "i.parquet")
    for name, column in further.items():
        assert index.table[name].to_pylist() == column.to_pylist()
    assert index.metadata()["dose_rank"].tolist() == list(range(64))
    plain = build_index(as_table(rows), root, tmp_path / "plain.parquet")
    assert plain.fingerprint != index.fingerprint


def test_bad_images_are_named_counted_and_nothing_is_written(
    screen: Screen, tmp_path: Path
) -> None:
    root, rows = screen
    out = tmp_path / "new" / "i.parquet"
    path = root / rows[9]["paths"][0]
    whole = path.read_bytes()
    path.write_bytes(whole[:200])
    with pytest.raises(ValueError) as error:
        build_index(as_table(rows), root, out, source="sites.csv")
    text = str(error.value)
    assert text.startswith(f"sites.csv, row 11, site '{rows[9]['site_id']}': {path} ")
    assert "more sites" not in text and "No index was written" in text
    assert str(damaged_csv(out)) in text and list(listed(out)) == [rows[9]["site_id"]]
    (root / rows[20]["paths"][0]).unlink()
    (root / rows[30]["paths"][0]).write_bytes(b"")
    with pytest.raises(ValueError, match=r"row 11.* 2 more sites have bad images\. .* No index"):
        build_index(as_table(rows), root, out)
    assert list(listed(out)) == [rows[i]["site_id"] for i in (9, 20, 30)]
    path.write_bytes(whole)
    with pytest.raises(ValueError, match=f"row 22, site .*{rows[20]['paths'][0]} does not exist"):
        build_index(as_table(rows), root, out)
    rows[3]["paths"] = ["../screen/" + rows[3]["paths"][0]]
    with pytest.raises(ValueError, match="row 5, site .* is refused: a path must be relative"):
        build_index(as_table(rows), root, out)
    assert os.listdir(out.parent) == [damaged_csv(out).name]


def test_bad_images_can_be_left_out_and_are_listed(screen: Screen, tmp_path: Path) -> None:
    root, rows = screen
    out = tmp_path / "i.parquet"
    bad = {5: "truncated", 17: "does not exist", 40: "channels, its site needs 3"}
    (root / rows[5]["paths"][0]).write_bytes((root / rows[5]["paths"][0]).read_bytes()[:200])
    (root / rows[17]["paths"][0]).unlink()
    tifffile.imwrite(root / rows[40]["paths"][0], pixels(0, channels=2), photometric="minisblack")
    index = build_index(as_table(rows), root, out, damaged="leave_out")
    kept = [row["site_id"] for i, row in enumerate(rows) if i not in bad]
    assert index.table["site_id"].to_pylist() == kept
    reasons = listed(out)
    assert list(reasons) == [rows[i]["site_id"] for i in bad]
    for number, reason in bad.items():
        assert reason in reasons[rows[number]["site_id"]]
    # The same as an index of a manifest without them.
    good = [row for i, row in enumerate(rows) if i not in bad]
    assert index.fingerprint == build_index(as_table(good), root, out).fingerprint
    assert not damaged_csv(out).exists()


def test_leaving_out_does_not_lose_all_controls_in_silence(screen: Screen, tmp_path: Path) -> None:
    root, rows = screen
    for row in rows:
        if row["negative_control"] and row["experimental_batch"] == "b1":
            (root / row["paths"][0]).unlink()
    out = tmp_path / "i.parquet"
    with pytest.raises(ValueError, match=r"without its bad images, has no negative controls .*b1"):
        build_index(as_table(rows), root, out, damaged="leave_out")
    assert not out.exists() and len(listed(out)) == 8
    index = build_index(as_table(rows), root, out, damaged="leave_out", require_controls=False)
    assert index.num_sites == 56
    for row in rows:
        (root / row["paths"][0]).unlink(missing_ok=True)
    (root / "here.txt").write_text("an empty folder would look like an unmounted share")
    with pytest.raises(ValueError, match="has no readable site; no index was written"):
        build_index(as_table(rows), root, out, damaged="leave_out")
    assert ScreenIndex.open(out).num_sites == 56


def test_damage_behind_the_header_is_found_where_the_scale_is_measured(tmp_path: Path) -> None:
    rows = screen_rows(1, 1, 8, 1)
    for seed, row in enumerate(rows):
        path = tmp_path / row["paths"][0]
        path.parent.mkdir(exist_ok=True)
        image = pixels(seed).astype(np.uint16) * 100
        tifffile.imwrite(path, image, photometric="minisblack", compression="zlib")
    path = tmp_path / rows[6]["paths"][0]
    with tifffile.TiffFile(path) as tiff:
        offset, length = tiff.pages[1].dataoffsets[0], tiff.pages[1].databytecounts[0]
    raw = bytearray(path.read_bytes())
    raw[offset : offset + length] = b"\xff" * length
    path.write_bytes(raw)
    out = tmp_path / "i.parquet"
    with pytest.raises(
        ValueError, match=f"row 8, site '{rows[6]['site_id']}': .*cannot be decoded"
    ):
        build_index(as_table(rows), tmp_path, out)
    index = build_index(as_table(rows), tmp_path, out, damaged="leave_out")
    assert index.num_sites == 7 and list(listed(out)) == [rows[6]["site_id"]]
    good = build_index(as_table([*rows[:6], rows[7]]), tmp_path, tmp_path / "good.parquet")
    assert good.fingerprint == index.fingerprint


def test_build_checks_the_manifest_the_root_and_the_percentiles(
    screen: Screen, tmp_path: Path
) -> None:
    root, rows = screen
    out = tmp_path / "i.parquet"
    with pytest.raises(ValueError, match="has 1 duplicate site_ids: 'b0_p0_w00_s0' in rows"):
        build_index(as_table([*rows, rows[0]]), root, out)
    with pytest.raises(ValueError, match="root .*nowhere does not exist"):
        build_index(as_table(rows), tmp_path / "nowhere", out)
    for wrong in ((1.0, 1.0), (99.9, 0.1), (-1.0, 50.0), (0.0, 100.1), (float("nan"), 99.0)):
        with pytest.raises(ValueError, match="percentiles are .* two ascending numbers"):
            build_index(as_table(rows), root, out, percentiles=wrong)
    rows = [r for r in rows if not (r["negative_control"] and r["experimental_batch"] == "b1")]
    with pytest.raises(ValueError, match=r"no negative controls in 1 of 2 experimental .*\['b1'\]"):
        build_index(as_table(rows), root, out)
    assert not out.exists()
    assert build_index(as_table(rows), root, out, require_controls=False).num_sites == len(rows)


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Lets no file of this process grow beyond some bytes, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_failed_write_leaves_the_old_index(screen: Screen, tmp_path: Path, share: float) -> None:
    """In opening the file, in writing rows, in writing the footer."""
    root, rows = screen
    out = tmp_path / "out" / "i.parquet"
    old = build_index(as_table(rows), root, out)
    size = int(share * out.stat().st_size)
    failed = r"could not be written .*; nothing was left behind. Free"
    with files_of_at_most(size), pytest.raises(OSError, match=failed):
        build_index(as_table(rows), root, out)
    assert os.listdir(out.parent) == ["i.parquet"]
    again = ScreenIndex.open(out)
    assert again.fingerprint == old.fingerprint and again.table.equals(old.table)


def test_sites_are_mapped_in_order_whatever_the_threads() -> None:
    table = pa.table({"number": range(1000)})
    seen: list[tuple[int, int]] = []
    doubled = map_sites(lambda row: 2 * row["number"], table, lambda *done: seen.append(done))
    assert list(doubled) == list(range(0, 2000, 2))
    assert seen[-1] == (1000, 1000) and len(seen) > 10
