"""A made-up study with planted scores: its catalogue, its plan, the experiment file, the verbs."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from typer import Exit
from typer.testing import CliRunner

from phenoscale import rates
from phenoscale.bill import ScreenSize, bill
from phenoscale.cli import app
from phenoscale.config import Crops, Objective, Optim, Placement, Readers, Study, Trial
from phenoscale.planning import plan_file
from phenoscale.planning.catalogue import Measured, candidates, cell, hours, speed_of
from phenoscale.planning.plan import plan_study, read_command, read_measured, read_size, read_study
from phenoscale.planning.run_forecast import forecast_run
from phenoscale.results import ResultsRow, read_rows, write_json
from phenoscale.scaling.next_runs import NextRuns
from phenoscale.scaling.points import points_of
from phenoscale.study_files import STUDY_FILE, StudyFiles
from tests.fabricated import make_baseline, make_row, study_facts

ROOT = Path(__file__).parents[1]
SIZE = ScreenSize(
    wells=1360, sites_per_well=2, total_sites=3264, channels=6, classes=241, site_px=256
)
FRACTIONS = (1 / 9, 1 / 3, 1.0)
BACKBONES = ("pico/8", "nano/8")
GAIN = {"num_parameters": 0.04, "crops_seen": 0.12}  # of a score, per tenfold
NOISE = 0.004


def trial(objective: str, backbone: str, fraction: float, seed: int = 0, **crops) -> Trial:
    return Trial(
        objective=Objective(name=objective, mask_ratio=0.5),
        backbone=backbone,
        crops=Crops(
            **{
                "size_px": 64,
                "data_fraction": fraction,
                "passes": 40,
                "crops_per_read": 4,
                "held_out": ("batch3/plate2",),
            }
            | crops
        ),
        optim=Optim(lr=8e-3, lr_source="tuned" if objective == "mae" else "given"),
        seed=seed,
    )


GRID = tuple(trial("mae", name, share) for name in BACKBONES for share in FRACTIONS)


def planted(line, height: float = 0.3) -> float:
    logs = np.log10([line.parameters / 1e4, line.crops / 1e4])
    return height + float(logs @ list(GAIN.values()))


def write_study(study_dir: Path, trials: tuple[Trial, ...], seed: int = 0) -> list[ResultsRow]:
    """Trials as a study leaves them, with planted scores, and an untrained baseline."""
    rng = np.random.default_rng(seed)
    lines = bill(Study(name="s", question="?", trials=trials), SIZE)
    rows = [
        make_row(
            trial_id=line.trial.id,
            objective=line.trial.objective.label,
            backbone=line.trial.backbone,
            data_fraction=line.trial.crops.data_fraction,
            seed=line.trial.seed,
            num_parameters=line.parameters,
            lr=line.trial.optim.lr,
            lr_source=line.trial.optim.lr_source,
            training_flops=line.training_flops,
            crops_seen=line.crops,
            steps=line.steps,
            score=planted(line) + NOISE * rng.standard_normal(),
            train_s=line.cost[0] / 1e10,
            embed_s=line.cost[1] / 2e10,
            score_s=2.0,
            overhead_s=1.0,
        )
        for line in lines
    ]
    baseline = dataclasses.replace(
        trials[0],
        objective=Objective(name="untrained"),
        crops=dataclasses.replace(trials[0].crops, passes=0, crops_per_read=1),
    )
    rows.append(make_baseline("untrained", 0.2, trial_id=baseline.id))
    for one, row in zip((*trials, baseline), rows, strict=True):
        row.write(study_dir / "trials" / row.trial_id)
        write_json(study_dir / "trials" / row.trial_id / "trial.json", one.as_dict())
    facts = {"every_block": False, "bootstrap_rounds": 1000, "size": dataclasses.asdict(SIZE)}
    write_json(study_dir / STUDY_FILE, study_facts(len(rows)) | facts)
    return rows


@pytest.fixture(scope="module")
def study_dir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("plan") / "study"
    write_study(folder, GRID)
    return folder


@pytest.fixture(scope="module")
def plan(study_dir) -> NextRuns:
    return plan_study(study_dir, rounds=200)


def measured_of(study_dir: Path, objective: str = "mae") -> Measured:
    return read_measured(study_dir, points_of(read_rows(study_dir))[objective])


def test_a_study_is_read_as_it_was_written(study_dir):
    study = read_study(study_dir)
    assert {one.id for one in study.trials if not one.is_baseline} == {one.id for one in GRID}
    assert [one.objective.name for one in study.trials if one.is_baseline] == ["untrained"]
    assert (study.name, study.metric, study.bootstrap_rounds) == (
        "quickstart-seed0", "recall_0.05_0.95", 1000,
    )  # fmt: skip
    assert read_size(study_dir) == SIZE


def test_directories_that_cannot_be_planned_for_say_why(study_dir, tmp_path):
    with pytest.raises(ValueError, match="is not a study: it has no study.json"):
        read_study(tmp_path)
    write_json(tmp_path / STUDY_FILE, study_facts(0))
    with pytest.raises(ValueError, match="holds no trial with a row"):
        read_study(tmp_path)
    with pytest.raises(ValueError, match="study.json has no size: an earlier version wrote it"):
        read_size(tmp_path)
    write_study(tmp_path, GRID[:2])
    write_json(tmp_path / "trials" / GRID[0].id / "trial.json", {"objective": {"name": "mae"}})
    with pytest.raises(ValueError, match="cannot be read as a trial of this version"):
        read_study(tmp_path)


@pytest.mark.parametrize(
    ("number", "says"), [(1, "needs 2 more"), (2, "needs 1 more"), (4, "1 more would narrow")]
)
def test_a_study_of_few_configurations_says_so(tmp_path, number, says):
    write_study(tmp_path, GRID[:number])
    if number < 3:
        with pytest.raises(ValueError, match=f"Nothing can be planned. MAE: .*{says}"):
            plan_study(tmp_path, rounds=100)
        with pytest.raises(ValueError, match=says):
            forecast_run(tmp_path, objective="mae", backbone="nano/8", rounds=100)
    else:
        (warning,) = [one for one in plan_study(tmp_path, rounds=100).warnings if "MAE has" in one]
        assert says in warning


def test_the_catalogue_is_the_grid_made_larger(study_dir):
    measured = measured_of(study_dir)
    assert measured.backbones == ("pico/8", "nano/8", "micro/8")
    lines, left_out = candidates(measured, SIZE)
    assert not left_out
    cells = {
        (t.backbone, t.crops.data_fraction, t.crops.passes, t.seed)
        for t in (line.trial for line in lines)
    }
    again = {(b, f, 40, 1) for b in BACKBONES for f in FRACTIONS}
    new = {("micro/8", f, n, 0) for f in FRACTIONS for n in (40, 80)}
    assert cells == again | new | {(b, f, 80, 0) for b in BACKBONES for f in FRACTIONS}
    assert not {line.trial.id for line in lines} & {one.id for one in GRID}


def test_twins_are_one_measurement(tmp_path):
    twin = dataclasses.replace(GRID[0], placement=Placement(launcher="ray_train", workers=2))
    write_study(tmp_path, (*GRID, twin))
    measured = measured_of(tmp_path)
    assert set(measured.trials) == set(GRID)
    assert measured.seeds_of(twin) == 1
    again = cell(measured, backbone="pico/8", data_fraction=1 / 9, passes=40)
    assert again == dataclasses.replace(GRID[0], seed=1)


def test_candidates_that_cannot_be_are_counted(tmp_path):
    far = dataclasses.replace(GRID[0], seed=1)
    write_study(tmp_path, GRID)
    write_json(tmp_path / "trials" / far.id / "trial.json", far.as_dict())  # unfinished
    other = trial("mae", "micro/8", 1.0)
    rate = cell(measured_of(tmp_path), backbone="micro/8", data_fraction=1.0, passes=40).optim
    other = dataclasses.replace(other, optim=rate)
    write_json(tmp_path / "trials" / other.id / "trial.json", other.as_dict())
    lines, left_out = candidates(measured_of(tmp_path), dataclasses.replace(SIZE, wells=100))
    (again,) = [
        line.trial.seed
        for line in lines
        if (line.trial.backbone, line.trial.crops) == (GRID[0].backbone, GRID[0].crops)
    ]
    assert again == 2
    assert other.id not in {line.trial.id for line in lines}
    assert left_out == (
        "MAE: 1 candidate is failed or unfinished in the study; its own command goes on with them.",
    )
    tiny = dataclasses.replace(SIZE, wells=1, sites_per_well=1)
    lines, left_out = candidates(measured_of(tmp_path), tiny)
    assert not lines
    assert left_out[0].startswith("MAE: 18 candidates are not possible here. The first:")
    assert "fewer crops than one global batch" in left_out[0]


def test_rates_of_new_sizes_follow_the_table_or_the_rule(tmp_path, monkeypatch):
    wsl = tuple(trial("wsl", name, 1.0) for name in BACKBONES)
    write_study(tmp_path, (*GRID, *wsl))

    def rate(objective, name):
        new = cell(measured_of(tmp_path, objective), backbone=name, data_fraction=1, passes=40)
        return new.optim.lr, new.optim.lr_source

    assert rate("mae", "nano/8") == (8e-3, "tuned")  # the study's own, not the table's
    assert rate("mae", "micro/8") == (rates.optim_for("mae", "micro/8", 64).lr, "tuned")
    assert rate("mae", "tiny/8") == (
        pytest.approx(rates.optim_for("mae", "tiny/8", 64).lr, rel=1e-3), "transferred",
    )  # fmt: skip
    assert rate("wsl", "micro/8") == (pytest.approx(8e-3 * 32 / 48, rel=1e-3), "transferred")
    monkeypatch.delitem(rates.TUNED, "mae")
    assert rate("mae", "micro/8") == (pytest.approx(8e-3 * 32 / 48, rel=1e-3), "transferred")


def test_measured_hours_are_those_that_the_trials_took(study_dir):
    rows = [row for row in read_rows(study_dir) if not row.is_baseline]
    lines = {line.trial.id: line for line in bill(read_study(study_dir), SIZE)}
    speed = speed_of(lines, rows)
    for row in rows:
        wall_s = row.train_s + row.embed_s + row.score_s + row.overhead_s
        assert hours(lines[row.trial_id], speed) == pytest.approx(wall_s / 3600)
    two = [dataclasses.replace(row, workers=2) for row in rows]  # half as fast a worker
    assert speed_of(lines, two).training == pytest.approx(speed.training / 2)


def test_a_plan_is_ranked_and_fits_in_its_budget(plan, study_dir):
    spent = sum(line.gpu_hours for line in bill(read_study(study_dir), SIZE)[: len(GRID) + 1])
    assert plan.budget_hours == pytest.approx(spent, rel=0.1)  # by default what the study cost
    assert 0 < sum(one.gpu_hours for one in plan.chosen) <= plan.budget_hours
    assert all(one.gpu_hours <= plan.budget_hours for one in plan.candidates)
    worth = [one.uncertainty / one.gpu_hours for one in plan.candidates]
    assert worth == sorted(worth, reverse=True)
    assert set(plan.chosen) <= set(plan.candidates)
    assert max(one.uncertainty for one in plan.chosen) < plan.removed < 1
    for one in plan.candidates:
        (line,) = bill(Study(name="s", question="?", trials=(one.trial,)), SIZE)
        assert one.forecast.low <= planted(line) <= one.forecast.high
        assert (one.repeats, one.seed) in {(True, 1), (False, 0)}
    assert plan.target.startswith("MAE nano/8 on 100% of the wells, 80 passes")
    assert "2 of 18 candidates cost more" in plan.left_out[0]


def test_the_rule_the_target_and_the_speed_are_options(study_dir):
    better = plan_study(study_dir, by="improvement", budget_hours=1, rounds=200)
    assert len({one.objective for one in better.candidates}) == 1
    worth = [one.improvement / one.gpu_hours for one in better.candidates]
    assert worth == sorted(worth, reverse=True)
    assert better.chosen[0].forecast.value > 0.4
    far = plan_study(study_dir, target_backbone="B/8", measured_speed=True, rounds=100)
    assert far.target.startswith("MAE B/8 on 100%") and "one worker" in far.hours_are
    named = plan_study(
        study_dir, backbones=["L/8"], passes_factors=[1], budget_hours=1e9, rounds=100
    )
    assert {one.backbone for one in named.candidates} == {"L/8"}
    assert all(one.beyond > 10 for one in named.candidates if one.data_fraction == 1)
    assert any("take it as a direction, not a number" in text for text in named.warnings)
    assert any("not tuned for their size: MAE L/8" in text for text in named.warnings)
    with pytest.raises(ValueError, match="18 of 18 candidates cost more than 1e-12 hours"):
        plan_study(study_dir, budget_hours=1e-12)
    with pytest.raises(ValueError, match="There is no backbone 'M/8'"):
        plan_study(study_dir, backbones=["M/8"])


def test_a_second_seed_tells_less_than_a_new_configuration(tmp_path):
    seeds = (*GRID, *(dataclasses.replace(one, seed=1) for one in GRID[:2]))
    write_study(tmp_path, seeds)
    found = {
        (c.backbone, c.data_fraction, c.passes, c.seed): c
        for c in plan_study(tmp_path, budget_hours=1, rounds=100).candidates
    }
    assert found["pico/8", 1 / 9, 40, 2].repeats  # two seeds were measured
    assert found["nano/8", 1.0, 40, 1].uncertainty < found["nano/8", 1.0, 80, 0].uncertainty


def test_what_nothing_tests_is_ranked_only_if_it_is_named(tmp_path):
    grid = tuple(trial("mae", name, f) for name in ("nano/8", "micro/8") for f in FRACTIONS)
    write_study(tmp_path, grid)
    plan = plan_study(tmp_path, budget_hours=1e6, rounds=100)
    assert {one.backbone for one in plan.candidates} == {"nano/8", "micro/8"}
    assert any("more than 10 times beyond" in text and "(tiny/8)" in text for text in plan.left_out)
    named = plan_study(tmp_path, budget_hours=1e6, backbones=["tiny/8"], rounds=100)
    small = [one for one in named.candidates if one.data_fraction < 1 / 3]
    assert min(one.beyond for one in small) > 50, "52 times the size, however little data"
    assert any("a direction, not a number" in text for text in named.warnings)


def test_a_forecast_says_how_far_out_it_is(study_dir):
    inside = forecast_run(
        study_dir, objective="mae", backbone="nano/8", data_fraction=1 / 3, rounds=200
    )
    (line,) = bill(Study(name="s", question="?", trials=(inside.trial,)), SIZE)
    assert inside.beyond == 1 and not inside.warnings
    assert inside.interval.low <= planted(line) <= inside.interval.high
    outside = forecast_run(study_dir, objective="mae", backbone="tiny/8", passes=80, rounds=200)
    assert outside.beyond == pytest.approx(outside.flops / max(
        row.training_flops for row in read_rows(study_dir)
    ))  # fmt: skip
    assert outside.beyond > 10 and "a direction, not a number" in outside.warnings[0]
    assert np.ptp([outside.interval.low, outside.interval.high]) > np.ptp(
        [inside.interval.low, inside.interval.high]
    )
    assert outside.by_compute is not None and outside.by_compute.flops == outside.flops
    with pytest.raises(ValueError, match="no trained trial of 'wsl'; it has trials of mae"):
        forecast_run(study_dir, objective="wsl", backbone="nano/8")


PLATES = tuple(f"batch{i}/plate{j}" for i in range(9) for j in range(9))
LONG = dataclasses.replace(
    trial("ca_mae", "tiny/8", 1 / 3, held_out=PLATES),
    optim=Optim(lr=1.234e-5, betas=(0.9, 0.99), average=0.999, lr_source="transferred"),
    placement=Placement(launcher="ray_train", workers=2, gpu=True, readers=Readers(at_once=3)),
)


@pytest.mark.parametrize("value", [GRID[0], LONG, (), ("a",), (1, None, True), 'say "so" \\ \n'])
def test_a_literal_is_what_it_was(value):
    names = {c.__name__: c for c in (Trial, Crops, Objective, Optim, Placement, Readers)}
    text = plan_file.literal(value)
    assert eval(text, names) == value
    assert max(map(len, text.splitlines())) <= 100


def load(path: Path):
    spec = importlib.util.spec_from_file_location("written", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_written_file_is_an_experiment(plan, study_dir, tmp_path):
    mixed = dataclasses.replace(
        plan, chosen=(*plan.chosen, dataclasses.replace(plan.chosen[0], trial=LONG))
    )
    odd = 'Is it "good"? \\ """'
    for number, some in enumerate((plan, mixed)):
        path = tmp_path / f"next_runs{number}.py"
        plan_file.write_experiment(some, path, study_name="s" * 120, question=odd)
        trials = tuple(candidate.trial for candidate in some.chosen)
        module = load(path)
        assert module.NEXT == trials
        whole = module.build_study(study_dir)
        assert whole == dataclasses.replace(
            read_study(study_dir), trials=read_study(study_dir).trials + trials
        )
        assert "Is it \"good\"? / '''" in " ".join(module.__doc__.split())
    ruff = [sys.executable, "-m", "ruff"]
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [*ruff, *command, "--config", str(ROOT / "pyproject.toml"), str(tmp_path)],
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
    done = subprocess.run(
        [sys.executable, str(tmp_path / "next_runs0.py"), str(study_dir), "--dry-run"],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert all(candidate.trial.id in done.stdout for candidate in plan.chosen)
    assert f"{len(plan.chosen)} trials ({len(plan.chosen)} trained, 0 baselines)" in done.stdout


def test_what_was_run_already_does_not_run_again(plan, tmp_path):
    path = plan_file.write_experiment(plan, tmp_path / "n.py", study_name="s", question="?")
    write_study(tmp_path / "study", (*GRID, plan.chosen[0].trial))
    ids = [one.id for one in load(path).build_study(tmp_path / "study").trials]
    assert len(ids) == len(set(ids)) == len(GRID) + 1 + len(plan.chosen)


def test_a_written_file_goes_on_in_the_same_study(plan, tmp_path, monkeypatch):
    study_dir = tmp_path / "study"
    write_study(study_dir, GRID)
    StudyFiles(study_dir=study_dir, index=tmp_path / "index.parquet").write()
    given = []
    fake = SimpleNamespace(run_study=lambda *values, **names: given.append((values, names)) or 1)
    monkeypatch.setitem(sys.modules, "phenoscale.on_ray.study", fake)
    written = plan_file.write_experiment(plan, tmp_path / "n.py", study_name="s", question="?")
    module, command = load(written), read_command(study_dir)
    with pytest.raises(Exit) as ended:
        module.main(study_dir)
    ((study, files, size), names) = given[0]
    assert ended.value.exit_code == 1 and size == SIZE and study == module.build_study(study_dir)
    assert files == StudyFiles.read(study_dir)
    assert names["command"] == f"{command}, then python n.py STUDY"
    described = json.loads((study_dir / STUDY_FILE).read_text())
    write_json(study_dir / STUDY_FILE, described | {"command": names["command"]})
    with pytest.raises(Exit):
        module.main(study_dir)
    assert given[1][1]["command"] == names["command"]  # said once, however often it runs


def test_the_verbs_print_and_write(study_dir, tmp_path):
    out = tmp_path / "next_runs.py"
    words = ["plan", str(study_dir), "--out", str(out), "--rounds", "100"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "Next runs of quickstart-seed0" in done.output and "again, 1" in done.output
    assert "more candidates are not shown" not in done.output
    refused = CliRunner().invoke(app, words)
    assert refused.exit_code == 2 and "is there already" in refused.stderr
    done = CliRunner().invoke(app, [*words, "--force", "--json", "--by", "improvement"])
    found = json.loads(done.stdout)
    assert found["by"] == "improvement" and len(found["candidates"]) >= len(found["chosen"]) > 0
    assert {one.id for one in load(out).NEXT} == set(found["chosen"])
    words = ["forecast", str(study_dir), "--objective", "mae", "--backbone", "micro/8"]
    words += ["--rounds", "100"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert done.output.startswith("MAE micro/8 on 100% of the wells, 40 passes: 102,912 parameters")
    assert "times what was measured" in done.output and "score by compute" in done.output
    found = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert math.isfinite(found["interval"]["value"]) and found["trial"].startswith("mae-micro_8-")
