"""Bootstrap of the parametric law: `python -m benchmarks.parametric [--repeats N] [--json FILE]`.

10,000 rounds on 250 points, as many as Hoffmann et al. 2022 had, each drawn again with replacement
and fitted to its optimum at delta = 1e-3. How near the optima are: some rounds are fitted again by
themselves, from the grid of starts and by L-BFGS.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np

from benchmarks.figures import figure, publish
from phenoscale.scaling.parametric import PARAMETERS, ParametricFit, fit_parametric
from phenoscale.scaling.resample import drawn_weights

POINTS, ROUNDS, CHECKED = 250, 10_000, 20
NOISE = 1e-2
GOAL_S = 60.0


def points() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """N, D and losses over two decades of both; one trial in twenty misses by five times as much.

    Returns:
        (250,) each.
    """
    rng = np.random.default_rng(0)
    n, d = (10 ** rng.uniform(low, low + 2, POINTS) for low in (6.5, 6.0))
    noise = NOISE * np.where(rng.random(POINTS) < 0.05, 5, 1) * rng.standard_normal(POINTS)
    return n, d, (0.4 + 30 / n**0.3 + 20 / d**0.3) * np.exp(noise)


def apart(fit: ParametricFit, n: np.ndarray, d: np.ndarray, loss: np.ndarray) -> float:
    """Largest difference from rounds fitted by themselves, in standard deviations of the draws.

    A round that drew a point thrice is a fit with the point three times.
    """
    weights = drawn_weights(POINTS, rounds=ROUNDS, seed=0)[:CHECKED]
    spread = fit.draws.std(axis=0)
    worst = 0.0
    for row, drawn in zip(weights, fit.draws, strict=False):
        places = np.repeat(np.arange(POINTS), row.astype(int))
        again = fit_parametric(n[places], d[places], loss[places], rounds=40)
        values = np.array([getattr(again, name).value for name in PARAMETERS])
        worst = max(worst, float(np.max(np.abs(values - drawn) / spread)))
    return worst


def main() -> None:
    """Runs the bootstrap a few times and prints its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    n, d, loss = points()
    wall, cpu = [], []
    for _ in range(options.repeats):
        began = time.perf_counter(), time.process_time()
        fit = fit_parametric(n, d, loss, rounds=ROUNDS)
        wall.append(time.perf_counter() - began[0])
        cpu.append(time.process_time() - began[1])
    publish(
        [
            figure("fit and bootstrap, wall", statistics.median(wall), "s", GOAL_S, at_most=True),
            figure("fit and bootstrap, CPU", statistics.median(cpu), "s"),
            figure(
                "farthest from a fit by itself", apart(fit, n, d, loss), "sd", 0.01, at_most=True
            ),
        ],
        options.json,
        [
            f"{ROUNDS:,} rounds of {POINTS} points, delta {fit.huber_delta:g}; median of "
            f"{options.repeats} runs; {CHECKED} rounds fitted by themselves"
        ],
    )


if __name__ == "__main__":
    main()
