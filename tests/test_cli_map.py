"""The verbs `phenoscale map show` and `phenoscale map export`, as a person runs them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from phenoscale.cli_map import map_app
from phenoscale.maps.files.map_files import read_map, write_map
from phenoscale.maps.perturbation_map import PerturbationMap


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """map.parquet of five complexes of four genes, complex.csv with the true pairs."""
    folder = tmp_path_factory.mktemp("map")
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(5, 30))
    centres[1] = -centres[0]  # GENE04 to GENE07 oppose GENE00 to GENE03
    values = np.repeat(centres, 4, axis=0) + rng.normal(0, 0.3, (20, 30))
    names = [f"GENE{row:02}" for row in range(20)]
    found = PerturbationMap(
        vectors=values, names=tuple(names), facts={"readout": "patch_mean", "alignment": "PCA-CS"}
    )
    write_map(found, folder / "map.parquet")
    pairs = [(names[a], names[b]) for a in range(20) for b in range(a) if a // 4 == b // 4]
    pd.DataFrame([*pairs, ("GENE00", "ABSENT")], columns=["entity1", "entity2"]).to_csv(
        folder / "complex.csv", index=False
    )
    pd.DataFrame({"entity1": ["GENE00"], "entity2": ["GENE05"]}).to_csv(
        folder / "opposed.csv", index=False
    )
    return folder


def run(*arguments: object, code: int = 0) -> tuple[str, str]:
    result = CliRunner(env={"COLUMNS": "120"}).invoke(map_app, [str(one) for one in arguments])
    assert result.exit_code == code, result.output
    return result.stdout, result.stderr


def test_show_prints_neighbours_and_marks_what_is_known(folder: Path) -> None:
    known = ("--relationships", folder / "complex.csv", "--relationships", folder / "opposed.csv")
    shown, _ = run("show", "GENE00", "--map", folder, "--top", 4, *known)
    lines = [line for line in shown.splitlines() if "│" in line]
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines]
    assert [row[0] for row in cells] == ["1", "2", "3", "4", "16", "17", "18", "19"]
    assert {row[1] for row in cells[:3]} == {"GENE01", "GENE02", "GENE03"}
    assert [row[5] for row in cells[:4]] == ["complex"] * 3 + [""]
    assert {row[1]: row[5] for row in cells[4:]} == {
        "GENE04": "",
        "GENE05": "opposed",
        "GENE06": "",
        "GENE07": "",
    }
    assert cells[0][2].startswith("+0.") and cells[-1][2].startswith("-0.")
    assert "complex, opposed: 4 known partners of GENE00 in the map, 1 outside it" in shown


def test_show_as_json_is_for_programs(folder: Path) -> None:
    known = ("--relationships", folder / "complex.csv")
    shown, _ = run("show", "GENE00", "--map", folder / "map.parquet", "--top", 3, "--json", *known)
    answer = json.loads(shown)
    assert answer["name"] == "GENE00" and answer["num_names"] == 20
    assert answer["facts"] == {"readout": "patch_mean", "alignment": "PCA-CS"}
    assert answer["databases"] == ["complex"] and answer["num_known_in_map"] == 3
    assert [one["known"] for one in answer["neighbours"]] == [["complex"]] * 3 + [[]] * 3
    assert [one["tail"] for one in answer["neighbours"]][-1] == "low"
    assert [one["rank"] for one in answer["neighbours"]] == [1, 2, 3, 17, 18, 19]


def test_mistakes_are_one_line_and_exit_code_2(folder: Path, tmp_path: Path) -> None:
    for arguments, says in (
        (("show", "gene00", "--map", folder), "Near are GENE00, "),
        (("show", "GENE00", "--map", tmp_path), "There is no perturbation map at"),
        (("show", "GENE00", "--map", folder, "--readout", "x"), "There is no read-out x"),
        (("show", "GENE00", "--map", folder, "--relationships", tmp_path / "a"), "no file of rel"),
        (("export", folder, "--out", tmp_path / "m.docx"), "ends in '.docx'"),
    ):
        _, error = run(*arguments, code=2)
        assert says in error and error.startswith("phenoscale: ") and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_export_writes_what_other_tools_read(folder: Path, tmp_path: Path) -> None:
    written = read_map(folder)
    shown, error = run("export", folder, "--out", tmp_path / "m.csv", "--naming", "pycytominer")
    assert "20 perturbations, 30 values (patch_mean)" in shown
    assert "left out: readout patch_mean, alignment PCA-CS" in error
    table = pd.read_csv(tmp_path / "m.csv").set_index("Metadata_gene")
    assert list(table.index) == list(written.names)
    assert np.abs(table.to_numpy() - written.vectors).max() < 1e-12
    pytest.importorskip("anndata")
    _, error = run("export", folder, "--out", tmp_path / "m.h5ad")
    assert "rounded from float64 to float32" in error
    assert (read_map(tmp_path / "m.h5ad").vectors == written.vectors.astype(np.float32)).all()


def test_a_wide_table_of_another_naming_by_its_prefix(folder: Path, tmp_path: Path) -> None:
    found = read_map(folder / "map.parquet")
    wide = pd.DataFrame(found.vectors, columns=[f"PC_{i}" for i in range(30)])
    wide.insert(0, "gene", found.names)
    wide.to_csv(tmp_path / "wide.csv", index=False)
    _, error = run("show", "GENE00", "--map", tmp_path / "wide.csv", code=2)
    assert "Give the prefix of the feature columns" in error
    words = ("--map", tmp_path / "wide.csv", "--features", "PC_", "--json")
    told = json.loads(run("show", "GENE00", *words)[0])["neighbours"]
    expected = json.loads(run("show", "GENE00", "--map", folder / "map.parquet", "--json")[0])
    assert [one["name"] for one in told] == [one["name"] for one in expected["neighbours"]]
