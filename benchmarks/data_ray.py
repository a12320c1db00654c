"""The ways through Ray Data: ours, and the plain pipeline of one step to a block, rebatched.

The plain one cuts the same packed crops with our own reader, as many to a read, so what it costs
beyond our path is the pipeline alone.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import ray.data

from benchmarks.data_ours import cutter, packed_index, raw_index
from benchmarks.data_peers import Job, Run
from phenoscale.config import Readers
from phenoscale.on_ray.data import crop_stream, cut_by_tasks
from phenoscale.on_ray.start import start_ray
from phenoscale.parallel import prepare_process
from phenoscale.screens.cutter import CropCutter
from phenoscale.screens.images.readers import read_windows
from phenoscale.screens.index import ScreenIndex

Pixels = npt.NDArray[np.uint8]


def files_on_ray(job: Job) -> Run:
    """Our path over the files."""
    return _ours(cutter(job.case, raw_index(job.folder), packed=False))


def packed_on_ray(job: Job) -> Run:
    """Our path over the packed store, which a worker maps and cuts itself."""
    return _ours(cutter(job.case, packed_index(job.folder), packed=True))


def packed_sent(job: Job) -> Run:
    """The packed store cut by tasks that send the crops, as nodes of readers do."""
    _start()
    crops = cutter(job.case, packed_index(job.folder), packed=True)
    lanes = crops.plan.lanes(rank=0, world=1)
    return lambda: (
        batch["crops"] for batch in cut_by_tasks(crops, 0, crops.plan.steps, lanes, Readers())
    )


def _ours(crops: CropCutter) -> Run:
    _start()
    return lambda: (batch["crops"] for batch in crop_stream(crops, 0, crops.plan.steps))


def _start() -> None:
    prepare_process(threads=1)  # as a trial's process is
    if not ray.is_initialized():
        start_ray()


def plain_ray(job: Job) -> Run:
    """Steps are rows; a task cuts one; the consumer asks for batches of 64 crops."""
    _start()
    location, size = str(packed_index(job.folder)), job.case.crop_px
    batches = job.reads.batches(job.case.global_batch)

    def cut(steps: dict[str, Pixels]) -> dict[str, Pixels]:
        return {"crops": _cut(location, job, batches[int(steps["id"][0])])}

    def run() -> Iterator[Pixels]:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.execution_options.preserve_order = True
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        steps = ray.data.range(len(batches), override_num_blocks=len(batches))
        crops = steps.map_batches(cut, batch_size=1)
        for batch in crops.iter_batches(batch_size=job.case.global_batch, prefetch_batches=2):
            yield batch["crops"].reshape(-1, job.case.channels, size, size)

    return run


def _cut(location: str, job: Job, numbers: npt.NDArray[np.int64]) -> Pixels:
    """Crops (B, C, s, s) of some reads, from the packed store."""
    index, paths = _opened(location)
    case, reads, k = job.case, job.reads, job.reads.top.shape[1]
    out = np.empty(job.empty(len(numbers)), np.uint8)
    for i, number in enumerate(numbers):
        corners = np.stack([reads.top[number], reads.left[number]], axis=1)
        out[i * k : (i + 1) * k] = read_windows(
            index.root, paths[reads.site[number]], case.names, case.names, corners, case.crop_px
        )
    return out


@functools.lru_cache(maxsize=2)
def _opened(location: str) -> tuple[ScreenIndex, list[list[str]]]:
    index = ScreenIndex.open(location)
    return index, index.take(range(index.num_sites))["paths"].to_pylist()
