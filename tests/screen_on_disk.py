"""A few sites on disk, for tests of what reads screens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import tifffile

from phenoscale.screens.index import ScreenIndex
from phenoscale.screens.index_format import SORT_KEYS, IndexWriter
from phenoscale.screens.layouts.manifest import MANIFEST_SCHEMA
from phenoscale.screens.packed.packing import ShardPacker, packed_paths, plan_store
from phenoscale.screens.packed.store import claim_store
from phenoscale.screens.storage import Root

CHANNELS = ["dna", "er", "actin"]


def pixels(seed: int, channels: int = 3, height: int = 12, width: int = 10) -> np.ndarray:
    """Random uint8 (C, H, W)."""
    return np.random.default_rng(seed).integers(0, 256, (channels, height, width), dtype=np.uint8)


def site_row(batch: int, plate: int, well: int, site: int, /, **changes: Any) -> dict[str, Any]:
    """A row of the manifest; every fourth well is a negative control."""
    control = well % 4 == 0
    row = {
        "site_id": f"b{batch}_p{plate}_w{well:02d}_s{site}",
        "experimental_batch": f"b{batch}",
        "plate": f"p{plate}",
        "well": f"A{well:02d}",
        "site": site,
        "perturbation": "negative_control" if control else f"G{well}",
        "perturbation_type": "none" if control else "crispr",
        "gene": None if control else f"G{well}",
        "guide": None if control else f"G{well}-1",
        "compound": None,
        "concentration": None,
        "negative_control": control,
        "cell_type": "U2OS",
        "paths": [f"images/b{batch}_p{plate}_w{well:02d}_s{site}.tif"],
        "channels": CHANNELS,
    }
    return row | changes


def screen_rows(batches: int = 2, plates: int = 2, wells: int = 8, sites: int = 2) -> list[dict]:
    """Rows of a balanced screen."""
    return [
        site_row(b, p, w, s)
        for b in range(batches)
        for p in range(plates)
        for w in range(wells)
        for s in range(sites)
    ]


def as_table(rows: list[dict[str, Any]]) -> pa.Table:
    """Rows as a typed manifest."""
    return pa.Table.from_pylist(rows, schema=MANIFEST_SCHEMA)


def write_images(root: Path, rows: list[dict[str, Any]]) -> None:
    """Writes one TIFF with all channels per row."""
    for seed, row in enumerate(rows):
        path = root / row["paths"][0]
        path.parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(
            path, pixels(seed), photometric="minisblack", planarconfig="separate", metadata=None
        )


def packer_of(
    index: ScreenIndex, out: Root, shard_bytes: int = 2**28, raw: bool = True
) -> ShardPacker:
    """What packs an index into a store."""
    plan = plan_store(index, shard_bytes, raw)
    return ShardPacker(index=index.location, root=index.root, out=out, plan=plan)


def packed_copy(
    index: ScreenIndex, folder: Path, shard_bytes: int = 2**28, raw: bool = True
) -> ScreenIndex:
    """Packs a screen in this process; what `phenoscale pack` writes through Ray."""
    store = claim_store(folder, index.fingerprint)
    packer = packer_of(index, store, shard_bytes, raw)
    for shard in range(packer.num_shards):
        assert packer.find(shard) is None
        packer.write(shard)
        packer.check(shard)
        found = packer.find(shard)
        assert found is not None and not found.written
    paths = packed_paths(index, packer.plan, [])
    return index.repointed(paths, store, folder / "index.parquet")


def index_of(rows: list[dict[str, Any]], out: Path, **options: Any) -> ScreenIndex:
    """Writes an index of images that do not exist, for tests of what reads none."""
    rows = sorted(rows, key=lambda row: [row[name] for name in SORT_KEYS])
    table = pa.Table.from_pylist(rows, schema=MANIFEST_SCHEMA)
    for name, value in (("height_px", 12), ("width_px", 10), ("dtype", "uint8")):
        kind = pa.string() if name == "dtype" else pa.int32()
        table = table.append_column(name, pa.array([r.get(name, value) for r in rows], kind))
    for field in options.get("extra", ()):
        table = table.append_column(field, pa.array([r[field.name] for r in rows], field.type))
    classes = pa.array(sorted(set(table["perturbation"].to_pylist())))
    with IndexWriter(out, Root(str(out.parent)), classes=classes, **options) as writer:
        writer.write(table)
    return ScreenIndex.open(out)


def wells_of(index: ScreenIndex, rows: np.ndarray) -> set[tuple[str, str, str]]:
    """Names of the wells that some rows belong to."""
    table = index.table.take(rows).select(["experimental_batch", "plate", "well"])
    return {tuple(row.values()) for row in table.to_pylist()}


def large_index(out: Path, rows: int) -> ScreenIndex:
    """Writes an index of made-up rows: 7 sites a well, 53 wells a plate, 5 plates a batch."""
    row = np.arange(rows)
    well, plate = row // 7, row // (7 * 53)
    control = well % 53 == 0

    def text(form: str, numbers: np.ndarray) -> pa.Array:
        values, which = np.unique(numbers, return_inverse=True)
        return pa.array([form.format(v) for v in values.tolist()]).take(pa.array(which))

    site_id, perturbation = text("s{:07d}", row), text("G{:02d}", well % 53)
    columns: dict[str, Any] = {
        "site_id": site_id,
        "experimental_batch": text("b{:04d}", plate // 5),
        "plate": text("p{:05d}", plate),
        "well": text("w{:06d}", well),
        "site": pa.array((row % 7).astype(np.int32)),
        "perturbation": perturbation,
        "perturbation_type": text("crispr", 0 * row),
        "negative_control": pa.array(control),
        "paths": pa.ListArray.from_arrays(np.arange(rows + 1, dtype=np.int32), site_id),
        "channels": pa.array([["dna", "er"]]).take(pa.array(0 * row)),
        "height_px": pa.array(np.full(rows, 12, np.int32)),
        "width_px": pa.array(np.full(rows, 10, np.int32)),
        "dtype": text("uint8", 0 * row),
    }
    for field in MANIFEST_SCHEMA:
        columns.setdefault(field.name, pa.nulls(rows, field.type))
    classes = perturbation.unique().sort()
    with IndexWriter(out, Root(str(out.parent)), classes=classes) as writer:
        for first in range(0, rows, 10_000):
            writer.write(pa.table(columns).slice(first, 10_000))
    return ScreenIndex.open(out)
