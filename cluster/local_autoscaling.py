"""A study on a cluster that grows from nothing and shrinks back, all of it on this machine.

Command: python -m cluster.local_autoscaling [--seed N] [--small] [--kill-node] [--nodes N]
Expected: one node, the head, which trains nothing; more while trials wait for room, never more than
they need; the head alone again when they are done. With --kill-node one node is lost while a trial
trains on it, and every trial ends with its row all the same.

More nodes make nothing faster here, they are processes of one machine (`local_cluster.py`); they
show what a cluster does. How many there were over time, with the trials under it, is drawn into the
study's figures and mirrored.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cluster.local_cluster import NODE_CPUS, LocalCluster, local_cluster
from experiments import grid, quickstart
from phenoscale.backbones import NO_BACKBONE
from phenoscale.config import Crops, Study
from phenoscale.screens.index import ScreenIndex
from phenoscale.screens.simulated.planted import ScreenSpec
from phenoscale.status import STATUS_FILE
from phenoscale.study_files import FIGURES, StudyFiles
from phenoscale.tracking import sync

FIGURE = "nodes"
LOOK_S = 0.5  # between looks at the nodes
SHRINK_S = 300.0  # for the nodes to go; Ray Data holds on to what a lost one had for three minutes
SMALL = ScreenSpec(
    num_complexes=8, num_opposed=2, experimental_batches=2, controls_per_batch=16, size_px=64
)
SMALL_PASSES = 12
SMALL_HELD_OUT = ("batch2/plate2",)


@dataclasses.dataclass(kw_only=True)
class History:
    """What was seen while a study ran; times are seconds since the head was up."""

    nodes: list[tuple[float, int]] = dataclasses.field(default_factory=list)
    """Time and number of nodes, the head among them."""
    attempts: dict[str, list[list[float]]] = dataclasses.field(default_factory=dict)
    """By trial, the beginning and the end of each attempt."""
    kills: list[float] = dataclasses.field(default_factory=list)
    """When a node was killed."""

    @property
    def most_nodes(self) -> int:
        """The most nodes there were at once."""
        return max(count for _, count in self.nodes)


class Watch:
    """Writes the history of a study while it runs, and kills a node if it is asked to."""

    def __init__(self, cluster: LocalCluster, status: Path, *, kill: bool = False) -> None:
        """Prepares it.

        Args:
            cluster: whose nodes are counted.
            status: the study's status.json, where its trials' times are.
            kill: whether to kill a node, as soon as a trial has trained for some steps.
        """
        self.history = History()
        self._cluster, self._status, self._kill = cluster, status, kill
        self._began, self._stop = time.time(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def wait_for_head_alone(self) -> bool:
        """Whether the nodes went within `SHRINK_S`."""
        end = time.time() + SHRINK_S
        while self.history.nodes[-1][1] > 1 and time.time() < end:
            time.sleep(LOOK_S)
        return self.history.nodes[-1][1] == 1

    def _run(self) -> None:
        while True:
            now = time.time() - self._began
            self.history.nodes.append((now, len(self._cluster.nodes())))
            with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
                self._see(json.loads(self._status.read_text())["trials"])
            if self._stop.wait(LOOK_S):
                return

    def _see(self, trials: dict[str, dict[str, Any]]) -> None:
        for name, one in trials.items():
            if one["started_at"] is None or one["started_at"] < self._began:
                continue
            times = self.history.attempts.setdefault(name, [])
            begun = one["started_at"] - self._began
            if not times or times[-1][0] != begun:
                times.append([begun, begun])
            end = one["ended_at"] or time.time()
            if one["state"] in ("running", "done", "failed"):
                times[-1][1] = end - self._began
        training = (t for t in trials.values() if t["state"] == "running" and t["step"])
        if self._kill and any(t["phase"] == "train" for t in training):
            now = time.time() - self._began
            if self._cluster.kill_node_in_training():
                self.history.kills.append(now)
                self._kill = False


def draw(history: History, title: str) -> Figure:
    """The number of nodes over time, and under it the attempts of each trial, as a figure."""
    height = 1.4 + 0.16 * len(history.attempts)
    figure = Figure(figsize=(7.0, 1.2 + height), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[1.4, height])
    times, counts = zip(*history.nodes, strict=True)
    above.step(times, counts, where="post", color="tab:blue")
    above.fill_between(times, counts, step="post", color="tab:blue", alpha=0.15)
    above.set_ylim(0, history.most_nodes + 0.5)
    above.yaxis.set_major_locator(MaxNLocator(integer=True))
    above.set_ylabel("nodes")
    above.set_title(title, fontsize=9)
    order = sorted(history.attempts, key=lambda name: history.attempts[name][0][0])
    for row, name in enumerate(order):
        *cut_off, last = history.attempts[name]
        for begin, end in cut_off:
            below.barh(row, end - begin, left=begin, height=0.7, color="tab:red", alpha=0.6)
            below.plot(end, row, "x", color="tab:red")
        below.barh(row, last[1] - last[0], left=last[0], height=0.7, color="tab:green")
    below.set_yticks(range(len(order)), order, fontsize=6)
    below.invert_yaxis()
    below.set_xlabel("seconds since the head was up; red: an attempt that was cut off")
    for at in history.kills:
        above.axvline(at, color="tab:red", linestyle="--")
        below.axvline(at, color="tab:red", linestyle="--")
        above.annotate("a node is killed", (at, 0.2), xytext=(3, 0), textcoords="offset points")
    return figure


def small_study(seed: int = 0) -> Study:
    """Four short trials and a baseline, for the small screen."""
    crops = Crops(size_px=32, passes=SMALL_PASSES, global_batch_size=32, held_out=SMALL_HELD_OUT)
    blank = dataclasses.replace(crops, passes=0)
    cells = [
        grid.trained("mae", "nano/8", crops, lr=1e-3, mask_ratio=0.5, seed=seed + number)
        for number in range(4)
    ]
    return Study(
        name="local-autoscaling",
        question="Does the cluster grow with its trials and shrink back?",
        trials=(*cells, grid.baseline("intensity", NO_BACKBONE, blank)),
        bootstrap_rounds=100,
    )


def run(
    study: Study,
    storage: Path,
    screen: Callable[[str], int],
    *,
    nodes: int,
    kill_node: bool = False,
    tracking_uri: str | None = None,
) -> tuple[int, History]:
    """Runs a study on a cluster of its own, draws what was seen, and mirrors the figure.

    Args:
        study: what to run.
        storage: folder of studies.
        screen: runs the study on the cluster of an address, and returns its exit code.
        nodes: most nodes beside the head.
        kill_node: whether to kill one.
        tracking_uri: MLflow store or server; by default a file in the study's directory.

    Returns:
        The study's exit code, 1 too if the nodes did not go; and what was seen.
    """
    directory = storage.resolve() / study.name
    with local_cluster(nodes) as cluster:
        typer.echo(f"  a head without CPUs is up, and may have {nodes} nodes of {NODE_CPUS} CPUs")
        with Watch(cluster, directory / STATUS_FILE, kill=kill_node) as watch:
            out, err = _WithoutDumps(sys.stdout), _WithoutDumps(sys.stderr)
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = screen(cluster.address)
            typer.echo("  waiting for the nodes to go ...")
            alone = watch.wait_for_head_alone()
    history = watch.history
    if code not in (0, 1):  # interrupted, or refused
        return code, history
    (directory / FIGURES).mkdir(exist_ok=True)
    figure = draw(
        history, f"{study.name}: 1 to {history.most_nodes} to {history.nodes[-1][1]} nodes"
    )
    for ending in ("png", "svg"):
        figure.savefig(directory / FIGURES / f"{FIGURE}.{ending}", dpi=200)
    sync(directory, tracking_uri)
    lost = sum(len(attempts) - 1 for attempts in history.attempts.values())
    typer.echo(
        f"  nodes    1 to {history.most_nodes} to {history.nodes[-1][1]}; {len(history.kills)} "
        f"killed, {lost} attempts cut off, {len(history.attempts)} trials"
    )
    typer.echo(f"  figure   {directory / FIGURES / FIGURE}.png")
    return code or int(not alone), history


class _WithoutDumps:
    """A stream without what Ray prints of a node that ends: the last lines of its log."""

    def __init__(self, out: TextIO) -> None:
        self._out, self._dropped = out, False

    def write(self, text: str) -> int:
        dumps = "(raylet)" in text or (self._dropped and text == "\n")
        self._dropped = dumps
        if not dumps:
            self._out.write(text)
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._out, name)


def main(
    seed: Annotated[int, typer.Option(help="Seed of screen and study.")] = 0,
    small: Annotated[
        bool, typer.Option("--small", help="A few small trials, two minutes.")
    ] = False,
    kill_node: Annotated[bool, typer.Option("--kill-node", help="Kill one node.")] = False,
    nodes: Annotated[int, typer.Option(min=2, help="Most nodes beside the head.")] = 3,
    storage: Annotated[Path, typer.Option(help="Folder for screens and studies.")] = Path("runs"),
    tracking_uri: grid.TrackingUri = None,
) -> None:
    """Runs the quickstart's grid, or a small one, on a cluster that grows and shrinks."""
    study = small_study(seed) if small else quickstart.build_study(seed)
    study = dataclasses.replace(study, name=f"{study.name}-grown")
    command = (
        "python -m cluster.local_autoscaling" + " --small" * small + " --kill-node" * kill_node
    )

    def screen(address: str) -> int:
        if small:
            return run_small(study, storage, address, command, tracking_uri)
        return grid.run_simulated(study, seed, str(storage), command, tracking_uri, address)

    code, _ = run(
        study, storage, screen, nodes=nodes, kill_node=kill_node, tracking_uri=tracking_uri
    )
    raise typer.Exit(code)


def run_small(
    study: Study,
    storage: Path,
    address: str,
    command: str,
    tracking_uri: str | None = None,
    limits: grid.Limits | None = None,
) -> int:
    """Runs a small study on its small screen, which is simulated where it is not there yet."""
    root = grid.prepared_screen(SMALL, str(storage), "simulated-small")
    files = StudyFiles.at(
        storage,
        study.name,
        index=Path(root) / "index.parquet",
        relationships=(str(Path(root) / "complexes.csv"),),
    )
    size = grid.screen_size(ScreenIndex.open(files.index), SMALL_HELD_OUT)
    return grid.run(study, files, size, command, tracking_uri, address, limits or grid.Limits())


if __name__ == "__main__":
    typer.run(main)
