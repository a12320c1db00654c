"""RxRx1, RxRx3 and RxRx3-core: labels from their metadata; pixels are in test_layouts.py."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from phenoscale.screens.layouts import rxrx1, rxrx3, rxrx3_core
from phenoscale.screens.layouts.manifest import check_manifest
from phenoscale.screens.storage import Root
from tests.layout_writers import DYES, write_rxrx1, write_rxrx3, write_rxrx3_core


def rows_by_well(found) -> dict[tuple[str, str, int], dict]:
    rows = check_manifest(found.manifest).to_pylist()
    return {(row["experimental_batch"], row["well"], row["site"]): row for row in rows}


def test_rxrx1_labels_and_stains(tmp_path: Path) -> None:
    write_rxrx1(tmp_path)
    found = rxrx1.find_sites(Root.of(tmp_path))
    rows = rows_by_well(found)
    assert len(rows) == 8 and found.notes == ()
    assert found.passed_over == (("metadata.csv", "it is the metadata"),)
    treated, control = rows["HUVEC-01", "AA03", 2], rows["HEPG2-02", "B02", 1]
    assert treated["site_id"] == "HUVEC-01_1_AA03_2" and treated["channels"] == list(DYES)
    assert (treated["perturbation"], treated["guide"], treated["gene"]) == ("s1", "s1", None)
    assert treated["perturbation_type"] == "sirna" and treated["cell_type"] == "HUVEC"
    assert control["perturbation"] == "negative_control" and control["negative_control"]
    assert control["guide"] == "EMPTY" and control["dataset"] == "train"
    assert treated["paths"][2] == "images/HUVEC-01/Plate1/AA03_s2_w3.png"


def test_rxrx1_names_what_does_not_go_together(tmp_path: Path) -> None:
    write_rxrx1(tmp_path)
    metadata = tmp_path / "metadata.csv"
    lines = metadata.read_text().splitlines()
    metadata.write_text("\n".join(lines[:-1] + [lines[-1].replace(",AA03,", ",AA04,")]) + "\n")
    found = rxrx1.find_sites(Root.of(tmp_path))
    assert found.manifest.num_rows == 7
    stray = [path for path, reason in found.passed_over if reason.endswith("not in metadata.csv")]
    assert len(stray) == 6 and all("HEPG2-02/Plate1/AA03_s2_w" in path for path in stray)
    assert found.notes == ("1 rows of metadata.csv have no images: HEPG2-02 1 AA04 2.",)
    metadata.write_text("\n".join([*lines, lines[-1]]) + "\n")
    with pytest.raises(ValueError, match="has HEPG2-02 1 AA03 2 twice"):
        rxrx1.find_sites(Root.of(tmp_path))
    metadata.write_text("\n".join(line.replace("-0", "-9") for line in lines) + "\n")
    with pytest.raises(ValueError, match="None of the 8 sites with images stands in metadata.csv"):
        rxrx1.find_sites(Root.of(tmp_path))


def test_rxrx1_a_missing_channel_is_named(tmp_path: Path) -> None:
    write_rxrx1(tmp_path)
    (tmp_path / "images/HUVEC-01/Plate1/B02_s1_w4.png").unlink()
    with pytest.raises(ValueError, match=r"1 of 8 sites .*1 B02 site 1 lacks .*\['Syto14'\]"):
        rxrx1.find_sites(Root.of(tmp_path))
    found = rxrx1.find_sites(Root.of(tmp_path), incomplete="leave_out")
    assert found.manifest.num_rows == 7
    assert sum(reason == "its site is incomplete" for _, reason in found.passed_over) == 5


def test_rxrx1_wrong_folder_or_table(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text("site_id,well\n1,A01\n")
    with pytest.raises(ValueError, match=r"lacks the columns \['experiment', 'plate'"):
        rxrx1.find_sites(Root.of(tmp_path))
    write_rxrx1(tmp_path)
    with pytest.raises(ValueError, match="metadata.csv does not exist"):
        rxrx1.find_sites(Root.of(tmp_path / "images"))


@pytest.mark.parametrize(
    ("layout", "write"), [(rxrx3, write_rxrx3), (rxrx3_core, write_rxrx3_core)]
)
def test_rxrx3_labels_of_every_kind_of_well(layout, write, tmp_path: Path) -> None:
    write(tmp_path)
    found = layout.find_sites(Root.of(tmp_path))
    rows = rows_by_well(found)
    assert [row["channels"] for row in rows.values()] == [list(DYES)] * 5
    assert {row["pixel_size_um"] for row in rows.values()} == {0.65}

    def labels(batch: str, well: str) -> tuple:
        row = rows[batch, well, 1]
        names = ("perturbation", "perturbation_type", "gene", "guide", "compound", "concentration")
        return tuple(row[name] for name in names)

    assert labels("gene-079", "H29") == ("RPLP2", "crispr", "RPLP2", "RPLP2_guide_4", None, None)
    assert labels("gene-079", "P28") == ("negative_control", "none", None, None, None, None)
    compound = ("Dequalinium", "compound", None, None, "Dequalinium", 0.25)
    assert labels("compound-001", "D20") == compound
    assert labels("compound-001", "B08") == ("CRISPR_control", "none", None, None, None, None)
    assert rows["compound-001", "U08", 1]["negative_control"] is True
    assert rows["compound-001", "D20", 1]["SMILES"] == "CC1 |c:1,13|"
    assert rows["compound-001", "D20", 1]["well_id"] == "compound-001_19_D20"


def test_rxrx3_core_addresses_rows_and_reads_no_image(tmp_path: Path) -> None:
    write_rxrx3_core(tmp_path)
    found = rxrx3_core.find_sites(Root.of(tmp_path))
    for path in sorted(tmp_path.glob("data/*.parquet")):
        keys = pq.read_table(path, columns=["__key__"])["__key__"].to_pylist()
        for row in found.manifest.to_pylist():
            for number, address in enumerate(row["paths"], 1):
                file, _, position = address.partition("?row=")
                if file == f"data/{path.name}":
                    key = (
                        f"{row['experimental_batch']}/Plate{row['plate']}/{row['well']}_s1_{number}"
                    )
                    assert keys[int(position)] == key


def test_rxrx3_core_other_files_and_keys_are_passed_over(tmp_path: Path) -> None:
    write_rxrx3_core(tmp_path)
    pq.write_table(pa.table({"well_id": ["a"], "f0": [0.5]}), tmp_path / "embeddings.parquet")
    odd = ["../../etc/passwd", "gene-079/Plate8/H29_s1_1.png", "gene-079/../H29_s1_1", ""]
    table = pa.table({"__key__": odd, "image": [b"x"] * 4})
    pq.write_table(table, tmp_path / "data/odd.parquet")
    (tmp_path / "README.md").write_text("#\n")
    found = rxrx3_core.find_sites(Root.of(tmp_path))
    assert found.manifest.num_rows == 5
    assert dict(found.passed_over) == {
        "README.md": "it is no Parquet file",
        "data/odd.parquet?row=0": "its key '../../etc/passwd' does not match",
        "data/odd.parquet?row=1": "its key 'gene-079/Plate8/H29_s1_1.png' does not match",
        "data/odd.parquet?row=2": "its key 'gene-079/../H29_s1_1' does not match",
        "data/odd.parquet?row=3": "its key '' does not match",
        "embeddings.parquet": "it has no column __key__, or none with image bytes",
        "metadata_rxrx3_core.csv": "it is the metadata",
    }


def test_rxrx3_core_the_column_is_named_where_there_are_several(tmp_path: Path) -> None:
    write_rxrx3_core(tmp_path, rows_per_file=30)
    (path,) = tmp_path.glob("data/*.parquet")
    table = pq.read_table(path)
    pq.write_table(table.append_column("thumb", pa.array([b"x"] * 30)), path)
    found = rxrx3_core.find_sites(Root.of(tmp_path))
    assert all(
        a.endswith("&column=jp2") for row in found.manifest.to_pylist() for a in row["paths"]
    )
    table = table.rename_columns(["__key__", "image"])
    pq.write_table(table.append_column("thumb", pa.array([b"x"] * 30)), path)
    with pytest.raises(ValueError, match=r"columns \['image', 'thumb'\]; one column, or jp2, is"):
        rxrx3_core.find_sites(Root.of(tmp_path))


def test_an_image_twice_is_refused(tmp_path: Path) -> None:
    write_rxrx3_core(tmp_path, rows_per_file=30)
    (path,) = tmp_path.glob("data/*.parquet")
    pq.write_table(pq.read_table(path).slice(0, 1), tmp_path / "data/train-again.parquet")
    with pytest.raises(
        ValueError, match="2 files claim the place of another, such as 'data/train-0"
    ):
        rxrx3_core.find_sites(Root.of(tmp_path))
