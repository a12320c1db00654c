"""The sweep of learning rates: its grid, and what it makes of rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from experiments import grid, learning_rate
from experiments.learning_rate import best_rates, build_study, slopes, table
from phenoscale.backbones import vision_transformer
from phenoscale.results import ResultsRow
from tests.fabricated import make_baseline, make_row, write_trial
from tests.test_cli import loaded_after

RATES = tuple(1e-3 * 2**i for i in range(6))


def swept(
    backbone: str, best: float, rates: Sequence[float] = RATES, seed: int = 0, **changes: object
) -> list[ResultsRow]:
    """Rows whose losses lie on a parabola of log2(rate) with its vertex at `best`."""
    return [
        make_row(
            trial_id=f"{backbone.replace('/', '_')}-{lr}-{seed}",
            backbone=backbone,
            lr=lr,
            seed=seed,
            held_out_loss=0.5 + seed + 0.03 * math.log2(lr / best) ** 2,
            **changes,
        )
        for lr in rates
    ]


def test_the_sweep_is_the_grid_that_it_says():
    study = build_study(seed=3, seeds=2)
    cells: dict[tuple[str, str, int], list[float]] = {}
    for trial in study.trials:
        cells.setdefault((trial.objective.name, trial.backbone, trial.seed), []).append(
            trial.optim.lr
        )
    assert len(cells) == 2 * 3 * 2 and {seed for _, _, seed in cells} == {3, 4}
    for (objective, _, _), rates in cells.items():
        lowest = learning_rate.LOWEST_RATE[objective]
        assert rates == [lowest * 2**i for i in range(learning_rate.NUM_RATES)]
    assert all(t.crops.held_out and t.optim.lr_source == "given" for t in study.trials)
    assert {t.objective.name for t in build_study(objectives=["ca_mae"]).trials} == {"ca_mae"}


def test_what_it_does_not_sweep_is_refused():
    with pytest.raises(ValueError, match="no rates here for munet; choose among mae, ca_mae, wsl"):
        build_study(objectives=["munet"])
    with pytest.raises(ValueError, match="seeds is 0"):
        build_study(seeds=0)


def test_a_parabola_refines_the_best_rate():
    (best,) = best_rates([*swept("nano/8", 5e-3), make_baseline("untrained", 0.3)])
    assert (best.backbone, best.width, best.lowest_at) == ("nano/8", 32, 4e-3)
    assert best.best == pytest.approx(5e-3)
    assert best.swept == pytest.approx(RATES) and min(best.losses) == best.losses[2]


@pytest.mark.parametrize(("best", "edge"), [(1e-4, RATES[0]), (1.0, RATES[-1])])
def test_a_minimum_at_the_edge_gives_no_rate(best: float, edge: float):
    (found,) = best_rates(swept("nano/8", best))
    assert (found.best, found.verdict, found.lowest_at) == (None, "edge", edge)
    assert not slopes([found])
    assert "not bracketed" in table([found], [])[1]


def test_losses_that_are_all_alike_give_no_rate():
    rows = [
        make_row(trial_id=str(lr), backbone="nano/8", lr=lr, held_out_loss=5.29 - 0.01 * (i == 2))
        for i, lr in enumerate(RATES)
    ]
    (found,) = best_rates(rows)
    assert (found.best, found.verdict, found.lowest_at) == (None, "flat", RATES[2])
    assert "not bracketed: within 1%" in table([found], [])[1]


def test_seeds_are_averaged_and_a_rate_that_lacks_one_does_not_count():
    both = swept("nano/8", 4e-3) + swept("nano/8", 4e-3, seed=1)
    (found,) = best_rates(both[:-1])
    assert found.swept == pytest.approx(RATES[:-1])
    assert found.losses[2] == pytest.approx(1.0)
    assert found.best == pytest.approx(4e-3)


def test_the_slope_over_width_and_its_spread():
    def rows(exponents: dict[str, float]) -> list[ResultsRow]:
        wide = {name: vision_transformer(name).width / 16 for name in exponents}
        return [r for name, a in exponents.items() for r in swept(name, 1e-2 * wide[name] ** a)]

    straight = best_rates(rows({"pico/8": 0.0, "nano/8": -0.5, "micro/8": -0.5}))
    assert [best.backbone for best in straight] == ["pico/8", "nano/8", "micro/8"]
    (trend,) = slopes(straight)
    assert (trend.objective, trend.sizes) == ("mae", 3)
    assert (trend.slope, trend.lowest, trend.highest) == pytest.approx((-0.5, -0.5, -0.5))
    (bent,) = slopes(best_rates(rows({"pico/8": 0.0, "nano/8": 0.0, "micro/8": -1.0})))
    assert bent.lowest == pytest.approx(-math.log2(3) / math.log2(1.5))
    assert bent.highest == pytest.approx(0.0) and bent.lowest < bent.slope < bent.highest


def test_trials_of_different_length_do_not_compare():
    with pytest.raises(ValueError, match="different numbers of crops"):
        best_rates(swept("nano/8", 4e-3) + swept("pico/8", 4e-3, crops_seen=64))


def test_the_command_writes_its_rates_beside_the_report(tmp_path: Path, monkeypatch):
    def run(study, seed, storage, command, tracking_uri, address, limits, site_px):
        for row in swept("nano/8", 4e-3):
            write_trial(Path(storage) / study.name, row)
        assert (command, site_px) == (
            "python -m experiments.learning_rate --seed 0 --seeds 1 --objective mae",
            128,
        )
        return 1

    monkeypatch.setattr(grid, "run_simulated", run)
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(learning_rate.main)
    done = CliRunner().invoke(app, ["--objective", "mae", "--storage", str(tmp_path)])
    assert done.exit_code == 1  # that of the study, whose failed trials are no reason to say less
    assert "4.00e-03" in done.stdout
    written = (tmp_path / "learning-rate-seed0" / "learning_rates.json").read_text()
    assert '"best"' in written and '"slopes": []' in written


def test_the_bill_needs_neither_torch_nor_ray():
    text, loaded = loaded_after(
        'runpy.run_module("experiments.learning_rate", run_name="__main__")', "--dry-run"
    )
    assert not loaded & {"torch", "timm", "ray", "mlflow"}
    assert "36 trials (36 trained, 0 baselines)" in text
