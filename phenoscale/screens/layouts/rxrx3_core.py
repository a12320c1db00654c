"""RxRx3-core as Hugging Face serves it: JPEG 2000 bytes in the rows of Parquet files.

    metadata_rxrx3_core.csv
    data/train-00000-of-00035.parquet      columns __key__, jp2

A key is `{experiment}/Plate{plate}/{well}_s{site}_{1..6}`; some copies leave the word Plate out.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from phenoscale.screens.layouts.assemble import NO_NUMBER, Choices, assemble
from phenoscale.screens.layouts.found import (
    Found,
    PassedOver,
    Seen,
    as_manifest,
    refuse_reserved,
    site_lists,
)
from phenoscale.screens.layouts.rxrx import CHANNELS, join_metadata, read_metadata, rxrx3_labels
from phenoscale.screens.layouts.rxrx3 import AS_WELLS, COLUMNS, WELL_KEY
from phenoscale.screens.storage import Root

KEY = "__key__"

_KEY = (
    "^(?P<experimental_batch>[^/]+)/(?:Plate)?(?P<plate>[0-9]+)/"
    r"(?P<well>[A-Z]{1,2}[0-9]{2})_s(?P<site>[0-9]+)_w?(?P<channel>[0-9])(?:\.jp2)?$"
)


def find_sites(
    root: Root,
    *,
    metadata: str = "metadata_rxrx3_core.csv",
    incomplete: str = "refuse",
    seen: Seen | None = None,
) -> Found:
    """Finds the sites of RxRx3-core; reads keys, no image bytes.

    Args:
        root: the folder with the metadata and the Parquet files.
        metadata: path of the metadata in the root.
        incomplete: sites without all six channels: `refuse` or `leave_out`.
        seen: told how many rows were seen.

    Raises:
        ValueError: if no Parquet file has images, or metadata and images do not go together.
    """
    wells = read_metadata(root, metadata, COLUMNS).rename(columns=AS_WELLS)
    frames, passed_over, rows = [], [], 0
    for path, _ in root.files():
        if not path.endswith(".parquet"):
            reason = "it is the metadata" if path == metadata else "it is no Parquet file"
            passed_over.append((path, reason))
            continue
        refuse_reserved(pd.Series([path]), root)
        images, reasons = _images(root, path)
        frames.append(images)
        passed_over += reasons
        rows += len(images)
        if seen is not None:
            seen(rows)
    files = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
    if files.empty:
        raise ValueError(
            f"{root.url} holds no Parquet file with a column {KEY!r} and images; give the folder "
            "that holds the metadata and data/."
        )
    files = files.assign(site=files["site"].astype(int), z=NO_NUMBER, time=NO_NUMBER)
    found = assemble(files, Choices(channels=CHANNELS, incomplete=incomplete))
    sites, found, notes = join_metadata(found, wells, WELL_KEY, metadata)
    return Found(
        manifest=as_manifest(rxrx3_labels(sites), site_lists(found.paths), found.channels),
        passed_over=tuple(sorted(passed_over + found.passed_over)),
        notes=tuple(notes),
    )


def _images(root: Root, path: str) -> tuple[pd.DataFrame, PassedOver]:
    """The rows of one Parquet file: the fields of their keys, and path?row=N as path."""
    with pq.ParquetFile(root.open_input_file(path)) as file:
        columns = [field.name for field in file.schema_arrow if _holds_bytes(field.type)]
        if KEY not in file.schema_arrow.names or not columns:
            return pd.DataFrame(), [(path, f"it has no column {KEY}, or none with image bytes")]
        if len(columns) > 1 and "jp2" not in columns:
            raise ValueError(
                f"{path} has image bytes in the columns {columns}; one column, or jp2, is required."
            )
        keys = pc.cast(file.read(columns=[KEY])[KEY].combine_chunks(), pa.string())
    groups = pc.extract_regex(keys, _KEY)
    hit = np.asarray(groups.is_valid())
    fields = pd.DataFrame({f.name: groups.field(f.name).to_pandas() for f in groups.type})
    column = "&column=jp2" if len(columns) > 1 else ""
    addresses = f"{path}?row=" + pd.Series(np.arange(len(keys)).astype(str)) + column
    odd = [
        (address, f"its key {key!r} does not match")
        for address, key in zip(
            addresses[~hit], keys.filter(pa.array(~hit)).to_pylist(), strict=True
        )
    ]
    return fields.assign(path=addresses)[hit], odd


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):  # as the datasets library writes images
        return any(field.name == "bytes" for field in kind)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
