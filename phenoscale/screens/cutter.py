"""From the plan to pixels: cuts the crops of some steps.

A cutter is a small value that a Ray task, a thread or a test calls the same way (`opened.py`).

Shapes: T steps, L lanes of one worker, C channels in the index's order, s side of a crop.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Iterator

import numpy as np

from phenoscale.config import Crops
from phenoscale.crops import CropBatch, Plan
from phenoscale.screens.errors import ImageError
from phenoscale.screens.images.readers import cut_windows, is_mapped
from phenoscale.screens.index import Rows
from phenoscale.screens.opened import (
    CACHED_GROUPS,
    BadSiteError,
    Batch,
    Row,
    complaint,
    opened_screen,
)
from phenoscale.screens.subset import Subset


@dataclasses.dataclass(frozen=True, kw_only=True)
class CropCutter:
    """Cuts a trial's crops, or the crops of its held-out plates."""

    index_path: str
    """Parquet index of the screen, a path or a URL."""
    crops: Crops
    """Which crops."""
    seed: int
    """Seed of the plan."""
    held_out: bool = False
    """Whether to cut from the held-out plates: one crop of each site, the same for every seed.

    With plate_wise sampling, of as many sites of each plate as make whole units."""

    @property
    def plan(self) -> Plan:
        """The sampling plan over this cutter's rows."""
        return _opened(self).plan

    @property
    def num_sites(self) -> int:
        """Sites that the crops come from."""
        return int(_opened(self).starts[-1])

    @property
    def rows(self) -> Rows:
        """All rows of the index that the crops come from, int64: where a list fits in memory."""
        opened = _opened(self)
        return opened.subset.rows() if opened.held_out is None else opened.held_out

    @property
    def crop_bytes(self) -> int:
        """Bytes of one crop."""
        return len(_opened(self).index.channels) * self.crops.size_px**2

    @property
    def is_mapped(self) -> bool:
        """Whether crops are copied out of mapped files, with nothing to decode or to fetch."""
        opened = _opened(self)
        return is_mapped(opened.index.root, opened.row(0).paths)

    def cut(self, first: int, last: int, lanes: range | None = None) -> Batch:
        """The crops of steps `first` to `last` - 1 in some lanes, by default in all.

        Every site is read once for all its crops among them, so whole chapters are cheapest.

        Returns:
            crops uint8 (T, L, C, s, s), not yet turned; and, all (T, L): turns int64 in [0, 8), the
            symmetry of the square that each is due on the device (`turns.py`); labels int64, number
            of the perturbation in `ScreenIndex.labels`; rows int64, rows of the index; bad int64,
            the row that was planned where it could not be read and the next one of the subset
            stands in for it, else -1; read_cpu_s float64, CPU seconds of this call shared among its
            crops.

        Raises:
            BadSiteError: if more sites one after another are unreadable than
                `crops.tolerated_bad_sites` allows in all, or a site is smaller than a crop.
        """
        lanes = range(self.plan.global_batch_size) if lanes is None else lanes
        crops = np.empty((last - first, *self._shape(len(lanes))), np.uint8)
        return {"crops": crops, **self._cut(first, last, lanes, crops)}

    def _shape(self, lanes: int) -> tuple[int, ...]:
        size = self.crops.size_px
        return lanes, len(_opened(self).index.channels), size, size

    def _cut(
        self, first: int, last: int, lanes: range, out: np.ndarray | list[np.ndarray]
    ) -> Batch:
        """Cuts into `out`, for each step (L, C, s, s), and returns all that `cut` has besides."""
        began = time.thread_time()
        opened = _opened(self)
        at = opened.plan.crops(first, last, lanes)
        shape = at.site.shape
        labels, used = np.empty(at.site.size, np.int64), np.empty(at.site.size, np.int64)
        bad = np.full(at.site.size, -1, np.int64)
        sites = at.site.ravel()
        order = np.argsort(sites, kind="stable")
        for same in np.split(order, np.flatnonzero(np.diff(sites[order])) + 1):
            targets = [out[i // shape[1]][i % shape[1]] for i in same.tolist()]
            row, planned = opened.read(int(sites[same[0]]), _part(at, same), targets)
            used[same], labels[same] = row.number, row.label
            bad[same] = -1 if planned == row.number else planned
        return {
            "turns": at.turn,
            "labels": labels.reshape(shape),
            "rows": used.reshape(shape),
            "bad": bad.reshape(shape),
            "read_cpu_s": np.full(shape, (time.thread_time() - began) / at.site.size),
        }

    def blocks(self, first: int, last: int, lanes: range, steps: int) -> Iterator[Batch]:
        """The crops of steps `first` to `last` - 1 in some lanes, some steps at a time.

        A chapter is cut at once, into memory of its own for each block: blocks of at most 32 MiB
        are memory that glibc keeps, and a larger piece would be zeroed by the system every time.

        Yields:
            As `cut`, arrays (at most `steps`, L, ...).
        """
        for begin, end in chapters(self.plan, first, last, at_least=steps):
            parts = [range(at, min(at + steps, end)) for at in range(begin, end, steps)]
            crops = [np.empty((len(part), *self._shape(len(lanes))), np.uint8) for part in parts]
            others = self._cut(begin, end, lanes, [step for block in crops for step in block])
            for part, block in zip(parts, crops, strict=True):
                rows = slice(part.start - begin, part.stop - begin)
                yield {"crops": block, **{name: x[rows] for name, x in others.items()}}

    def stream(self, first: int, last: int, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """One worker's batches of steps `first` to `last` - 1, cut in this thread without Ray.

        Yields:
            As `cut`, arrays (L, ...).
        """
        for block in self.blocks(first, last, self.plan.lanes(rank, world), steps=1):
            yield {name: x[0] for name, x in block.items()}


def within_tolerance(cutter: CropCutter, batches: Iterator[Batch]) -> Iterator[Batch]:
    """The batches, until more sites turned out unreadable than the trial tolerates.

    Raises:
        BadSiteError: then; it names the first of them.
    """
    allowed = int(cutter.crops.tolerated_bad_sites * cutter.num_sites)
    bad: set[int] = set()
    for batch in batches:
        bad.update(int(row) for row in batch["bad"] if row >= 0)
        if len(bad) > allowed:
            raise BadSiteError(
                f"{len(bad)} of {cutter.num_sites} sites cannot be read, more than the tolerated "
                f"share of {cutter.crops.tolerated_bad_sites:g}: rows {sorted(bad)[:10]} of the "
                "index, and maybe more. Run `phenoscale index check`, mend the files, or give a "
                "larger tolerated_bad_sites."
            )
        yield batch


def chapters(plan: Plan, first: int, last: int, at_least: int = 1) -> Iterator[tuple[int, int]]:
    """Cuts steps `first` to `last` - 1 where chapters end, into pieces of some steps at least."""
    length = -(-at_least // plan.chapter_steps) * plan.chapter_steps
    while first < last:
        end = min((first // length + 1) * length, last)
        yield first, end
        first = end


class _Opened:
    """A cutter's plan, and the way from a position in its subset to a row of the index."""

    def __init__(self, cutter: CropCutter) -> None:
        self.screen = opened_screen(cutter.index_path)
        self.index = self.screen.index
        crops, seed = cutter.crops, cutter.seed
        if cutter.held_out:
            self.held_out: Rows | None = self.index.held_out_rows(crops.held_out)
            plates = np.array([len(r) for r in self.index.held_out_ranges(crops.held_out)])
            counts = plates if crops.sampling == "plate_wise" else np.array([len(self.held_out)])
            crops, seed = _held_out_crops(crops, counts), 0
        else:
            self.held_out = None
            self.subset = Subset.of(self.index, crops.data_fraction, crops.held_out)
            counts = self.subset.counts
        self.starts = np.append(0, np.cumsum(counts))
        self.crops = crops
        by_plate = crops.sampling == "plate_wise" and not cutter.held_out
        sizes = self.subset.plate_counts() if by_plate else counts
        self.plan = Plan.of(
            crops,
            fingerprint=self.index.fingerprint,
            seed=seed,
            group_sizes=sizes,
            labels=self._labels if crops.sampling == "class_balanced" else None,
        )
        self._rows_of = functools.lru_cache(maxsize=CACHED_GROUPS)(self._rows_of_group)
        self._complete = not cutter.held_out and len(self.subset) == self.index.num_sites

    def row(self, site: int) -> Row:
        """The row at a position of the subset."""
        if self._complete:
            return self.screen.row(site)
        if self.held_out is not None:
            return self.screen.row(int(self.held_out[site]))
        group = int(np.searchsorted(self.starts, site, side="right")) - 1
        return self.screen.row(int(self._rows_of(group)[site - self.starts[group]]))

    def read(self, site: int, at: CropBatch, out: list[np.ndarray]) -> tuple[Row, int]:
        """Cuts all crops of one site into `out`, or those of the next readable one.

        Returns:
            The row that was read, and the number of the row that was planned.
        """
        count = int(self.starts[-1])
        allowed = int(self.crops.tolerated_bad_sites * count)
        planned = self.row(site)
        row = planned
        for beyond in range(allowed + 1):
            try:
                self._cut(row, at, out)
            except ImageError as error:
                if beyond == allowed:
                    raise BadSiteError(complaint(row.number, error, self.crops)) from error
                row = self.row((site + beyond + 1) % count)
            else:
                return row, planned.number
        raise AssertionError("unreachable: the last try returns or raises")

    def _cut(self, row: Row, at: CropBatch, out: list[np.ndarray]) -> None:
        size_px = self.crops.size_px
        room = row.height_px - size_px, row.width_px - size_px
        if min(room) < 0:
            raise BadSiteError(
                f"Row {row.number} of the index, {row.paths[0]}, is {row.height_px} x "
                f"{row.width_px} px, smaller than a crop of {size_px} px. Give size_px of at most "
                "that."
            )
        corners = np.stack([at.top * (room[0] + 1), at.left * (room[1] + 1)], axis=1)
        cut_windows(
            out,
            self.index.root,
            row.paths,
            row.channels,
            self.index.channels,
            corners.astype(np.int64),
            row.scale,
            row.recorded,
        )

    def _rows_of_group(self, group: int) -> Rows:
        return self.subset.rows_of(group, self.screen.sites(group).well_hash)

    def _labels(self, groups: np.ndarray) -> np.ndarray:
        """Classes of the subset's sites in some groups, for a plan that balances them."""
        found = []
        for group in groups.tolist():
            rows = self._rows_of(group) - self.index.group_rows(group).start
            found.append(self.screen.sites(group).label[rows])
        return np.concatenate(found)


def _held_out_crops(crops: Crops, counts: np.ndarray) -> Crops:
    """One pass over held-out sites; `counts` are those of each plate, or of all together."""
    unit = crops.unit
    units = int(np.sum(counts // unit))
    if not units:
        raise ValueError(
            "The trial holds out no site, or too few on each plate for a unit of plate_wise, and "
            "its held-out loss needs some. Name plates or experimental batches in crops.held_out."
        )
    # The largest batch that divides them, so that no site is left over.
    most = max(1, crops.global_batch_size // unit)
    size = unit * max(n for n in range(1, most + 1) if units % n == 0)
    sampling = "plate_wise" if unit > 1 else "shuffled"
    return dataclasses.replace(
        crops, passes=1, crops_per_read=1, sampling=sampling, global_batch_size=size
    )


def _part(at: CropBatch, places: np.ndarray) -> CropBatch:
    return CropBatch(*(getattr(at, f.name).ravel()[places] for f in dataclasses.fields(at)))


@functools.lru_cache(maxsize=8)
def _opened(cutter: CropCutter) -> _Opened:
    return _Opened(cutter)
