"""phenoscale probe: the verb and what it puts together; the probes have tests of their own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from phenoscale.cli import app
from phenoscale.maps.probe_card import Question, features_of, probe_card
from phenoscale.maps.probe_neighbours import knn_probe
from phenoscale.maps.probes import linear_probe

ASKED = Question(label="gene", held_out=("b2", "b1/p1"), rounds=60)


def wells(seed: int = 0) -> tuple[dict[str, np.ndarray], pd.DataFrame, pd.DataFrame]:
    """Three batches of two plates, four genes; block_2 knows them, block_1 a little."""
    rng = np.random.default_rng(seed)
    rows = [
        (f"b{batch}", f"p{plate}", f"{'ABCD'[gene]}{repeat + 1:02d}", f"G{gene}")
        for batch in range(3)
        for plate in range(2)
        for gene in range(4)
        for repeat in range(6)
    ]
    table = pd.DataFrame(rows, columns=["experimental_batch", "plate", "well", "gene"])
    mean = rng.standard_normal((4, 6))[table["gene"].str[1:].astype(int)]
    noise = rng.standard_normal((3, len(table), 6))
    readouts = {
        "block_1": 0.4 * mean + noise[0],
        "block_2": 2 * mean + noise[1],
        "noise": noise[2],
    }
    shapes = readouts["block_2"] @ rng.standard_normal((6, 3))
    features = pd.DataFrame(shapes, columns=[f"Cells_AreaShape_{i}" for i in range(3)])
    features["Nuclei_Texture_1"] = rng.standard_normal(len(table))
    return readouts, table, features


def test_a_card_holds_what_each_probe_says() -> None:
    readouts, table, features = wells()
    card = probe_card(readouts, table, ASKED, features)
    assert card["chosen"] == "block_2" and card["chance"] == 0.25
    plate = (table["experimental_batch"] + "/" + table["plate"]).to_numpy()
    test = np.isin(plate, ["b2/p0", "b2/p1", "b1/p1"])
    assert (card["num_train"], card["num_test"]) == (72, 72)
    for name, x in readouts.items():
        sides = {
            "train_vectors": x[~test], "train_labels": table["gene"][~test],
            "train_groups": plate[~test], "test_vectors": x[test],
            "test_labels": table["gene"][test], "test_groups": plate[test],
        }  # fmt: skip
        linear = linear_probe(**sides, rounds=60)
        nearest = knn_probe(**sides, rounds=60)
        found = card["readouts"][name]
        assert found["linear"] == {
            "value": linear.value, "low": linear.low, "high": linear.high
        }  # fmt: skip
        assert found["nearest"]["value"] == nearest.value
    assert card["readouts"]["block_2"]["linear"]["value"] > 0.8
    groups = {one["feature_group"]: one for one in card["feature_groups"]}
    assert groups["Cells_AreaShape"]["r2"] > 0.95 > 0.2 > groups["Nuclei_Texture"]["r2"]
    json.dumps(card, allow_nan=False)


def test_the_choice_never_sees_held_out_groups() -> None:
    readouts, table, _ = wells()
    test = (table["experimental_batch"] == "b2").to_numpy() | (
        (table["experimental_batch"] == "b1") & (table["plate"] == "p1")
    ).to_numpy()
    leak = readouts["noise"].copy()
    leak[test] = 100 * np.eye(6)[table["gene"].str[1:].astype(int)[test]]
    card = probe_card(readouts | {"leak": leak}, table, ASKED)
    assert card["chosen"] == "block_2"


def test_rows_that_cannot_be_asked_are_counted() -> None:
    readouts, table, _ = wells()
    table.loc[:2, "gene"] = None
    table.loc[table.index[-6:], "gene"] = "only here"
    card = probe_card(readouts, table, ASKED)
    assert card["left_out"] == {"without a label": 3, "of a class on one side only": 6}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": "moa"}, "metadata lack moa"),
        ({"held_out": ("b9",)}, "no experimental batch or plate b9; plates are named like b0/p0"),
        ({"held_out": ()}, "No class is both on held-out"),
        ({"group": "site"}, "group is 'site'"),
    ],
)
def test_bad_questions_are_refused(change: dict, message: str) -> None:
    readouts, table, _ = wells()
    asked = Question(**{"label": "gene", "held_out": ("b2",), "rounds": 60} | change)
    with pytest.raises(ValueError, match=message):
        probe_card(readouts, table, asked)


def test_features_are_joined_by_well() -> None:
    _, table, features = wells()
    profiles = pd.concat([table, features], axis=1)
    shuffled = profiles.sample(frac=1, random_state=1)
    joined = features_of(shuffled, table, list(features))
    pd.testing.assert_frame_equal(joined, features)
    with pytest.raises(ValueError, match="6 of 144 rows have no well"):
        features_of(profiles.iloc[6:], table, list(features))
    with pytest.raises(ValueError, match="Wells stand twice among the features: b0/p0/A01"):
        features_of(pd.concat([profiles, profiles.iloc[:1]]), table, list(features))
    with pytest.raises(ValueError, match="need the columns plate and well"):
        features_of(profiles.drop(columns="well"), table, list(features))


def test_the_command(tmp_path: Path) -> None:
    readouts, table, features = wells()
    rows = pa.Table.from_pandas(table, preserve_index=False)
    for name, x in readouts.items():
        rows = rows.append_column(name, pa.array(list(x)))
    pq.write_table(rows, tmp_path / "embeddings.parquet")
    named = table.add_prefix("Metadata_").rename(
        columns={"Metadata_plate": "Metadata_Plate", "Metadata_well": "Metadata_Well"}
    )
    pd.concat([named, features], axis=1).to_csv(tmp_path / "profiles.csv.gz", index=False)
    words = ["probe", tmp_path / "embeddings.parquet", "--label", "gene", "--held-out", "b2",
             "--held-out", "b1/p1", "--features", tmp_path / "profiles.csv.gz",
             "--rounds", "60", "--out", tmp_path / "card.json"]  # fmt: skip
    done = CliRunner().invoke(app, list(map(str, words)))
    assert done.exit_code == 0, done.output
    expected = probe_card(readouts, table, ASKED, features)
    card = json.loads((tmp_path / "card.json").read_text())
    assert card["readouts"] == expected["readouts"]
    for ours, theirs in zip(card["feature_groups"], expected["feature_groups"], strict=True):
        assert ours["r2"] == pytest.approx(theirs["r2"], abs=1e-6)
    assert "block_2" in done.stdout and "Cells_AreaShape" in done.stdout
