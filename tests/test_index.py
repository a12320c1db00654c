from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phenoscale.screens.fingerprint import content_fingerprint
from phenoscale.screens.index import INDEX_SCHEMA, INDEX_VERSION, ScreenIndex, build_index
from phenoscale.screens.readers import read_site
from tests.screen_on_disk import CHANNELS, as_table, pixels, screen_rows, site_row, write_images


def index_in_memory(rows: list[dict[str, Any]], order: np.ndarray | None = None) -> ScreenIndex:
    """An index of images that do not exist, for tests of what reads no images."""
    sizes = {"height_px": 12, "width_px": 10, "dtype": "uint8", "pixel_size_um": None}
    rows = sorted(
        (row | sizes for row in rows),
        key=lambda r: (r["experimental_batch"], r["plate"], r["well"], r["site"], r["site_id"]),
    )
    table = pa.Table.from_pylist(rows, schema=INDEX_SCHEMA)
    fingerprint = content_fingerprint(table, INDEX_VERSION)
    return ScreenIndex(table=table, root=Path("."), fingerprint=fingerprint, path=Path("i.parquet"))


@pytest.fixture
def screen(tmp_path: Path) -> tuple[Path, list[dict[str, Any]]]:
    rows = screen_rows()
    write_images(tmp_path / "screen", rows)
    return tmp_path / "screen", rows


def rewrite(path: Path, table: pa.Table, **facts: Any) -> None:
    """Writes other content, or other facts, under an index's metadata."""
    old = json.loads(pq.read_schema(path).metadata[b"phenoscale"])
    metadata = {b"phenoscale": json.dumps(old | facts).encode()}
    pq.write_table(table.replace_schema_metadata(metadata), path)


def test_build_and_open_agree(screen: tuple[Path, list[dict[str, Any]]]) -> None:
    root, rows = screen
    seen: list[tuple[int, int]] = []
    built = build_index(
        as_table(rows), root, root / "i.parquet", progress=lambda *done: seen.append(done)
    )
    opened = ScreenIndex.open(root / "i.parquet")
    assert opened.table.equals(built.table) and opened.table.schema.equals(INDEX_SCHEMA)
    assert (opened.root, opened.fingerprint) == (built.root, built.fingerprint)
    assert opened.num_sites == len(rows) == 64 and opened.channels == tuple(CHANNELS)
    assert seen[-1] == (64, 64) and [done for done, _ in seen] == sorted({d for d, _ in seen})
    first = opened.table.slice(0, 1).to_pylist()[0]
    assert (first["height_px"], first["width_px"], first["dtype"]) == (12, 10, "uint8")
    np.testing.assert_array_equal(
        read_site(opened.root, first["paths"], first["channels"], opened.channels), pixels(0)
    )
    assert sorted(os.listdir(root)) == ["i.parquet", "images"]
    again = pickle.loads(pickle.dumps(opened))
    assert again.fingerprint == opened.fingerprint
    np.testing.assert_array_equal(again.rows(0.5), opened.rows(0.5))


def test_a_screen_moves_with_its_index(
    screen: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    root, rows = screen
    inside = build_index(as_table(rows), root, root / "index" / "i.parquet")
    outside = build_index(as_table(rows), root, tmp_path / "elsewhere" / "i.parquet")
    above = build_index(as_table(rows), root, tmp_path / "i.parquet")
    assert inside.fingerprint == outside.fingerprint == above.fingerprint
    assert ScreenIndex.open(outside.path).root == root.resolve()
    assert ScreenIndex.open(above.path).root == root.resolve()
    shutil.move(root, tmp_path / "moved")
    moved = ScreenIndex.open(tmp_path / "moved" / "index" / "i.parquet")
    assert moved.root == (tmp_path / "moved").resolve()
    assert ScreenIndex.open(outside.path, root=moved.root).root == moved.root
    assert moved.fingerprint == inside.fingerprint


def test_fingerprint_ignores_row_order_and_encoding(
    screen: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    root, rows = screen
    index = build_index(as_table(rows), root, tmp_path / "a.parquet")
    shuffled = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    other = build_index(as_table(shuffled), root, tmp_path / "b.parquet")
    assert other.fingerprint == index.fingerprint and other.table.equals(index.table)
    # The same rows, reordered, in other row groups and another compression, under the same facts.
    metadata = pq.read_schema(tmp_path / "a.parquet").metadata
    pq.write_table(
        index.table.take(list(range(63, -1, -1))).replace_schema_metadata(metadata),
        tmp_path / "a.parquet",
        row_group_size=7,
        compression="none",
    )
    assert ScreenIndex.open(tmp_path / "a.parquet").table.equals(index.table)


def test_fingerprint_is_the_recorded_one() -> None:
    """Golden value: studies are compared by it, so it may change only with INDEX_VERSION."""
    index = index_in_memory(screen_rows(1, 1, 4, 1))
    assert index.fingerprint == ("00844c570ac518aa82148764e483ef23130b8f4c14f5979028e1d0b4bb89e805")


def changed(value: Any, kind: pa.DataType) -> list[Any]:
    if pa.types.is_list(kind):
        joined = ["".join(value)] if len(value) > 1 else [value[0][:3], value[0][3:]]
        return [[*value, "x"], [*value[:-1], value[-1] + "x"], joined]
    if pa.types.is_boolean(kind):
        return [not value]
    if pa.types.is_string(kind):
        return [(value or "") + "x", ""] if value is None else [value + "x", value.upper() + "y"]
    return [1 if value is None else value + 1]


@pytest.mark.parametrize("name", INDEX_SCHEMA.names)
def test_fingerprint_changes_with_any_cell(
    name: str, screen: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    root, rows = screen
    index = build_index(as_table(rows), root, tmp_path / "i.parquet")
    position = index.table.column_names.index(name)
    field = INDEX_SCHEMA.field(name)
    for row in (0, 37, 63):
        values = index.table[name].to_pylist()
        for value in changed(values[row], field.type):
            values[row] = value
            table = index.table.set_column(position, field, pa.array(values, field.type))
            assert content_fingerprint(table, INDEX_VERSION) != index.fingerprint
            rewrite(tmp_path / "i.parquet", table)
            with pytest.raises(ValueError, match="has changed since it was built.*build it again"):
                ScreenIndex.open(tmp_path / "i.parquet")
    assert content_fingerprint(index.table, INDEX_VERSION + 1) != index.fingerprint


def test_text_cannot_slide_between_cells() -> None:
    one = index_in_memory([site_row(0, 0, 1, 0, gene="AB", guide="C")])
    two = index_in_memory([site_row(0, 0, 1, 0, gene="A", guide="BC")])
    null = index_in_memory([site_row(0, 0, 1, 0, gene=None, guide="ABC")])
    empty = index_in_memory([site_row(0, 0, 1, 0, gene="", guide="ABC")])
    assert len({i.fingerprint for i in (one, two, null, empty)}) == 4


def test_open_refuses_what_is_no_index(
    screen: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    root, rows = screen
    path = tmp_path / "i.parquet"
    table = build_index(as_table(rows), root, path).table
    rewrite(path, table, version=99)
    with pytest.raises(ValueError, match=r"version 99; this phenoscale reads version 1. Build it"):
        ScreenIndex.open(path)
    renamed = table.rename_columns([n.replace("well", "Well") for n in table.column_names])
    rewrite(path, renamed, version=INDEX_VERSION)
    with pytest.raises(ValueError, match=r"missing \['well'\], extra \['Well'\]"):
        ScreenIndex.open(path)
    rewrite(path, table.set_column(4, "site", table["site"].cast(pa.int64())))
    with pytest.raises(ValueError, match="site is int64, not int32"):
        ScreenIndex.open(path)
    for metadata in ({}, {b"phenoscale": b"[1]"}, {b"phenoscale": b'{"version": 1}'}):
        pq.write_table(table.replace_schema_metadata(metadata), path)
        with pytest.raises(ValueError, match="not an index of phenoscale"):
            ScreenIndex.open(path)
    path.write_bytes(b"PAR1 and then nothing")
    with pytest.raises(ValueError, match="cannot be read as an index"):
        ScreenIndex.open(path)
    with pytest.raises(ValueError, match="There is no index .*none.parquet; build one"):
        ScreenIndex.open(tmp_path / "none.parquet")


def test_bad_images_are_named_counted_and_nothing_is_written(
    screen: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    root, rows = screen
    out = tmp_path / "new" / "i.parquet"
    path = root / rows[9]["paths"][0]
    whole = path.read_bytes()
    path.write_bytes(whole[:200])
    with pytest.raises(ValueError) as error:
        build_index(as_table(rows), root, out, source="sites.csv")
    text = str(error.value)
    assert text.startswith(f"sites.csv, row 11, site '{rows[9]['site_id']}': {path} is truncated")
    assert "more sites" not in text and text.endswith("No index was written.")
    (root / rows[20]["paths"][0]).unlink()
    (root / rows[30]["paths"][0]).write_bytes(b"")
    with pytest.raises(ValueError, match=r"row 11.* 2 more sites have bad images\. No index"):
        build_index(as_table(rows), root, out)
    path.write_bytes(whole)
    with pytest.raises(ValueError, match=f"row 22, site .*{rows[20]['paths'][0]} does not exist"):
        build_index(as_table(rows), root, out)
    rows[3]["paths"] = ["../screen/" + rows[3]["paths"][0]]
    with pytest.raises(ValueError, match="row 5, site .* is refused: a path must be relative"):
        build_index(as_table(rows), root, out)
    assert not out.parent.exists()


def test_build_checks_the_manifest_and_the_root(
    screen: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    root, rows = screen
    out = tmp_path / "i.parquet"
    with pytest.raises(ValueError, match="has 1 duplicate site_ids: 'b0_p0_w00_s0' in rows"):
        build_index(as_table([*rows, rows[0]]), root, out)
    with pytest.raises(ValueError, match="root .*nowhere is not a folder"):
        build_index(as_table(rows), tmp_path / "nowhere", out)
    rows = [r for r in rows if not (r["negative_control"] and r["experimental_batch"] == "b1")]
    with pytest.raises(ValueError, match=r"no negative controls in 1 of 2 experimental .*\['b1'\]"):
        build_index(as_table(rows), root, out)
    assert not out.exists()
    assert build_index(as_table(rows), root, out, require_controls=False).num_sites == len(rows)


def test_a_failed_write_leaves_the_old_index(
    screen: tuple[Path, list[dict[str, Any]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, rows = screen
    out = tmp_path / "out" / "i.parquet"
    old = build_index(as_table(rows), root, out).fingerprint

    def full(table: pa.Table, path: Path, **options: Any) -> None:
        Path(path).write_bytes(b"half an index")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(OSError, match="could not be written .*No space left.*nothing was left"):
        build_index(as_table(rows[:8]), root, out)
    assert os.listdir(out.parent) == ["i.parquet"]
    assert ScreenIndex.open(out).fingerprint == old


def wells_of(index: ScreenIndex, rows: np.ndarray) -> set[tuple[str, str, str]]:
    table = index.table.take(rows).select(["experimental_batch", "plate", "well"])
    return {tuple(row.values()) for row in table.to_pylist()}


FRACTION = st.floats(0.1, 1.0)
LAYOUT = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(5, 30), st.integers(1, 3))


@settings(max_examples=60, deadline=None)
@given(layout=LAYOUT, one=FRACTION, two=FRACTION, data=st.data())
def test_subsets_nest_keep_wells_whole_and_avoid_what_is_held_out(
    layout: tuple[int, int, int, int], one: float, two: float, data: st.DataObject
) -> None:
    batches, plates, wells, sites = layout
    index = index_in_memory(screen_rows(*layout))
    names = [f"b{b}/p{p}" for b in range(batches) for p in range(plates)]
    if batches > 1:
        names += [f"b{b}" for b in range(batches)]
    held_out = tuple(data.draw(st.lists(st.sampled_from(names), unique=True, max_size=2)))
    out = index.held_out_rows(held_out)
    assert (np.diff(out) > 0).all() and out.dtype == np.int64
    for row in index.table.take(out).to_pylist():
        batch = row["experimental_batch"]
        assert batch in held_out or f"{batch}/{row['plate']}" in held_out
    num_wells = batches * plates * wells - len(wells_of(index, out))
    if num_wells == 0:
        with pytest.raises(ValueError, match="is no well. Hold out less"):
            index.rows(1.0, held_out)
        return
    small, large = index.rows(min(one, two), held_out), index.rows(max(one, two), held_out)
    whole = index.rows(1.0, held_out)
    assert set(small) <= set(large) <= set(whole)
    np.testing.assert_array_equal(np.sort(np.concatenate([whole, out])), np.arange(index.num_sites))
    for fraction, rows in ((min(one, two), small), (max(one, two), large), (1.0, whole)):
        assert rows.dtype == np.int64 and (np.diff(rows) > 0).all()
        assert len(rows) == sites * len(wells_of(index, rows))
        assert len(wells_of(index, rows)) == int(fraction * num_wells + 0.5)


def test_subsets_depend_on_names_alone() -> None:
    """Another perturbation, other images or more sites choose the same wells."""
    index = index_in_memory(screen_rows())
    other = index_in_memory([r | {"perturbation": "X", "guide": "y"} for r in screen_rows()])
    more = index_in_memory(screen_rows(sites=3))
    chosen = wells_of(index, index.rows(0.3))
    assert chosen == wells_of(other, other.rows(0.3)) == wells_of(more, more.rows(0.3))
    # The rule, written out: it must never change, or studies of one screen would disagree.
    names = {"/".join(well) for well in wells_of(index, index.rows())}
    order = sorted(names, key=lambda name: hashlib.blake2b(name.encode(), digest_size=8).digest())
    assert {"/".join(well) for well in chosen} == set(order[:10])
    # Wells are spread: neither one batch nor one plate is taken first.
    assert len({well[:2] for well in chosen}) == 4


def test_what_rows_refuses() -> None:
    index = index_in_memory(screen_rows())
    for fraction in (0.0, -0.1, 1.01, float("nan")):
        with pytest.raises(ValueError, match=r"data_fraction is .*; a share in \(0, 1\]"):
            index.rows(fraction)
    with pytest.raises(ValueError) as error:
        index.rows(0.5, ("p0", "b1"))
    assert "held_out names ['p0']" in str(error.value)
    assert "['b0', 'b1', 'b0/p0', 'b0/p1', 'b1/p0', 'b1/p1']" in str(error.value)
    with pytest.raises(ValueError, match="held_out is the text 'b1'; a tuple of names"):
        index.held_out_rows("b1")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"of the 32 wells that held_out=\(\) leaves of 32 is no"):
        index.rows(0.01)
    with pytest.raises(ValueError, match="of the 0 wells that held_out=.* leaves of 32 is no well"):
        index.rows(1.0, ("b0", "b1"))
    assert index.held_out_rows(()).tolist() == []


def test_labels_number_the_classes_of_the_whole_index() -> None:
    index = index_in_memory(screen_rows(wells=12))
    labels, classes = index.labels()
    assert classes == tuple(sorted(set(index.table["perturbation"].to_pylist())))
    assert classes[:3] == ("G1", "G10", "G11") and classes[-1] == "negative_control"
    assert labels.dtype == np.int64
    assert [classes[label] for label in labels] == index.table["perturbation"].to_pylist()


def test_metadata_is_aligned_and_holds_no_image_columns() -> None:
    index = index_in_memory(screen_rows())
    frame = index.metadata()
    assert list(frame.columns) == INDEX_SCHEMA.names[:13] and len(frame) == index.num_sites
    assert frame["site_id"].tolist() == index.table["site_id"].to_pylist()
    assert frame["negative_control"].dtype == bool and frame["gene"].isna().sum() == 16


def test_channels_are_those_that_all_sites_have() -> None:
    rows = screen_rows(1, 1, 3, 1)
    rows[1]["channels"] = ["actin", "rna", "dna"]
    assert index_in_memory(rows).channels == ("dna", "actin")
    rows[2]["channels"] = ["brightfield"]
    assert index_in_memory(rows).channels == ()
