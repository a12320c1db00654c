"""Reads sites and windows of a packed store: fetch the tiles that a window meets, then cut it out.

The two halves are separate: `fetch` waits for disk or network and returns compressed bytes, which
may travel; `cut` checks, decodes and needs a processor only. What is opened is kept for the life of
the process, in bounded number: a packed store never changes.

Legend: C channels, H and W pixels, t side of a tile, s side of a crop, k crops of one site.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import mmap
import os
import weakref
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from phenoscale.screens.errors import DECODE_ERRORS, ImageError
from phenoscale.screens.images.headers import ImageHeader
from phenoscale.screens.packed.shards import (
    CRC_BYTES,
    DECODERS,
    METADATA,
    REMEDY,
    Decoder,
    Entries,
    PackedArray,
    Pixels,
    is_whole,
    parse_index,
    shard_key,
)
from phenoscale.screens.storage import Root

_OPEN_SHARDS = 64
_OPEN_ARRAYS = 1024
# Where each read is a request, bytes between two tiles cost less than a second request.
_REMOTE_GAP_BYTES = 2**20

Corners = npt.NDArray[np.integer] | Sequence[tuple[int, int]]
Cell = tuple[int, int]


@dataclasses.dataclass(frozen=True, slots=True)
class PackedTiles:
    """Compressed tiles of one site, as they lie in the store; a plain value that can be sent."""

    array: PackedArray
    """Geometry of the site's array."""
    where: str
    """What errors call the site: its array, number and shard."""
    tiles: list[bytes]
    """Bytes of each tile with its checksum, in the order of the store; empty for one that is
    absent, whose pixels are 0."""


def read_header(root: Root, name: str, site: int) -> ImageHeader:
    """Size and type of a site, from its array's metadata alone.

    Args:
        root: what `name` is relative to.
        name: path of the packed array.
        site: its number along the array's first axis.

    Raises:
        ImageError: for a missing or damaged array, or a number that it does not have.
    """
    array = _array_with(root, name, site)
    return ImageHeader(
        num_channels=array.num_channels,
        height_px=array.height_px,
        width_px=array.width_px,
        dtype="uint8",
        offset=None,
    )


def is_mapped(root: Root, name: str) -> bool:
    """Whether windows are copied out of mapped files: raw pixels in a local store."""
    return root.folder is not None and _array(root, name).is_raw


def read_site(root: Root, name: str, site: int, positions: Sequence[int]) -> Pixels:
    """Reads the channels at `positions` of one site.

    Args:
        root: what `name` is relative to.
        name: path of the packed array.
        site: its number along the array's first axis.
        positions: channels to return, in the wanted order.

    Returns:
        uint8 (len(positions), H, W), owned by the caller.

    Raises:
        ImageError: for a missing, truncated or damaged array or shard; names shard and site.
    """
    array = _array_with(root, name, site)
    shape = array.height_px, array.width_px
    out = np.empty((len(positions), *shape), dtype=np.uint8)
    _read(root, name, site, positions, [(0, 0)], shape, [out])
    return out


def read_windows(
    root: Root,
    name: str,
    site: int,
    positions: Sequence[int],
    corners: Corners,
    size_px: int,
) -> Pixels:
    """Cuts k square crops from one site; each tile that any of them meets is decoded once.

    Args:
        root: what `name` is relative to.
        name: path of the packed array.
        site: its number along the array's first axis.
        positions: channels to return, in the wanted order.
        corners: int (k, 2), top row and left column of each crop.
        size_px: side of a crop.

    Returns:
        uint8 (k, len(positions), s, s), owned by the caller.

    Raises:
        ImageError: as `read_site`.
        ValueError: if a crop does not lie within the site.
    """
    out = np.empty((len(corners), len(positions), size_px, size_px), dtype=np.uint8)
    cut_windows(root, name, site, positions, corners, size_px, out)
    return out


def cut_windows(
    root: Root,
    name: str,
    site: int,
    positions: Sequence[int],
    corners: Corners,
    size_px: int,
    out: Sequence[Pixels] | Pixels,
) -> None:
    """As `read_windows`, into memory of the caller's: k arrays, uint8 (len(positions), s, s)."""
    _read(root, name, site, positions, _plain(corners), (size_px, size_px), out)


def fetch(root: Root, name: str, site: int, corners: Corners, size_px: int) -> PackedTiles:
    """Reads the compressed tiles that any of k square crops meets; arguments as `read_windows`."""
    array = _array_with(root, name, site)
    return _fetch(root, name, site, array, _meeting(array, _plain(corners), (size_px, size_px)))


def cut(
    tiles: PackedTiles,
    positions: Sequence[int],
    corners: Corners,
    size_px: int,
    out: Sequence[Pixels] | Pixels,
) -> None:
    """Checks and decodes what `fetch` returned for the same corners, into memory of the caller's.

    Args:
        tiles: from `fetch`.
        positions: channels to return, in the wanted order.
        corners: int (k, 2), top row and left column of each crop.
        size_px: side of a crop.
        out: k arrays, uint8 (len(positions), s, s), to cut into.

    Raises:
        ImageError: for damaged tiles; names shard and site.
    """
    plain, shape = _plain(corners), (size_px, size_px)
    _cut(tiles, positions, plain, shape, _meeting(tiles.array, plain, shape), out)


def _read(
    root: Root,
    name: str,
    site: int,
    positions: Sequence[int],
    corners: list[Cell],
    shape: tuple[int, int],
    out: Sequence[Pixels] | Pixels,
) -> None:
    array = _array_with(root, name, site)
    meeting = _meeting(array, corners, shape)
    # A window of a raw site is copied out of the file's pages, without a checksum, which would
    # have to be taken over the whole site; whole sites are read the other way.
    if is_mapped(root, name) and shape != array.tile_shape[1:]:
        pixels = _raw_site(root, name, site, array)
        if list(positions) != list(range(array.num_channels)):
            pixels = pixels[list(positions)]
        for window, (top, left) in zip(out, corners, strict=True):
            window[...] = pixels[:, top : top + shape[0], left : left + shape[1]]
        return
    _cut(_fetch(root, name, site, array, meeting), positions, corners, shape, meeting, out)


def _raw_site(root: Root, name: str, site: int, array: PackedArray) -> Pixels:
    """A site of a raw array of a local store, as a view of its shard's pages: uint8 (C, H, W)."""
    number, at = divmod(site, array.sites_per_shard)
    shard = _shard(root, name, number)
    offset, length = shard.entries[at, 0, 0].tolist()
    if offset < 0:
        return np.zeros(array.tile_shape, np.uint8)
    if length != math.prod(array.tile_shape) + CRC_BYTES:
        raise ImageError(
            f"site {site} of {name} (shard {shard_key(number)}) has {length} bytes, "
            f"{math.prod(array.tile_shape) + CRC_BYTES} are required. {REMEDY}"
        )
    return shard.pages[offset : offset + length - CRC_BYTES].reshape(array.tile_shape)


def _plain(corners: Corners) -> list[Cell]:
    pairs: list[Cell] = corners.tolist() if isinstance(corners, np.ndarray) else list(corners)
    return pairs


def _meeting(
    array: PackedArray, corners: list[Cell], shape: tuple[int, int]
) -> dict[Cell, list[int]]:
    """The tiles that windows meet, in the order of the store, with the windows of each."""
    height, width = shape
    size = array.side_px
    meeting: dict[Cell, list[int]] = {}
    for number, (top, left) in enumerate(corners):
        if (
            min(top, left) < 0
            or min(shape) < 1
            or top + height > array.height_px
            or left + width > array.width_px
        ):
            raise ValueError(
                f"The crop of {height} x {width} pixels at row {top}, column {left} does not lie "
                f"within the site, which has {array.height_px} x {array.width_px} pixels. Choose "
                "a smaller crop."
            )
        columns = range(left // size, (left + width - 1) // size + 1)
        for row in range(top // size, (top + height - 1) // size + 1):
            for column in columns:
                meeting.setdefault((row, column), []).append(number)
    return dict(sorted(meeting.items())) if len(corners) > 1 else meeting


def _fetch(
    root: Root, name: str, site: int, array: PackedArray, meeting: dict[Cell, list[int]]
) -> PackedTiles:
    number, at = divmod(site, array.sites_per_shard)
    shard = _shard(root, name, number)
    rows, columns = (sorted({cell[axis] for cell in meeting}) for axis in (0, 1))
    # Only the rows and columns that are met become Python's numbers.
    part = shard.entries[at, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].tolist()
    ranges = [part[row - rows[0]][column - columns[0]] for row, column in meeting]
    where = f"site {site} of {name} (shard {shard_key(number)})"
    return PackedTiles(array, where, shard.read(ranges, where))


def _cut(
    fetched: PackedTiles,
    positions: Sequence[int],
    corners: list[Cell],
    shape: tuple[int, int],
    meeting: dict[Cell, list[int]],
    out: Sequence[Pixels] | Pixels,
) -> None:
    array, (height, width), size = fetched.array, shape, fetched.array.side_px
    # One tile's memory for all of them, so that it stays in the processor's cache.
    scratch = np.empty(array.tile_shape, dtype=np.uint8)
    flat = scratch.reshape(-1)
    chosen = list(positions)
    every = chosen == list(range(array.num_channels))
    decode = DECODERS[array.codec]
    for ((row, column), numbers), tile in zip(meeting.items(), fetched.tiles, strict=True):
        if is_whole(tile):
            _decode(decode, tile, flat, fetched.where)
        elif tile:
            raise ImageError(
                f"{fetched.where} is damaged: a tile does not match its checksum. {REMEDY}"
            )
        else:
            flat[:] = 0
        source = scratch if every else scratch[chosen]
        for number in numbers:
            top, left = corners[number]
            # Where the tile lies in the crop; it may begin before it and end beyond it.
            down, right = row * size - top, column * size - left
            out[number][:, max(down, 0) : down + size, max(right, 0) : right + size] = source[
                :, max(-down, 0) : height - down, max(-right, 0) : width - right
            ]


def _decode(decode: Decoder, tile: bytes, out: Pixels, where: str) -> None:
    try:
        decoded = decode(tile, out=out)
    except DECODE_ERRORS as error:
        raise ImageError(f"{where} cannot be decoded ({error}). {REMEDY}") from error
    if decoded.size != out.size:
        raise ImageError(
            f"{where} has a tile of {decoded.size} pixels, {out.size} are required. {REMEDY}"
        )


class _Shard:
    """An opened shard and its index."""

    def __init__(self, root: Root, name: str, number: int, array: PackedArray) -> None:
        self._root = root
        self._path = f"{name}/{shard_key(number)}"
        self._handle: int | None = None
        if root.folder is None:
            size = root.size(self._path)
        else:
            self._handle = root.patiently(self._path, self._opened)
            weakref.finalize(self, os.close, self._handle)
            size = os.fstat(self._handle).st_size
        begin = max(0, size - array.index_bytes)
        tail = self._bytes(begin, size - begin)
        self.entries: Entries = parse_index(tail, array, size, self._path)

    @functools.cached_property
    def pages(self) -> Pixels:
        """The bytes of a local shard, read by the system when they are touched."""
        assert self._handle is not None
        return np.frombuffer(mmap.mmap(self._handle, 0, prot=mmap.PROT_READ), np.uint8)

    def _opened(self) -> int:
        return os.open(self._root.local_path(self._path), os.O_RDONLY)

    def read(self, ranges: list[list[int]], where: str) -> list[bytes]:
        """The bytes of each (offset, length); empty for a tile that is absent."""
        handle = self._handle
        if handle is None:
            return self._requested(ranges, where)
        try:
            found = self._tiles(handle, ranges)
        except OSError:
            # Only now patiently: the hot path does without.
            found = self._root.patiently(self._path, lambda: self._tiles(handle, ranges))
        if any(len(tile) != n for tile, (_, n) in zip(found, ranges, strict=True) if n > 0):
            raise ImageError(f"{where} became shorter while it was read. {REMEDY}")
        return found

    @staticmethod
    def _tiles(handle: int, ranges: list[list[int]]) -> list[bytes]:
        # A system call for each tile costs less than cutting a larger read into pieces.
        return [os.pread(handle, n, at) if n > 0 else b"" for at, n in ranges]

    def _requested(self, ranges: list[list[int]], where: str) -> list[bytes]:
        """As `read`, with one request for tiles that lie close together."""
        found, first = [b""] * len(ranges), 0
        present = [number for number, (_, length) in enumerate(ranges) if length > 0]
        while first < len(present):
            begin, length = ranges[present[first]]
            end, last = begin + length, first + 1
            while last < len(present):
                offset, length = ranges[present[last]]
                if not 0 <= offset - end <= _REMOTE_GAP_BYTES:
                    break
                end, last = offset + length, last + 1
            data = self._bytes(begin, end - begin)
            if len(data) != end - begin:
                raise ImageError(f"{where} became shorter while it was read. {REMEDY}")
            for number in present[first:last]:
                offset, length = ranges[number]
                found[number] = data[offset - begin : offset - begin + length]
            first = last
        return found

    def _bytes(self, offset: int, length: int) -> bytes:
        handle = self._handle
        if handle is None:
            return self._root.read(self._path, offset, length)
        return self._root.patiently(self._path, lambda: os.pread(handle, length, offset))


def _array_with(root: Root, name: str, site: int) -> PackedArray:
    array = _array(root, name)
    if not 0 <= site < array.num_sites:
        raise ImageError(
            f"{name} has no site {site}; it has {array.num_sites}, numbered from 0. Use the index "
            "that was written with it."
        )
    return array


@functools.lru_cache(maxsize=_OPEN_ARRAYS)
def _array(root: Root, name: str) -> PackedArray:
    return PackedArray.parse(root.read(f"{name}/{METADATA}"), name)


@functools.lru_cache(maxsize=_OPEN_SHARDS)
def _shard(root: Root, name: str, number: int) -> _Shard:
    return _Shard(root, name, number, _array(root, name))
