"""What a layout finds under a root, and the small tools that all layouts share."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from phenoscale.screens.layouts.manifest import MANIFEST_SCHEMA
from phenoscale.screens.storage import Root

PassedOver = list[tuple[str, str]]
Seen = Callable[[int], None]
"""Told how many files, or wells, a layout has looked at so far."""

INCOMPLETE = ("refuse", "leave_out")
"""What happens to sites that lack a channel or a plane."""

_CHUNK = 100_000
_RESERVED = re.compile(r"[*?|]")
_SHOWN = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """Sites of a screen, and what was left out of them."""

    manifest: pa.Table
    """As `check_manifest` takes it."""
    passed_over: tuple[tuple[str, str], ...] = ()
    """(path, reason) of the files that are in no site."""
    notes: tuple[str, ...] = ()
    """Sentences on what was assumed or left out otherwise."""


def match_files(
    root: Root,
    expressions: Sequence[str],
    unused: Sequence[tuple[str, str]] = (),
    under: str = "",
    seen: Seen | None = None,
) -> tuple[pd.DataFrame, PassedOver]:
    """Sorts the files of a root by their paths.

    Args:
        root: where to look.
        expressions: RE2 expressions with named groups; the first that matches reads a path.
        unused: (expression, reason) of files that no site needs.
        under: folder of the root to look in.
        seen: told how many files were seen.

    Returns:
        One row per matching file: its path and a column of text for each group, "" where a group is
        absent; and the other files, each with the reason.

    Raises:
        ValueError: if a matching path holds one of `*?|`, which paths of an index cannot.
    """
    frames: list[pd.DataFrame] = []
    passed_over: PassedOver = []
    count, files = 0, root.files(under)
    while chunk := [path for path, _ in itertools.islice(files, _CHUNK)]:
        paths = pa.array(chunk, pa.string())
        for expression, reason in unused:
            hit = pc.match_substring_regex(paths, expression)
            passed_over += [(path, reason) for path in paths.filter(hit).to_pylist()]
            paths = paths.filter(pc.invert(hit))
        for expression in expressions:
            groups = pc.extract_regex(paths, expression)
            hit = pc.is_valid(groups)
            fields = groups.filter(hit).flatten()
            named = dict(zip([field.name for field in groups.type], fields, strict=True))
            frames.append(pa.table({"path": paths.filter(hit)} | named).to_pandas())
            paths = paths.filter(pc.invert(hit))
        passed_over += [(path, "its name does not match") for path in paths.to_pylist()]
        count += len(chunk)
        if seen is not None:
            seen(count)
    matched = pd.concat(frames, ignore_index=True).fillna("") if frames else pd.DataFrame()
    refuse_reserved(matched["path"] if len(matched) else pd.Series([], dtype=str), root)
    return matched, sorted(passed_over)


def refuse_reserved(paths: pd.Series, root: Root) -> None:
    """Raises for the first path with a character that means something in an index's paths."""
    bad = paths[paths.str.contains(_RESERVED)]
    if len(bad):
        raise ValueError(
            f"{root.url} holds {bad.iloc[0]!r} ({len(bad)} such paths); '*', '?' and '|' join or "
            "address images in an index, so they cannot stand in a file's name. Rename these files."
        )


def inside(path: str, source: str) -> str:
    """The path, if it stays within a root.

    Args:
        path: relative POSIX path that a table or metadata gives.
        source: what errors call the table.

    Raises:
        ValueError: if it is absolute, climbs with "..", or holds one of `*?|`.
    """
    parts = path.split("/")
    drive = re.match(r"^[a-zA-Z]:|\\", path)
    if ".." in parts or path.startswith("/") or drive or "\0" in path or _RESERVED.search(path):
        raise ValueError(
            f"{source} names the image {path!r}; a path within the root is required, with no '..', "
            "no leading '/' and none of '*?|' in it."
        )
    return "/".join(part for part in parts if part not in ("", "."))


def site_lists(values: npt.NDArray[np.object_]) -> pa.ListArray:
    """A list column from an array (sites, items) of text."""
    sites, items = values.shape
    offsets = pa.array(np.arange(sites + 1, dtype=np.int32) * items)
    return pa.ListArray.from_arrays(offsets, pa.array(values.reshape(-1), pa.string()))


def as_manifest(
    sites: pd.DataFrame, paths: pa.Array, channels: pa.Array | Sequence[str]
) -> pa.Table:
    """Builds a manifest.

    Args:
        sites: one row per site. Columns experimental_batch, plate, well, site, perturbation,
            perturbation_type and negative_control are required; others of `MANIFEST_SCHEMA` may be
            absent; further ones pass through. site_id is made where it is absent.
        paths: list of paths per site.
        channels: list of names per site, or the names that all sites have.

    Returns:
        Table as `check_manifest` takes it.
    """
    if isinstance(channels, Sequence):
        names = np.array([list(channels)], dtype=object)
        channels = site_lists(np.repeat(names, len(sites), axis=0))
    if "site_id" not in sites.columns:
        sites = sites.assign(site_id=_site_ids(sites))
    given = pa.Table.from_pandas(sites, preserve_index=False)
    columns = {"paths": paths, "channels": channels}
    for field in MANIFEST_SCHEMA:
        if field.name not in columns:
            absent = field.name not in given.column_names
            columns[field.name] = (
                pa.nulls(len(sites), field.type) if absent else given[field.name].cast(field.type)
            )
    ordered = {name: columns[name] for name in MANIFEST_SCHEMA.names}
    further = [name for name in given.column_names if name not in MANIFEST_SCHEMA.names]
    return pa.table(ordered | {name: given[name] for name in further})


def some(names: Sequence[object], shown: int = _SHOWN) -> str:
    """The first few names, and how many more there are."""
    text = ", ".join(str(name) for name in names[:shown])
    return text if len(names) <= shown else f"{text} and {len(names) - shown} more"


def _site_ids(sites: pd.DataFrame) -> pd.Series:
    """Batch, plate, well and site, and the time where a site was seen several times."""
    parts = [sites[name].astype(str) for name in ("experimental_batch", "plate", "well")]
    ids = parts[0] + "_" + parts[1] + "_" + parts[2] + "_s" + sites["site"].astype(str)
    if "time" in sites.columns:
        ids = ids + "_t" + sites["time"].astype(str)
    return ids
