"""Image files that lie in the cells of a Parquet table, as data sets on the Hugging Face hub do.

Parquet has no way to a single row, so rows are taken from batches of bounded size, and the batch at
hand serves the rows that follow: the channels of a site lie beside each other.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import os
import threading
import weakref
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from phenoscale.screens.errors import DECODE_ERRORS, ImageError, RootVanishedError
from phenoscale.screens.images.image_file import MemoryFile
from phenoscale.screens.storage import Root

_OPEN_TABLES = 16
_BATCH_BYTES = 1 << 25
_BUFFER_BYTES = 1 << 20
_MAX_CELL_BYTES = 1 << 29


def read_cell(root: Root, path: str, row: int, column: str | None) -> MemoryFile:
    """Gives the image file in one cell.

    Args:
        root: what `path` is relative to.
        path: of the Parquet file.
        row: number of the row, from 0.
        column: binary column, or struct with a field `bytes`; None for the only one.

    Raises:
        OSError: if a local file cannot be opened.
        ImageError: for a damaged table, or a row or column that it does not have.
    """
    name = f"{root.named(path)}?row={row}"
    try:
        data = _table(root, path).cell(row, column, name)
    except (ImageError, RootVanishedError, FileNotFoundError):
        raise
    except DECODE_ERRORS as error:
        _table.cache_clear()
        raise ImageError(f"{name} cannot be read ({error}). Write the table again.") from error
    return MemoryFile(data, name)


class _Table:
    """An opened table and the batch of rows that was read last."""

    def __init__(self, root: Root, path: str) -> None:
        if root.folder is None:
            source = root.open_remote(path)
        else:
            source = pa.OSFile(os.fspath(root.local_path(path)))
        weakref.finalize(self, source.close)
        # Without a buffer size Arrow would read a whole column of a row group at once.
        self._file = pq.ParquetFile(source, buffer_size=_BUFFER_BYTES, pre_buffer=False)
        metadata = self._file.metadata
        sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        self._ends = list(itertools.accumulate(sizes))
        self._lock = threading.Lock()
        self._column = ""
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._batch: pa.RecordBatch | None = None
        self._group = -1
        self._begin = self._end = 0

    def cell(self, row: int, column: str | None, name: str) -> bytes:
        """The bytes in a cell."""
        if row >= (self._ends[-1] if self._ends else 0):
            raise ImageError(
                f"{name} does not exist: the table has {self._ends[-1] if self._ends else 0} rows. "
                "Correct the path."
            )
        with self._lock:
            column = self._binary_column(column, name)
            self._seek(row, column, name)
            assert self._batch is not None
            values = self._batch.column(0)
            if pa.types.is_struct(values.type):
                values = values.field("bytes")
            value = values[row - self._begin]
            if not value.is_valid:
                raise ImageError(f"{name} is empty; an image file is required in every row.")
            return value.as_buffer().to_pybytes()

    def _binary_column(self, column: str | None, name: str) -> str:
        schema = self._file.schema_arrow
        able = [field.name for field in schema if _holds_bytes(field.type)]
        if column is not None and column in able:
            return column
        if column is not None or len(able) != 1:
            raise ImageError(
                f"{name}: {'no column ' + repr(column) if column else 'several or no columns'} "
                f"can hold images; binary columns are {able}. Name one of them with &column=NAME."
            )
        return able[0]

    def _seek(self, row: int, column: str, name: str) -> None:
        """Moves to the batch that holds a row, backwards only by starting its row group again."""
        group = bisect.bisect_right(self._ends, row)
        if (group, column) != (self._group, self._column) or row < self._begin:
            self._group, self._column = group, column
            self._begin = self._end = self._ends[group - 1] if group else 0
            self._batches = self._file.iter_batches(
                batch_size=self._batch_rows(group, column, name), row_groups=[group],
                columns=[column], use_threads=False,
            )  # fmt: skip
        while row >= self._end:
            self._batch = next(self._batches)
            self._begin, self._end = self._end, self._end + self._batch.num_rows

    def _batch_rows(self, group: int, column: str, name: str) -> int:
        metadata = self._file.metadata.row_group(group)
        chunks = [metadata.column(i) for i in range(metadata.num_columns)]
        size = sum(
            chunk.total_uncompressed_size
            for chunk in chunks
            if chunk.path_in_schema.split(".")[0] == column
        )
        mean = size // max(1, metadata.num_rows) + 1
        if mean > _MAX_CELL_BYTES:
            raise ImageError(
                f"{name} lies in a row group of {size} bytes and {metadata.num_rows} rows; at most "
                f"{_MAX_CELL_BYTES} bytes per image are read. Write the table again."
            )
        return max(1, min(metadata.num_rows, _BATCH_BYTES // mean))


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _holds_bytes(kind.field(index).type)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


@functools.lru_cache(maxsize=_OPEN_TABLES)
def _table(root: Root, path: str) -> _Table:
    return _Table(root, path)
