"""Ray Data under the plan: one ordered stream of crops per worker.

The rows of a dataset are pieces of the plan, some steps of some lanes; reading, decoding and
cutting happen in its tasks. Ray's own splitting of a dataset among workers gives no fixed order
across workers and no way to resume, the plan gives both.

A stream is a chain of short datasets, each materialized in the object store while the one before is
being trained on: so the store holds two of them a stream and no more. One long dataset would not
do: while its consumer is slower than its readers, Ray Data's executor spins in the consumer's
process and takes half of a core from it (ray 2.60). Within a dataset one task yields many blocks,
for a task costs as much CPU as moving a hundred crops, and a batch is a view of its block.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import ray.data

from phenoscale.config import Readers
from phenoscale.crops import Plan
from phenoscale.screens.cutter import Batch, CropCutter, chapters

READER_CPUS = 1  # of Ray's count; see `start_ray`
_PIECE_BYTES = 24 * 2**20  # below glibc's limit for memory that is kept and used again
_SEGMENT_BYTES = 384 * 2**20  # two segments of each stream are in the object store at once


class _Piece(NamedTuple):
    """What one task cuts: steps `first` to `last` - 1 of some lanes."""

    first: int
    last: int
    lanes: range


def crop_stream(
    cutter: CropCutter,
    first: int,
    last: int,
    rank: int = 0,
    world: int = 1,
    readers: Readers | None = None,
) -> Iterator[Batch]:
    """Batches of steps `first` to `last` - 1 for one worker, in order, cut ahead in Ray tasks.

    Yields:
        As `CropCutter.stream`; the crops may be read-only views of the object store.
    """
    readers = readers or Readers()
    lanes = cutter.plan.lanes(rank, world)
    segments = _segments(cutter.plan, first, last, lanes, cutter.crop_bytes)
    with ThreadPoolExecutor(max_workers=1) as ahead:
        coming = [ahead.submit(_cut_ahead, cutter, pieces, readers) for pieces in segments[:1]]
        for number, pieces in enumerate(segments):
            ready = coming.pop().result()
            if number + 1 < len(segments):
                coming.append(ahead.submit(_cut_ahead, cutter, segments[number + 1], readers))
            blocks = iter(ready.iter_batches(batch_size=None, prefetch_batches=0))
            for same_steps in _by_steps(pieces):
                yield from _joined([next(blocks) for _ in same_steps])


def _segments(
    plan: Plan, first: int, last: int, lanes: range, crop_bytes: int
) -> list[list[_Piece]]:
    """The pieces of a stream, in order; the pieces of the same steps stay in one segment.

    Segments grow, the first one is as short as can be, so that training begins at once.
    """
    step_bytes = len(lanes) * crop_bytes
    segments: list[list[_Piece]] = []
    room = 0
    for begin, end in chapters(plan, first, last, at_least=max(1, _PIECE_BYTES // step_bytes)):
        if room < (end - begin) * step_bytes:
            room = min(_PIECE_BYTES * 4 ** len(segments), _SEGMENT_BYTES)
            segments.append([])
        room -= (end - begin) * step_bytes
        # A chapter's steps belong together, so a long one is cut by lanes.
        lanes_each = max(1, min(len(lanes), _PIECE_BYTES // ((end - begin) * crop_bytes)))
        for lane in range(0, len(lanes), lanes_each):
            segments[-1].append(_Piece(begin, end, lanes[lane : lane + lanes_each]))
    return segments


def _by_steps(pieces: list[_Piece]) -> Iterator[list[_Piece]]:
    for first in dict.fromkeys(piece.first for piece in pieces):
        yield [piece for piece in pieces if piece.first == first]


def _joined(blocks: list[Batch]) -> Iterator[Batch]:
    """The batches of some steps out of the blocks of their lanes: views where one block has all."""
    for step in range(blocks[0]["crops"].shape[1]):
        if len(blocks) == 1:
            yield {name: x[0, step] for name, x in blocks[0].items()}
        else:
            yield {name: np.concatenate([b[name][0, step] for b in blocks]) for name in blocks[0]}


def _cut_ahead(
    cutter: CropCutter, pieces: list[_Piece], readers: Readers
) -> ray.data.MaterializedDataset:
    """The crops of some pieces, a block each, in the object store."""
    tasks = min(readers.at_once, len(pieces))

    def cut(rows: dict[str, np.ndarray]) -> Iterator[Batch]:
        task = int(rows["id"][0])
        for piece in pieces[task * len(pieces) // tasks : (task + 1) * len(pieces) // tasks]:
            yield {name: x[None] for name, x in cutter.cut(*piece).items()}  # one row

    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    dataset = ray.data.range(tasks, override_num_blocks=tasks).map_batches(
        cut,
        batch_size=1,
        num_cpus=READER_CPUS,
        concurrency=tasks,
        **({"resources": {readers.resource: READER_CPUS}} if readers.resource else {}),
    )
    dataset.context.execution_options.preserve_order = True
    dataset.context.target_max_block_size = 1  # so that every row is a block of its own
    return dataset.materialize()
