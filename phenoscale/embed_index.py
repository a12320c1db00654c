"""A screen embedded: every site of an index, as a folder of Parquet shards (`phenoscale embed`).

A shard holds whole plates, since adaptive batch norm and wells need them. What was written before
is kept: the command given again goes on where it stopped.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from phenoscale.code_version import code_version
from phenoscale.embed_folder import is_complete, shard_name, write_manifest
from phenoscale.embed_plan import EmbedOptions, plan_embedding
from phenoscale.embed_shard import ShardEmbedder, ShardResult, Told
from phenoscale.maps.vectors import listed
from phenoscale.reference import ReferenceModel
from phenoscale.screens.index import ScreenIndex
from phenoscale.screens.packed.store import remove_leftovers

Runner = Callable[[ShardEmbedder, ReferenceModel, Sequence[int], Told], Iterator[ShardResult]]
"""Embeds the shards of these numbers, in any order, and yields what became of each."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbedReport:
    """What embedding a screen came to."""

    out: str
    """The folder."""
    level: str
    """What a row is."""
    rows: int
    """Rows of all shards."""
    num_sites: int
    """Sites of the index."""
    bad_sites: int
    """Those that could not be read and are left out."""
    shards: int
    """Shards of the folder."""
    written_shards: int
    """Those written in this run; the others were found whole."""
    written_sites: int
    """Sites of these."""
    seconds: float
    """Wall time of this run."""
    waited: float
    """Share of the time of this run's shards in which the encoder waited for images."""
    left_out: tuple[str, ...]
    """Columns of the index that the rows do not have."""

    def lines(self) -> list[str]:
        """The report as text."""
        lines = [
            f"{self.out}: {self.rows:,} rows, one per {self.level}, of "
            f"{self.num_sites - self.bad_sites:,} sites in {self.shards:,} shards"
        ]
        if not self.written_shards:
            return [*lines, "all shards were found whole, none was written"]
        return [
            *lines,
            f"{self.written_shards:,} shards written, {self.shards - self.written_shards:,} found "
            f"whole; {self.seconds:.1f} s, {self.written_sites / self.seconds:,.1f} sites/s; the "
            f"encoder waited for images {self.waited:.0%} of its time",
        ]

    def warnings(self) -> list[str]:
        """What the rows lack, as text."""
        lines = []
        if self.bad_sites:
            lines.append(
                f"{self.bad_sites:,} of {self.num_sites:,} sites "
                f"({self.bad_sites / self.num_sites:.2%}) could not be read and are left out"
            )
        if self.left_out:
            lines.append(f"columns that differ within a well are left out: {listed(self.left_out)}")
        return lines


def in_place(
    embedder: ShardEmbedder, model: ReferenceModel, shards: Sequence[int], told: Told
) -> Iterator[ShardResult]:
    """Embeds shards one after the other in this process: a `Runner`."""
    for shard in shards:
        yield embedder.write(shard, model, told)


def embed_index(
    spec: str,
    index: str | os.PathLike[str],
    out: str | os.PathLike[str],
    tell: Callable[[int, int], None],
    options: EmbedOptions | None = None,
    *,
    device: str = "cpu",
    run: Runner = in_place,
) -> EmbedReport:
    """Embeds every site of an index, or finishes what an earlier run began.

    Args:
        spec: the encoder: a folder that `phenoscale export` wrote, or timm:NAME.
        index: a path or a URL.
        out: the folder to make, a path or a URL.
        tell: called now and then with (sites done, sites in all).
        options: other than the default ones.
        device: where the encoder runs in this process.
        run: how the shards are embedded.

    Returns:
        What it came to. `out` holds part-00000.parquet, ... in the index's order, with the index's
        metadata (of wells: what all sites of each well share, and num_sites; of crops: x_px and
        y_px too) and a float32 list of fixed size per read-out; and embedding.json.

    Raises:
        ValueError: if channels or read-outs are missing, more sites are unreadable than tolerated,
            a column of the index has the name of one of ours, or `out` holds anything but a part
            of just these embeddings.
    """
    began = time.monotonic()
    location = os.fspath(index)
    screen = ScreenIndex.open(location if "://" in location else os.path.abspath(location))
    planned = plan_embedding(spec, screen, out, options or EmbedOptions(), device)
    embedder, model = planned.embedder, planned.model
    results = _all_shards(embedder, model, screen, tell, run)
    _finish(embedder, screen, results, model.facts.readout)
    written = [result for result in results if result.written]
    spent = sum(result.seconds for result in written)
    return EmbedReport(
        out=embedder.out.url,
        level=embedder.facts.level,
        rows=sum(result.rows for result in results),
        num_sites=screen.num_sites,
        bad_sites=sum(len(result.bad) for result in results),
        shards=len(results),
        written_shards=len(written),
        written_sites=sum(embedder.sites(result.shard) for result in written),
        seconds=time.monotonic() - began,
        waited=sum(result.waited_s for result in written) / spent if spent else 0.0,
        left_out=planned.left_out,
    )


def _all_shards(
    embedder: ShardEmbedder,
    model: ReferenceModel,
    screen: ScreenIndex,
    tell: Callable[[int, int], None],
    run: Runner,
) -> list[ShardResult]:
    """Finds or writes every shard; stops as soon as too many sites are bad."""
    shards = range(len(embedder.plan))
    found = {shard: x for shard in shards if (x := embedder.find(shard)) is not None}
    done = sum(embedder.sites(shard) for shard in found)
    bad = [row for result in found.values() for row in result.bad]
    _judge(screen, bad, embedder.tolerated_bad_sites)
    tell(done, screen.num_sites)

    def told(sites: int) -> None:
        nonlocal done
        done += sites
        tell(done, screen.num_sites)

    todo = [shard for shard in shards if shard not in found]
    if todo and is_complete(embedder.out):
        write_manifest(embedder.out, embedder.facts, {"complete": False})
    for result in run(embedder, model, todo, told) if todo else ():
        found[result.shard] = result
        bad += result.bad
        _judge(screen, bad, embedder.tolerated_bad_sites)
    return [found[shard] for shard in shards]


def _finish(
    embedder: ShardEmbedder, screen: ScreenIndex, results: Sequence[ShardResult], readout: str
) -> None:
    """Says in the manifest that all shards are there, and what they hold; clears up."""
    remove_leftovers(embedder.out)  # of runs and actors that died
    if is_complete(embedder.out) and not any(result.written for result in results):
        return
    bad = sorted(row for result in results for row in result.bad)
    columns = list(embedder.facts.readouts)
    more: dict[str, Any] = {
        "complete": True,
        "readout": readout if readout in columns else columns[0],
        "rows": sum(result.rows for result in results),
        "sites": screen.num_sites - len(bad),
        "bad_sites": dict(zip(_site_ids(screen, bad), bad, strict=True)),
        "code_version": code_version(),
        "shards": [
            {"file": shard_name(x.shard), "rows": x.rows, "sites": embedder.sites(x.shard)}
            for x in results
        ],
    }
    write_manifest(embedder.out, embedder.facts, more)


def _judge(screen: ScreenIndex, bad: Sequence[int], tolerated: float) -> None:
    """Refuses more bad sites than are tolerated."""
    if len(bad) > int(tolerated * screen.num_sites):
        rows = sorted(bad)
        named = [f"{x} (row {n})" for x, n in zip(_site_ids(screen, rows), rows, strict=True)]
        raise ValueError(
            f"{len(bad)} of {screen.num_sites} sites cannot be read, a share of {tolerated:g} is "
            f"tolerated: {listed(named)}. Mend them, or give a larger --tolerated-bad-sites, and "
            "start the same command again: shards that are whole are not embedded again."
        )


def _site_ids(screen: ScreenIndex, rows: Sequence[int]) -> list[str]:
    return [str(name) for name in screen.take(rows)["site_id"].to_pylist()]
