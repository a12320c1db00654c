"""What an index file holds: its columns, its facts, and how it is written, group by group.

An index is one Parquet file, a row per site, sorted by plate. Its rows are read a group at a time,
so everything that must be known before any row is read (plates, channels, digests) stands in the
file's footer. Every group carries two digests, of the columns that cutting crops needs and of the
others: what is read is verified, without reading the rest.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from phenoscale.screens.fingerprint import DIGEST_BYTES, content_digest
from phenoscale.screens.layouts.manifest import MANIFEST_SCHEMA, one_array
from phenoscale.screens.storage import Root

INDEX_VERSION = 2
"""Changes when the columns, the row order or the digests change."""
GROUP_ROWS = 4096
"""Rows of a group, the unit in which rows are shuffled, verified and kept."""
BLOCK_ROWS = 16 * GROUP_ROWS
"""Rows of a row group of the Parquet file: larger, since each costs memory while a file is open."""
SORT_KEYS = ("experimental_batch", "plate", "well", "site", "site_id")
"""Row order of an index; site_id, which is unique, settles ties."""

IMAGE_FIELDS = (
    MANIFEST_SCHEMA.field("paths"),
    pa.field("channel_set", pa.int32(), nullable=False),
    pa.field("height_px", pa.int32(), nullable=False),
    pa.field("width_px", pa.int32(), nullable=False),
    pa.field("dtype", pa.string(), nullable=False),
    pa.field("label", pa.int32(), nullable=False),
    pa.field("well_hash", pa.uint64(), nullable=False),
)
"""What cutting a crop needs to know of its site."""
IMAGE_COLUMNS = tuple(field.name for field in IMAGE_FIELDS)
METADATA_FIELDS = tuple(f for f in MANIFEST_SCHEMA if f.name not in ("paths", "channels"))
"""What scoring needs to know; further columns of a manifest follow them."""
_PLATES_SCHEMA = pa.schema(
    [
        pa.field("experimental_batch", pa.string(), nullable=False),
        pa.field("plate", pa.string(), nullable=False),
        pa.field("first_row", pa.int64(), nullable=False),
        pa.field("rows", pa.int64(), nullable=False),
        pa.field("scaled_channels", pa.list_(pa.string()), nullable=False),
        pa.field("low", pa.list_(pa.float64()), nullable=False),
        pa.field("high", pa.list_(pa.float64()), nullable=False),
    ]
)
_FACTS_KEY, _PLATES_KEY, _DIGESTS_KEY = (
    b"phenoscale", b"phenoscale.plates", b"phenoscale.digests",
)  # fmt: skip

Scales = Mapping[tuple[str, str], Mapping[str, tuple[float, float]]]
"""(experimental_batch, plate) to channel to (low, high) grey value, for 16-bit plates."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """What an index's footer says of the whole screen."""

    root: str
    """Folder or URL of the images; a relative path starts from the index's own folder."""
    fingerprint: str
    """Identity of the screen: of its content, or of the screen that it was packed from."""
    num_classes: int
    """Distinct perturbations."""
    channel_sets: tuple[tuple[str, ...], ...]
    """Channels of a site, in the order of its file or files; column channel_set numbers them."""
    percentiles: tuple[float, float] | None
    """Grey values' percentiles behind the scales of 16-bit plates; None where there are none."""
    plates: pa.Table
    """Each plate in row order: names, first_row, rows, and scale per channel."""
    digests: np.ndarray
    """uint8 (groups, 2, 16): of each group's image columns and of its other columns."""

    @property
    def content(self) -> str:
        """Digest, in hexadecimal, of everything but root and fingerprint."""
        head = [INDEX_VERSION, self.num_classes, self.channel_sets, self.percentiles]
        digest = hashlib.blake2b(json.dumps(head).encode(), digest_size=32)
        digest.update(content_digest(self.plates))
        digest.update(np.ascontiguousarray(self.digests).data)
        return digest.hexdigest()


def read_facts(metadata: Mapping[bytes, bytes] | None, path: str) -> Facts:
    """Reads an index's footer.

    Args:
        metadata: key-value metadata of the Parquet file.
        path: what errors call the file.

    Raises:
        ValueError: if it is not the footer of an index, or of another version, or was changed.
    """
    metadata = metadata or {}
    try:
        facts = json.loads(metadata.get(_FACTS_KEY, b"null"))
        version = facts["version"]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path} is a Parquet file, but not an index of phenoscale: it records no fingerprint. "
            "Give the screen to `phenoscale index`, and its output here."
        ) from error
    if version != INDEX_VERSION:
        raise ValueError(
            f"{path} is an index of version {version}; this phenoscale reads version "
            f"{INDEX_VERSION}. Build it again with `phenoscale index`."
        )
    changed = ValueError(
        f"{path} has changed since it was built: its facts do not agree with the digest that it "
        "records. Change the manifest, not the index, and build it again with `phenoscale index`."
    )
    try:
        found = Facts(
            root=facts["root"],
            fingerprint=facts["fingerprint"],
            num_classes=facts["num_classes"],
            channel_sets=tuple(tuple(names) for names in facts["channel_sets"]),
            percentiles=tuple(facts["percentiles"]) if facts["percentiles"] else None,
            plates=pa.ipc.open_stream(base64.b64decode(metadata[_PLATES_KEY])).read_all(),
            digests=np.frombuffer(base64.b64decode(metadata[_DIGESTS_KEY]), np.uint8).reshape(
                -1, 2, DIGEST_BYTES
            ),
        )
    except (ValueError, TypeError, KeyError, OSError, pa.ArrowException) as error:
        raise changed from error
    if found.plates.schema != _PLATES_SCHEMA or found.content != facts.get("content"):
        raise changed
    return found


class IndexWriter:
    """Writes an index group by group, whole or not at all: a context.

    Rows come sorted by `SORT_KEYS`, as tables of any length. The file appears under its name when
    the context ends without an error.
    """

    def __init__(
        self,
        out: Path,
        root: Root,
        *,
        classes: pa.Array,
        extra: tuple[pa.Field, ...] = (),
        scales: Scales | None = None,
        percentiles: tuple[float, float] | None = None,
        fingerprint: str | None = None,
    ) -> None:
        """Opens the file beside its place.

        Args:
            out: the Parquet file.
            root: where the images are.
            classes: all perturbations, sorted, distinct.
            extra: columns beyond those of every index.
            scales: of the plates with 16-bit images.
            percentiles: behind the scales.
            fingerprint: of the screen that this one is a copy of, if it is one.
        """
        self._out, self._root, self._classes = Path(out), root, classes
        self._scales, self._percentiles = scales or {}, percentiles
        self._fingerprint = fingerprint
        self._metadata_names = [f.name for f in (*METADATA_FIELDS, *extra)]
        self._schema = pa.schema([*METADATA_FIELDS, *extra, *IMAGE_FIELDS])
        self._sets: dict[tuple[str, ...], int] = {}
        self._plates: list[tuple[str, str, int, int]] = []  # names, first row, rows
        self._digests: list[bytes] = []
        self._rows = 0
        self._waiting: list[pa.Table] = []
        self._part = self._out.with_name(f".{self._out.name}.{os.getpid()}.part")
        self.facts: Facts | None = None

    def __enter__(self) -> IndexWriter:
        try:
            self._out.parent.mkdir(parents=True, exist_ok=True)
            self._file = pq.ParquetWriter(
                self._part, self._schema, compression="zstd", write_statistics=False
            )
        except OSError as error:
            self._part.unlink(missing_ok=True)
            raise self._failed(error) from error
        return self

    def write(self, table: pa.Table) -> None:
        """Adds sites.

        Args:
            table: columns of `MANIFEST_SCHEMA` and the extra ones, and height_px, width_px, dtype.
        """
        if not table.num_rows:
            return
        self._note_plates(table)
        sets = [self._sets.setdefault(names, len(self._sets)) for names in _channel_names(table)]
        columns = {
            **{name: table[name] for name in self._metadata_names},
            **{name: table[name] for name in ("paths", "height_px", "width_px", "dtype")},
            "channel_set": pa.array(sets, pa.int32()),
            "label": pc.index_in(table["perturbation"], value_set=self._classes),
            "well_hash": well_hashes(table),
        }
        arrays = [columns[name] for name in self._schema.names]
        self._waiting.append(pa.Table.from_arrays(arrays, schema=self._schema))
        self._flush(BLOCK_ROWS)

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        try:
            if kind is None and self._rows:
                self._flush(1)
                self.facts = self._all_facts()
                self._file.add_key_value_metadata(_footer(self.facts))
            self._file.close()
            if kind is None and not self._rows:
                raise ValueError(f"There is no site to be indexed; {self._out} was not written.")
            if kind is None:
                os.replace(self._part, self._out)
        except OSError as failure:
            raise self._failed(failure) from failure
        finally:
            self._part.unlink(missing_ok=True)

    def _flush(self, at_least: int) -> None:
        waiting = sum(table.num_rows for table in self._waiting)
        if waiting < at_least:
            return
        table = pa.concat_tables(self._waiting).combine_chunks()
        whole = waiting if at_least == 1 else waiting // BLOCK_ROWS * BLOCK_ROWS
        for first in range(0, whole, GROUP_ROWS):
            self._digests += group_digests(table.slice(first, min(GROUP_ROWS, whole - first)))
        try:
            self._file.write_table(table.slice(0, whole), row_group_size=BLOCK_ROWS)
        except OSError as error:
            raise self._failed(error) from error
        self._waiting = [table.slice(whole)] if whole < waiting else []

    def _note_plates(self, table: pa.Table) -> None:
        batch, plate = (one_array(table[n]).dictionary_encode() for n in SORT_KEYS[:2])
        codes = np.stack([np.asarray(batch.indices), np.asarray(plate.indices)])
        begins = np.flatnonzero(np.any(np.diff(codes, prepend=-1), axis=0))
        for first, last in zip(begins, [*begins[1:], table.num_rows], strict=True):
            names = (table["experimental_batch"][first].as_py(), table["plate"][first].as_py())
            if self._plates and self._plates[-1][:2] == names:
                *_, start, rows = self._plates.pop()
                self._plates.append((*names, start, rows + int(last - first)))
            else:
                self._plates.append((*names, self._rows + int(first), int(last - first)))
        self._rows += table.num_rows

    def _all_facts(self) -> Facts:
        scales = [self._scales.get((batch, plate), {}) for batch, plate, *_ in self._plates]
        plates = pa.Table.from_arrays(
            [
                *(pa.array(c) for c in zip(*self._plates, strict=True)),
                pa.array([list(scale) for scale in scales], pa.list_(pa.string())),
                *(
                    pa.array(
                        [[pair[i] for pair in s.values()] for s in scales], pa.list_(pa.float64())
                    )
                    for i in (0, 1)
                ),
            ],
            schema=_PLATES_SCHEMA,
        )
        facts = Facts(
            root=_stored_root(self._root, self._out),
            fingerprint=self._fingerprint or "",
            num_classes=len(self._classes),
            channel_sets=tuple(self._sets),
            percentiles=self._percentiles if self._scales else None,
            plates=plates,
            digests=np.frombuffer(b"".join(self._digests), np.uint8).reshape(-1, 2, DIGEST_BYTES),
        )
        return dataclasses.replace(facts, fingerprint=self._fingerprint or facts.content)

    def _failed(self, error: OSError) -> OSError:
        return OSError(
            f"The index {self._out} could not be written ({error}); nothing was left behind. Free "
            "space, or choose another place."
        )


def group_digests(group: pa.Table) -> list[bytes]:
    """The two digests of a row group: of its image columns, and of its other columns."""
    others = [name for name in group.column_names if name not in IMAGE_COLUMNS]
    return [content_digest(group.select(list(IMAGE_COLUMNS))), content_digest(group.select(others))]


def well_hashes(table: pa.Table) -> pa.Array:
    """uint64 per row: the first 8 bytes of blake2b over experimental_batch/plate/well."""
    names = pc.binary_join_element_wise(*(table[n] for n in SORT_KEYS[:3]), "/")
    encoded = one_array(names).dictionary_encode()
    hashes = [
        hashlib.blake2b(name.encode(), digest_size=8).digest()
        for name in encoded.dictionary.to_pylist()
    ]
    values = np.frombuffer(b"".join(hashes), dtype=">u8").astype(np.uint64)
    return pa.array(values[np.asarray(encoded.indices)])


def _channel_names(table: pa.Table) -> list[tuple[str, ...]]:
    joined = one_array(pc.binary_join(table["channels"], "\0")).dictionary_encode()
    names = [tuple(text.split("\0")) for text in joined.dictionary.to_pylist()]
    return [names[i] for i in joined.indices.to_pylist()]


def _footer(facts: Facts) -> dict[bytes, bytes]:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, facts.plates.schema) as stream:
        stream.write_table(facts.plates)
    text = {
        "version": INDEX_VERSION,
        "root": facts.root,
        "fingerprint": facts.fingerprint,
        "content": facts.content,
        "num_classes": facts.num_classes,
        "channel_sets": facts.channel_sets,
        "percentiles": facts.percentiles,
    }
    # As text, because the values of a Parquet footer are: other readers refuse raw bytes there.
    return {
        _FACTS_KEY: json.dumps(text).encode(),
        _PLATES_KEY: base64.b64encode(sink.getvalue()),
        _DIGESTS_KEY: base64.b64encode(facts.digests.tobytes()),
    }


def _stored_root(root: Root, out: Path) -> str:
    """Relative where a screen can be moved together with its index."""
    if root.folder is None:
        return root.url
    folder, images = out.parent.resolve(), Path(root.folder).resolve()
    together = images.is_relative_to(folder) or folder.is_relative_to(images)
    return os.path.relpath(images, folder) if together else str(images)
