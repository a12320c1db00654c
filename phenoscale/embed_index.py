"""A screen embedded by an exported encoder, as a table."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from phenoscale.config import READOUTS, Crops
from phenoscale.embed_screen import embed_screen
from phenoscale.export import load_encoder
from phenoscale.models.camae import ChannelAgnosticEncoder
from phenoscale.screens.index import ScreenIndex
from phenoscale.screens.index_format import GROUP_ROWS, IMAGE_COLUMNS
from phenoscale.screens.site_reader import SiteReader


def embed_index(
    folder: Path,
    index: str,
    out: Path,
    tell: Callable[[int, int], None],
    *,
    channels: Sequence[str] | None = None,
    every_block: bool = False,
    tolerated_bad_sites: float = 0.0,
    device: str = "cpu",
) -> tuple[int, int]:
    """Embeds every site of an index with an exported encoder, into a Parquet file.

    A row per readable site: site_id, the index's other metadata, and list<float32> per read-out.

    Args:
        folder: of the encoder.
        index: a path or a URL.
        out: the file, written whole or not at all.
        tell: called now and then with (sites done, sites in all).
        channels: those to use, by name; None for the encoder's own, or all of the screen's where
            the encoder takes any.
        every_block: whether to read each block of a transformer too.
        tolerated_bad_sites: share of unreadable sites that may be left out.
        device: where the encoder runs.

    Returns:
        Sites written, and unreadable sites left out.

    Raises:
        ValueError: if channels are missing, more sites are unreadable than tolerated, or the index
            has a column by the name of a read-out.
    """
    loaded = load_encoder(folder, device=device)
    if channels is None and not isinstance(loaded.encoder, ChannelAgnosticEncoder):
        channels = loaded.facts.channels
    screen, size_px = ScreenIndex.open(index), loaded.facts.size_px
    for name in screen.take([]).column_names:
        if name in READOUTS or name.startswith("block_"):
            raise ValueError(
                f"{index} has the column {name}, which is the name of a read-out. Rename it in the "
                "manifest and build the index again."
            )
    out.parent.mkdir(parents=True, exist_ok=True)
    crops = Crops(size_px=size_px, tolerated_bad_sites=tolerated_bad_sites)
    reader = SiteReader(index_path=index, crops=crops)
    vectors, bad = embed_screen(
        reader, loaded.encoder, size_px, tell, channels=channels, every_block=every_block
    )
    _write_embeddings(out, screen, vectors, bad)
    return screen.num_sites - len(bad), len(bad)


def _write_embeddings(
    out: Path, screen: ScreenIndex, vectors: dict[str, np.ndarray], bad: list[int]
) -> None:
    """Writes the readable rows, a block of the index at a time, beside `out`, and renames."""
    kept = np.ones(screen.num_sites, bool)
    kept[bad] = False
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    writer = None
    try:
        for start, rows in screen.verified():
            metadata = rows.drop_columns(list(IMAGE_COLUMNS))
            # Offsets of a list column are 32 bits: a part of the rows at a time.
            for first in range(0, len(rows), GROUP_ROWS):
                table = metadata.slice(first, GROUP_ROWS)
                here = slice(start + first, start + first + len(table))
                table = table.filter(pa.array(kept[here]))
                for name, x in vectors.items():
                    values = x[here][kept[here]]
                    offsets = np.arange(len(values) + 1, dtype=np.int32) * x.shape[1]
                    column = pa.ListArray.from_arrays(offsets, values.ravel())
                    table = table.append_column(name, column)
                writer = writer or pq.ParquetWriter(part, table.schema)
                writer.write_table(table)
        assert writer is not None, "an index has rows"
        writer.close()
        os.replace(part, out)
    finally:
        part.unlink(missing_ok=True)
