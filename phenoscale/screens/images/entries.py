"""The grammar of a site's paths: files, and images within Parquet tables and Zarr arrays.

a/b.tif                     a file
a/b.parquet?row=17          a cell of a Parquet table; &column=NAME where several hold images
p.zarr/A/1/0/0?t=0&z=3      an OME-Zarr array; z=max is the maximum projection
x/7.zarr?site=12            a site of a packed array
z1.tif*z2.tif*z3.tif        the pixelwise maximum of several of these
"""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import Literal
from urllib.parse import unquote

from phenoscale.screens.errors import ImageError

Kind = Literal["file", "cell", "zarr", "packed", "maximum"]
_KEYS: dict[str, Kind] = {
    "row": "cell",
    "column": "cell",
    "t": "zarr",
    "z": "zarr",
    "site": "packed",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """One parsed entry."""

    kind: Kind
    """What the path names."""
    path: str = ""
    """Relative to the root; empty for a maximum."""
    number: int = 0
    """Row of a Parquet table, or site of a packed array."""
    column: str | None = None
    """Column of a Parquet table; None for the only one that can hold images."""
    t: int | None = None
    """Time point of an OME-Zarr array; None if it has no more than one."""
    z: int | Literal["max"] | None = None
    """Plane of an OME-Zarr array, or "max"; None if it has no more than one."""
    parts: tuple[Entry, ...] = ()
    """What the maximum is taken over."""


@functools.lru_cache(maxsize=1 << 14)
def parse_entry(text: str) -> Entry:
    """Parses one entry of a site's paths.

    Raises:
        ImageError: for options that are unknown, given twice, or do not go together.
    """
    if "*" in text:
        return Entry(kind="maximum", parts=tuple(parse_entry(part) for part in text.split("*")))
    path, mark, query = text.partition("?")
    if not mark:
        zarr = any(part.endswith(".zarr") for part in path.split("/"))
        return Entry(kind="zarr" if zarr else "file", path=path)
    options: dict[str, str] = {}
    for item in query.split("&"):
        key, _, value = item.partition("=")
        if key not in _KEYS or key in options:
            raise _refused(text, f"the option {item!r} is unknown or given twice")
        options[key] = unquote(value)
    kinds = {_KEYS[key] for key in options}
    if len(kinds) > 1 or ("column" in options and "row" not in options):
        raise _refused(text, "its options do not go together")
    numbers = {key: value for key, value in options.items() if key != "column"}
    if numbers.get("z") == "max":
        del numbers["z"]
    if not all(re.fullmatch("[0-9]{1,15}", value) for value in numbers.values()):
        raise _refused(text, "rows, sites, t and z are numbers from 0, and z may be max")
    found = {key: int(value) for key, value in numbers.items()}
    return Entry(
        kind=kinds.pop(), path=path, number=found.get("row", found.get("site", 0)),
        column=options.get("column"), t=found.get("t"),
        z="max" if options.get("z") == "max" else found.get("z"),
    )  # fmt: skip


def _refused(text: str, reason: str) -> ImageError:
    return ImageError(
        f"The path {text!r} is refused: {reason}. Write FILE, FILE.parquet?row=N, "
        "FOLDER.zarr/...?t=N&z=N, FOLDER.zarr?site=N, or several of them with '*' between."
    )
