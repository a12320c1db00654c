"""List columns of Parquet files as arrays, a batch of rows at a time.

A million rows of 384 float32 values take their 1.5 GB and one batch beside them: no Python list and
no float64 copy is ever made.

Shapes: n rows of all files, d values of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

_BATCH_ROWS = 2**12
"""Arrow takes about five times the values of a batch to decode it."""


def list_columns(schema: pa.Schema) -> list[str]:
    """Names of the columns that hold lists of numbers."""
    return [field.name for field in schema if _is_vector(field.type)]


def read_list_column(files: Sequence[Path], name: str) -> np.ndarray:
    """One list column of several files, in their order.

    Args:
        files: Parquet files.
        name: the column; lists of fixed or variable type, all of the same length.

    Returns:
        (n, d) float32 if all files hold float32, else float64; an empty value is NaN.

    Raises:
        ValueError: if a file lacks the column, there are no rows, or rows are empty or differ in
            length.
    """
    # Read ahead, as is the default, Arrow holds the file's whole column until the last batch.
    opened = [pq.ParquetFile(file, pre_buffer=False) for file in files]
    single = True
    for file, path in zip(opened, files, strict=True):
        if name not in list_columns(file.schema_arrow):
            raise ValueError(f"{path} has no list column {name}; the other parts have it.")
        single &= file.schema_arrow.field(name).type.value_type == pa.float32()
    num_rows = sum(file.metadata.num_rows for file in opened)
    vectors = np.empty((0, 0))
    end = 0
    for file, path in zip(opened, files, strict=True):
        for batch in file.iter_batches(_BATCH_ROWS, columns=[name]):
            column = batch.column(0)
            width = _width(column, f"{path}, column {name}")
            if not end:
                vectors = np.empty((num_rows, width), np.float32 if single else np.float64)
            elif width != vectors.shape[1]:
                raise ValueError(
                    f"{path}, column {name}: rows of {width} values follow rows of "
                    f"{vectors.shape[1]}; one encoder gives one width."
                )
            start, end = end, end + len(column)
            values = column.flatten().to_numpy(zero_copy_only=False)
            vectors[start:end] = values.reshape(len(column), width)
    if not end:
        raise ValueError(f"{files[0]}: the column {name} has no rows; at least one is required.")
    return vectors


def _is_vector(kind: pa.DataType) -> bool:
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if not (lists or pa.types.is_fixed_size_list(kind)):
        return False
    return bool(pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type))


def _width(column: pa.Array, where: str) -> int:
    """Length that all lists of a batch have."""
    lengths = pc.min_max(pc.list_value_length(column)).as_py()
    if column.null_count or lengths["min"] != lengths["max"]:
        raise ValueError(
            f"{where}: {column.null_count} rows are empty and the others have {lengths['min']} to "
            f"{lengths['max']} values; every row needs the same number."
        )
    return int(lengths["max"])
