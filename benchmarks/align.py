"""A million wells aligned and aggregated: `python -m benchmarks.align [--wells N] [--json FILE]`.

Float32 embeddings of width 384 in 180 experimental batches, a tenth of the wells negative
controls: TVN is fitted and applied, then wells become guides and guides genes. Time and peak memory
are of one process; the table itself, 1.43 GiB, is made before the clock starts and counts for the
memory.
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.figures import figure, publish

WELLS, WIDTH = 1_000_000, 384
BATCHES, GENES, GUIDES = 180, 17_063, 6
CONTROLS = 0.1
GOAL_S, GOAL_GIB = 120.0, 4.0


def screen(wells: int) -> tuple[np.ndarray, pd.DataFrame]:
    """Embeddings (wells, WIDTH) float32, correlated and shifted by batch, and the wells' table."""
    rng = np.random.default_rng(0)
    vectors = np.empty((wells, WIDTH), dtype=np.float32)
    mixing = rng.standard_normal((WIDTH, WIDTH)).astype(np.float32) / WIDTH**0.5
    batch = rng.integers(BATCHES, size=wells)
    offset = rng.standard_normal((BATCHES, WIDTH)).astype(np.float32)
    for start in range(0, wells, 2**14):
        part = slice(start, min(start + 2**14, wells))
        noise = rng.standard_normal((part.stop - start, WIDTH), dtype=np.float32)
        vectors[part] = noise @ mixing + offset[batch[part]]
    gene, guide = rng.integers(GENES, size=wells), rng.integers(GUIDES, size=wells)
    table = pd.DataFrame(
        {
            "experimental_batch": _names("batch{:03d}", BATCHES)[batch],
            "gene": _names("gene{:05d}", GENES)[gene],
            "guide": _names("guide{}", GUIDES)[guide],
            "negative_control": rng.random(wells) < CONTROLS,
        }
    )
    return vectors, table


def _names(form: str, count: int) -> np.ndarray:
    return np.array([form.format(number) for number in range(count)], dtype=object)


def main() -> None:
    """Runs the benchmark and prints its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wells", type=int, default=WELLS)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    from phenoscale.maps.aggregate import genes_from_wells
    from phenoscale.maps.align import TypicalVariation

    vectors, table = screen(options.wells)
    batch = table["experimental_batch"].to_numpy()
    control = table["negative_control"].to_numpy()
    began, cpu = time.perf_counter(), time.process_time()
    aligned = TypicalVariation().fit_transform(vectors, batch, control)
    aligned_s = time.perf_counter() - began
    genes, names, counts = genes_from_wells(aligned, table)
    total = time.perf_counter() - began
    assert len(names) == len(genes) and counts.sum() == np.count_nonzero(~control)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    publish(
        [
            figure("TVN, fit and transform", aligned_s, "s"),
            figure("wells to guides to genes", total - aligned_s, "s"),
            figure("together", total, "s", GOAL_S, at_most=True),
            figure("together, CPU", time.process_time() - cpu, "s"),
            figure("peak memory", peak, "GiB", GOAL_GIB, at_most=True),
        ],
        options.json,
        [f"{options.wells:,} wells x {WIDTH}, {BATCHES} batches, {control.sum():,} controls"],
    )


if __name__ == "__main__":
    main()
