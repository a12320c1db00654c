"""Which site of a screen goes where in its packed copy, and the writing of one shard of it.

Each plate becomes one array, `NNNNN.zarr`; more where its sites differ in size or channels.
"""

from __future__ import annotations

import dataclasses
import functools
import io
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from phenoscale.screens.errors import ImageError
from phenoscale.screens.images.readers import read_site
from phenoscale.screens.index import Rows, ScreenIndex, Sites
from phenoscale.screens.index_format import GROUP_ROWS
from phenoscale.screens.packed.shards import (
    METADATA,
    TILE_PX,
    PackedArray,
    Pixels,
    check_shard,
    shard_key,
    write_shard,
)
from phenoscale.screens.packed.store import put, read_or_none
from phenoscale.screens.storage import Root

SHARD_BYTES = 2**28
"""Pixels of a shard, in bytes, at most: what a task holds in memory, and more than once."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlannedArray:
    """A packed array and the sites that go into it."""

    name: str
    """Path in the store."""
    plate: int
    """Position in `ScreenIndex.plates`."""
    channel_set: int
    """Position in `ScreenIndex.channel_sets`."""
    first_shard: int
    """Shards of the arrays before this one: the store's shards are numbered through."""
    array: PackedArray
    """Its geometry."""


def plan_store(
    index: ScreenIndex, shard_bytes: int = SHARD_BYTES, raw: bool = True
) -> tuple[PlannedArray, ...]:
    """The arrays of a screen's packed copy, in order; a function of the arguments alone."""
    planned: list[PlannedArray] = []
    shards = 0
    for plate in range(len(index.plates)):
        kinds, counts = np.unique(_kinds(index, plate), axis=0, return_counts=True)
        for (channel_set, height, width), count in zip(
            kinds.tolist(), counts.tolist(), strict=True
        ):
            channels = len(index.channel_sets[channel_set])
            array = PackedArray(
                num_sites=count,
                num_channels=channels,
                height_px=height,
                width_px=width,
                sites_per_shard=min(count, max(1, shard_bytes // (channels * height * width))),
                tile_px=0 if raw else TILE_PX,
                codec="none" if raw else "blosc",
            )
            planned.append(
                PlannedArray(
                    name=f"{len(planned):05d}.zarr",
                    plate=plate,
                    channel_set=channel_set,
                    first_shard=shards,
                    array=array,
                )
            )
            shards += array.num_shards
    return tuple(planned)


def rows_of(index: ScreenIndex, planned: PlannedArray) -> Rows:
    """Rows of the index that go into an array, int64, in the order of its sites."""
    array = planned.array
    kind = (planned.channel_set, array.height_px, array.width_px)
    matches = (_kinds(index, planned.plate) == kind).all(axis=1)
    return np.flatnonzero(matches) + int(index.plates["first_row"].iloc[planned.plate])


def packed_paths(
    index: ScreenIndex, plan: Iterable[PlannedArray], bad: Iterable[int]
) -> pa.StringArray:
    """Of each row of the index, the entry of its packed copy; null for the rows in `bad`."""
    numbers = np.zeros(index.num_sites, dtype=np.int32)
    sites = np.zeros(index.num_sites, dtype=np.int64)
    names = []
    for number, planned in enumerate(plan):
        rows = rows_of(index, planned)
        numbers[rows], sites[rows] = number, np.arange(len(rows))
        names.append(f"{planned.name}?site=")
    missing = np.zeros(index.num_sites, dtype=bool)
    missing[list(bad)] = True
    entries = pc.binary_join_element_wise(
        pa.array(names).take(pa.array(numbers)), pa.array(sites).cast(pa.string()), ""
    )
    return pc.if_else(pa.array(missing), None, entries)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardResult:
    """What became of one shard."""

    shard: int
    """Its number in the store."""
    sites: int
    """Sites that it holds."""
    packed_bytes: int
    """Its size."""
    pixel_bytes: int
    """Bytes of the pixels of its sites, in 8 bits."""
    source_bytes: int
    """Estimated size of its sites' files, from those of one site; 0 where files hold several."""
    written: bool
    """Whether it was written now; else it was found whole."""
    bad: tuple[tuple[int, str], ...]
    """Rows of the index that could not be read, with the reason."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardPacker:
    """Writes and verifies the shards of a store; a value that any process can be sent."""

    index: str
    """Index of the screen."""
    root: Root
    """Where its images are."""
    out: Root
    """The store."""
    plan: tuple[PlannedArray, ...]
    """Its arrays."""

    @property
    def num_shards(self) -> int:
        """Shards of the whole store."""
        return self.plan[-1].first_shard + self.plan[-1].array.num_shards

    def find(self, shard: int) -> ShardResult | None:
        """Looks for a shard of an earlier run.

        Args:
            shard: its number in the store.

        Returns:
            None if it must be written: it is missing, damaged, or lacks a site that can be read.
        """
        planned, number, rows = self._located(shard)
        name = f"{planned.name}/{shard_key(number)}"
        data = read_or_none(self.out, name)
        metadata = read_or_none(self.out, f"{planned.name}/{METADATA}")
        if data is None or metadata != planned.array.metadata(self._attributes(planned)):
            return None
        try:
            present = check_shard(data, planned.array, number, name)
        except ImageError:
            return None
        bad: list[tuple[int, str]] = []
        if any(image is not None for image in self._images(planned, rows[~present], bad)):
            return None
        return self._result(shard, planned, rows, len(data), False, bad)

    def write(self, shard: int) -> ShardResult:
        """Reads the sites of a shard and writes it.

        Args:
            shard: its number in the store.
        """
        planned, number, rows = self._located(shard)
        metadata = f"{planned.name}/{METADATA}"
        wanted = planned.array.metadata(self._attributes(planned))
        if number == 0 and read_or_none(self.out, metadata) != wanted:
            put(self.out, metadata, wanted)
        held = io.BytesIO()
        bad: list[tuple[int, str]] = []
        write_shard(held, planned.array, self._images(planned, rows, bad))
        put(self.out, f"{planned.name}/{shard_key(number)}", held.getbuffer())
        return self._result(shard, planned, rows, held.getbuffer().nbytes, True, bad)

    def check(self, shard: int, bad: int = 0) -> None:
        """Verifies every checksum of a shard and the number of its sites.

        Args:
            shard: its number in the store.
            bad: how many of its sites could not be read and are absent.

        Raises:
            ImageError: if the shard is missing, damaged or holds another number of sites.
        """
        planned, number, rows = self._located(shard)
        name = f"{planned.name}/{shard_key(number)}"
        PackedArray.parse(self.out.read(f"{planned.name}/{METADATA}"), planned.name)
        present = check_shard(self.out.read(name), planned.array, number, name)
        if int(present.sum()) != len(rows) - bad:
            raise ImageError(
                f"{name} holds {int(present.sum())} sites, {len(rows) - bad} are required. Run "
                "`phenoscale pack` again: it writes damaged shards anew."
            )

    def _located(self, shard: int) -> tuple[PlannedArray, int, Rows]:
        """The array of a shard, its number in it, and the rows of its sites."""
        starts = [planned.first_shard for planned in self.plan]
        planned = self.plan[int(np.searchsorted(starts, shard, side="right")) - 1]
        number = shard - planned.first_shard
        sites = planned.array.sites_of(number)
        rows = _array_rows(self.index, self.root, planned)
        return planned, number, rows[sites.start : sites.stop]

    def _images(
        self, planned: PlannedArray, rows: Rows, bad: list[tuple[int, str]]
    ) -> Iterator[Pixels | None]:
        """The sites of some rows; None for one that cannot be read, whose reason joins `bad`."""
        index = _opened(self.index, self.root)
        channels = index.channel_sets[planned.channel_set]
        for row in rows.tolist():
            paths = _paths(self.index, self.root, row)
            scale = index.scale(row, planned.channel_set)
            try:
                image = read_site(index.root, paths, channels, channels, scale)
                if image.shape[1:] != (planned.array.height_px, planned.array.width_px):
                    raise ImageError(
                        f"{paths[0]} has {image.shape[1]} x {image.shape[2]} pixels, the index "
                        f"says {planned.array.height_px} x {planned.array.width_px}."
                    )
                yield image
            except ImageError as error:
                bad.append((row, str(error)))
                yield None

    def _result(
        self,
        shard: int,
        planned: PlannedArray,
        rows: Rows,
        packed_bytes: int,
        written: bool,
        bad: list[tuple[int, str]],
    ) -> ShardResult:
        sites = len(rows) - len(bad)
        damaged = {row for row, _ in bad}
        sound = [row for row in rows.tolist() if row not in damaged]
        array = planned.array
        return ShardResult(
            shard=shard,
            sites=sites,
            packed_bytes=packed_bytes,
            pixel_bytes=sites * array.num_channels * array.height_px * array.width_px,
            source_bytes=sites * self._file_bytes(sound[0]) if sound else 0,
            written=written,
            bad=tuple(bad),
        )

    def _file_bytes(self, row: int) -> int:
        paths = _paths(self.index, self.root, row)
        if any(mark in path for path in paths for mark in "?*"):
            return 0
        return sum(self.root.size(path) for path in paths)

    def _attributes(self, planned: PlannedArray) -> dict[str, object]:
        index = _opened(self.index, self.root)
        plate = index.plates.iloc[planned.plate]
        return {
            "experimental_batch": plate["experimental_batch"],
            "plate": plate["plate"],
            "channels": list(index.channel_sets[planned.channel_set]),
        }


@functools.lru_cache(maxsize=2)
def _opened(location: str, root: Root) -> ScreenIndex:
    return ScreenIndex.open(location, root)


@functools.lru_cache(maxsize=4)
def _array_rows(location: str, root: Root, planned: PlannedArray) -> Rows:
    return rows_of(_opened(location, root), planned)


@functools.lru_cache(maxsize=4)
def _group(location: str, root: Root, group: int) -> Sites:
    return _opened(location, root).sites(group)


def _paths(location: str, root: Root, row: int) -> list[str]:
    """Entries of a row, verified with the group of rows that it is in."""
    group, position = divmod(row, GROUP_ROWS)
    paths: list[str] = _group(location, root, group).paths[position].as_py()
    return paths


def _kinds(index: ScreenIndex, plate: int) -> npt.NDArray[np.int64]:
    """int64 (sites of the plate, 3): channel set, height and width of each."""
    first, rows = (int(index.plates[name].iloc[plate]) for name in ("first_row", "rows"))
    groups = range(first // GROUP_ROWS, (first + rows - 1) // GROUP_ROWS + 1)
    skipped = first - groups[0] * GROUP_ROWS
    columns = [index.column(name, groups) for name in ("channel_set", "height_px", "width_px")]
    return np.stack(columns, axis=1)[skipped : skipped + rows].astype(np.int64)
