"""What a large index costs: `python -m benchmarks.index [--rows N] [--folder DIR] [--json FILE]`.

Generates an index of a million rows and one of N (100 million by default), sorted by experimental
batch as real ones are, and measures in fresh processes the time to the first global batch, from the
start of the interpreter, and the resident memory: from step 0 and from step 1,000,000. Then how
well the two-level shuffle mixes: distinct experimental batches and perturbations in a global batch,
against a full shuffle. Images are not made; paths of every crop of the batch are.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.figures import Figure, figure, publish
from phenoscale.config import Crops
from phenoscale.screens.cutter import CropCutter, _opened
from phenoscale.screens.index import ScreenIndex
from phenoscale.screens.index_format import IndexWriter
from phenoscale.screens.storage import Root

GOAL_S, GOAL_GIB, GOAL_RATIO = 10.0, 1.5, 1.3
SMALL, LARGE = 1_000_000, 100_000_000
LATE_STEP = 1_000_000
SITES_PER_WELL, WELLS_PER_PLATE, PLATES_PER_BATCH = 4, 384, 125
GENES, GUIDES = 17_000, 6
GLOBAL_BATCH = 2048
REPEATS = 5
BATCHES_COMPARED = 20
_SLAB_PLATES = 500


def write_index(rows: int, out: Path) -> Path:
    """Writes an index of `rows` sites: wells of random genes on plates of experimental batches."""
    if out.exists():
        return out
    classes = pa.array(sorted(f"gene{g:05d}" for g in range(GENES)) + ["negative_control"])
    part = out.with_suffix(".making")
    per_plate = SITES_PER_WELL * WELLS_PER_PLATE
    with IndexWriter(part, Root(str(out.parent)), classes=classes) as writer:
        for plate in range(0, -(-rows // per_plate), _SLAB_PLATES):
            slab = _slab(plate, _SLAB_PLATES, classes)
            writer.write(slab.slice(0, min(slab.num_rows, rows - plate * per_plate)))
            print(f"\r{out.name}: {plate * per_plate:,} of {rows:,} rows", end="", flush=True)
    print()
    part.rename(out)
    return out


def _slab(first_plate: int, plates: int, classes: pa.Array) -> pa.Table:
    rng = np.random.default_rng(first_plate)
    wells = plates * WELLS_PER_PLATE
    count = wells * SITES_PER_WELL
    plate = first_plate + np.arange(wells) // WELLS_PER_PLATE
    number = np.arange(wells) % WELLS_PER_PLATE
    gene = rng.integers(0, GENES, wells)
    control = number % 24 == 0
    name = np.where(control, GENES, gene)
    each = np.repeat(np.arange(wells), SITES_PER_WELL)
    texts = {
        "experimental_batch": _texts("batch{:05d}", plate // PLATES_PER_BATCH),
        "plate": _texts("plate{:06d}", plate),
        "well": _texts("w{:03d}", number),
        "gene": classes.take(name),
        "guide": _texts("guide{}", gene % GUIDES),
    }
    columns = {key: column.take(pa.array(each)) for key, column in texts.items()}
    site = pa.array(np.tile(np.arange(SITES_PER_WELL, dtype=np.int32), wells))
    site_id = pa.compute.binary_join_element_wise(
        columns["plate"], columns["well"], site.cast(pa.string()), "_"
    )
    paths = pa.compute.binary_join_element_wise(columns["experimental_batch"], site_id, "/")
    lists = np.arange(count + 1, dtype=np.int32)
    channels = pa.array([[f"channel{i}" for i in range(6)]])
    nothing = pa.nulls(count, pa.string())
    return pa.table(
        {
            **columns,
            "site_id": site_id,
            "site": site,
            "perturbation": columns["gene"],
            "perturbation_type": pa.array(["crispr"]).take(pa.array(np.zeros(count, np.int64))),
            "compound": nothing,
            "concentration": pa.nulls(count, pa.float64()),
            "negative_control": pa.array(control[each]),
            "cell_type": nothing,
            "pixel_size_um": pa.nulls(count, pa.float64()),
            "paths": pa.ListArray.from_arrays(lists, paths),
            "channels": channels.take(pa.array(np.zeros(count, np.int64))),
            "height_px": pa.array(np.full(count, 2048, np.int32)),
            "width_px": pa.array(np.full(count, 2048, np.int32)),
            "dtype": pa.array(["uint8"]).take(pa.array(np.zeros(count, np.int64))),
        }
    )


def _texts(form: str, numbers: np.ndarray) -> pa.Array:
    values, inverse = np.unique(numbers, return_inverse=True)
    return pa.array([form.format(v) for v in values.tolist()]).take(pa.array(inverse))


def first_batch(path: str, step: int, fraction: float) -> None:
    """What a fresh process does: opens the index, names every crop of one global batch."""
    started = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]) / 100
    cutter = CropCutter(index_path=path, crops=_crops(path, fraction), seed=0)
    opened = _opened(cutter)
    rows = [opened.row(int(site)) for site in opened.plan.batch(step).site]
    status = Path("/proc/self/status").read_text()
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    took = time.clock_gettime(time.CLOCK_BOOTTIME)
    print(
        json.dumps(
            {
                "batch_s": took - started,
                "peak_gib": int(peak.split()[1]) / 2**20,
                "last": rows[-1].paths[0],
            }
        )
    )


def _crops(path: str, fraction: float) -> Crops:
    rows = ScreenIndex.open(path).num_sites * fraction
    passes = int(np.ceil(1.1 * LATE_STEP * GLOBAL_BATCH / rows))
    return Crops(size_px=256, passes=passes, data_fraction=fraction, global_batch_size=GLOBAL_BATCH)


def _measured(paths: list[Path], step: int, fraction: float = 1.0) -> list[dict[str, float]]:
    """Medians of some processes for each index, the indexes taking turns."""
    runs: dict[Path, list[dict[str, float]]] = {path: [] for path in paths}
    for _ in range(REPEATS):
        for path in paths:
            command = [sys.executable, "-m", "benchmarks.index", "--first-batch", str(path)]
            command += ["--step", str(step), "--fraction", str(fraction)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            runs[path].append(json.loads(done.stdout))
    names = ("batch_s", "peak_gib")
    return [
        {name: statistics.median(run[name] for run in runs[path]) for name in names}
        for path in paths
    ]


def measure(folder: Path, rows: int) -> list[Figure]:
    """Times first batches of both indexes and compares shuffles."""
    small = write_index(SMALL, folder / f"index-{SMALL}.parquet")
    large = write_index(rows, folder / f"index-{rows}.parquet")
    figures: list[Figure] = []
    for step in (0, LATE_STEP):
        one, many = _measured([small, large], step)
        name = f"first batch from step {step:,}"
        figures += [
            figure(f"{name}, {rows:,} rows", many["batch_s"], "s", GOAL_S, at_most=True),
            figure(f"{name}, 1,000,000 rows", one["batch_s"], "s"),
            figure(
                f"{name}, ratio", many["batch_s"] / one["batch_s"], "", GOAL_RATIO, at_most=True
            ),
            figure(f"memory at {name}", many["peak_gib"], "GiB", GOAL_GIB, at_most=True),
            figure(f"memory at {name}, 1,000,000 rows", one["peak_gib"], "GiB"),
            figure(
                f"memory at {name}, ratio",
                many["peak_gib"] / one["peak_gib"],
                "",
                GOAL_RATIO,
                at_most=True,
            ),
        ]
    (tenth,) = _measured([large], 0, fraction=0.1)
    figures.append(figure("first batch of a tenth of the wells", tenth["batch_s"], "s"))
    figures.append(figure("memory at first batch of a tenth", tenth["peak_gib"], "GiB"))
    return figures + shuffle_quality(small) + shuffle_quality(large)


def shuffle_quality(path: Path) -> list[Figure]:
    """Distinct experimental batches and perturbations in a global batch, against a full shuffle."""
    index = ScreenIndex.open(str(path))
    opened = _opened(CropCutter(index_path=str(path), crops=_crops(str(path), 1.0), seed=0))
    batches = index.plates["experimental_batch"].factorize()[0]
    first_rows = index.plates["first_row"].to_numpy()
    steps = np.linspace(0, opened.plan.steps - 1, BATCHES_COMPARED).astype(int)
    rng = np.random.default_rng(0)
    ours = np.stack([opened.plan.batch(int(step)).site for step in steps])
    full = rng.integers(0, index.num_sites, ours.shape)
    counts = {}
    for name, sites in (("plan", ours), ("full", full)):
        plates = np.searchsorted(first_rows, sites, side="right") - 1
        labels = np.array([[opened.row(int(s)).label for s in row] for row in sites[:4]])
        counts[name] = (_distinct(batches[plates]), _distinct(labels))
    rows = f"{index.num_sites:,} rows"
    total = len(set(batches.tolist()))
    return [
        figure(f"experimental batches per global batch, of {total}, {rows}", counts["plan"][0], ""),
        figure(f"the same in a full shuffle, {rows}", counts["full"][0], ""),
        figure(f"perturbations per global batch, {rows}", counts["plan"][1], ""),
        figure(f"perturbations in a full shuffle, {rows}", counts["full"][1], ""),
    ]


def _distinct(rows: np.ndarray) -> float:
    return float(np.mean([len(np.unique(row)) for row in rows]))


def main() -> None:
    """Measures and publishes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=LARGE, help="rows of the large index")
    parser.add_argument("--folder", type=Path, help="where the indexes are kept for the next time")
    parser.add_argument("--json", type=Path, help="file for the same figures")
    parser.add_argument("--first-batch", metavar="INDEX", help=argparse.SUPPRESS)
    parser.add_argument("--step", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--fraction", type=float, default=1.0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.first_batch:
        first_batch(arguments.first_batch, arguments.step, arguments.fraction)
        return
    with tempfile.TemporaryDirectory() as folder:
        place = arguments.folder or Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        publish(measure(place, arguments.rows), arguments.json)


if __name__ == "__main__":
    main()
