"""Crops and sites: the plan's coordinates cut by hand out of the files."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile

from phenoscale.config import Crops
from phenoscale.screens.cutter import BadSiteError, CropCutter, SiteReader
from phenoscale.screens.index import ScreenIndex, build_index
from tests.screen_on_disk import as_table, pixels, screen_rows, site_row, write_images

HEIGHT, WIDTH, SIZE = 12, 10, 8
CROPS = Crops(size_px=SIZE, passes=2, global_batch_size=8, held_out=("b1/p1",))
TURNS: list[Callable[[np.ndarray], np.ndarray]] = [
    lambda x: x,
    lambda x: x.transpose(0, 2, 1)[:, ::-1],
    lambda x: x[:, ::-1, ::-1],
    lambda x: x.transpose(0, 2, 1)[:, :, ::-1],
]


@pytest.fixture
def screen(tmp_path: Path) -> ScreenIndex:
    """64 sites of 3 x 12 x 10 in four plates; each test may damage its own."""
    rows = screen_rows()
    write_images(tmp_path, rows)
    return build_index(as_table(rows), tmp_path, tmp_path / "index.parquet")


def cutter_of(screen: ScreenIndex, crops: Crops = CROPS, **fields) -> CropCutter:
    return CropCutter(index_path=str(screen.path), crops=crops, **({"seed": 5} | fields))


def file_of(screen: ScreenIndex, row: int) -> Path:
    return screen.root / screen.table["paths"][row].as_py()[0]


def tolerating(share: float) -> Crops:
    return dataclasses.replace(CROPS, tolerated_bad_sites=share)


def by_hand(screen: ScreenIndex, row: int, top: float, left: float, turn: int) -> np.ndarray:
    """The planned window of a site's file, turned, then mirrored from 4 on."""
    y, x = int(top * (HEIGHT - SIZE + 1)), int(left * (WIDTH - SIZE + 1))
    window = tifffile.imread(file_of(screen, row))[:, y : y + SIZE, x : x + SIZE]
    window = TURNS[turn % 4](window)
    return np.flip(window, 2) if turn >= 4 else window


def test_crops_are_the_planned_windows_of_the_files(screen: ScreenIndex):
    cutter, seen = cutter_of(screen), set()
    names = screen.labels()[1]
    for step in range(cutter.plan.steps):
        batch, at = cutter.cut(step), cutter.plan.batch(step)
        assert batch["crops"].dtype == np.uint8 and batch["crops"].shape == (8, 3, SIZE, SIZE)
        np.testing.assert_array_equal(batch["rows"], cutter.rows[at.site])
        np.testing.assert_array_equal(batch["bad"], -1)
        for i, row in enumerate(batch["rows"]):
            expected = by_hand(screen, row, at.top[i], at.left[i], at.turn[i])
            np.testing.assert_array_equal(batch["crops"][i], expected)
            assert names[batch["labels"][i]] == screen.table["perturbation"][int(row)].as_py()
            seen.add(int(at.turn[i]))
    assert seen == set(range(8))
    assert cutter.crop_bytes == 3 * SIZE * SIZE


@pytest.mark.parametrize("world", [2, 4])
def test_the_shares_of_workers_are_the_global_batch(screen: ScreenIndex, world: int):
    cutter = cutter_of(screen)
    whole, shares = cutter.cut(1), [cutter.cut(1, rank, world) for rank in range(world)]
    for name in ("crops", "labels", "rows", "bad"):
        np.testing.assert_array_equal(np.concatenate([x[name] for x in shares]), whole[name])
    assert all(len(x["read_cpu_s"]) == 8 // world for x in shares)


def test_a_copy_in_another_process_cuts_the_same(screen: ScreenIndex):
    cutter = cutter_of(screen)
    copy = pickle.loads(pickle.dumps(cutter))
    assert copy == cutter and hash(copy) == hash(cutter)
    np.testing.assert_array_equal(copy.cut(3)["crops"], cutter.cut(3)["crops"])


def test_a_stream_is_its_steps_in_order(screen: ScreenIndex):
    cutter = cutter_of(screen)
    for rank in range(2):
        stream = list(cutter.stream(2, 5, rank, 2))
        assert len(stream) == 3
        for step, batch in enumerate(stream, start=2):
            expected = cutter.cut(step, rank, 2)["crops"]
            np.testing.assert_array_equal(batch["crops"], expected)


def one_site(folder: Path, image: np.ndarray) -> ScreenIndex:
    row = site_row(0, 0, 1, 0)
    path = folder / row["paths"][0]
    path.parent.mkdir(parents=True)
    tifffile.imwrite(path, image, photometric="minisblack", planarconfig="separate")
    return build_index(as_table([row]), folder, folder / "index.parquet", require_controls=False)


def test_every_window_of_a_site_comes_up(tmp_path: Path):
    """Pixels tell where they are, so the smallest of a crop is its corner, however it is turned."""
    place = (10 * np.arange(HEIGHT)[:, None] + np.arange(WIDTH)).astype(np.uint8)
    screen = one_site(tmp_path, np.stack([place] * 3))
    cutter = cutter_of(screen, dataclasses.replace(CROPS, passes=400, held_out=()))
    corners = {int(crop.min()) for batch in cutter.stream(0, 50) for crop in batch["crops"]}
    assert corners == {10 * y + x for y in range(5) for x in range(3)}


def test_the_eight_symmetries_are_distinct(tmp_path: Path):
    image = pixels(0, height=SIZE, width=SIZE)
    cutter = cutter_of(
        one_site(tmp_path, image), dataclasses.replace(CROPS, passes=400, held_out=())
    )
    seen = {crop.tobytes() for batch in cutter.stream(0, 50) for crop in batch["crops"]}
    turned = [turn(image) for turn in TURNS]
    assert seen == {x.tobytes() for y in turned for x in (y, np.flip(y, 2))}
    assert len(seen) == 8


def test_held_out_plates_are_cut_apart_from_training(screen: ScreenIndex):
    training, held_out = cutter_of(screen), cutter_of(screen, held_out=True)
    plates = np.array(screen.table["experimental_batch"].to_pylist(), dtype=object) + "/"
    plates += np.array(screen.table["plate"].to_pylist(), dtype=object)
    assert set(plates[held_out.rows]) == {"b1/p1"}
    assert "b1/p1" not in set(plates[training.rows])
    assert len(training.rows) + len(held_out.rows) == screen.num_sites
    trained = {int(row) for b in training.stream(0, training.plan.steps) for row in b["rows"]}
    assert trained == set(training.rows.tolist())


def test_the_held_out_crops_are_one_of_each_site_and_the_same_for_every_seed(screen: ScreenIndex):
    one, two = (cutter_of(screen, held_out=True, seed=seed) for seed in (1, 2))
    batches = list(one.stream(0, one.plan.steps))
    rows = np.concatenate([batch["rows"] for batch in batches])
    assert sorted(rows) == one.rows.tolist()
    for step, batch in enumerate(batches):
        np.testing.assert_array_equal(batch["crops"], two.cut(step)["crops"])
    assert (
        cutter_of(screen, seed=1).cut(0)["rows"] != cutter_of(screen, seed=2).cut(0)["rows"]
    ).any()


def test_holding_out_nothing_is_a_clear_error(screen: ScreenIndex):
    cutter = cutter_of(screen, dataclasses.replace(CROPS, held_out=()), held_out=True)
    with pytest.raises(ValueError, match="holds out no site.*Name plates"):
        cutter.cut(0)


def test_a_fraction_cuts_from_fewer_wells(screen: ScreenIndex):
    half = cutter_of(screen, dataclasses.replace(CROPS, data_fraction=0.5))
    assert 0 < len(half.rows) < len(cutter_of(screen).rows)
    assert set(half.rows) < set(cutter_of(screen).rows)


def planned(cutter: CropCutter, step: int = 0) -> np.ndarray:
    """Rows of a step, by the plan."""
    return cutter.rows[cutter.plan.batch(step).site]


def test_a_bad_site_stops_and_is_named(screen: ScreenIndex):
    cutter = cutter_of(screen)
    row = int(planned(cutter)[3])
    file_of(screen, row).write_bytes(b"no image")
    with pytest.raises(BadSiteError) as caught:
        cutter.cut(0)
    told = str(caught.value)
    for expected in (
        f"Row {row} ",
        screen.table["site_id"][row].as_py(),
        str(file_of(screen, row)),
    ):
        assert expected in told
    assert "tolerated_bad_sites" in told


def test_a_tolerated_bad_site_is_marked_and_the_next_one_stands_in(screen: ScreenIndex):
    cutter = cutter_of(screen, tolerating(0.05))  # of 48 sites: two
    at, rows = cutter.plan.batch(0), planned(cutter)
    file_of(screen, rows[3]).unlink()
    next_row = int(cutter.rows[(at.site[3] + 1) % len(cutter.rows)])
    batch = cutter.cut(0)
    expected = np.where(np.arange(8) == 3, next_row, rows)
    np.testing.assert_array_equal(batch["rows"], expected)
    np.testing.assert_array_equal(batch["bad"], np.where(np.arange(8) == 3, rows[3], -1))
    window = by_hand(screen, next_row, at.top[3], at.left[3], at.turn[3])
    np.testing.assert_array_equal(batch["crops"][3], window)
    assert batch["labels"][3] == screen.labels()[0][next_row]


def test_what_is_marked_is_the_planned_site_however_far_the_next_one_is(screen: ScreenIndex):
    cutter = cutter_of(screen, tolerating(0.05))
    site, row = int(cutter.plan.batch(0).site[3]), int(planned(cutter)[3])
    near, far = (int(cutter.rows[(site + n) % len(cutter.rows)]) for n in (1, 2))
    for bad in (row, near):
        file_of(screen, bad).unlink()
    batch = cutter.cut(0)
    assert (batch["rows"][3], batch["bad"][3]) == (far, row)


def test_more_bad_sites_than_tolerated_stop(screen: ScreenIndex):
    cutter = cutter_of(screen, tolerating(0.05))
    first = int(cutter.plan.batch(0).site[0])
    for beyond in range(3):
        file_of(screen, cutter.rows[(first + beyond) % len(cutter.rows)]).unlink()
    with pytest.raises(BadSiteError, match="tolerated is 0.05"):
        cutter.cut(0)


def test_crops_larger_than_a_site_are_an_error(screen: ScreenIndex):
    cutter = cutter_of(screen, dataclasses.replace(CROPS, size_px=11))
    with pytest.raises(BadSiteError, match="12 x 10 px, smaller than a crop of 11 px"):
        cutter.cut(0)


def reader_of(screen: ScreenIndex, crops: Crops = CROPS) -> SiteReader:
    return SiteReader(index_path=str(screen.path), crops=crops)


def test_sites_come_whole_and_in_the_order_of_the_index(screen: ScreenIndex):
    reader = reader_of(screen)
    assert reader.num_sites == 64
    batches = list(reader.stream(sites_per_batch=24))
    assert [len(batch["rows"]) for batch in batches] == [24, 24, 16]
    np.testing.assert_array_equal(np.concatenate([b["rows"] for b in batches]), np.arange(64))
    images = np.concatenate([batch["images"] for batch in batches])
    for row, image in enumerate(images):
        np.testing.assert_array_equal(image, tifffile.imread(file_of(screen, row)))
    assert all((batch["bad"] == -1).all() for batch in batches)


def test_an_unreadable_site_stops_or_is_blank_and_marked(screen: ScreenIndex):
    file_of(screen, 5).write_bytes(b"")
    with pytest.raises(BadSiteError, match=r"Row 5 of the index"):
        reader_of(screen).read(4, 8)
    batch = reader_of(screen, tolerating(0.02)).read(4, 8)
    np.testing.assert_array_equal(batch["bad"], [-1, 5, -1, -1])
    assert not batch["images"][1].any()
    np.testing.assert_array_equal(batch["images"][2], tifffile.imread(file_of(screen, 6)))


def test_sites_of_two_sizes_are_not_embedded_together(tmp_path: Path):
    rows = screen_rows(batches=1, plates=1)
    write_images(tmp_path, rows)
    tifffile.imwrite(tmp_path / rows[3]["paths"][0], pixels(1, height=14), planarconfig="separate")
    screen = build_index(as_table(rows), tmp_path, tmp_path / "index.parquet")
    with pytest.raises(BadSiteError, match="one study embeds sites of one size"):
        list(reader_of(screen).stream())
