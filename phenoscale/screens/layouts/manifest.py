"""The manifest: what a screen's owner writes down, one row per site, as CSV or Parquet.

Every cell is checked here, so that what follows (index, crops, maps) may trust the table. Rows are
numbered in errors as a spreadsheet shows them: the header is row 1, the first site row 2. Columns
beyond those of `MANIFEST_SCHEMA` pass through to the index.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from phenoscale.results import whole_file
from phenoscale.screens.layouts.tables import read_table

NEGATIVE_CONTROL = "negative_control"
"""Class label of every negative control."""
PERTURBATION_TYPES = ("crispr", "orf", "compound", "none", "sirna")
SEPARATOR = "|"
"""Joins paths, and channels, within one CSV cell."""

MANIFEST_SCHEMA = pa.schema(
    [
        pa.field("site_id", pa.string(), nullable=False),
        pa.field("experimental_batch", pa.string(), nullable=False),
        pa.field("plate", pa.string(), nullable=False),
        pa.field("well", pa.string(), nullable=False),
        pa.field("site", pa.int32(), nullable=False),
        pa.field("perturbation", pa.string(), nullable=False),
        pa.field("perturbation_type", pa.string(), nullable=False),
        pa.field("gene", pa.string()),
        pa.field("guide", pa.string()),
        pa.field("compound", pa.string()),
        pa.field("concentration", pa.float64()),
        pa.field("negative_control", pa.bool_(), nullable=False),
        pa.field("cell_type", pa.string()),
        pa.field("paths", pa.list_(pa.string()), nullable=False),
        pa.field("channels", pa.list_(pa.string()), nullable=False),
        pa.field("pixel_size_um", pa.float64()),
    ]
)
"""Columns of a checked manifest; nullable cells may be empty, pixel_size_um may be absent."""

RESERVED = ("height_px", "width_px", "dtype", "channel_set", "well_hash", "label")
"""Columns that the index adds, whose names further columns must not take."""

_OPTIONAL = "pixel_size_um"
_NAMES = ("experimental_batch", "plate", "well")
_INTEGER = r"^-?[0-9]{1,9}$"
_NUMBER = r"^-?[0-9]*\.?[0-9]+([eE][+-]?[0-9]+)?$"
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}
_SHOWN = 3


def read_manifest(path: Path) -> pa.Table:
    """Reads and checks a manifest.

    Args:
        path: a CSV file with a header (paths and channels joined by `|`, empty cells for null), or
            a Parquet file whose lists may be lists or joined text.

    Returns:
        Table as `check_manifest` gives it, rows in the order of the file. Further columns of a CSV
        are text.

    Raises:
        ValueError: if the file is no such table or a cell is wrong; names column and row.
    """
    if not path.is_file():
        raise ValueError(f"The manifest {path} does not exist; give a CSV or Parquet file.")
    return check_manifest(read_table(path.read_bytes(), str(path)), source=str(path))


def check_manifest(table: pa.Table, source: str = "The manifest") -> pa.Table:
    """Checks every cell of a manifest and gives it the exact types of `MANIFEST_SCHEMA`.

    Args:
        table: columns as in `MANIFEST_SCHEMA`, in any order; typed, or text as in the CSV. Further
            columns hold text, whole numbers, floats or booleans.
        source: what errors call the table.

    Returns:
        Columns of `MANIFEST_SCHEMA`, then the further ones (string, int64, double or bool) in
        alphabetical order; empty text has become null.

    Raises:
        ValueError: for missing columns, further ones that the index cannot take, no rows, empty
            required cells, cells of another type, duplicate site_ids, unknown perturbation types,
            controls under another label, "/" in names of batches, plates or wells, or paths that do
            not go with the channels.
    """
    _check_columns(table, source)
    if _OPTIONAL not in table.column_names:
        table = table.append_column(_OPTIONAL, pa.nulls(table.num_rows, pa.float64()))
    if not table.num_rows:
        raise ValueError(f"{source} has no rows; one row per site is required.")
    columns = []
    for field in MANIFEST_SCHEMA:
        column = _typed(table[field.name], field, source)
        if not field.nullable:
            _refuse(column.is_null(), column, field.name, source, "it must not be empty")
        columns.append(column)
    checked = pa.Table.from_arrays(columns, schema=MANIFEST_SCHEMA)
    _check_site_ids(checked, source)
    _check_labels(checked, source)
    _check_files(checked, source)
    for name in sorted(set(table.column_names) - set(MANIFEST_SCHEMA.names)):
        checked = checked.append_column(name, _further(table[name], name, source))
    return checked


def write_manifest(table: pa.Table, path: Path) -> Path:
    """Writes a manifest as CSV, whole or not at all, such that `read_manifest` gives it back.

    Only further columns come back as text, whatever they were.

    Args:
        table: as `check_manifest` takes it.
        path: CSV file to write.

    Raises:
        ValueError: as `check_manifest`, or if a path or channel contains `|`.
    """
    checked = check_manifest(table)
    for name in ("paths", "channels"):
        column = checked[name]
        holds = pc.match_substring(pc.list_flatten(column), SEPARATOR)
        bad = _mark_rows(pc.list_parent_indices(column), holds, len(column))
        _refuse(bad, column, name, "The manifest", f"a CSV cell cannot hold {SEPARATOR!r} in one")
        position = checked.column_names.index(name)
        checked = checked.set_column(position, name, pc.binary_join(column, SEPARATOR))
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as part:
        pacsv.write_csv(checked, part)
    return path


def row_number(position: int) -> int:
    """Number that a spreadsheet gives to the site at `position` (0-based): the header is row 1."""
    return int(position) + 2


def one_array(column: Any) -> pa.Array:
    """One contiguous array of a column, whatever its chunks."""
    if isinstance(column, pa.Array):
        return column
    return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)


def _check_columns(table: pa.Table, source: str) -> None:
    given, required = table.column_names, [n for n in MANIFEST_SCHEMA.names if n != _OPTIONAL]
    missing = [name for name in required if name not in given]
    further = [name for name in given if name not in MANIFEST_SCHEMA.names]
    taken = [name for name in further if not name or name in RESERVED]
    twice = sorted({name for name in given if given.count(name) > 1})
    if missing or taken or twice:
        raise ValueError(
            f"{source} has the wrong columns: missing {missing}, given twice {twice}, with names "
            f"that the index needs or without a name {taken}, further {further}. Required are "
            f"{required}; {_OPTIONAL} and others may be added. Rename or remove columns; those "
            "that do not apply stay as empty cells."
        )


def _typed(column: pa.ChunkedArray, field: pa.Field, source: str) -> pa.Array:
    """Casts one column, from text where it is text, to the type of `field`."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    try:
        if not _is_textual(kind):
            array = one_array(column.cast(field.type))
        else:
            text = one_array(column.cast(pa.string()))
            array = _parsed(pc.if_else(pc.equal(text, ""), None, text), field, source)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ValueError(
            f"{source}, column {field.name}: {column.type} cannot become {field.type} ({error})."
        ) from error
    if pa.types.is_string(field.type):
        array = pc.if_else(pc.equal(array, ""), None, array)
    if pa.types.is_floating(field.type):
        bad = pc.invert(pc.is_finite(array))
        _refuse(bad, array, field.name, source, "a finite number is required")
    return array


def _further(column: pa.ChunkedArray, name: str, source: str) -> pa.Array:
    """A further column as string, int64, double or bool."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if pa.types.is_integer(kind):
        target = pa.int64()
    elif pa.types.is_floating(kind):
        target = pa.float64()
    elif pa.types.is_boolean(kind):
        target = pa.bool_()
    elif _is_textual(kind):
        target = pa.string()
    else:
        raise ValueError(
            f"{source}, column {name}: {column.type} is given; text, whole numbers, floats or "
            "booleans are required in a further column. Turn it into text, or remove it."
        )
    try:
        array = one_array(column.cast(target))
    except pa.ArrowInvalid as error:
        raise ValueError(
            f"{source}, column {name}: {column.type} cannot become {target} ({error})."
        ) from error
    return pc.if_else(pc.equal(array, ""), None, array) if target == pa.string() else array


def _is_textual(kind: pa.DataType) -> bool:
    return (
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
        or pa.types.is_null(kind)
    )


def _parsed(text: pa.Array, field: pa.Field, source: str) -> pa.Array:
    """Turns text into the type of `field`, naming the first row that does not fit."""
    if pa.types.is_list(field.type):
        return pc.split_pattern(text, SEPARATOR).cast(field.type)
    if pa.types.is_boolean(field.type):
        text = pc.utf8_lower(text)
        known = pc.is_in(text, value_set=pa.array([*_BOOLEANS, None]))
        _refuse(pc.invert(known), text, field.name, source, "true or false is required")
        trues = pa.array([word for word, value in _BOOLEANS.items() if value])
        return pc.if_else(pc.is_null(text), None, pc.is_in(text, value_set=trues))
    if pa.types.is_integer(field.type):
        bad = pc.invert(pc.match_substring_regex(text, _INTEGER))
        _refuse(bad, text, field.name, source, "a whole number of at most 9 digits is required")
    if pa.types.is_floating(field.type):
        bad = pc.invert(pc.match_substring_regex(text, _NUMBER))
        _refuse(bad, text, field.name, source, "a number is required")
    return text.cast(field.type)


def _check_site_ids(table: pa.Table, source: str) -> None:
    counts = pc.value_counts(one_array(table["site_id"]))
    repeated = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
    if not len(repeated):
        return
    examples = []
    for site_id in repeated[:_SHOWN].to_pylist():
        rows = np.flatnonzero(pc.equal(table["site_id"], site_id).to_numpy())
        examples.append(f"{site_id!r} in rows {[row_number(row) for row in rows[:_SHOWN]]}")
    raise ValueError(
        f"{source} has {len(repeated)} duplicate site_ids: {'; '.join(examples)}. Each row needs a "
        "site_id of its own, for example plate_well_site."
    )


def _check_labels(table: pa.Table, source: str) -> None:
    for name in _NAMES:
        bad = pc.match_substring(table[name], "/")
        _refuse(bad, table[name], name, source, "'/' separates batch, plate and well; leave it out")
    kinds = table["perturbation_type"]
    unknown = pc.invert(pc.is_in(kinds, value_set=pa.array(PERTURBATION_TYPES)))
    need = f"one of {PERTURBATION_TYPES} is required"
    _refuse(unknown, kinds, "perturbation_type", source, need)
    named = pc.equal(table["perturbation"], NEGATIVE_CONTROL)
    bad = pc.xor(named, table["negative_control"])
    need = (
        f"negative_control must be true exactly where perturbation is {NEGATIVE_CONTROL!r}, so "
        "that all controls are one class; the reagent's name goes into guide or compound"
    )
    _refuse(bad, table["perturbation"], "perturbation", source, need)


def _check_files(table: pa.Table, source: str) -> None:
    for name in ("paths", "channels"):
        column = one_array(table[name])
        items = pc.list_flatten(column)
        empty = pc.fill_null(pc.equal(items, ""), True)
        bad = _mark_rows(pc.list_parent_indices(column), empty, len(column))
        bad = pc.or_(bad, pc.equal(pc.list_value_length(column), 0))
        _refuse(bad, column, name, source, "one or more names, none of them empty, are required")
    joined = one_array(pc.binary_join(table["channels"].cast(pa.list_(pa.string())), "\0"))
    repeating = [c for c in joined.unique().to_pylist() if len(set(c.split("\0"))) <= c.count("\0")]
    bad = pc.is_in(joined, value_set=pa.array(repeating, pa.string()))
    _refuse(bad, table["channels"], "channels", source, "a channel must not stand twice")
    num_paths = pc.list_value_length(table["paths"])
    bad = pc.and_(
        pc.not_equal(num_paths, 1), pc.not_equal(num_paths, pc.list_value_length(table["channels"]))
    )
    need = "one path with all channels, or one path per channel, is required"
    _refuse(bad, table["paths"], "paths", source, need)


def _refuse(bad: Any, column: Any, name: str, source: str, need: str) -> None:
    """Raises for the first row that `bad` (Arrow bool per row, null for no) marks."""
    rows = np.flatnonzero(np.asarray(pc.fill_null(bad, False)))
    if not len(rows):
        return
    value = column[int(rows[0])].as_py()
    more = f" The same holds for {len(rows) - 1} more rows." if len(rows) > 1 else ""
    raise ValueError(
        f"{source}, row {row_number(rows[0])}, column {name}: {value!r} is given; {need}.{more}"
    )


def _mark_rows(parents: Any, items_bad: Any, num_rows: int) -> pa.Array:
    """Marks every row of a list column that has a marked item."""
    bad = np.zeros(num_rows, dtype=bool)
    bad[np.asarray(parents)[np.asarray(items_bad)]] = True
    return pa.array(bad)
