"""Digests of tables: every cell counts, its encoding does not, and the bytes never change."""

from __future__ import annotations

import hashlib
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phenoscale.screens.fingerprint import content_digest

KINDS = {
    "text": (pa.string(), st.none() | st.text(max_size=3)),
    "number": (pa.int32(), st.none() | st.integers(-(2**31), 2**31 - 1)),
    "hash": (pa.uint64(), st.integers(0, 2**64 - 1)),
    "real": (pa.float64(), st.none() | st.floats(allow_nan=False)),
    "truth": (pa.bool_(), st.none() | st.booleans()),
    "texts": (pa.list_(pa.string()), st.lists(st.text(max_size=2), max_size=3)),
    "reals": (pa.list_(pa.float64()), st.lists(st.floats(allow_nan=False), max_size=3)),
}
SCHEMA = pa.schema([(name, kind) for name, (kind, _) in KINDS.items()])
ROWS = st.lists(
    st.fixed_dictionaries({name: cell for name, (_, cell) in KINDS.items()}), max_size=4
)


def table_of(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=SCHEMA)


@given(one=ROWS, two=ROWS)
def test_tables_have_one_digest_exactly_where_they_are_equal(
    one: list[dict[str, Any]], two: list[dict[str, Any]]
):
    assert (content_digest(table_of(one)) == content_digest(table_of(two))) == (one == two)


@given(rows=ROWS.filter(bool), data=st.data())
def test_any_changed_cell_changes_the_digest(rows: list[dict[str, Any]], data: st.DataObject):
    name = data.draw(st.sampled_from(list(KINDS)))
    row = data.draw(st.integers(0, len(rows) - 1))
    value = data.draw(KINDS[name][1].filter(lambda value: value != rows[row][name]))
    changed = [dict(r) for r in rows]
    changed[row][name] = value
    assert content_digest(table_of(changed)) != content_digest(table_of(rows))


@given(rows=ROWS, cut=st.integers(0, 4))
def test_chunks_slices_and_encodings_do_not_count(rows: list[dict[str, Any]], cut: int):
    table = table_of(rows)
    chunked = pa.concat_tables([table.slice(0, cut), table.slice(cut)])
    inside = pa.concat_tables([table, table, table]).combine_chunks().slice(len(rows), len(rows))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=2, compression="zstd")
    stored = pq.read_table(pa.BufferReader(sink.getvalue()))
    for same in (chunked, inside, stored):
        assert content_digest(same) == content_digest(table)


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ({"a": ["AB"], "b": ["C"]}, {"a": ["A"], "b": ["BC"]}),
        ({"a": [None], "b": ["ABC"]}, {"a": [""], "b": ["ABC"]}),
        ({"a": ["AB", ""]}, {"a": ["A", "B"]}),
        ({"a": [["x", "y"], ["z"]]}, {"a": [["x"], ["y", "z"]]}),
        ({"a": [["xy"]]}, {"a": [["x", "y"]]}),
        ({"a": [1, None]}, {"a": [1, 0]}),
        ({"a": ["x"], "b": ["y"]}, {"b": ["y"], "a": ["x"]}),
        ({"a": ["x"]}, {"b": ["x"]}),
        ({"a": ["x"]}, {"a": ["x", ""]}),
    ],
)
def test_cells_cannot_slide_into_one_another(one: dict[str, list], two: dict[str, list]):
    assert content_digest(pa.table(one)) != content_digest(pa.table(two))


def test_minus_zero_is_zero():
    minus, plus = (pa.table({"a": [zero, 1.5]}) for zero in (-0.0, 0.0))
    assert content_digest(minus) == content_digest(plus)


def test_the_hashed_bytes_are_those_written_down():
    """By hand, as the docstring says: Arrow may change, these bytes may not."""
    table = pa.table({"s": ["é", None], "n": pa.array([1, -2], pa.int32()), "l": [["a", "bc"], []]})
    number = lambda *values: b"".join(v.to_bytes(8, "little", signed=True) for v in values)  # noqa: E731
    expected = b"2\n"
    expected += b"s\n" + b"\1\0" + number(2, 0) + "é".encode()
    expected += b"n\n" + b"\1\1" + number(1, -2)
    expected += b"l\n" + b"\1\1" + number(2, 0) + number(1, 2) + b"abc"
    assert content_digest(table) == hashlib.blake2b(expected, digest_size=16).digest()
