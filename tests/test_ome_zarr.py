"""Plates of OME-Zarr, written by zarr in both versions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from phenoscale.screens.images.readers import read_native
from phenoscale.screens.layouts.manifest import check_manifest
from phenoscale.screens.layouts.ome_zarr import find_sites
from phenoscale.screens.storage import Root
from tests.layout_writers import write_ome_zarr

Version = Literal[2, 3]
both_versions = pytest.mark.parametrize("zarr_format", [2, 3])


def metadata_file(group: Path) -> Path:
    return group / (".zattrs" if (group / ".zattrs").exists() else "zarr.json")


def edit(group: Path, before: str, after: str) -> None:
    """Changes the metadata of a group by hand."""
    path = metadata_file(group)
    text = json.dumps(json.loads(path.read_text()))
    assert before in text
    path.write_text(text.replace(before, after))


@both_versions
def test_wells_fields_channels_and_pixel_size(tmp_path: Path, zarr_format: Version) -> None:
    write_ome_zarr(tmp_path / "x.zarr", zarr_format=zarr_format)
    found = find_sites(Root.of(tmp_path / "x.zarr"), z="max", experimental_batch="b")
    rows = check_manifest(found.manifest).to_pylist()
    assert [(r["plate"], r["well"], r["site"]) for r in rows] == [
        ("plate-7", well, site) for well in ("A01", "B12") for site in (0, 1)
    ]
    assert rows[0]["channels"] == ["DNA", "ER"] and rows[0]["pixel_size_um"] == 0.65
    assert rows[3]["paths"] == ["B/12/1/0?t=0&z=max"]
    assert "time" not in rows[0]
    above = find_sites(Root.of(tmp_path), z="max", experimental_batch="b").manifest
    assert above["paths"].to_pylist()[3] == ["x.zarr/B/12/1/0?t=0&z=max"]


@both_versions
@pytest.mark.parametrize("axes", ["tczyx", "czyx", "tcyx", "cyx", "zyx", "yx"])
def test_pixels_of_any_axes(tmp_path: Path, zarr_format: Version, axes: str) -> None:
    channels = ("DNA", "ER") if "c" in axes else ("DNA",)
    written = write_ome_zarr(
        tmp_path,
        zarr_format=zarr_format,
        axes=axes,
        planes=3 if "z" in axes else 1,
        times=2 if "t" in axes else 1,
        channels=channels,
    )
    root = Root.of(tmp_path)
    z = "1" if "z" in axes else None
    times = "all" if "t" in axes else None
    rows = find_sites(root, z=z, times=times, experimental_batch="b").manifest.to_pylist()
    assert len(rows) == len(written)
    for row in rows:
        well = f"{row['well'][0]}/{int(row['well'][1:])}"
        stack = written[well, row["site"], row.get("time", 0)]
        got = read_native(root, row["paths"], row["channels"], channels)
        np.testing.assert_array_equal(got, stack[1 if "z" in axes else 0])


def test_choices_are_asked_for(tmp_path: Path) -> None:
    write_ome_zarr(tmp_path, zarr_format=3, times=2)
    root = Root.of(tmp_path)
    with pytest.raises(ValueError, match="planes 0 to 2, --z is None; choose max"):
        find_sites(root, times="0")
    with pytest.raises(ValueError, match="planes 0 to 2, --z is 3"):
        find_sites(root, z="3", times="0")
    with pytest.raises(ValueError, match="time points 0 to 1, --time is None"):
        find_sites(root, z="0")
    with pytest.raises(ValueError, match="--time is 0,2"):
        find_sites(root, z="0", times="0,2")
    with pytest.raises(ValueError, match="Nothing says which experimental batch"):
        find_sites(root, z="0", times="0")
    rows = find_sites(root, z="0", times="1", experimental_batch="b").manifest.to_pylist()
    assert {r["time"] for r in rows} == {1} and rows[0]["paths"] == ["A/1/0/0?t=1&z=0"]


def test_units_decide_whether_a_pixel_size_is_known(tmp_path: Path) -> None:
    sizes = {"micrometer": 0.65, "nanometer": 0.00065, "pixel": None}
    for unit, expected in sizes.items():
        write_ome_zarr(tmp_path / unit, zarr_format=2, unit=unit)
        found = find_sites(Root.of(tmp_path / unit), z="0", experimental_batch="b")
        assert found.manifest["pixel_size_um"][0].as_py() == pytest.approx(expected)


@both_versions
@pytest.mark.parametrize(
    ("group", "before", "after", "message"),
    [
        ("", '"A/1"', '"../1"', "with no '..'"),
        ("", '"A/1"', '"/A/1"', "ROW/COLUMN is required"),
        ("A/1", '"path": "1"', '"path": "../../../x"', "with no '..'"),
        ("A/1/0", '"path": "0"', '"path": "../0/../../etc"', "with no '..'"),
        ("A/1/0", '"path": "0"', '"path": "9"', "neither .zarray nor zarr.json"),
        ("A/1/0", '"DNA"', '"ER"', "each with its own label"),
        ("A/1", '"images"', '"pictures"', "has no 'images' in its OME-Zarr metadata"),
        ("A/1/0", '"multiscales"', '"scales"', "has no 'multiscales'"),
        ("A/1/0", '{"name": "t"}, ', "", "has the axes ['c', 'z', 'y', 'x'] and an array of"),
    ],
)
def test_metadata_that_lead_astray_are_refused(
    tmp_path: Path, zarr_format: Version, group: str, before: str, after: str, message: str
) -> None:
    write_ome_zarr(tmp_path, zarr_format=zarr_format)
    edit(tmp_path / group, before, after)
    with pytest.raises(ValueError) as error:
        find_sites(Root.of(tmp_path), z="0", experimental_batch="b")
    assert message in str(error.value)


def test_what_is_no_plate(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()  # an empty folder would be a share that is not mounted
    with pytest.raises(ValueError, match="holds no OME-Zarr plate"):
        find_sites(Root.of(tmp_path))
    (tmp_path / ".zattrs").write_text("{")
    with pytest.raises(ValueError, match="is no JSON"):
        find_sites(Root.of(tmp_path))
    (tmp_path / ".zattrs").write_text("[]")
    with pytest.raises(ValueError, match="holds list, not the metadata"):
        find_sites(Root.of(tmp_path))
