"""Which rows a trial trains on: known by numbers per group of rows, never listed as a whole."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from phenoscale.screens.index import Rows, ScreenIndex
from phenoscale.screens.index_format import GROUP_ROWS


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Subset:
    """Training rows of an index: what is held out leaves first, then a share of the wells is taken.

    Wells are ordered by a hash of `experimental_batch/plate/well` (blake2b, 8 bytes) and the first
    round(data_fraction x wells) are kept. So all sites of a well stay together, the share is exact
    on small screens too, and a smaller fraction lies inside every larger one of the same
    `held_out`. The choice depends on the wells' names alone, not on seed, machine or row order.
    """

    index: ScreenIndex
    """The screen."""
    held_out: tuple[range, ...]
    """Rows that are not trained on."""
    highest: int
    """Wells with a hash above it are left out."""
    counts: np.ndarray
    """int64 (groups,): rows of the subset in each group."""

    @classmethod
    def of(
        cls, index: ScreenIndex, data_fraction: float = 1.0, held_out: tuple[str, ...] = ()
    ) -> Subset:
        """The rows of a fraction without what is held out.

        A fraction below 1 passes through one column of the index, twice; all rows need no pass.

        Args:
            index: the screen.
            data_fraction: share of the remaining wells, in (0, 1].
            held_out: names of experimental batches, or of plates as `experimental_batch/plate`.

        Raises:
            ValueError: for a fraction outside (0, 1], an unknown name, or if no well remains.
        """
        if not 0.0 < data_fraction <= 1.0:
            raise ValueError(f"data_fraction is {data_fraction}; a share in (0, 1] is required.")
        ranges = tuple(index.held_out_ranges(held_out))
        remaining = index.num_sites - sum(len(r) for r in ranges)
        highest, wells = 2**64 - 1, 0
        if remaining and data_fraction < 1:
            hashes = _of_wells(index, ranges)
            wells = len(hashes)
            kept = int(data_fraction * wells + 0.5)
            hashes.partition(max(0, kept - 1))
            highest = int(hashes[kept - 1]) if kept else -1
        if not remaining or highest < 0:
            raise ValueError(
                f"data_fraction={data_fraction} of the {wells} wells that held_out={held_out} "
                "leaves is no well. Hold out less, or take a larger fraction."
            )
        if data_fraction < 1:
            counts = np.zeros(index.num_groups, np.int64)
            for first, hashes in _hashes(index, ranges, whole=True):
                begins = np.arange(0, len(hashes), GROUP_ROWS)
                kept_rows = (hashes <= np.uint64(highest)) & _inside(first, len(hashes), ranges)
                counts[first // GROUP_ROWS :][: len(begins)] = np.add.reduceat(
                    kept_rows.astype(np.int64), begins
                )
        else:
            begins = np.arange(index.num_groups) * GROUP_ROWS
            counts = np.minimum(GROUP_ROWS, index.num_sites - begins) - _overlaps(index, ranges)
        return cls(index=index, held_out=ranges, highest=highest, counts=counts)

    def __len__(self) -> int:
        return int(self.counts.sum())

    def rows_of(self, group: int, well_hash: np.ndarray) -> Rows:
        """Rows of the subset in a group, int64 and ascending, given the group's well hashes."""
        first = self.index.group_rows(group).start
        return first + np.flatnonzero(self._kept(first, well_hash))

    def rows(self) -> Rows:
        """All rows of the subset, int64 and ascending: for screens whose list fits in memory."""
        return np.concatenate(
            [
                first + np.flatnonzero(self._kept(first, hashes))
                for first, hashes in _hashes(self.index, self.held_out, whole=True)
            ]
        )

    def num_wells(self) -> int:
        """Wells of the subset."""
        return int(np.sum(_of_wells(self.index, self.held_out) <= np.uint64(self.highest)))

    def plate_counts(self) -> np.ndarray:
        """int64 (plates,): rows of the subset in each plate."""
        counts = np.zeros(len(self.index.plates), np.int64)
        first_rows = self.index.plates["first_row"].to_numpy()
        for first, hashes in _hashes(self.index, self.held_out, whole=True):
            rows = first + np.flatnonzero(self._kept(first, hashes))
            plates = np.searchsorted(first_rows, rows, side="right") - 1
            counts += np.bincount(plates, minlength=len(counts))
        return counts

    def _kept(self, first: int, hashes: np.ndarray) -> np.ndarray:
        """Bool per row from `first` on: whether it belongs to the subset."""
        within = _inside(first, len(hashes), self.held_out)
        return within & (hashes <= np.uint64(self.highest))


def _hashes(
    index: ScreenIndex, held_out: tuple[range, ...], whole: bool = False
) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, well hashes) piece by piece; of the rows not held out, or of all of them."""
    for first, table in index.scan(["well_hash"]):
        hashes = np.asarray(table["well_hash"])
        yield first, hashes if whole else hashes[_inside(first, len(hashes), held_out)]


def _of_wells(index: ScreenIndex, held_out: tuple[range, ...]) -> np.ndarray:
    """Hash of each remaining well, uint64: rows of a well stand together, so neighbours tell."""
    found = []
    last = None
    for _, hashes in _hashes(index, held_out):
        if len(hashes):
            is_new = np.append(hashes[0] != last, hashes[1:] != hashes[:-1])
            found.append(hashes[is_new])
            last = hashes[-1]
    return np.concatenate(found)


def _inside(first: int, count: int, held_out: tuple[range, ...]) -> np.ndarray:
    """Bool (count,): which of the rows from `first` on are not held out."""
    inside = np.ones(count, bool)
    for out in held_out:
        inside[max(0, out.start - first) : max(0, out.stop - first)] = False
    return inside


def _overlaps(index: ScreenIndex, ranges: tuple[range, ...]) -> np.ndarray:
    """int64 (groups,): rows of each group that lie in the ranges."""
    out = np.zeros(index.num_groups, np.int64)
    for r in ranges:
        for g in range(r.start // GROUP_ROWS, (r.stop - 1) // GROUP_ROWS + 1):
            rows = index.group_rows(g)
            out[g] += min(r.stop, rows.stop) - max(r.start, rows.start)
    return out
