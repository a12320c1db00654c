"""Screens as folders of embeddings: every level by hand, kills, damage, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile

from phenoscale.ahead import ahead
from phenoscale.config import Crops
from phenoscale.embed import TILES_AT_ONCE, embed_sites, tile
from phenoscale.embed_folder import GROUP_ROWS, read_manifest
from phenoscale.embed_index import EmbedReport, embed_index, in_place
from phenoscale.embed_plan import EmbedOptions
from phenoscale.embed_screen import embed_screen
from phenoscale.export import load_encoder
from phenoscale.export_trial import export_encoder
from phenoscale.maps.aggregate import wells_from_sites
from phenoscale.screens.build import build_index
from phenoscale.screens.index import ScreenIndex
from phenoscale.screens.index_format import IMAGE_COLUMNS
from phenoscale.screens.site_reader import SiteReader
from tests.screen_on_disk import as_table, pixels, screen_rows
from tests.test_export import make_trial
from tests.tiny import TINY, of

BY_PLATE = EmbedOptions(shard_sites=72)
"""A shard for each of the tiny screen's plates."""


def silent(done: int, sites: int) -> None:
    """Of a test."""


@pytest.fixture(scope="module")
def exported(tiny_screen: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By kind, an exported encoder of the tiny screen's channels."""
    folder = tmp_path_factory.mktemp("exported")
    channels = ScreenIndex.open(tiny_screen / "index.parquet").channels
    trials = {"vit": TINY, "densenet": of("wsl", "DenseNet-nano"), "agnostic": of("ca_mae")}
    for name, trial in trials.items():
        make_trial(folder / f"{name}-trial", trial, channels)
        export_encoder(folder / f"{name}-trial", folder / name)
    return {name: folder / name for name in trials}


def embedded(
    encoder: Path | str, screen: Path, out: Path, options: EmbedOptions = BY_PLATE, **more
) -> EmbedReport:
    return embed_index(str(encoder), screen / "index.parquet", out, silent, options, **more)


def parts_of(out: Path) -> dict[str, bytes]:
    """Name to bytes of each file of a folder."""
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


def rows_of(out: Path) -> pa.Table:
    return pa.concat_tables(pq.read_table(path) for path in sorted(out.glob("part-*.parquet")))


def vectors_of(table: pa.Table, name: str) -> np.ndarray:
    column = table[name].combine_chunks()
    return column.flatten().to_numpy().reshape(len(column), -1)


@pytest.mark.parametrize("kind", ["vit", "densenet"])
def test_sites_are_those_of_a_study(tiny_screen: Path, exported, tmp_path: Path, kind: str):
    """`embed_screen` embeds for studies, two sites at a time, without threads or shards."""
    out = tmp_path / "out"
    report = embedded(exported[kind], tiny_screen, out, EmbedOptions(shard_sites=144))
    assert (report.rows, report.shards, report.written_shards, report.bad_sites) == (288, 2, 2, 0)
    loaded, index = load_encoder(exported[kind]), ScreenIndex.open(tiny_screen / "index.parquet")
    reader = SiteReader(index_path=index.location, crops=Crops(size_px=16))
    expected, _ = embed_screen(reader, loaded.encoder, 16, silent)
    table = rows_of(out)
    assert table.drop_columns(list(expected)).equals(
        index.table.drop_columns(list(IMAGE_COLUMNS)).replace_schema_metadata(None)
    )
    for name, x in expected.items():
        assert table.schema.field(name).type == pa.list_(pa.float32(), x.shape[1])
        np.testing.assert_allclose(vectors_of(table, name), x, atol=2e-6, err_msg=name)
    manifest = read_manifest(out)
    assert manifest["readouts"] == {name: x.shape[1] for name, x in expected.items()}
    assert manifest["weights_sha256"] == loaded.facts.weights_sha256
    assert manifest["index_fingerprint"] == index.fingerprint
    assert [(x["file"], x["sites"]) for x in manifest["shards"]] == [
        ("part-00000.parquet", 144),
        ("part-00001.parquet", 144),
    ]
    # The folder can be given away: nothing in it says where it was made.
    assert not any(str(tmp_path.parent).encode() in text for text in parts_of(out).values())


def test_wells_are_means_of_their_readable_sites(tiny_screen: Path, exported, tmp_path: Path):
    """One well loses a site and one all of its sites."""
    screen = damaged(tiny_screen, tmp_path, [3, 10, 11])
    options = dataclasses.replace(BY_PLATE, tolerated_bad_sites=0.02)
    embedded(exported["vit"], screen, tmp_path / "sites", options)
    by_well = dataclasses.replace(options, level="well")
    report = embedded(exported["vit"], screen, tmp_path / "wells", by_well)
    assert report.bad_sites == 3 and report.rows == 143 and report.left_out == ()
    sites, wells = rows_of(tmp_path / "sites"), rows_of(tmp_path / "wells")
    assert len(sites) == 285
    for name in ("patch_mean", "class_token", "patch_sd"):
        means, expected = wells_from_sites(vectors_of(sites, name), sites.to_pandas())
        np.testing.assert_array_equal(vectors_of(wells, name), means.astype(np.float32))
    found = wells.select(expected.columns.tolist()).to_pandas()
    pd.testing.assert_frame_equal(found, expected, check_dtype=False)
    assert sorted(set(found["num_sites"])) == [1, 2]
    assert wells.schema.field("concentration").type == pa.float64()


def test_crops_are_the_tiles(tiny_screen: Path, exported, tmp_path: Path):
    screen, out = damaged(tiny_screen, tmp_path, [3]), tmp_path / "crops"
    options = EmbedOptions(level="crop", readouts=("class_token",), tolerated_bad_sites=0.01)
    report = embedded(exported["vit"], screen, out, options)
    assert report.rows == 287 * 16 and report.shards == 1
    metadata = pq.read_metadata(out / "part-00000.parquet")
    sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    assert sizes == [GROUP_ROWS, 287 * 16 - GROUP_ROWS]
    table = rows_of(out)
    assert "patch_mean" not in table.column_names and "block_1" not in table.column_names
    loaded, reader = load_encoder(exported["vit"]), reader_of(screen)
    for row, place in ((2, 2), (4, 3), (287, 286)):
        site = table.slice(place * 16, 16).to_pandas()
        assert set(site["site_id"]) == {ScreenIndex.open(screen / "index.parquet").take([row])[
            "site_id"][0].as_py()}  # fmt: skip
        image = reader.read(row, row + 1)["images"][0]
        for number in (0, 5, 15):
            x, y = site["x_px"][number], site["y_px"][number]
            crop = image[:, y : y + 16, x : x + 16][None]
            expected = loaded.embed(crop, channels=reader.channels, readout="class_token")
            np.testing.assert_allclose(site["class_token"][number], expected[0], atol=2e-6)
        assert len(set(zip(site["x_px"], site["y_px"], strict=True))) == 16


def test_blocks_and_readouts_are_chosen(tiny_screen: Path, exported, tmp_path: Path):
    everything = dataclasses.replace(BY_PLATE, every_block=True)
    embedded(exported["vit"], tiny_screen, tmp_path / "all", everything)
    some = dataclasses.replace(BY_PLATE, readouts=("block_2", "patch_sd"))
    embedded(exported["vit"], tiny_screen, tmp_path / "some", some)
    whole, chosen = rows_of(tmp_path / "all"), rows_of(tmp_path / "some")
    vectors = ["patch_mean", "class_token", "patch_sd", "block_1", "block_2"]
    assert list(read_manifest(tmp_path / "all")["readouts"]) == vectors
    assert read_manifest(tmp_path / "all")["readout"] == "patch_mean"
    assert read_manifest(tmp_path / "some")["readout"] == "patch_sd"
    assert chosen.equals(whole.drop_columns(["patch_mean", "class_token", "block_1"]))


def test_parts_are_made_ahead_and_in_order():
    made = [threading.Event() for _ in range(6)]

    def make(part: int) -> int:
        if part == 5:
            raise ValueError("part 5 is bad")
        made[part].set()
        return 10 * part

    coming = ahead(make, range(6), threads=1)
    assert next(coming) == 0
    assert made[1].wait(10) and made[2].wait(10), "made while part 0 is in use"
    assert not made[4].is_set(), "and no more than that"
    assert [next(coming) for _ in range(4)] == [10, 20, 30, 40]
    with pytest.raises(ValueError, match="part 5 is bad"):
        next(coming)


class Killed(BaseException):
    """What ends a run in the middle."""


def test_a_killed_run_goes_on_to_the_same_bytes(tiny_screen: Path, exported, tmp_path: Path):
    embedded(exported["densenet"], tiny_screen, tmp_path / "whole")
    out, told = tmp_path / "out", []

    def dying(done: int, sites: int) -> None:
        told.append((done, sites))
        if done > 150:
            raise Killed

    with pytest.raises(Killed):
        embed_index(str(exported["densenet"]), tiny_screen / "index.parquet", out, dying, BY_PLATE)
    assert told[0] == (0, 288) and told[-1][0] <= 152
    assert sorted(parts_of(out)) == ["embedding.json", "part-00000.parquet", "part-00001.parquet"]
    with pytest.raises(ValueError, match="is not finished: start the same"):
        read_manifest(out)
    # What a power cut may leave: half a file beside, and a shard without its end.
    (out / ".part-00002.parquet.123.part").write_bytes(b"half")
    torn = (out / "part-00001.parquet").read_bytes()[:-9]
    (out / "part-00001.parquet").write_bytes(torn)
    kept = (out / "part-00000.parquet").stat().st_mtime_ns

    report = embedded(exported["densenet"], tiny_screen, out)
    assert (report.shards, report.written_shards, report.written_sites) == (4, 3, 216)
    assert (out / "part-00000.parquet").stat().st_mtime_ns == kept
    assert parts_of(out) == parts_of(tmp_path / "whole")
    again = embedded(exported["densenet"], tiny_screen, out)
    assert again.written_shards == 0 and "none was written" in again.lines()[1]
    assert parts_of(out) == parts_of(tmp_path / "whole")


def test_shards_of_other_facts_or_fewer_rows_are_written_again(
    tiny_screen: Path, exported, tmp_path: Path
):
    out, other = tmp_path / "out", tmp_path / "other"
    embedded(exported["vit"], tiny_screen, out)
    embedded(exported["vit"], tiny_screen, other, dataclasses.replace(BY_PLATE, precision="bf16"))
    whole = parts_of(out)
    shutil.copy(other / "part-00001.parquet", out / "part-00001.parquet")
    shorter = pq.ParquetFile(out / "part-00002.parquet")
    facts = shorter.metadata.metadata
    table = shorter.read().slice(1).replace_schema_metadata(facts)
    pq.write_table(table, out / "part-00002.parquet")
    report = embedded(exported["vit"], tiny_screen, out)
    assert report.written_shards == 2 and parts_of(out) == whole


def test_shards_come_in_any_order(tiny_screen: Path, exported, tmp_path: Path):
    """As from actors; a plate's statistics and batches are its own."""

    def backwards(embedder, model, shards: Sequence[int], told) -> Iterator:
        yield from in_place(embedder, model, shards[::-1], told)

    for name, run in (("forth", in_place), ("back", backwards)):
        embedded(exported["densenet"], tiny_screen, tmp_path / name, run=run)
    assert parts_of(tmp_path / "forth") == parts_of(tmp_path / "back")


def test_other_embeddings_are_refused(tiny_screen: Path, exported, tmp_path: Path):
    out = tmp_path / "out"
    embedded(exported["agnostic"], tiny_screen, out)
    kept = parts_of(out)
    two = dataclasses.replace(BY_PLATE, channels=("DNA", "ER"))
    for options, differing in (
        (dataclasses.replace(BY_PLATE, level="well"), "level is 'site' there, 'well' in this run"),
        (dataclasses.replace(BY_PLATE, readouts=("patch_sd",)), "readouts is {'patch_mean': 32"),
        (two, r"channels is \['DNA', 'ER', 'RNA'.* there, \['DNA', 'ER'\] in this run"),
        (dataclasses.replace(BY_PLATE, precision="bf16"), "precision is 'fp32' there"),
        (EmbedOptions(), "shard_sites is 72 there, 4096"),
    ):
        with pytest.raises(ValueError, match=differing):
            embedded(exported["agnostic"], tiny_screen, out, options)
    with pytest.raises(ValueError, match="weights_sha256 is .* there"):
        embedded(exported["vit"], tiny_screen, out)
    other = screen_of(tmp_path / "other")
    with pytest.raises(ValueError, match="index_fingerprint is .* there"):
        embedded(exported["agnostic"], other, out)
    assert parts_of(out) == kept
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds notes.txt and is no folder of embeddings"):
        embedded(exported["vit"], tiny_screen, tmp_path / "full")
    with pytest.raises(ValueError, match="notes.txt is a file"):
        embedded(exported["vit"], tiny_screen, tmp_path / "full" / "notes.txt")


def test_bad_sites_are_counted_named_and_mended(tiny_screen: Path, exported, tmp_path: Path):
    rows, out = [3, 80, 81, 200], tmp_path / "out"
    screen = damaged(tiny_screen, tmp_path, rows)
    with pytest.raises(ValueError, match="Row 3 of the index"):
        embedded(exported["vit"], screen, tmp_path / "none")
    assert sorted(parts_of(tmp_path / "none")) == ["embedding.json"]
    some = dataclasses.replace(BY_PLATE, tolerated_bad_sites=0.008)
    with pytest.raises(ValueError) as caught:
        embedded(exported["vit"], screen, out, some)
    ids = ScreenIndex.open(screen / "index.parquet").take(rows)["site_id"].to_pylist()
    assert "3 of 288 sites cannot be read, a share of 0.008 is tolerated" in str(caught.value)
    assert all(f"{ids[i]} (row {rows[i]})" in str(caught.value) for i in range(3))
    assert len(parts_of(out)) == 3, "it stops at the second shard, and keeps it"
    enough = dataclasses.replace(BY_PLATE, tolerated_bad_sites=0.02)
    report = embedded(exported["vit"], screen, out, enough)
    assert (report.rows, report.bad_sites, report.written_shards) == (284, 4, 2)
    assert report.warnings() == ["4 of 288 sites (1.39%) could not be read and are left out"]
    assert read_manifest(out)["bad_sites"] == dict(zip(ids, rows, strict=True))
    kept = np.delete(np.arange(288), rows)
    embedded(exported["vit"], tiny_screen, tmp_path / "sound")
    assert rows_of(out).equals(rows_of(tmp_path / "sound").take(pa.array(kept)))
    # A mended file: its shard, and no other, is written again.
    path = ScreenIndex.open(screen / "index.parquet").table["paths"][200].as_py()[0]
    shutil.copy(tiny_screen / path, screen / path)
    report = embedded(exported["vit"], screen, out, enough)
    assert (report.rows, report.bad_sites, report.written_shards) == (285, 3, 1)


def test_metadata_of_wells_are_what_their_sites_share(exported, tmp_path: Path):
    rows = screen_rows(wells=4)
    for row in rows:
        row |= {"moa": "none" if row["negative_control"] else "kinase", "focus": row["site"] / 7}
    screen = screen_of(tmp_path / "screen", rows)
    encoder = tmp_path / "encoder"
    channels = ScreenIndex.open(screen / "index.parquet").channels
    make_trial(tmp_path / "trial", TINY, channels)
    export_encoder(tmp_path / "trial", encoder)
    report = embedded(encoder, screen, tmp_path / "wells", EmbedOptions(level="well"))
    assert report.left_out == ("focus",) and "left out: focus" in report.warnings()[0]
    table = rows_of(tmp_path / "wells")
    assert table["moa"].to_pylist() == ["none", "kinase", "kinase", "kinase"] * 4
    assert {"focus", "site", "site_id"}.isdisjoint(table.column_names)
    rows = [row | {"num_sites": 1, "patch_sd": 0.5} for row in screen_rows(wells=4)]
    clashing = screen_of(tmp_path / "clashing", rows)
    with pytest.raises(
        ValueError, match="has the column patch_sd, which is the name of a read-out"
    ):
        embedded(encoder, clashing, tmp_path / "no")
    with pytest.raises(ValueError, match="has the column num_sites"):
        embedded(
            encoder, clashing, tmp_path / "no", EmbedOptions(level="well", readouts=("patch_mean",))
        )
    embedded(encoder, clashing, tmp_path / "yes", EmbedOptions(readouts=("patch_mean",)))
    assert rows_of(tmp_path / "yes")["patch_sd"].to_pylist() == [0.5] * 32


def test_a_model_of_timm(tiny_screen: Path, tmp_path: Path):
    options = dataclasses.replace(
        BY_PLATE, weights="random", channels=("DNA", "ER", "RNA"), feed="three_by_three"
    )
    with pytest.raises(ValueError, match="takes tiles of any size. Say which by --crop-px"):
        embedded("timm:test_resnet", tiny_screen, tmp_path / "out", options)
    options = dataclasses.replace(options, size_px=64, level="well")
    embedded("timm:test_resnet", tiny_screen, tmp_path / "out", options)
    manifest = read_manifest(tmp_path / "out")
    assert manifest["encoder"] == "timm:test_resnet" and manifest["feed"] == "three_by_three"
    assert manifest["size_px"] == 64 and manifest["rows"] == 144
    assert np.isfinite(vectors_of(rows_of(tmp_path / "out"), manifest["readout"])).all()


def test_options_that_make_no_sense_are_refused(tiny_screen: Path, exported, tmp_path: Path):
    for options, message in (
        ({"level": "plate"}, "one of site, well, crop"),
        ({"precision": "fp16"}, "fp32 or bf16"),
        ({"tolerated_bad_sites": 1.0}, r"a share in \[0, 1\)"),
        ({"size_px": 0}, "give a positive number"),
    ):
        with pytest.raises(ValueError, match=message):
            EmbedOptions(**options)
    for options, message in (
        ({"readouts": ("pooled",)}, "no read-out pooled; it has patch_mean, class_token"),
        ({"channels": ("DNA", "Brightfield")}, "no channel Brightfield; it has DNA, ER"),
        ({"channels": ("DNA", "ER")}, "takes exactly"),
        ({"size_px": 32}, "was trained on crops of 16 px, not 32"),
        ({"weights": "random"}, "an exported encoder has its own weights"),
    ):
        with pytest.raises(ValueError, match=message):
            embedded(exported["vit"], tiny_screen, tmp_path / "out", EmbedOptions(**options))
    assert not (tmp_path / "out").exists()


def test_an_object_store_holds_them_too(tiny_screen: Path, exported, tmp_path: Path, s3):
    (tmp_path / "bucket").mkdir()
    url = s3.put(tmp_path / "bucket")
    address, _, query = url.partition("?")
    out = f"{address}/embeddings?{query}"
    options = dataclasses.replace(BY_PLATE, level="well")
    first = embedded(exported["vit"], tiny_screen, out, options)
    again = embedded(exported["vit"], tiny_screen, out, options)
    assert (first.written_shards, again.written_shards) == (4, 0)
    manifest = read_manifest(out)
    embedded(exported["vit"], tiny_screen, tmp_path / "here", options)
    assert manifest == json.loads((tmp_path / "here" / "embedding.json").read_text())


def test_a_large_site_is_encoded_in_pieces(exported, tmp_path: Path):
    """More tiles than are encoded at once: 49 of a site."""
    rows = screen_rows(batches=1, plates=1, wells=1, sites=2)
    screen = screen_of(tmp_path / "screen", rows, side=112)
    make_trial(tmp_path / "trial", TINY, ("dna", "er", "actin"))
    export_encoder(tmp_path / "trial", tmp_path / "encoder")
    embedded(tmp_path / "encoder", screen, tmp_path / "out")
    images = reader_of(screen).read(0, 2)["images"]
    import torch

    assert len(tile(torch.from_numpy(images[:1]), 16)) == 49 > TILES_AT_ONCE["cpu"]
    encoder = load_encoder(tmp_path / "encoder").encoder
    expected = embed_sites(encoder, images, 16, ("dna", "er", "actin"))
    np.testing.assert_allclose(
        vectors_of(rows_of(tmp_path / "out"), "patch_mean"), expected["patch_mean"], atol=2e-6
    )


def reader_of(screen: Path) -> SiteReader:
    return SiteReader(index_path=str(screen / "index.parquet"), crops=Crops(size_px=16))


def damaged(screen: Path, folder: Path, rows: Sequence[int]) -> Path:
    """A copy of a screen whose images of some rows are damaged."""
    copy = shutil.copytree(screen, folder / "damaged")
    paths = ScreenIndex.open(copy / "index.parquet").table["paths"]
    for row in rows:
        (copy / paths[row].as_py()[0]).write_bytes(b"damaged")
    return copy


def screen_of(folder: Path, rows: Sequence[dict] | None = None, side: int = 16) -> Path:
    """A screen of random square images; rows may have columns of their own."""
    rows = screen_rows(wells=4) if rows is None else rows
    for seed, row in enumerate(rows):
        path = folder / row["paths"][0]
        path.parent.mkdir(parents=True, exist_ok=True)
        image = pixels(seed, height=side, width=side)
        tifffile.imwrite(path, image, photometric="minisblack", planarconfig="separate")
    table = as_table(rows)
    for name in sorted(set(rows[0]) - set(table.column_names)):
        table = table.append_column(name, pa.array([row[name] for row in rows]))
    build_index(table, folder, folder / "index.parquet")
    return folder
