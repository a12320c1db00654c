"""The scorecard: planted wells whose every score is known to be high, at chance, or impossible."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from phenoscale.cli import app
from phenoscale.maps.files.map_files import write_map
from phenoscale.maps.recall import recall_by_database
from phenoscale.maps.score import nuisance_accuracy, perturbation_map
from phenoscale.maps.score_lines import Options
from phenoscale.maps.scorecard import REQUIRED, map_scorecard, scorecard
from phenoscale.score_tables import tables_of

QUICK = Options(rounds=60, alignments=("pca_cs",))
KEY = "recall_0.05_0.95"


def planted(seed: int = 0, signal: float = 3.0) -> tuple[np.ndarray, pd.DataFrame, pd.DataFrame]:
    """32 genes in pairs, two guides each, on four plates of two experimental batches.

    Returns:
        vectors (n, 8), their wells, and the relationships.
    """
    rng = np.random.default_rng(seed)
    direction = np.repeat(rng.standard_normal((16, 8)), 2, axis=0)
    rows = []
    for plate in range(4):
        places = rng.permutation(96)
        names = [(f"G{g:02d}", f"G{g:02d}_{k}") for g in range(32) for k in (1, 2)]
        for place, (gene, guide) in zip(places, [*names, *[(None, None)] * 32], strict=True):
            well = f"{'ABCDEFGH'[place // 12]}{place % 12 + 1:02d}"
            rows.append((f"b{plate // 2}", f"p{plate}", well, gene, guide))
    wells = pd.DataFrame(rows, columns=["experimental_batch", "plate", "well", "gene", "guide"])
    wells["negative_control"] = wells["gene"].isna()
    wells["perturbation"] = wells["guide"].fillna("control")
    gene = wells["gene"].map({f"G{g:02d}": g for g in range(32)})
    vectors = rng.standard_normal((len(wells), 8))
    treated = ~wells["negative_control"].to_numpy()
    vectors[treated] += signal * direction[gene[treated].astype(int)]
    wells["cell_count"] = rng.poisson(100, len(wells)) - 20 * treated
    offsets = 5 * rng.standard_normal((4, 8))
    vectors += offsets[wells["plate"].str[1:].astype(int)]
    pairs = [(f"G{first:02d}", f"G{first + 1:02d}") for first in range(0, 32, 2)]
    return vectors, wells, pd.DataFrame(pairs, columns=["entity1", "entity2"])


@pytest.fixture(scope="module")
def card() -> dict:
    vectors, wells, pairs = planted()
    noise = np.random.default_rng(9).standard_normal(vectors.shape)
    options = Options(rounds=60, alignments=("none", "pca_cs"), nuisance_columns=("cell_count",))
    return scorecard(
        {"itself": (vectors, wells), "noise": (noise, wells)}, {"planted": pairs}, options
    )


def line(card: dict, score: str, of: str, alignment: str = "pca_cs", name: str = "itself") -> dict:
    (found,) = [
        one
        for one in card["lines"]
        if (one["score"], one["of"], one["alignment"], one["embedding"])
        == (score, of, alignment, name)
    ]
    return found


def test_recall_is_that_of_the_map_that_a_study_makes(card: dict) -> None:
    vectors, wells, pairs = planted()
    for alignment in ("none", "pca_cs"):
        made = perturbation_map(vectors, wells, alignment=alignment)
        expected = recall_by_database(made.vectors, made.names, {"x": pairs}, rounds=60)["x"]
        found = line(card, KEY, "planted", alignment)
        interval = expected.recall[KEY]
        assert (found["value"], found["low"], found["high"]) == (
            interval.value, interval.low, interval.high,
        )  # fmt: skip
        assert (found["count"], found["counted"]) == (16, "known pairs")
    assert line(card, KEY, "planted")["value"] > 0.9
    assert line(card, KEY, "planted")["chance"] == pytest.approx(0.1)


def test_planted_signal_is_found_by_every_score_and_noise_by_none(card: dict) -> None:
    for score, of in (
        ("mean_average_precision", "phenotypic_activity"),
        ("mean_average_precision", "replicate_retrieval"),
        ("mean_average_precision", "sister_guides"),
    ):
        signal, noise = line(card, score, of), line(card, score, of, name="noise")
        # Guides of a gene and its partner share a phenotype, so replicates cannot all come first.
        assert signal["low"] > signal["chance"] + 0.15
        assert noise["value"] < noise["chance"] + 0.1
        assert signal["count"] in (32, 64)
    assert line(card, "fraction_retrieved", "phenotypic_activity")["value"] > 0.7
    share = line(card, "significant_share", "signal_consistency")["value"]
    noise = line(card, "significant_share", "signal_consistency", name="noise")["value"]
    assert share > 0.7 > 0.1 > noise
    # The energy distance needs five replicates, and guides have four.
    assert line(card, "significant_share", "signal_magnitude")["value"] is None
    assert line(card, "ks_statistic", "replicates across plate")["value"] > 0.6
    assert line(card, "ks_statistic", "replicates across plate", name="noise")["value"] < 0.2
    assert line(card, KEY, "planted", name="noise")["low"] < 0.1


def test_what_alignment_removes_is_told(card: dict) -> None:
    for target in ("plate", "experimental_batch"):
        assert line(card, "nuisance_accuracy", target, "none")["value"] > 0.9
    aligned = line(card, "nuisance_accuracy", "experimental_batch")
    assert aligned["value"] < 0.75 and aligned["chance"] == 0.5
    # Plates of one experimental batch share a place for their offset, which PCA-CS cannot remove.
    assert line(card, "nuisance_accuracy", "plate")["value"] > 0.4
    assert line(card, "position_share", "same position")["value"] < 0.6


def test_a_column_of_numbers_is_scored_alone(card: dict) -> None:
    found = line(card, KEY, "planted", "center_scale", "column cell_count")
    assert found["low"] < 0.1 < found["high"]
    vectors, wells, pairs = planted()
    with pytest.raises(ValueError, match="no column nuclei"):
        scorecard({"x": (vectors, wells)}, {"p": pairs}, Options(nuisance_columns=("nuclei",)))


def test_shuffled_genes_are_at_chance() -> None:
    vectors, wells, pairs = planted()
    made = perturbation_map(vectors, wells)
    held = []
    for seed in range(20):
        names = list(np.random.default_rng(seed).permutation(made.names))
        found = recall_by_database(made.vectors, names, {"x": pairs}, rounds=60)["x"].recall[KEY]
        held.append(found.low <= 0.1 <= found.high)
    assert sum(held) >= 18


def test_scores_that_the_data_cannot_have_say_why() -> None:
    vectors, wells, _ = planted()
    one = wells["plate"] == "p0"
    bare = wells[one].drop(columns=["gene", "guide"])
    card = scorecard({"x": (vectors[one], bare)}, {}, QUICK)
    assert not [one for one in card["lines"] if one["score"] == KEY]
    assert card["num_genes"] == 0 and card["num_wells"] == 96
    for score, of in (
        ("mean_average_precision", "replicate_retrieval"),
        ("ks_statistic", "replicates across experimental_batch"),
        ("nuisance_accuracy", "plate"),
        ("position_share", "same position"),
    ):
        found = line(card, score, of, name="x")
        assert found["value"] is None and len(found["note"]) > 20
    json.dumps(card, allow_nan=False)


def test_sites_are_wells_first() -> None:
    vectors, wells, pairs = planted()
    twice = pd.concat([wells, wells], ignore_index=True)
    apart = np.concatenate([vectors + 1, vectors - 1])
    one = scorecard({"x": (vectors, wells)}, {"p": pairs}, QUICK)
    two = scorecard({"x": (apart, twice)}, {"p": pairs}, QUICK)
    assert two["num_wells"] == one["num_wells"] == 384
    for ours, theirs in zip(one["lines"], two["lines"], strict=True):
        assert ours["value"] == pytest.approx(theirs["value"], abs=1e-9)


def test_genes_can_be_restricted_and_corrected_for_proximity() -> None:
    vectors, wells, pairs = planted()
    genes = {f"G{g:02d}" for g in range(24)}
    card = scorecard({"x": (vectors, wells)}, {"p": pairs}, dataclasses.replace(QUICK, genes=genes))
    found = line(card, KEY, "p", name="x")
    assert found["count"] == 12 and "24 genes kept" in found["note"]
    arms = pd.DataFrame(
        {
            "gene": [f"G{g:02d}" for g in range(32)],
            "arm": [f"{g // 26 + 1}p" for g in range(32)],
            "expressed": [g >= 22 for g in range(32)],
        }
    )
    card = scorecard({"x": (vectors, wells)}, {"p": pairs}, dataclasses.replace(QUICK, arms=arms))
    before = line(card, "proximity_bias", "chromosome arms, before correction", name="x")
    assert before["chance"] == 0.5 and before["count"] == 6 + 15
    assert "corrected for proximity" in line(card, KEY, "p", name="x")["note"]


def test_signal_is_held_against_perturbations_without_effect() -> None:
    vectors, wells, _ = planted()
    # Ten guides become noise: their genes are not expressed.
    dead = wells["guide"].isin([f"G{g:02d}_{k}" for g in range(5) for k in (1, 2)]).to_numpy()
    plates = wells["plate"].str[1:].astype(int).to_numpy()
    control = wells["negative_control"].to_numpy()
    for plate in range(4):
        some = vectors[(plates == plate) & control]
        rows = np.flatnonzero(dead & (plates == plate))
        vectors[rows] = some[np.random.default_rng(plate).permutation(len(some))[: len(rows)]]
    names = tuple(wells["guide"][dead].unique())
    options = dataclasses.replace(QUICK, null_perturbations=names)
    found = line(
        scorecard({"x": (vectors, wells)}, {}, options),
        "significant_share", "signal_consistency", name="x",
    )  # fmt: skip
    assert found["count"] == 64 - 10
    # Ten nulls: the least p-value is 1 / 11, so nothing can be significant, and that is said so.
    assert found["value"] == 0


def test_bad_input_is_refused() -> None:
    vectors, wells, pairs = planted()
    for column in REQUIRED:
        with pytest.raises(ValueError, match=f"metadata lack {column}"):
            scorecard({"x": (vectors, wells.drop(columns=column))}, {"p": pairs})
    broken = vectors.copy()
    broken[5, 2] = np.inf
    with pytest.raises(ValueError, match=r"1 NaN or infinite values in 1 of 384 rows \(5\)"):
        scorecard({"x": (broken, wells)}, {"p": pairs})
    with pytest.raises(ValueError, match="no alignment best; give pca_cs"):
        scorecard({"x": (vectors, wells)}, {"p": pairs}, Options(alignments=("best",)))
    with pytest.raises(ValueError, match="At least one embedding"):
        scorecard({}, {"p": pairs})
    other = pd.DataFrame({"entity1": ["A"] * 20, "entity2": ["B"] * 20})
    with pytest.raises(ValueError, match="Other: None of 1 relationships has both genes"):
        scorecard({"x": (vectors, wells)}, {"Other": other})
    uncontrolled = wells[(wells["plate"] == "p0") | ~wells["negative_control"]]
    with pytest.raises(ValueError, match=r"too few negative controls: b1 \(0\)"):
        scorecard({"x": (vectors[uncontrolled.index], uncontrolled)}, {"p": pairs})


def test_nuisance_of_many_plates_looks_at_some(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, wells, _ = planted()
    everything = nuisance_accuracy(vectors, wells)
    assert everything["plate_chance"] == 0.25 and everything["plate"] > 0.9
    monkeypatch.setattr("phenoscale.maps.score.NUISANCE_PLATES", 2)
    some = nuisance_accuracy(vectors, wells)
    two = wells["plate"].isin(["p0", "p3"])
    assert some == nuisance_accuracy(vectors[two], wells[two]) and some["plate_chance"] == 0.5
    assert nuisance_accuracy(vectors, wells.assign(well="somewhere")) == {}


# ---- the command


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """wells.csv with names of another kind, embeddings.parquet, pairs.csv, map.h5ad."""
    folder = tmp_path_factory.mktemp("score")
    vectors, wells, pairs = planted()
    pairs.to_csv(folder / "pairs.csv", index=False)
    features = pd.DataFrame(vectors, columns=[f"f_{i}" for i in range(8)])
    theirs = wells.rename(columns={"gene": "symbol"}).drop(columns="negative_control")
    theirs["role"] = np.where(wells["negative_control"], "negcon", "trt")
    pd.concat([theirs, features], axis=1).to_csv(folder / "wells.csv", index=False)
    table = pa.Table.from_pandas(wells, preserve_index=False)
    for name, x in (("embeddings", vectors), ("random", np.random.default_rng(1).random((384, 3)))):
        lists = pa.array(list(x.astype(np.float32)))
        pq.write_table(table.append_column("patch_mean", lists), folder / f"{name}.parquet")
    write_map(perturbation_map(vectors, wells), folder / "map.h5ad")
    return folder


def run(*words: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["score", *map(str, words), "--rounds", "60"])
    return done.exit_code, done.stdout, done.stderr


def test_wells_of_another_naming(files: Path) -> None:
    code, out, err = run(
        files / "wells.csv", "--relationships", files / "pairs.csv", "--column", "gene=symbol",
        "--control", "role=negcon", "--align", "tvn", "--nuisance", "cell_count",
        "--out", files / "card.json",
    )  # fmt: skip
    assert code == 0, err
    card = json.loads((files / "card.json").read_text())
    vectors, wells, pairs = planted()
    expected = scorecard(
        {"itself": (vectors, wells)}, {"pairs": pairs},
        Options(rounds=60, alignments=("tvn",), nuisance_columns=("cell_count",)),
    )  # fmt: skip
    assert [one["of"] for one in card["lines"]] == [one["of"] for one in expected["lines"]]
    for ours, theirs in zip(card["lines"], expected["lines"], strict=True):
        assert ours["value"] == pytest.approx(theirs["value"], abs=1e-6), ours
    assert "recall_0.05_0.95" in out and "384 wells" in out and "sister_guides" in out
    assert "wells.csv: 384 rows of 8" in err


def test_other_embeddings_stand_beside(files: Path) -> None:
    code, out, err = run(
        files / "embeddings.parquet", "--relationships", files / "pairs.csv",
        "--beside", f"random={files / 'random.parquet'}", "--tails", "0.1,0.9",
        "--genes", "annotated", "--align", "none",
    )  # fmt: skip
    assert code == 0, err
    assert "itself, none" in out and "random, none" in out and "recall_0.1_0.9" in out


def test_a_map_is_scored_as_it_is(files: Path) -> None:
    code, out, err = run(files / "map.h5ad", "--relationships", files / "pairs.csv")
    assert code == 0, err
    vectors, wells, pairs = planted()
    made = perturbation_map(vectors, wells)
    (found,) = map_scorecard({"x": made}, {"p": pairs}, QUICK)["lines"]
    assert f"{found['value']:.3f}" in out and "pca_cs" in out and "32 genes" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--column", "gene"], "'gene' is not of the form OURS=THEIRS"),
        (["--column", "gene=x"], "has no column x"),
        (["--control", "role=dmso"], "No row of .* has role=dmso"),
        (["--tails", "0.1"], "LOWER,UPPER is required"),
        (["--relationships", "absent.csv"], "no file of relationships at absent.csv"),
        (["--protocol", "rxrx3-core"], "needs --metadata, --truth"),
        (["--genes", "absent.txt"], "absent.txt"),
    ],
)
def test_mistakes_of_the_user_are_one_line(files: Path, words: list[str], message: str) -> None:
    code, _, err = run(files / "wells.csv", *words)
    assert code == 2
    assert re.search(message, err.replace("\n", " "))


def test_tables_hold_what_was_found(card: dict) -> None:
    ((title, columns, rows, notes),) = tables_of(card)
    assert title.startswith("scorecard/1: 384 wells, 128 controls, 64 perturbations, 32 genes")
    assert columns[:3] == ["score", "of", "itself, none"] and columns[-2:] == ["chance", "over"]
    assert all(len(row) == len(columns) for row in rows)
    recall = next(row for row in rows if row[:2] == (KEY, "planted"))
    assert recall[-1] == "16 known pairs" and "[" in recall[3]
    assert all(isinstance(note, str) for note in notes)
