"""Folder trees through templates and presets: made by hand, and as microscopes wrote them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tifffile

from phenoscale.screens.images.readers import read_native
from phenoscale.screens.layouts.assemble import Choices
from phenoscale.screens.layouts.pattern import find_sites
from phenoscale.screens.storage import Root

SIMPLE = "{plate}/{well}_s{site}_w{channel}.tif"


def tree(root: Path, *paths: str) -> Root:
    """Empty files: what a name says is all that is asked of them here."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return Root.of(root)


def sites(root: Root, **options) -> list[dict]:
    return find_sites(root, **{"experimental_batch": "b"} | options).manifest.to_pylist()


def reasons(root: Root, **options) -> Counter:
    found = find_sites(root, **{"experimental_batch": "b"} | options)
    return Counter(reason for _, reason in found.passed_over)


# --- trees made by hand ---------------------------------------------------------------------


def test_channels_are_named_ordered_and_chosen(tmp_path: Path) -> None:
    root = tree(tmp_path, *[f"P/{w}_s1_w{c}.tif" for w in ("A1", "b12") for c in ("01", "2", "10")])
    plain = sites(root, template=SIMPLE)
    assert [row["well"] for row in plain] == ["A01", "B12"]
    assert plain[0]["channels"] == ["1", "2", "10"]
    assert plain[0]["paths"] == ["P/A1_s1_w01.tif", "P/A1_s1_w2.tif", "P/A1_s1_w10.tif"]
    choices = Choices(channels={"10": "ER", "1": "DNA"})
    (first, _) = sites(root, template=SIMPLE, choices=choices)
    assert first["channels"] == ["ER", "DNA"]
    assert first["paths"] == ["P/A1_s1_w10.tif", "P/A1_s1_w01.tif"]
    assert reasons(root, template=SIMPLE, choices=choices) == {"its channel was not chosen": 2}


def test_rows_columns_and_folders(tmp_path: Path) -> None:
    root = tree(tmp_path, "x/y/b1/P/r27c03.png", "x/y/b1/P/rAFc48.png", "x/y/b1/P/rc.png")
    template = "**/{experimental_batch}/{plate}/r{row}c{column}.png"
    found = find_sites(root, template=template)
    rows = found.manifest.to_pylist()
    assert [(r["experimental_batch"], r["plate"], r["well"], r["site"]) for r in rows] == [
        ("b1", "P", "AA03", 1),
        ("b1", "P", "AF48", 1),
    ]
    assert found.passed_over == (("x/y/b1/P/rc.png", "its name does not match"),)
    assert rows[0]["perturbation"] == "unlabelled" and rows[0]["perturbation_type"] == "none"


def test_optional_parts_wild_parts_and_narrowed_fields(tmp_path: Path) -> None:
    root = tree(tmp_path, "A01-x1.TIF", "A01_s2-y1.tif", "A02_s2-zz3.tif")
    rows = sites(
        root, template="{well}[_s{site}]-*{channel:[0-9]}.tif", choices=Choices(channels={"1": "n"})
    )
    assert [(r["well"], r["site"]) for r in rows] == [("A01", 1), ("A01", 2)]
    assert {row["plate"] for row in rows} == {tmp_path.name}


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{plate}/{wel}.tif", "unknown field {wel}; known are"),
        ("{plate}/{site}.tif", "does not say where the well stands"),
        ("{well}_{well}.tif", r"has ['well'] twice"),
        ("{well}_{site.tif", "brace or bracket without its partner at 8"),
        ("{well}[_s{site}.tif", "brace or bracket without its partner"),
    ],
)
def test_a_wrong_template_is_explained(tmp_path: Path, template: str, message: str) -> None:
    with pytest.raises(ValueError) as error:
        find_sites(tree(tmp_path, "A01.tif"), template=template)
    assert message in str(error.value)


def test_template_and_preset_are_alternatives(tmp_path: Path) -> None:
    root = tree(tmp_path, "A01.tif")
    for options in ({}, {"template": "{well}.tif", "preset": "phenix"}):
        with pytest.raises(
            ValueError, match="either a template or a preset; the presets are image"
        ):
            find_sites(root, **options)
    with pytest.raises(ValueError, match="no preset 'opera'; there are imagexpress, phenix, yoko"):
        find_sites(root, preset="opera")


def test_what_matches_nothing_is_shown(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"None of 1 files .* The first are \['A01.tif'\]"):
        find_sites(tree(tmp_path, "A01.tif"), template=SIMPLE)


def test_a_batch_must_be_named_once(tmp_path: Path) -> None:
    root = tree(tmp_path, "b1/P/A01.tif")
    with pytest.raises(ValueError, match="Nothing says which experimental batch"):
        find_sites(root, template="b1/{plate}/{well}.tif")
    with pytest.raises(ValueError, match="leave --experimental-batch out"):
        find_sites(root, template="{experimental_batch}/{plate}/{well}.tif", experimental_batch="b")


def test_incomplete_sites_are_refused_or_listed(tmp_path: Path) -> None:
    names = [f"P/A0{w}_s1_w{c}.tif" for w in range(1, 5) for c in (1, 2)]
    root = tree(tmp_path, *names[:-1])
    with pytest.raises(ValueError) as error:
        sites(root, template=SIMPLE)
    text = str(error.value)
    assert text.startswith("1 of 4 sites are incomplete: P A04 site 1 lacks the channels ['2'].")
    found = find_sites(
        root, template=SIMPLE, choices=Choices(incomplete="leave_out"), experimental_batch="b"
    )
    assert found.manifest["well"].to_pylist() == ["A01", "A02", "A03"]
    assert found.passed_over == (("P/A04_s1_w1.tif", "its site is incomplete"),)


def test_a_missing_plane_makes_a_site_incomplete(tmp_path: Path) -> None:
    names = [f"P/A0{w}_z{z}.tif" for w in (1, 2) for z in (1, 2, 3)]
    root = tree(tmp_path, *names[:-2], names[-1])
    options = {"template": "{plate}/{well}_z{z}.tif"}
    with pytest.raises(ValueError, match=r"P A02 site 1 lacks the planes \[2\] of channel 1"):
        sites(root, choices=Choices(z="max"), **options)
    (row,) = sites(root, choices=Choices(z="max", incomplete="leave_out"), **options)
    assert row["paths"] == ["P/A01_z1.tif*P/A01_z2.tif*P/A01_z3.tif"]
    assert [r["well"] for r in sites(root, choices=Choices(z="3"), **options)] == ["A01", "A02"]


def test_two_files_for_one_place_are_named(tmp_path: Path) -> None:
    root = tree(tmp_path, "run1/A01.tif", "run2/A01.tif")
    with pytest.raises(ValueError, match="'run1/A01.tif' and 'run2/A01.tif': both are plate"):
        sites(root, template="*/{well}.tif")


def test_names_that_mean_something_in_an_index_are_refused(tmp_path: Path) -> None:
    for name in ("a*b", "a|b", "a?b"):
        folder = tmp_path / str(ord(name[1]))
        with pytest.raises(ValueError, match="Rename these files"):
            sites(tree(folder, f"{name}/A01.tif"), template="*/{well}.tif")


def test_channel_wishes_that_cannot_be_met(tmp_path: Path) -> None:
    root = tree(tmp_path, "P/A01_s1_w1.tif")
    with pytest.raises(ValueError, match=r"names \['7'\], the files have the channels \['1'\]"):
        sites(root, template=SIMPLE, choices=Choices(channels={"7": "DNA"}))
    with pytest.raises(ValueError, match=r"lacks the channels \['ER'\]"):
        sites(root, template=SIMPLE, choices=Choices(channels={"1": "DNA", "7": "ER"}))
    with pytest.raises(ValueError, match="each needs a name of its own"):
        Choices(channels={"1": "DNA", "2": "DNA"})
    with pytest.raises(ValueError, match="one of .* is required"):
        Choices(incomplete="ignore")


def test_microscopes_name_plates_by_folders(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        "P1__2020-11-08T19_57_47-Measurement 1/Images/r02c03f04p01-ch1sk1fk1fl1.tiff",
        "P2__2020-11-09/Images/r02c03f04p01-ch1sk1fk1fl1.tiff",
        "P2__2020-11-09/Images/Index.idx.xml",
    )
    rows = sites(root, preset="phenix")
    assert [r["plate"] for r in rows] == ["P1__2020-11-08T19_57_47-Measurement 1", "P2__2020-11-09"]
    assert {(r["well"], r["site"]) for r in rows} == {("B03", 4)}
    assert reasons(root, preset="phenix") == {"it is the microscope's own index": 1}


def test_imagexpress_names_without_plate_site_or_channel(tmp_path: Path) -> None:
    root = tree(
        tmp_path, "TimePoint_1/A01_s1_w1.tif", "TimePoint_1/A01_s2_w1.TIF", "TimePoint_1/B02.tif"
    )
    rows = sites(root, preset="imagexpress")
    assert [(r["well"], r["site"]) for r in rows] == [("A01", 1), ("A01", 2), ("B02", 1)]


# --- as microscopes wrote them ---------------------------------------------------------------


@pytest.fixture
def projection_mix(real_data: Path) -> Root:
    return Root.of(real_data / "hcs_layouts/imagexpress_projection_mix")


def test_imagexpress_asks_for_z_and_lists_what_there_is(projection_mix: Root) -> None:
    with pytest.raises(ValueError) as error:
        sites(projection_mix, preset="imagexpress")
    text = str(error.value)
    assert "channel 1: planes 1, 2, 3 and projection; " in text
    assert "channel 3: projection; channel 4: planes 1. Choose with --z" in text
    with pytest.raises(ValueError, match="--z 2 leaves no file of channel 3"):
        sites(projection_mix, preset="imagexpress", choices=Choices(z="2"))
    with pytest.raises(ValueError, match="'mean' is no rule"):
        sites(projection_mix, preset="imagexpress", choices=Choices(z="mean"))
    with pytest.raises(ValueError, match="no channel '9'"):
        sites(projection_mix, preset="imagexpress", choices=Choices(z="max,9=1"))


@pytest.mark.parametrize(
    ("z", "wanted", "files", "planes"),
    [
        ("projection", "123", 12, "001"),
        ("2", "12", 8, "ZStep_2"),
        ("max", "12", 24, "ZStep_1"),
        ("projection,4=1", "1234", 16, "ZStep_1"),
    ],
)
def test_imagexpress_projections_and_planes(
    projection_mix: Root, z: str, wanted: str, files: int, planes: str
) -> None:
    choices = Choices(z=z, channels={channel: channel for channel in wanted})
    found = find_sites(
        projection_mix, preset="imagexpress", choices=choices, experimental_batch="b"
    )
    rows = found.manifest.to_pylist()
    assert [(r["plate"], r["well"], r["site"]) for r in rows] == [
        ("Projection-Mix", well, site) for well in ("E07", "E08") for site in (1, 2)
    ]
    used = [path for row in rows for entry in row["paths"] for path in entry.split("*")]
    assert len(used) == len(set(used)) == files
    assert not any("_thumb" in path for path in used)
    counts = Counter(reason for _, reason in found.passed_over)
    assert counts["it is a thumbnail"] == 40 and counts.total() + files == 80
    in_steps = [path for path in used if "ZStep_" in path]
    assert len(in_steps) == {"projection": 0, "2": 8, "max": 24}.get(z, 4)


def test_imagexpress_maximum_is_that_of_the_planes(projection_mix: Root) -> None:
    choices = Choices(z="max", channels={"2": "b", "1": "a"})
    row = sites(projection_mix, preset="imagexpress", choices=choices)[0]
    got = read_native(projection_mix, row["paths"], row["channels"], ["a", "b"])
    folder = Path(str(projection_mix.folder)) / "2023-02-21/1334"
    for number, channel in enumerate((1, 2)):
        planes = [tifffile.imread(p) for p in folder.glob(f"ZStep_*/*_E07_s1_w{channel}[!_]*.tif")]
        assert len(planes) == 3
        np.testing.assert_array_equal(got[number], np.max(planes, axis=0))


def test_imagexpress_time_points_become_sites(real_data: Path) -> None:
    root = Root.of(real_data / "hcs_layouts/imagexpress_1well_3c_2s_t")
    with pytest.raises(ValueError, match="have the time points 1, 2; choose with --time"):
        sites(root, preset="imagexpress")
    with pytest.raises(ValueError, match=r"asks for \[3\]; the files have 1, 2"):
        sites(root, preset="imagexpress", choices=Choices(times="1,3"))
    rows = sites(root, preset="imagexpress", choices=Choices(times="all"))
    assert [(r["well"], r["site"], r["time"]) for r in rows] == [
        ("C07", 1, 1), ("C07", 1, 2), ("C07", 2, 1), ("C07", 2, 2),
    ]  # fmt: skip
    assert len({r["site_id"] for r in rows}) == 4
    assert all(len(r["channels"]) == 3 and f"TimePoint_{r['time']}/" in r["paths"][0] for r in rows)
    (one, two) = sites(root, preset="imagexpress", choices=Choices(times="2"))
    assert one["time"] == two["time"] == 2


def test_yokogawa_counts_agree_with_the_folder(real_data: Path) -> None:
    root = Root.of(real_data / "hcs_layouts/cv8000_blank")
    choices = Choices(z="max", channels={"1": "DNA", "2": "ER"})
    rows = sites(root, preset="yokogawa", choices=choices)
    assert [r["well"] for r in rows] == [w for w in ("D08", "E03", "F08") for _ in range(4)]
    assert [r["site"] for r in rows] == [1, 2, 3, 4] * 3
    assert sum(entry.count("*") + 1 for r in rows for entry in r["paths"]) == 96
    assert reasons(root, preset="yokogawa", choices=choices) == {
        "its name does not match": 7,
        "it is a dark or shading image of the camera": 6,
    }


def test_phenix_site_without_all_channels(real_data: Path) -> None:
    root = Root.of(real_data / "jump_br00117006")
    (row,) = sites(root, preset="phenix")
    assert (row["well"], row["site"], row["channels"]) == ("A01", 1, ["2", "3", "5"])
    stains = {"1": "Mito", "2": "AGP", "3": "RNA", "4": "ER", "5": "DNA"}
    with pytest.raises(ValueError, match=r"A01 site 1 lacks the channels \['Mito', 'ER'\]"):
        sites(root, preset="phenix", choices=Choices(channels=stains))


def test_phenix_channels_by_name(real_data: Path) -> None:
    folder = real_data / "pediatric_atlas_br00143976"
    root = Root.of(folder)
    (row,) = sites(root, preset="phenix", choices=Choices(channels={"5": "DNA", "4": "Mito"}))
    assert (row["plate"], row["well"], row["site"]) == (folder.name, "C03", 3)
    got = read_native(root, row["paths"], row["channels"], ["DNA", "Mito"])
    for image, number in zip(got, (5, 4), strict=True):
        name = f"r03c03f03p01-ch{number}sk1fk1fl1.tiff"
        np.testing.assert_array_equal(image, tifffile.imread(folder / name))


def test_transfluor_row_is_24_wells_of_3_fields(real_data: Path) -> None:
    root = Root.of(real_data / "transfluor_row_o")
    rows = sites(root, template="{plate}_{well}f{site}d{channel}.TIF")
    assert len(rows) == 72 and {r["plate"] for r in rows} == {"AS_09047_050428030001"}
    assert Counter(r["well"] for r in rows) == {f"O{c:02d}": 3 for c in range(1, 25)}
    assert {r["site"] for r in rows} == {0, 1, 2}
