"""A few sites on disk, for tests of what reads screens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import tifffile

from phenoscale.screens.manifest import MANIFEST_SCHEMA

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
