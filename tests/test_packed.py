"""The packed store's reader against zarr-python, at every edge, and against damage."""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path

import fsspec
import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

from phenoscale.screens.errors import ImageError, MissingImageError
from phenoscale.screens.packed import reader as packed
from phenoscale.screens.packed.shards import (
    METADATA,
    PackedArray,
    check_shard,
    group_metadata,
    shard_key,
    write_shard,
)
from phenoscale.screens.storage import Root

NAME = "plate.zarr"
ALL = [0, 1, 2]
# Sites that are no multiple of the tile, a last shard that is not full, and smooth and noisy parts.
ARRAY = PackedArray(
    num_sites=5, num_channels=3, height_px=150, width_px=97, sites_per_shard=2, tile_px=64
)


@functools.cache
def images(count: int = 5, height: int = 150, width: int = 97) -> np.ndarray:
    """Smooth images with noise, uint8 (count, 3, H, W), so that tiles compress."""
    rng = np.random.default_rng(3)
    y, x = np.mgrid[:height, :width]
    wave = 100 + 60 * np.sin(y / 9 + np.arange(count * 3)[:, None, None]) * np.cos(x / 7)
    noisy = wave.reshape(count, 3, height, width) + rng.normal(0, 4, (count, 3, height, width))
    return noisy.astype(np.uint8)


def write_store(folder: Path, array: PackedArray, sites: np.ndarray) -> Root:
    """A store of one array."""
    (folder / NAME).mkdir(parents=True)
    (folder / METADATA).write_bytes(group_metadata({}))
    (folder / NAME / METADATA).write_bytes(array.metadata({"plate": "plate 1"}))
    for shard in range(array.num_shards):
        with (folder / NAME / shard_key(shard)).open("wb") as sink:
            write_shard(sink, array, [sites[i] for i in array.sites_of(shard)])
    return Root.of(folder)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Root:
    return write_store(tmp_path_factory.mktemp("packed") / "store", ARRAY, images())


def test_sites_come_back(store: Root):
    for site, image in enumerate(images()):
        assert np.array_equal(packed.read_site(store, NAME, site, ALL), image)
        assert np.array_equal(packed.read_site(store, NAME, site, [2, 0]), image[[2, 0]])
        header = packed.read_header(store, NAME, site)
        assert (header.height_px, header.width_px, header.dtype) == (150, 97, "uint8")


def test_any_zarr_reader_opens_the_store(store: Root):
    group = zarr.open_group(store.folder, mode="r")
    array = group[NAME]
    assert isinstance(array, zarr.Array)
    assert array.attrs["plate"] == "plate 1"
    assert array.metadata.dimension_names == ("site", "channel", "y", "x")
    assert np.array_equal(array[:], images())


@pytest.mark.parametrize(
    "compression",
    [
        [BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle", typesize=1)],
        [BloscCodec(cname="zstd", clevel=1, shuffle="noshuffle", typesize=1)],
        [ZstdCodec(level=1)],
        [],
    ],
    ids=["blosc-lz4", "blosc-zstd", "zstd", "none"],
)
def test_stores_of_zarr_python_are_read(tmp_path: Path, compression: list):
    sites = images().copy()
    sites[1, :, :64, :64] = 0  # a tile that zarr-python leaves out
    sites[4] = 0  # and a shard
    sites[3, 0, 140, 90] = 0
    written = zarr.create_array(
        tmp_path / NAME,
        shape=sites.shape,
        dtype="uint8",
        shards=(2, 3, 192, 128),
        chunks=(1, 3, 64, 64),
        compressors=[*compression, Crc32cCodec()],
        chunk_key_encoding={"name": "default", "separator": "."},
    )
    written[:4] = sites[:4]
    root = Root.of(tmp_path)
    for site in range(4):
        assert np.array_equal(packed.read_site(root, NAME, site, ALL), sites[site])
    corners = [(0, 0), (20, 33), (86, 33), (60, 0)]
    crops = packed.read_windows(root, NAME, 1, ALL, corners, 64)
    for crop, (top, left) in zip(crops, corners, strict=True):
        assert np.array_equal(crop, sites[1, :, top : top + 64, left : left + 64])
    # A missing file is no black image, whatever Zarr says: it would train on nothing.
    with pytest.raises(MissingImageError, match=r"c\.2\.0\.0\.0"):
        packed.read_site(root, NAME, 4, ALL)


@given(data=st.data())
def test_windows_are_parts_of_the_site(store: Root, data: st.DataObject):
    size = data.draw(st.integers(1, 97))
    corner = st.tuples(st.integers(0, 150 - size), st.integers(0, 97 - size))
    corners = data.draw(st.lists(corner, min_size=1, max_size=5))
    site = data.draw(st.integers(0, 4))
    positions = data.draw(st.lists(st.sampled_from(ALL), min_size=1, max_size=3, unique=True))
    expected = [images()[site][positions, t : t + size, x : x + size] for t, x in corners]
    given_as = np.array(corners) if data.draw(st.booleans()) else corners
    crops = packed.read_windows(store, NAME, site, positions, given_as, size)
    assert crops.dtype == np.uint8 and crops.flags.c_contiguous and crops.flags.writeable
    assert np.array_equal(crops, expected)
    # Fetched here, cut elsewhere, into memory of the caller's.
    memory = np.zeros((2 * len(corners), len(positions), size, size), np.uint8)
    fetched = packed.fetch(store, NAME, site, given_as, size)
    packed.cut(fetched, positions, given_as, size, out=[*memory[::2]])
    assert np.array_equal(memory[::2], crops) and not memory[1::2].any()


def test_a_tile_is_read_once_and_no_more_than_needed(store: Root):
    assert len(packed.fetch(store, NAME, 0, [(0, 0)], 64).tiles) == 1
    assert len(packed.fetch(store, NAME, 0, [(0, 0), (0, 0), (0, 1)], 64).tiles) == 2
    assert len(packed.fetch(store, NAME, 0, [(63, 33)], 64).tiles) == 4


@pytest.mark.parametrize("corner", [(-1, 0), (0, -1), (87, 0), (0, 34)])
def test_a_window_outside_is_refused(store: Root, corner: tuple[int, int]):
    with pytest.raises(ValueError, match="150 x 97"):
        packed.read_windows(store, NAME, 0, ALL, [(0, 0), corner], 64)


@pytest.mark.parametrize("site", [-1, 5, 2**40])
def test_a_site_that_is_not_there_is_named(store: Root, site: int):
    for read in (packed.read_header, lambda *where: packed.read_site(*where, ALL)):
        with pytest.raises(ImageError, match=f"no site {site}; it has 5"):
            read(store, NAME, site)


def test_a_remote_store_reads_ranges(tmp_path: Path):
    write_store(tmp_path / "store", ARRAY, images())
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / "store"), "/packed_test/", recursive=True)
    folders = [f for f, _, names in memory.walk("/packed_test") if METADATA in names]
    top = min(folders, key=len)
    root = Root.of(f"memory://{top}")
    assert np.array_equal(packed.read_site(root, NAME, 3, ALL), images()[3])
    crops = packed.read_windows(root, NAME, 4, ALL, [(11, 12), (80, 30)], 60)
    assert np.array_equal(crops[1], images()[4, :, 80:140, 30:90])
    memory.rm(top, recursive=True)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_is_found_and_named(tmp_path_factory, store: Root, data: st.DataObject):
    # A folder of its own: what has been opened stays open.
    root = Root.of(tmp_path_factory.mktemp("damaged"))
    folder = Path(root.folder or "")
    (folder / NAME).mkdir()
    source = Path(store.folder or "") / NAME
    (folder / NAME / METADATA).write_bytes((source / METADATA).read_bytes())
    whole = (source / shard_key(0)).read_bytes()
    damaged = bytearray(whole)
    if data.draw(st.booleans(), label="truncate"):
        damaged = damaged[: data.draw(st.integers(0, len(whole) - 1))]
    else:
        for bit in data.draw(st.sets(st.integers(0, 8 * len(whole) - 1), min_size=1, max_size=3)):
            damaged[bit // 8] ^= 1 << bit % 8
    (folder / NAME / shard_key(0)).write_bytes(damaged)
    with pytest.raises(ImageError, match=r"c\.0\.0\.0\.0"):
        check_shard(bytes(damaged), ARRAY, 0, f"{NAME}/{shard_key(0)}")
    failed = []
    for site in (0, 1):
        try:
            found = packed.read_site(root, NAME, site, ALL)
        except ImageError as error:
            assert shard_key(0) in str(error)
            failed.append(site)
        else:
            assert np.array_equal(found, images()[site])
    assert failed


def test_check_shard_counts_sites(tmp_path: Path):
    sites = images()
    array = PackedArray(num_sites=3, num_channels=3, height_px=150, width_px=97, sites_per_shard=3)

    def shard(given: list) -> bytes:
        path = tmp_path / "shard"
        with path.open("wb") as sink:
            assert write_shard(sink, array, given) == sink.tell()
        return path.read_bytes()

    assert check_shard(shard([*sites[:3]]), array, 0, "s").tolist() == [True] * 3
    assert check_shard(shard([sites[0], None, sites[2]]), array, 0, "s").tolist() == [1, 0, 1]
    fewer = PackedArray(num_sites=2, num_channels=3, height_px=150, width_px=97, sites_per_shard=3)
    with pytest.raises(ImageError, match="2 whole ones are required"):
        check_shard(shard([*sites[:3]]), fewer, 0, "s")


def changed(**changes: object) -> bytes:
    """Metadata of `ARRAY` in which some values, named by their path, are others."""
    value = json.loads(ARRAY.metadata({}))
    for path, new in changes.items():
        *parents, last = (int(p) if p.isdigit() else p for p in path.split("__"))
        at = value
        for parent in parents:
            at = at[parent]
        at[last] = new
    return json.dumps(value).encode()


INNER = "codecs__0__configuration"


@pytest.mark.parametrize(
    "metadata",
    [
        b"",
        b"null",
        b"[" * 100_000,
        b"{}",
        b" " * 2**21,
        changed(shape=[5, 3, 2**40, 97]),
        changed(shape=[5, 3, 2**14, 2**13]),
        changed(shape=[5, 10**6, 150, 97]),
        changed(
            shape=[2**62, 3, 150, 97], chunk_grid__configuration__chunk_shape=[2**60, 3, 192, 128]
        ),
        changed(shape=[5, 3, -150, 97]),
        changed(shape=[5, 3, 150.0, 97]),
        changed(shape=[5, 3, True, 97]),
        changed(shape=[3, 150, 97]),
        changed(data_type="uint16"),
        changed(fill_value=7),
        changed(chunk_grid__configuration__chunk_shape=[0, 3, 192, 128]),
        changed(chunk_grid__configuration__chunk_shape=[2, 3, 192, 192]),
        changed(chunk_key_encoding={"name": "default", "configuration": {"separator": "/"}}),
        changed(**{f"{INNER}__chunk_shape": [1, 3, 0, 0]}),
        changed(**{f"{INNER}__chunk_shape": [1, 3, 64, 32]}),
        changed(**{f"{INNER}__chunk_shape": [1, 1, 64, 64]}),
        changed(**{f"{INNER}__chunk_shape": [1, 3, 10**9, 10**9]}),
        changed(**{f"{INNER}__codecs__1__name": "gzip"}),
        changed(**{f"{INNER}__index_location": "start"}),
        changed(node_type="group"),
    ],
)
def test_absurd_metadata_is_refused(tmp_path: Path, metadata: bytes):
    (tmp_path / NAME).mkdir()
    (tmp_path / NAME / METADATA).write_bytes(metadata)
    with pytest.raises(ImageError, match=NAME):
        packed.read_site(Root.of(tmp_path), NAME, 0, ALL)


def test_unchanged_metadata_is_accepted():
    assert PackedArray.parse(changed(), NAME) == ARRAY


def test_paths_do_not_leave_the_root(store: Root, tmp_path: Path):
    inner = tmp_path / "inner"
    inner.mkdir()
    for name in (f"../{NAME}", f"{store.folder}/{NAME}"):
        with pytest.raises(ImageError, match="refused"):
            packed.read_site(Root.of(inner), name, 0, ALL)


def test_descriptors_are_bounded(tmp_path: Path):
    array = PackedArray(
        num_sites=200, num_channels=1, height_px=8, width_px=8, sites_per_shard=1, tile_px=64
    )
    root = write_store(tmp_path, array, np.zeros((200, 1, 8, 8), np.uint8))
    before = len(os.listdir("/proc/self/fd"))
    for site in range(200):
        packed.read_site(root, NAME, site, [0])
    assert len(os.listdir("/proc/self/fd")) <= before + 64
