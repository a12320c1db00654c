"""A cluster of this machine grows with its trials, loses a node, and shrinks back to its head."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.local_autoscaling import FIGURE, History, draw
from phenoscale.results import read_rows

GROWN = "local-autoscaling-grown"

# In a process of its own: Ray reads a cluster's token once per process.
RUN = """
import dataclasses, json, sys
from pathlib import Path
from cluster import local_autoscaling as grown
storage, kill, trials, at_once = sys.argv[1], sys.argv[2] == "kill", *map(int, sys.argv[3:5])
grown.SMALL_PASSES = int(sys.argv[5])
study = grown.small_study()
study = dataclasses.replace(study, name="local-autoscaling-grown", trials=study.trials[:trials])
limits = grown.grid.Limits(at_once=at_once)
code, seen = grown.run(
    study, Path(storage),
    lambda address: grown.run_small(study, Path(storage), address, "none", limits=limits),
    nodes=3, kill_node=kill,
)
print(json.dumps({"code": code, **dataclasses.asdict(seen)}))
"""


def grow(storage: Path, *, kill: bool, trials: int, at_once: int, passes: int) -> tuple[int, dict]:
    words = [str(storage), "kill" if kill else "no", str(trials), str(at_once), str(passes)]
    done = subprocess.run(
        [sys.executable, "-c", RUN, *words], capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "(raylet)" not in done.stderr + done.stdout
    seen = json.loads(done.stdout.splitlines()[-1])
    return seen.pop("code"), seen


def counts_of(seen: dict) -> list[int]:
    return [count for _, count in seen["nodes"]]


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, dict]:
    """Three trials at once, and a node that dies under one of them."""
    storage = tmp_path_factory.mktemp("grown")
    return storage, *grow(storage, kill=True, trials=3, at_once=3, passes=8)


@pytest.mark.slow
def test_it_grows_from_the_head_and_shrinks_back_to_it(killed):
    _, code, seen = killed
    counts = counts_of(seen)
    assert code == 0
    assert counts[0] == counts[-1] == 1
    assert 3 <= max(counts) <= 4


@pytest.mark.slow
def test_a_killed_node_loses_no_trial(killed):
    storage, _, seen = killed
    rows = read_rows(storage / GROWN)
    assert [row.seed for row in sorted(rows, key=lambda row: row.seed)] == [0, 1, 2]
    assert len(seen["kills"]) == 1
    begun_again = [name for name, attempts in seen["attempts"].items() if len(attempts) > 1]
    assert len(begun_again) == 1


@pytest.mark.slow
def test_the_figure_is_in_the_study_and_in_mlflow(killed):
    from mlflow import MlflowClient

    storage, _, _ = killed
    picture = storage / GROWN / "figures" / f"{FIGURE}.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    client = MlflowClient(f"sqlite:///{storage / GROWN}/mlflow.db")
    (experiment,) = [e for e in client.search_experiments() if e.name == GROWN]
    (parent,) = client.search_runs([experiment.experiment_id], "tags.`phenoscale.kind` = 'study'")
    kept = {one.path for one in client.list_artifacts(parent.info.run_id, "figures")}
    assert {f"figures/{FIGURE}.png", f"figures/{FIGURE}.svg"} <= kept


@pytest.mark.slow
def test_data_asks_for_no_node_beyond_the_trials_need(tmp_path: Path):
    """One trial at a time needs one node, however long its readers wait for a slow trainer."""
    code, seen = grow(tmp_path, kill=False, trials=1, at_once=1, passes=60)
    assert code == 0
    assert max(counts_of(seen)) == 2


def test_the_figure_shows_every_attempt_and_the_kill():
    history = History(
        nodes=[(0.0, 1), (5.0, 3), (30.0, 1)],
        attempts={"b": [[6.0, 9.0], [12.0, 20.0]], "a": [[5.0, 15.0]]},
        kills=[9.0],
    )
    above, below = draw(history, "1 to 3 to 1").axes
    assert above.get_lines()[0].get_ydata().tolist() == [1, 3, 1]
    assert [bar.get_width() for bar in below.patches] == [10.0, 3.0, 8.0]
    assert [label.get_text() for label in below.get_yticklabels()] == ["a", "b"]
    assert above.get_lines()[-1].get_xdata() == [9.0, 9.0]
