"""The fingerprint of an index: a hash of its cells, independent of how a file encodes them."""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_BLOCK_ROWS = 65_536


def content_fingerprint(table: pa.Table, version: int) -> str:
    """Hashes every cell of a table, rows and columns in their order.

    The hashed bytes are written down here, not left to Arrow's serialisation, so that they outlive
    its versions: a head line, then for each block of 65,536 rows and each column its name and one
    byte of validity a row, then for numbers little-endian values, for text the lengths (int64) and
    the UTF-8 bytes, for lists the lengths and then their items as text. Null counts as 0 or "", so
    that only validity tells them apart.

    Args:
        table: columns of bool, integer, floating, string or list of string.
        version: of the format; tables of two versions never agree.

    Returns:
        sha256 in hexadecimal.
    """
    digest = hashlib.sha256(f"phenoscale index {version} {table.num_rows}\n".encode())
    for begin in range(0, table.num_rows, _BLOCK_ROWS):
        block = table.slice(begin, _BLOCK_ROWS).combine_chunks()
        for name in block.column_names:
            digest.update(f"{name}\n".encode())
            digest.update(_column_bytes(block[name].combine_chunks()))
    return digest.hexdigest()


def _column_bytes(column: pa.Array) -> bytes:
    parts = [np.asarray(column.is_valid()).astype(np.uint8).tobytes()]
    if pa.types.is_list(column.type):
        parts.append(_length_bytes(pc.list_value_length(column)))
        column = pc.list_flatten(column)
    if pa.types.is_string(column.type):
        column = pc.fill_null(column, "")
        parts.append(_length_bytes(pc.binary_length(column)))
        whole = pc.binary_join(pa.ListArray.from_arrays([0, len(column)], column), "")
        parts.append(whole[0].as_py().encode())
    else:
        wide = pa.float64() if pa.types.is_floating(column.type) else pa.int64()
        values = np.asarray(pc.fill_null(column.cast(wide), 0))
        # Adding 0 turns -0.0 into 0.0, which equals it.
        parts.append((values + 0).astype(values.dtype.newbyteorder("<")).tobytes())
    return b"".join(parts)


def _length_bytes(lengths: pa.Array) -> bytes:
    return np.asarray(pc.fill_null(lengths, 0)).astype("<i8").tobytes()
