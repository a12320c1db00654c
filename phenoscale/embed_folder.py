"""A folder of embeddings: Parquet shards beside `embedding.json`, which says what they hold.

The manifest is written first, as not complete, and last, as complete; a shard appears under its
name when it is whole. So a run that was stopped goes on with what is there, and whoever reads the
folder by `read_manifest` never takes a part of a screen for all of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from phenoscale.maps.files.tables import MANIFEST_FILE
from phenoscale.results import whole_file
from phenoscale.screens.errors import MissingImageError
from phenoscale.screens.packed.store import put, read_or_none
from phenoscale.screens.storage import Root, writable_folder

FORMAT_VERSION = 1
"""Changes when a reader of an older version would go wrong."""
LEVELS = ("site", "well", "crop")
GROUP_ROWS = 4096
"""Rows of every row group of a shard but its last."""
_FOOTER_KEY = "phenoscale.embedding"


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbeddingFacts:
    """What a folder of embeddings holds: a run that goes on with it must ask for the same."""

    encoder: str
    """Name of the encoder, never a path."""
    weights_sha256: str
    """Digest of its weights."""
    feed: str
    """How channels go into it: one_by_one, three_by_three or together."""
    index_fingerprint: str
    """Fingerprint of the screen's index."""
    channels: list[str]
    """Those that it sees."""
    size_px: int
    """Side of a tile."""
    level: str
    """What a row is: a site, a well or a crop, which is one tile."""
    readouts: dict[str, int]
    """Columns of vectors, and how many values a vector has."""
    precision: str
    """Of products: fp32 or bf16."""
    shard_sites: int
    """Sites of a shard, at most, unless one plate has more."""

    @property
    def digest(self) -> str:
        """Identity of these facts, hexadecimal; every shard carries it."""
        text = json.dumps([FORMAT_VERSION, dataclasses.asdict(self)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def claim_folder(location: str | os.PathLike[str], facts: EmbeddingFacts) -> Root:
    """Makes a folder for embeddings, or finds there those of the same facts, begun or finished.

    Args:
        location: local folder, or URL.
        facts: of the run.

    Raises:
        ValueError: if there is something else, or embeddings of other facts: says what differs.
    """
    root = _root(os.fspath(location))
    held = (path for path, _ in root.files() if not path.endswith(".part")) if root.exists() else ()
    first = next(iter(held), None)
    if first is None:
        write_manifest(root, facts, {"complete": False})
        return root
    text = read_or_none(root, MANIFEST_FILE)
    try:
        there = json.loads(text or b"")
        version = there["format_version"]
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(
            f"{root.url} holds {first} and is no folder of embeddings: {MANIFEST_FILE} is missing "
            "or cannot be read. Give an empty or new folder."
        ) from error
    mine = {"format_version": FORMAT_VERSION} | dataclasses.asdict(facts)
    if differing := [name for name, value in mine.items() if there.get(name) != value]:
        listed = "; ".join(
            f"{name} is {there.get(name)!r} there, {mine[name]!r} in this run" for name in differing
        )
        raise ValueError(
            f"{root.url} holds other embeddings (format version {version}): {listed}. Give another "
            "folder, or remove that one."
        )
    return root


def read_manifest(location: str | os.PathLike[str]) -> dict[str, Any]:
    """What embedding.json says of a finished folder.

    Args:
        location: of the folder, a path or a URL.

    Raises:
        ValueError: if there is none, or the folder is not finished.
    """
    root = Root.of(location)
    text = read_or_none(root, MANIFEST_FILE)
    if text is None:
        raise ValueError(f"{root.url} has no {MANIFEST_FILE}; give a folder of `phenoscale embed`.")
    manifest: dict[str, Any] = json.loads(text)
    if not manifest.get("complete"):
        raise ValueError(
            f"{root.url} is not finished: start the same `phenoscale embed` again, which goes on "
            "where it stopped."
        )
    return manifest


def write_manifest(root: Root, facts: EmbeddingFacts, more: dict[str, Any]) -> None:
    """Writes embedding.json, whole or not at all."""
    head = {"format_version": FORMAT_VERSION} | dataclasses.asdict(facts)
    put(root, MANIFEST_FILE, (json.dumps(head | more, indent=1) + "\n").encode())


def is_complete(root: Root) -> bool:
    """Whether the manifest of a claimed folder says that all of it is there."""
    return bool(json.loads(read_or_none(root, MANIFEST_FILE) or b"{}").get("complete"))


def shard_name(number: int) -> str:
    """Name of a shard in its folder."""
    return f"part-{number:05d}.parquet"


def write_shard(
    root: Root,
    number: int,
    schema: pa.Schema,
    tables: Iterable[pa.Table],
    footer: Callable[[], dict[str, Any]],
) -> int:
    """Writes a shard in row groups of `GROUP_ROWS`, whole or not at all.

    Bytes of the vectors are stored apart by their place in a float, which makes a file a tenth
    smaller than Zstandard alone does, and is as fast.

    Args:
        root: the folder.
        number: of the shard.
        schema: of its rows.
        tables: its rows, of any number at a time.
        footer: what is kept with it, asked for when all rows are written; "rows" is added.

    Returns:
        The number of its rows.
    """
    vectors = [field.name for field in schema if pa.types.is_fixed_size_list(field.type)]
    rows = 0
    with _place(root, shard_name(number)) as path:
        with pq.ParquetWriter(
            path,
            schema,
            compression="zstd",
            use_dictionary=[name for name in schema.names if name not in vectors],
            use_byte_stream_split=[f"{name}.list.element" for name in vectors],
            write_statistics=[name for name in schema.names if name not in vectors],
        ) as writer:
            for table in _grouped(tables):
                writer.write_table(table, row_group_size=GROUP_ROWS)
                rows += len(table)
            text = json.dumps(footer() | {"rows": rows}, sort_keys=True)
            writer.add_key_value_metadata({_FOOTER_KEY: text})
    return rows


def read_footer(root: Root, number: int, digest: str) -> dict[str, Any] | None:
    """What `write_shard` kept with a shard; None unless it is there, whole, and of these facts.

    Args:
        root: the folder.
        number: of the shard.
        digest: of the facts.
    """
    try:
        with root.open_input_file(shard_name(number)) as file:
            metadata = pq.read_metadata(file)
        footer: dict[str, Any] = json.loads((metadata.metadata or {})[_FOOTER_KEY.encode()])
    except (MissingImageError, pa.ArrowException, ValueError, KeyError):
        return None
    same = footer.get("digest") == digest and footer.get("rows") == metadata.num_rows
    return footer if same else None


def _root(text: str) -> Root:
    if text.startswith("file://"):
        text = unquote(urlsplit(text).path)
    if "://" in text:
        writable_folder(text)  # refuses credentials and unknown schemes
        return Root(text)
    place = Path(text).expanduser()
    if place.exists() and not place.is_dir():
        raise ValueError(f"{place} is a file; the embeddings of a screen need a folder. Give one.")
    place.mkdir(parents=True, exist_ok=True)
    return Root.of(place)


@contextlib.contextmanager
def _place(root: Root, name: str) -> Iterator[Path]:
    """A file to write, which takes its name in the folder at the end."""
    if root.folder is None:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder) / name
            put(root, name, memoryview((Path(folder) / name).read_bytes()))
        return
    with whole_file(Path(root.folder) / name) as part:
        yield part


def _grouped(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same rows, in tables of a whole number of row groups; the last one holds the rest."""
    waiting: list[pa.Table] = []
    count = 0
    for table in tables:
        waiting.append(table)
        count += len(table)
        if count >= GROUP_ROWS:
            whole = pa.concat_tables(waiting).combine_chunks()
            ready = count // GROUP_ROWS * GROUP_ROWS
            yield whole.slice(0, ready)
            # A copy, so that the rows that were written can go.
            waiting, count = [_copied(whole.slice(ready))], count - ready
    if count:
        yield pa.concat_tables(waiting).combine_chunks()


def _copied(table: pa.Table) -> pa.Table:
    return table.take(pa.array(np.arange(len(table))))


def shard_schema(metadata: Sequence[pa.Field], facts: EmbeddingFacts) -> pa.Schema:
    """Columns of a shard: the metadata, then a list of float32 per read-out, all of one length."""
    vectors = [pa.field(name, pa.list_(pa.float32(), d)) for name, d in facts.readouts.items()]
    return pa.schema([*metadata, *vectors])
