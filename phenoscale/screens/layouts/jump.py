"""Cell Painting Gallery: load_data tables that list the images, a 16-bit TIFF per channel.

    {source}/workspace/load_data_csv/{batch}/{plate}/load_data.csv      (or .csv.gz, .parquet)

Columns are Metadata_Plate, Metadata_Well and Metadata_Site, and for each channel FileName_OrigDNA
with PathName_OrigDNA, or URL_OrigDNA. Tables of several sources may have different channels.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import pandas as pd
import pyarrow as pa

from phenoscale.screens.layouts.found import (
    Found,
    PassedOver,
    Seen,
    as_manifest,
    inside,
    site_lists,
    some,
)
from phenoscale.screens.layouts.jump_tables import JumpTables, join_tables
from phenoscale.screens.layouts.plate_map import PlateMap, labelled_manifest
from phenoscale.screens.layouts.tables import as_text, read_table, text_columns
from phenoscale.screens.layouts.wells import standard_wells
from phenoscale.screens.storage import Root

_TABLE = re.compile(r"(^|/)load_data(_with_illum)?\.(parquet|csv\.gz|csv)$")
_CHANNEL = re.compile(r"^(?:FileName|URL)_Orig(.+)$")
_KEY = ("Metadata_Plate", "Metadata_Well", "Metadata_Site")


def find_sites(
    root: Root,
    *,
    load_data: str = "",
    prefix: str | None = None,
    tables: JumpTables | None = None,
    plate_map: PlateMap | None = None,
    unmapped: str = "refuse",
    experimental_batch: str | None = None,
    channels: Mapping[str, str] | None = None,
    incomplete: str = "refuse",
    seen: Seen | None = None,
) -> Found:
    """Finds the sites that load_data tables list; the images are not looked at.

    Args:
        root: the folder of the data set.
        load_data: a load_data table in the root, or a folder in which all are read. Of the tables
            in one folder, the first of load_data, load_data_with_illum is read.
        prefix: what the tables' paths begin with in place of the root; None where they begin with
            the root's own address.
        tables: what the wells got, as JUMP publishes it; or
        plate_map: as a lab writes it. Without either, sites are unlabelled.
        unmapped: wells that are not in the plate map: `refuse`, `unlabelled` or `leave_out`.
        experimental_batch: the batch of all plates, without `tables`.
        channels: channel -> name, of those wanted, in order; all where it is None.
        incomplete: sites without a file for a channel: `refuse` or `leave_out`.
        seen: told how many sites were read.

    Raises:
        ValueError: if no table is found or one lacks columns, a path does not lie under the root,
            a channel or label is missing, or a site stands twice.
    """
    chosen, passed_over = _tables(root, load_data)
    frames, lists, names, notes = [], [], [], []
    for path in chosen:
        rows, paths, of_table = _read(root, path, prefix, channels)
        whole = (paths != "").all(axis=1)
        if not whole.all():
            notes.append(_incomplete(rows[~whole], paths[~whole], of_table, path, incomplete))
        frames.append(rows[whole])
        lists.append(site_lists(paths[whole]))
        names.append(site_lists(np.repeat(np.array([of_table], object), whole.sum(), axis=0)))
        if seen is not None:
            seen(sum(map(len, frames)))
    sites = pd.concat(frames, ignore_index=True)
    _refuse_twins(sites)
    every_path, every_name = pa.chunked_array(lists), pa.chunked_array(names)
    if tables is not None:
        manifest = as_manifest(join_tables(sites, tables), every_path, every_name)
    else:
        sites = sites.assign(experimental_batch=experimental_batch or "")
        manifest, more = labelled_manifest(sites, every_path, every_name, plate_map, unmapped)
        notes += more
    return Found(manifest=manifest, passed_over=tuple(passed_over), notes=tuple(notes))


def _tables(root: Root, load_data: str) -> tuple[list[str], PassedOver]:
    """The tables to read, and those beside them that list the same images again."""
    if _TABLE.search(load_data):
        return [load_data], []
    found: dict[str, list[str]] = {}
    for path, _ in root.files(load_data):
        if _TABLE.search(path):
            found.setdefault(path.rpartition("/")[0], []).append(path)
    if not found:
        raise ValueError(
            f"{root.named(load_data)} holds no load_data.csv, .csv.gz or .parquet; give the folder "
            "of a data set of the Cell Painting Gallery, or a table with --load-data."
        )
    ranked = [
        sorted(paths, key=lambda path: ("with_illum" in path, path)) for paths in found.values()
    ]
    passed_over = [
        (path, f"{paths[0]} lists the same images") for paths in ranked for path in paths[1:]
    ]
    return [paths[0] for paths in ranked], passed_over


def _read(
    root: Root, path: str, prefix: str | None, wanted: Mapping[str, str] | None
) -> tuple[pd.DataFrame, np.ndarray, list[str]]:
    """Plate, well, site and source of a table's rows; paths (rows, channels); names of channels."""
    source = root.named(path)
    table = read_table(root.read(path), source)
    keys = text_columns(table, _KEY, source).to_pandas()
    found = list(dict.fromkeys(m[1] for n in table.column_names if (m := _CHANNEL.match(n))))
    missing = [channel for channel in wanted or {} if channel not in found]
    if not found or missing:
        raise ValueError(
            f"{source} has the channels {found}"
            + (f", not {missing}" if missing else "; columns such as FileName_OrigDNA are required")
            + ". Choose among them with --channels."
        )
    channels = dict(wanted or {channel: channel for channel in found})
    columns = []
    for channel in channels:
        files = _addresses(table, channel, source)
        columns.append(_relative(files, root, prefix, source))
    rows = pd.DataFrame(
        {
            "plate": keys["Metadata_Plate"],
            "well": standard_wells(keys["Metadata_Well"], source),
            "site": pd.to_numeric(keys["Metadata_Site"]).astype(int),
        }
    )
    if "Metadata_Source" in table.column_names:
        rows["source"] = as_text(table["Metadata_Source"]).to_pandas()
    return rows, np.stack(columns, axis=1).astype(object), list(channels.values())


def _addresses(table: pa.Table, channel: str, source: str) -> pd.Series:
    """Where the images of one channel are, as the table says it; "" where it names none."""
    if f"URL_Orig{channel}" in table.column_names:
        return as_text(table[f"URL_Orig{channel}"]).to_pandas()
    file, folder = f"FileName_Orig{channel}", f"PathName_Orig{channel}"
    parts = text_columns(table, (file, folder), source).to_pandas()
    joined = parts[folder].str.rstrip("/") + "/" + parts[file]
    return joined.where(parts[file] != "", "")


def _relative(addresses: pd.Series, root: Root, prefix: str | None, source: str) -> pd.Series:
    """Addresses as paths in the root."""
    start = (root.url.partition("?")[0] if prefix is None else prefix).rstrip("/") + "/"
    outside = addresses[(addresses != "") & ~addresses.str.startswith(start)]
    if len(outside):
        raise ValueError(
            f"{source} lists {outside.iloc[0]!r}, which does not begin with {start!r}. If the "
            f"images lie under {root.url} all the same, give the part of that address which the "
            "root stands for with --prefix."
        )
    paths = addresses.str.slice(len(start))
    known = {path: inside(path, source) for path in paths.unique()}
    return paths.map(known)


def _incomplete(
    rows: pd.DataFrame, paths: np.ndarray, channels: list[str], path: str, incomplete: str
) -> str:
    examples = [
        f"{row.plate} {row.well} site {row.site} lacks "
        f"{[name for name, file in zip(channels, files, strict=True) if not file]}"
        for row, files in zip(rows.itertuples(), paths, strict=True)
    ]
    if incomplete == "refuse":
        raise ValueError(
            f"{len(rows)} sites of {path} are incomplete: {some(examples, 3)}. Choose other "
            "channels with --channels, or leave such sites out with --incomplete leave-out."
        )
    return f"{len(rows)} incomplete sites of {path} are left out: {some(examples, 3)}."


def _refuse_twins(sites: pd.DataFrame) -> None:
    key = [name for name in ("source", "plate", "well", "site") if name in sites.columns]
    if (twins := sites.duplicated(key)).any():
        first = " ".join(map(str, sites[key][twins].iloc[0]))
        raise ValueError(
            f"{int(twins.sum())} sites stand twice, such as {first}; choose one of their tables "
            "with --load-data."
        )
