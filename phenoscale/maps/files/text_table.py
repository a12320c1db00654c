"""Tables of text (CSV, TSV, also gzipped) with their cells as they are written."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

TEXT_ENDINGS = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".txt.gz")
_DELIMITERS = ",;\t"
_EMPTY = ("", "NA", "N/A", "<NA>", "null", "None")
"""What people write for a number that is missing; NaN is a number to Arrow."""


def read_text(path: Path) -> pa.Table:
    """A text table with a header, all cells text, empty ones null.

    Text, because a plate called 0123 must not become 123, and because Arrow would settle the type
    of a column by its first block.

    Raises:
        ValueError: if the file is no such table.
    """
    opened = gzip.open if path.name.endswith(".gz") else open
    try:
        with opened(path, "rt", encoding="utf-8-sig") as file:
            header = file.readline()
        parse = pacsv.ParseOptions(
            delimiter=max(_DELIMITERS, key=header.count), newlines_in_values=True
        )
        names = pacsv.read_csv(pa.py_buffer(header.encode()), parse_options=parse).column_names
        convert = pacsv.ConvertOptions(
            column_types={name: pa.string() for name in names},
            null_values=[""],
            strings_can_be_null=True,
        )
        with pa.input_stream(path, compression="detect") as content:
            return pacsv.read_csv(content, parse_options=parse, convert_options=convert)
    except (pa.ArrowException, OSError, EOFError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no table of text ({error}); give a CSV or TSV.") from error


def numbers(column: pa.ChunkedArray) -> np.ndarray:
    """A column of numbers or text as float32 (if it is) or float64, NaN where it is empty.

    Raises:
        ValueError: if it holds something else (ArrowInvalid is a ValueError).
    """
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        text = pc.utf8_trim_whitespace(column)
        empty = pc.is_in(text, value_set=pa.array(_EMPTY, text.type))
        column = pc.if_else(empty, pa.scalar(None, text.type), text).cast(pa.float64())
    elif not (pa.types.is_floating(column.type) or pa.types.is_integer(column.type)):
        raise ValueError(f"{column.type} is no number")
    elif column.type != pa.float32():
        column = column.cast(pa.float64())
    values: np.ndarray = column.to_numpy()
    return values
