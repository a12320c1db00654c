"""The report: its sentences for every outcome, its figures, and the page in a real browser."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from phenoscale.findings import Findings, find
from phenoscale.report import write_report
from phenoscale.results import read_rows, write_json
from tests.fabricated import make_baseline, make_row, make_study, study_facts, write_trial

CHROMIUM = shutil.which("chromium")
SWITCHES = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync "
    "--allow-file-access-from-files --virtual-time-budget=4000"
).split()


@pytest.fixture(scope="module")
def study_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    study_dir = tmp_path_factory.mktemp("runs") / "quickstart-seed0"
    make_study(study_dir)
    write_report(study_dir)
    return study_dir


def page(study_dir: Path) -> str:
    """The report without the scripts: what a reader sees."""
    return re.sub(r"<script.*?</script>", "", write_report(study_dir).read_text(), flags=re.S)


def text(study_dir: Path) -> str:
    """The words of the report on one line."""
    without_style = re.sub(r"<style.*?</style>", "", page(study_dir), flags=re.S)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", without_style)).split())


def change(study_dir: Path, file: str, edit: Callable[[Any], None]) -> None:
    content = json.loads((study_dir / file).read_text())
    edit(content)
    write_json(study_dir / file, content)


def found(study_dir: Path) -> Findings:
    content = {
        name: json.loads((study_dir / f"{name}.json").read_text())
        for name in ("study", "comparisons", "failures")
    }
    return find(read_rows(study_dir), *content.values())


def test_a_study_that_beat_its_baselines_says_so_first(study_dir: Path) -> None:
    first, second, third = found(study_dir).answer
    assert first == (
        "Training beat both baselines, untrained (3 initialisations) and intensity statistics: the "
        "MAE with backbone micro/16 on all training wells (96,000 crops) reached a recall of known "
        "relationships of 0.450 [0.380, 0.520], which is 0.160 [0.070, 0.250] above untrained and "
        "0.200 [0.110, 0.290] above intensity statistics (paired differences with 95% intervals, "
        "clear of 0)."
    )
    assert second.startswith("Which objective is better is not shown")
    assert "MAE 0.450 [0.380, 0.520], WSL 0.402 [0.332, 0.472]" in second
    assert "highest of 14 trained trials" in third and "optimistic" in third
    assert "reaches 0.998 [0.990, 1.000]; chance is 0.1." in third
    shown = text(study_dir)
    assert shown.index(first) < shown.index(second) < shown.index(third)


def test_a_study_that_did_not_beat_a_baseline_says_so_first(tmp_path: Path) -> None:
    make_study(tmp_path, gain=0.06)  # 0.06 +- 0.09 above untrained, 0.10 +- 0.09 above intensity
    first = found(tmp_path).answer[0]
    assert first.startswith("Training did not beat the baseline untrained (3 initialisations): ")
    assert "paired difference to untrained is 0.060 [-0.030, 0.150], not clear of 0" in first
    assert "it did beat intensity statistics, by 0.100 [0.010, 0.190]." in first
    assert first in text(tmp_path) and "Training beat" not in text(tmp_path)


def test_a_training_that_made_it_worse_is_called_that(tmp_path: Path) -> None:
    make_study(tmp_path, gain=-0.01)

    def edit(comparisons: dict[str, Any]) -> None:
        comparisons["differences"][0].update(value=-0.2, low=-0.3, high=-0.1)

    change(tmp_path, "comparisons.json", edit)
    first = found(tmp_path).answer[0]
    assert first.startswith(
        "Training did not beat either baseline, untrained (3 initialisations) or intensity "
    )
    assert "untrained is -0.200 [-0.300, -0.100], below 0: training made it worse" in first
    assert "it did beat" not in first


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.01, 0.2, "better"),
        (0.0, 0.2, "not shown"),
        (-0.1, 0.1, "not shown"),
        (-0.2, -0.1, "worse"),
    ],
)
def test_the_verdict_is_the_intervals(
    tmp_path: Path, low: float, high: float, verdict: str
) -> None:
    make_study(tmp_path)

    def edit(comparisons: dict[str, Any]) -> None:
        comparisons["differences"] = [
            {
                "against": "intensity statistics",
                "trial_ids": [],
                "value": 0.1,
                "low": low,
                "high": high,
            }
        ]

    change(tmp_path, "comparisons.json", edit)
    assert f"<td>{verdict}</td>" in page(tmp_path)
    findings = found(tmp_path)
    assert findings.answer[0].startswith("Training beat") == (verdict == "better")
    assert "not compared with these baselines: untrained" in " ".join(findings.notes)


def test_objectives_and_data_that_are_apart_are_said_to_be(tmp_path: Path) -> None:
    good = {"score": 0.6, "score_low": 0.55, "score_high": 0.65}
    poor = {"score": 0.3, "score_low": 0.25, "score_high": 0.35}
    rows = [
        make_row(trial_id="a", **good),
        make_row(trial_id="b", objective="wsl", **poor),
        make_row(trial_id="c", data_fraction=0.1, **poor),
    ]
    findings = find(rows, {}, {}, [])
    assert findings.answer[1].startswith("The best objective is MAE: the intervals are apart")
    assert any(note.startswith("More data helps: MAE micro/16") for note in findings.notes)
    notes = find(rows[:1], {}, {}, []).notes
    assert any(note.startswith("Whether more data helps cannot be said") for note in notes)
    worse = [make_row(trial_id="c", data_fraction=0.1, **good), make_row(trial_id="a", **poor)]
    notes = find(worse, {}, {"best": "a"}, []).notes
    assert any(note.startswith("More data hurts") for note in notes)


def test_rows_of_different_screens_or_code_are_not_compared_silently() -> None:
    rows = [make_row(trial_id="a"), make_row(trial_id="b", index_fingerprint="0" * 64)]
    assert (
        "The rows cannot be compared: they come from 2 different indexes."
        in find(rows, {}, {}, []).notes
    )


def test_twins_that_disagree_are_named(tmp_path: Path) -> None:
    make_study(tmp_path)

    def edit(comparisons: dict[str, Any]) -> None:
        comparisons["twins"][0]["max_relative_loss_difference"] = 3e-3

    assert any("agree: their losses" in note for note in found(tmp_path).notes)
    change(tmp_path, "comparisons.json", edit)
    assert any("disagree: their losses differ by at most 3.0e" in n for n in found(tmp_path).notes)
    assert "<td>3.0e-03</td><td>no</td>" in page(tmp_path)


def test_overhead_stands_beside_its_goals(study_dir: Path) -> None:
    shown = page(study_dir)
    in_place = "trials in place, 1 worker</th><td>12</td><td>0.50</td><td>0.60</td><td>1</td>"
    assert f"{in_place}<td>yes</td>" in shown
    assert "trials Ray Train, 1 worker</th><td>1</td><td>7.80</td><td>7.80</td><td>9</td>" in shown


def test_overhead_beyond_its_goal_does_not_hold(tmp_path: Path) -> None:
    write_trial(tmp_path, make_row(overhead_s=1.01))
    assert "<td>1.01</td><td>1.01</td><td>1</td><td>no</td>" in page(tmp_path)


def test_the_alignment_may_decide() -> None:
    baseline = make_baseline("intensity", 0.4, score_by_alignment={"pca_cs": 0.4, "tvn": 0.44})

    def sentence(**scores: float) -> str:
        rows = [make_row(score_by_alignment=scores), baseline]
        (found,) = [note for note in find(rows, {}, {}, []).notes if "lignment" in note]
        return found

    assert "Under each alignment the best trial is above" in sentence(pca_cs=0.46, tvn=0.45)
    assert "PCA-CS 0.460 and 0.400; TVN 0.430 and 0.440" in sentence(pca_cs=0.46, tvn=0.43)
    assert "The alignment decides" in sentence(pca_cs=0.46, tvn=0.43)
    assert "Under no alignment" in sentence(pca_cs=0.3, tvn=0.3)


def test_every_row_and_failure_is_in_the_tables(study_dir: Path) -> None:
    shown = page(study_dir)
    for row in read_rows(study_dir):
        assert shown.count(f">{row.trial_id}</th>") == 3  # read-outs, alignments, trials
    assert "loss is not finite at step 7 &lt;b&gt;" in shown
    assert "patch_mean (headline)" in shown
    assert "python -m experiments.quickstart --seed 0" in shown
    assert "5.30 GiB" in shown and "8 min 0 s" in shown


def test_the_figures_hold_the_rows(study_dir: Path) -> None:
    source = write_report(study_dir).read_text()
    (raw,) = re.findall(r'<script type="application/json" id="figures">(.*?)</script>', source)
    figures = {figure["id"]: figure for figure in json.loads(raw)}
    assert list(figures) == [
        "score-training-flops",
        "score-data-fraction",
        "loss-mae",
        "loss-wsl",
        "held-out-mae",
        "held-out-wsl",
    ]
    compute = figures["score-training-flops"]
    trained = [row for row in read_rows(study_dir) if not row.is_baseline]
    points = {
        (x, y, y + up, y - down)
        for d in compute["data"]
        for x, y, up, down in zip(
            d["x"], d["y"], d["error_y"]["array"], d["error_y"]["arrayminus"], strict=True
        )
    }
    for row in trained:
        expected = (row.training_flops, row.score, row.score_high, row.score_low)
        assert any(p == pytest.approx(expected) for p in points)
    names = [shape["name"] for shape in compute["layout"]["shapes"] if shape["showlegend"]]
    assert names == [
        "untrained micro/16: mean and range of 3",
        "intensity statistics",
        "oracle",
        "chance",
    ]
    (band,) = [shape for shape in compute["layout"]["shapes"] if shape["type"] == "rect"]
    assert (band["y0"], band["y1"]) == (0.28, 0.30)
    low, high = compute["layout"]["yaxis"]["range"]
    assert low <= 0 and high >= 0.998
    assert len(figures["loss-mae"]["data"]) == 8 and len(figures["loss-wsl"]["data"]) == 6


def test_a_long_loss_curve_is_thinned_without_changing_its_mean(tmp_path: Path) -> None:
    row = make_row(steps=1500)
    write_trial(tmp_path, row)
    loss = np.random.default_rng(0).uniform(size=1500)
    curve = {"step": list(range(1, 1501)), "loss": loss.tolist()}
    write_json(tmp_path / "trials" / row.trial_id / "curve.json", curve)
    source = write_report(tmp_path).read_text()
    (raw,) = re.findall(r'<script type="application/json" id="figures">(.*?)</script>', source)
    (line,) = next(f for f in json.loads(raw) if f["id"] == "loss-mae")["data"]
    assert len(line["y"]) == 150
    assert np.mean(line["y"]) == pytest.approx(loss.mean())
    assert np.mean(line["x"]) == pytest.approx(750.5)


def test_a_curve_of_uneven_lists_is_refused(tmp_path: Path) -> None:
    trial_dir = write_trial(tmp_path, make_row())
    write_json(trial_dir / "curve.json", {"step": [1, 2], "loss": [0.1]})
    with pytest.raises(ValueError, match=r"curve.json is damaged.*'step': 2, 'loss': 1"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_panels_are_those_of_the_best_trial_of_each_backbone(study_dir: Path) -> None:
    pictures = re.findall(r"<figcaption>([^:<]+): MAE with", page(study_dir))
    assert pictures == ["mae-micro-16-f1-s0-00000005", "mae-nano-16-f1-s0-00000002"]
    assert page(study_dir).count('src="data:image/png;base64,') == 2


def test_the_page_loads_nothing_and_escapes_what_it_is_given(tmp_path: Path) -> None:
    make_study(tmp_path)
    evil = '</script><img src="http://example.org/x.png" onerror=alert(1)>'

    def edit(study: dict[str, Any]) -> None:
        study.update(name=evil, question=evil, command=evil, alignment=evil)
        study["screen"]["channels"] = [evil]

    change(tmp_path, "study.json", edit)
    row = make_row(trial_id="evil", backbone=evil, code_version=evil)
    write_trial(tmp_path, row)
    source = write_report(tmp_path).read_text()
    assert '<img src="http' not in source
    assert source.count("</script>") == 3  # figures, plotly, our drawing: none more
    outside = page(tmp_path)
    assert not re.findall(
        r"<(?:script|link|img|iframe|style)[^>]*(?:src|href)=\"(?!data:)", outside
    )
    assert "@import" not in outside and "url(" not in outside
    assert "default-src 'none'" in outside  # the browser holds the page to it
    assert html.escape(evil, quote=False).split("&lt;img")[0] in outside


def test_a_report_written_again_is_the_same(study_dir: Path) -> None:
    first = write_report(study_dir).read_bytes()
    assert write_report(study_dir).read_bytes() == first
    assert not list(study_dir.glob(".*.part"))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda d: (d / "trials").mkdir(),
            "Nothing was measured: this study holds no results rows.",
        ),
        (
            lambda d: write_trial(d, make_baseline("intensity", 0.25)),
            "Whether training helps cannot be said: this study holds baselines only (1), no",
        ),
        (
            lambda d: write_trial(d, make_row()),
            "Whether training helps cannot be said: no trial was compared with a baseline.",
        ),
    ],
)
def test_poor_studies_have_a_report_too(
    tmp_path: Path, make: Callable[[Path], Any], sentence: str
) -> None:
    make(tmp_path)
    shown = text(tmp_path)
    assert sentence in shown
    assert "This study has no twins." in shown
    assert "Failed trials None." in shown


def test_a_study_of_failures_only_names_them(tmp_path: Path) -> None:
    (tmp_path / "trials").mkdir()
    write_json(tmp_path / "study.json", study_facts(2))
    write_json(tmp_path / "failures.json", [{"trial_id": "a", "error": "disk full"}] * 2)
    shown = text(tmp_path)
    assert "2 trials failed and are missing" in shown and "disk full" in shown


def test_what_is_no_study_gets_no_report(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a study"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium on the PATH to draw the page")
def test_a_browser_draws_every_figure_on_desk_and_phone(study_dir: Path, tmp_path: Path) -> None:
    report = write_report(study_dir)
    frame = tmp_path / "phone.html"  # a window is never below 500 px: the phone is a frame in it
    frame.write_text(
        f'<body style="margin:0"><iframe src="{report.as_uri()}" style="width:390px;height:3000px;'
        'border:0"></iframe><script>onload = () => { const d = document.querySelector("iframe")'
        ".contentDocument; document.body.dataset.drawn = d.querySelectorAll('.plot .main-svg')"
        ".length; document.body.dataset.width = d.documentElement.scrollWidth; }</script>"
    )
    desk = browse(tmp_path / "desk", "--dump-dom", "--window-size=1200,2000", report.as_uri())
    assert len(re.findall(r'class="plot js-plotly-plot', desk)) == 6
    assert desk.count('class="main-svg"') >= 6
    phone = browse(tmp_path / "phone", "--dump-dom", "--window-size=500,3000", frame.as_uri())
    (drawn,), (width,) = (
        re.findall(r'data-drawn="(\d+)"', phone),
        re.findall(r'data-width="(\d+)"', phone),
    )
    assert int(drawn) >= 6
    assert int(width) <= 390  # wide tables scroll in their own box, the page does not


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium on the PATH to draw the page")
def test_a_dark_page_is_dark(study_dir: Path, tmp_path: Path) -> None:
    dark = tmp_path / "dark.png"
    report = write_report(study_dir).as_uri()
    switches = ("--window-size=1200,1200", "--force-dark-mode", f"--screenshot={dark}")
    browse(tmp_path / "profile", *switches, report)
    pixels = np.asarray(Image.open(dark).convert("L"))
    assert pixels.mean() < 80 and pixels.max() > 200  # a dark page, light words


def browse(profile: Path, *arguments: str) -> str:
    assert CHROMIUM is not None
    command = [CHROMIUM, *SWITCHES, f"--user-data-dir={profile}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
