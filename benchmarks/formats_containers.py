"""The containers that `benchmarks.formats` compares, each written and opened by one function.

Zarr's shards hold tiles compressed by the codec of the case. Parquet, Arrow IPC and Lance hold the
same tiles as rows of a binary column, compressed as in our store, so that the container alone
differs. Each function returns how to cut a crop: (site, top, left, side) to uint8 (C, s, s).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

from phenoscale.screens.packed.reader import read_windows
from phenoscale.screens.packed.shards import (
    METADATA,
    TILE_PX,
    PackedArray,
    encode_tile,
    shard_key,
    write_shard,
)
from phenoscale.screens.storage import Root

NAME = "plate.zarr"
_CODECS: Any = imagecodecs

Cutter = Callable[[int, int, int, int], np.ndarray]
Rows = Callable[[int, Sequence[int]], Sequence[Any]]
"""Site and numbers of its tiles to their compressed bytes."""


def zarr_shards(
    sites: np.ndarray, folder: Path, *, tile: int, codec: str, own_reader: bool
) -> Cutter:
    """Shards that zarr-python wrote, read by our reader or by zarr-python."""
    compressions: dict[str, list[Any]] = {
        "none": [],
        "lz4": [BloscCodec(cname="lz4", clevel=9, shuffle="noshuffle", typesize=1)],
        "lz4+bitshuffle": [BloscCodec(cname="lz4", clevel=9, shuffle="bitshuffle", typesize=1)],
        "zstd1": [ZstdCodec(level=1)],
        "zstd2": [ZstdCodec(level=2)],
        "zstd3": [ZstdCodec(level=3)],
        "zstd+bitshuffle": [BloscCodec(cname="zstd", clevel=1, shuffle="bitshuffle", typesize=1)],
    }
    count, channels, height, width = sites.shape
    padded = [-(-side // tile) * tile for side in (height, width)]
    array = zarr.create_array(
        folder / NAME,
        shape=sites.shape,
        dtype="uint8",
        shards=(count, channels, *padded),
        chunks=(1, channels, tile, tile),
        compressors=[*compressions[codec], Crc32cCodec()],
        chunk_key_encoding={"name": "default", "separator": "."},
    )
    array[:] = sites
    if own_reader:
        return _our_reader(folder, channels)
    opened: Any = zarr.open_array(folder / NAME, mode="r")
    return lambda site, top, left, size: opened[site, :, top : top + size, left : left + size]


def our_shards(sites: np.ndarray, folder: Path, raw: bool = False) -> Cutter:
    """A store as `phenoscale pack` writes it, in tiles or raw."""
    count, channels, height, width = sites.shape
    array = PackedArray(
        num_sites=count,
        num_channels=channels,
        height_px=height,
        width_px=width,
        sites_per_shard=count,
        tile_px=0 if raw else TILE_PX,
        codec="none" if raw else "blosc",
    )
    (folder / NAME).mkdir()
    (folder / NAME / METADATA).write_bytes(array.metadata({}))
    with (folder / NAME / shard_key(0)).open("wb") as sink:
        write_shard(sink, array, sites)
    return _our_reader(folder, channels)


def _our_reader(folder: Path, channels: int) -> Cutter:
    root, positions = Root.of(folder), list(range(channels))
    return lambda site, top, left, size: read_windows(
        root, NAME, site, positions, [(top, left)], size
    )[0]


def parquet(sites: np.ndarray, folder: Path, tile: int) -> Cutter:
    """A row per tile, a row group per line of tiles, checksums of pages verified."""
    columns = -(-sites.shape[3] // tile)
    path = folder / "tiles.parquet"
    pq.write_table(
        pa.table({"tile": pa.array(_tiles(sites, tile), pa.binary())}),
        path,
        row_group_size=columns,
        compression="none",
        use_dictionary=False,
        write_statistics=False,
        write_page_checksum=True,
    )
    lines = -(-sites.shape[2] // tile)
    opened = pq.ParquetFile(path, memory_map=True, page_checksum_verification=True)

    def rows(site: int, numbers: Sequence[int]) -> Sequence[Any]:
        wanted = sorted({number // columns for number in numbers})
        table = opened.read_row_groups([site * lines + line for line in wanted], use_threads=False)
        column = table["tile"].combine_chunks()
        place = {line: at * columns for at, line in enumerate(wanted)}
        return [column[place[n // columns] + n % columns].as_buffer() for n in numbers]

    return _cutter(sites, tile, rows)


def arrow_ipc(sites: np.ndarray, folder: Path, tile: int) -> Cutter:
    """A record batch per site, a row per tile, mapped into memory; Arrow has no checksums."""
    path = folder / "tiles.arrow"
    schema = pa.schema([pa.field("tile", pa.binary())])
    with pa.ipc.new_file(path, schema) as writer:
        for site in sites:
            tiles = pa.array(_tiles(site[None], tile), pa.binary())
            writer.write_batch(pa.record_batch([tiles], schema=schema))
    opened = pa.ipc.open_file(pa.memory_map(str(path)))

    def rows(site: int, numbers: Sequence[int]) -> Sequence[Any]:
        column = opened.get_batch(site).column(0)
        return [column[number].as_buffer() for number in numbers]

    return _cutter(sites, tile, rows)


def lance_rows(sites: np.ndarray, folder: Path, tile: int) -> Cutter:
    """A row per tile of a Lance dataset."""
    import lance

    table = pa.table({"tile": pa.array(_tiles(sites, tile), pa.large_binary())})
    lance.write_dataset(table, str(folder / "tiles.lance"))
    opened = lance.dataset(str(folder / "tiles.lance"))
    per_site = len(table) // len(sites)

    def rows(site: int, numbers: Sequence[int]) -> Sequence[Any]:
        found = opened.take([site * per_site + number for number in numbers], columns=["tile"])
        return [value.as_buffer() for value in found["tile"]]

    return _cutter(sites, tile, rows)


def _tiles(sites: np.ndarray, tile: int) -> list[bytes]:
    padding = [(0, -side % tile) for side in sites.shape[2:]]
    padded = np.pad(sites, [(0, 0), (0, 0), *padding])
    return [
        encode_tile(site[:, top : top + tile, left : left + tile])
        for site in padded
        for top in range(0, padded.shape[2], tile)
        for left in range(0, padded.shape[3], tile)
    ]


def _cutter(sites: np.ndarray, tile: int, rows: Rows) -> Cutter:
    """Cuts crops from tiles that are rows, numbered line by line."""
    channels, columns = sites.shape[1], -(-sites.shape[3] // tile)
    scratch = np.empty((channels, tile, tile), dtype=np.uint8)

    def cut(site: int, top: int, left: int, size: int) -> np.ndarray:
        cells = [
            (row, column)
            for row in range(top // tile, (top + size - 1) // tile + 1)
            for column in range(left // tile, (left + size - 1) // tile + 1)
        ]
        found = rows(site, [row * columns + column for row, column in cells])
        out = np.empty((channels, size, size), dtype=np.uint8)
        for (row, column), packed in zip(cells, found, strict=True):
            _CODECS.blosc_decode(memoryview(packed), numthreads=1, out=scratch.reshape(-1))
            down, right = row * tile - top, column * tile - left
            out[:, max(down, 0) : down + tile, max(right, 0) : right + tile] = scratch[
                :, max(-down, 0) : size - down, max(-right, 0) : size - right
            ]
        return out

    return cut
