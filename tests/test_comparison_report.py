"""Several studies on one page: what compares and what does not."""

from __future__ import annotations

import html
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from phenoscale.cli import app
from phenoscale.reports.comparison_report import compare_studies
from phenoscale.reports.report_parts import Page
from phenoscale.results import read_rows, write_json
from tests.fabricated import make_baseline, make_row, make_study, study_facts, write_trial


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two studies on one screen, the second the better."""
    folder = tmp_path_factory.mktemp("studies")
    for name, gain in (("first", 0.1), ("second", 0.16)):
        make_study(folder / name, gain=gain)
        write_json(folder / name / "study.json", study_facts(20) | {"name": name})
    return [folder / "first", folder / "second"]


@pytest.fixture(scope="module")
def compared(studies: list[Path]) -> Page:
    return compare_studies(studies)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A study of one trial."""
    write_trial(tmp_path / "small", make_row())
    return tmp_path / "small"


def cells(found: Page, label: str) -> list[tuple[str, ...]]:
    (table,) = [t for section in found.sections for t in section.tables if t.label == label]
    return list(table.rows)


def test_studies_of_one_screen_compare(compared: Page) -> None:
    assert compared.name == "first and second"
    first, second = compared.answer
    assert first.startswith("The scores of these studies compare")
    assert second == (
        "The highest recall of known relationships is that of MAE micro/16 on 100% of second with "
        "0.450 [0.380, 0.520], before MAE micro/16 on 100% of first with 0.390 [0.320, 0.460]; "
        "their intervals overlap, and studies are not compared in pairs."
    )
    slopes = {name: cell for name, cell, *_ in cells(compared, "Slopes")}
    assert list(slopes) == ["first: MAE", "first: WSL", "second: MAE", "second: WSL"]
    assert slopes["second: MAE"].startswith("+0.097 [")
    differences = cells(compared, "Best trials against their baselines")
    assert ("first", "+0.100 [+0.010, +0.190]", "untrained (3 initialisations)") in differences


def test_their_points_stand_in_one_figure(compared: Page, studies: list[Path]) -> None:
    compute, slopes = compared.figures
    traces = {trace["name"]: trace for trace in compute["data"] if trace["name"]}
    assert list(traces) == ["first: MAE", "first: WSL", "second: MAE", "second: WSL"]
    colours = [trace["marker"]["color"] for trace in traces.values()]
    assert colours[0] == colours[1] != colours[2] == colours[3]
    expected = sorted(
        row.score
        for row in read_rows(studies[1])
        if row.objective == "wsl" and row.launcher == "in_place"
    )
    assert sorted(traces["second: WSL"]["y"]) == pytest.approx(expected)
    assert len([trace for trace in compute["data"] if "fill" in trace]) == 4
    assert slopes["layout"]["yaxis"]["ticktext"][-1] == "first: MAE"


@pytest.mark.parametrize(
    ("column", "what"),
    [("index_fingerprint", "screen"), ("protocol", "way of scoring"), ("metric", "metric")],
)
def test_what_differs_is_said_first(small: Path, tmp_path: Path, column: str, what: str) -> None:
    write_trial(tmp_path / "other", make_row(**{column: "another"}))
    found = compare_studies([small, tmp_path / "other"])
    assert found.answer[0] == (
        f"The scores of these studies cannot be compared: they differ in {what}. Compare slopes "
        "and ranks within each study alone."
    )
    assert found.answer[1].startswith("The best trial of each: ")
    apart = [figure for figure in found.figures if figure["id"].startswith("compared")]
    assert len(apart) == (2 if column == "metric" else 1)


def test_a_study_without_trials_is_named(small: Path, tmp_path: Path) -> None:
    write_trial(tmp_path / "bare", make_baseline("intensity", 0.25))
    found = compare_studies([tmp_path / "bare", small])
    assert cells(found, "Best trials")[0][:2] == ("bare", "no trained trial")
    write_trial(tmp_path / "empty", make_baseline("oracle", 1.0))
    nothing = compare_studies([tmp_path / "bare", tmp_path / "empty"])
    assert nothing.answer[1] == "No study holds a trained trial."
    assert nothing.figures == [] and "<h1>bare and empty</h1>" in nothing.html()


def test_studies_of_one_name_are_told_apart(small: Path, tmp_path: Path) -> None:
    write_trial(tmp_path / "again", make_row())
    write_json(tmp_path / "again" / "study.json", study_facts(1) | {"name": "small"})
    found = compare_studies([small, tmp_path / "again"])
    assert found.name == "small (small) and small (again)"


def test_one_study_twice_is_refused(studies: list[Path]) -> None:
    with pytest.raises(ValueError, match="2 studies were given, 1 of them different"):
        compare_studies([studies[0], studies[0] / ".." / "first"])


def test_the_command_writes_one_page(small: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "page.html"
    write_trial(tmp_path / "other", make_row())
    arguments = ["report", str(small), str(tmp_path / "other"), "--out", str(out)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0 and done.output.strip() == str(out)
    without = re.sub(r"<script.*?</script>", "", out.read_text(), flags=re.S)
    assert str(tmp_path) not in without
    assert "The scores of these studies compare" in html.unescape(without)
    assert not (small / "report.html").exists()
    alone = CliRunner().invoke(app, ["report", str(small), "--out", str(out)])
    assert alone.exit_code != 0 and "compares several studies" in alone.output
