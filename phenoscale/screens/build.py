"""From a manifest and its images to an index: every file's header is read, no training yet."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from phenoscale.screens.errors import ImageError
from phenoscale.screens.images.headers import ImageHeader
from phenoscale.screens.images.readers import read_header
from phenoscale.screens.index import ScreenIndex
from phenoscale.screens.index_format import SORT_KEYS, IndexWriter
from phenoscale.screens.layouts.manifest import MANIFEST_SCHEMA, check_manifest, row_number
from phenoscale.screens.scale import plate_scales
from phenoscale.screens.storage import Root

_SITES_PER_TASK = 64

Progress = Callable[[int, int], None]
Result = TypeVar("Result")


def build_index(
    manifest: pa.Table,
    root: Root | Path,
    out: Path,
    *,
    require_controls: bool = True,
    percentiles: tuple[float, float] = (0.1, 99.9),
    damaged: Literal["refuse", "leave_out"] = "refuse",
    progress: Progress | None = None,
    source: str = "The manifest",
) -> ScreenIndex:
    """Checks a manifest against its images and writes the index, whole or not at all.

    Every file's header is read. Pixels are read of 16-bit plates alone, and of some sites, for
    their scale (`scale.py`); `check_index(index, decode=True)` reads all.

    Args:
        manifest: as `check_manifest` takes it.
        root: where the paths start.
        out: Parquet file to write.
        require_controls: whether every experimental batch must have negative controls, which
            alignment needs; False for screens that have none.
        percentiles: of a plate's grey values that become 0 and 255, for 16-bit images.
        damaged: whether sites with bad images refuse the index or are left out of it. Either way
            they are named, all of them, in `damaged_csv(out)`.
        progress: called with (sites done, sites in all).
        source: what errors call the manifest.

    Returns:
        The index, as `ScreenIndex.open(out)` gives it.

    Raises:
        ValueError: for a wrong manifest, a batch without controls, or bad images under "refuse":
            names the first with its site_id, row, path and reason, and counts the others.
        OSError: if the index cannot be written, for example to a full disk.
    """
    if not 0 <= percentiles[0] < percentiles[1] <= 100:
        raise ValueError(
            f"percentiles are {percentiles}; two ascending numbers in [0, 100] are required, for "
            "example 0.1 and 99.9."
        )
    table = check_manifest(manifest, source)
    root = Root.of(root) if isinstance(root, str | Path) else root
    if require_controls:
        _check_controls(table, source)
    table, bad = _with_headers(table, root, progress)
    table = _sorted(table)
    scales, unread = plate_scales(table, root, percentiles)
    bad |= unread
    _report_damaged(bad, manifest, out, damaged, source)
    if unread:
        table = table.filter(pc.invert(pc.is_in(table["site_id"], pa.array(list(unread)))))
    if not len(table):
        raise ValueError(f"{source} has no readable site; no index was written.")
    if require_controls and bad:
        _check_controls(table, f"{source}, without its bad images,")
    with IndexWriter(
        Path(out),
        root,
        classes=_classes(table),
        extra=tuple(f for f in table.schema if f.name not in _KNOWN),
        scales=scales,
        percentiles=percentiles,
    ) as writer:
        writer.write(table)
    return ScreenIndex.open(out)


_KNOWN = (*MANIFEST_SCHEMA.names, "height_px", "width_px", "dtype")


def damaged_csv(out: Path) -> Path:
    """Where the bad sites of an index are listed: site_id and reason."""
    return Path(out).with_suffix(".damaged.csv")


def map_sites(
    function: Callable[[dict[str, Any]], Result],
    table: pa.Table,
    progress: Progress | None = None,
    threads: int = 8,
) -> Iterator[Result]:
    """Calls `function` with each row of a table, as a mapping of column to value, in order.

    Threads, because waiting for files (a network disk above all) is most of the work.

    Args:
        function: takes a mapping of column to value.
        table: the columns that it needs.
        progress: called with (sites done, sites in all).
        threads: number of threads.
    """

    def task(begin: int) -> list[Result]:
        return [function(row) for row in table.slice(begin, _SITES_PER_TASK).to_pylist()]

    done = 0
    with ThreadPoolExecutor(threads) as pool:
        for results in pool.map(task, range(0, table.num_rows, _SITES_PER_TASK)):
            yield from results
            done += len(results)
            if progress is not None:
                progress(done, table.num_rows)


def _with_headers(
    table: pa.Table, root: Root, progress: Progress | None
) -> tuple[pa.Table, dict[str, str]]:
    """The readable sites with height_px, width_px, dtype; and site_id to reason of the others."""

    def read(row: dict[str, Any]) -> ImageHeader | ImageError:
        try:
            return read_header(root, row["paths"], row["channels"])
        except ImageError as error:
            return error

    wanted = table.select(["paths", "channels"])
    found = list(map_sites(read, wanted, progress))
    ids = table["site_id"].to_pylist()
    bad = {ids[i]: str(x) for i, x in enumerate(found) if isinstance(x, ImageError)}
    good = [header for header in found if not isinstance(header, ImageError)]
    table = table.filter(pa.array([not isinstance(x, ImageError) for x in found]))
    for name, kind in (("height_px", pa.int32()), ("width_px", pa.int32()), ("dtype", pa.string())):
        column = pa.array([getattr(header, name) for header in good], kind)
        table = table.append_column(pa.field(name, kind, nullable=False), column)
    return table, bad


def _report_damaged(
    bad: dict[str, str], manifest: pa.Table, out: Path, damaged: str, source: str
) -> None:
    """Writes the list of bad sites, or removes that of an earlier attempt; raises if refused."""
    listing = damaged_csv(out)
    listing.unlink(missing_ok=True)
    if not bad:
        return
    listing.parent.mkdir(parents=True, exist_ok=True)
    with listing.open("w", newline="") as lines:
        csv.writer(lines).writerows([("site_id", "reason"), *sorted(bad.items())])
    if damaged == "leave_out":
        return
    ids = [str(x) for x in manifest["site_id"].to_pylist()]
    first = next(iter(bad))
    position = ids.index(first)
    more = f" {len(bad) - 1} more sites have bad images." if len(bad) > 1 else ""
    raise ValueError(
        f"{source}, row {row_number(position)}, site {first!r}: {bad[first]}{more} All are listed "
        f"in {listing}. No index was written: mend the files, or leave these sites out "
        "(--damaged leave-out)."
    )


def _sorted(table: pa.Table) -> pa.Table:
    order = pc.sort_indices(table, [(name, "ascending") for name in SORT_KEYS])
    return table.take(order).combine_chunks()


def _classes(table: pa.Table) -> pa.Array:
    names = pc.unique(table["perturbation"])
    return names.take(pc.sort_indices(names))


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
