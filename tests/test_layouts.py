"""Every layout, on disk and in an object store: the sites that were written, pixel for pixel."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from phenoscale.screens.images.readers import read_native
from phenoscale.screens.layouts.by_name import LAYOUTS, summary
from phenoscale.screens.layouts.found import Found
from phenoscale.screens.layouts.manifest import check_manifest
from phenoscale.screens.storage import Root
from tests.layout_writers import (
    Sites,
    pixels,
    put_tiff,
    write_load_data,
    write_ome_zarr,
    write_rxrx1,
    write_rxrx3,
    write_rxrx3_core,
)
from tests.s3 import LocalS3

Case = tuple[str, Callable[[Path], Sites], dict]


def jump(root: Path) -> Sites:
    return write_load_data(
        root, "source_1", "Batch1", "P1", ["A01", "B02"], prefix="s3://gallery/x"
    )


def ome_zarr(root: Path) -> Sites:
    fields = write_ome_zarr(root / "a.zarr", zarr_format=3)
    stacks = {("b", "plate-7", well, site): f for (well, site, _), f in fields.items()}
    return {
        (batch, plate, f"{well[0]}{int(well[2:]):02d}", site): stack.max(axis=0)
        for (batch, plate, well, site), stack in stacks.items()
    }


def pattern(root: Path) -> Sites:
    sites: Sites = {}
    for plate in ("P1", "P2"):
        for well in ("A1", "H12"):
            for site in (1, 2):
                image = pixels(len(sites), 2)
                sites["b", plate, f"{well[0]}{int(well[1:]):02d}", site] = image
                for name, channel in zip(("er", "dna"), image, strict=True):
                    put_tiff(root / plate / f"{well}_s{site}_{name}.tif", channel)
    (root / "notes.txt").write_text("by hand\n")
    return sites


CASES: dict[str, Case] = {
    "rxrx1": ("rxrx1", write_rxrx1, {}),
    "rxrx3": ("rxrx3", write_rxrx3, {}),
    "rxrx3-core": ("rxrx3-core", write_rxrx3_core, {}),
    "jump": ("jump", jump, {"prefix": "s3://gallery/x", "experimental_batch": "source_1__Batch1"}),
    "ome-zarr": ("ome-zarr", ome_zarr, {"z": "max", "experimental_batch": "b"}),
    "pattern": (
        "pattern",
        pattern,
        {"template": "{plate}/{well}_s{site}_{channel}.tif", "experimental_batch": "b"},
    ),
}


def read_back(found: Found, root: Root) -> Sites:
    """All channels of every site, in the order of its first."""
    sites: Sites = {}
    for row in check_manifest(found.manifest).to_pylist():
        key = (row["experimental_batch"], row["plate"], row["well"], row["site"])
        assert key not in sites
        sites[key] = read_native(root, row["paths"], row["channels"], row["channels"])
    return sites


def assert_same(left: Sites, right: Sites) -> None:
    assert sorted(left) == sorted(right)
    for key, image in left.items():
        assert image.dtype == right[key].dtype
        np.testing.assert_array_equal(image, right[key], err_msg=str(key))


def test_all_layouts_are_tested() -> None:
    assert set(CASES) == set(LAYOUTS)


@pytest.mark.parametrize("case", CASES)
def test_sites_come_back_from_disk_and_store(case: str, tmp_path: Path, s3: LocalS3) -> None:
    layout, write, options = CASES[case]
    folder = tmp_path / "screen"
    folder.mkdir()
    written = write(folder)
    if case == "pattern":  # channels without a wish stand in alphabetical order
        written = {key: image[::-1] for key, image in written.items()}
    here = Root.of(folder)
    found = LAYOUTS[layout](here, **options)
    assert_same(read_back(found, here), written)
    there = Root.of(s3.put(folder))
    again = LAYOUTS[layout](there, **options)
    assert again.manifest.equals(found.manifest)
    assert again.passed_over == found.passed_over
    assert_same(read_back(again, there), written)


@pytest.mark.parametrize("case", CASES)
def test_every_file_is_in_a_site_or_passed_over(case: str, tmp_path: Path) -> None:
    layout, write, options = CASES[case]
    folder = tmp_path / "screen"
    folder.mkdir()
    write(folder)
    (folder / "stray.tif").write_bytes(b"")
    found = LAYOUTS[layout](Root.of(folder), **options)
    used = {
        path.partition("?")[0]
        for path in found.manifest["paths"].combine_chunks().flatten().to_pylist()
    }
    passed_over = [path for path, _ in found.passed_over]
    if layout in ("jump", "ome-zarr"):  # their own tables say what there is, no folder is listed
        assert not passed_over
        return
    everything = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert used | set(passed_over) == everything and "stray.tif" in passed_over
    assert len(passed_over) == len(set(passed_over)) and not used & set(passed_over)


def test_a_summary_counts_and_names(tmp_path: Path) -> None:
    pattern(tmp_path)
    (tmp_path / "other.txt").write_text("")
    found = LAYOUTS["pattern"](Root.of(tmp_path), **CASES["pattern"][2])
    lines = summary(found)
    assert lines[0] == "8 sites, 4 wells, 2 plates, 0 sites of negative controls"
    assert lines[1] == "channels dna, er (8 sites)"
    assert lines[2] == "passed over 2 files, its name does not match: notes.txt, other.txt"
    assert lines[3] == "Without a plate map, all are 'unlabelled'."
