"""Ray Data under the plan: one ordered stream of crops per worker, one of sites for embedding.

The rows of the dataset are step numbers; reading, decoding and cutting happen in its tasks. Ray's own
splitting of a dataset among workers gives no fixed order across workers and no way to resume, the plan
gives both.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator

import numpy as np
import ray
import ray.data

from phenoscale.screens.cutter import Batch, CropCutter, SiteReader

READER_CPUS = (
    0.25  # per data task; trials hold less than a core each, so that readers always fit beside
)
STEPS_PER_BLOCK = 8
SITES_PER_BLOCK = 64
SITES_PER_BATCH = 16
_OBJECT_STORE_BYTES = 200 * 2**20  # per stream; a slow consumer must not fill the store of its node


def crop_stream(
    cutter: CropCutter, first: int, last: int, rank: int = 0, world: int = 1
) -> Iterator[Batch]:
    """Batches of the steps `first` to `last` - 1 for one worker, in order, cut ahead in Ray tasks."""
    share = cutter.plan.global_batch_size // world

    def cut(steps: dict[str, np.ndarray]) -> Batch:
        return cutter.cut(first + int(steps["id"][0]), rank, world)

    blocks = math.ceil((last - first) / STEPS_PER_BLOCK)
    _quiet()
    dataset = ray.data.range(last - first, override_num_blocks=blocks).map_batches(
        cut, batch_size=1, num_cpus=READER_CPUS, concurrency=1
    )
    return _iterate(dataset, share)


def site_stream(reader: SiteReader) -> Iterator[Batch]:
    """All sites in the index's order, read ahead in Ray tasks."""
    num_sites = reader.num_sites

    def read(starts: dict[str, np.ndarray]) -> Batch:
        first = int(starts["id"][0]) * SITES_PER_BATCH
        return reader.read(first, min(first + SITES_PER_BATCH, num_sites))

    batches = math.ceil(num_sites / SITES_PER_BATCH)
    blocks = math.ceil(num_sites / SITES_PER_BLOCK)
    _quiet()
    dataset = ray.data.range(batches, override_num_blocks=blocks).map_batches(
        read, batch_size=1, num_cpus=READER_CPUS, concurrency=1
    )
    return _iterate(dataset, SITES_PER_BATCH)


def _iterate(dataset: ray.data.Dataset, batch_size: int) -> Iterator[Batch]:
    options = dataset.context.execution_options
    options.preserve_order = True
    options.resource_limits = ray.data.ExecutionResources.for_limits(
        object_store_memory=_OBJECT_STORE_BYTES
    )
    for batch in dataset.iter_batches(batch_size=batch_size, prefetch_batches=2):
        # torch warns of arrays that it may not write to, and a view of a block is one.
        yield {name: x if x.flags.writeable else x.copy() for name, x in batch.items()}


def _quiet() -> None:
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
