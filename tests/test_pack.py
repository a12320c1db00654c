"""Packing on real Ray and real files: equal crops, kills, damage, object stores."""

from __future__ import annotations

import csv
import io
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from rich.console import Console

from phenoscale.on_ray.pack import pack_screen
from phenoscale.screens.build import build_index
from phenoscale.screens.errors import ImageError
from phenoscale.screens.images.readers import read_site, read_windows
from phenoscale.screens.index import ScreenIndex
from phenoscale.screens.packed.packing import packed_paths, plan_store, rows_of
from phenoscale.screens.packed.store import claim_store, put, remove_leftovers
from phenoscale.screens.storage import Root
from tests.screen_on_disk import as_table, packed_copy, packer_of, screen_rows, write_images

SITE_BYTES = 6 * 64 * 64
ROOT = Path(__file__).parents[1]
PACK = """
import sys
from rich.console import Console
from phenoscale.on_ray.pack import pack_screen
pack_screen(sys.argv[1], sys.argv[2], Console(), shard_bytes=int(sys.argv[3]))
"""


def all_sites(index: ScreenIndex) -> np.ndarray:
    """Pixels of every site in the index's channels."""
    table = index.table
    return np.stack(
        [
            read_site(
                index.root,
                paths,
                index.channel_sets[number],
                index.channels,
                index.scale(row, number),
            )
            for row, (paths, number) in enumerate(
                zip(table["paths"].to_pylist(), table["channel_set"].to_pylist(), strict=True)
            )
        ]
    )


def shards_in(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.zarr/c.*"))


def test_a_killed_run_goes_on(tiny_screen: Path, tmp_path: Path):
    source, out = tiny_screen / "index.parquet", tmp_path / "packed"
    # Four sites to a shard, so that there is a middle to be killed in.
    shard_bytes = 4 * SITE_BYTES
    command = [sys.executable, "-c", PACK, str(source), str(out), str(shard_bytes)]
    run = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(shards_in(out)) < 10:
        assert run.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    run.send_signal(signal.SIGKILL)
    run.wait()
    time.sleep(2)  # its Ray follows it
    finished = {path: path.stat().st_mtime_ns for path in shards_in(out)}
    assert 10 <= len(finished) < 72
    with pytest.raises(ValueError, match="There is no index"):
        ScreenIndex.open(out / "index.parquet")
    # What a kill while writing leaves behind, and a shard that a power cut tore.
    leftover = out / "00000.zarr" / ".c.9.0.0.0.123.part"
    leftover.write_bytes(b"half")
    torn = next(iter(finished))
    torn.write_bytes(torn.read_bytes()[:-7])

    told = io.StringIO()
    report = pack_screen(source, out, Console(file=told, width=200), shard_bytes=shard_bytes)
    assert (report.sites, report.bad_sites, report.shards) == (288, 0, 72)
    assert report.written_shards == 72 - len(finished) + 1
    assert {p for p, at in finished.items() if p.stat().st_mtime_ns != at} == {torn}
    assert not leftover.exists() and not list(out.rglob("*.part"))
    overhead = report.packed_bytes - report.pixel_bytes  # checksums and index of each shard
    assert 0 < overhead < 288 * 64 and report.pixel_bytes == 288 * SITE_BYTES
    assert report.packed_bytes == sum(path.stat().st_size for path in shards_in(out))
    assert "288 sites in 72 shards" in report.lines()[0]

    raw, packed = ScreenIndex.open(source), ScreenIndex.open(out / "index.parquet")
    assert packed.fingerprint == raw.fingerprint
    assert packed.metadata().equals(raw.metadata())
    pixels = all_sites(raw)
    assert np.array_equal(all_sites(packed), pixels)
    corners = np.array([(0, 0), (13, 32), (31, 5)])
    for row in (0, 100, 287):
        crops = read_windows(
            packed.root,
            packed.table["paths"][row].as_py(),
            packed.channels,
            packed.channels,
            corners,
            32,
        )
        expected = [pixels[row, :, top : top + 32, left : left + 32] for top, left in corners]
        assert np.array_equal(crops, expected)
    arrays = dict(zarr.open_group(out, mode="r").arrays())
    assert [arrays[f"0000{i}.zarr"].shape for i in range(4)] == [(72, 6, 64, 64)] * 4
    assert np.array_equal(arrays["00001.zarr"][3], pixels[75])
    assert list(arrays["00001.zarr"].attrs["channels"]) == list(raw.channels)


def test_damaged_sites_and_an_object_store(tmp_path: Path, s3, monkeypatch: pytest.MonkeyPatch):
    rows = screen_rows()
    write_images(tmp_path / "screen", rows)
    raw = build_index(as_table(rows), Root.of(tmp_path / "screen"), tmp_path / "index.parquet")
    pixels = all_sites(raw)
    damaged = [5, 40]
    for row in damaged:
        (tmp_path / "screen" / raw.table["paths"][row].as_py()[0]).write_bytes(b"II*\0")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "placeholder").touch()
    address, _, options = s3.put(tmp_path / "empty").partition("?")
    out = f"{address}-packed?{options}"

    with pytest.raises(ValueError, match="2 of 64 sites cannot be read") as refusal:
        pack_screen(raw.location, out, Console(file=io.StringIO()))
    for row in damaged:
        assert raw.table["site_id"][row].as_py() in str(refusal.value)
    with pytest.raises(ValueError, match="There is no index"):
        ScreenIndex.open(f"{address}-packed/index.parquet?{options}")

    report = pack_screen(raw.location, out, Console(file=io.StringIO()), tolerated_bad_sites=2 / 64)
    assert (report.sites, report.bad_sites, report.written_shards) == (62, 2, 0)
    packed = ScreenIndex.open(report.index)
    kept = [row for row in range(64) if row not in damaged]
    assert packed.fingerprint != raw.fingerprint
    assert packed.table["site_id"].to_pylist() == raw.table["site_id"].take(kept).to_pylist()
    assert np.array_equal(all_sites(packed), pixels[kept])
    listed = list(csv.DictReader(io.StringIO(packed.root.read("bad_sites.csv").decode())))
    assert [int(line["row"]) for line in listed] == damaged
    assert all(line["reason"] for line in listed)


@pytest.fixture
def mixed(tmp_path: Path) -> ScreenIndex:
    """A screen whose plates hold sites of two sizes, in turns."""
    rows = screen_rows(batches=1)
    for number, row in enumerate(rows):
        write_images(tmp_path / "screen", [row])
        if number % 3 == 0:
            big = np.full((3, 70, 65), number, np.uint8)
            path = tmp_path / "screen" / row["paths"][0]
            tifffile.imwrite(path, big, photometric="minisblack", planarconfig="separate")
    return build_index(as_table(rows), Root.of(tmp_path / "screen"), tmp_path / "index.parquet")


def test_the_plan_has_every_row_once(mixed: ScreenIndex):
    plan = plan_store(mixed, shard_bytes=3 * 70 * 65 * 2)
    assert len(plan) == 4  # two plates, two sizes each
    rows = np.concatenate([rows_of(mixed, planned) for planned in plan])
    assert sorted(rows.tolist()) == list(range(mixed.num_sites))
    assert {p.array.sites_per_shard for p in plan if p.array.height_px == 70} == {2}
    paths = packed_paths(mixed, plan, bad=[1]).to_pylist()
    assert paths[1] is None and len(set(paths)) == mixed.num_sites
    first = rows_of(mixed, plan[2]).tolist()
    assert [paths[row] for row in first] == [f"00002.zarr?site={i}" for i in range(len(first))]


def test_sites_of_two_sizes(mixed: ScreenIndex, tmp_path: Path):
    packed = packed_copy(mixed, tmp_path / "packed", shard_bytes=20_000)
    for row in range(mixed.num_sites):
        names, channels = mixed.channels, mixed.channel_sets[0]
        before = read_site(mixed.root, mixed.table["paths"][row].as_py(), channels, names)
        after = read_site(packed.root, packed.table["paths"][row].as_py(), channels, names)
        assert np.array_equal(before, after)


def test_sites_of_exactly_one_tile(tiny_screen: Path, tmp_path: Path):
    screen = ScreenIndex.open(tiny_screen / "index.parquet")  # of 64 px, as tiles are
    packed = packed_copy(screen, tmp_path / "packed", raw=False)
    assert np.array_equal(all_sites(packed), all_sites(screen))


def test_a_mended_site_is_packed_after_all(mixed: ScreenIndex, tmp_path: Path):
    path = Path(mixed.root.folder or "") / mixed.table["paths"][0].as_py()[0]
    whole = path.read_bytes()
    path.write_bytes(b"")
    packer = packer_of(mixed, claim_store(tmp_path / "packed", mixed.fingerprint))
    shard = next(i for i, p in enumerate(packer.plan) if 0 in rows_of(mixed, p))
    assert [row for row, _ in packer.write(shard).bad] == [0]
    packer.check(shard, bad=1)
    with pytest.raises(ImageError, match="are required"):
        packer.check(shard)
    found = packer.find(shard)
    assert found is not None and [row for row, _ in found.bad] == [0]
    path.write_bytes(whole)
    assert packer.find(shard) is None
    assert packer.write(shard).bad == ()


def test_a_lost_array_description_is_written_again(mixed: ScreenIndex, tmp_path: Path):
    packer = packer_of(mixed, claim_store(tmp_path / "packed", mixed.fingerprint))
    packer.write(0)
    (tmp_path / "packed" / "00000.zarr" / "zarr.json").unlink()
    assert packer.find(0) is None
    with pytest.raises(ImageError, match=r"zarr\.json"):
        packer.check(0)


def test_a_folder_with_something_else_is_refused(tmp_path: Path):
    store = claim_store(tmp_path / "mine", "a" * 64)
    assert claim_store(tmp_path / "mine", "a" * 64) == store
    with pytest.raises(ValueError, match="of another screen"):
        claim_store(tmp_path / "mine", "b" * 64)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "todo.txt").touch()
    with pytest.raises(ValueError, match=r"holds todo\.txt"):
        claim_store(tmp_path / "notes", "a" * 64)
    # Killed before its first file was whole: free to take.
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / ".zarr.json.7.part").write_bytes(b"{")
    store = claim_store(tmp_path / "killed", "a" * 64)
    assert remove_leftovers(store) == 1
    assert [path for path, _ in store.files()] == ["zarr.json"]


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path):
    store = claim_store(tmp_path / "store", "a" * 64)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match="could not be written"):
            put(store, "00000.zarr/c.0.0.0.0", bytes(2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path for path, _ in store.files()] == ["zarr.json"]


def test_a_share_of_all_sites_is_refused(tiny_screen: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=r"tolerated_bad_sites is 1\.5"):
        pack_screen(
            tiny_screen / "index.parquet", tmp_path / "o", Console(), tolerated_bad_sites=1.5
        )
    assert not (tmp_path / "o").exists()
