"""The layouts by name, and what a person is told of the sites that one has found."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import pyarrow.compute as pc

from phenoscale.screens.layouts import jump, ome_zarr, pattern, rxrx1, rxrx3, rxrx3_core
from phenoscale.screens.layouts.found import Found, some

LAYOUTS: dict[str, Callable[..., Found]] = {
    "rxrx1": rxrx1.find_sites,
    "rxrx3": rxrx3.find_sites,
    "rxrx3-core": rxrx3_core.find_sites,
    "jump": jump.find_sites,
    "ome-zarr": ome_zarr.find_sites,
    "pattern": pattern.find_sites,
}
"""Layout -> function that finds its sites: find_sites(root, ...) -> Found."""


def summary(found: Found) -> list[str]:
    """What was found and what was passed over, one line each, to be printed.

    Args:
        found: the sites of a layout.
    """
    table = found.manifest
    wells = pc.binary_join_element_wise(
        table["experimental_batch"], table["plate"], table["well"], "/"
    )
    plates = pc.binary_join_element_wise(table["experimental_batch"], table["plate"], "/")
    lines = [
        f"{table.num_rows:,} sites, {pc.count_distinct(wells).as_py():,} wells, "
        f"{pc.count_distinct(plates).as_py():,} plates, "
        f"{pc.sum(table['negative_control']).as_py() or 0:,} sites of negative controls"
    ]
    for names, sites in _channel_sets(found).items():
        lines.append(f"channels {', '.join(names)} ({sites:,} sites)")
    reasons: dict[str, list[str]] = defaultdict(list)
    for path, reason in found.passed_over:
        reasons[reason].append(path.rpartition("/")[2])
    lines += [
        f"passed over {len(paths):,} files, {reason}: {some(paths, 3)}"
        for reason, paths in sorted(reasons.items())
    ]
    return [*lines, *found.notes]


def _channel_sets(found: Found) -> dict[tuple[str, ...], int]:
    joined = pc.value_counts(pc.binary_join(found.manifest["channels"], "\0").combine_chunks())
    return {tuple(entry["values"].split("\0")): entry["counts"] for entry in joined.to_pylist()}
