"""Checks an index against the images on disk, and counts what a screen holds."""

from __future__ import annotations

import collections
import csv
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from phenoscale.screens.build import map_sites
from phenoscale.screens.errors import ImageError, MissingImageError
from phenoscale.screens.images.readers import read_header, read_site
from phenoscale.screens.index import ScreenIndex

_SHOWN = 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class IndexReport:
    """What a screen holds, and what is wrong with it."""

    path: str
    """The index."""
    fingerprint: str
    """Its fingerprint."""
    root: str
    """Where its images are."""
    decoded: bool
    """Whether all pixels were read; otherwise the files' headers only."""
    sites: int
    """Rows of the index."""
    wells: int
    """Distinct wells; a well belongs to its plate and experimental batch."""
    plates: int
    """Distinct plates; a plate belongs to its experimental batch."""
    perturbations: int
    """Distinct class labels, negative controls among them."""
    genes: int
    """Distinct genes."""
    controls_per_batch: dict[str, int]
    """Negative control wells of each experimental batch, 0 included."""
    channels: tuple[str, ...]
    """Channels that all sites have."""
    sites_of_channel: dict[str, int]
    """Sites that have a channel, for every channel of the screen."""
    sizes_px: dict[str, int]
    """Sites of each size and type, as "height x width dtype"."""
    percentiles: tuple[float, float] | None
    """Of the rule that brings 16-bit plates to 8 bits; None where there are none."""
    missing: tuple[tuple[str, str], ...]
    """(site_id, reason) where a file does not exist."""
    unreadable: tuple[tuple[str, str], ...]
    """(site_id, reason) where a file exists and is not the image that the index describes."""

    @property
    def experimental_batches(self) -> int:
        """Number of experimental batches."""
        return len(self.controls_per_batch)

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
        others = {n: c for n, c in self.sites_of_channel.items() if n not in self.channels}
        scale = "8-bit images are used as they are"
        if self.percentiles:
            low, high = self.percentiles
            scale = f"percentiles {low:g} and {high:g} of each plate and channel become 0 and 255"
        lines = [
            f"index                {self.path}",
            f"fingerprint          {self.fingerprint}",
            f"images               {self.root}",
            f"sites                {self.sites}",
            f"wells                {self.wells}",
            f"plates               {self.plates}",
            f"experimental batches {self.experimental_batches}",
            f"perturbations        {self.perturbations}",
            f"genes                {self.genes}",
            f"control wells        {controls}",
            f"channels             {', '.join(self.channels)}",
            *[f"  of some sites only {name} ({count} sites)" for name, count in others.items()],
            f"sizes in pixels      {sizes}",
            f"grey values          {scale}",
            f"files checked        {'all pixels' if self.decoded else 'headers only'}",
            f"missing              {len(self.missing)}",
            f"unreadable           {len(self.unreadable)}",
        ]
        problems = self.problems
        lines += [f"PROBLEM {problem}" for problem in problems[:_SHOWN]]
        if len(problems) > _SHOWN:
            lines.append(f"and {len(problems) - _SHOWN} more problems; --list FILE names them all")
        return lines

    def write_list(self, path: Path) -> None:
        """Writes every site that is missing or unreadable, with the reason, as CSV."""
        with path.open("w", newline="") as lines:
            table = csv.writer(lines)
            table.writerow(("site_id", "problem", "reason"))
            table.writerows((site, "missing", reason) for site, reason in self.missing)
            table.writerows((site, "unreadable", reason) for site, reason in self.unreadable)


def check_index(
    index: ScreenIndex,
    decode: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> IndexReport:
    """Compares every site of an index with its files, a piece of the index at a time.

    Args:
        index: the index.
        decode: whether to read all pixels, which also finds damage behind the headers.
        progress: called with (sites done, sites in all).

    Returns:
        The report; bad sites are in it, they raise nothing.

    Raises:
        ValueError: if the index itself has changed since it was built.
        RootVanishedError: if the images as a whole are gone.
    """

    def check(row: dict[str, Any]) -> tuple[str, ImageError] | None:
        try:
            _check_site(index, row, decode)
        except ImageError as error:
            return row["site_id"], error
        return None

    bad: list[tuple[str, ImageError]] = []
    counts: dict[str, collections.Counter[Any]] = collections.defaultdict(collections.Counter)
    control_wells: set[tuple[str, int]] = set()
    for first, table in index.verified():
        _count(table, counts)
        controls = table.filter(table["negative_control"])
        control_wells |= set(
            zip(
                *(controls[n].to_pylist() for n in ("experimental_batch", "well_hash")), strict=True
            )
        )
        wanted = ["site_id", "paths", "channel_set", "height_px", "width_px", "dtype"]
        sites = table.select(wanted).append_column(
            "row", pa.array(range(first, first + len(table)))
        )
        for done, result in enumerate(map_sites(check, sites), start=first + 1):
            if result is not None:
                bad.append(result)
            if progress is not None:
                progress(done, index.num_sites)
    return _report(index, decode, bad, counts, control_wells)


def _check_site(index: ScreenIndex, row: dict[str, Any], decode: bool) -> None:
    channels = index.channel_sets[row["channel_set"]]
    header = read_header(index.root, row["paths"], channels)
    found = (header.height_px, header.width_px, header.dtype)
    recorded = (row["height_px"], row["width_px"], row["dtype"])
    if found != recorded:
        raise ImageError(
            f"{', '.join(row['paths'])} is {found[0]} x {found[1]} {found[2]}, the index says "
            f"{recorded[0]} x {recorded[1]} {recorded[2]}; build the index again."
        )
    if decode:
        scale = index.scale(row["row"], row["channel_set"])
        read_site(index.root, row["paths"], channels, channels, scale)


def _count(table: pa.Table, counts: dict[str, collections.Counter[Any]]) -> None:
    keys = ["height_px", "width_px", "dtype"]
    for size in table.group_by(keys).aggregate([([], "count_all")]).to_pylist():
        text = f"{size['height_px']} x {size['width_px']} {size['dtype']}"
        counts["sizes"][text] += size["count_all"]
    for name in ("gene", "channel_set", "well_hash"):
        for pair in pc.value_counts(table[name]).to_pylist():
            counts[name][pair["values"]] += pair["counts"]


def _report(
    index: ScreenIndex,
    decode: bool,
    bad: list[tuple[str, ImageError]],
    counts: dict[str, collections.Counter[Any]],
    control_wells: set[tuple[str, int]],
) -> IndexReport:
    missing = [(site, str(e)) for site, e in bad if isinstance(e, MissingImageError)]
    unreadable = [(site, str(e)) for site, e in bad if not isinstance(e, MissingImageError)]
    controls = dict.fromkeys(index.plates["experimental_batch"].tolist(), 0)
    for batch, _ in control_wells:
        controls[batch] += 1
    of_channel: collections.Counter[str] = collections.Counter()
    for number, sites in counts["channel_set"].items():
        of_channel.update(dict.fromkeys(index.channel_sets[number], sites))
    return IndexReport(
        path=index.location,
        fingerprint=index.fingerprint,
        root=index.root.url,
        decoded=decode,
        sites=index.num_sites,
        wells=len(counts["well_hash"]),
        plates=len(index.plates),
        perturbations=index.num_classes,
        genes=len([gene for gene in counts["gene"] if gene is not None]),
        controls_per_batch=controls,
        channels=index.channels,
        sites_of_channel=dict(of_channel),
        sizes_px=dict(counts["sizes"]),
        percentiles=index.facts.percentiles,
        missing=tuple(missing),
        unreadable=tuple(unreadable),
    )
