"""Crops and sites: the plan's coordinates cut by hand out of the files."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pytest
import tifffile

from phenoscale.config import SAMPLINGS, Crops
from phenoscale.screens.build import build_index
from phenoscale.screens.cutter import (
    BadSiteError,
    CropCutter,
    chapters,
    within_tolerance,
)
from phenoscale.screens.index import ScreenIndex
from phenoscale.screens.site_reader import SiteReader
from phenoscale.screens.subset import Subset
from tests.screen_on_disk import as_table, pixels, screen_rows, site_row, write_images

HEIGHT, WIDTH, SIZE = 12, 10, 8
CROPS = Crops(size_px=SIZE, passes=2, global_batch_size=8, held_out=("b1/p1",))


@pytest.fixture
def screen(tmp_path: Path) -> ScreenIndex:
    """64 sites of 3 x 12 x 10 in four plates; each test may damage its own."""
    rows = screen_rows()
    write_images(tmp_path, rows)
    return build_index(as_table(rows), tmp_path, tmp_path / "index.parquet")


def cutter_of(screen: ScreenIndex, crops: Crops = CROPS, **fields) -> CropCutter:
    return CropCutter(index_path=str(screen.path), crops=crops, **({"seed": 5} | fields))


def file_of(screen: ScreenIndex, row: int) -> Path:
    assert screen.root.folder is not None
    return Path(screen.root.folder, screen.table["paths"][int(row)].as_py()[0])


def cut_one(cutter: CropCutter, step: int, lanes: range | None = None) -> dict[str, np.ndarray]:
    """The crops of one step, arrays (L, ...)."""
    return {name: x[0] for name, x in cutter.cut(step, step + 1, lanes).items()}


def tolerating(share: float) -> Crops:
    return dataclasses.replace(CROPS, tolerated_bad_sites=share)


def by_hand(screen: ScreenIndex, row: int, top: float, left: float) -> np.ndarray:
    """The planned window of a site's file, not yet turned."""
    y, x = int(top * (HEIGHT - SIZE + 1)), int(left * (WIDTH - SIZE + 1))
    return tifffile.imread(file_of(screen, row))[:, y : y + SIZE, x : x + SIZE]


def test_crops_are_the_planned_windows_of_the_files(screen: ScreenIndex):
    cutter = cutter_of(screen)
    names = screen.labels()[1]
    for step in range(cutter.plan.steps):
        batch, at = cut_one(cutter, step), cutter.plan.batch(step)
        assert batch["crops"].dtype == np.uint8 and batch["crops"].shape == (8, 3, SIZE, SIZE)
        np.testing.assert_array_equal(batch["rows"], cutter.rows[at.site])
        np.testing.assert_array_equal(batch["turns"], at.turn)
        np.testing.assert_array_equal(batch["bad"], -1)
        for i, row in enumerate(batch["rows"]):
            expected = by_hand(screen, row, at.top[i], at.left[i])
            np.testing.assert_array_equal(batch["crops"][i], expected)
            assert names[batch["labels"][i]] == screen.table["perturbation"][int(row)].as_py()
    assert cutter.crop_bytes == 3 * SIZE * SIZE


def sampled(sampling: str, crops_per_read: int = 1) -> Crops:
    """Crops of the same screen, drawn in another way."""
    return dataclasses.replace(
        CROPS,
        passes=4,
        global_batch_size=16,
        crops_per_plate=4,
        sampling=sampling,
        crops_per_read=crops_per_read,
    )


@pytest.mark.parametrize("crops_per_read", [1, 2])
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_blocks_of_any_shape_hold_the_crops_of_their_steps_and_lanes(
    screen: ScreenIndex, sampling: str, crops_per_read: int
):
    crops = sampled(sampling, crops_per_read)
    cutter = cutter_of(screen, crops)
    steps = cutter.plan.steps
    whole = cutter.cut(0, steps)
    for name in ("crops", "turns", "labels", "rows", "bad"):
        assert whole[name].shape == (steps, 16, *((3, SIZE, SIZE) if name == "crops" else ()))
        for world in (2, 4):
            parts = [cutter.cut(0, steps, cutter.plan.lanes(r, world))[name] for r in range(world)]
            np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole[name])
        by_step = np.stack([cut_one(cutter, step)[name] for step in range(steps)])
        np.testing.assert_array_equal(by_step, whole[name])
    for step in range(steps):
        at = cutter.plan.batch(step)
        np.testing.assert_array_equal(whole["rows"][step], cutter.rows[at.site])
        for lane, row in enumerate(whole["rows"][step]):
            expected = by_hand(screen, row, at.top[lane], at.left[lane])
            np.testing.assert_array_equal(whole["crops"][step, lane], expected)


def test_plate_wise_batches_are_runs_of_one_plate(screen: ScreenIndex):
    """The plan counts plates, the files are found by groups of rows: both mean the same rows."""
    cutter = cutter_of(screen, sampled("plate_wise"))
    names = screen.metadata()["experimental_batch"] + "/" + screen.metadata()["plate"]
    for batch in cutter.stream(0, cutter.plan.steps):
        runs = names.to_numpy()[batch["rows"]].reshape(4, 4)
        assert all(len(set(run)) == 1 and "b1/p1" not in run for run in runs)


def test_class_balanced_batches_hold_classes_evenly(screen: ScreenIndex):
    cutter = cutter_of(screen, sampled("class_balanced"))
    drawn = np.concatenate([b["labels"] for b in cutter.stream(0, cutter.plan.steps)])
    counts = np.bincount(drawn, minlength=7)
    # One of seven classes, the controls, has a quarter of the sites.
    assert counts.min() >= 0.9 * counts.mean() and counts.max() <= 1.1 * counts.mean()


def test_the_cpu_seconds_of_a_call_are_shared_among_its_crops(screen: ScreenIndex):
    spent = cutter_of(screen).cut(0, 3)["read_cpu_s"]
    assert spent.shape == (3, 8) and np.ptp(spent) == 0 and 0 < spent.sum() < 5


def test_a_copy_in_another_process_cuts_the_same(screen: ScreenIndex):
    cutter = cutter_of(screen)
    copy = pickle.loads(pickle.dumps(cutter))
    assert copy == cutter and hash(copy) == hash(cutter)
    np.testing.assert_array_equal(copy.cut(3, 5)["crops"], cutter.cut(3, 5)["crops"])


@pytest.mark.parametrize("crops_per_read", [1, 2])
def test_a_stream_is_its_steps_in_order(screen: ScreenIndex, crops_per_read: int):
    cutter = cutter_of(screen, dataclasses.replace(CROPS, passes=6, crops_per_read=crops_per_read))
    for rank in range(2):
        stream = list(cutter.stream(2, 30, rank, 2))
        assert len(stream) == 28
        for step, batch in enumerate(stream, start=2):
            expected = cut_one(cutter, step, cutter.plan.lanes(rank, 2))["crops"]
            np.testing.assert_array_equal(batch["crops"], expected)


def test_chapters_end_where_reads_do(screen: ScreenIndex):
    crops = dataclasses.replace(CROPS, passes=8, crops_per_read=4, held_out=())
    plan = cutter_of(screen, crops).plan
    assert (plan.steps, plan.chapter_steps) == (64, 8)
    assert list(chapters(plan, 0, 32)) == [(0, 8), (8, 16), (16, 24), (24, 32)]
    assert list(chapters(plan, 5, 21)) == [(5, 8), (8, 16), (16, 21)]
    assert list(chapters(plan, 5, 32, at_least=9)) == [(5, 16), (16, 32)]
    assert list(chapters(plan, 7, 7)) == []


def test_a_file_is_read_once_for_all_its_crops_of_a_block(screen: ScreenIndex):
    """A chapter reads each of its sites once: cut twice as many crops, open as many files."""
    crops = dataclasses.replace(CROPS, passes=8, crops_per_read=4, held_out=())
    cutter = cutter_of(screen, crops)
    block = cutter.cut(0, cutter.plan.chapter_steps)
    visits = np.unique(block["rows"], return_counts=True)[1]
    assert block["rows"].size == 64 and len(visits) == 16 and set(visits) == {4}


def one_site(folder: Path, image: np.ndarray) -> ScreenIndex:
    row = site_row(0, 0, 1, 0)
    path = folder / row["paths"][0]
    path.parent.mkdir(parents=True)
    tifffile.imwrite(path, image, photometric="minisblack", planarconfig="separate")
    return build_index(as_table([row]), folder, folder / "index.parquet", require_controls=False)


def test_every_window_of_a_site_comes_up(tmp_path: Path):
    """Pixels tell where they are, so the smallest of a crop is its corner."""
    place = (10 * np.arange(HEIGHT)[:, None] + np.arange(WIDTH)).astype(np.uint8)
    screen = one_site(tmp_path, np.stack([place] * 3))
    cutter = cutter_of(screen, dataclasses.replace(CROPS, passes=400, held_out=()))
    corners = {int(crop.min()) for batch in cutter.stream(0, 50) for crop in batch["crops"]}
    assert corners == {10 * y + x for y in range(5) for x in range(3)}


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
        np.testing.assert_array_equal(batch["crops"], cut_one(two, step)["crops"])
    assert (
        cutter_of(screen, seed=1).cut(0, 1)["rows"] != cutter_of(screen, seed=2).cut(0, 1)["rows"]
    ).any()


def test_holding_out_nothing_is_a_clear_error(screen: ScreenIndex):
    cutter = cutter_of(screen, dataclasses.replace(CROPS, held_out=()), held_out=True)
    with pytest.raises(ValueError, match="holds out no site.*Name plates"):
        cutter.cut(0, 1)


@pytest.mark.parametrize("fraction", [0.3, 1.0])
def test_crops_come_from_the_subset(screen: ScreenIndex, fraction: float):
    cutter = cutter_of(screen, dataclasses.replace(CROPS, data_fraction=fraction, passes=4))
    subset = Subset.of(screen, fraction, CROPS.held_out)
    np.testing.assert_array_equal(cutter.rows, subset.rows())
    assert cutter.num_sites == len(subset)
    seen = {int(row) for b in cutter.stream(0, cutter.plan.steps) for row in b["rows"]}
    assert seen == set(subset.rows().tolist())


def planned(cutter: CropCutter, step: int = 0) -> np.ndarray:
    """Rows of a step, by the plan."""
    return cutter.rows[cutter.plan.batch(step).site]


def test_a_bad_site_stops_and_is_named(screen: ScreenIndex):
    cutter = cutter_of(screen)
    row = int(planned(cutter)[3])
    file_of(screen, row).write_bytes(b"no image")
    with pytest.raises(BadSiteError) as caught:
        cutter.cut(0, 1)
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
    batch = cut_one(cutter, 0)
    expected = np.where(np.arange(8) == 3, next_row, rows)
    np.testing.assert_array_equal(batch["rows"], expected)
    np.testing.assert_array_equal(batch["bad"], np.where(np.arange(8) == 3, rows[3], -1))
    window = by_hand(screen, next_row, at.top[3], at.left[3])
    np.testing.assert_array_equal(batch["crops"][3], window)
    assert batch["labels"][3] == screen.labels()[0][next_row]


def test_what_is_marked_is_the_planned_site_however_far_the_next_one_is(screen: ScreenIndex):
    cutter = cutter_of(screen, tolerating(0.05))
    site, row = int(cutter.plan.batch(0).site[3]), int(planned(cutter)[3])
    near, far = (int(cutter.rows[(site + n) % len(cutter.rows)]) for n in (1, 2))
    for bad in (row, near):
        file_of(screen, bad).unlink()
    batch = cut_one(cutter, 0)
    assert (batch["rows"][3], batch["bad"][3]) == (far, row)


def test_more_bad_sites_than_tolerated_stop(screen: ScreenIndex):
    cutter = cutter_of(screen, tolerating(0.05))
    first = int(cutter.plan.batch(0).site[0])
    for beyond in range(3):
        file_of(screen, cutter.rows[(first + beyond) % len(cutter.rows)]).unlink()
    with pytest.raises(BadSiteError, match="tolerated is 0.05"):
        cutter.cut(0, 1)


def test_crops_larger_than_a_site_are_an_error(screen: ScreenIndex):
    cutter = cutter_of(screen, dataclasses.replace(CROPS, size_px=11))
    with pytest.raises(BadSiteError, match="12 x 10 px, smaller than a crop of 11 px"):
        cutter.cut(0, 1)


def bad_batches(*rows: list[int]) -> list[dict[str, np.ndarray]]:
    return [{"bad": np.array(row)} for row in rows]


def test_bad_sites_of_a_stream_are_counted_once_each(screen: ScreenIndex):
    cutter = cutter_of(screen, tolerating(0.05))  # of 48 sites: two
    batches = bad_batches([-1, 7], [7, 9, -1], [9, 7], [-1, -1])
    assert list(within_tolerance(cutter, iter(batches))) == batches
    stream = within_tolerance(cutter, iter(bad_batches([7, -1], [9, 7], [11, 7], [12, 13])))
    assert len([next(stream), next(stream)]) == 2
    with pytest.raises(BadSiteError, match=r"3 of 48 sites .* of 0.05: rows \[7, 9, 11\] of the"):
        next(stream)


def reader_of(screen: ScreenIndex, crops: Crops = CROPS) -> SiteReader:
    return SiteReader(index_path=str(screen.path), crops=crops)


def test_sites_come_whole_and_in_the_order_of_the_index(screen: ScreenIndex):
    reader = reader_of(screen)
    assert reader.num_sites == 64
    assert reader.channels == screen.channels
    assert [row for plate in reader.plates for row in plate] == list(range(64))
    batches = [reader.read(plate.start, plate.stop) for plate in reader.plates]
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


def test_a_file_of_another_size_than_the_index_says_is_a_bad_site(screen: ScreenIndex):
    for height in (11, 14):
        tifffile.imwrite(file_of(screen, 5), pixels(1, height=height), photometric="minisblack")
        with pytest.raises(BadSiteError, match=f"Row 5 of the index: .* is {height} x 10"):
            reader_of(screen).read(4, 8)
        batch = reader_of(screen, tolerating(0.02)).read(4, 8)
        np.testing.assert_array_equal(batch["bad"], [-1, 5, -1, -1])
        assert batch["images"].shape == (4, 3, HEIGHT, WIDTH)


def test_sites_of_two_sizes_are_not_embedded_together(tmp_path: Path):
    rows = screen_rows(batches=1, plates=1)
    write_images(tmp_path, rows)
    tifffile.imwrite(tmp_path / rows[3]["paths"][0], pixels(1, height=14), planarconfig="separate")
    screen = build_index(as_table(rows), tmp_path, tmp_path / "index.parquet")
    with pytest.raises(BadSiteError, match="one study embeds sites of one size"):
        reader_of(screen).read(0, 8)
