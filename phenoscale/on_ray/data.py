"""Ray Data under the plan: one ordered stream of crops per worker.

The rows of a dataset are pieces of the plan, some steps of the worker's lanes; reading, decoding
and cutting happen in its tasks. Ray's own splitting of a dataset among workers gives no fixed order
across workers and no way to resume, the plan gives both.

A stream is a chain of short datasets, each materialized in the object store while the one before is
being trained on: so the store holds two of them a stream and no more. One long dataset would not
do: while its consumer is slower than its readers, Ray Data's executor spins in the consumer's
process and takes half of a core from it (ray 2.60). Within a dataset one task yields many blocks,
for a task costs as much CPU as moving a hundred crops, and a batch is a view of its block.

The tasks run inside the placement group of their trial, in the bundle that it keeps for them. So
the trial holds all that it needs from its start, and data never asks a cluster for nodes: left to
itself, Ray Data does (ray 2.60), for as long as its tasks are busy (ray-project/ray issue 45331).

Pixels that need no decoding are not sent at all: the worker copies them out of a mapped store.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator

import numpy as np
import ray.data
from ray.util.placement_group import PlacementGroup, get_current_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from phenoscale.ahead import ahead
from phenoscale.config import Readers
from phenoscale.crops import Plan
from phenoscale.memory import keep_freed_memory
from phenoscale.screens.cutter import Batch, CropCutter, chapters

READER_CPUS = 1  # of Ray's count; see `start_ray`
_BLOCK_BYTES = 24 * 2**20  # below glibc's limit for memory that is kept and used again
_SEGMENT_BYTES = 384 * 2**20  # two segments of each stream are in the object store at once


def settle_helpers() -> None:
    """Starts, in the driver, the two actors that Ray Data keeps one of per cluster.

    They stay where they are first asked for, for as long as the cluster lives. Left to the first
    trial that is its node, which then is never idle and never goes (ray 2.60); a driver's is the
    head. These calls are Ray's own and private, pinned by a test.
    """
    from ray.data._internal.cluster_autoscaler import get_or_create_autoscaling_coordinator
    from ray.data._internal.stats import get_or_create_stats_actor

    get_or_create_autoscaling_coordinator()
    get_or_create_stats_actor()


def crop_stream(
    cutter: CropCutter,
    first: int,
    last: int,
    rank: int = 0,
    world: int = 1,
    readers: Readers | None = None,
    group: PlacementGroup | None = None,
) -> Iterator[Batch]:
    """Batches of steps `first` to `last` - 1 for one worker, in order, cut ahead of it.

    Ray tasks cut, and send what they cut. A mapped store (`CropCutter.is_mapped`) is cut by threads
    of this process instead, unless `readers` names the nodes that are to do it.

    Args:
        cutter: of the trial's crops.
        first: the first step.
        last: the step to end before.
        rank: of the worker.
        world: number of workers.
        readers: who cuts; one task by default.
        group: the trial's placement group, whose bundle 1 + `rank` the tasks run in. By default the
            one that this process is in. Where there is none, Ray runs them wherever it likes.

    Yields:
        As `CropCutter.stream`; views that must not be written to.
    """
    lanes, readers = cutter.plan.lanes(rank, world), readers or Readers()
    here = readers.resource is None and cutter.is_mapped
    if here:
        yield from cut_by_threads(cutter, first, last, lanes, readers)
        return
    bundle = _bundle(group or get_current_placement_group(), rank, world)
    yield from cut_by_tasks(cutter, first, last, lanes, readers, bundle)


def _bundle(
    group: PlacementGroup | None, rank: int, world: int
) -> PlacementGroupSchedulingStrategy | None:
    """The readers' bundle of one worker, where the group is a trial's.

    A worker of Ray Train is in a group too, its own, which has no bundle beyond the workers'.
    """
    if group is None or group.bundle_count <= world:
        return None
    return PlacementGroupSchedulingStrategy(group, 1 + rank)


def cut_by_threads(
    cutter: CropCutter, first: int, last: int, lanes: range, readers: Readers
) -> Iterator[Batch]:
    """The batches of `crop_stream`, cut by `readers.at_once` threads of this process."""
    step_bytes = len(lanes) * cutter.crop_bytes
    steps = _block_steps(step_bytes)
    if cutter.plan.chapter_steps * step_bytes <= _SEGMENT_BYTES:
        pieces = chapters(cutter.plan, first, last, at_least=steps)
    else:  # each site is then looked up for every crop
        pieces = ((step, step + 1) for step in range(first, last))

    def cut(piece: tuple[int, int]) -> list[Batch]:
        return list(cutter.blocks(*piece, lanes, steps))

    yield from _steps_of(ahead(cut, pieces, readers.at_once, spare=0))


def cut_by_tasks(
    cutter: CropCutter,
    first: int,
    last: int,
    lanes: range,
    readers: Readers,
    bundle: PlacementGroupSchedulingStrategy | None = None,
) -> Iterator[Batch]:
    """The batches of `crop_stream`, cut by `readers.at_once` tasks of Ray Data and sent here."""

    def cut(segment: list[tuple[int, int]]) -> list[Batch]:
        return _cut_in_tasks(cutter, lanes, segment, readers, bundle)

    segments = _segments(cutter.plan, first, last, len(lanes) * cutter.crop_bytes)
    yield from _steps_of(ahead(cut, segments, 1, spare=0))


def _steps_of(pieces: Iterator[list[Batch]]) -> Iterator[Batch]:
    for blocks in pieces:
        for block in blocks:
            for step in range(len(block["crops"])):
                yield {name: x[step] for name, x in block.items()}


def _segments(plan: Plan, first: int, last: int, step_bytes: int) -> list[list[tuple[int, int]]]:
    """The steps of a stream in order: segments of chapters, or of steps enough for a block.

    Segments grow, the first one is as short as can be, so that training begins at once.
    """
    segments: list[list[tuple[int, int]]] = []
    room = 0
    for begin, end in chapters(plan, first, last, at_least=_block_steps(step_bytes)):
        if room < (end - begin) * step_bytes:
            room = min(_BLOCK_BYTES * 4 ** len(segments), _SEGMENT_BYTES)
            segments.append([])
        room -= (end - begin) * step_bytes
        segments[-1].append((begin, end))
    return segments


def _block_steps(step_bytes: int) -> int:
    return max(1, _BLOCK_BYTES // step_bytes)


def _cut_in_tasks(
    cutter: CropCutter,
    lanes: range,
    segment: list[tuple[int, int]],
    readers: Readers,
    bundle: PlacementGroupSchedulingStrategy | None,
) -> list[Batch]:
    """The crops of a segment, some steps to a block: views of the object store."""
    tasks = min(readers.at_once, len(segment))
    steps = _block_steps(len(lanes) * cutter.crop_bytes)

    def cut(rows: dict[str, np.ndarray]) -> Iterator[Batch]:
        keep_freed_memory()
        task = int(rows["id"][0])
        for begin, end in segment[
            task * len(segment) // tasks : (task + 1) * len(segment) // tasks
        ]:
            for block in cutter.blocks(begin, end, lanes, steps):
                yield {name: x[None] for name, x in block.items()}  # one row

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    with ray.data.DataContext.current(_context(bundle)):
        dataset = ray.data.range(tasks, override_num_blocks=tasks).map_batches(
            cut,
            batch_size=1,
            num_cpus=READER_CPUS,
            concurrency=tasks,
            **({"resources": {readers.resource: READER_CPUS}} if readers.resource else {}),
        )
    dataset.context.execution_options.preserve_order = True
    dataset.context.target_max_block_size = 1  # so that every row is a block of its own
    rows = dataset.iter_batches(batch_size=None, prefetch_batches=0)
    return [{name: x[0] for name, x in row.items()} for row in rows]


def _context(bundle: PlacementGroupSchedulingStrategy | None) -> ray.data.DataContext:
    """Settings of Ray Data whose tasks, all of them, run in the bundle."""
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    if bundle is not None:
        # Both, for then Ray Data takes the group as what there is, and asks for no more.
        with warnings.catch_warnings(category=DeprecationWarning, action="ignore"):
            context.scheduling_strategy = bundle
            context.scheduling_strategy_large_args = bundle
    return context
