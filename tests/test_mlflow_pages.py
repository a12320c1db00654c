"""A team's MLflow server, real, and its pages in a real browser."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from benchmarks.mlflow_writers import server, write_together
from phenoscale.mirror_links import MirrorRuns
from phenoscale.tracking import StudyMirror
from tests.browser import chromium, needs_chromium, opened
from tests.fabricated import make_study

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytest.importorskip("mlflow")
PATIENCE_MS = 120_000
"""The pages are large and the machine may be busy."""


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A server's URI, and the SQLite file behind it."""
    store = tmp_path_factory.mktemp("server") / "mlflow.db"
    with server(store, workers=1) as uri:
        yield uri, store


@pytest.fixture(scope="module")
def mirrored(team: tuple[str, Path], tmp_path_factory: pytest.TempPathFactory) -> MirrorRuns:
    """A made-up study of 14 trials, mirrored to the server."""
    study_dir = tmp_path_factory.mktemp("runs") / "quickstart-seed0"
    make_study(study_dir)
    mirror = StudyMirror(study_dir, team[0])
    mirror.finish()  # its trials are new to this store, so it writes them, too
    assert mirror.problems == []
    left = MirrorRuns.read(study_dir)
    assert left is not None and left.has_server
    return left


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@needs_chromium
def test_the_link_in_the_note_opens_trials_and_the_figure(
    mirrored: MirrorRuns, browser: Browser
) -> None:
    with opened(browser, mirrored.link(mirrored.parent), width=1500, height=1100) as seen:
        link = seen.page.locator("a", has_text="Score against compute").first
        link.wait_for(timeout=PATIENCE_MS)
        with seen.page.context.expect_page(timeout=PATIENCE_MS) as tab:
            link.click()
        page = tab.value
        points = page.locator(".js-plotly-plot").first.locator(".scatterlayer .point")
        points.first.wait_for(timeout=PATIENCE_MS)
        assert points.count() == 14  # every trained trial; baselines train on nothing
        page.get_by_text("20 matching runs").wait_for(timeout=PATIENCE_MS)
        assert page.get_by_text("log10_training_flops vs. rec").count() >= 1
        shown = page.locator(".ag-row").all_inner_texts()
        assert any("mae-micro-16-f1-s0-00000005" in row for row in shown)
    foreign = [x for x in seen.requests if not x.startswith((mirrored.tracking_uri, "data:"))]
    assert foreign == []


@needs_chromium
def test_the_view_has_columns_that_one_chooses_by(mirrored: MirrorRuns, browser: Browser) -> None:
    table = mirrored.view().replace("&compareRunsMode=CHART", "")
    with opened(browser, table, width=1900, height=900) as seen:
        for name in ("objective", "backbone", "data_fraction", "seed"):
            head = seen.page.get_by_text(name, exact=True).first
            head.wait_for(timeout=PATIENCE_MS)
        best = seen.page.locator('.ag-row[row-index="0"]')  # sorted by score
        best.get_by_text("0.998").first.wait_for(timeout=PATIENCE_MS)
        best.get_by_text("oracle", exact=True).first.wait_for(timeout=PATIENCE_MS)


def test_drivers_that_write_together_through_a_server_lose_and_double_nothing(
    team: tuple[str, Path], tmp_path: Path
) -> None:
    written = write_together(tmp_path, *team, processes=3, points=400)
    assert written.problems == [] and written.doubled == 0
    assert written.points == written.expected == 1200


def test_a_page_of_another_name_is_refused(team: tuple[str, Path]) -> None:
    request = urllib.request.Request(
        f"{team[0]}/api/2.0/mlflow/experiments/search?max_results=1",
        headers={"Host": "somewhere.example"},
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=60)
    assert refused.value.code == 403
