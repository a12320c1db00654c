"""The report: its sentences for every outcome, its tables, and the page in a real browser."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from phenoscale.reports.findings import Findings, find
from phenoscale.reports.report import make_report, write_page, write_report
from phenoscale.results import ResultsRow, read_rows, write_json
from phenoscale.scaling.summary import summarise
from tests.browser import chromium, needs_chromium, opened
from tests.fabricated import make_baseline, make_row, make_study, study_facts, write_trial

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

UNKNOWN = "It was not asked."


@pytest.fixture(scope="module")
def study_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    study_dir = tmp_path_factory.mktemp("runs") / "quickstart-seed0"
    make_study(study_dir)
    write_page(make_report(study_dir), study_dir / "report.html")
    return study_dir


@pytest.fixture(scope="module")
def shown(study_dir: Path) -> str:
    """What a reader sees of that study's report."""
    return page(study_dir)


def page(study_dir: Path) -> str:
    """The report without the scripts: what a reader sees."""
    source = make_report(study_dir).html()
    return re.sub(r"<script.*?</script>", "", source, flags=re.S)


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
    return told(read_rows(study_dir), *content.values())


def told(rows: list[ResultsRow], study: Any = (), comparisons: Any = (), failures: Any = ()) -> Any:
    """The findings of rows without anything else."""
    summary = summarise(rows, {})
    return find(rows, dict(study), dict(comparisons), list(failures), summary, UNKNOWN)


def test_a_study_that_beat_its_baselines_says_so_first(study_dir: Path) -> None:
    first, second, third = found(study_dir).answer
    assert first == (
        "Training beat both baselines, untrained (3 initialisations) and intensity statistics: the "
        "MAE with backbone micro/16 on all training wells (96,000 crops) reached a recall of known "
        "relationships of 0.450 [0.380, 0.520], which is 0.160 [0.070, 0.250] above untrained and "
        "0.200 [0.110, 0.290] above intensity statistics (paired differences with 95% intervals, "
        "clear of 0)."
    )
    assert "scales better" in second and "slopes of +0.097 [" in second
    assert third == f"What the next GPU-hour buys cannot be said. {UNKNOWN}"
    caveat = found(study_dir).notes[1]
    assert "highest of 14 trained trials" in caveat and "optimistic" in caveat
    assert "reaches 0.998 [0.990, 1.000]; chance is 0.1." in caveat
    words = text(study_dir)
    assert words.index(first) < words.index(second) < words.index(caveat)


def test_a_study_that_did_not_beat_a_baseline_says_so_first(tmp_path: Path) -> None:
    make_study(tmp_path, gain=0.06)  # 0.06 +- 0.09 above untrained, 0.10 +- 0.09 above intensity
    first = found(tmp_path).answer[0]
    assert first.startswith("Training did not beat the baseline untrained (3 initialisations): ")
    assert "paired difference to untrained is 0.060 [-0.030, 0.150], not clear of 0" in first
    assert "it did beat intensity statistics, by 0.100 [0.010, 0.190]." in first


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
    write_trial(tmp_path, make_row())
    difference = {"against": "intensity statistics", "value": 0.1, "low": low, "high": high}
    comparisons = {"differences": [difference]}
    write_json(tmp_path / "comparisons.json", comparisons)
    assert f"<td>{verdict}</td>" in page(tmp_path)
    findings = told(read_rows(tmp_path), comparisons=comparisons)
    assert findings.answer[0].startswith("Training beat") == (verdict == "better")
    assert "not compared with these baselines: untrained" in " ".join(findings.notes)


def test_objectives_and_data_that_are_apart_are_said_to_be() -> None:
    good = {"score": 0.6, "score_low": 0.55, "score_high": 0.65}
    poor = {"score": 0.3, "score_low": 0.25, "score_high": 0.35}
    rows = [
        make_row(trial_id="a", **good),
        make_row(trial_id="b", objective="wsl", **poor),
        make_row(trial_id="c", data_fraction=0.1, **poor),
    ]
    notes = told(rows).notes
    assert any(n.startswith("The best objective is MAE: the intervals are apart") for n in notes)
    assert any(note.startswith("More data helps: MAE micro/16") for note in notes)
    notes = told(rows[:1]).notes
    assert any(note.startswith("Whether more data helps cannot be said") for note in notes)
    worse = [make_row(trial_id="c", data_fraction=0.1, **good), make_row(trial_id="a", **poor)]
    notes = told(worse, comparisons={"best": "a"}).notes
    assert any(note.startswith("More data hurts") for note in notes)


def test_rows_of_different_screens_are_not_compared_silently() -> None:
    rows = [make_row(trial_id="a"), make_row(trial_id="b", index_fingerprint="0" * 64)]
    findings = told(rows)
    assert "The rows cannot be compared: they come from 2 different indexes." in findings.notes
    assert any("index_fingerprint" in note for note in findings.notes)


def test_twins_that_disagree_are_named(tmp_path: Path) -> None:
    twin = {"trial_ids": ["a", "b"], "what": "1 and 2 workers"}
    near, far = ({"twins": [twin | {"max_relative_loss_difference": x}]} for x in (3e-7, 3e-3))
    rows = [make_row()]
    assert any("agree: their losses" in note for note in told(rows, comparisons=near).notes)
    notes = told(rows, comparisons=far).notes
    assert any("disagree: their losses differ by at most 3.0e" in note for note in notes)
    write_trial(tmp_path, rows[0])
    write_json(tmp_path / "comparisons.json", far)
    assert "<td>3.0e-03</td><td>no</td>" in page(tmp_path)


def test_overhead_stands_beside_its_goals(shown: str) -> None:
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
        (found,) = [note for note in told(rows).notes if "lignment" in note]
        return str(found)

    assert "Under each alignment the best trial is above" in sentence(pca_cs=0.46, tvn=0.45)
    assert "PCA-CS 0.460 and 0.400; TVN 0.430 and 0.440" in sentence(pca_cs=0.46, tvn=0.43)
    assert "The alignment decides" in sentence(pca_cs=0.46, tvn=0.43)
    assert "Under no alignment" in sentence(pca_cs=0.3, tvn=0.3)


def test_every_row_and_failure_is_in_the_tables(study_dir: Path, shown: str) -> None:
    for row in read_rows(study_dir):
        assert shown.count(f">{row.trial_id}</th>") == 3  # read-outs, alignments, trials
    assert "loss is not finite at step 7 &lt;b&gt;" in shown
    assert "patch_mean (headline)" in shown
    assert "<code>python -m experiments.quickstart --seed 0</code>" in shown
    assert "5.30 GiB" in shown and "8 min 0 s" in shown


def test_a_curve_of_uneven_lists_is_refused(tmp_path: Path) -> None:
    trial_dir = write_trial(tmp_path, make_row())
    write_json(trial_dir / "curve.json", {"step": [1, 2], "loss": [0.1]})
    with pytest.raises(ValueError, match=r"curve.json is damaged.*'step': 2, 'loss': 1"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_panels_are_those_of_the_best_trial_of_each_backbone(shown: str) -> None:
    pictures = re.findall(r"<figcaption>([^:<]+): MAE with", shown)
    assert pictures == ["mae-micro-16-f1-s0-00000005", "mae-nano-16-f1-s0-00000002"]
    assert shown.count('src="data:image/png;base64,') == 2


def test_the_page_loads_nothing_and_escapes_what_it_is_given(tmp_path: Path) -> None:
    make_study(tmp_path)
    evil = '</script><img src="http://example.org/x.png" onerror=alert(1)>'

    def edit(study: dict[str, Any]) -> None:
        study.update(name=evil, question=evil, command=evil, alignment=evil)
        study["screen"]["channels"] = [evil]

    change(tmp_path, "study.json", edit)
    row = make_row(trial_id="evil", backbone=evil, code_version=evil)
    write_trial(tmp_path, row)
    source = make_report(tmp_path).html()
    assert '<img src="http' not in source
    assert source.count("</script>") == 3  # figures, plotly, our drawing: none more
    outside = re.sub(r"<script.*?</script>", "", source, flags=re.S)
    assert not re.findall(
        r"<(?:script|link|img|iframe|style)[^>]*(?:src|href)=\"(?!data:)", outside
    )
    assert "@import" not in outside and "url(" not in outside
    assert "default-src 'none'" in outside  # the browser holds the page to it
    assert html.escape(evil, quote=False).split("&lt;img")[0] in outside


def test_a_report_written_again_is_the_same(study_dir: Path) -> None:
    first = (study_dir / "report.html").read_text()
    assert make_report(study_dir).html() == first


def test_figures_for_print_lie_beside_the_report(tmp_path: Path) -> None:
    write_trial(tmp_path, make_row())
    assert write_report(tmp_path) == tmp_path / "report.html"
    figures = make_report(tmp_path).figures
    drawn = {path.name for path in (tmp_path / "figures").iterdir()}
    assert drawn == {f"{f['id']}.{kind}" for f in figures for kind in ("png", "svg")}
    assert not list(tmp_path.rglob(".*.part"))


def test_the_directory_is_not_in_the_page(tmp_path: Path) -> None:
    trial = write_trial(tmp_path / "secret-place", make_row())
    error = f"no space left for {trial}/checkpoints"
    write_json(tmp_path / "secret-place" / "failures.json", [{"trial_id": "a", "error": error}])
    shown = page(tmp_path / "secret-place")
    assert str(tmp_path) not in shown
    assert f"no space left for trials/{trial.name}/checkpoints" in shown


@pytest.mark.parametrize(
    ("uri", "base", "says"),
    [
        ("http://***@tracker:8080/ml/", "http://tracker:8080/ml", "lead to the trials in MLflow."),
        ("sqlite:////home/me/mlflow.db", "http://127.0.0.1:5000", "phenoscale ui quickstart"),
    ],
)
def test_trials_link_to_their_runs(tmp_path: Path, uri: str, base: str, says: str) -> None:
    row = make_row()
    write_trial(tmp_path, row)
    write_json(tmp_path / "study.json", {"name": "quickstart"})
    runs = {"experiment_id": "7", "parent": "p", "runs": {row.trial_id: "abc"}}
    write_json(tmp_path / "mlflow.json", {"tracking_uri": uri, **runs})
    shown = page(tmp_path)
    link = f'<th scope="row"><a href="{base}/#/experiments/7/runs/abc">{row.trial_id}</a></th>'
    assert shown.count(link) == 1
    assert says in html.unescape(re.sub("<[^>]+>", "", shown))
    assert "/home/me" not in shown and "***" not in shown


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


def test_one_trial_says_what_cannot_be_said(tmp_path: Path) -> None:
    write_trial(tmp_path, make_row())
    shown = text(tmp_path)
    assert "Which objective scales better cannot be said: MAE is the only one" in shown
    assert "What the next GPU-hour buys cannot be said." in shown
    assert "MAE has no law along training FLOPs: 1 configurations are too few" in shown
    assert "it needs 1 more" in shown and "a second seed" in shown
    assert "Whether more data helps cannot be said" in shown


def grid(study_dir: Path, **changes: Any) -> list[ResultsRow]:
    """The rows of a grid of two objectives, two backbones and three data fractions, written."""
    rows = [row for row in make_study(study_dir) if row.launcher == "in_place"]
    changed = [make_row(**(row.__dict__ | changes)) for row in rows if not row.is_baseline]
    for row in changed:
        write_trial(study_dir, row)
    return changed


def test_equal_scores_have_a_slope_of_zero_and_no_winner(tmp_path: Path) -> None:
    grid(tmp_path, score=0.4, score_low=0.3, score_high=0.5)
    shown = text(tmp_path)
    assert "Which objective scales better is not shown: slopes of +0.000" in shown
    assert "Which backbone is better is not shown" in shown


def test_one_backbone_has_no_law_of_size(tmp_path: Path) -> None:
    rows = grid(tmp_path)
    for row in rows:
        if row.backbone == "nano/16":
            (tmp_path / "trials" / row.trial_id / "row.json").unlink()
    shown = text(tmp_path)
    assert "MAE has no law along parameters: The 3 configurations lie at 1 different" in shown
    assert re.search(
        r"MAE: 3 configurations were given; the parametric law .* needs \d more", shown
    )


def test_a_study_half_of_which_failed_counts_what_is_missing(tmp_path: Path) -> None:
    rows = make_study(tmp_path)
    lost = [row.trial_id for row in rows if row.objective == "wsl"]
    for name in lost:
        (tmp_path / "trials" / name / "row.json").unlink()
    write_json(tmp_path / "study.json", study_facts(len(rows) + 2))
    write_json(tmp_path / "failures.json", [{"trial_id": t, "error": "disk full"} for t in lost])
    shown = text(tmp_path)
    missing = "6 of 21 trials failed and 2 of 21 trials have no results yet: they are missing"
    assert missing in shown
    assert "MAE is the only one that was trained" in shown
    assert shown.count("disk full") == 6


def test_a_study_of_failures_only_names_them(tmp_path: Path) -> None:
    (tmp_path / "trials").mkdir()
    write_json(tmp_path / "study.json", study_facts(2))
    write_json(tmp_path / "failures.json", [{"trial_id": "a", "error": "disk full"}] * 2)
    shown = text(tmp_path)
    assert "2 of 2 trials failed: they are missing" in shown and "disk full" in shown


def test_what_is_no_study_gets_no_report(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a study"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@needs_chromium
@pytest.mark.parametrize("width", [390, 1500])
def test_the_page_in_a_browser(study_dir: Path, browser: Browser, width: int) -> None:
    with opened(browser, study_dir / "report.html", width=width) as seen:
        page = seen.page
        assert page.evaluate("document.querySelectorAll('details .main-svg').length") == 0
        light = colours(page)
        seen.unfold()
        known = page.evaluate("JSON.parse(document.getElementById('figures').textContent).length")
        assert page.evaluate("document.querySelectorAll('.plot').length") == known > 10
        page.set_viewport_size({"width": width, "height": 700})  # as a phone that hides its bar
        inside = page.evaluate(
            "[...document.querySelectorAll('figure')].every(f => "
            "[...f.querySelectorAll('svg, img')].every(s => "
            "s.getBoundingClientRect().bottom <= f.getBoundingClientRect().bottom + 1))"
        )
        assert inside  # no figure runs over what stands below it
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.emulate_media(color_scheme="dark")
        seen.wait(f"{INK.format('cost')} !== '{light[1]}'")
        dark = colours(page)
        assert page.evaluate(INK.format("loss-mae")) == dark[1]
        assert dark[0] < 100 and light[0] > 240
        assert seen.complaints == []
        assert {url.split(":")[0] for url in seen.requests} <= {"file", "data", "blob"}
        assert sum(url.startswith("file") for url in seen.requests) == 1


INK = "getComputedStyle(document.querySelector('#{} .xtitle')).fill"


def colours(page: Page) -> tuple[int, str]:
    """The lightness of the page, 0 to 255, and the colour of a figure's words."""
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    return max(int(part) for part in re.findall(r"\d+", background)), page.evaluate(
        INK.format("cost")
    )


@needs_chromium
def test_the_page_without_a_mouse(study_dir: Path, browser: Browser) -> None:
    with opened(browser, study_dir / "report.html") as seen:
        page = seen.page
        reached = []
        for _ in range(45):
            page.keyboard.press("Tab")
            reached.append(
                page.evaluate(
                    "(e => [e.className === 'skip' ? 'skip' : e.matches('nav a') ? 'nav' : "
                    "e.getAttribute('aria-label') ?? e.tagName, getComputedStyle(e).outlineStyle])"
                    "(document.activeElement)"
                )
            )
        names = [name for name, _ in reached]
        assert names[0] == "skip"
        assert {"nav", "FIGURE", "SUMMARY", "Paired differences to the baselines"} <= set(names)
        assert all(outline != "none" for _, outline in reached)
        page.focus(".skip")
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "answer"
        page.focus("nav a[href='#section-methods']")
        page.keyboard.press("Enter")
        top = page.evaluate(
            "document.getElementById('section-methods').getBoundingClientRect().top"
        )
        assert -5 <= top < 900
