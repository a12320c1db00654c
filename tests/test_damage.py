"""A thousand damaged files among five thousand: each is named, none stops what tolerates it."""

from __future__ import annotations

import csv
import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from phenoscale.fit import checkpoints_of, fit_here
from phenoscale.screens.build import build_index, damaged_csv
from phenoscale.screens.check import check_index
from phenoscale.screens.cutter import BadSiteError, CropCutter
from phenoscale.screens.index import ScreenIndex
from phenoscale.study_files import StudyFiles
from tests.screen_on_disk import as_table, site_row
from tests.tiny import TINY

SITES, DAMAGED, SIZE = 5000, 1000, 20
CROPS = dataclasses.replace(
    TINY.crops, size_px=16, passes=1, global_batch_size=50, data_fraction=0.5
)
TRIAL = dataclasses.replace(TINY, crops=CROPS)


def rows_of_screen() -> list[dict[str, Any]]:
    """Ten plates of 125 wells of four sites; each batch has plates of one file per channel."""
    rows = []
    for b, p, w, s in itertools.product(range(2), range(5), range(125), range(4)):
        row = site_row(b, p, w, s, channels=["dna", "er"], well=f"A{w:03d}")
        if p > 2:
            stem = row["paths"][0].removesuffix(".tif")
            row["paths"] = [f"{stem}_dna.tif", f"{stem}_er.tif"]
        rows.append(row)
    return rows


def image_of(row: dict[str, Any], height: int = SIZE, channels: int = 0) -> np.ndarray:
    """What one file of a site holds; the second batch has 16 bits."""
    seed = int.from_bytes(row["site_id"].encode()) % 2**32
    shape = channels or 3 - len(row["paths"]), height, SIZE
    image = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return image if row["experimental_batch"] == "b0" else image.astype(np.uint16) * 100


def write(path: Path, image: np.ndarray) -> None:
    planes = "separate" if len(image) > 1 else None
    tifffile.imwrite(path, image, photometric="minisblack", planarconfig=planes, metadata=None)


def truncate(path: Path, row: dict[str, Any]) -> None:
    path.write_bytes(path.read_bytes()[:-SIZE])


def empty(path: Path, row: dict[str, Any]) -> None:
    path.write_bytes(b"")


def break_header(path: Path, row: dict[str, Any]) -> None:
    path.write_bytes(b"II*\0" + b"\xff" * 60 + path.read_bytes()[64:])


def enlarge(path: Path, row: dict[str, Any]) -> None:
    write(path, image_of(row, height=SIZE + 4))


def shrink(path: Path, row: dict[str, Any]) -> None:
    write(path, image_of(row, height=SIZE - 4))


def add_channel(path: Path, row: dict[str, Any]) -> None:
    write(path, image_of(row, channels=3))


def change_dtype(path: Path, row: dict[str, Any]) -> None:
    """To the other of the two types that a screen may have."""
    image = image_of(row)
    write(path, image.astype(np.uint8 if image.dtype == np.uint16 else np.uint16))


DAMAGES: list[Callable[[Path, dict[str, Any]], None]] = [
    truncate, empty, break_header, enlarge, shrink, add_channel, change_dtype,
]  # fmt: skip
OF_THE_IMAGE = (enlarge, shrink, change_dtype)
"""Damages after which a file is sound, and only not what the index says, or the other file is."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Damaged:
    """The screen after the damage, its index from before, and how each bad site was damaged."""

    root: Path
    rows: list[dict[str, Any]]
    index: ScreenIndex
    how: dict[str, Callable[[Path, dict[str, Any]], None]]


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Damaged:
    root = tmp_path_factory.mktemp("damaged")
    rows = rows_of_screen()
    (root / "images").mkdir()
    for row in rows:
        for path in row["paths"]:
            write(root / path, image_of(row))
    index = build_index(as_table(rows), root, root / "index.parquet")
    how = {}
    for n, chosen in enumerate(np.random.default_rng(0).permutation(SITES)[:DAMAGED]):
        row, damage = rows[chosen], DAMAGES[n % len(DAMAGES)]
        damage(root / row["paths"][-1], row)
        how[row["site_id"]] = damage
    return Damaged(root=root, rows=rows, index=index, how=how)


def test_a_check_names_exactly_the_damaged_sites(damaged: Damaged):
    report = check_index(damaged.index)
    assert len(report.unreadable) == len(report.problems) == DAMAGED and not report.missing
    assert {site for site, _ in report.unreadable} == set(damaged.how)
    paths = {row["site_id"]: row["paths"][-1] for row in damaged.rows}
    assert all(paths[site] in reason for site, reason in report.unreadable)
    assert "unreadable           1000" in report.lines()
    decoded = check_index(damaged.index, decode=True)
    assert decoded.unreadable == report.unreadable


def test_an_index_leaves_out_and_lists_exactly_the_damaged_sites(damaged: Damaged, tmp_path: Path):
    """An only file of another size or type is sound to one who does not know the old index."""
    alone = {row["site_id"] for row in damaged.rows if len(row["paths"]) == 1}
    bad = {s for s, how in damaged.how.items() if how not in OF_THE_IMAGE or s not in alone}
    assert 700 < len(bad) < DAMAGED
    out = tmp_path / "index.parquet"
    index = build_index(as_table(damaged.rows), damaged.root, out, damaged="leave_out")
    assert index.table["site_id"].to_pylist() == [
        row["site_id"] for row in damaged.rows if row["site_id"] not in bad
    ]
    with damaged_csv(out).open(newline="") as lines:
        assert [row["site_id"] for row in csv.DictReader(lines)] == sorted(bad)
    with pytest.raises(ValueError, match=f"site .* {len(bad) - 1} more sites have bad images"):
        build_index(as_table(damaged.rows), damaged.root, tmp_path / "none.parquet")
    assert not (tmp_path / "none.parquet").exists()


def bad_rows(damaged: Damaged, rows: np.ndarray) -> list[int]:
    """Those of some rows of the index from before that are damaged now."""
    ids = damaged.index.table["site_id"].to_pylist()
    return [int(row) for row in rows if ids[row] in damaged.how]


@pytest.mark.parametrize("crops_per_read", [1, 2])
def test_training_passes_over_exactly_the_damaged_sites(
    damaged: Damaged, tmp_path: Path, crops_per_read: int
):
    crops = dataclasses.replace(
        CROPS, tolerated_bad_sites=0.25, passes=crops_per_read, crops_per_read=crops_per_read
    )
    trial = dataclasses.replace(TRIAL, crops=crops)
    files = StudyFiles(study_dir=tmp_path, index=damaged.index.path)
    fitted = fit_here(lambda cutter, first, last: cutter.stream(first, last))(
        trial, files, lambda progress: None
    )
    cutter = CropCutter(index_path=str(files.index), crops=crops, seed=trial.seed)
    expected = bad_rows(damaged, cutter.rows)
    assert len(cutter.rows) == SITES // 2 and 400 < len(expected) < 600
    assert fitted.record.bad_rows == expected
    assert fitted.crops == crops_per_read * len(cutter.rows)


def test_what_stands_in_for_damaged_sites_is_sound(damaged: Damaged):
    crops = dataclasses.replace(CROPS, tolerated_bad_sites=0.25)
    cutter = CropCutter(index_path=damaged.index.location, crops=crops, seed=0)
    sound = set(cutter.rows.tolist()) - set(bad_rows(damaged, cutter.rows))
    used = {int(row) for b in cutter.stream(0, cutter.plan.steps) for row in b["rows"]}
    assert used == sound


@pytest.mark.parametrize("tolerated", [0.0, 0.1])
def test_a_smaller_tolerance_stops_the_trial(damaged: Damaged, tmp_path: Path, tolerated: float):
    crops = dataclasses.replace(CROPS, tolerated_bad_sites=tolerated)
    trial = dataclasses.replace(TRIAL, crops=crops)
    files = StudyFiles(study_dir=tmp_path, index=damaged.index.path)
    with pytest.raises(BadSiteError, match="tolerated"):
        fit_here(lambda cutter, first, last: cutter.stream(first, last))(
            trial, files, lambda progress: None
        )
    assert checkpoints_of(trial, files).latest() is None or tolerated
