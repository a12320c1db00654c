"""The folder of a packed store: whose copy it is, what is whole in it, what a killed run left.

`zarr.json` names the screen and is written first, `index.parquet` last: a store without its index
is not finished. Files appear under their names whole or not at all.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from phenoscale.screens import storage
from phenoscale.screens.errors import MissingImageError
from phenoscale.screens.packed.shards import METADATA, group_metadata
from phenoscale.screens.storage import Root

INDEX_NAME = "index.parquet"
"""The packed copy's index, in its folder."""
BAD_SITES_NAME = "bad_sites.csv"
"""The sites that could not be read, in a store's folder; absent if there are none."""
STORE_VERSION = 1
"""Changes when another phenoscale could not go on with an unfinished store."""

_PART = ".part"


def claim_store(location: str | os.PathLike[str], fingerprint: str, raw: bool = True) -> Root:
    """Makes the folder of a store, or finds it there, begun or finished.

    Args:
        location: local folder, or URL.
        fingerprint: of the screen that it is a copy of.
        raw: whether its sites are not compressed.

    Raises:
        ValueError: if the folder holds something else, or a copy of another screen.
        OSError: if it cannot be written.
    """
    root = _root(location)
    mine = {"version": STORE_VERSION, "fingerprint": fingerprint, "raw": raw}
    held = (path for path, _ in root.files() if not path.endswith(_PART)) if root.exists() else ()
    first = next(iter(held), None)
    if first is None:
        put(root, METADATA, group_metadata({"phenoscale": mine}))
        return root
    marker = read_or_none(root, METADATA)
    if marker is None:
        raise ValueError(
            f"{root.url} holds {first} and is no packed store. Give an empty or new folder."
        )
    if (found := _claim(marker)) != mine:
        raise ValueError(
            f"{root.url} is a packed store of another screen, codec or version ({found}; required "
            f"is {mine}). Give another folder, or remove that one."
        )
    return root


def remove_leftovers(root: Root) -> int:
    """Removes what a killed run wrote in part and returns the number of files."""
    if root.folder is None:
        return 0  # an object is there as a whole or not at all
    parts = [path for path, _ in root.files() if path.endswith(_PART)]
    for path in parts:
        remove(root, path)
    return len(parts)


def put(root: Root, path: str, data: bytes | memoryview) -> None:
    """Writes a file of a store, whole or not at all.

    Args:
        root: the store.
        path: relative to it.
        data: the file's bytes.
    """
    if root.folder is None:
        system, base = storage._filesystem(root.url)
        # An object appears when its stream is closed, and only then: no `with`, which would close
        # it after an error as well.
        stream = system.open_output_stream(f"{base}/{path}")
        stream.write(data)
        stream.close()
        return
    place = Path(root.folder) / path
    part = place.with_name(f".{place.name}.{os.getpid()}{_PART}")
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        part.write_bytes(data)
        os.replace(part, place)
    except OSError as error:
        raise OSError(
            f"{place} could not be written ({error}). Free space, then start the same command "
            "again: it goes on where it stopped."
        ) from error
    finally:
        part.unlink(missing_ok=True)


def remove(root: Root, path: str) -> None:
    """Removes a file of a store, if it is there."""
    if root.folder is not None:
        (Path(root.folder) / path).unlink(missing_ok=True)
    elif read_or_none(root, path, length=1) is not None:
        system, base = storage._filesystem(root.url)
        system.delete_file(f"{base}/{path}")


def read_or_none(root: Root, path: str, length: int | None = None) -> bytes | None:
    """Bytes of a file of a store, or None if there is none."""
    try:
        return root.read(path, length=length)
    except MissingImageError:
        return None


def file_location(root: Root, name: str) -> str:
    """Path or URL of a file of a store, as `ScreenIndex.open` takes it."""
    address, query, options = root.url.partition("?")
    if root.folder is not None:
        return f"{root.url}/{name}"
    return f"{address.rstrip('/')}/{name}{query}{options}"


def _root(location: str | os.PathLike[str]) -> Root:
    text = os.fspath(location)
    if text.startswith("file://"):
        text = unquote(urlsplit(text).path)
    if "://" not in text:
        Path(text).expanduser().mkdir(parents=True, exist_ok=True)
        return Root.of(text)
    storage._refuse_credentials(text)
    return Root(text)


def _claim(marker: bytes) -> Any:
    try:
        return json.loads(marker)["attributes"]["phenoscale"]
    except (ValueError, LookupError, TypeError):
        return None
