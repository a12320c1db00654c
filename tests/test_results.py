"""The results row: round trip on disk, and every way in which one may be wrong."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phenoscale.results import ResultsRow, read_row, read_rows, write_json
from tests.fabricated import METRIC, make_baseline, make_row

FINITE = st.floats(allow_nan=False, allow_infinity=False, width=64)


@given(
    score=FINITE,
    loss=FINITE,
    data_fraction=st.floats(0.001, 1.0),
    readouts=st.dictionaries(st.text(min_size=1, max_size=9), FINITE, max_size=3),
    metric=st.sampled_from(["recall_0.05_0.95", "balanced_accuracy"]),
)
def test_a_row_survives_json_to_the_last_bit(
    score: float, loss: float, data_fraction: float, readouts: dict[str, float], metric: str
) -> None:
    row = make_row(
        score=score,
        train_loss=loss,
        data_fraction=data_fraction,
        score_by_readout=readouts,
        metric=metric,
    )
    assert ResultsRow.from_dict(json.loads(json.dumps(row.as_dict()))) == row


def test_the_score_stands_under_its_metrics_name() -> None:
    columns = make_row().as_dict()
    assert columns[METRIC] == 0.457
    assert columns[f"{METRIC}_low"] == 0.356 and columns[f"{METRIC}_high"] == 0.555
    assert not {"score", "score_low", "score_high"} & columns.keys()
    fields = [field.name for field in dataclasses.fields(ResultsRow)]
    assert len(columns) == len(fields) and list(columns)[0] == "trial_id"


def test_rows_are_read_back_trained_first(tmp_path: Path) -> None:
    rows = [
        make_baseline("intensity", 0.25, trial_id="a"),
        make_row(trial_id="c"),
        make_row(trial_id="b", seed=1),
    ]
    for row in rows:
        row.write(tmp_path / "trials" / row.trial_id)
    (tmp_path / "trials" / "unfinished").mkdir()
    assert read_rows(tmp_path) == [rows[2], rows[1], rows[0]]
    assert read_row(tmp_path / "trials" / "c") == rows[1]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("column", ["score", "train_loss", "overhead_s", "training_flops"])
def test_numbers_that_are_not_finite_are_refused(column: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{column} of mae-micro.*finite"):
        make_row(**{column: value})


@pytest.mark.parametrize("column", ["train_loss", "held_out_loss"])
def test_only_a_baseline_may_lack_a_loss(column: str) -> None:
    with pytest.raises(ValueError, match="must have both"):
        make_row(**{column: None})
    assert make_baseline("oracle", 0.99).train_loss is None
    assert make_baseline("oracle", 0.99).is_baseline and not make_row().is_baseline


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 1.5}, "steps must be int, got 1.5"),
        ({"steps": True}, "steps must be int, got True"),
        ({"seed": "0"}, "seed must be int, got '0'"),
        ({METRIC: None}, "score must be float, got None"),
        ({"train_loss": "low"}, "train_loss must be float | None, got 'low'"),
        ({"trial_id": 7}, "trial_id must be str, got 7"),
        ({"score_by_readout": [1]}, "score_by_readout must be dict"),
        ({"score_by_readout": {"a": "b"}}, "score_by_readout must be dict"),
        ({"colour": 1}, "unknown columns ['colour']"),
        ({"metric": "balanced_accuracy"}, "lacks the columns ['score', 'score_high', 'score_low']"),
    ],
)
def test_wrong_columns_are_named_with_their_file(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    write_json(tmp_path / "t" / "row.json", make_row().as_dict() | change)
    with pytest.raises(ValueError) as error:
        read_row(tmp_path / "t")
    assert message in str(error.value) and str(tmp_path / "t" / "row.json") in str(error.value)


def test_every_column_is_required() -> None:
    for name in make_row().as_dict():
        columns = make_row().as_dict()
        del columns[name]
        with pytest.raises(ValueError, match="lacks the columns"):
            ResultsRow.from_dict(columns)


def test_a_folder_without_trials_is_no_study(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a study: it has no folder trials/"):
        read_rows(tmp_path)
    (tmp_path / "trials").mkdir()
    assert read_rows(tmp_path) == []


def test_a_write_that_fails_leaves_the_old_file_and_no_pieces(tmp_path: Path) -> None:
    path = write_json(tmp_path / "deep" / "row.json", {"a": 1})
    with pytest.raises(ValueError):
        write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in path.parent.iterdir()] == ["row.json"]
