"""Tables that people and instruments write (CSV, TSV, also gzipped, or Parquet), all cells as text.

Text, because a plate called 0123 must not become 123; whoever needs a number asks for it.
"""

from __future__ import annotations

import csv
import gzip
import io

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

_DELIMITERS = ",;\t"
_GZIP = b"\x1f\x8b"


def read_table(data: bytes, source: str) -> pa.Table:
    """Reads a table from the bytes of its file.

    Args:
        data: a Parquet file, or text (UTF-8, perhaps gzipped) with a header whose columns are
            parted by commas, semicolons or tabs.
        source: what errors call the file.

    Returns:
        Columns of text if the file is text, empty cells null; the columns of a Parquet file as
        they are.

    Raises:
        ValueError: if the bytes are no such table.
    """
    try:
        if data[:4] == b"PAR1":
            return pq.ParquetFile(io.BytesIO(data)).read()
        text = gzip.decompress(data) if data[:2] == _GZIP else data
        return _read_text(text)
    except (pa.ArrowException, OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(
            f"{source} cannot be read as a table ({error}). A CSV with a header and as many cells "
            "in each row, or a Parquet file, is required."
        ) from error


def text_columns(table: pa.Table, names: tuple[str, ...], source: str) -> pa.Table:
    """The named columns as text, "" for an empty cell.

    Raises:
        ValueError: if a column is missing; lists those that there are.
    """
    if missing := [name for name in names if name not in table.column_names]:
        raise ValueError(
            f"{source} lacks the columns {missing}; it has {table.column_names}. Is it the right "
            "file?"
        )
    return pa.table({name: as_text(table[name]) for name in names})


def as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column as text, "" where it is empty."""
    return pc.fill_null(column.cast(pa.string()), "")


def _read_text(text: bytes) -> pa.Table:
    header = text.partition(b"\n")[0].decode("utf-8-sig")
    delimiter = max(_DELIMITERS, key=header.count)
    names = next(csv.reader([header], delimiter=delimiter), [])
    # One thread, for only then does pyarrow know the number of the row that it cannot split.
    return pacsv.read_csv(
        io.BytesIO(text),
        read_options=pacsv.ReadOptions(use_threads=False),
        parse_options=pacsv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        convert_options=pacsv.ConvertOptions(
            column_types={name.strip("\r"): pa.string() for name in names},
            null_values=[""],
            strings_can_be_null=True,
        ),
    )
