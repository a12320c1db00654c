"""Digests of table content, independent of how a file encodes it."""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from phenoscale.screens.layouts.manifest import one_array

DIGEST_BYTES = 16


def content_digest(table: pa.Table) -> bytes:
    """Hashes every cell of a table, rows and columns in their order.

    The hashed bytes are written down here, not left to Arrow's serialisation, so that they outlive
    its versions: the number of rows, then for each column its name and one byte of validity a row,
    then for numbers little-endian values, for text the lengths (int64) and the UTF-8 bytes, for
    lists the lengths and then their items as text or float64. Null counts as 0 or "", so that only
    validity tells them apart.

    Args:
        table: columns of bool, integer, floating, string, or list of string or floating.

    Returns:
        16 bytes of blake2b.
    """
    digest = hashlib.blake2b(f"{table.num_rows}\n".encode(), digest_size=DIGEST_BYTES)
    for name in table.column_names:
        digest.update(f"{name}\n".encode())
        _add(digest, one_array(table[name]))
    return digest.digest()


def _add(digest: hashlib.blake2b, column: pa.Array) -> None:
    digest.update(np.asarray(column.is_valid()).astype(np.uint8).data)
    if pa.types.is_list(column.type):
        digest.update(_int64(pc.list_value_length(column)))
        column = pc.list_flatten(column)
    if pa.types.is_string(column.type):
        column = pc.fill_null(column, "")
        digest.update(_int64(pc.binary_length(column)))
        _, offsets, data = column.buffers()
        if data is not None and len(column):
            ends = np.frombuffer(offsets, np.int32)[column.offset : column.offset + len(column) + 1]
            digest.update(memoryview(data)[ends[0] : ends[-1]])
    elif pa.types.is_floating(column.type):
        # Adding 0 turns -0.0 into 0.0, which equals it.
        digest.update(
            (np.asarray(pc.fill_null(column.cast(pa.float64()), 0)) + 0).astype("<f8").data
        )
    elif pa.types.is_uint64(column.type):
        digest.update(np.asarray(pc.fill_null(column, 0)).astype("<u8").data)
    else:
        digest.update(_int64(column.cast(pa.int64())))


def _int64(column: pa.Array) -> memoryview:
    return np.ascontiguousarray(np.asarray(pc.fill_null(column, 0)).astype("<i8")).data
