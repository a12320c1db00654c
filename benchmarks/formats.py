"""Which container and codec a packed store should have: measured side by side, in one run.

Command: python -m benchmarks.formats [--data FOLDER] [--quick] [--json FILE]

Every case holds the same sites and cuts the same random windows, one site a crop, from files that
the system has in memory: what is compared is the processor's work, beside the bytes that must be
fetched. Cases take turns within each repeat, so that a busy machine disturbs all of them alike.
docs/packed_store.md tells what was chosen.
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import tifffile

from benchmarks.figures import Figure, figure, publish
from benchmarks.formats_containers import (
    NAME,
    arrow_ipc,
    lance_rows,
    our_shards,
    parquet,
    zarr_shards,
)
from phenoscale.screens.packed.reader import fetch
from phenoscale.screens.packed.shards import DECODERS
from phenoscale.screens.simulated.cells import LATENT_NAMES, rng_for
from phenoscale.screens.simulated.render import draw_nuisance, render_site
from phenoscale.screens.simulated.synthetic import ScreenSpec
from phenoscale.screens.storage import Root

GOAL_DECODING_SHARE = 0.6
TILES = (64, 96, 128, 256)
CODECS = ("none", "lz4", "lz4+bitshuffle", "zstd1", "zstd2", "zstd3", "zstd+bitshuffle")
CHOSEN = (64, "lz4+bitshuffle")
CROP_PX, OTHER_CROPS_PX = 256, (64, 128)
SITES, CROPS, REPEATS = 4, 60, 7

Cutter = Callable[[int, int, int, int], np.ndarray]
"""Site, top, left and side to the crop, uint8 (C, s, s)."""


class Case:
    """A way to store the sites, opened, with what its crops cost."""

    def __init__(self, name: str, cut: Cutter, stored: float, write: float) -> None:
        self.name, self.cut, self.stored, self.write = name, cut, stored, write
        self.cpu_us: dict[int, list[float]] = {}

    def median_us(self, size_px: int) -> float:
        """CPU microseconds per crop."""
        return statistics.median(self.cpu_us[size_px])


def real_sites(data: Path) -> np.ndarray:
    """Cell Painting, 6 x 1080 x 1080: one site between the 0.1 and 99.9 percentiles, and turned."""
    folder = data / "pediatric_atlas_br00143976"
    files = sorted(folder.glob("r03c03f03p01-ch*.tiff"))
    planes = []
    for deep in map(tifffile.imread, files):
        low, high = np.percentile(deep, (0.1, 99.9))
        scaled = np.round((deep - low) / (high - low) * 255)
        planes.append(np.clip(scaled, 0, 255).astype(np.uint8))
    site = np.stack(planes)
    return np.stack([np.rot90(site, turn, axes=(1, 2)) for turn in range(SITES)])


def simulated_sites(size_px: int = 512) -> np.ndarray:
    """Sites of the simulated screen."""
    nuisance = ScreenSpec().nuisance
    return np.stack(
        [
            render_site(
                np.zeros(len(LATENT_NAMES)),
                draw_nuisance(0, nuisance, "batch1", "plate1", str(i)),
                size_px,
                rng_for(0, str(i)),
            )
            for i in range(SITES)
        ]
    )


def windows(sites: np.ndarray, count: int, size_px: int) -> list[tuple[int, int, int, int]]:
    """Random site, top, left of crops, and their side."""
    rng = np.random.default_rng(size_px)
    room = sites.shape[2] - size_px + 1
    corners = rng.integers(0, room, (count, 2)).tolist()
    return [(i % len(sites), top, left, size_px) for i, (top, left) in enumerate(corners)]


def cases(sites: np.ndarray, folder: Path, quick: bool) -> Iterator[Case]:
    """Writes the sites in every way."""

    def made(name: str, write: Callable[[Path], Cutter]) -> Case:
        place = folder / name.replace(" ", "_")
        place.mkdir()
        began = time.process_time()
        cut = write(place)
        spent = time.process_time() - began
        stored = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
        return Case(name, cut, stored / sites.nbytes, sites.nbytes / 1e6 / spent)

    for tile in TILES[:1] if quick else TILES:
        for codec in CODECS:
            write = functools.partial(zarr_shards, sites, tile=tile, codec=codec, own_reader=True)
            yield made(f"shards, tile {tile}, {codec}", write)
    tile, codec = CHOSEN
    yield made("shards of our writer, blosc", lambda place: our_shards(sites, place))
    yield made("shards of our writer, raw", lambda place: our_shards(sites, place, raw=True))
    yield made(
        "shards by zarr-python",
        lambda place: zarr_shards(sites, place, tile=tile, codec=codec, own_reader=False),
    )
    yield made("Parquet, a row per tile", lambda place: parquet(sites, place, tile))
    yield made("Arrow IPC, a row per tile", lambda place: arrow_ipc(sites, place, tile))
    yield made("Lance, a row per tile", lambda place: lance_rows(sites, place, tile))


def run(kind: str, sites: np.ndarray, quick: bool) -> list[Figure]:
    """Measures all cases on one kind of images."""
    with tempfile.TemporaryDirectory() as folder:
        opened = list(cases(sites, Path(folder), quick))
        for size_px in (CROP_PX, *OTHER_CROPS_PX):
            at = windows(sites, CROPS, size_px)
            for case in opened:
                for site, top, left, _ in at:
                    expected = sites[site, :, top : top + size_px, left : left + size_px]
                    if not np.array_equal(case.cut(site, top, left, size_px), expected):
                        raise AssertionError(f"{case.name} does not give back what was stored")
            for _ in range(2 if quick else REPEATS):
                for case in opened:
                    began = time.process_time()
                    for window in at:
                        case.cut(*window)
                    spent = (time.process_time() - began) / len(at)
                    case.cpu_us.setdefault(size_px, []).append(spent * 1e6)
        alone = _decoding_alone(sites, Path(folder), 2 if quick else REPEATS)
    return [
        *(figure(f"{kind}, {c.name}", c.stored, "bytes/raw byte") for c in opened),
        *(figure(f"{kind}, {c.name}", c.write, "MB/s written") for c in opened),
        *(
            figure(f"{kind}, {name}", median_us, f"us/{size} px crop")
            for size in (CROP_PX, *OTHER_CROPS_PX)
            for median_us, name in sorted((c.median_us(size), c.name) for c in opened)
        ),
        figure(
            f"{kind}, speed of our reader over that of decoding alone",
            alone,
            "ratio",
            GOAL_DECODING_SHARE,
        ),
    ]


def _decoding_alone(sites: np.ndarray, folder: Path, repeats: int) -> float:
    """Median over pairs: codec calls on the tiles of the windows, over the reader's whole work."""
    place = folder / "alone"
    place.mkdir()
    cut = our_shards(sites, place)
    at = windows(sites, CROPS, CROP_PX)
    tiles = [
        tile
        for site, top, left, size in at
        for tile in fetch(Root.of(place), NAME, site, [(top, left)], size).tiles
    ]
    out = np.empty(sites.shape[1] * CHOSEN[0] ** 2, dtype=np.uint8)
    decode, ratios = DECODERS["blosc"], []
    for _ in range(repeats):
        began = time.process_time()
        for tile in tiles:
            decode(tile, out=out)
        between = time.process_time()
        for window in at:
            cut(*window)
        ratios.append((between - began) / (time.process_time() - between))
    return statistics.median(ratios)


def main() -> None:
    """Reads the arguments, measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    default = os.environ.get("PHENOSCALE_DATA")
    parser.add_argument("--data", type=Path, default=default, help="folder of the real data sets")
    parser.add_argument("--quick", action="store_true", help="one tile size, two repeats")
    parser.add_argument("--json", type=Path, help="file for the same figures")
    arguments = parser.parse_args()
    kinds = {"simulated": simulated_sites()}
    if arguments.data is not None:
        kinds = {"real": real_sites(arguments.data), **kinds}
    figures = [f for kind, sites in kinds.items() for f in run(kind, sites, arguments.quick)]
    publish(figures, arguments.json)


if __name__ == "__main__":
    main()
