"""How fast one core simulates a screen: `python -m benchmarks.synth [--quick] [--json FILE]`.

The goal of 30 sites of 6 x 256 x 256 per second and core includes writing them as TIFF.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.figures import Figure, figure, publish
from phenoscale.screens.simulated.cells import LATENT_NAMES, rng_for
from phenoscale.screens.simulated.render import draw_nuisance, render_site
from phenoscale.screens.simulated.synthetic import ScreenSpec, simulate_screen

GOAL = 30.0
SPEC = ScreenSpec(
    num_complexes=8, num_opposed=2, experimental_batches=2, controls_per_batch=16, sites_per_well=2
)
QUICK_SPEC = ScreenSpec(
    num_complexes=2, num_opposed=1, experimental_batches=1, controls_per_batch=4, sites_per_well=2
)
REPEATS = 3


def _render(sites: int, size_px: int) -> None:
    for i in range(sites):
        nuisance = draw_nuisance(0, SPEC.nuisance, "batch1", "plate1", str(i))
        render_site(np.zeros(len(LATENT_NAMES)), nuisance, size_px, rng_for(0, str(i)))


def measure(spec: ScreenSpec) -> list[Figure]:
    """Time the first site, then rendering alone, then whole screens in one process.

    Args:
        spec: The screen to write, three times.

    Returns:
        The figures; rates are medians over the repeats.
    """
    start = time.perf_counter()
    _render(1, spec.size_px)
    first_s = time.perf_counter() - start
    rendering, writing = [], []
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(REPEATS):
            start = time.perf_counter()
            _render(spec.num_sites, spec.size_px)
            rendering.append(spec.num_sites / (time.perf_counter() - start))
            start = time.perf_counter()
            simulate_screen(spec, Path(folder) / str(repeat), workers=1)
            writing.append(spec.num_sites / (time.perf_counter() - start))
    return [
        figure("screen rendered and written", statistics.median(writing), "sites/s/core", GOAL),
        figure("rendering alone, average cells", statistics.median(rendering), "sites/s/core"),
        figure("first site, with the texture banks", first_s, "s"),
        figure("sites per repeat", spec.num_sites, "sites"),
    ]


def main() -> None:
    """Read the arguments, measure, print and write."""
    parser = argparse.ArgumentParser(description="How fast one core simulates a screen.")
    parser.add_argument(
        "--quick", action="store_true", help="a few seconds instead of half a minute"
    )
    parser.add_argument("--json", type=Path, help="write the figures there as JSON")
    arguments = parser.parse_args()
    publish(measure(QUICK_SPEC if arguments.quick else SPEC), arguments.json)


if __name__ == "__main__":
    main()
