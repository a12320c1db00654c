"""The command: thin verbs, clear errors, and no heavy import before a verb needs it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from phenoscale.backbones import VISION_TRANSFORMERS
from phenoscale.checkpoint import Checkpoints
from phenoscale.cli import app
from phenoscale.results import ResultsRow
from phenoscale.screens.index import ScreenIndex
from tests.fabricated import make_row
from tests.tiny import SCREEN

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "timm", "ray", "mlflow", "pandas", "pyarrow", "scipy", "sklearn", "plotly")


def invoke(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def refused(result: Result) -> str:
    """The one line that a user sees who asked for something impossible."""
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("phenoscale: ")
    return line


def loaded_after(code: str, *words: str) -> tuple[str, set[str]]:
    """What a fresh interpreter prints, and the heavy packages that it then has loaded."""
    code = f"""
import runpy, sys
sys.argv = {["program", *words]!r}
try:
    {code}
except SystemExit as end:
    assert not end.code, end.code
print("LOADED", *(name for name in {HEAVY!r} if name in sys.modules))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    text, _, loaded = done.stdout.rpartition("LOADED")
    return text, set(loaded.split())


@pytest.mark.parametrize("words", [[], ["index"], ["train"], ["results"]], ids=" ".join)
def test_help_loads_nothing_heavy(words: list[str]):
    text, loaded = loaded_after("from phenoscale.cli import app; app()", *words, "--help")
    assert "Usage:" in text
    assert loaded == set()


def test_results_load_nothing_heavy(tmp_path: Path):
    make_row().write(tmp_path / "trials" / "one")
    text, loaded = loaded_after(
        "from phenoscale.cli import app; app()", "results", str(tmp_path), "--json"
    )
    assert ResultsRow.from_dict(json.loads(text)[0], source="stdout") == make_row()
    assert loaded == set()


def test_the_bill_of_the_quickstart_needs_neither_torch_nor_ray():
    text, loaded = loaded_after(
        'runpy.run_module("experiments.quickstart", run_name="__main__")', "--dry-run"
    )
    assert "GPU-hours" in text and "oracle-" in text
    assert not loaded & {"torch", "timm", "ray", "mlflow"}


def test_from_nothing_to_a_checked_index(tmp_path: Path):
    out = tmp_path / "screen"
    made = invoke("synth", out, "--complexes", 1, "--opposed", 0, "--controls", 2, "--seed", 7)
    assert made.exit_code == 0, made.output
    assert made.stdout.splitlines()[-1] == f"{out}/index.parquet"
    checked = invoke("index", "check", out / "index.parquet", "--decode")
    assert checked.exit_code == 0, checked.output
    sites = ScreenIndex.open(out / "index.parquet").num_sites
    assert f"sites                {sites}" in checked.stdout
    assert "all pixels" in checked.stdout


def test_a_manifest_is_indexed(tiny_screen: Path, tmp_path: Path):
    out = tmp_path / "again.parquet"
    made = invoke("index", "manifest", tiny_screen / "sites.csv", tiny_screen, "--out", out)
    assert made.exit_code == 0, made.output
    fingerprint = ScreenIndex.open(tiny_screen / "index.parquet").fingerprint
    last = made.stdout.splitlines()[-1]
    assert last == f"{out}: {SCREEN.num_sites} sites, fingerprint {fingerprint[:12]}"
    assert ScreenIndex.open(out).fingerprint == fingerprint


def test_a_check_that_finds_something_fails(tiny_screen: Path, tmp_path: Path):
    copy = tmp_path / "screen"
    shutil.copytree(tiny_screen, copy)
    assert invoke("index", "check", copy / "index.parquet").exit_code == 0
    table = ScreenIndex.open(copy / "index.parquet").table
    (copy / table["paths"][3].as_py()[0]).unlink()
    checked = invoke("index", "check", copy / "index.parquet")
    assert checked.exit_code == 1
    assert f"PROBLEM site '{table['site_id'][3].as_py()}'" in checked.stdout
    indexed = invoke("index", "manifest", copy / "sites.csv", copy, "--out", copy / "new.parquet")
    assert "does not exist" in refused(indexed)
    assert not (copy / "new.parquet").exists()


def train(index: Path, out: Path, *words: object) -> Result:
    small = ("--backbone", "nano/8", "--crop-px", 16, "--passes", 1, "--mask-ratio", 0.5)
    return invoke("train", index, "--out", out, *small, *words)


def test_a_trial_trains_without_ray(tiny_screen: Path, tmp_path: Path):
    done = train(tiny_screen / "index.parquet", tmp_path)
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert [line.split()[1] for line in lines[:-1]] == [f"{step}/4" for step in range(1, 5)]
    assert all("loss" in line and line.endswith("crops/s") for line in lines[:-1])
    (checkpoints,) = tmp_path.glob("trials/*/checkpoints")
    assert Checkpoints(checkpoints).latest().startswith("step_00000004")
    assert lines[-1].endswith(f" s, checkpoints in {checkpoints}")
    again = train(tiny_screen / "index.parquet", tmp_path)  # nothing is left to train
    assert again.exit_code == 0
    (line,) = again.stdout.splitlines()
    assert line.endswith(f" s, checkpoints in {checkpoints}")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--backbone", "nono/8"], [*VISION_TRANSFORMERS, "nono/8"]),
        (["--objective", "mea"], ["mea", "mae", "wsl"]),
        (["--crop-px", 20], ["20 px", "multiple of 8"]),
        (["--crop-px", 128], ["64 x 64 px", "crop of 128 px"]),
    ],
)
def test_what_cannot_train_is_one_clear_line(
    tiny_screen: Path, tmp_path: Path, words: list, expected: list[str]
):
    line = refused(train(tiny_screen / "index.parquet", tmp_path, *words))
    assert all(word in line for word in expected)


def test_an_index_that_is_not_there_is_one_clear_line(tmp_path: Path):
    for result in (
        train(tmp_path / "none.parquet", tmp_path),
        invoke("index", "check", tmp_path / "none.parquet"),
    ):
        assert "none.parquet" in refused(result)


@pytest.mark.parametrize("verb", ["results", "report", "sync"])
def test_a_study_that_is_not_there_is_one_clear_line(tmp_path: Path, verb: str):
    line = refused(invoke(verb, tmp_path / "none"))
    assert "none is not a study" in line


def test_results_are_a_table(tmp_path: Path):
    row = make_row(score=0.5, score_low=0.25, score_high=0.75)
    row.write(tmp_path / "trials" / "one")
    done = invoke("results", tmp_path)
    assert done.exit_code == 0
    header, line, note = done.stdout.splitlines()
    assert header.split() == ["trial", "crops", "FLOPs", "loss", "score", "interval"]
    assert line.split()[0] == row.trial_id and line.endswith("0.500  [0.250, 0.750]")
    assert row.metric in note


def test_a_study_without_rows_says_so(tmp_path: Path):
    (tmp_path / "trials").mkdir()
    assert "no rows yet" in invoke("results", tmp_path).stdout
    assert json.loads(invoke("results", tmp_path, "--json").stdout) == []
