"""Tables of embeddings and profiles: list columns, wide tables, AnnData, and what is refused."""

from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from phenoscale.maps.files.columns import feature_columns, our_names, pycytominer_name
from phenoscale.maps.files.tables import read_embeddings
from phenoscale.results import write_json

RNG = np.random.default_rng(0)


MEASURE = """
import sys, tracemalloc
import pyarrow
from phenoscale.maps.files.tables import read_embeddings
tracemalloc.start()
read_embeddings(sys.argv[1])
print(tracemalloc.get_traced_memory()[1], pyarrow.default_memory_pool().max_memory())
"""


def vectors(rows: int, width: int, dtype: Any = np.float32) -> np.ndarray:
    return RNG.normal(size=(rows, width)).astype(dtype)


def list_array(values: np.ndarray, kind: str) -> pa.Array:
    flat = pa.array(values.ravel())
    if kind == "fixed":
        return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
    offsets = np.arange(len(values) + 1) * values.shape[1]
    if kind == "large":
        return pa.LargeListArray.from_arrays(offsets.astype(np.int64), flat)
    return pa.ListArray.from_arrays(offsets.astype(np.int32), flat)


@pytest.mark.parametrize("kind", ["list", "large", "fixed"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_list_columns_come_bit_for_bit_over_row_groups(
    tmp_path: Path, kind: str, dtype: Any
) -> None:
    values = vectors(23, 5, dtype)
    wells = [f"A{row:02}" for row in range(23)]
    path = tmp_path / "sites.parquet"
    table = pa.table({"well": wells, "patch_mean": list_array(values, kind)})
    pq.write_table(table, path, row_group_size=7)
    found = read_embeddings(path)
    assert found.vectors.dtype == dtype and found.vectors.tobytes() == values.tobytes()
    assert found.readout == "patch_mean" and found.metadata["well"].tolist() == wells


def test_a_folder_of_parts_is_read_in_order_by_its_manifest(tmp_path: Path) -> None:
    mean, token = vectors(6, 3), vectors(6, 2)
    for part in (1, 0):  # written in the other order
        rows = slice(3 * part, 3 * part + 3)
        table = {
            "plate": [f"0{part}"] * 3,
            "mean": list_array(mean[rows], "list"),
            "token": list_array(token[rows], "list"),
        }
        pq.write_table(pa.table(table), tmp_path / f"part-0000{part}.parquet")
    with pytest.raises(ValueError, match=r"No read-out is chosen; .* has mean, token\. Name one"):
        read_embeddings(tmp_path)
    write_json(tmp_path / "embedding.json", {"readout": "token"})
    found = read_embeddings(tmp_path)
    assert found.readout == "token" and (found.vectors == token).all()
    assert found.metadata["plate"].tolist() == ["00"] * 3 + ["01"] * 3
    assert (read_embeddings(tmp_path, "mean").vectors == mean).all()
    with pytest.raises(ValueError, match=r"There is no read-out sd; .* has mean, token"):
        read_embeddings(tmp_path, "sd")


def test_list_columns_alone_are_a_table_too(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"v": list_array(vectors(4, 2), "list")}), path)
    assert len(read_embeddings(path).metadata) == 4


def test_a_large_list_column_costs_its_array_and_a_batch(tmp_path: Path) -> None:
    values = vectors(60_000, 64)
    path = tmp_path / "sites.parquet"
    table = pa.table({"v": list_array(values, "list")})
    pq.write_table(table, path, row_group_size=5_000, use_dictionary=False, compression="none")
    # Another process, because Arrow's highest mark cannot be set back.
    answer = subprocess.run(
        [sys.executable, "-c", MEASURE, path], capture_output=True, text=True, check=True
    )
    arrays, arrow = map(int, answer.stdout.split())
    assert arrays < 1.2 * values.nbytes  # a copy in float64 would be three times, lists far more
    assert arrow < 0.5 * values.nbytes  # read ahead, it holds the file


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([[1.0, 2.0], [3.0]], "0 rows are empty and the others have 1 to 2 values"),
        ([[1.0, 2.0], None], "1 rows are empty and the others have 2 to 2 values"),
        (
            [[1.0, None], [float("inf"), 0.0]],
            r"2 of 2 columns of v hold NaN.*in 2 of 2 rows: value 0 \(1\), value 1 \(1\)",
        ),
        ([], "has no rows"),
    ],
)
def test_damaged_list_columns_are_refused(tmp_path: Path, rows: list[Any], says: str) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"v": pa.array(rows, pa.list_(pa.float64()))}), path)
    with pytest.raises(ValueError, match=says):
        read_embeddings(path)


def test_parts_of_different_width_are_refused(tmp_path: Path) -> None:
    for part, width in enumerate((3, 4)):
        table = pa.table({"v": list_array(vectors(2, width), "list")})
        pq.write_table(table, tmp_path / f"part-{part}.parquet")
    with pytest.raises(ValueError, match="rows of 4 values follow rows of 3"):
        read_embeddings(tmp_path)


PROFILES = """Metadata_Plate,Metadata_Well,Metadata_gene,Metadata_Symbol,Metadata_negative_control,\
Metadata_concentration,Metadata_count,Metadata_Date,Cells_Area,Nuclei_X
0123,A01,NA,x,True,,7,2016-05-17,1,0.1
0124,A02,NAN,y,False,2.5,8,2016-05-18,2.5,1e-3
"""


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".csv.gz"])
def test_profiles_keep_their_text_and_get_our_names(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"profiles{ending}"
    content = PROFILES.replace(",", "\t") if "tsv" in ending else PROFILES
    data = content.encode()
    path.write_bytes(gzip.compress(data) if ending.endswith("gz") else data)
    found = read_embeddings(path)
    assert found.features == ("Cells_Area", "Nuclei_X")
    assert found.vectors.tolist() == [[1.0, 0.1], [2.5, 1e-3]]
    table = found.metadata
    assert table["plate"].tolist() == ["0123", "0124"]
    assert table["gene"].tolist() == ["NA", "NAN"]  # genes by these names, not missing
    assert table["Symbol"].tolist() == ["x", "y"]  # gene was taken
    assert table["negative_control"].tolist() == [True, False]
    assert table["negative_control"].dtype == bool
    assert np.isnan(table["concentration"][0]) and table["concentration"][1] == 2.5
    assert table["count"].tolist() == [7, 8] and table["count"].dtype == np.int64
    assert table["Date"].tolist() == ["2016-05-17", "2016-05-18"]
    assert "Metadata_Plate -> plate" in "\n".join(found.lines())


def test_integers_before_decimals_do_not_settle_the_type(tmp_path: Path) -> None:
    path = tmp_path / "long.csv"
    path.write_text("gene,feature_0\n" + "A,1\n" * 300_000 + "B,0.25\n")  # beyond Arrow's block
    assert read_embeddings(path).vectors[-1, 0] == 0.25


@pytest.mark.parametrize(
    ("cell", "says"),
    [
        ("", r"1 of 2 columns of features hold NaN .* in 1 of 2 rows: Nuclei_X \(1\)"),
        ("NA", r"Nuclei_X \(1\)"),
        ("nan", r"Nuclei_X \(1\)"),
        ("high", r"1 of 2 feature columns hold something else than numbers: Nuclei_X \(string\)"),
    ],
)
def test_cells_that_are_no_number_are_refused_by_name(tmp_path: Path, cell: str, says: str) -> None:
    path = tmp_path / "p.csv"
    path.write_text(PROFILES.replace("1e-3", cell))
    with pytest.raises(ValueError, match=says):
        read_embeddings(path)


def test_unusable_columns_are_left_out_when_asked_and_named(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    pq.write_table(
        pa.table({"gene": ["A", "B"], "f_a": [1.0, 2.0], "f_b": [3.0, None], "f_c": [5.0, 5.0]}),
        path,
    )
    with pytest.raises(ValueError, match=r"f_b \(1\)"):
        read_embeddings(path)
    found = read_embeddings(path, drop_unusable=True)
    assert found.features == ("f_a",) and found.vectors.tolist() == [[1.0], [2.0]]
    assert found.dropped == ("f_b", "f_c")
    assert "(2): f_b, f_c" in found.lines()[-1]
    pq.write_table(pa.table({"f_b": [3.0, None]}), path)
    with pytest.raises(ValueError, match="each of the 1 columns of features is constant or holds"):
        read_embeddings(path, drop_unusable=True)


def test_which_columns_are_features_is_never_guessed() -> None:
    assert feature_columns(["gene", "g_A", "plate"], None) == ["g_A"]
    assert feature_columns(["Metadata_X", "Unnamed: 0", "a", "b"], None) == ["a", "b"]
    assert feature_columns(["gene", "Cells_A", "Nuclei_B"], ["Cells_", "Nuclei_"]) == [
        "Cells_A",
        "Nuclei_B",
    ]
    with pytest.raises(ValueError, match="begin with f_ and with g_; which are the features"):
        feature_columns(["f_1", "g_1"], None)
    assert feature_columns(["f_1", "g_1"], "g_") == ["g_1"]
    for names, features in ((["gene", "area"], None), (["f_1"], "Cells_"), (["Metadata_A"], None)):
        with pytest.raises(ValueError, match="No column holds features"):
            feature_columns(names, features)


def test_names_are_translated_there_and_back() -> None:
    ours = "experimental_batch plate well site gene guide compound cell_type perturbation".split()
    ours += ["concentration", "num_wells", "negative_control", "perturbation_type"]
    theirs = [pycytominer_name(name) for name in ours]
    assert theirs[:5] == [
        *("Metadata_Batch", "Metadata_Plate", "Metadata_Well", "Metadata_Site", "Metadata_gene"),
    ]
    assert [our_names(theirs)[name] for name in theirs] == ours
    # What is taken stays as it is: nothing is overwritten.
    assert our_names(["plate", "Metadata_Plate"]) == {"Metadata_Plate": "Plate"}
    assert our_names(["plate", "Metadata_plate"]) == {}


def test_wrong_flags_and_concentrations_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    for good, bad, says in (
        ("True", "yes", "p.csv: negative_control holds 'yes' in 1 rows"),
        ("2.5", "2.5 uM", "p.csv: concentration holds '2.5 uM' in 1 rows"),
    ):
        path.write_text(PROFILES.replace(good, bad, 1))
        with pytest.raises(ValueError, match=says):
            read_embeddings(path)


def test_what_is_no_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="There is no table at"):
        read_embeddings(tmp_path / "nothing.csv")
    with pytest.raises(ValueError, match="holds no part-"):
        read_embeddings(tmp_path)
    for name, says in (
        ("x.parquet", "is no Parquet file"),
        ("x.h5ad", "is no AnnData file"),
        ("x.csv", "is no table of text"),
    ):
        (tmp_path / name).write_bytes(b"a,b\n1\n2,3,4\n")
        with pytest.raises(ValueError, match=says):
            read_embeddings(tmp_path / name)
    (tmp_path / "y.csv").write_text(PROFILES)
    with pytest.raises(ValueError, match="read-out mean is asked for, but .* wide table"):
        read_embeddings(tmp_path / "y.csv", "mean")


def test_anndata_gives_x_or_obsm_and_plain_metadata(tmp_path: Path) -> None:
    anndata = pytest.importorskip("anndata")
    from scipy import sparse

    values = vectors(3, 4)
    kinds = pd.Index(["1", "2"], dtype=object)
    obs = pd.DataFrame(
        {"Metadata_Plate": pd.Categorical(["1", "2", "1"], categories=kinds), "n": [1, 2, 3]},
        index=pd.Index(["a", "b", "c"], dtype=object),
    )
    var = pd.DataFrame(index=pd.Index(list("wxyz"), dtype=object))
    matrix = sparse.csr_matrix(values)
    data = anndata.AnnData(X=matrix, obs=obs, var=var, obsm={"X_pca": values[:, :2]})
    data.write_h5ad(tmp_path / "x.h5ad")
    found = read_embeddings(tmp_path / "x.h5ad")
    assert (found.vectors == values).all() and found.vectors.dtype == np.float32
    assert found.metadata["obs_name"].tolist() == ["a", "b", "c"]
    assert found.metadata["plate"].tolist() == ["1", "2", "1"]
    assert not isinstance(found.metadata["plate"].dtype, pd.CategoricalDtype)
    assert (read_embeddings(tmp_path / "x.h5ad", "X_pca").vectors == values[:, :2]).all()
    with pytest.raises(ValueError, match=r"no read-out mean; obsm of .* has \['X_pca'\]"):
        read_embeddings(tmp_path / "x.h5ad", "mean")


def test_real_profiles_are_read_as_they_are(real_data: Path) -> None:
    folder = real_data / "lincs_plate_sq00015054"
    lincs = read_embeddings(folder / "SQ00015054_normalized_feature_select.csv.gz")
    by_pandas = pd.read_csv(folder / "SQ00015054_normalized_feature_select.csv.gz")
    features = [name for name in by_pandas if not name.startswith("Metadata_")]
    assert list(lincs.features) == features and lincs.vectors.shape == (384, 454)
    np.testing.assert_allclose(lincs.vectors, by_pandas[features].to_numpy(), rtol=1e-15)
    assert (lincs.metadata["perturbation"] == "DMSO").sum() == 24
    assert lincs.metadata["well"].nunique() == 384 and set(lincs.metadata["cell_type"]) == {"A549"}
    assert lincs.metadata["target"].str.contains("|", regex=False).any()

    orf = read_embeddings(real_data / "ta_orf_l1000" / "wells.parquet")
    assert orf.vectors.shape == (1092, 978) and orf.vectors.dtype == np.float32
    assert list(orf.metadata) == ["plate", "well", "pert_type", "pert_id", "gene", "allele"]
    rnai = read_embeddings(real_data / "hd2013sgi_rnai" / "wells.parquet")
    assert rnai.vectors.shape == (32_368, 11) and "target_gene" in rnai.metadata

    # Its features have no mark of their own: refused, not guessed.
    jump = real_data / "cpjump1_phenotypes" / "wells.tsv.gz"
    with pytest.raises(ValueError, match="something else than numbers: treatment"):
        read_embeddings(jump)


def test_a_folder_that_is_not_finished_is_refused(tmp_path: Path) -> None:
    rows = pa.table({"plate": ["p"], "vector": pa.array([[1.0, 2.0]], pa.list_(pa.float32()))})
    pq.write_table(rows, tmp_path / "part-00000.parquet")
    (tmp_path / "embedding.json").write_text('{"complete": true, "readout": "vector"}')
    assert read_embeddings(tmp_path).vectors.tolist() == [[1.0, 2.0]]
    (tmp_path / "embedding.json").write_text('{"complete": false}')
    with pytest.raises(ValueError, match="is not finished"):
        read_embeddings(tmp_path)
