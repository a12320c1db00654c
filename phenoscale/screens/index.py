"""The index: a screen as one Parquet file, one row per site, read a group of rows at a time.

Everything that is drawn from a screen (crops, subsets, splits) is a function of the row order and
the fingerprint, so both depend on content alone: not on the order of the manifest or on where the
images lie. Opening reads the footer; rows are read, and verified, when they are needed.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from phenoscale.screens.errors import MissingImageError
from phenoscale.screens.fingerprint import content_digest
from phenoscale.screens.index_format import (
    BLOCK_ROWS,
    GROUP_ROWS,
    IMAGE_COLUMNS,
    IMAGE_FIELDS,
    METADATA_FIELDS,
    Facts,
    IndexWriter,
    group_digests,
    read_facts,
)
from phenoscale.screens.storage import Root

_SCAN_GROUPS = 64  # read in one piece where all rows are passed through
Rows = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Sites:
    """What cutting crops needs to know of the sites of one group of rows."""

    paths: pa.ListArray
    """Entries as the readers take them."""
    channel_set: np.ndarray
    """int32: position in `ScreenIndex.channel_sets`."""
    height_px: np.ndarray
    """int32."""
    width_px: np.ndarray
    """int32."""
    dtype: pa.StringArray
    """uint8 or uint16."""
    label: np.ndarray
    """int32: number of the perturbation among all, sorted."""
    well_hash: np.ndarray
    """uint64."""


class ScreenIndex:
    """A screen: one row per site, and where its images are."""

    def __init__(self, location: str | Path, file: pq.ParquetFile, facts: Facts, root: Root):
        """As `open` makes it."""
        self.location = str(location)
        """The Parquet file, a local path or a URL."""
        self.root = root
        """Where the images are; not part of the fingerprint."""
        self.facts = facts
        """What the footer says."""
        self._file = file

    @classmethod
    def open(cls, location: str | Path, root: Root | None = None) -> ScreenIndex:
        """Opens an index and makes sure that it is what `build_index` wrote.

        Args:
            location: the Parquet file, a path or a URL.
            root: of the images, if they no longer lie where the index says.

        Raises:
            ValueError: if the file is not an index of this version, or its facts have changed.
        """
        parent, name = _parted(str(location))
        missing = ValueError(f"There is no index {location}; build one with `phenoscale index`.")
        if parent.folder is not None and not os.path.exists(os.path.join(parent.folder, name)):
            raise missing
        try:
            file = pq.ParquetFile(parent.open_input_file(name))
        except MissingImageError as error:
            raise missing from error
        except (pa.ArrowException, OSError, ValueError) as error:
            raise ValueError(
                f"{location} cannot be read as an index ({error}); build it again with "
                "`phenoscale index`."
            ) from error
        facts = read_facts(file.metadata.metadata, str(location))
        blocks, rows = file.metadata.num_row_groups, file.metadata.num_rows
        sizes = [file.metadata.row_group(i).num_rows for i in range(blocks)]
        if -(-rows // GROUP_ROWS) != len(facts.digests) or any(n != BLOCK_ROWS for n in sizes[:-1]):
            raise ValueError(
                f"{location} has changed since it was built: it has {rows} rows in {blocks} row "
                f"groups, and digests of {len(facts.digests)} groups of {GROUP_ROWS}. Build it "
                "again with `phenoscale index`."
            )
        return cls(location, file, facts, root or _joined(parent, facts.root))

    @property
    def path(self) -> Path:
        """The Parquet file on this machine."""
        return Path(self.location)

    @property
    def fingerprint(self) -> str:
        """Identity of the screen, in hexadecimal; a packed copy has that of its source."""
        return self.facts.fingerprint

    @property
    def num_sites(self) -> int:
        """Number of rows."""
        return int(self._file.metadata.num_rows)

    @property
    def num_groups(self) -> int:
        """Number of groups of rows."""
        return len(self.facts.digests)

    @property
    def num_classes(self) -> int:
        """Distinct perturbations."""
        return self.facts.num_classes

    @property
    def channel_sets(self) -> tuple[tuple[str, ...], ...]:
        """The channels that sites have, each set in the order of its files."""
        return self.facts.channel_sets

    @functools.cached_property
    def channels(self) -> tuple[str, ...]:
        """Names of the channels that all sites have, in the order of the first row."""
        first, *others = self.channel_sets
        return tuple(name for name in first if all(name in names for names in others))

    @functools.cached_property
    def plates(self) -> pd.DataFrame:
        """Plates in row order. Columns experimental_batch, plate, first_row, rows."""
        names = ["experimental_batch", "plate", "first_row", "rows"]
        return self.facts.plates.select(names).to_pandas()

    def group_rows(self, group: int) -> range:
        """Rows of a group."""
        return range(group * GROUP_ROWS, min((group + 1) * GROUP_ROWS, self.num_sites))

    def sites(self, group: int) -> Sites:
        """The sites of a group of rows, verified against its digest.

        Raises:
            ValueError: if the file has changed since it was built.
        """
        table = self._read(range(group, group + 1), list(IMAGE_COLUMNS))
        table = table.take(np.arange(len(table)))  # a copy, that the rest of its block may go
        columns = {name: table[name] for name in IMAGE_COLUMNS if name not in ("paths", "dtype")}
        numbers = {name: np.asarray(column) for name, column in columns.items()}
        dtype = table["dtype"].combine_chunks()
        return Sites(paths=table["paths"].combine_chunks(), dtype=dtype, **numbers)

    def scale(self, row: int, channel_set: int) -> tuple[tuple[float, float], ...] | None:
        """(low, high) grey value of each channel of a site; None where its plate has no scale."""
        plate = int(np.searchsorted(self._first_rows, row, side="right")) - 1
        return self._scale(plate, channel_set)

    def column(self, name: str, groups: range) -> np.ndarray:
        """One column of neighbouring groups of rows; not verified."""
        return np.asarray(self._groups(groups, [name])[name])

    def scan(self, columns: list[str]) -> Iterator[tuple[int, pa.Table]]:
        """Passes through all rows: (first row, table of the columns), not verified."""
        for first in range(0, self.num_groups, _SCAN_GROUPS):
            groups = range(first, min(first + _SCAN_GROUPS, self.num_groups))
            yield first * GROUP_ROWS, self._groups(groups, columns)

    def verified(self) -> Iterator[tuple[int, pa.Table]]:
        """Passes through all rows and columns: (first row, table), verified, in bounded memory."""
        for first in range(0, self.num_groups, _SCAN_GROUPS):
            groups = range(first, min(first + _SCAN_GROUPS, self.num_groups))
            yield first * GROUP_ROWS, self._read(groups, None)

    def take(self, rows: Sequence[int]) -> pa.Table:
        """Some rows, all columns, in the order given; verified."""
        groups = sorted({row // GROUP_ROWS for row in rows})
        tables = {g: self._read(range(g, g + 1), None) for g in groups}
        parts = [tables[row // GROUP_ROWS].slice(row % GROUP_ROWS, 1) for row in rows]
        return pa.concat_tables(parts) if parts else self._file.schema_arrow.empty_table()

    @functools.cached_property
    def table(self) -> pa.Table:
        """All rows and columns, verified, in memory: for scoring and checking, not for training."""
        return self._read(range(self.num_groups), None)

    def metadata(self) -> pd.DataFrame:
        """All columns that do not describe image files, one row per site in the index's order.

        Returns:
            Columns site_id, experimental_batch, plate, well, site, perturbation, perturbation_type,
            gene, guide, compound, concentration, negative_control, cell_type, pixel_size_um, and
            what further columns the manifest had.
        """
        return self.table.drop_columns(list(IMAGE_COLUMNS)).to_pandas()

    def labels(self) -> tuple[Rows, tuple[str, ...]]:
        """Class of every site, and the names of the classes.

        Names are those of the whole index, sorted, so that classifiers trained on different
        fractions number their classes alike.

        Returns:
            int64 (num_sites,) class numbers, and the class names.
        """
        pairs = self.table.select(["label", "perturbation"]).group_by(["label", "perturbation"])
        names = pairs.aggregate([]).sort_by("label")["perturbation"].to_pylist()
        return np.asarray(self.table["label"]).astype(np.int64), tuple(names)

    def held_out_ranges(self, held_out: tuple[str, ...]) -> list[range]:
        """Rows of the named plates and experimental batches, as ranges in ascending order.

        Args:
            held_out: names of experimental batches, or of plates as `experimental_batch/plate`.

        Raises:
            ValueError: for a name that the index does not have; lists those it has.
        """
        if isinstance(held_out, str):
            raise ValueError(f"held_out is the text {held_out!r}; a tuple of names is required.")
        batches, plates = self.plates["experimental_batch"], self._full_names
        known = {*batches, *plates}
        if unknown := [name for name in held_out if name not in known]:
            some = sorted(known)[:40]
            raise ValueError(
                f"held_out names {unknown}, which the index {self.location} does not have. Of its "
                f"{len(known)} experimental batches and plates, some are {some}."
            )
        out = batches.isin(held_out) | plates.isin(held_out)
        chosen = self.plates[out]
        return [
            range(first, first + rows)
            for first, rows in zip(chosen["first_row"], chosen["rows"], strict=True)
        ]

    def held_out_rows(self, held_out: tuple[str, ...]) -> Rows:
        """Row numbers, int64 and ascending, of `held_out_ranges`."""
        ranges = self.held_out_ranges(held_out)
        return np.concatenate([np.arange(0), *(np.arange(r.start, r.stop) for r in ranges)])

    def repointed(self, paths: pa.StringArray, root: Root, out: Path) -> ScreenIndex:
        """Writes the index of a copy of this screen: the same rows and fingerprint, other files.

        Args:
            paths: of each row, one file with all its channels in 8 bits; null leaves a row out, and
                then the copy is a screen of its own, with its own fingerprint.
            root: of the copy.
            out: the index to write.
        """
        found: set[str] = set()
        for first, table in self.scan(["perturbation"]):
            kept = paths.slice(first, len(table)).is_valid()
            found.update(pc.unique(table["perturbation"].filter(kept)).to_pylist())
        known = {field.name for field in (*METADATA_FIELDS, *IMAGE_FIELDS)}
        with IndexWriter(
            out,
            root,
            classes=pa.array(sorted(found)),
            extra=tuple(f for f in self._file.schema_arrow if f.name not in known),
            fingerprint=None if paths.null_count else self.fingerprint,
        ) as writer:
            for first, table in self.verified():
                part = paths.slice(first, len(table))
                sets = [self.channel_sets[i] for i in np.asarray(table["channel_set"])]
                entries = pa.ListArray.from_arrays(np.arange(len(part) + 1, dtype=np.int32), part)
                table = table.drop_columns(["paths", "dtype"])
                table = table.append_column("paths", entries)
                table = table.append_column("dtype", pa.array(["uint8"] * len(table)))
                table = table.append_column("channels", pa.array(sets, pa.list_(pa.string())))
                writer.write(table.filter(part.is_valid()))
        return ScreenIndex.open(out)

    @functools.cached_property
    def _first_rows(self) -> np.ndarray:
        return self.plates["first_row"].to_numpy()

    @functools.cached_property
    def _full_names(self) -> pd.Series:
        return self.plates["experimental_batch"] + "/" + self.plates["plate"]

    @functools.lru_cache(maxsize=4096)  # noqa: B019  an index lives as long as its process
    def _scale(self, plate: int, channel_set: int) -> tuple[tuple[float, float], ...] | None:
        (facts,) = self.facts.plates.slice(plate, 1).to_pylist()
        ranges = zip(facts["low"], facts["high"], strict=True)
        scale = dict(zip(facts["scaled_channels"], ranges, strict=True))
        if not scale:
            return None
        # A channel without 16-bit images in this plate has no scale and needs none.
        return tuple(scale.get(name, (0.0, 65535.0)) for name in self.channel_sets[channel_set])

    def _groups(self, groups: range, columns: list[str] | None) -> pa.Table:
        """Rows of neighbouring groups, out of the file's blocks."""
        blocks = range(
            groups[0] * GROUP_ROWS // BLOCK_ROWS, groups[-1] * GROUP_ROWS // BLOCK_ROWS + 1
        )
        table = self._file.read_row_groups(list(blocks), columns=columns)
        first = groups[0] * GROUP_ROWS - blocks[0] * BLOCK_ROWS
        return table.slice(first, self.group_rows(groups[-1]).stop - groups[0] * GROUP_ROWS)

    def _read(self, groups: range, columns: list[str] | None) -> pa.Table:
        try:
            table = self._groups(groups, columns).combine_chunks()
            digests = self._digests_of(table, groups, whole=columns is None)
        except (pa.ArrowException, OSError, KeyError) as error:
            raise ValueError(
                f"{self.location} cannot be read ({error}). Check that its disk or store answers, "
                "then copy the file again, or build it again with `phenoscale index`."
            ) from error
        for group, found in zip(groups, digests, strict=True):
            if found != self.facts.digests[group].tobytes()[: len(found)]:
                raise ValueError(
                    f"{self.location} has changed since it was built: group {group} of its rows "
                    "does not agree with its digest. Change the manifest, not the index, and build "
                    "it again with `phenoscale index`."
                )
        return table

    def _digests_of(self, table: pa.Table, groups: Sequence[int], whole: bool) -> list[bytes]:
        """Of each group: both digests of whole rows, or that of the image columns alone."""
        found, first = [], 0
        for group in groups:
            part = table.slice(first, len(self.group_rows(group)))
            found.append(b"".join(group_digests(part)) if whole else content_digest(part))
            first += len(part)
        return found


def _parted(location: str) -> tuple[Root, str]:
    """Folder, or URL of a folder, and name of a file."""
    if "://" not in location:
        folder, name = os.path.split(os.path.realpath(location))
        return Root(folder), name
    address, mark, options = location.partition("?")
    folder, _, name = address.rpartition("/")
    return Root(folder + mark + options), name


def _joined(parent: Root, stored: str) -> Root:
    """The root of the images as an index in `parent` names it."""
    if "://" in stored or os.path.isabs(stored):
        return Root(stored)
    if parent.folder is not None:
        return Root(os.path.normpath(os.path.join(parent.folder, stored)))
    address, mark, options = parent.url.partition("?")
    scheme, _, folder = address.partition("://")
    return Root(f"{scheme}://{os.path.normpath(os.path.join(folder, stored))}{mark}{options}")
