"""Reads windows from an OME-Zarr array: only the chunks that they meet, each once.

Legend: k windows, n channels, h and w pixels of a window; `out` is (k, n, h, w).
"""

from __future__ import annotations

import functools
import itertools
import math
import struct
from collections.abc import Callable, Sequence
from typing import Any, Literal

import google_crc32c
import imagecodecs
import numpy as np
import numpy.typing as npt

from phenoscale.screens.errors import DECODE_ERRORS, ImageError, MissingImageError
from phenoscale.screens.images.headers import ImageHeader
from phenoscale.screens.images.zarr_metadata import Shape, ZarrArray, zarr_array
from phenoscale.screens.storage import Root

Pixels = npt.NDArray[np.generic]
Corners = Sequence[tuple[int, int]]
Plane = int | Literal["max"] | None

_OPEN_SHARDS = 256
_ABSENT = 2**64 - 1


def _lz4(data: bytes, out: Any) -> Any:
    return imagecodecs.lz4_decode(data, header=True, out=out)


def _blosc(data: bytes, out: Any) -> Any:
    # Blosc trusts the size in its header, and would read behind the end of a truncated chunk.
    if len(data) < 16 or struct.unpack_from("<I", data, 12) != (len(data),):
        raise ValueError("its header names another size")
    return imagecodecs.blosc_decode(data, out=out)


# Each heeds the size of `out`, so that a chunk which decodes to more is an error.
_DECODERS: dict[str, Callable[..., Any]] = {
    "blosc": _blosc,
    "gzip": imagecodecs.gzip_decode,
    "lz4": _lz4,
    "zlib": imagecodecs.deflate_decode,
    "zstd": imagecodecs.zstd_decode,
}


def read_zarr_header(root: Root, path: str, t: int | None, z: Plane) -> ImageHeader:
    """Reads the header of one time point and plane (or projection) of an array.

    Raises:
        ImageError: for damaged or absurd metadata, or a time point or plane that does not exist.
    """
    array = zarr_array(root, path)
    _chosen(array, "t", t, root.named(path))
    _chosen(array, "z", z, root.named(path))
    return ImageHeader(
        num_channels=array.extent("c"), height_px=array.extent("y"), width_px=array.extent("x"),
        dtype=array.dtype.name, offset=None,
    )  # fmt: skip


def read_zarr(
    root: Root,
    path: str,
    t: int | None,
    z: Plane,
    positions: Sequence[int],
    corners: Corners,
    out: Pixels,
) -> None:
    """Reads windows into `out`, which has the array's type; chunks that are not stored are fill.

    Raises:
        ImageError: as `read_zarr_header`, or for a damaged chunk.
    """
    array = zarr_array(root, path)
    (time,) = _chosen(array, "t", t, root.named(path))
    planes = _chosen(array, "z", z, root.named(path))
    per = {axis: array.chunk_extent(axis) for axis in "tczyx"}
    scratch = np.empty(math.prod(array.chunk), dtype=array.dtype)
    channels: dict[int, list[tuple[int, int]]] = {}
    for channel, position in enumerate(positions):
        channels.setdefault(position // per["c"], []).append((channel, position % per["c"]))
    cells = _meeting(per["y"], per["x"], corners, out.shape[2:])
    deep = range(planes[0] // per["z"], planes[-1] // per["z"] + 1)
    for in_z, in_c, (row, column) in itertools.product(deep, channels, cells):
        cell = {"t": time // per["t"], "c": in_c, "z": in_z, "y": row, "x": column}
        block = _chunk(root, path, array, tuple(cell[axis] for axis in array.axes), scratch)
        first, last = max(planes[0] - in_z * per["z"], 0), planes[-1] - in_z * per["z"] + 1
        stack = _canonical(block, array)[time % per["t"], :, first:last]
        top, left = row * per["y"], column * per["x"]
        for number in cells[row, column]:
            y, x = corners[number]
            y0, x0 = max(y, top), max(x, left)
            y1, x1 = min(y + out.shape[2], top + per["y"]), min(x + out.shape[3], left + per["x"])
            for channel, sample in channels[in_c]:
                target = out[number, channel, y0 - y : y1 - y, x0 - x : x1 - x]
                part = stack[sample, :, y0 - top : y1 - top, x0 - left : x1 - left]
                found = part[0] if len(part) == 1 else part.max(axis=0)
                if in_z == deep[0]:
                    target[...] = found
                else:
                    np.maximum(target, found, out=target)


def _chosen(array: ZarrArray, axis: str, index: Plane, name: str) -> range:
    extent = array.extent(axis)
    if index == "max":
        return range(extent)
    if index is None and extent > 1:
        raise ImageError(
            f"{name} has {extent} planes along {axis}; name one in the path with ?{axis}=N"
            f"{', or z=max for the maximum' if axis == 'z' else ''}."
        )
    index = index or 0
    if index >= extent:
        raise ImageError(f"{name} has {extent} planes along {axis}; {axis}={index} does not exist.")
    return range(index, index + 1)


def _meeting(
    down: int, across: int, corners: Corners, shape: Sequence[int]
) -> dict[tuple[int, int], list[int]]:
    """The chunks that windows meet, with the windows of each."""
    cells: dict[tuple[int, int], list[int]] = {}
    for number, (top, left) in enumerate(corners):
        for row in range(top // down, (top + shape[0] - 1) // down + 1):
            for column in range(left // across, (left + shape[1] - 1) // across + 1):
                cells.setdefault((row, column), []).append(number)
    return cells


def _canonical(block: Pixels, array: ZarrArray) -> Pixels:
    """A chunk with the axes t, c, z, y, x."""
    present = [axis for axis in "tczyx" if axis in array.axes]
    block = block.transpose([array.axes.index(axis) for axis in present])
    return block[tuple(slice(None) if axis in array.axes else None for axis in "tczyx")]


def _chunk(root: Root, path: str, array: ZarrArray, cell: Shape, scratch: Pixels) -> Pixels:
    """Decodes one chunk; the result may lie in `scratch`."""
    name = f"{root.named(path)} (chunk {'.'.join(map(str, cell))})"
    data = _stored(root, path, array, cell)
    if data is None:
        return np.full(array.chunk, array.fill, dtype=array.dtype)
    try:
        if array.checksum:
            payload = _without_checksum(data)
            if payload is None:
                raise ImageError(f"{name} does not match its checksum. Write the array again.")
            data = payload
        if array.compressor is None:
            flat: Pixels = np.frombuffer(data, dtype=np.uint8)
        else:
            flat = _DECODERS[array.compressor](data, out=scratch.view(np.uint8))
    except ImageError:
        raise
    except DECODE_ERRORS as error:
        raise ImageError(f"{name} cannot be decoded ({error}). Write the array again.") from error
    if flat.nbytes != scratch.nbytes:
        raise ImageError(
            f"{name} holds {flat.nbytes} bytes, {scratch.nbytes} are required. Write it again."
        )
    stored = flat.view(array.dtype).reshape([array.chunk[dimension] for dimension in array.order])
    return stored.transpose(np.argsort(array.order))


def _stored(root: Root, path: str, array: ZarrArray, cell: Shape) -> bytes | None:
    """The stored bytes of a chunk, of its own or within a shard; None if it is not stored."""
    try:
        if array.shard is None:
            return root.read(f"{path}/{array.key(cell)}")
        per = [s // c for s, c in zip(array.shard, array.chunk, strict=True)]
        key = f"{path}/{array.key(tuple(i // n for i, n in zip(cell, per, strict=True)))}"
        index = _shard_index(root, key, array)
        offset, length = index[tuple(i % n for i, n in zip(cell, per, strict=True))].tolist()
        if offset == _ABSENT and length == _ABSENT:
            return None
        data = root.read(key, offset, length) if max(offset, length) < 2**48 else b""
    except MissingImageError:
        return None
    if len(data) != length:
        raise ImageError(
            f"{root.named(key)} is truncated or damaged: a chunk of {length} bytes at byte "
            f"{offset} lies outside of it. Write the array again."
        )
    return data


def _without_checksum(data: bytes) -> bytes | None:
    """What lies before a matching CRC-32C, or None."""
    payload, checksum = data[:-4], data[-4:]
    return payload if google_crc32c.value(payload).to_bytes(4, "little") == checksum else None


@functools.lru_cache(maxsize=_OPEN_SHARDS)
def _shard_index(root: Root, key: str, array: ZarrArray) -> npt.NDArray[np.uint64]:
    """Offset and length of each chunk of a shard."""
    assert array.shard is not None
    per = [s // c for s, c in zip(array.shard, array.chunk, strict=True)]
    length = 16 * math.prod(per) + 4 * array.index_checksum
    begin = max(0, root.size(key) - length) if array.index_at_end else 0
    data: bytes | None = root.read(key, begin, length)
    if data is not None and len(data) == length and array.index_checksum:
        data = _without_checksum(data)
    if data is None or len(data) != 16 * math.prod(per):
        raise ImageError(
            f"{root.named(key)} is truncated or damaged: the index of the shard is not whole. "
            "Write the array again."
        )
    return np.frombuffer(data, dtype="<u8").reshape(*per, 2)
