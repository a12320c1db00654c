"""The index on disk: what it says of a screen, and that a change of it is found."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from phenoscale.screens.index import ScreenIndex
from phenoscale.screens.index_format import (
    BLOCK_ROWS,
    GROUP_ROWS,
    IMAGE_COLUMNS,
    INDEX_VERSION,
    METADATA_FIELDS,
    IndexWriter,
)
from phenoscale.screens.layouts.manifest import MANIFEST_SCHEMA
from phenoscale.screens.storage import Root
from tests.screen_on_disk import index_of, large_index, screen_rows, site_row, wells_of

Scales = dict[tuple[str, str], dict[str, tuple[float, float]]]


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> ScreenIndex:
    """Two whole groups and a part of a third."""
    return large_index(tmp_path_factory.mktemp("large") / "i.parquet", 2 * GROUP_ROWS + 1000)


def rewrite(path: Path, table: pa.Table, groups: int = BLOCK_ROWS, **facts: Any) -> None:
    """Writes other rows, or other facts, under the footer of an index."""
    metadata = dict(pq.read_metadata(path).metadata)
    metadata |= {f"phenoscale{k}".encode(): value for k, value in facts.items()}
    with pq.ParquetWriter(path, table.schema) as file:
        file.write_table(table, row_group_size=groups)
        file.add_key_value_metadata({k: v for k, v in metadata.items() if b"ARROW" not in k})


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    rows = screen_rows()
    index = index_of(rows, tmp_path / "i.parquet")
    assert index.location == str(tmp_path / "i.parquet") and index.path == tmp_path / "i.parquet"
    assert index.root == Root(str(tmp_path)) and index.num_sites == len(rows)
    assert (index.num_groups, index.num_classes) == (1, 7)
    assert index.channels == ("dna", "er", "actin") and index.facts.percentiles is None
    for name in ("site_id", "site", "gene", "concentration", "negative_control", "paths"):
        assert index.table[name].to_pylist() == [row[name] for row in rows]
    assert set(index.table["height_px"].to_pylist()) == {12}
    assert index.plates["plate"].tolist() == ["p0", "p1", "p0", "p1"]
    assert index.plates["first_row"].tolist() == [0, 16, 32, 48]
    assert index.plates["rows"].tolist() == [16] * 4
    assert index.table.column_names == [f.name for f in METADATA_FIELDS] + list(IMAGE_COLUMNS)


def test_rows_come_back_by_group_by_number_and_in_one_pass(large: ScreenIndex) -> None:
    whole = large.table
    assert large.num_groups == 3 and whole.num_rows == large.num_sites == 2 * GROUP_ROWS + 1000
    assert whole["site_id"].to_pylist() == [f"s{row:07d}" for row in range(large.num_sites)]
    assert [large.group_rows(g) for g in range(3)] == [
        range(4096), range(4096, 8192), range(8192, 9192),
    ]  # fmt: skip
    for group in range(3):
        rows, sites = large.group_rows(group), large.sites(group)
        part = whole.slice(rows.start, len(rows))
        assert sites.paths.to_pylist() == part["paths"].to_pylist()
        for name in ("channel_set", "height_px", "width_px", "label", "well_hash"):
            np.testing.assert_array_equal(getattr(sites, name), part[name].to_numpy())
    wanted = [9000, 5, 4096, 5, 4095]
    assert large.take(wanted).to_pylist() == whole.take(wanted).to_pylist()
    assert large.take([]).num_rows == 0 and large.take([]).column_names == whole.column_names
    for passes in (large.verified(), large.scan(whole.column_names)):
        parts = list(passes)
        assert [first for first, _ in parts] == [0]
        assert parts[0][1].equals(whole)
    expected = whole["label"].to_numpy()[4096:]
    np.testing.assert_array_equal(large.column("label", range(1, 3)), expected)


def test_plates_are_runs_of_rows_across_groups_and_tables(large: ScreenIndex) -> None:
    """They were written in tables of 10,000 rows, and a plate has 371: no end is shared."""
    names = large.table["experimental_batch"].to_pandas() + "/" + large.table["plate"].to_pandas()
    for plate in large.plates.itertuples():
        rows = range(plate.first_row, plate.first_row + plate.rows)
        assert set(names[rows]) == {f"{plate.experimental_batch}/{plate.plate}"}
    assert large.plates["rows"].sum() == large.num_sites and len(large.plates) == names.nunique()


def test_the_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    index = index_of(screen_rows(), tmp_path / "a.parquet")
    rng = np.random.default_rng(0)
    shuffled = [screen_rows()[i] for i in rng.permutation(64)]
    again = index_of(shuffled, tmp_path / "elsewhere" / "b.parquet")
    assert again.fingerprint == index.fingerprint and again.table.equals(index.table)
    scale: Scales = {("b0", "p0"): {"dna": (1.0, 2.0), "er": (3.0, 4.0)}}
    others = [
        index_of(screen_rows(), tmp_path / "c.parquet", scales=scale, percentiles=(1.0, 99.0)),
        index_of(screen_rows(), tmp_path / "d.parquet", scales=scale, percentiles=(1.0, 98.0)),
        index_of(screen_rows(sites=1), tmp_path / "e.parquet"),
        index_of([r | {"channels": ["a", "b", "c"]} for r in screen_rows()], tmp_path / "f"),
        index_of([r | {"height_px": 13} for r in screen_rows()], tmp_path / "g"),
    ]
    assert len({other.fingerprint for other in (index, *others)}) == 6


def test_fingerprint_is_the_recorded_one(tmp_path: Path) -> None:
    """Golden value: studies are compared by it, so it may change only with INDEX_VERSION."""
    index = index_of(screen_rows(1, 1, 4, 1), tmp_path / "i.parquet")
    assert (INDEX_VERSION, index.fingerprint) == (
        2,
        "f93011ea22ebafb9ffaaa897f57cd74b1a5e7c5b915d4b25f1712726101e99e4",
    )


def changed(value: Any, kind: pa.DataType) -> Any:
    if pa.types.is_list(kind):
        return [*value[:-1], value[-1] + "x"]
    if pa.types.is_boolean(kind):
        return not value
    if pa.types.is_string(kind):
        return "" if value is None else value + "x"
    return 0 if value is None else value + 1


@pytest.mark.parametrize("row", [0, GROUP_ROWS + 17])
def test_a_change_of_any_cell_is_found_where_it_is_read(
    large: ScreenIndex, tmp_path: Path, row: int
) -> None:
    path = tmp_path / "i.parquet"
    group, others = row // GROUP_ROWS, {0, 1, 2} - {row // GROUP_ROWS}
    for position, field in enumerate(large.table.schema):
        values = large.table[field.name].to_pylist()
        values[row] = changed(values[row], field.type)
        shutil.copy(large.path, path)
        column = pa.array(values, field.type)
        rewrite(path, large.table.set_column(position, field, column))
        index = ScreenIndex.open(path)
        told = f"changed since it was built: group {group} of its rows.*build it again"
        with pytest.raises(ValueError, match=told):
            index.take([row])
        with pytest.raises(ValueError, match=told):
            list(index.verified())
        for other in others:
            index.sites(other)
            assert index.take([other * GROUP_ROWS]).num_rows == 1
        if field.name in IMAGE_COLUMNS:
            with pytest.raises(ValueError, match=told):
                index.sites(group)
        else:
            index.sites(group)


def test_rows_that_were_dropped_doubled_or_put_in_another_order_are_found(
    large: ScreenIndex, tmp_path: Path
) -> None:
    path, count = tmp_path / "i.parquet", large.num_sites
    order = np.arange(count)
    orders = {
        "reversed": order[::-1],
        "groups swapped": np.concatenate([order[4096:8192], order[:4096], order[8192:]]),
        "one doubled": np.concatenate([order[:1], order[:-1]]),
        "end dropped": order[:-1],
    }
    for name, rows in orders.items():
        shutil.copy(large.path, path)
        rewrite(path, large.table.take(rows))
        index = ScreenIndex.open(path)
        with pytest.raises(ValueError, match="has changed since it was built"):
            list(index.verified())
            pytest.fail(name)
    shutil.copy(large.path, path)
    rewrite(path, large.table, groups=1000)
    with pytest.raises(
        ValueError, match="it has 9192 rows in 10 row groups, and digests of 3 groups"
    ):
        ScreenIndex.open(path)


def replaced(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    return lambda value: value.replace(old, new)


def cut(value: bytes) -> bytes:
    return base64.b64encode(base64.b64decode(value)[:-40])


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("", replaced(b'"num_classes": 7', b'"num_classes": 8')),
        ("", replaced(b"dna", b"DNA")),
        ("", replaced(b'"percentiles": [0.1, 99.9]', b'"percentiles": null')),
        ("", replaced(b'"content"', b'"contents"')),
        (".plates", lambda x: base64.b64encode(base64.b64decode(x).replace(b"p0p1", b"p0p2"))),
        (".plates", cut),
        (".plates", lambda _: b"none"),
        (".digests", lambda x: b"AAAA" + x[4:]),
        (".digests", cut),
        (".digests", lambda _: b"\xff"),
    ],
)
def test_changed_facts_are_found_at_once(
    tmp_path: Path, key: str, change: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / "i.parquet"
    scales = {("b0", "p0"): {"dna": (1.0, 2.0)}}
    index = index_of(screen_rows(), path, scales=scales, percentiles=(0.1, 99.9))
    old = pq.read_metadata(path).metadata[f"phenoscale{key}".encode()]
    assert change(old) != old
    rewrite(path, index.table, **{key: change(old)})
    with pytest.raises(ValueError, match="its facts do not agree with the digest.*build it again"):
        ScreenIndex.open(path)


def test_open_refuses_what_is_no_index(tmp_path: Path) -> None:
    path = tmp_path / "i.parquet"
    table = index_of(screen_rows(), path).table
    facts = pq.read_metadata(path).metadata[b"phenoscale"]
    rewrite(path, table, **{"": facts.replace(b'"version": 2', b'"version": 1')})
    with pytest.raises(ValueError, match=r"version 1; this phenoscale reads version 2. Build it"):
        ScreenIndex.open(path)
    for other in ({}, {"phenoscale": "[1]"}, {"phenoscale": "{}"}, {"phenoscale": "no"}):
        pq.write_table(table.replace_schema_metadata(other), path)
        with pytest.raises(ValueError, match="not an index of phenoscale"):
            ScreenIndex.open(path)
    path.write_bytes(b"PAR1 and then nothing")
    with pytest.raises(ValueError, match="cannot be read as an index"):
        ScreenIndex.open(path)
    (tmp_path / "empty").mkdir()
    for missing in ("none.parquet", "empty/none.parquet", "nowhere/none.parquet"):
        with pytest.raises(ValueError, match=f"There is no index .*{missing}; build one"):
            ScreenIndex.open(tmp_path / missing)


def test_a_flipped_bit_anywhere_is_an_error_or_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "i.parquet"
    whole = index_of(screen_rows(batches=3, wells=30), path).table
    raw = path.read_bytes()
    outcomes = {"changed": 0, "nothing": 0}
    for place in np.random.default_rng(0).integers(0, 8 * len(raw), 400).tolist():
        flipped = bytearray(raw)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        try:
            read = ScreenIndex.open(path).table
        except ValueError as error:
            assert str(path) in str(error) and "phenoscale index" in str(error)
            outcomes["changed"] += 1
        else:
            assert read.equals(whole)
            outcomes["nothing"] += 1
    assert outcomes["changed"] > 300


def test_columns_of_the_wrong_name_or_type_are_a_change(tmp_path: Path) -> None:
    path = tmp_path / "i.parquet"
    table = index_of(screen_rows(), path).table
    renamed = table.rename_columns([n.replace("label", "Label") for n in table.column_names])
    rewrite(path, renamed)
    with pytest.raises(ValueError, match="has changed since it was built"):
        ScreenIndex.open(path).sites(0)


def test_other_programs_can_read_an_index(tmp_path: Path) -> None:
    """The footer's values are text: readers in other languages refuse the file otherwise."""
    index_of(screen_rows(), tmp_path / "i.parquet")
    for value in pq.read_metadata(tmp_path / "i.parquet").metadata.values():
        value.decode("utf-8")


def test_a_screen_moves_with_its_index(tmp_path: Path) -> None:
    root = tmp_path / "screen"
    (root / "images").mkdir(parents=True)

    def written(out: Path) -> ScreenIndex:
        made = index_of(screen_rows(), root / "made.parquet")
        return made.repointed(paths_of(made), Root(str(root)), out)

    inside, above = written(root / "index" / "i.parquet"), written(tmp_path / "i.parquet")
    outside = written(tmp_path / "elsewhere" / "i.parquet")
    assert {index.root for index in (inside, above, outside)} == {Root(str(root))}
    shutil.move(root, tmp_path / "moved")
    moved = ScreenIndex.open(tmp_path / "moved" / "index" / "i.parquet")
    assert moved.root == Root(str(tmp_path / "moved"))
    assert ScreenIndex.open(outside.location).root == Root(str(root))
    assert ScreenIndex.open(outside.location, root=moved.root).root == moved.root


def paths_of(index: ScreenIndex) -> pa.Array:
    return pc.list_element(index.table["paths"], 0).combine_chunks()


def test_links_to_an_index_lead_to_its_images(tmp_path: Path) -> None:
    made = index_of(screen_rows(), tmp_path / "screen" / "made.parquet")
    made.repointed(
        paths_of(made), Root(str(tmp_path / "screen")), tmp_path / "screen/sub/i.parquet"
    )
    (tmp_path / "my").mkdir()
    (tmp_path / "my" / "file.parquet").symlink_to(tmp_path / "screen" / "sub" / "i.parquet")
    (tmp_path / "my" / "folder").symlink_to(tmp_path / "screen" / "sub")
    for name in ("file.parquet", "folder/i.parquet"):
        index = ScreenIndex.open(tmp_path / "my" / name)
        assert index.root == made.root and index.table.equals(ScreenIndex.open(made.path).table)


@pytest.fixture
def store() -> Iterator[str]:
    yield "memory://bucket/screens"
    fsspec.filesystem("memory").rm("/bucket", recursive=True)


def test_an_index_lies_in_a_store_beside_its_images_or_apart(tmp_path: Path, store: str) -> None:
    beside = index_of(screen_rows(), tmp_path / "i.parquet")
    apart = tmp_path / "apart.parquet"
    beside.repointed(paths_of(beside), Root("s3://images/a?region=eu-west-1"), apart)
    for path in (beside.path, apart):
        with fsspec.open(f"{store}/{path.name}", "wb") as file:
            file.write(path.read_bytes())
    index = ScreenIndex.open(f"{store}/i.parquet")
    assert index.root == Root(store) and index.location == f"{store}/i.parquet"
    assert index.table.equals(beside.table)
    assert ScreenIndex.open(f"{store}/apart.parquet").root.url == "s3://images/a?region=eu-west-1"
    with pytest.raises(ValueError, match="There is no index memory://bucket/screens/none.parquet"):
        ScreenIndex.open(f"{store}/none.parquet")


def test_labels_number_the_classes_of_the_whole_index(tmp_path: Path, large: ScreenIndex) -> None:
    index = index_of(screen_rows(wells=12), tmp_path / "i.parquet")
    assert index.labels()[1][:3] == ("G1", "G10", "G11")
    for screen in (index, large):
        labels, classes = screen.labels()
        assert classes == tuple(sorted(set(screen.table["perturbation"].to_pylist())))
        assert labels.dtype == np.int64 and len(classes) == screen.num_classes
        assert [classes[i] for i in labels] == screen.table["perturbation"].to_pylist()


def test_metadata_is_aligned_and_holds_no_image_columns(tmp_path: Path) -> None:
    extra = (pa.field("assay", pa.string()), pa.field("depth", pa.float64()))
    rows = [row | {"assay": None, "depth": i / 2} for i, row in enumerate(screen_rows())]
    index = index_of(rows, tmp_path / "i.parquet", extra=extra)
    frame = index.metadata()
    assert list(frame.columns) == [f.name for f in METADATA_FIELDS] + ["assay", "depth"]
    assert frame["site_id"].tolist() == [row["site_id"] for row in rows]
    assert frame["negative_control"].dtype == bool and frame["gene"].isna().sum() == 16
    assert frame["assay"].isna().all() and frame["depth"].tolist() == [r["depth"] for r in rows]


def test_channels_are_those_that_all_sites_have(tmp_path: Path) -> None:
    rows = screen_rows(1, 1, 3, 1)
    rows[1]["channels"] = ["actin", "rna", "dna"]
    index = index_of(rows, tmp_path / "i.parquet")
    assert index.channels == ("dna", "actin")
    assert index.channel_sets == (("dna", "er", "actin"), ("actin", "rna", "dna"))
    assert index.table["channel_set"].to_pylist() == [0, 1, 0]
    rows[2]["channels"] = ["brightfield"]
    assert index_of(rows, tmp_path / "i.parquet").channels == ()


def test_scales_are_those_of_a_plate_by_channel(tmp_path: Path) -> None:
    rows = screen_rows()
    rows[1]["channels"] = ["actin", "rna", "dna"]
    ranges = {"dna": (1.0, 2.5), "er": (3.0, 3.0), "actin": (0.0, 9.0), "rna": (7.0, 8.0)}
    scales = {("b0", "p0"): ranges, ("b1", "p1"): {"dna": (5.0, 6.0)}}
    index = index_of(rows, tmp_path / "i.parquet", scales=scales, percentiles=(0.5, 99))
    assert index.facts.percentiles == (0.5, 99)
    assert index.scale(0, 0) == ((1.0, 2.5), (3.0, 3.0), (0.0, 9.0)) == index.scale(15, 0)
    assert index.scale(1, 1) == ((0.0, 9.0), (7.0, 8.0), (1.0, 2.5))
    assert index.scale(16, 0) is None is index.scale(47, 0)
    assert index.scale(48, 0) == ((5.0, 6.0), (0.0, 65535.0), (0.0, 65535.0))


def test_held_out_rows_are_those_of_named_plates_and_batches(large: ScreenIndex) -> None:
    frame = large.metadata()
    full = frame["experimental_batch"] + "/" + frame["plate"]
    for names in (("b0001",), ("b0000/p00003",), ("b0003/p00019", "b0001", "b0001/p00005"), ()):
        rows = large.held_out_rows(names)
        expected = frame["experimental_batch"].isin(names) | full.isin(names)
        assert rows.dtype == np.int64
        np.testing.assert_array_equal(rows, np.flatnonzero(expected))
        ranges = large.held_out_ranges(names)
        assert [row for r in ranges for row in r] == rows.tolist()


def test_unknown_names_are_not_held_out_in_silence(tmp_path: Path) -> None:
    index = index_of(screen_rows(), tmp_path / "i.parquet")
    with pytest.raises(ValueError) as error:
        index.held_out_rows(("p0", "b1"))
    assert "held_out names ['p0']" in str(error.value)
    assert "['b0', 'b0/p0', 'b0/p1', 'b1', 'b1/p0', 'b1/p1']" in str(error.value)
    with pytest.raises(ValueError, match="held_out is the text 'b1'; a tuple of names"):
        index.held_out_rows("b1")  # type: ignore[arg-type]


def test_a_copy_keeps_rows_and_fingerprint_and_points_elsewhere(tmp_path: Path) -> None:
    extra = (pa.field("assay", pa.string()),)
    rows = [row | {"assay": row["well"], "dtype": "uint16"} for row in screen_rows()]
    rows[3]["channels"] = ["er", "dna", "actin"]
    scales = {(b, p): {"dna": (1.0, 9.0)} for b in ("b0", "b1") for p in ("p0", "p1")}
    index = index_of(
        rows, tmp_path / "i.parquet", extra=extra, scales=scales, percentiles=(0.1, 99.9)
    )
    paths = pa.array([f"7.zarr?site={i}" for i in range(64)])
    copy = index.repointed(paths, Root("s3://bucket/store"), tmp_path / "copy.parquet")
    assert copy.fingerprint == index.fingerprint and copy.root == Root("s3://bucket/store")
    assert copy.facts.content != index.facts.content
    assert copy.metadata().equals(index.metadata())
    assert copy.channel_sets == index.channel_sets and copy.labels()[1] == index.labels()[1]
    np.testing.assert_array_equal(copy.labels()[0], index.labels()[0])
    assert copy.table["paths"].to_pylist() == [[path] for path in paths.to_pylist()]
    assert set(copy.table["dtype"].to_pylist()) == {"uint8"} and copy.facts.percentiles is None
    assert copy.scale(0, 0) is None


def test_a_copy_that_leaves_sites_out_is_a_screen_of_its_own(tmp_path: Path) -> None:
    index = index_of(screen_rows(), tmp_path / "i.parquet")
    kept = [not (row["well"] == "A03" or row["plate"] == "p1") for row in screen_rows()]
    paths = pa.array([f"{i}.zarr" if keep else None for i, keep in enumerate(kept)])
    copy = index.repointed(paths, index.root, tmp_path / "copy.parquet")
    assert copy.fingerprint == copy.facts.content != index.fingerprint
    assert copy.table["site_id"].to_pylist() == [
        row["site_id"] for row, keep in zip(screen_rows(), kept, strict=True) if keep
    ]
    assert "G3" not in copy.labels()[1] and copy.num_classes == 6 == len(copy.labels()[1])
    assert copy.plates["first_row"].tolist() == [0, 14] and copy.plates["rows"].tolist() == [14, 14]
    every = np.arange(copy.num_sites)
    assert wells_of(copy, every) < wells_of(index, np.arange(index.num_sites))


def test_a_writer_that_fails_leaves_nothing_and_the_old_index(tmp_path: Path) -> None:
    old = index_of(screen_rows(), tmp_path / "i.parquet").fingerprint
    with pytest.raises(RuntimeError), IndexWriter(
        tmp_path / "i.parquet", Root(str(tmp_path)), classes=pa.array(["G1"])
    ) as writer:  # fmt: skip
        row = site_row(0, 0, 1, 0)
        writer.write(table_of(row))
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["i.parquet"]
    assert ScreenIndex.open(tmp_path / "i.parquet").fingerprint == old


def table_of(row: dict[str, Any]) -> pa.Table:
    sizes = {"pixel_size_um": None, "height_px": 1, "width_px": 1, "dtype": "uint8"}
    schema = pa.schema(
        [
            *MANIFEST_SCHEMA,
            ("height_px", pa.int32()),
            ("width_px", pa.int32()),
            ("dtype", pa.string()),
        ]
    )
    return pa.Table.from_pylist([row | sizes], schema=schema)


@pytest.mark.parametrize("empty", ["nothing", "no rows"])
def test_an_index_without_rows_is_not_written(tmp_path: Path, empty: str) -> None:
    with pytest.raises(ValueError, match="no site"), IndexWriter(
        tmp_path / "i.parquet", Root(str(tmp_path)), classes=pa.array(["G1"])
    ) as writer:  # fmt: skip
        if empty == "no rows":
            writer.write(table_of(site_row(0, 0, 1, 0)).slice(1))
    assert list(tmp_path.iterdir()) == []
