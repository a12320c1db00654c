"""The index: a screen as one Parquet file, one row per site, with the fingerprint of its content.

Everything that is drawn from a screen (crops, subsets, splits) is a function of the row order and
the fingerprint, so both depend on content alone: not on the order of the manifest, on where the
images lie, or on how Parquet encodes them.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from phenoscale.screens.fingerprint import content_fingerprint
from phenoscale.screens.manifest import MANIFEST_SCHEMA, check_manifest, one_array, row_number
from phenoscale.screens.readers import ImageError, ImageHeader, read_header

INDEX_SCHEMA = pa.schema(
    [
        *[MANIFEST_SCHEMA.field(n) for n in MANIFEST_SCHEMA.names if n != "pixel_size_um"],
        pa.field("height_px", pa.int32(), nullable=False),
        pa.field("width_px", pa.int32(), nullable=False),
        pa.field("dtype", pa.string(), nullable=False),
        MANIFEST_SCHEMA.field("pixel_size_um"),
    ]
)
"""Columns of an index, in order."""
SORT_KEYS = ("experimental_batch", "plate", "well", "site", "site_id")
"""Row order of an index; site_id, which is unique, settles ties."""
INDEX_VERSION = 1
"""Changes when the schema, the row order or the fingerprint's bytes change."""

_IMAGE_COLUMNS = ("paths", "channels", "height_px", "width_px", "dtype", "pixel_size_um")
_METADATA_KEY = b"phenoscale"
_SITES_PER_TASK = 64

Progress = Callable[[int, int], None]
Result = TypeVar("Result")
Rows = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScreenIndex:
    """A screen: one row per site, and where its images are."""

    table: pa.Table
    """Rows of `INDEX_SCHEMA`, sorted by `SORT_KEYS`."""
    root: Path
    """Folder that the image paths are relative to; not part of the fingerprint."""
    fingerprint: str
    """sha256, in hexadecimal, of the content of `table`."""
    path: Path
    """The Parquet file."""

    @classmethod
    def open(cls, path: Path, root: Path | None = None) -> ScreenIndex:
        """Opens an index and makes sure that it is what `build_index` wrote.

        Args:
            path: the Parquet file.
            root: folder of the images, if they no longer lie where the index says.

        Raises:
            ValueError: if the file is not an index of this version, or its content has changed.
        """
        path = Path(path)
        table, facts = _read(path)
        if facts.get("version") != INDEX_VERSION:
            raise ValueError(
                f"{path} is an index of version {facts.get('version')}; this phenoscale reads "
                f"version {INDEX_VERSION}. Build it again with `phenoscale index`."
            )
        _check_schema(table.schema, path)
        table = _sorted(pa.Table.from_arrays(table.columns, schema=INDEX_SCHEMA))
        fingerprint = content_fingerprint(table, INDEX_VERSION)
        if fingerprint != facts["fingerprint"]:
            raise ValueError(
                f"{path} has changed since it was built: its content has the fingerprint "
                f"{fingerprint[:12]}, {facts['fingerprint'][:12]} is recorded. Change the "
                "manifest, not the index, and build it again with `phenoscale index`."
            )
        root = Path(root) if root is not None else path.resolve().parent / facts["root"]
        return cls(table=table, root=root.resolve(), fingerprint=fingerprint, path=path)

    @property
    def num_sites(self) -> int:
        """Number of rows."""
        return self.table.num_rows

    @functools.cached_property
    def channels(self) -> tuple[str, ...]:
        """Names of the channels that all sites have, in the order of the first row."""
        joined = pc.binary_join(self.table["channels"], "\0").unique().to_pylist()
        sets = [set(names.split("\0")) for names in joined]
        first = self.table["channels"][0].as_py()
        return tuple(name for name in first if all(name in names for names in sets))

    def rows(self, data_fraction: float = 1.0, held_out: tuple[str, ...] = ()) -> Rows:
        """Chooses training rows: what is held out leaves first, then a share of the wells is taken.

        Wells are ordered by a hash of `experimental_batch/plate/well` (blake2b, 8 bytes) and the
        first round(data_fraction x wells) are kept. So all sites of a well stay together, the share
        is exact on small screens too, and a smaller fraction lies inside every larger one of the
        same `held_out`. The choice depends on the wells' names alone, not on seed, machine or row
        order.

        Args:
            data_fraction: share of the remaining wells, in (0, 1].
            held_out: names of experimental batches, or of plates as `experimental_batch/plate`.

        Returns:
            int64 (rows,) row numbers, ascending.

        Raises:
            ValueError: for a fraction outside (0, 1], an unknown name, or if no well remains.
        """
        if not 0.0 < data_fraction <= 1.0:
            raise ValueError(f"data_fraction is {data_fraction}; a share in (0, 1] is required.")
        wells, order = self._wells
        is_out = np.zeros(self.num_sites, dtype=bool)
        is_out[self.held_out_rows(held_out)] = True
        remains = np.zeros(len(order), dtype=bool)
        remains[wells[~is_out]] = True
        remaining = order[remains[order]]
        kept = remaining[: int(data_fraction * len(remaining) + 0.5)]
        if not len(kept):
            raise ValueError(
                f"data_fraction={data_fraction} of the {len(remaining)} wells that held_out="
                f"{tuple(held_out)} leaves of {len(order)} is no well. Hold out less, or take a "
                "larger fraction."
            )
        is_kept = np.zeros(len(order), dtype=bool)
        is_kept[kept] = True
        return np.flatnonzero(is_kept[wells]).astype(np.int64)

    def held_out_rows(self, held_out: tuple[str, ...]) -> Rows:
        """Row numbers, int64 and ascending, of the named plates and experimental batches.

        Args:
            held_out: names of experimental batches, or of plates as `experimental_batch/plate`.

        Raises:
            ValueError: for a name that the index does not have; lists those it has.
        """
        if isinstance(held_out, str):
            raise ValueError(f"held_out is the text {held_out!r}; a tuple of names is required.")
        batches = self.table["experimental_batch"]
        plates = pc.binary_join_element_wise(batches, self.table["plate"], "/")
        known = [*batches.unique().to_pylist(), *plates.unique().to_pylist()]
        if unknown := [name for name in held_out if name not in known]:
            raise ValueError(
                f"held_out names {unknown}, which the index {self.path} does not have. It has the "
                f"experimental batches and plates {known}."
            )
        names = pa.array(list(held_out), pa.string())
        is_out = pc.or_(pc.is_in(batches, value_set=names), pc.is_in(plates, value_set=names))
        return np.flatnonzero(np.asarray(is_out)).astype(np.int64)

    def labels(self) -> tuple[Rows, tuple[str, ...]]:
        """Class of every site, and the names of the classes.

        Names are those of the whole index, sorted, so that classifiers trained on different
        fractions number their classes alike.

        Returns:
            int64 (num_sites,) class numbers, and the class names.
        """
        encoded = one_array(self.table["perturbation"]).dictionary_encode()
        names = encoded.dictionary.to_pylist()
        classes = tuple(sorted(names))
        number = {name: position for position, name in enumerate(classes)}
        lookup = np.array([number[name] for name in names], dtype=np.int64)
        return lookup[np.asarray(encoded.indices)], classes

    def metadata(self) -> pd.DataFrame:
        """All columns that do not describe image files, one row per site in the order of `table`.

        Returns:
            Columns site_id, experimental_batch, plate, well, site, perturbation, perturbation_type,
            gene, guide, compound, concentration, negative_control, cell_type.
        """
        return self.table.drop_columns(list(_IMAGE_COLUMNS)).to_pandas()

    @functools.cached_property
    def _wells(self) -> tuple[Rows, Rows]:
        """Well number of every row, and the well numbers in the order of their hashes."""
        columns = [self.table[name] for name in ("experimental_batch", "plate", "well")]
        encoded = one_array(pc.binary_join_element_wise(*columns, "/")).dictionary_encode()
        hashes = [
            hashlib.blake2b(name.encode(), digest_size=8).digest()
            for name in encoded.dictionary.to_pylist()
        ]
        keys = np.frombuffer(b"".join(hashes), dtype=">u8")
        # Stable: wells are numbered in row order, so even a collision is settled by content.
        order = np.argsort(keys, kind="stable").astype(np.int64)
        return np.asarray(encoded.indices).astype(np.int64), order


def build_index(
    manifest: pa.Table,
    root: Path,
    out: Path,
    *,
    require_controls: bool = True,
    progress: Progress | None = None,
    source: str = "The manifest",
) -> ScreenIndex:
    """Checks a manifest against its images and writes the index, whole or not at all.

    Every file's header is read, no pixels: `check_index(index, decode=True)` does that.

    Args:
        manifest: as `check_manifest` takes it.
        root: folder that the paths are relative to.
        out: Parquet file to write.
        require_controls: whether every experimental batch must have negative controls, which
            alignment needs; False for screens that have none.
        progress: called with (sites done, sites in all).
        source: what errors call the manifest.

    Returns:
        The index, as `ScreenIndex.open(out)` gives it.

    Raises:
        ValueError: for a wrong manifest, a batch without controls, or a bad image: names its
            site_id, row, path and reason, and counts the others.
        OSError: if the index cannot be written, for example to a full disk.
    """
    table = check_manifest(manifest, source)
    if not Path(root).is_dir():
        raise ValueError(f"The root {root} is not a folder; give the folder that paths start from.")
    if require_controls:
        _check_controls(table, source)
    root = Path(root).resolve()
    columns: dict[str, Any] = {name: table[name] for name in table.column_names}
    columns |= _read_headers(table, root, progress, source)
    table = pa.Table.from_arrays([columns[n] for n in INDEX_SCHEMA.names], schema=INDEX_SCHEMA)
    table = _sorted(table)
    fingerprint = content_fingerprint(table, INDEX_VERSION)
    _write(table, fingerprint, root, Path(out))
    return ScreenIndex(table=table, root=root, fingerprint=fingerprint, path=Path(out))


def _read_headers(
    table: pa.Table, root: Path, progress: Progress | None, source: str
) -> dict[str, pa.Array]:
    """Columns height_px, width_px and dtype; raises if any image is bad."""

    def read(row: dict[str, Any]) -> ImageHeader | ImageError:
        try:
            return read_header(root, row["paths"], row["channels"])
        except ImageError as error:
            return error

    headers: list[ImageHeader] = []
    bad: list[tuple[int, ImageError]] = []
    for position, result in enumerate(map_sites(read, table, progress)):
        if isinstance(result, ImageError):
            bad.append((position, result))
        else:
            headers.append(result)
    if bad:
        position, error = bad[0]
        more = f" {len(bad) - 1} more sites have bad images." if len(bad) > 1 else ""
        raise ValueError(
            f"{source}, row {row_number(position)}, site {table['site_id'][position].as_py()!r}: "
            f"{error}{more} No index was written."
        )
    return {
        name: pa.array([getattr(header, name) for header in headers], INDEX_SCHEMA.field(name).type)
        for name in ("height_px", "width_px", "dtype")
    }


def map_sites(
    function: Callable[[dict[str, Any]], Result],
    table: pa.Table,
    progress: Progress | None = None,
    threads: int = 8,
) -> Iterator[Result]:
    """Calls `function` with the site_id, paths, channels and, if any, sizes of every row, in order.

    Threads, because waiting for files (a network disk above all) is most of the work.

    Args:
        function: takes a mapping of column to value.
        table: manifest or index.
        progress: called with (sites done, sites in all).
        threads: number of threads.
    """
    wanted = ("site_id", "paths", "channels", "height_px", "width_px")
    table = table.select([name for name in wanted if name in table.column_names])

    def task(begin: int) -> list[Result]:
        return [function(row) for row in table.slice(begin, _SITES_PER_TASK).to_pylist()]

    done = 0
    with ThreadPoolExecutor(threads) as pool:
        for results in pool.map(task, range(0, table.num_rows, _SITES_PER_TASK)):
            yield from results
            done += len(results)
            if progress is not None:
                progress(done, table.num_rows)


def _sorted(table: pa.Table) -> pa.Table:
    order = pc.sort_indices(table, [(name, "ascending") for name in SORT_KEYS])
    return table.take(order).combine_chunks()


def _check_controls(table: pa.Table, source: str) -> None:
    with_controls = table.filter(table["negative_control"])["experimental_batch"].unique()
    batches = table["experimental_batch"].unique().to_pylist()
    without = sorted(set(batches) - set(with_controls.to_pylist()))
    if without:
        raise ValueError(
            f"{source} has no negative controls in {len(without)} of {len(batches)} experimental "
            f"batches: {without[:10]}. Alignment needs some in each. Mark the controls, or build "
            "the index without requiring them if the screen has none."
        )


def _read(path: Path) -> tuple[pa.Table, dict[str, Any]]:
    if not path.is_file():
        raise ValueError(f"There is no index {path}; build one with `phenoscale index`.")
    try:
        with pq.ParquetFile(path) as file:
            table = file.read()
        facts = json.loads((table.schema.metadata or {}).get(_METADATA_KEY, b"null"))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ValueError(
            f"{path} cannot be read as an index ({error}); build it again with `phenoscale index`."
        ) from error
    recorded = facts if isinstance(facts, dict) else {}
    if not all(isinstance(recorded.get(name), str) for name in ("fingerprint", "root")):
        raise ValueError(
            f"{path} is a Parquet file, but not an index of phenoscale: it records no fingerprint. "
            "Give the manifest to `phenoscale index`, and its output here."
        )
    return table, recorded


def _check_schema(schema: pa.Schema, path: Path) -> None:
    missing = [name for name in INDEX_SCHEMA.names if name not in schema.names]
    extra = [name for name in schema.names if name not in INDEX_SCHEMA.names]
    wrong = [
        f"{field.name} is {schema.field(field.name).type}, not {field.type}"
        for field in INDEX_SCHEMA
        if field.name in schema.names and schema.field(field.name).type != field.type
    ]
    if missing or extra or wrong or schema.names != INDEX_SCHEMA.names:
        raise ValueError(
            f"{path} has not the columns of an index: missing {missing}, extra {extra}, wrong "
            f"{wrong}; required are, in order, {INDEX_SCHEMA.names}. Build it again with "
            "`phenoscale index`."
        )


def _write(table: pa.Table, fingerprint: str, root: Path, out: Path) -> None:
    folder, plain_root = out.resolve().parent, root.resolve()
    # A screen can be moved with its index; an index elsewhere keeps pointing to the images.
    together = plain_root.is_relative_to(folder) or folder.is_relative_to(plain_root)
    stored = os.path.relpath(plain_root, folder) if together else str(plain_root)
    facts = {"version": INDEX_VERSION, "root": stored, "fingerprint": fingerprint}
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        metadata = {_METADATA_KEY: json.dumps(facts).encode()}
        pq.write_table(table.replace_schema_metadata(metadata), part, compression="zstd")
        os.replace(part, out)
    except OSError as error:
        raise OSError(
            f"The index {out} could not be written ({error}); nothing was left behind. Free "
            "space, or choose another place."
        ) from error
    finally:
        part.unlink(missing_ok=True)
