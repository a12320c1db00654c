"""The protocol rxrx3-core against the notebook written out in pandas and scikit-learn."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.decomposition import PCA
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.preprocessing import StandardScaler
from typer.testing import CliRunner

from phenoscale.cli import app
from phenoscale.maps.protocols.compound_gene import average_precision_and_auc
from phenoscale.maps.protocols.rxrx3_core import align_on_controls, map_rows, score_rxrx3_core

SEEDS = 5
WIDTH = 8
GENES = [f"G{i:02d}" for i in range(44)]
COMPOUNDS = [f"drug {i}" for i in range(8)]


def write_release(folder: Path, signal: float = 3.0, dtype: str = "float64") -> dict[str, Any]:
    """A small release in the published layout; compound i acts on the genes 3 i, 3 i + 1."""
    rng = np.random.default_rng(0)
    direction = {gene: signal * rng.standard_normal(WIDTH) for gene in GENES}
    mixing = rng.standard_normal((WIDTH, WIDTH))
    rows, values = [], []

    def well(
        experiment: str, treatment: str, kind: str, dose: float | None, of: np.ndarray
    ) -> None:
        number = len(rows)
        rows.append(
            (f"{experiment}_1_{number}", experiment, 1, f"A{number}", treatment, dose, kind)
        )
        values.append((of + rng.standard_normal(WIDTH)) @ mixing + shift[experiment])

    shift = {name: 5 * rng.standard_normal(WIDTH) for name in ("gene-001", "gene-002", "comp-001")}
    for experiment in ("gene-001", "gene-002"):
        for gene in GENES:
            for guide in range(2):
                well(experiment, f"{gene}_guide_{guide}", "CRISPR", None, direction[gene])
        for _ in range(20):
            well(experiment, "EMPTY_control", "CRISPR", None, np.zeros(WIDTH))
        well(experiment, "CRISPR_control", "CRISPR", None, np.zeros(WIDTH))
    for number, compound in enumerate(COMPOUNDS):
        of = direction[GENES[3 * number]] + direction[GENES[3 * number + 1]]
        for dose in (0.25, 1.0, 10.0, 3.3):  # 3.3 is not published
            if compound == COMPOUNDS[1] and dose == 0.25:
                continue
            for _ in range(2):
                well("comp-001", compound, "COMPOUND", dose, -of)
    for _ in range(20):
        well("comp-001", "EMPTY_control", "COMPOUND", None, np.zeros(WIDTH))
    columns = ["well_id", "experiment_name", "plate", "address", "treatment", "concentration"]
    metadata = pd.DataFrame(rows, columns=[*columns, "perturbation_type"])
    metadata["gene"] = metadata["treatment"].str.split("_").str[0]
    metadata["SMILES"], metadata["cell_type"] = None, "HUVEC"
    metadata.to_csv(folder / "metadata.csv", index=False)
    vectors = np.array(values)
    # Two rows of each well, out of order, and a well that the metadata lack; one well without.
    names = [f"feature_{i}" for i in range(WIDTH)]
    noise = 0.1 * rng.standard_normal(vectors.shape)
    embeddings = pd.concat(
        [pd.DataFrame(vectors + sign * noise, columns=names) for sign in (1, -1)]
    ).astype(dtype)
    embeddings.insert(0, "well_id", np.tile(metadata["well_id"], 2))
    embeddings = embeddings[embeddings["well_id"] != metadata["well_id"].iloc[3]]
    stray = embeddings.iloc[:1].assign(well_id="stray")
    embeddings = pd.concat([embeddings, stray]).sample(frac=1, random_state=0)
    embeddings.to_parquet(folder / "embeddings.parquet", index=False)
    truth = []
    for number, compound in enumerate(COMPOUNDS):
        for offset, potency in enumerate((10, 900, 5000, 20_000)):
            truth.append((compound, GENES[(3 * number + offset) % 44], potency))
    truth += [(COMPOUNDS[0], GENES[0], 4000), ("not here", GENES[1], 5)]
    truth += [(COMPOUNDS[0], gene, 50_000) for gene in GENES]
    truth += [(COMPOUNDS[2], "ABSENT", 10), (COMPOUNDS[2], "ABSENT2", 50_000)]
    pd.DataFrame(truth, columns=["treatment", "gene_symbol", "nM_value"]).to_csv(
        folder / "truth.csv", index=False
    )
    pairs = pd.DataFrame(
        [(GENES[i], GENES[(7 * i + 5) % 44]) for i in range(30)] + [("ABSENT", GENES[0])],
        columns=["entity1", "entity2"],
    )
    return {
        "embeddings_path": folder / "embeddings.parquet",
        "metadata_path": folder / "metadata.csv",
        "truth_path": folder / "truth.csv",
        "relationships": {"small": pairs},
    }


def notebook_map(release: dict[str, Any]) -> pd.DataFrame:
    """The map of the notebook, by pandas."""
    wells = pd.read_csv(release["metadata_path"])
    wells["perturbation"] = [t if "_control" in t else t.split("_")[0] for t in wells["treatment"]]
    means = pd.read_parquet(release["embeddings_path"]).groupby("well_id").mean()
    wells = wells.merge(means, left_on="well_id", right_index=True).reset_index(drop=True)
    names = [f"feature_{i}" for i in range(WIDTH)]
    control = wells["perturbation"] == "EMPTY_control"
    scores = wells[names].to_numpy(dtype=float)
    scores = PCA().fit(scores[control]).transform(scores)
    for experiment in wells["experiment_name"].unique():
        rows = (wells["experiment_name"] == experiment).to_numpy()
        scaler = StandardScaler().fit(scores[rows & control.to_numpy()])
        scores[rows] = scaler.transform(scores[rows])
    wells[names] = scores
    compound_control = (wells["perturbation_type"] == "COMPOUND") & wells[
        "perturbation"
    ].str.contains("_control")
    key = ["perturbation_type", "perturbation", "concentration"]
    table = wells[~compound_control].groupby(key, dropna=False)[names].mean().reset_index()
    return table[
        table["concentration"].isin([0.0025, 0.01, 0.025, 0.1, 0.25, 1, 2.5, 10])
        | table["concentration"].isna()
    ].reset_index(drop=True)


def notebook_recall(table: pd.DataFrame, pairs: pd.DataFrame) -> float:
    cosine = cosine_similarity(table.filter(like="feature_"))
    null = np.sort(cosine[np.triu_indices(len(table), 1)])
    row = {name: i for i, name in enumerate(table["perturbation"])}
    known = {frozenset((a, b)) for a, b in pairs.itertuples(index=False) if a in row and b in row}
    hits = 0
    for first, second in (tuple(pair) for pair in known):
        value = cosine[row[first], row[second]]
        low = np.searchsorted(null, value, side="right") / len(null) <= 0.05
        hits += bool(low or np.searchsorted(null, value, side="left") / len(null) >= 0.95)
    return hits / len(known)


def notebook_compound_gene(table: pd.DataFrame, truth: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Figures of one seed: index concentration, columns as in `by_concentration`."""
    truth = truth[truth["gene_symbol"].isin(table["perturbation"])]
    genes = table[table["perturbation"].isin(truth["gene_symbol"])].set_index("perturbation")
    found: dict[object, list[tuple[np.ndarray, np.ndarray]]] = {0.25: [], 1.0: [], 10.0: []}
    found["max"] = []
    for compound in truth["treatment"].unique():
        doses = table[table["perturbation"] == compound]
        if doses.empty:
            continue
        mine = truth[truth["treatment"] == compound]
        active = mine.loc[mine["nM_value"] <= 1000, "gene_symbol"].unique()
        weak = mine.loc[(mine["nM_value"] > 1000) & (mine["nM_value"] <= 10000), "gene_symbol"]
        pool = np.array(sorted(set(truth["gene_symbol"]) - set(active) - set(weak)))
        size = max(2 * len(active), 20)
        assert len(active) and len(pool) >= size
        drawn = np.random.default_rng(seed).choice(pool, size, replace=False)
        labels = np.array([1] * len(active) + [0] * size)
        chosen = genes.loc[[*active, *drawn]].filter(like="feature_")
        scores = np.abs(cosine_similarity(doses.filter(like="feature_"), chosen))
        for dose, values in zip(doses["concentration"], scores, strict=True):
            found[dose].append((values, labels))
        found["max"].append((scores.max(axis=0), labels))
    rng = np.random.default_rng(seed)
    lines = {}
    for dose, cases in found.items():
        random = [(rng.random(len(labels)), labels) for _, labels in cases]
        line: dict[str, float] = {"num_compounds": len(cases)}
        for suffix, given in (("", cases), ("_random", random)):
            precision = [average_precision_score(labels, values) for values, labels in given]
            line[f"average_precision_mean{suffix}"] = float(np.mean(precision))
            line[f"average_precision_median{suffix}"] = float(np.quantile(precision, 0.5))
            area = [roc_auc_score(labels, values) for values, labels in given]
            line[f"auc_roc_mean{suffix}"] = float(np.mean(area))
        lines[str(dose)] = line
    return pd.DataFrame(lines).T


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_equals_the_notebook_written_out(tmp_path: Path, dtype: str) -> None:
    release = write_release(tmp_path, dtype=dtype)
    found = score_rxrx3_core(**release, seeds=SEEDS)
    assert (found["protocol"], found["version"]) == ("rxrx3-core", "1")
    assert json.loads(json.dumps(found)) == found
    table = notebook_map(release)
    recall = found["recall"]["small"]
    assert recall["recall_0.05_0.95"] == notebook_recall(table, release["relationships"]["small"])
    assert recall["num_entities"] == len(table)
    truth = pd.read_csv(release["truth_path"])
    runs = [notebook_compound_gene(table, truth, seed) for seed in range(SEEDS)]
    by_dose = found["compound_gene"]["by_concentration"]
    assert list(by_dose) == list(runs[0].index) == ["0.25", "1.0", "10.0", "max"]
    for dose, figures in by_dose.items():
        for column in runs[0].columns:
            values = np.array([run.loc[dose, column] for run in runs])
            assert figures[column] == pytest.approx(values.mean(), abs=1e-9), (dose, column)
            if column != "num_compounds":
                assert figures[f"{column}_sd"] == pytest.approx(values.std(ddof=1), abs=1e-9)
    assert (by_dose["0.25"]["num_compounds"], by_dose["max"]["num_compounds"]) == (7, 8)


def test_what_is_dropped_is_counted(tmp_path: Path) -> None:
    found = score_rxrx3_core(**write_release(tmp_path), seeds=2)
    # Wells: 2 x (88 + 21) of genes, 8 x 8 - 2 + 20 of compounds; one has no embedding.
    assert found["counts"] == {
        "num_wells": 2 * 109 + 62 + 20 - 1,
        "num_wells_without_embedding": 1,
        "num_embedded_wells_without_metadata": 1,
        "num_controls": 60,
        "num_experiments": 3,
        "num_map_rows": 44 + 2 + 23,
        "num_map_crispr_rows": 46,
    }
    assert found["compound_gene"]["counts"] == {
        "num_truth_rows_incomplete": 0,
        "num_genes": 44,
        "num_genes_not_in_map": 2,
        "num_compounds_not_in_map": 1,
        "num_compounds_without_active_gene": 0,
        "num_compounds_with_too_few_negatives": 0,
        "num_compounds": 8,
    }


def test_planted_targets_beat_random_and_noise_does_not(tmp_path: Path) -> None:
    planted = score_rxrx3_core(**write_release(tmp_path), seeds=20)["compound_gene"]
    best = planted["by_concentration"]["max"]
    assert best["average_precision_low"] > 1.4 * best["average_precision_mean_random"]
    assert best["average_precision_low"] < best["average_precision_mean"]
    assert best["auc_roc_mean"] > 0.8
    assert best["auc_roc_mean_random"] == pytest.approx(0.5, abs=0.05)
    noise = score_rxrx3_core(**write_release(tmp_path, signal=0), seeds=20)["compound_gene"]
    best = noise["by_concentration"]["max"]
    assert best["average_precision_low"] < best["average_precision_mean_random"] + 0.1
    assert best["auc_roc_mean"] < 0.7


def test_a_compound_with_the_name_of_a_gene_is_kept_apart(tmp_path: Path) -> None:
    release = write_release(tmp_path)
    before = score_rxrx3_core(**release, seeds=2)
    metadata = pd.read_csv(release["metadata_path"])
    metadata["treatment"] = metadata["treatment"].replace(COMPOUNDS[7], GENES[5])
    metadata.to_csv(release["metadata_path"], index=False)
    truth = pd.read_csv(release["truth_path"])
    truth["treatment"] = truth["treatment"].replace(COMPOUNDS[7], GENES[5])
    truth.to_csv(release["truth_path"], index=False)
    assert score_rxrx3_core(**release, seeds=2) == before


def test_precision_and_area_are_those_of_scikit_learn_with_ties() -> None:
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 6, size=(30, 4, 25)) / 6
    labels = np.arange(25) < 3
    precision, area = average_precision_and_auc(scores, 3)
    for index in np.ndindex(30, 4):
        assert precision[index] == pytest.approx(average_precision_score(labels, scores[index]))
        assert area[index] == pytest.approx(roc_auc_score(labels, scores[index]))


def test_fewer_controls_than_features_as_in_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    vectors, experiment = rng.standard_normal((40, 12)), np.repeat(["a", "b"], 20)
    control = np.tile(np.arange(20) < 4, 2)
    scores = PCA().fit(vectors[control]).transform(vectors)
    for name in "ab":
        rows = experiment == name
        scores[rows] = StandardScaler().fit(scores[rows & control]).transform(scores[rows])
    found = vectors.copy()
    align_on_controls(found, experiment.astype(object), control)
    np.testing.assert_allclose(found[:, :8], scores, rtol=1e-9)
    assert (found[:, 8:] == 0).all()
    with pytest.raises(ValueError, match=r"1 experiments have no well EMPTY_control \(b\)"):
        align_on_controls(vectors, experiment.astype(object), control & (experiment == "a"))


def test_nulls_of_concentration_are_a_group_of_their_own() -> None:
    wells = pd.DataFrame(
        {
            "perturbation_type": ["COMPOUND"] * 5 + ["CRISPR"],
            "perturbation": ["x", "x", "x", "x", "E_control", "E_control"],
            "concentration": [1.0, None, 1.0, 7.0, None, None],
        }
    )
    rows, means = map_rows(wells, np.arange(6.0)[:, None])
    assert rows["perturbation"].tolist() == ["x", "x", "E_control"]
    assert means.ravel().tolist() == [1.0, 1.0, 5.0]
    assert rows["concentration"].isna().tolist() == [False, True, True]


def test_bad_tables_are_refused(tmp_path: Path) -> None:
    release = write_release(tmp_path)
    metadata = pd.read_csv(release["metadata_path"])

    def with_metadata(table: pd.DataFrame) -> dict[str, Any]:
        table.to_csv(tmp_path / "other.csv", index=False)
        return release | {"metadata_path": tmp_path / "other.csv"}

    with pytest.raises(ValueError, match=r"lacks the columns \['treatment'\]"):
        score_rxrx3_core(**with_metadata(metadata.drop(columns="treatment")))
    with pytest.raises(ValueError, match="1 wells stand twice in the metadata"):
        score_rxrx3_core(**with_metadata(metadata.iloc[[0, *range(len(metadata))]]))
    with pytest.raises(ValueError, match="1 wells have no treatment"):
        score_rxrx3_core(
            **with_metadata(metadata.assign(treatment=[None, *metadata["treatment"][1:]]))
        )
    with pytest.raises(ValueError, match="None of the .* wells of .* is in the metadata"):
        score_rxrx3_core(**with_metadata(metadata.assign(well_id=metadata["well_id"] + "x")))
    with pytest.raises(ValueError, match="seeds is 1"):
        score_rxrx3_core(**release, seeds=1)
    truth = pd.read_csv(release["truth_path"])
    truth.assign(gene_symbol="none").to_csv(tmp_path / "none.csv", index=False)
    with pytest.raises(ValueError, match="None of the 1 genes of the truth is in the map"):
        score_rxrx3_core(**release | {"truth_path": tmp_path / "none.csv"})
    truth.assign(nM_value=1e6).to_csv(tmp_path / "weak.csv", index=False)
    with pytest.raises(ValueError, match="No compound of the truth can be scored"):
        score_rxrx3_core(**release | {"truth_path": tmp_path / "weak.csv"})
    embeddings = pd.read_parquet(release["embeddings_path"])
    embeddings.loc[embeddings["well_id"] == metadata["well_id"][0], "feature_1"] = np.nan
    embeddings.to_parquet(tmp_path / "broken.parquet")
    with pytest.raises(ValueError, match=r"embeddings has 1 NaN .*\(gene-001_1_0\)"):
        score_rxrx3_core(**release | {"embeddings_path": tmp_path / "broken.parquet"})


def test_the_command_prints_and_writes_the_protocol(tmp_path: Path) -> None:
    release = write_release(tmp_path)
    release["relationships"]["small"].to_csv(tmp_path / "small.csv", index=False)
    words = ["score", release["embeddings_path"], "--protocol", "rxrx3-core",
             "--metadata", release["metadata_path"], "--truth", release["truth_path"],
             "--relationships", tmp_path / "small.csv", "--out", tmp_path / "out.json"]  # fmt: skip
    done = CliRunner().invoke(app, list(map(str, words)))
    assert done.exit_code == 0, done.output
    written = json.loads((tmp_path / "out.json").read_text())
    assert (written["protocol"], written["version"]) == ("rxrx3-core", "1")
    assert written == json.loads(json.dumps(score_rxrx3_core(**release)))
    assert "rxrx3-core 1" in done.stdout and "max" in done.stdout and "small" in done.stdout
