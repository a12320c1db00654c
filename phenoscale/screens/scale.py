"""From 16 to 8 bits: each plate and channel between two percentiles of its own grey values.

The rule is stated once, when a screen is indexed, and stored in the index; no reader looks at a
crop to decide how bright it is.
"""

from __future__ import annotations

import collections
import hashlib
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from phenoscale.screens.errors import ImageError
from phenoscale.screens.images.readers import read_native
from phenoscale.screens.storage import Root

SITES_PER_PLATE = 16
"""Readable sites of a plate, at most, that a channel's scale rests on: of the lowest hashes."""

Progress = Callable[[int, int], None]


def plate_scales(
    table: pa.Table,
    root: Root,
    percentiles: tuple[float, float],
    progress: Progress | None = None,
) -> tuple[dict[tuple[str, str], dict[str, tuple[float, float]]], dict[str, str]]:
    """Measures the scales of all plates that have 16-bit images.

    Args:
        table: sorted sites with their dtype.
        root: of the images.
        percentiles: low and high, in [0, 100].
        progress: called with (plates done, plates in all).

    Returns:
        (experimental_batch, plate) to channel to (low, high), grey values; and site_id to reason
        for sites of the sample whose pixels cannot be read.
    """
    deep = table.filter(pc.equal(table["dtype"], "uint16"))
    names = deep.select(["experimental_batch", "plate"]).group_by(["experimental_batch", "plate"])
    plates = names.aggregate([]).to_pylist()
    scales: dict[tuple[str, str], dict[str, tuple[float, float]]] = {}
    damaged: dict[str, str] = {}
    for done, plate in enumerate(plates):
        key = (plate["experimental_batch"], plate["plate"])
        mine = pc.and_(
            pc.equal(deep["experimental_batch"], key[0]), pc.equal(deep["plate"], key[1])
        )
        sites = deep.select(["site_id", "paths", "channels"]).filter(mine).to_pylist()
        sites.sort(key=lambda s: hashlib.blake2b(s["site_id"].encode()).digest())
        scales[key] = _scale(sites, root, percentiles, damaged)
        if progress is not None:
            progress(done + 1, len(plates))
    return scales, damaged


def _scale(
    sites: list[dict],
    root: Root,
    percentiles: tuple[float, float],
    damaged: dict[str, str],
) -> dict[str, tuple[float, float]]:
    counts: dict[str, np.ndarray] = {}
    sampled: collections.Counter[str] = collections.Counter()
    for site in sites:
        # Sites may differ in their channels, and unreadable ones do not count.
        wanted = [name for name in site["channels"] if sampled[name] < SITES_PER_PLATE]
        if not wanted:
            continue
        try:
            pixels = read_native(root, site["paths"], site["channels"], wanted)
        except ImageError as error:
            damaged[site["site_id"]] = str(error)
            continue
        sampled.update(wanted)
        for name, plane in zip(wanted, pixels, strict=True):
            counts.setdefault(name, np.zeros(2**16, np.int64))
            counts[name] += np.bincount(plane.ravel(), minlength=2**16)
    return {name: percentile_range(count, percentiles) for name, count in counts.items()}


def percentile_range(counts: np.ndarray, percentiles: tuple[float, float]) -> tuple[float, float]:
    """Grey values at two percentiles of a histogram: the smallest value that the share reaches.

    As `numpy.percentile(values, q, method="inverted_cdf")` of the counted values.

    Args:
        counts: int64 (65536,), pixels of each grey value.
        percentiles: low and high, in [0, 100].
    """
    share = np.cumsum(counts)
    wanted = [max(1, np.ceil(q / 100 * share[-1] - 1e-9)) for q in percentiles]
    low, high = np.searchsorted(share, wanted, side="left")
    return float(low), float(high)
