"""Packing a screen on Ray: every shard is a task, a killed run goes on where it stopped.

A shard is found whole, or written and then verified; the index follows when all are. So whatever
ends a run, what it leaves is an unfinished store, which nothing opens, and never a wrong one.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import ray
import ray.data
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from phenoscale.on_ray.start import start_ray
from phenoscale.screens.index import ScreenIndex
from phenoscale.screens.index_format import GROUP_ROWS
from phenoscale.screens.packed.packing import (
    SHARD_BYTES,
    ShardPacker,
    ShardResult,
    packed_paths,
    plan_store,
)
from phenoscale.screens.packed.store import (
    BAD_SITES_NAME,
    INDEX_NAME,
    claim_store,
    file_location,
    put,
    read_or_none,
    remove,
    remove_leftovers,
)
from phenoscale.screens.storage import Root

_MOST_BLOCKS = 1000  # Ray Data's cost is per block; each is one step of the progress bar
_QUIET_S = 15.0  # between lines of progress where the output is no terminal
_SHOWN = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackReport:
    """What packing a screen came to."""

    index: str
    """Index of the packed copy."""
    sites: int
    """Sites in it."""
    bad_sites: int
    """Sites left out because they could not be read."""
    shards: int
    """Shards of the store."""
    written_shards: int
    """Those written in this run; the others were found whole."""
    packed_bytes: int
    """Size of all shards."""
    pixel_bytes: int
    """Bytes of the pixels that they hold, in 8 bits."""
    source_bytes: int
    """Estimated size of the files that they were read from; 0 where files hold several sites."""
    written_sites: int
    """Sites written in this run."""
    written_pixel_bytes: int
    """Bytes of their pixels."""
    seconds: float
    """Wall time of this run."""

    def lines(self) -> list[str]:
        """The report as text."""
        of_pixels = f"{self.packed_bytes / max(1, self.pixel_bytes):.2f} of its pixels in 8 bits"
        of_files = ""
        if self.source_bytes:
            of_files = f", {self.packed_bytes / self.source_bytes:.2f} of its files"
        lines = [
            f"{self.index}: {self.sites:,} sites in {self.shards:,} shards, "
            f"{self.packed_bytes / 1e6:,.1f} MB, {of_pixels}{of_files}",
            f"{self.written_shards:,} shards written and verified, "
            f"{self.shards - self.written_shards:,} found whole; {self.seconds:.1f} s, "
            f"{self.written_sites / self.seconds:,.1f} sites/s, "
            f"{self.written_pixel_bytes / 1e6 / self.seconds:,.1f} MB/s of pixels",
        ]
        if self.bad_sites:
            lines.append(
                f"{self.bad_sites:,} sites could not be read and are left out: {BAD_SITES_NAME}"
            )
        return lines


def pack_screen(
    index: str | Path,
    out: str | Path,
    console: Console,
    *,
    raw: bool | None = None,
    tolerated_bad_sites: float = 0.0,
    address: str | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> PackReport:
    """Writes the packed copy of a screen, or finishes one that was begun.

    Args:
        index: index of the screen, a path or a URL.
        out: folder of the store, a path or a URL that every node sees.
        console: where progress is shown.
        raw: whether pixels are stored as they are, the fastest to cut, or compressed in tiles, less
            to fetch; by default raw in a local folder and compressed behind a URL.
        tolerated_bad_sites: share of the sites that may be unreadable and are then left out.
        address: of a Ray cluster; a local Ray is started and stopped where there is none.
        shard_bytes: pixels of a shard in 8 bits, at most; a task holds about twice that.

    Raises:
        ValueError: if `out` holds something else, or more sites are unreadable than tolerated.
        OSError: if the images' root vanishes or the store cannot be written.
    """
    if not 0.0 <= tolerated_bad_sites < 1.0:
        raise ValueError(
            f"tolerated_bad_sites is {tolerated_bad_sites}; a share in [0, 1) is required."
        )
    began = time.monotonic()
    screen = ScreenIndex.open(index)
    raw = "://" not in str(out) if raw is None else raw
    store = claim_store(out, screen.fingerprint, raw)
    remove_leftovers(store)
    packer = ShardPacker(
        index=os.path.abspath(index) if "://" not in str(index) else str(index),
        root=screen.root,
        out=store,
        plan=plan_store(screen, shard_bytes, raw),
    )
    start_ray(address)
    try:
        results = _all_shards(packer, console)
    finally:
        ray.shutdown()
    bad = dict(pair for result in results for pair in result.bad)
    _judge(screen, store, bad, tolerated_bad_sites)
    written = [result for result in results if result.written]
    if written or read_or_none(store, INDEX_NAME, length=1) is None:
        _write_index(screen, store, packer, bad)
    return PackReport(
        index=file_location(store, INDEX_NAME),
        sites=sum(result.sites for result in results),
        bad_sites=len(bad),
        shards=len(results),
        written_shards=len(written),
        packed_bytes=sum(result.packed_bytes for result in results),
        pixel_bytes=sum(result.pixel_bytes for result in results),
        # One file for several sites leaves the sum without meaning.
        source_bytes=sum(r.source_bytes for r in results) * all(r.source_bytes for r in results),
        written_sites=sum(result.sites for result in written),
        written_pixel_bytes=sum(result.pixel_bytes for result in written),
        seconds=time.monotonic() - began,
    )


def _all_shards(packer: ShardPacker, console: Console) -> list[ShardResult]:
    """Finds, writes and verifies shards until the store holds all of them."""
    shards = range(packer.num_shards)
    with _Shown(console) as shown:
        found = _each(packer.find, shards, shown, "looking for finished shards")
        todo = sorted(set(shards) - set(found))
        if not todo:
            return list(found.values())
        # From here on the store is not what its index says.
        remove(packer.out, INDEX_NAME)
        written = _each(packer.write, todo, shown, "packing")
        absent = {shard: len(result.bad) for shard, result in written.items()}
        _each(lambda shard: packer.check(shard, absent[shard]), todo, shown, "verifying")
    return [*found.values(), *written.values()]


def _each(
    action: Callable[[int], ShardResult | None], shards: Sequence[int], shown: _Shown, what: str
) -> dict[int, ShardResult]:
    """Runs an action on every shard in tasks of Ray Data and returns what it returned."""
    numbers = np.array(shards)

    def act(batch: dict[str, np.ndarray]) -> dict[str, list[str]]:
        result = action(int(numbers[batch["id"][0]]))
        return {"result": [json.dumps(result and dataclasses.asdict(result))]}

    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    dataset = ray.data.range(
        len(numbers), override_num_blocks=min(len(numbers), _MOST_BLOCKS)
    ).map_batches(act, batch_size=1, num_cpus=1)
    results: dict[int, ShardResult] = {}
    shown.begin(what, len(numbers))
    try:
        for row in dataset.iter_rows():
            facts = json.loads(row["result"])
            shown.step(facts)
            if facts is not None:
                facts["bad"] = tuple((number, reason) for number, reason in facts["bad"])
                results[facts["shard"]] = ShardResult(**facts)
    except ray.exceptions.RayTaskError as error:
        # What went wrong in a task is told as if it had gone wrong here.
        cause = error.cause
        while isinstance(cause, ray.exceptions.RayError) and cause.__cause__ is not None:
            cause = cause.__cause__
        if isinstance(cause, ValueError | OSError):
            raise cause from error
        raise
    return results


def _judge(screen: ScreenIndex, store: Root, bad: dict[int, str], tolerated: float) -> None:
    """Writes the list of bad sites, and refuses more of them than are tolerated."""
    if not bad:
        remove(store, BAD_SITES_NAME)
        return
    names: dict[int, str] = {}
    for group in sorted({row // GROUP_ROWS for row in bad}):
        site_ids = screen.column("site_id", range(group, group + 1))
        names |= {row: site_ids[row % GROUP_ROWS] for row in bad if row // GROUP_ROWS == group}
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["site_id", "row", "reason"])
    writer.writerows([names[row], row, bad[row]] for row in sorted(bad))
    put(store, BAD_SITES_NAME, text.getvalue().encode())
    if len(bad) > int(tolerated * screen.num_sites):
        listed = "; ".join(f"{names[row]}: {bad[row]}" for row in sorted(bad)[:_SHOWN])
        more = f"; and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        raise ValueError(
            f"{len(bad)} of {screen.num_sites} sites cannot be read, a share of {tolerated:g} is "
            f"tolerated: {listed}{more}. All are listed in {file_location(store, BAD_SITES_NAME)}. "
            "Mend them, or give a larger --tolerated-bad-sites, and start the same command again: "
            "shards that are whole are not written again."
        )


def _write_index(
    screen: ScreenIndex, store: Root, packer: ShardPacker, bad: dict[int, str]
) -> None:
    paths = packed_paths(screen, packer.plan, bad)
    if store.folder is not None:
        screen.repointed(paths, store, Path(store.folder) / INDEX_NAME)
        return
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder) / INDEX_NAME
        screen.repointed(paths, store, here)
        put(store, INDEX_NAME, here.read_bytes())


class _Shown:
    """A bar on a terminal, a line now and then elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Progress(
            TextColumn("{task.description:<28}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:,} of {task.total:,} shards"),
            TextColumn("{task.fields[rate]}", style="dim"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._what, self._total, self._done, self._sites, self._bytes = "", 0, 0, 0, 0
        self._began = self._said = time.monotonic()

    def __enter__(self) -> _Shown:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def begin(self, what: str, total: int) -> None:
        """Starts to count."""
        self._what, self._total, self._done, self._sites, self._bytes = what, total, 0, 0, 0
        self._began = self._said = time.monotonic()
        self._task = self._bars.add_task(what, total=total, rate="")

    def step(self, facts: dict[str, int] | None) -> None:
        """Counts a shard."""
        self._done += 1
        if facts is not None:
            self._sites += facts["sites"]
            self._bytes += facts["pixel_bytes"]
        seconds = max(1e-3, time.monotonic() - self._began)
        rate = f"{self._sites / seconds:,.0f} sites/s, {self._bytes / 1e6 / seconds:,.0f} MB/s"
        self._bars.update(self._task, completed=self._done, rate=rate)
        if not self._console.is_terminal and time.monotonic() - self._said > _QUIET_S:
            self._said = time.monotonic()
            self._console.print(
                f"  {self._what}: {self._done:,} of {self._total:,} shards, {rate}", highlight=False
            )
