"""Do fits say how sure they are? `python -m benchmarks.coverage [--markdown] [--studies N]`.

Studies with a known law are simulated and fitted by the functions that the report uses. For each
design: by how much the mean of the values misses the truth (z: in standard errors of that mean;
beyond 2 in 5% of cells where there is no bias), and how many of the 90% intervals hold it. 200
studies tell a coverage to within 4 points.

Planted are losses L = 0.4 + A / N^0.3 + B / D^0.3 over a grid of 1.5 decades of size and 1.5 of
data; in its middle size and data add 0.15 each, so that losses go from 0.9 to 0.58, as those of
small masked autoencoders do. Runs miss the law by a normal error in ln of the loss, 0.5% or 1%; in
uneven designs it grows with compute, from half of that to twice.
Scores of two objectives grow by 0.06 and 0.04 per decade of compute, and runs miss them by 0.015.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path

import numpy as np

from benchmarks.figures import figure, publish
from phenoscale.maps.interval import Interval
from phenoscale.scaling.iso_flop import shares
from phenoscale.scaling.parametric import corrected_interval, fit_parametric
from phenoscale.scaling.slopes import slope_difference

FLOOR, EXPONENT, MIDDLE = 0.4, 0.3, 0.15
SIZES, CROPS = (1e7, 10**8.5), (1e6, 10**7.5)
SLOPES, SCORE_NOISE = (0.06, 0.04), 0.015
TARGET = 10**0.5  # times the largest size and the most crops: ten times the compute
COVERAGE, LOWEST, HIGHEST, LARGEST_Z = 0.9, 0.85, 0.95, 2.0
FIT_BIASES = ("E", "ln A", "ln B", "alpha", "beta")
COLUMNS = (*FIT_BIASES, "a", "loss at 10x", "slopes")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Design:
    """What a laboratory trains."""

    sizes: int
    """Sizes of backbone."""
    amounts: int
    """Amounts of data, each with each size."""
    seeds: int
    """Runs of each configuration."""
    noise: float
    """Standard deviation of a run in ln of the loss."""
    uneven: bool
    """Whether it grows with compute, from half to twice."""

    @property
    def label(self) -> str:
        """As the table has it."""
        seeds = "1 seed" if self.seeds == 1 else f"{self.seeds} seeds"
        noise = f"noise {self.noise:.1%}" + ", uneven" * self.uneven
        return f"{self.sizes * self.amounts}, {seeds}, {noise}"


GRIDS = ((3, 3), (4, 3), (4, 4), (10, 6))
DESIGNS = [
    Design(sizes=sizes, amounts=amounts, seeds=seeds, noise=noise, uneven=uneven)
    for noise, seeds, uneven in (
        (0.005, 1, False),
        (0.005, 3, False),
        (0.01, 1, False),
        (0.005, 1, True),
    )
    for sizes, amounts in GRIDS
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """What the studies of one design showed."""

    design: Design
    """Which."""
    bias: dict[str, float]
    """Column to mean of the values less the truth."""
    error: dict[str, float]
    """Column to its standard error."""
    held: dict[str, float]
    """Column to the share of intervals that hold the truth."""

    def z(self, column: str) -> float:
        """Bias in standard errors."""
        return self.bias[column] / self.error[column]


def places(design: Design) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """N, D and configuration of each run."""
    n, d = np.meshgrid(np.geomspace(*SIZES, design.sizes), np.geomspace(*CROPS, design.amounts))
    configuration = np.repeat(np.arange(n.size), design.seeds)
    return n.ravel()[configuration], d.ravel()[configuration], configuration


def planted() -> dict[str, float]:
    """The truth by column."""
    log_n, log_d = (float(np.mean(np.log(ends))) for ends in (SIZES, CROPS))
    of_size, of_data = (np.log(MIDDLE) + EXPONENT * middle for middle in (log_n, log_d))
    values = (FLOOR, of_size, of_data, EXPONENT, EXPONENT)
    found = dict(zip(FIT_BIASES, values, strict=True))
    target = law(found, TARGET * SIZES[1], TARGET * CROPS[1])
    rest = {"a": 0.5, "loss at 10x": float(target), "slopes": SLOPES[0] - SLOPES[1]}
    return found | rest


def law(truth: dict[str, float], n: np.ndarray | float, d: np.ndarray | float) -> np.ndarray:
    """The planted loss."""
    of_size = np.exp(truth["ln A"] - truth["alpha"] * np.log(n))
    return np.asarray(truth["E"] + of_size + np.exp(truth["ln B"] - truth["beta"] * np.log(d)))


def study(design: Design, number: int, seed: int) -> dict[str, Interval]:
    """One simulated study of design `number`: the value and the 90% interval of each column.

    "E corrected" has the interval of E.
    """
    rng = np.random.default_rng([number, seed])
    n, d, configuration = places(design)
    noise = np.full(len(n), design.noise)
    if design.uneven:
        decades = np.log10(n * d)
        noise *= 4 ** ((decades - decades.min()) / np.ptp(decades) - 0.5)
    loss = law(planted(), n, d) * np.exp(noise * rng.standard_normal(len(n)))
    fit = fit_parametric(n, d, loss, configurations=configuration, seed=seed)
    values = np.array([fit.E.value, fit.A.value, fit.B.value, fit.alpha.value, fit.beta.value])
    draws = fit.draws.copy()
    values[1:3], draws[:, 1:3] = np.log(values[1:3]), np.log(draws[:, 1:3])
    found = {
        name: corrected_interval(values[place], draws[:, place], coverage=COVERAGE)
        for place, name in enumerate(FIT_BIASES)
    }
    found["E corrected"] = dataclasses.replace(found["E"], value=fit.E.value - fit.bias[0])
    share = fit.beta.value / (fit.alpha.value + fit.beta.value)
    found["a"] = corrected_interval(share, shares(fit), coverage=COVERAGE)
    target = np.array([TARGET * SIZES[1]]), np.array([TARGET * CROPS[1]])
    predicted = fit.predict_rounds(*target)[:, 0]
    found["loss at 10x"] = plain(float(fit.predict(*target)[0]), predicted)
    found["slopes"] = slopes(design, rng, seed)
    return found


def slopes(design: Design, rng: np.random.Generator, seed: int) -> Interval:
    """Difference of the slopes of two objectives, both trained at each place of the design."""
    n, d, configuration = places(design)
    x = np.log10(n * d)
    sides = []
    for slope in SLOPES:
        counts = np.bincount(configuration)
        score = 0.3 + slope * (x - x.min()) + SCORE_NOISE * rng.standard_normal(len(x))
        sides += [np.bincount(configuration, weights=one) / counts for one in (x, score)]
    slope_a, slope_b, draws = slope_difference(*sides, seed=seed)
    return plain(slope_a - slope_b, draws)


def plain(value: float, draws: np.ndarray) -> Interval:
    """Plain percentiles, as callers of `predict_rounds` and `slope_difference` take them."""
    low, high = np.quantile(draws, ((1 - COVERAGE) / 2, (1 + COVERAGE) / 2))
    return Interval(value=value, low=float(low), high=float(high))


def measured(design: Design, number: int, studies: int) -> Row:
    """All studies of a design."""
    found = [study(design, number, seed) for seed in range(studies)]
    truth = planted()
    truth["E corrected"] = truth["E"]
    bias, error, held = {}, {}, {}
    for column, true in truth.items():
        values = np.array([one[column].value for one in found])
        bias[column] = float(values.mean() - true)
        error[column] = float(values.std(ddof=1) / np.sqrt(studies))
        held[column] = float(
            np.mean([one[column].low <= true <= one[column].high for one in found])
        )
    return Row(design=design, bias=bias, error=error, held=held)


def tables(rows: list[Row]) -> list[list[list[str]]]:
    """Cells of the two tables, their headings first; * marks what misses its bar."""
    held = [["configurations", *COLUMNS]]
    bias = [["configurations", *FIT_BIASES, "E corrected", "loss at 10x"]]
    for row in rows:
        held.append(
            [row.design.label]
            + [f"{row.held[c]:.0%}" + "*" * (not covers(row.held[c])) for c in COLUMNS]
        )
        bias.append(
            [row.design.label]
            + [
                f"{row.bias[c]:+.2g} ({row.z(c):+.1f})" + "*" * (abs(row.z(c)) > LARGEST_Z)
                for c in bias[0][1:]
            ]
        )
    return [held, bias]


def covers(share: float) -> bool:
    """Whether a coverage is within its bar."""
    return LOWEST <= share <= HIGHEST


def words(rows: list[Row]) -> list[str]:
    """What misses its bar, at which design."""
    said = []
    for row in rows:
        missed = [f"{c} {row.held[c]:.1%}" for c in COLUMNS if not covers(row.held[c])]
        if missed:
            said.append(f"{row.design.label}: intervals hold the truth in {', '.join(missed)}.")
        missed = [f"{c} by {row.z(c):+.1f}" for c in FIT_BIASES if abs(row.z(c)) > LARGEST_Z]
        if missed:
            said.append(f"{row.design.label}: biased, in standard errors: {', '.join(missed)}.")
    return said or ["Every coverage and every bias is within its bar."]


def show(cells: list[list[str]], markdown: bool) -> None:
    """Prints a table."""
    widths = [max(len(row[place]) for row in cells) for place in range(len(cells[0]))]
    for number, row in enumerate(cells):
        padded = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        print(f"| {' | '.join(padded)} |" if markdown else "  ".join(padded))
        if markdown and number == 0:
            print("|" + "---|" * len(row))
    print()


def main() -> None:
    """Simulates every design and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=200)
    parser.add_argument("--markdown", action="store_true", help="print tables as docs has them")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    began, rows = time.process_time(), []
    for number, design in enumerate(DESIGNS):
        print(f"\r{number} of {len(DESIGNS)}: {design.label}        ", end="", flush=True)
        rows.append(measured(design, number, options.studies))
    print()
    held, bias = tables(rows)
    print("Share of 90% intervals that hold the truth (* outside 85 to 95%)\n")
    show(held, options.markdown)
    print("Mean of the values less the truth (in standard errors; * beyond 2)\n")
    show(bias, options.markdown)
    coverages = [row.held[c] for row in rows for c in COLUMNS]
    zs = [row.z(c) for row in rows for c in FIT_BIASES]
    publish(
        [
            figure("coverages within 85 to 95%", float(np.mean([*map(covers, coverages)])), ""),
            figure("biases within 2 errors", float(np.mean(np.abs(zs) <= LARGEST_Z)), ""),
            figure("CPU", time.process_time() - began, "s"),
        ],
        options.json,
        [f"{options.studies} studies of each design", *words(rows)],
    )


if __name__ == "__main__":
    main()
