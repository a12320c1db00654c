"""A perturbation map as a value, and its files: bits, facts, names, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from phenoscale.maps.files.map_files import read_map, to_anndata, write_map
from phenoscale.maps.perturbation_map import PerturbationMap
from phenoscale.results import write_json

FACTS = {
    "readout": "patch_mean",
    "alignment": "PCA-CS",
    "protocol": "own, version 1",
    "index_fingerprint": "f" * 64,
    "rounds": 7,
    "share": 0.25,
    "corrected": False,
}


def make_map(dtype: Any = np.float32, **changes: Any) -> PerturbationMap:
    values = np.random.default_rng(0).normal(size=(4, 3)).astype(dtype)
    values[0, 0], values[1, 1] = np.finfo(np.float32).tiny / 8, -3.4e38  # a subnormal, near the end
    table = {
        "num_wells": [3, 1, 2, 5],
        "perturbation_type": ["CRISPR", "CRISPR", "COMPOUND", None],
        "concentration": [np.nan, np.nan, 0.1, 10.0],
        "negative_control": [False, False, True, False],
    }
    columns: dict[str, Any] = {
        "vectors": values,
        "names": ("NA", "TP53", 'a "b", c', "β-catenin"),
        "table": pd.DataFrame(table),
        "facts": FACTS,
    }
    return PerturbationMap(**(columns | changes))


@pytest.mark.parametrize(
    ("file", "naming"),
    [
        ("m.parquet", "phenoscale"),
        ("m.h5ad", "phenoscale"),
        ("m.csv", "phenoscale"),
        ("m.tsv", "phenoscale"),
        ("m.csv", "pycytominer"),
        ("m.csv.gz", "pycytominer"),
        ("m.parquet", "pycytominer"),
    ],
)
def test_a_map_comes_back_bit_for_bit(tmp_path: Path, file: str, naming: Any) -> None:
    if file.endswith("h5ad"):
        pytest.importorskip("anndata")
    written = make_map()
    path = write_map(written, tmp_path / "deep" / file, naming=naming)
    found = read_map(path)
    assert found.names == written.names
    assert found.vectors.astype(np.float32).tobytes() == written.vectors.tobytes()
    pd.testing.assert_frame_equal(found.table, written.table, check_dtype=False)
    assert found.table["num_wells"].dtype == np.int64
    assert found.table["negative_control"].dtype == bool
    text = file.endswith((".csv", ".tsv", ".gz"))
    assert found.facts == ({} if text else FACTS)
    assert [p.name for p in path.parent.iterdir()] == [file]  # nothing beside it
    if naming == "pycytominer":
        names = pq.read_schema(path).names if ".parquet" in file else list(pd.read_csv(path))
        metadata = [name for name in names if name.startswith("Metadata_")]
        assert metadata[:2] == ["Metadata_gene", "Metadata_num_wells"] and len(metadata) == 5
        assert names[5:] == ["feature_0", "feature_1", "feature_2"]


@pytest.mark.parametrize(
    ("file", "naming"), [("m.parquet", "phenoscale"), ("m.csv", "pycytominer")]
)
def test_double_precision_survives_where_the_format_has_it(
    tmp_path: Path, file: str, naming: Any
) -> None:
    written = make_map(np.float64)
    found = read_map(write_map(written, tmp_path / file, naming=naming))
    assert found.vectors.tobytes() == written.vectors.tobytes()


def test_anndata_is_as_scverse_expects(tmp_path: Path) -> None:
    anndata = pytest.importorskip("anndata")
    path = write_map(make_map(np.float64), tmp_path / "m.h5ad")
    data = anndata.read_h5ad(path)
    assert data.X.dtype == np.float32 and data.shape == (4, 3)
    assert list(data.obs_names) == list(make_map().names) and data.obs_names.is_unique
    assert list(data.var_names) == ["patch_mean_0", "patch_mean_1", "patch_mean_2"]
    assert isinstance(data.obs["perturbation_type"].dtype, pd.CategoricalDtype)
    assert data.obs["perturbation_type"].isna().sum() == 1
    assert data.uns["phenoscale"]["alignment"] == "PCA-CS"
    data.obs["new"] = "x"  # and it is anndata's own to change and write
    data[:2].copy()


def test_the_map_of_a_trial_is_read_with_its_headline(tmp_path: Path) -> None:
    """Its form is that of `score_recall`: gene, num_wells, a list column per read-out."""
    rng = np.random.default_rng(1)
    genes = [f"G{row:02}" for row in range(24)]
    columns = {"gene": pa.array(genes), "num_wells": pa.array(np.full(24, 2))}
    for name in ("patch_mean", "class_token"):
        columns[name] = pa.array(list(rng.normal(size=(24, 3))))
    trial = tmp_path / "trials" / "mae"
    trial.mkdir(parents=True)
    pq.write_table(pa.table(columns), trial / "map.parquet")
    with pytest.raises(ValueError, match="No read-out is chosen; .* has patch_mean, class_token"):
        read_map(trial)
    write_json(trial / "row.json", {"trial_id": "mae", "readout": "class_token", "score": 0.1})
    write_json(tmp_path / "study.json", {"alignment": "PCA-CS on controls", "readout": ""})
    found = read_map(trial)
    assert found.facts == {
        "trial_id": "mae",
        "readout": "class_token",
        "alignment": "PCA-CS on controls",
    }
    assert found.names == tuple(genes) and found.table["num_wells"].tolist() == [2] * 24
    by_pandas = pd.read_parquet(trial / "map.parquet")
    assert (found.vectors == np.stack(by_pandas["class_token"])).all()
    other = read_map(trial / "map.parquet", "patch_mean")
    assert other.readout == "patch_mean"
    assert (other.vectors == np.stack(by_pandas["patch_mean"])).all()


def test_a_table_that_says_which_gene_keeps_its_column(tmp_path: Path) -> None:
    guides = make_map(table=pd.DataFrame({"gene": ["A", "A", "B", "B"]}))
    for file in ("m.parquet", "m.csv"):
        found = read_map(write_map(guides, tmp_path / file))
        assert found.names == guides.names and found.table["gene"].tolist() == ["A", "A", "B", "B"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"names": ("a", "b", "b", "c")}, "Names must be unique .* repeated are b"),
        ({"names": ("a", "", "b", "c")}, r"1 perturbations have no name \(rows 1\)"),
        ({"names": ("a", "b")}, "vectors has 4 rows but its metadata have 2"),
        ({"vectors": np.full((4, 2), np.nan)}, "8 NaN or infinite values in 4 of 4 rows"),
        ({"table": pd.DataFrame({"a": [1]})}, "The table has 1 rows, the perturbation map 4"),
        ({"facts": {"a": [1, 2]}}, r"The fact a is \[1, 2\]"),
        ({"facts": {"a": None}}, "The fact a is None"),
    ],
)
def test_what_is_no_map_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make_map(**changes)


def test_wrong_files_are_refused_and_old_ones_kept(tmp_path: Path) -> None:
    for path, naming, says in (
        (tmp_path / "m.xlsx", "phenoscale", "ends in '.xlsx'"),
        (tmp_path / "m.h5ad", "pycytominer", "AnnData has obs and X"),
    ):
        with pytest.raises(ValueError, match=says):
            write_map(make_map(), path, naming=naming)  # type: ignore[arg-type]
    path = write_map(make_map(), tmp_path / "m.parquet")
    before = path.read_bytes()
    clash = make_map(table=pd.DataFrame({"patch_mean": range(4)}))
    with pytest.raises(ValueError, match="The read-out is called patch_mean, as a column"):
        write_map(clash, path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(ValueError, match="There is no perturbation map at"):
        read_map(tmp_path)  # a folder that is no trial's
    (tmp_path / "x.csv").write_text("plate,feature_0\np,1\n")
    with pytest.raises(ValueError, match="no column name or gene that names its perturbations"):
        read_map(tmp_path / "x.csv")
    pq.write_table(pa.table({"gene": ["A", "A"], "v": [[1.0], [2.0]]}), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=r"x.parquet: Names must be unique"):
        read_map(tmp_path / "x.parquet")


def test_a_missing_anndata_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "anndata", None)
    with pytest.raises(ValueError, match=r"pip install 'phenoscale\[maps\]'"):
        to_anndata(make_map())


def test_a_real_map_round_trips(real_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("anndata")
    depmap = pd.read_parquet(real_data / "depmap_gene_pca" / "gene_loadings.parquet")
    values = depmap.drop(columns="gene").to_numpy(np.float32)
    written = PerturbationMap(vectors=values, names=tuple(depmap["gene"]))
    for file in ("m.h5ad", "m.parquet", "m.csv"):
        found = read_map(write_map(written, tmp_path / file))
        assert found.vectors.astype(np.float32).tobytes() == values.tobytes()
        assert found.names == written.names
