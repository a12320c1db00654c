"""One packed array: its geometry, its metadata, and the shards that its sites lie in.

A packed array is a Zarr v3 array of uint8 (sites, C, H, W), so any reader of that format opens it.
A shard holds whole sites. A tile (an inner chunk of Zarr) is all channels of a square of one site,
compressed, or in a raw array of the whole site as it is; its CRC-32C follows it. The index at a
shard's end says where each tile lies, and ends in a CRC-32C of its own. `docs/packed_store.md` has
the figures behind these choices.

Legend: C channels, H and W pixels, t side of a tile.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, BinaryIO, Protocol, Self

import google_crc32c
import imagecodecs
import numpy as np
import numpy.typing as npt

from phenoscale.screens.errors import ImageError
from phenoscale.screens.images.headers import MAX_CHANNELS, MAX_PIXELS

TILE_PX = 64
"""Side of a tile of the stores that we write."""
COMPRESSION: dict[str, Any] = {
    "typesize": 1,
    "cname": "lz4",
    "clevel": 9,
    "shuffle": "bitshuffle",
    "blocksize": 0,
}
"""Blosc's settings of the stores that we write."""
METADATA = "zarr.json"
"""Name of Zarr's metadata file, in a store's folder and in each array's."""

_CODECS: Any = imagecodecs  # its annotations do not know of arrays as `out`
CRC_BYTES = 4
"""Bytes of the checksum behind a tile, and behind a shard's index."""
_CRC_RESIDUE = 0x48674BC7
_ENTRY_BYTES = 16  # offset and length of a tile, uint64 each
_ABSENT = -1  # 2**64 - 1 as int64: a tile that was not written, all fill value
_MAX_TILE_PX = 2048
_MAX_INDEX_BYTES = 2**27
_MAX_METADATA_BYTES = 2**20
_CODEC_SLACK = 1024  # bytes by which a codec may exceed what it could not compress

Pixels = npt.NDArray[np.uint8]
Entries = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackedArray:
    """Geometry of one packed array."""

    num_sites: int
    """Sites along the first axis."""
    num_channels: int
    """Channels of every site."""
    height_px: int
    """Rows of every channel."""
    width_px: int
    """Columns of every channel."""
    sites_per_shard: int
    """Sites of a shard; the last one may hold fewer."""
    tile_px: int = TILE_PX
    """Side of a tile; those at the lower and right edge reach beyond the site, padded with 0. Of
    a raw array 0: its tiles are whole sites."""
    codec: str = "blosc"
    """Zarr's name of the tiles' compression, one of `DECODERS`."""

    @property
    def is_raw(self) -> bool:
        """Whether sites lie in their shards as they are, so that a window is a view of memory."""
        return self.tile_px == 0

    @functools.cached_property
    def side_px(self) -> int:
        """Distance between neighbouring tiles; of a raw array more than any site has."""
        return self.tile_px or max(self.height_px, self.width_px)

    @functools.cached_property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tiles."""
        return math.ceil(self.height_px / self.side_px), math.ceil(self.width_px / self.side_px)

    @property
    def tile_shape(self) -> tuple[int, int, int]:
        """(C, t, t); of a raw array (C, H, W)."""
        if self.is_raw:
            return self.num_channels, self.height_px, self.width_px
        return self.num_channels, self.tile_px, self.tile_px

    @property
    def index_bytes(self) -> int:
        """Bytes of a shard's index with its checksum."""
        return self.sites_per_shard * math.prod(self.grid) * _ENTRY_BYTES + CRC_BYTES

    @property
    def num_shards(self) -> int:
        """Shards that the sites fill."""
        return math.ceil(self.num_sites / self.sites_per_shard)

    def sites_of(self, shard: int) -> range:
        """Sites of a shard."""
        first = shard * self.sites_per_shard
        return range(first, min(first + self.sites_per_shard, self.num_sites))

    def metadata(self, attributes: Mapping[str, Any]) -> bytes:
        """The array's `zarr.json`, with our settings of compression."""
        bytes_codec: dict[str, Any] = {"name": "bytes", "configuration": {"endian": "little"}}
        checksum = {"name": "crc32c"}
        compression = [] if self.is_raw else [{"name": "blosc", "configuration": COMPRESSION}]
        rows, columns = (n * t for n, t in zip(self.grid, self.tile_shape[1:], strict=True))
        sharding = {
            "chunk_shape": [1, *self.tile_shape],
            "codecs": [{"name": "bytes"}, *compression, checksum],
            "index_codecs": [bytes_codec, checksum],
            "index_location": "end",
        }
        shard = [self.sites_per_shard, self.num_channels, rows, columns]
        return _json(
            {
                "zarr_format": 3,
                "node_type": "array",
                "shape": [self.num_sites, self.num_channels, self.height_px, self.width_px],
                "data_type": "uint8",
                "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shard}},
                "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
                "fill_value": 0,
                "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
                "attributes": dict(attributes),
                "dimension_names": ["site", "channel", "y", "x"],
            }
        )

    @classmethod
    def parse(cls, text: bytes, name: str) -> Self:
        """Reads an array's `zarr.json`.

        Args:
            text: the file's bytes.
            name: what errors call the array.

        Raises:
            ImageError: if it is no packed array: other axes, chunks or codecs than `metadata`
                writes, or sizes beyond reason.
        """
        try:
            array = cls._parsed(text)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise ImageError(
                f"{name}/{METADATA} does not describe a packed array ({error}). Give a store that "
                "`phenoscale pack` wrote."
            ) from error
        if not (
            1 <= array.num_channels <= MAX_CHANNELS
            and 1 <= array.height_px
            and 1 <= array.width_px
            and array.height_px * array.width_px <= MAX_PIXELS
            and (1 <= array.tile_px <= _MAX_TILE_PX or (array.is_raw and array.codec == "none"))
            and 0 <= array.num_sites
            and 1 <= array.sites_per_shard
            and array.index_bytes <= _MAX_INDEX_BYTES
        ):
            raise ImageError(
                f"{name}/{METADATA} claims {array}; sizes of at least 1, at most {MAX_CHANNELS} "
                f"channels, {MAX_PIXELS} pixels, tiles of {_MAX_TILE_PX} px and "
                f"{_MAX_INDEX_BYTES} bytes of index are read. Pack the screen again."
            )
        return array

    @classmethod
    def _parsed(cls, text: bytes) -> Self:
        if len(text) > _MAX_METADATA_BYTES:
            raise ValueError(f"{len(text)} bytes, at most {_MAX_METADATA_BYTES} are read")
        given = json.loads(text)
        (sharding,) = given["codecs"]
        inner = sharding["configuration"]
        first, *between, last = (codec["name"] for codec in inner["codecs"])
        compression = "+".join(between) or "none"
        sites, channels, height, width = given["shape"]
        per_shard, *shard_shape = given["chunk_grid"]["configuration"]["chunk_shape"]
        one, tile_channels, tile, tile_columns = inner["chunk_shape"]
        numbers = [sites, channels, height, width, per_shard, *shard_shape, tile]
        if any(type(number) is not int for number in numbers):
            raise ValueError(f"sizes {numbers} are not whole numbers")
        raw = compression == "none" and (tile, tile_columns) == (height, width)
        array = cls(
            num_sites=sites,
            num_channels=channels,
            height_px=height,
            width_px=width,
            sites_per_shard=per_shard,
            tile_px=0 if raw else max(tile, 1),
            codec=compression,
        )
        required = {
            "zarr_format": (given["zarr_format"], 3),
            "node_type": (given["node_type"], "array"),
            "data_type": (given["data_type"], "uint8"),
            "fill_value": (given["fill_value"], 0),
            "chunk_grid": (given["chunk_grid"]["name"], "regular"),
            "chunk_key_encoding": (
                given["chunk_key_encoding"],
                {"name": "default", "configuration": {"separator": "."}},
            ),
            "codecs": (sharding["name"], "sharding_indexed"),
            "codecs of a tile": ([first, last], ["bytes", "crc32c"]),
            "compression": (compression in DECODERS, True),
            "index_codecs": ([c["name"] for c in inner["index_codecs"]], ["bytes", "crc32c"]),
            "index_location": (inner.get("index_location", "end"), "end"),
            "tile": ([one, tile_channels, tile, tile_columns], [1, *array.tile_shape]),
            "shard": (
                shard_shape,
                [channels, *(n * t for n, t in zip(array.grid, array.tile_shape[1:], strict=True))],
            ),
        }
        for key, (value, wanted) in required.items():
            if value != wanted:
                raise ValueError(f"{key} is {value!r}, {wanted!r} is required")
        return array


def shard_key(shard: int) -> str:
    """File name of a shard in its array's folder."""
    return f"c.{shard}.0.0.0"


def group_metadata(attributes: Mapping[str, Any]) -> bytes:
    """The `zarr.json` of a group, which holds the arrays."""
    return _json({"zarr_format": 3, "node_type": "group", "attributes": dict(attributes)})


def write_shard(sink: BinaryIO, array: PackedArray, images: Iterable[Pixels | None]) -> int:
    """Writes the sites of one shard, one after another, then the shard's index.

    Args:
        sink: where to write; only its `write` is called.
        array: the array that the shard belongs to.
        images: uint8 (C, H, W) each, at most `sites_per_shard`; None leaves a site out: it reads
            as 0 and `check_shard` tells that it is absent.

    Returns:
        Bytes written.
    """
    rows, columns = array.grid
    entries = np.full((array.sites_per_shard, rows, columns, 2), _ABSENT, dtype=np.int64)
    at = 0
    for site, image in enumerate(images):
        if image is None:
            continue
        for (row, column), tile in _encoded(array, image):
            sink.write(tile)
            entries[site, row, column] = at, len(tile)
            at += len(tile)
    index = entries.astype("<i8").tobytes()
    sink.write(index + _checksum(index))
    return at + array.index_bytes


def _encoded(array: PackedArray, image: Pixels) -> Iterator[tuple[tuple[int, int], bytes]]:
    """The tiles of a site with their checksums, by row and column."""
    if array.is_raw:
        pixels = np.ascontiguousarray(image).tobytes()
        yield (0, 0), pixels + _checksum(pixels)
        return
    rows, columns = array.grid
    size = array.tile_px
    padded = np.zeros((array.num_channels, rows * size, columns * size), dtype=np.uint8)
    padded[:, : array.height_px, : array.width_px] = image
    for row in range(rows):
        band = padded[:, row * size : (row + 1) * size]
        for column in range(columns):
            yield (row, column), encode_tile(band[:, :, column * size : (column + 1) * size])


def encode_tile(tile: Pixels) -> bytes:
    """Compresses a tile, uint8 (C, t, t), and appends its checksum."""
    packed: bytes = _CODECS.blosc_encode(
        tile.tobytes(),
        level=COMPRESSION["clevel"],
        compressor=COMPRESSION["cname"],
        shuffle=COMPRESSION["shuffle"],
        typesize=COMPRESSION["typesize"],
        numthreads=1,
    )
    return packed + _checksum(packed)


def is_whole(tile: bytes) -> bool:
    """Whether the bytes of a tile match the checksum that they end in."""
    # The CRC of anything followed by its own CRC is this constant: no slice, no comparison of two.
    return bool(google_crc32c.value(tile) == _CRC_RESIDUE)


def parse_index(tail: bytes, array: PackedArray, shard_bytes: int, name: str) -> Entries:
    """Reads a shard's index and makes sure that every tile lies within the shard.

    Args:
        tail: the last `array.index_bytes` of the shard, or less if it is shorter.
        array: the array that the shard belongs to.
        shard_bytes: size of the whole shard.
        name: what errors call the shard.

    Returns:
        int64 (sites_per_shard, rows, columns, 2): offset and length of each tile, -1 if absent.

    Raises:
        ImageError: if the index is truncated, fails its checksum or points outside the shard.
    """
    body = tail[:-CRC_BYTES]
    if len(tail) != array.index_bytes or not is_whole(tail):
        raise ImageError(
            f"{name} is truncated or damaged: its index does not match its checksum "
            f"({shard_bytes} bytes). {REMEDY}"
        )
    entries = np.frombuffer(body, dtype="<i8").reshape(array.sites_per_shard, *array.grid, 2)
    offset, length = entries[..., 0], entries[..., 1]
    most = math.prod(array.tile_shape) + _CODEC_SLACK
    absent = (offset == _ABSENT) & (length == _ABSENT)
    inside = (length > CRC_BYTES) & (length <= most) & (offset >= 0)
    # A length is small here, so the difference cannot overflow.
    inside &= offset <= shard_bytes - array.index_bytes - np.where(inside, length, 0)
    if not (absent | inside).all():
        raise ImageError(f"{name} has an index that points outside of it. {REMEDY}")
    return entries.astype(np.int64)


def check_shard(data: bytes, array: PackedArray, shard: int, name: str) -> npt.NDArray[np.bool_]:
    """Verifies every checksum of a shard, without decoding.

    Args:
        data: the whole shard.
        array: the array that the shard belongs to.
        shard: its number.
        name: what errors call it.

    Returns:
        bool (sites of the shard,): whether the site is present.

    Raises:
        ImageError: if the index or a tile is damaged, a site is present in part only, or there are
            more sites than the array says.
    """
    entries = parse_index(data[-array.index_bytes :], array, len(data), name)
    tiles = entries.reshape(array.sites_per_shard, -1, 2)
    present: npt.NDArray[np.bool_] = (tiles[..., 0] != _ABSENT).all(axis=1)
    some = (tiles[..., 0] != _ABSENT).any(axis=1)
    count = len(array.sites_of(shard))
    if (some != present).any() or some[count:].any():
        raise ImageError(
            f"{name} holds {int(some.sum())} sites, some of them in part; {count} whole ones are "
            f"required. {REMEDY}"
        )
    for site in np.flatnonzero(present):
        for offset, length in tiles[site].tolist():
            if not is_whole(data[offset : offset + length]):
                raise ImageError(
                    f"{name} is damaged: site {array.sites_of(shard)[int(site)]} does not match "
                    f"its checksum. {REMEDY}"
                )
    return present[:count]


REMEDY = "Run `phenoscale pack` again: it writes damaged shards anew."


def _zstd(tile: bytes, *, out: Pixels) -> Pixels:
    decoded: Pixels = _CODECS.zstd_decode(tile[:-CRC_BYTES], out=out)
    return decoded


def _none(tile: bytes, *, out: Pixels) -> Pixels:
    decoded = np.frombuffer(tile, dtype=np.uint8)[:-CRC_BYTES]
    out[: decoded.size] = decoded
    return decoded


class Decoder(Protocol):
    """Decompresses the bytes of a tile, checksum included, into flat memory for its pixels."""

    def __call__(self, tile: bytes, /, *, out: Pixels) -> Pixels:
        """Returns what was decoded, which is of another size where the tile is not as it should."""


DECODERS: dict[str, Decoder] = {
    # Blosc's header says where it ends: the checksum behind it needs no cutting off.
    "blosc": functools.partial(_CODECS.blosc_decode, numthreads=1),
    "zstd": _zstd,
    "none": _none,
}
"""By Zarr's name of the compression."""


def _checksum(data: bytes) -> bytes:
    crc: int = google_crc32c.value(data)
    return crc.to_bytes(CRC_BYTES, "little")


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, indent=2).encode() + b"\n"
