"""Relationship recall of a whole genome: `python -m benchmarks.recall [--rounds N] [--json FILE]`.

Five databases in a map of 17,063 genes x 384, one pair of tails. Ours comes with 100 bootstrap
samples, EFAAR_benchmarking 1.0 without any. The databases are those of the installed package
efaar-benchmarking (`pip install --no-deps efaar-benchmarking==1.0`); its heavy dependencies are not
needed: what it imports and does not use here is stubbed. Each run is a process of its own, both in
turn; the time is that of scoring, databases read from disk included, the memory is the peak of the
process, the map of 50 MiB included.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.figures import figure, publish

GENES, WIDTH, ROUNDS = 17_063, 384, 100
GOAL_RATIO, GOAL_MEMORY = 20.0, 0.25
TAILS = (0.05, 0.95)


def genome() -> tuple[np.ndarray, list[str]]:
    """A map in which complexes of CORUM share a direction, and its gene names."""
    from phenoscale.maps.relationships import PUBLIC_DATABASES, load_databases

    databases = load_databases(PUBLIC_DATABASES)
    known = sorted({gene for pairs in databases.values() for side in pairs for gene in pairs[side]})
    names = (known + [f"unknown{i}" for i in range(GENES)])[:GENES]
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((GENES, WIDTH))
    row = {name: number for number, name in enumerate(names)}
    pairs = databases["CORUM"]
    pairs = pairs[pairs["entity1"].isin(row) & pairs["entity2"].isin(row)].iloc[::20]
    first, second = (pairs[side].map(row).to_numpy() for side in ("entity1", "entity2"))
    np.add.at(vectors, first, 0.5 * vectors[second])
    return vectors, names


def ours(vectors: np.ndarray, names: list[str]) -> dict[str, float]:
    """Recall of each database, with intervals."""
    from phenoscale.maps.recall import recall_by_database
    from phenoscale.maps.relationships import PUBLIC_DATABASES, load_databases

    databases = load_databases(PUBLIC_DATABASES)
    found = recall_by_database(vectors, names, databases, tails=[TAILS], rounds=ROUNDS)
    return {name: one.recall["recall_0.05_0.95"].value for name, one in found.items()}


def efaar(vectors: np.ndarray, names: list[str]) -> dict[str, float]:
    """The same by the reference."""
    stub = types.ModuleType("geomloss")
    stub.SamplesLoss = None  # type: ignore[attr-defined]
    sys.modules["geomloss"] = stub
    from efaar_benchmarking.benchmarking import (  # type: ignore[import-not-found]
        known_relationship_benchmark,
    )
    from sklearn.utils import Bunch

    table = Bunch(metadata=pd.DataFrame({"gene": names}), features=pd.DataFrame(vectors))
    found = known_relationship_benchmark(table, "gene", recall_thr_pairs=[TAILS])
    return dict(zip(found["source"], found["recall_0.05_0.95"].astype(float), strict=True))


def measured(which: str) -> dict[str, Any]:
    """One run in a process of its own."""
    words = [sys.executable, "-m", "benchmarks.recall", "--only", which]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def run_here(which: str) -> None:
    """What the process of a run does."""
    vectors, names = genome()
    wall, cpu = time.perf_counter(), time.process_time()
    recall = ours(vectors, names) if which == "ours" else efaar(vectors, names)
    figures = {
        "wall_s": time.perf_counter() - wall,
        "cpu_s": time.process_time() - cpu,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "recall": recall,
    }
    print(json.dumps(figures))


def main() -> None:
    """Runs both in turn and prints their figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="alternating pairs of runs")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", choices=("ours", "efaar"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        run_here(options.only)
        return
    runs: dict[str, list[dict[str, Any]]] = {"ours": [], "efaar": []}
    for number in range(options.rounds):
        for which, found in runs.items():
            print(f"\rround {number + 1} of {options.rounds}: {which}   ", end="", flush=True)
            found.append(measured(which))
    print()
    medians = {
        (which, key): statistics.median(run[key] for run in found)
        for which, found in runs.items()
        for key in ("wall_s", "cpu_s", "peak_gib")
    }
    apart = max(
        abs(runs["ours"][0]["recall"][name] - value)
        for name, value in runs["efaar"][0]["recall"].items()
    )
    figures = [
        figure(f"{which} {key[:-2] if key != 'peak_gib' else 'peak memory'}", value,
               "GiB" if key == "peak_gib" else "s")
        for (which, key), value in medians.items()
    ]  # fmt: skip
    wall = medians["efaar", "wall_s"] / medians["ours", "wall_s"]
    cpu = medians["efaar", "cpu_s"] / medians["ours", "cpu_s"]
    memory = medians["ours", "peak_gib"] / medians["efaar", "peak_gib"]
    figures += [
        figure("faster, wall", wall, "x", GOAL_RATIO),
        figure("faster, CPU", cpu, "x", GOAL_RATIO),
        figure("memory", memory, "of EFAAR's", GOAL_MEMORY, at_most=True),
        figure("largest difference of a recall", apart, "", 1e-9, at_most=True),
    ]
    publish(
        figures,
        options.json,
        [
            f"{GENES:,} genes x {WIDTH}, five databases, tails {TAILS}; ours with {ROUNDS} "
            f"bootstrap samples, EFAAR without; medians of {options.rounds} alternating runs"
        ],
    )


if __name__ == "__main__":
    main()
