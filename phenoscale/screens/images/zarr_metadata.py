"""Understands an OME-Zarr array: its shape, its axes, how its chunks are stored. Zarr v2 and v3.

Judged here in full before a chunk is given memory: metadata is a text that anybody can write.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from typing import Any

import numpy as np

from phenoscale.screens.errors import DECODE_ERRORS, ImageError, MissingImageError
from phenoscale.screens.images.headers import DTYPES, MAX_CHANNELS, MAX_PIXELS, check_size
from phenoscale.screens.storage import Root

MAX_PLANES = 4096
"""Most time points, and most z planes."""

COMPRESSORS = ("blosc", "gzip", "lz4", "zlib", "zstd")
"""Compressors of chunks that are read."""

_MAX_METADATA_BYTES = 1 << 24
_MAX_CHUNKS = 1 << 16
_OPEN_ARRAYS = 4096
_AXES = "tczyx"

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ZarrArray:
    """What the metadata of an array and its group say."""

    shape: Shape
    """Extent along each of its dimensions."""
    chunk: Shape
    """Shape of a chunk; within a shard, of an inner chunk."""
    shard: Shape | None
    """Shape of a shard; None if every chunk is an object of its own."""
    index_at_end: bool
    """Whether the index of a shard lies behind its chunks."""
    index_checksum: bool
    """Whether that index ends with a CRC-32C."""
    axes: str
    """Letters of its dimensions, in their order: some of tczyx."""
    dtype: np.dtype[Any]
    """As stored, with byte order."""
    fill: int
    """Value of chunks that are not stored."""
    order: tuple[int, ...]
    """Dimensions in the order in which a chunk stores them."""
    compressor: str | None
    """One of COMPRESSORS, or None."""
    checksum: bool
    """Whether a chunk ends with a CRC-32C."""
    prefix: str
    """What the names of chunks begin with."""
    separator: str
    """What parts the numbers in the name of a chunk."""

    def extent(self, axis: str) -> int:
        """Size along an axis; 1 if it is absent."""
        return self.shape[self.axes.index(axis)] if axis in self.axes else 1

    def chunk_extent(self, axis: str) -> int:
        """Size of a chunk along an axis; 1 if it is absent."""
        return self.chunk[self.axes.index(axis)] if axis in self.axes else 1

    def key(self, cell: Shape) -> str:
        """Name of a chunk or shard, relative to the array."""
        return self.prefix + self.separator.join(map(str, cell))


@functools.lru_cache(maxsize=_OPEN_ARRAYS)
def zarr_array(root: Root, path: str) -> ZarrArray:
    """Reads the metadata of an array.

    Raises:
        MissingImageError: if there is no array.
        ImageError: for damaged or absurd metadata, or a codec that is not read.
    """
    name = root.named(path)
    group = path.rpartition("/")[0]
    try:
        try:
            array = _version_2(_json(root, path, ".zarray"))
            attributes = _json(root, group, ".zattrs")
        except MissingImageError:
            array = _version_3(_json(root, path, "zarr.json"))
            attributes = _json(root, group, "zarr.json")["attributes"]
            attributes = attributes.get("ome", attributes)
        axes = _axes(attributes["multiscales"], path.rpartition("/")[2], len(array["shape"]))
        found = ZarrArray(axes=axes, **array)
        _check(found, name)
    except MissingImageError as error:
        raise MissingImageError(
            f"{name} is no OME-Zarr array: {error} Give the path of an array, such as "
            "plate.zarr/A/1/0/0, whose group has multiscales."
        ) from None
    except ImageError:
        raise
    except DECODE_ERRORS as error:
        if isinstance(error, OSError):
            raise
        raise ImageError(
            f"{name} has damaged or unusual Zarr metadata ({type(error).__name__}: {error}). Write "
            "the array again as OME-Zarr."
        ) from error
    return found


def _json(root: Root, folder: str, file: str) -> dict[str, Any]:
    text = root.read(f"{folder}/{file}" if folder else file, 0, _MAX_METADATA_BYTES)
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError(f"{file} is no JSON object")
    return found


def _version_2(meta: dict[str, Any]) -> dict[str, Any]:
    shape = _shape(meta["shape"])
    compressor = (meta["compressor"] or {}).get("id")
    if meta.get("filters"):
        raise ValueError(f"filters {meta['filters']} are not read")
    dimensions = tuple(range(len(shape)))
    return {
        "shape": shape, "chunk": _shape(meta["chunks"]), "shard": None, "index_at_end": True,
        "index_checksum": False, "dtype": np.dtype(str(meta["dtype"])),
        "fill": meta["fill_value"] or 0,
        "order": {"C": dimensions, "F": dimensions[::-1]}[meta["order"]],
        "compressor": _compressor(compressor), "checksum": False, "prefix": "",
        "separator": _separator(meta.get("dimension_separator", ".")),
    }  # fmt: skip


def _version_3(meta: dict[str, Any]) -> dict[str, Any]:
    if meta["node_type"] != "array":
        raise ValueError(f"zarr.json is of a {meta['node_type']}, not of an array")
    grid, keys, codecs = meta["chunk_grid"], meta["chunk_key_encoding"], meta["codecs"]
    if grid["name"] != "regular" or keys["name"] not in ("default", "v2"):
        raise ValueError(f"the chunk grid {grid['name']} or keys {keys['name']} are not read")
    shape, chunk = _shape(meta["shape"]), _shape(grid["configuration"]["chunk_shape"])
    shard: dict[str, Any] = {"shard": None, "index_at_end": True, "index_checksum": False}
    if codecs[0]["name"] == "sharding_indexed":
        inner = codecs[0]["configuration"]
        index_codecs = [codec["name"] for codec in inner["index_codecs"]]
        if len(codecs) > 1 or index_codecs not in (["bytes"], ["bytes", "crc32c"]):
            raise ValueError(f"codecs around shards or their index {index_codecs} are not read")
        shard = {
            "shard": chunk,
            "index_at_end": inner.get("index_location", "end") == "end",
            "index_checksum": len(index_codecs) == 2,
        }
        chunk, codecs = _shape(inner["chunk_shape"]), inner["codecs"]
    default = keys["name"] == "default"
    separator = keys.get("configuration", {}).get("separator", "/" if default else ".")
    return {
        "shape": shape, "chunk": chunk, "fill": meta["fill_value"],
        "prefix": f"c{_separator(separator)}" if default else "",
        "separator": separator,
    } | shard | _codecs(codecs, str(meta["data_type"]), len(shape))  # fmt: skip


def _codecs(codecs: list[dict[str, Any]], data_type: str, dimensions: int) -> dict[str, Any]:
    """Codecs of a chunk: transpose, bytes, a compressor, a checksum, all but bytes optional."""
    rest = [(codec["name"], codec.get("configuration", {})) for codec in codecs]
    order = tuple(range(dimensions))
    if rest[0][0] == "transpose":
        order = tuple(rest.pop(0)[1]["order"])
        if sorted(order) != list(range(dimensions)):
            raise ValueError(f"transpose has the order {order}")
    kind, options = rest.pop(0)
    if kind != "bytes":
        raise ValueError(f"the codec {kind} is not read")
    endian = {"little": "<", "big": ">"}[options.get("endian", "little")]
    if data_type not in DTYPES:
        raise ValueError(f"it has {data_type} pixels; uint8 or uint16 is required")
    dtype = np.dtype(endian + {"uint8": "u1", "uint16": "u2"}[data_type])
    checksum = bool(rest) and rest[-1][0] == "crc32c"
    if checksum:
        rest.pop()
    if len(rest) > 1:
        raise ValueError(f"the codecs {[name for name, _ in rest]} are not read together")
    return {
        "order": order, "dtype": dtype,
        "compressor": _compressor(rest[0][0] if rest else None), "checksum": checksum,
    }  # fmt: skip


def _compressor(name: Any) -> str | None:
    if name is not None and name not in COMPRESSORS:
        raise ValueError(f"the compressor {name} is not read; one of {COMPRESSORS} is required")
    return name


def _separator(text: Any) -> str:
    if text not in (".", "/"):
        raise ValueError(f"the separator of chunks is {text!r}")
    return str(text)


def _shape(numbers: Any) -> Shape:
    if not all(type(n) is int and 0 < n < 2**40 for n in numbers) or not 2 <= len(numbers) <= 5:
        raise ValueError(f"{numbers} is no shape")
    return tuple(numbers)


def _axes(multiscales: list[dict[str, Any]], dataset: str, dimensions: int) -> str:
    """Letters of the dimensions (OME-Zarr 0.1 and 0.2 had five, and no list of axes)."""
    mine = [
        scale
        for scale in multiscales
        if any(str(entry["path"]).strip("/") == dataset for entry in scale["datasets"])
    ]
    if not mine:
        raise ValueError(f"the multiscales of its group have no dataset {dataset!r}")
    axes = mine[0].get("axes", list(_AXES))
    letters = "".join(axis["name"] if isinstance(axis, dict) else axis for axis in axes)
    if (
        len(letters) != dimensions
        or len(set(letters)) != dimensions
        or not {"y", "x"} <= set(letters) <= set(_AXES)
    ):
        raise ValueError(f"its axes {axes} are not some of t, c, z, y, x, one per dimension")
    return letters


def _check(array: ZarrArray, name: str) -> None:
    if array.dtype.name not in DTYPES:
        raise ImageError(
            f"{name} has {array.dtype.name} pixels; uint8 or uint16 is required. Convert the "
            "images first and index the converted ones."
        )
    if type(array.fill) is not int or not 0 <= array.fill <= np.iinfo(array.dtype).max:
        raise ImageError(f"{name} has the fill value {array.fill!r}, which is no pixel.")
    if len(array.chunk) != len(array.shape) or len(array.shard or array.chunk) != len(array.shape):
        raise ImageError(f"{name} has chunks of {array.chunk}, and the shape {array.shape}.")
    check_size(array.extent("y"), array.extent("x"), name)
    chunks = math.prod(-(-array.extent(axis) // array.chunk_extent(axis)) for axis in "yx")
    inner = [s / c for s, c in zip(array.shard or array.chunk, array.chunk, strict=True)]
    if (
        math.prod(array.chunk) > MAX_PIXELS
        or chunks > _MAX_CHUNKS
        or math.prod(inner) > _MAX_CHUNKS
        or any(ratio != int(ratio) for ratio in inner)
        or array.extent("c") > MAX_CHANNELS
        or max(array.extent("t"), array.extent("z")) > MAX_PLANES
    ):
        raise ImageError(
            f"{name} claims the shape {array.shape} in chunks of {array.chunk}, shards of "
            f"{array.shard}; at most {MAX_PIXELS} pixels per chunk, {_MAX_CHUNKS} chunks per plane "
            f"or shard, {MAX_CHANNELS} channels and {MAX_PLANES} planes are read. Write it again."
        )
