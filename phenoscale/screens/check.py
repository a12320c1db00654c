"""Checks an index against the images on disk, and counts what a screen holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from phenoscale.screens.index import ScreenIndex, map_sites
from phenoscale.screens.readers import ImageError, MissingImageError, read_header, read_site

_SHOWN = 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class IndexReport:
    """What a screen holds, and what is wrong with it."""

    path: str
    """The index."""
    fingerprint: str
    """Its fingerprint."""
    decoded: bool
    """Whether all pixels were read; otherwise the files' headers only."""
    sites: int
    """Rows of the index."""
    wells: int
    """Distinct wells; a well belongs to its plate and experimental batch."""
    plates: int
    """Distinct plates; a plate belongs to its experimental batch."""
    experimental_batches: int
    """Distinct experimental batches."""
    perturbations: int
    """Distinct class labels, negative controls among them."""
    genes: int
    """Distinct genes."""
    controls_per_batch: dict[str, int]
    """Negative control wells of each experimental batch, 0 included."""
    channels: tuple[str, ...]
    """Channels that all sites have."""
    sizes_px: dict[str, int]
    """Sites of each size, as "height x width"."""
    missing: tuple[tuple[str, str], ...]
    """(site_id, reason) where a file does not exist."""
    unreadable: tuple[tuple[str, str], ...]
    """(site_id, reason) where a file exists and is not the image that the index describes."""

    @property
    def problems(self) -> list[str]:
        """One sentence for each thing that is wrong; empty for a sound index."""
        found = [
            f"site {site_id!r}: {reason}" for site_id, reason in self.missing + self.unreadable
        ]
        without = [name for name, count in self.controls_per_batch.items() if not count]
        # A screen without any controls was indexed so on purpose.
        if 0 < len(without) < len(self.controls_per_batch):
            found.append(
                f"the experimental batches {without} have no negative controls, others have."
            )
        if not self.channels:
            found.append("no channel is common to all sites, so none can be trained on together.")
        return found

    def lines(self) -> list[str]:
        """The report as text, one line each, to be printed."""
        controls = ", ".join(f"{name}: {count}" for name, count in self.controls_per_batch.items())
        sizes = ", ".join(f"{size} ({count} sites)" for size, count in self.sizes_px.items())
        lines = [
            f"index                {self.path}",
            f"fingerprint          {self.fingerprint}",
            f"sites                {self.sites}",
            f"wells                {self.wells}",
            f"plates               {self.plates}",
            f"experimental batches {self.experimental_batches}",
            f"perturbations        {self.perturbations}",
            f"genes                {self.genes}",
            f"control wells        {controls}",
            f"channels             {', '.join(self.channels)}",
            f"sizes in pixels      {sizes}",
            f"files checked        {'all pixels' if self.decoded else 'headers only'}",
            f"missing              {len(self.missing)}",
            f"unreadable           {len(self.unreadable)}",
        ]
        problems = self.problems
        lines += [f"PROBLEM {problem}" for problem in problems[:_SHOWN]]
        if len(problems) > _SHOWN:
            lines.append(f"and {len(problems) - _SHOWN} more problems")
        return lines


def check_index(
    index: ScreenIndex,
    decode: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> IndexReport:
    """Compares every site of an index with its files.

    Args:
        index: the index.
        decode: whether to read all pixels, which also finds damage behind the headers.
        progress: called with (sites done, sites in all).

    Returns:
        The report; bad sites are in it, they raise nothing.
    """

    def check(row: dict[str, Any]) -> tuple[str, ImageError] | None:
        try:
            header = read_header(index.root, row["paths"], row["channels"])
            found, recorded = (
                (header.height_px, header.width_px),
                (row["height_px"], row["width_px"]),
            )
            if found != recorded:
                raise ImageError(
                    f"{', '.join(row['paths'])} has {found} pixels, the index says {recorded}; "
                    "build the index again."
                )
            if decode:
                read_site(index.root, row["paths"], row["channels"], row["channels"])
        except ImageError as error:
            return row["site_id"], error
        return None

    bad = [result for result in map_sites(check, index.table, progress) if result is not None]
    missing = [(site, str(e)) for site, e in bad if isinstance(e, MissingImageError)]
    unreadable = [(site, str(e)) for site, e in bad if not isinstance(e, MissingImageError)]
    table = index.table
    sizes = table.group_by(["height_px", "width_px"]).aggregate([([], "count_all")]).to_pylist()
    return IndexReport(
        path=str(index.path),
        fingerprint=index.fingerprint,
        decoded=decode,
        sites=index.num_sites,
        wells=_count_groups(table, ["experimental_batch", "plate", "well"]),
        plates=_count_groups(table, ["experimental_batch", "plate"]),
        experimental_batches=_count_groups(table, ["experimental_batch"]),
        perturbations=_count_groups(table, ["perturbation"]),
        genes=pc.count_distinct(table["gene"]).as_py(),
        controls_per_batch=_controls_per_batch(table),
        channels=index.channels,
        sizes_px={f"{s['height_px']} x {s['width_px']}": s["count_all"] for s in sizes},
        missing=tuple(missing),
        unreadable=tuple(unreadable),
    )


def _count_groups(table: pa.Table, columns: list[str]) -> int:
    return table.group_by(columns).aggregate([]).num_rows


def _controls_per_batch(table: pa.Table) -> dict[str, int]:
    counts = dict.fromkeys(table["experimental_batch"].unique().to_pylist(), 0)
    controls = table.filter(table["negative_control"])
    wells = controls.group_by(["experimental_batch", "plate", "well"]).aggregate([])
    for name in wells["experimental_batch"].to_pylist():
        counts[name] += 1
    return counts
