from __future__ import annotations

import gzip
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phenoscale.screens.layouts.manifest import (
    MANIFEST_SCHEMA,
    check_manifest,
    read_manifest,
    write_manifest,
)
from tests.screen_on_disk import CHANNELS, as_table, screen_rows, site_row

HEADER = ",".join(name for name in MANIFEST_SCHEMA.names if name != "pixel_size_um")
CONTROL = "c1,b0,p0,A01,1,negative_control,none,,,,,true,,c1.tif,dna|er"
GENE = "g1,b0,p0,A02,1,TP53,crispr,TP53,TP53-1,,,false,U2OS,g1_dna.tif|g1_er.tif,dna|er"


def csv(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "sites.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def with_cell(line: str, column: str, value: str) -> str:
    cells = line.split(",")
    cells[HEADER.split(",").index(column)] = value
    return ",".join(cells)


def test_csv_cells_get_their_types(tmp_path: Path) -> None:
    compound = (
        "d1,b0,007,A03,3,DMSO-like,compound,,,aspirin,1.5e-3,0,U2OS,d1.tif,dna|er"  # plate 007
    )
    table = read_manifest(csv(tmp_path, HEADER, CONTROL, GENE, compound))
    assert table.schema == MANIFEST_SCHEMA
    control, gene, drug = table.to_pylist()
    assert control["negative_control"] is True and gene["negative_control"] is False
    assert control["gene"] is None and control["pixel_size_um"] is None
    assert gene["paths"] == ["g1_dna.tif", "g1_er.tif"] and gene["channels"] == ["dna", "er"]
    assert drug["plate"] == "007" and drug["site"] == 3 and drug["concentration"] == 0.0015
    assert drug["negative_control"] is False


def test_optional_pixel_size_and_column_order_are_accepted(tmp_path: Path) -> None:
    lines = [f"0.65,{CONTROL}", f",{GENE}"]
    table = read_manifest(csv(tmp_path, f"pixel_size_um,{HEADER}", *lines))
    assert table["pixel_size_um"].to_pylist() == [0.65, None]


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("well", "", "row 3, column well: None is given; it must not be empty"),
        ("paths", "", "row 3, column paths: None is given; it must not be empty"),
        ("site", "1.5", "row 3, column site: '1.5' is given; a whole number"),
        ("site", "99999999999", "row 3, column site: '99999999999' is given; a whole number"),
        ("concentration", "high", "row 3, column concentration: 'high' is given; a number"),
        ("concentration", "1e999", "row 3, column concentration: inf is given; a finite number"),
        ("negative_control", "maybe", "column negative_control: 'maybe' is given; true or false"),
        ("perturbation_type", "rnai", "'rnai' is given; one of ('crispr', 'orf', 'compound'"),
        ("plate", "p/0", "row 3, column plate: 'p/0' is given; '/' separates"),
        ("negative_control", "true", "exactly where perturbation is 'negative_control'"),
        ("perturbation", "negative_control", "exactly where perturbation is 'negative_control'"),
        ("paths", "a.tif||b.tif", "row 3, column paths: ['a.tif', '', 'b.tif'] is given; one or"),
        ("paths", "a.tif|b.tif|c.tif", "one path with all channels, or one path per channel"),
        ("channels", "dna|dna", "row 3, column channels: ['dna', 'dna'] is given; a channel must"),
    ],
)
def test_a_wrong_cell_is_named_with_column_and_row(
    tmp_path: Path, column: str, value: str, message: str
) -> None:
    path = csv(tmp_path, HEADER, CONTROL, with_cell(GENE, column, value))
    with pytest.raises(ValueError) as error:
        read_manifest(path)
    assert message in str(error.value) and str(path) in str(error.value)


def test_further_wrong_rows_are_counted(tmp_path: Path) -> None:
    bad = [with_cell(with_cell(GENE, "site_id", f"g{i}"), "site", "x") for i in range(4)]
    with pytest.raises(ValueError, match="row 3, column site.*The same holds for 3 more rows"):
        read_manifest(csv(tmp_path, HEADER, CONTROL, *bad))


def test_missing_further_and_repeated_columns_stand_in_one_message(tmp_path: Path) -> None:
    header = HEADER.replace("well", "Well").replace("guide", "gene").replace("cell_type", "label")
    with pytest.raises(ValueError) as error:
        read_manifest(csv(tmp_path, header, CONTROL))
    text = str(error.value)
    assert "missing ['well', 'guide', 'cell_type'], given twice ['gene']" in text
    assert "that the index needs or without a name ['label'], further ['Well', 'label']" in text


def test_further_columns_pass_through_with_simple_types(tmp_path: Path) -> None:
    table = as_table(screen_rows(1, 1, 4, 1))
    further = {
        "zeta": pa.array([1, 2, 3, None], pa.int8()),
        "dose_um": pa.array([0.5, 1, 2, 4], pa.float32()),
        "passed": pa.array([True, False, None, True]),
        "operator": pa.array(["a", "", "b", "a"]).dictionary_encode(),
    }
    for name, column in further.items():
        table = table.append_column(name, column)
    checked = check_manifest(table)
    assert checked.column_names == [*MANIFEST_SCHEMA.names, "dose_um", "operator", "passed", "zeta"]
    assert [str(checked.schema.field(n).type) for n in checked.column_names[-4:]] == [
        "double", "string", "bool", "int64",
    ]  # fmt: skip
    assert checked["operator"].to_pylist() == ["a", None, "b", "a"]
    again = read_manifest(write_manifest(table, tmp_path / "m.csv"))
    assert again["zeta"].to_pylist() == ["1", "2", "3", None]
    assert again.select(MANIFEST_SCHEMA.names).equals(checked.select(MANIFEST_SCHEMA.names))


@pytest.mark.parametrize(
    "column", [pa.array([[1]]), pa.array([b"x"]), pa.array([2**63], pa.uint64())]
)
def test_a_further_column_that_is_no_scalar_is_refused(column: pa.Array) -> None:
    table = as_table(screen_rows(1, 1, 1, 1)).append_column("odd", column)
    with pytest.raises(ValueError, match="column odd: .* (is given; text, whole|cannot become)"):
        check_manifest(table)


def test_what_spreadsheets_write_is_read(tmp_path: Path) -> None:
    path = csv(tmp_path, HEADER, CONTROL, GENE)
    expected = read_manifest(path)
    lines = path.read_text().replace(",", ";").replace("\n", "\r\n")
    path.write_bytes(b"\xef\xbb\xbf" + lines.encode())  # as European spreadsheets save a CSV
    assert read_manifest(path).equals(expected)
    path.write_bytes(gzip.compress(path.read_bytes()))
    assert read_manifest(path).equals(expected)


def test_duplicate_site_ids_are_named_with_rows() -> None:
    rows = screen_rows(1, 1, 4, 1)
    rows += [rows[1], rows[1], rows[2]]
    with pytest.raises(ValueError) as error:
        check_manifest(as_table(rows))
    text = str(error.value)
    assert "has 2 duplicate site_ids" in text
    assert "'b0_p0_w01_s0' in rows [3, 6, 7]" in text and "'b0_p0_w02_s0' in rows [4, 8]" in text


def test_what_is_no_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing.csv does not exist"):
        read_manifest(tmp_path / "nothing.csv")
    with pytest.raises(ValueError, match="has no rows; one row per site"):
        read_manifest(csv(tmp_path, HEADER))
    with pytest.raises(ValueError, match="Row #3: Expected 15 columns, got 2"):
        read_manifest(csv(tmp_path, HEADER, CONTROL, "a,b"))
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(ValueError, match="empty.csv cannot be read as a table"):
        read_manifest(tmp_path / "empty.csv")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ValueError, match="broken.parquet cannot be read as a table"):
        read_manifest(tmp_path / "broken.parquet")


def test_csv_and_parquet_give_back_what_was_written(tmp_path: Path) -> None:
    table = as_table(
        [site_row(0, 0, w, 1, compound=f"drug, {w}", concentration=0.1 * w) for w in range(6)]
    )
    assert read_manifest(write_manifest(table, tmp_path / "new" / "m.csv")).equals(table)
    pq.write_table(table, tmp_path / "m.parquet")
    assert read_manifest(tmp_path / "m.parquet").equals(table)


def test_typed_and_joined_parquet_columns_agree(tmp_path: Path) -> None:
    table = as_table(screen_rows(1, 1, 4, 1))
    loose = table.set_column(
        table.column_names.index("channels"), "channels", pa.array(["|".join(CHANNELS)] * 4)
    )
    loose = loose.set_column(4, "site", loose["site"].cast(pa.int64()))
    loose = loose.set_column(3, "well", loose["well"].dictionary_encode())
    pq.write_table(loose, tmp_path / "m.parquet")
    assert read_manifest(tmp_path / "m.parquet").equals(table)
    wrong = table.set_column(4, "site", pa.array([0.5] * 4))
    with pytest.raises(ValueError, match="column site: double cannot become int32"):
        check_manifest(wrong)


def test_a_csv_cell_cannot_hold_the_separator(tmp_path: Path) -> None:
    table = as_table([site_row(0, 0, 0, 0, paths=["a|b.tif"])])
    with pytest.raises(ValueError, match="row 2, column paths.*cannot hold"):
        write_manifest(table, tmp_path / "m.csv")
    assert list(tmp_path.iterdir()) == []


CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\0\r\n/|"), min_size=1)


@settings(deadline=None)
@given(st.lists(st.tuples(CELLS, CELLS, CELLS, st.none() | CELLS), min_size=1, max_size=5))
def test_any_text_survives_the_csv(cells: list[tuple[Any, ...]]) -> None:
    rows = [
        site_row(0, 0, 1, i, site_id=f"{i}{name}", well=well, paths=[path], cell_type=cell_type)
        for i, (name, well, path, cell_type) in enumerate(cells)
    ]
    table = as_table(rows)
    with tempfile.TemporaryDirectory() as folder:
        assert read_manifest(write_manifest(table, Path(folder) / "m.csv")).equals(table)
