"""Do many studies that mirror to one MLflow store at once lose or double a point?

Command: python -m benchmarks.mlflow_writers [--processes 32] [--points 1000]
Expected: no point lost, none twice, no step given up; in one SQLite store and through one server.

Every process is the driver of a study of its own with one trial, and writes it as a driver does:
`open`, `trial`, `finish`. All begin together with a store that does not exist yet. Points are
counted in the store's tables afterwards, by run and name, so a point that a repeated attempt wrote
at another time counts as double.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import math
import multiprocessing
import os
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

from phenoscale.results import ResultsRow, write_json
from phenoscale.tracking import ENVIRONMENT, StudyMirror

CURVE = ("loss", "lr", "grad_norm", "crops_per_s")
START_S = 300
"""A busy machine takes its time to start a server, or as many processes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Written:
    """What became of it."""

    points: int
    """Points of curves in the store."""
    doubled: int
    """Points beyond one for each run, name and step."""
    expected: int
    """Points that were to be written."""
    problems: list[str]
    """Steps that a mirror gave up."""
    slowest_s: float
    """The slowest step of any driver, all its calls and attempts together."""
    wall_s: float
    """From the common start to the last driver's end."""


def write_together(folder: Path, uri: str, store: Path, processes: int, points: int) -> Written:
    """Lets as many drivers write at once, and counts what the store holds.

    Args:
        folder: for the studies.
        uri: tracking URI of the store.
        store: the SQLite file behind it.
        processes: how many drivers.
        points: points of each one's curve; a multiple of the four names in it.
    """
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    context = multiprocessing.get_context("forkserver")  # which imports once for all
    context.set_forkserver_preload(["mlflow", __name__])
    together = context.Barrier(processes + 1)
    queue = context.Queue()
    drivers = [
        context.Process(target=_drive, args=(folder / f"study-{n}", uri, points, together, queue))
        for n in range(processes)
    ]
    for driver in drivers:
        driver.start()
    together.wait(START_S)
    began = time.monotonic()
    told = [queue.get(timeout=1200) for _ in drivers]
    wall_s = time.monotonic() - began
    for driver in drivers:
        driver.join()
    with contextlib.closing(sqlite3.connect(store)) as tables:
        names = ", ".join(f"'{name}'" for name in CURVE)
        ours = "select run_uuid from runs where name like 'study-%'"
        select = f"from metrics where key in ({names}) and run_uuid in ({ours})"
        (written,) = tables.execute(f"select count(*) {select}").fetchone()
        (distinct,) = tables.execute(
            f"select count(*) from (select distinct run_uuid, key, step {select})"
        ).fetchone()
    return Written(
        points=written,
        doubled=written - distinct,
        expected=processes * points,
        problems=[problem for problems, _ in told for problem in problems],
        slowest_s=max(slowest for _, slowest in told),
        wall_s=wall_s,
    )


def _drive(study_dir: Path, uri: str, points: int, together: Barrier, queue: Any) -> None:
    """One driver: makes its study, waits for the others, mirrors it."""
    trial_dir = _make_study(study_dir, points // len(CURVE))
    mirror = StudyMirror(study_dir, uri)
    together.wait(START_S)
    slowest = 0.0
    for step in (mirror.open, lambda: mirror.trial(trial_dir), mirror.finish):
        began = time.monotonic()
        step()
        slowest = max(slowest, time.monotonic() - began)
    queue.put(([str(problem) for problem in mirror.problems], slowest))


def _make_study(study_dir: Path, steps: int) -> Path:
    """A study of one trial with a curve."""
    columns: dict[str, Any] = {"float": 1.0, "int": 1, "str": "none", "float | None": 1.0}
    values: dict[str, Any] = {
        f.name: columns.get(str(f.type), {}) for f in dataclasses.fields(ResultsRow)
    }
    row = ResultsRow(**values | {"trial_id": study_dir.name, "objective": "mae", "steps": steps})
    trial_dir = study_dir / "trials" / row.trial_id
    row.write(trial_dir)
    falling = [math.exp(-4 * step / steps) for step in range(1, steps + 1)]
    curve = {name: falling for name in CURVE} | {"step": list(range(1, steps + 1))}
    write_json(trial_dir / "curve.json", curve)
    write_json(study_dir / "study.json", {"name": study_dir.name, "metric": row.metric})
    return trial_dir


@contextlib.contextmanager
def server(store: Path, workers: int) -> Iterator[str]:
    """An MLflow server over a SQLite store, on a free port of the loopback; yields its URI."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--workers", str(workers)]
    command += ["--backend-store-uri", f"sqlite:///{store}", "--serve-artifacts"]
    command += ["--artifacts-destination", str(store.parent / "artifacts")]
    with (store.parent / "server.log").open("w") as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**ENVIRONMENT, **os.environ},
            start_new_session=True,  # its workers are its children: they end with the group
        )
        try:
            _wait_until_healthy(f"http://127.0.0.1:{port}", process)
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(process.pid, 15)
            process.wait(60)


def _wait_until_healthy(uri: str, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + START_S
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"{uri}/health", timeout=5).close()
            return
        time.sleep(0.2)
    raise RuntimeError(f"The MLflow server at {uri} did not start within {START_S} s.")


def main() -> None:
    """Writes to a SQLite store and to a server, and prints what became of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=32)
    parser.add_argument("--points", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=4, help="of the server")
    arguments = parser.parse_args()
    print("store                 points   lost doubled given up  slowest step s  all s")
    with tempfile.TemporaryDirectory() as name:
        for kind in ("sqlite", "server"):
            folder = Path(name) / kind
            folder.mkdir()
            store = folder / "mlflow.db"
            with contextlib.ExitStack() as stack:
                uri = f"sqlite:///{store}"
                if kind == "server":
                    uri = stack.enter_context(server(store, arguments.workers))
                w = write_together(folder, uri, store, arguments.processes, arguments.points)
            label = f"{kind}, {arguments.processes} drivers"
            lost = w.expected - (w.points - w.doubled)
            print(
                f"{label:20} {w.points:7,} {lost:6} {w.doubled:7} {len(w.problems):8} "
                f"{w.slowest_s:15.1f} {w.wall_s:6.1f}",
                flush=True,
            )
            for problem in w.problems:
                print(f"  {problem}")


if __name__ == "__main__":
    main()
