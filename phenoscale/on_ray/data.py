"""Ray Data under the plan: one ordered stream of crops per worker.

The rows of a dataset are step numbers; reading, decoding and cutting happen in its tasks. Ray's own
splitting of a dataset among workers gives no fixed order across workers and no way to resume, the
plan gives both.

A stream is a chain of short datasets, each materialized in the object store while the one before is
being trained on. One long dataset would not do: while its consumer is slower than its readers, Ray
Data's executor spins in the consumer's process and takes half of a core from it (ray 2.60).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import ray.data

from phenoscale.screens.cutter import Batch, CropCutter

READER_CPUS = 1  # of Ray's count; see `start_ray`
_STEPS_PER_BLOCK = 8  # of a fifth of the cost per crop of one step per block
_SEGMENT_BYTES = 96 * 2**20  # two segments of each stream are in the object store at once


def crop_stream(
    cutter: CropCutter, first: int, last: int, rank: int = 0, world: int = 1
) -> Iterator[Batch]:
    """Batches of steps `first` to `last` - 1 for one worker, in order, cut ahead in Ray tasks."""
    share = cutter.plan.global_batch_size // world
    length = max(1, _SEGMENT_BYTES // (share * cutter.crop_bytes))
    starts = range(first, last, length)
    with ThreadPoolExecutor(max_workers=1) as ahead:
        coming = [ahead.submit(_segment, cutter, first, min(first + length, last), rank, world)]
        for start in starts:
            ready = coming.pop().result()
            if start + length < last:
                after = min(start + 2 * length, last)
                coming.append(ahead.submit(_segment, cutter, start + length, after, rank, world))
            for batch in ready.iter_batches(batch_size=share, prefetch_batches=0):
                # torch warns of arrays that it may not write to, and a view of a block is one.
                yield {name: x if x.flags.writeable else x.copy() for name, x in batch.items()}


def _segment(
    cutter: CropCutter, first: int, last: int, rank: int, world: int
) -> ray.data.MaterializedDataset:
    """The steps `first` to `last` - 1 of one worker, in the object store."""

    def cut(steps: dict[str, np.ndarray]) -> Batch:
        return cutter.cut(first + int(steps["id"][0]), rank, world)

    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    blocks = math.ceil((last - first) / _STEPS_PER_BLOCK)
    dataset = ray.data.range(last - first, override_num_blocks=blocks).map_batches(
        cut, batch_size=1, num_cpus=READER_CPUS, concurrency=1
    )
    dataset.context.execution_options.preserve_order = True
    return dataset.materialize()
