from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from phenoscale.screens.layouts.manifest import check_manifest
from phenoscale.screens.layouts.pattern import find_sites
from phenoscale.screens.layouts.plate_map import label_sites, read_plate_map
from phenoscale.screens.storage import Root

NF1 = "{plate}_images/{well}_01_{_}_{site}_{channel}_001.tif"


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "map.csv"
    path.write_text(text)
    return path


def label(path: Path, wells: list[tuple[str, str]], unmapped: str = "refuse", **options):
    sites = pd.DataFrame(wells, columns=["plate", "well"]).assign(experimental_batch=None)
    sites["experimental_batch"] = sites["experimental_batch"].astype(str).replace("None", "b")
    return label_sites(sites, read_plate_map(path, **options), unmapped)


def test_controls_become_one_class_and_keep_their_name(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "well,compound,concentration,gene,batch_note\n"
        "A1,DMSO,,,x\nA02,aspirin,1.5,PTGS2,x\nb03,aspirin,0.5,,\n",
    )
    wells = [("P", "A01"), ("P", "A02"), ("P", "B03"), ("Q", "A01")]
    sites, kept, notes = label(
        path, wells, negative_controls=("DMSO",), perturbation_type="compound"
    )
    assert kept.all() and notes == []
    assert sites["perturbation"].tolist() == [
        "negative_control",
        "aspirin",
        "aspirin",
        "negative_control",
    ]
    assert sites["negative_control"].tolist() == [True, False, False, True]
    assert sites["perturbation_type"].tolist() == ["none", "compound", "compound", "none"]
    assert sites["compound"].tolist() == ["DMSO", "aspirin", "aspirin", "DMSO"]
    assert sites["concentration"].dropna().tolist() == [1.5, 0.5]
    assert sites["batch_note"].isna().tolist() == [False, False, True, False]


def test_plates_and_batches_have_maps_of_their_own(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "experimental_batch;plate;row;column;perturbation;perturbation_type;negative_control\n"
        "b1;P;1;1;x;orf;no\nb1;Q;A;1;;orf;yes\n",
    )
    plate_map = read_plate_map(path)
    sites = pd.DataFrame({"plate": ["P", "Q"], "well": "A01", "experimental_batch": None})
    labelled, _, _ = label_sites(sites, plate_map)
    assert labelled["experimental_batch"].tolist() == ["b1", "b1"]
    assert labelled["perturbation"].tolist() == ["x", "negative_control"]
    with pytest.raises(ValueError, match="1 wells have images and no label in .*: Q A02"):
        label_sites(sites.assign(well=["A01", "A02"]), plate_map)


def test_wells_without_label_are_refused_kept_or_left_out(tmp_path: Path) -> None:
    path = write(tmp_path, "well,perturbation,perturbation_type\nA1,x,orf\nA2,,orf\nH12,y,orf\n")
    wells = [("P", "A01"), ("P", "A02"), ("P", "A03")]
    with pytest.raises(ValueError, match="2 wells have images and no label.*: P A02, P A03. Add"):
        label(path, wells)
    sites, kept, notes = label(path, wells, "unlabelled")
    assert sites["perturbation"].tolist() == ["x", "unlabelled", "unlabelled"]
    assert sites["perturbation_type"].tolist() == ["orf", "none", "none"]
    assert "1 of 2 wells in" in notes[0] and "have no images: H12" in notes[0]
    sites, kept, _ = label(path, wells, "leave_out")
    assert sites["well"].tolist() == ["A01"] and kept.tolist() == [True, False, False]
    with pytest.raises(ValueError, match="unmapped is 'drop'"):
        label(path, wells, "drop")


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("position,gene\nA1,x\n", {}, "none of them well (or row and column)"),
        ("well,dose\nA1,x\n", {}, "none of which is perturbation, compound or gene"),
        ("well,gene\nA1,x\nA01,y\n", {}, "gives the well A01 twice, in rows [2, 3]"),
        ("well,gene\nA1,x\n1A,y\n", {}, "has the well '1A' (1 rows are like it)"),
        ("well,gene\nA1,x\n", {}, "row 2: '' is the perturbation_type; one of"),
        ("well,gene\nA1,x\n", {"perturbation_type": "rnai"}, "'rnai' is the perturbation_type"),
        ("well,gene\nA1,x\n", {"negative_controls": ("WT",)}, "names ['WT'], which"),
        ("well,gene,perturbation_type\nA1,x,orf\n", {"perturbation_type": "orf"}, "leave --pert"),
        ("well,gene\nA1,x\n", {"renamed": {"Gene": "gene"}}, "no columns ['Gene'] to rename"),
        ("well,gene,g\nA1,x,y\n", {"renamed": {"g": "gene"}}, "has the columns ['gene'], twice"),
        ("well,gene,paths\nA1,x,y\n", {}, "['paths'], whose names the index needs itself"),
        ("well,gene,concentration\nA1,x,1 uM\n", {}, "'1 uM' is given; a number without a unit"),
        ("well,gene,negative_control\nA1,x,maybe\n", {}, "'maybe' is given; true or false"),
    ],
)
def test_what_is_wrong_with_a_map_is_said(
    tmp_path: Path, text: str, options: dict, message: str
) -> None:
    options = {"perturbation_type": "orf"} | options
    if "perturbation_type; one of" in message:
        options.pop("perturbation_type")
    if "concentration" in text or "maybe" in text:
        options = {"perturbation_type": "orf"}
    with pytest.raises(ValueError) as error:
        read_plate_map(write(tmp_path, text), **options)
    assert message in str(error.value)


def test_a_map_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="none.csv does not exist"):
        read_plate_map(tmp_path / "none.csv")


def test_columns_of_the_layout_cannot_come_from_the_map(tmp_path: Path) -> None:
    path = write(tmp_path, "well,gene,time\nA1,x,3\n")
    sites = pd.DataFrame({"plate": "P", "well": "A01", "experimental_batch": "b", "time": [1]})
    with pytest.raises(ValueError, match=r"has the columns \['time'\], which the layout itself"):
        label_sites(sites, read_plate_map(path, perturbation_type="orf"))


def test_a_batch_that_only_an_ambiguous_map_names(tmp_path: Path) -> None:
    text = "experimental_batch,well,gene\nb1,A1,x\nb2,A1,x\n"
    plate_map = read_plate_map(write(tmp_path, text), perturbation_type="orf")
    sites = pd.DataFrame({"plate": ["P"], "well": "A01", "experimental_batch": None})
    with pytest.raises(ValueError, match="A01 in several experimental batches"):
        label_sites(sites, plate_map)


def test_nf1_schwann_cells_join_their_plate_map(real_data: Path) -> None:
    folder = real_data / "nf1_cellpainting"
    plate_map = read_plate_map(
        folder / "platemap_NF1_plate2.csv",
        renamed={"well_position": "well", "genotype": "perturbation", "gene_name": "gene"},
        negative_controls=("WT",),
        perturbation_type="crispr",
    )
    found = find_sites(
        Root.of(folder), template=NF1, plate_map=plate_map, experimental_batch="Plate_2"
    )
    rows = check_manifest(found.manifest).to_pylist()
    assert [(r["plate"], r["well"], r["site"], r["perturbation"]) for r in rows] == [
        ("Plate_2", "B07", 3, "Null"),
        ("Plate_2", "D06", 2, "negative_control"),
        ("Plate_2", "D07", 1, "Null"),
        ("Plate_2", "F07", 2, "Null"),
        ("Plate_2", "H12", 1, "Null"),
    ]
    assert {tuple(r["channels"]) for r in rows} == {("DAPI", "GFP", "RFP")}
    assert rows[1]["guide"] == "WT" and rows[0]["gene"] == "NF1" and rows[0]["WellRow"] == "B"
    # 13 masks, the map, the examples and the README match no template.
    assert len(found.passed_over) == 33 - 15
    assert found.notes[0].startswith("27 of 32 wells in ")
