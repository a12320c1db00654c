"""Our own ways in the data benchmark, and the codecs alone: the limit of any way.

Legend: T steps, L lanes, S sites, C channels, R reads, k crops of one read, s side of a crop.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from benchmarks.data_cases import Case, Reads, decode_file, grouped
from benchmarks.data_peers import Job, Run, cut_into
from phenoscale.config import Crops
from phenoscale.parallel import prepare_process
from phenoscale.screens.build import build_index
from phenoscale.screens.cutter import CropCutter
from phenoscale.screens.index import ScreenIndex
from phenoscale.screens.layouts.manifest import MANIFEST_SCHEMA, NEGATIVE_CONTROL
from phenoscale.screens.packed.reader import PackedTiles, fetch, read_header
from phenoscale.screens.packed.shards import DECODERS
from phenoscale.screens.storage import Root
from phenoscale.turns import turned

Pixels = npt.NDArray[np.uint8]


def raw_index(folder: Path) -> Path:
    """Index of a case's files."""
    return folder / "index.parquet"


def packed_index(folder: Path) -> Path:
    """Index of a case's packed copy."""
    return folder / "packed" / "index.parquet"


def index_files(case: Case, folder: Path) -> ScreenIndex:
    """Indexes the files of a case; sites keep their numbers as rows."""
    count = case.sites
    columns = {
        "site_id": [f"site{site:05d}" for site in range(count)],
        "experimental_batch": ["batch1"] * count,
        "plate": ["plate1"] * count,
        "well": ["A01"] * count,
        "site": list(range(count)),
        "perturbation": [NEGATIVE_CONTROL] * count,
        "perturbation_type": ["none"] * count,
        "negative_control": [True] * count,
        "paths": [
            [case.path(site, channel) for channel in range(case.channels)] for site in range(count)
        ],
        "channels": [list(case.names)] * count,
    }
    absent = {name: [None] * count for name in MANIFEST_SCHEMA.names if name not in columns}
    manifest = pa.table(columns | absent, schema=MANIFEST_SCHEMA)
    return build_index(manifest, folder / "screen", raw_index(folder))


def cutter(case: Case, index: Path, packed: bool) -> CropCutter:
    """The crops of a run, as a trial would ask for them."""
    crops = Crops(
        size_px=case.crop_px,
        passes=case.crops_per_read * case.visits(packed),
        crops_per_read=case.crops_per_read,
        global_batch_size=case.plan_batch,
    )
    return CropCutter(index_path=str(index), crops=crops, seed=0)


def planned_reads(case: Case, folder: Path, packed: bool) -> Reads:
    """The crops of our plan, grouped by the reads that serve them, for those who have no plan."""
    plan = cutter(case, raw_index(folder), packed).plan
    at = plan.crops(0, plan.steps, range(plan.global_batch_size))
    room = case.site_px - case.crop_px + 1
    reads = grouped(
        at.site.ravel(),
        (at.top * room).astype(np.int64).ravel(),
        (at.left * room).astype(np.int64).ravel(),
        case.crops_per_read,
    )
    if len(reads) != case.sites * case.visits(packed):
        raise ValueError(f"The plan of {case.name} does not visit every site equally often.")
    return reads


def files_in_process(job: Job) -> Run:
    """The files, cut in one thread: the code of the Ray Data path without Ray."""
    return _in_process(cutter(job.case, raw_index(job.folder), packed=False))


def packed_in_process(job: Job) -> Run:
    """The packed store, cut in one thread."""
    return _in_process(cutter(job.case, packed_index(job.folder), packed=True))


def _in_process(crops: CropCutter) -> Run:
    prepare_process(threads=1)  # as a trial's process is
    return lambda: (batch["crops"] for batch in crops.stream(0, crops.plan.steps))


def codec_files(job: Job) -> Run:
    """Decodes the files of every read from memory, in one thread, and does nothing else."""
    case, root = job.case, job.folder / "screen"
    files = [
        [(root / case.path(site, channel)).read_bytes() for channel in range(case.channels)]
        for site in range(case.sites)
    ]
    counted = np.empty((job.reads.top.shape[1], 0), np.uint8)  # of each read: so many crops

    def run() -> Iterator[Pixels]:
        for site in job.reads.site.tolist():
            for data in files[site]:
                decode_file(case.codec, data)
            yield counted

    return run


def codec_packed(job: Job) -> Run:
    """Decodes from memory the tiles that the crops of every read meet, each once for a read.

    A raw store has no codec: then each crop's pixels are copied in memory, into a new batch.
    """
    index = ScreenIndex.open(packed_index(job.folder))
    entries = [paths[0] for paths in index.take(range(index.num_sites))["paths"].to_pylist()]
    sites = []
    for entry in entries:
        name, _, site = entry.partition("?site=")
        sites.append(_all_tiles(index.root, name, int(site)))
    array = sites[0].array
    if array.is_raw:
        return _copying(job)
    needed = [_met(job, read, array.tile_px, array.grid[1]) for read in range(len(job.reads))]
    decode, out = DECODERS[array.codec], np.empty(array.tile_shape, np.uint8).reshape(-1)
    counted = np.empty((job.reads.top.shape[1], 0), np.uint8)

    def run() -> Iterator[Pixels]:
        for site, cells in zip(job.reads.site.tolist(), needed, strict=True):
            tiles = sites[site].tiles
            for cell in cells:
                decode(tiles[cell], out=out)
            yield counted

    return run


def _copying(job: Job) -> Run:
    sites = np.load(job.truth)
    k = job.reads.top.shape[1]

    def run() -> Iterator[Pixels]:
        for numbers in job.reads.batches(job.case.global_batch):
            out = np.empty(job.empty(len(numbers)), np.uint8)
            for i, number in enumerate(numbers.tolist()):
                cut_into(out, i * k, sites[job.reads.site[number]], job, number)
            yield out

    return run


def turns_alone(job: Job) -> Run:
    """Turns batches as a trial does on its device, here a core: the same on top of every way."""
    batches = job.reads.batches(job.case.global_batch)
    rng = np.random.default_rng(0)
    batch = torch.from_numpy(rng.integers(0, 256, job.empty(len(batches[0])), np.uint8))
    turns = torch.arange(len(batch)) % 8
    return lambda: (turned(batch, turns).numpy() for _ in batches)


def _all_tiles(root: Root, name: str, site: int) -> PackedTiles:
    """Every tile of a site, compressed, row by row."""
    header = read_header(root, name, site)
    size = min(header.height_px, header.width_px)
    # Squares at the four corners meet every tile of a site that is at most twice as long as wide.
    corners = [
        (top, left) for top in (0, header.height_px - size) for left in (0, header.width_px - size)
    ]
    return fetch(root, name, site, corners, size)


def _met(job: Job, read: int, tile_px: int, columns: int) -> list[int]:
    """Numbers of the tiles that a read's crops meet."""
    size = job.case.crop_px
    cells = {
        row * columns + column
        for top, left in np.stack([job.reads.top[read], job.reads.left[read]], axis=1).tolist()
        for row in range(top // tile_px, (top + size - 1) // tile_px + 1)
        for column in range(left // tile_px, (left + size - 1) // tile_px + 1)
    }
    return sorted(cells)
