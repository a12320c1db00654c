"""Cell Painting Gallery: load_data tables, and the tables of JUMP beside them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest

from phenoscale.screens.images.readers import read_native
from phenoscale.screens.layouts.jump import find_sites
from phenoscale.screens.layouts.jump_tables import read_jump_tables
from phenoscale.screens.layouts.manifest import check_manifest
from phenoscale.screens.layouts.plate_map import read_plate_map
from phenoscale.screens.storage import Root
from tests.layout_writers import JUMP_CHANNELS, write_load_data

PREFIX = "s3://cellpainting-gallery/cpg0016-jump"
EIGHT = (*JUMP_CHANNELS, "Brightfield", "HighZBF", "LowZBF")
WELLS = {
    # source_4, a CRISPR plate and an ORF plate of the real plate table; reagents are real, too
    ("source_13", "CP-CC9-R1-01", "A01"): "JCP2022_800002",
    ("source_13", "CP-CC9-R1-01", "B02"): "JCP2022_800003",
    ("source_4", "BR00117035", "A01"): "JCP2022_900002",
    ("source_4", "BR00117035", "B02"): "JCP2022_915131",
    ("source_3", "BR5867a3", "A01"): "JCP2022_033924",
    ("source_3", "BR5867a3", "B02"): "JCP2022_999999",
    ("source_3", "BR5867a3", "C03"): "JCP2022_000001",
}


@pytest.fixture
def tables(real_data: Path, tmp_path: Path) -> Path:
    """The real index tables; the wells and compounds, which are not among them, are added."""
    folder = tmp_path / "tables"
    shutil.copytree(real_data / "jump_index", folder)
    rows = [(*key, jcp) for key, jcp in WELLS.items()]
    names = ["Metadata_Source", "Metadata_Plate", "Metadata_Well", "Metadata_JCP2022"]
    pd.DataFrame(rows, columns=names).to_csv(folder / "well.csv.gz", index=False)
    (folder / "compound.csv").write_text(
        "Metadata_JCP2022,Metadata_InChIKey,Metadata_SMILES\n"
        "JCP2022_000001,AAAHWCWPZPSPIW-UHFFFAOYSA-N,CCO\n"
        "JCP2022_033924,IAZDPXIOMUYVGZ-UHFFFAOYSA-N,CS(C)=O\n"
    )
    return folder


def batch_of(tables: Path, plate: str) -> str:
    plates = pd.read_csv(tables / "plate.csv.gz", dtype=str)
    return str(plates.set_index("Metadata_Plate")["Metadata_Batch"][plate])


def gallery(root: Path, tables: Path) -> Root:
    """Three plates of three sources, each table in another form, one with eight channels."""
    forms = {"source_13": "csv", "source_4": "csv.gz", "source_3": "parquet"}
    plates: dict[tuple[str, str], list[str]] = {}
    for source, plate, well in WELLS:
        plates.setdefault((source, plate), []).append(well)
    for (source, plate), wells in plates.items():
        channels = EIGHT if source == "source_4" else JUMP_CHANNELS
        batch = batch_of(tables, plate)
        write_load_data(root, source, batch, plate, wells, channels=channels, form=forms[source])
    return Root.of(root)


def test_ids_become_genes_sources_and_controls(tables: Path, tmp_path: Path) -> None:
    root = gallery(tmp_path / "screen", tables)
    found = find_sites(root, prefix=PREFIX, tables=read_jump_tables(Root.of(tables)))
    rows = check_manifest(found.manifest).to_pylist()
    assert len(rows) == 14 and found.passed_over == () and found.notes == ()
    by_well = {(r["plate"], r["well"]): r for r in rows if r["site"] == 2}
    control, a2m = by_well["CP-CC9-R1-01", "A01"], by_well["CP-CC9-R1-01", "B02"]
    assert control["perturbation"] == "negative_control" and control["negative_control"]
    assert (control["perturbation_type"], control["guide"]) == ("crispr", "non-targeting")
    assert control["gene"] is None and control["control_role"] == "negcon"
    assert (a2m["perturbation"], a2m["gene"]) == ("JCP2022_800003", "A2M")
    assert a2m["experimental_batch"] == "source_13__" + batch_of(tables, "CP-CC9-R1-01")
    assert a2m["Metadata_PlateType"] == "CRISPR" and a2m["pixel_size_um"] == 0.65
    orf, lacz = by_well["BR00117035", "A01"], by_well["BR00117035", "B02"]
    assert (orf["gene"], orf["guide"]) == ("NAT1", "ccsbBroad304_00001")
    assert orf["perturbation_type"] == "orf" and orf["channels"] == list(EIGHT)
    assert lacz["negative_control"] and lacz["guide"] == "LacZ"
    dmso, empty = by_well["BR5867a3", "A01"], by_well["BR5867a3", "B02"]
    assert dmso["negative_control"] and dmso["compound"] == "DMSO"
    assert (empty["perturbation"], empty["perturbation_type"]) == ("JCP2022_999999", "none")
    assert not empty["negative_control"]
    drug = by_well["BR5867a3", "C03"]
    assert drug["compound"] == "AAAHWCWPZPSPIW-UHFFFAOYSA-N" and drug["Metadata_SMILES"] == "CCO"
    assert drug["pixel_size_um"] == 0.597976 and drug["channels"] == list(JUMP_CHANNELS)


def test_wanted_channels_are_chosen_and_named(tables: Path, tmp_path: Path) -> None:
    root = gallery(tmp_path / "screen", tables)
    options = {"prefix": PREFIX, "experimental_batch": "b"}
    rows = find_sites(root, channels={"Mito": "mito", "DNA": "nucleus"}, **options)
    assert {tuple(r["channels"]) for r in rows.manifest.to_pylist()} == {("mito", "nucleus")}
    assert rows.manifest["paths"][0].as_py()[0].endswith("_Mito.tiff")
    with pytest.raises(ValueError, match=r"not \['HighZBF'\]. Choose among them"):
        find_sites(root, channels={"HighZBF": "bf"}, **options)


def test_tables_with_illumination_are_the_second_choice(tmp_path: Path) -> None:
    write_load_data(tmp_path, "s", "b", "P", ["A01"])
    path = tmp_path / "s/workspace/load_data_csv/b/P/load_data.csv"
    shutil.copy(path, path.with_name("load_data_with_illum.csv"))
    root = Root.of(tmp_path)
    options = {"prefix": PREFIX, "experimental_batch": "b"}
    found = find_sites(root, **options)
    (passed,) = found.passed_over
    assert passed[0].endswith("_with_illum.csv") and "load_data.csv lists the same" in passed[1]
    named = find_sites(root, load_data=passed[0], **options)
    assert named.manifest.equals(found.manifest)
    under = find_sites(root, load_data="s/workspace/load_data_csv/b", **options)
    assert under.manifest.equals(found.manifest)


def test_urls_stand_for_path_and_file(tmp_path: Path) -> None:
    written = write_load_data(tmp_path, "s", "b", "P", ["A01"], channels=("DNA",))
    path = tmp_path / "s/workspace/load_data_csv/b/P/load_data.csv"
    table = pd.read_csv(path)
    urls = table.pop("PathName_OrigDNA") + table.pop("FileName_OrigDNA")
    table.assign(URL_OrigDNA=urls).to_csv(path, index=False)
    root = Root.of(tmp_path)
    found = find_sites(root, prefix=PREFIX + "/", experimental_batch="s__b")
    row = found.manifest.to_pylist()[0]
    image = read_native(root, row["paths"], row["channels"], ["DNA"])
    assert (image == written["s__b", "P", "A01", 1]).all()


def test_paths_that_begin_with_the_root_need_no_prefix(tmp_path: Path) -> None:
    write_load_data(tmp_path, "s", "b", "P", ["A01"], prefix=str(tmp_path))
    root = Root.of(tmp_path)
    row = find_sites(root, experimental_batch="b").manifest.to_pylist()[0]
    assert row["paths"][0] == "s/images/b/images/P/Images/A01_f1_DNA.tiff"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"PathName_OrigDNA": f"{PREFIX}/../../etc"}, "with no '..'"),
        ({"PathName_OrigDNA": f"{PREFIX}//etc", "FileName_OrigDNA": "../x"}, "with no '..'"),
        ({"FileName_OrigDNA": "a|b.tiff"}, "none of '*?|' in it"),
        ({"PathName_OrigDNA": "/etc"}, "does not begin with 's3://cellpainting-gallery/cpg0016-"),
        ({"PathName_OrigDNA": f"{PREFIX}-other/x"}, "does not begin with"),
        ({"Metadata_Well": "17"}, "has the well '17'"),
        ({"Metadata_Site": 1}, "1 sites stand twice, such as s P A01 1;"),
    ],
)
def test_paths_out_of_the_root_and_wrong_cells_are_refused(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    write_load_data(tmp_path, "s", "b", "P", ["A01"])
    path = tmp_path / "s/workspace/load_data_csv/b/P/load_data.csv"
    table = pd.read_csv(path)
    for name, value in change.items():
        table[name] = value
    table.to_csv(path, index=False)
    with pytest.raises(ValueError) as error:
        find_sites(Root.of(tmp_path), prefix=PREFIX, experimental_batch="b")
    assert message in str(error.value)


def test_a_site_without_a_file_is_incomplete(tmp_path: Path) -> None:
    write_load_data(tmp_path, "s", "b", "P", ["A01"])
    path = tmp_path / "s/workspace/load_data_csv/b/P/load_data.csv"
    table = pd.read_csv(path)
    table.loc[1, "FileName_OrigER"] = None
    table.to_csv(path, index=False)
    options = {"prefix": PREFIX, "experimental_batch": "b"}
    with pytest.raises(ValueError, match=r"1 sites of .* P A01 site 2 lacks \['ER'\]. Choose"):
        find_sites(Root.of(tmp_path), **options)
    found = find_sites(Root.of(tmp_path), incomplete="leave_out", **options)
    assert found.manifest["site"].to_pylist() == [1]
    assert "1 incomplete sites of" in found.notes[0] and "lacks ['ER']" in found.notes[0]


def test_tables_that_do_not_cover_the_images(tables: Path, tmp_path: Path) -> None:
    write_load_data(tmp_path / "a", "source_4", "b", "NOPLATE", ["A01"])
    known = read_jump_tables(Root.of(tables))
    with pytest.raises(ValueError, match="1 plates of the images are not in the tables.*: NOPLATE"):
        find_sites(Root.of(tmp_path / "a"), prefix=PREFIX, tables=known)
    write_load_data(tmp_path / "b", "source_4", "b", "BR00117035", ["A01", "P24"])
    with pytest.raises(ValueError, match="1 wells of the images are not in.*: BR00117035 P24"):
        find_sites(Root.of(tmp_path / "b"), prefix=PREFIX, tables=known)
    (tables / "compound.csv").unlink()
    with pytest.raises(
        ValueError, match="1 reagents of the wells are in no table.*: JCP2022_000001"
    ):
        read_jump_tables(Root.of(tables))
    (tables / "well.csv.gz").unlink()
    with pytest.raises(ValueError, match="holds no table well "):
        read_jump_tables(Root.of(tables))


def test_a_plate_map_labels_other_data_sets_of_the_gallery(tmp_path: Path) -> None:
    write_load_data(tmp_path, "s", "b", "P", ["A01", "B02"])
    (tmp_path / "map.csv").write_text("plate,well,compound\nP,A1,DMSO\nP,B2,x\n")
    plate_map = read_plate_map(
        tmp_path / "map.csv", negative_controls=("DMSO",), perturbation_type="compound"
    )
    found = find_sites(
        Root.of(tmp_path), prefix=PREFIX, plate_map=plate_map, experimental_batch="b"
    )
    labels = found.manifest["perturbation"].to_pylist()
    assert labels == ["negative_control"] * 2 + ["x"] * 2


def test_a_folder_without_tables(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no load_data.csv"):
        find_sites(Root.of(tmp_path))
