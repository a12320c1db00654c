"""Embeddings and profiles as people keep them, read into one form.

- Parquet, a file or a folder of `part-*.parquet`: a list column of numbers per read-out, beside
  metadata (what `phenoscale embed` writes).
- Wide tables, Parquet or text (CSV, TSV, also gzipped): a column per feature (`columns.py` has the
  rule). Cells of text stay text where they are names: a plate called 0123 does not become 123.
- AnnData (`.h5ad`): X, or `obsm` by the name of the read-out, and obs.

Shapes: n rows (crops, sites, wells or perturbations), d values of a row.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from phenoscale.maps.files.columns import METADATA_PREFIX, feature_columns, our_names
from phenoscale.maps.files.list_columns import list_columns, read_list_column
from phenoscale.maps.files.metadata import our_metadata
from phenoscale.maps.files.text_table import TEXT_ENDINGS, numbers, read_text
from phenoscale.maps.vectors import blocks, constant_columns, listed

MANIFEST_FILE = "embedding.json"
"""Of a folder of embeddings; its `readout` is the one that is read if none is named."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Embeddings:
    """Vectors with a row of metadata for each."""

    vectors: np.ndarray
    """(n, d) finite, float32 or float64 as the file has them; other numbers as float64."""
    metadata: pd.DataFrame
    """(n) rows, aligned, with a fresh index; our names where we have one."""
    readout: str
    """Read-out that the vectors are; "features" for a wide table, "X" for AnnData's X."""
    features: tuple[str, ...] = ()
    """Name of each of the d values; empty for list columns, whose values have none."""
    renamed: dict[str, str] = dataclasses.field(default_factory=dict)
    """Metadata column in the file -> its name here, where they differ."""
    dropped: tuple[str, ...] = ()
    """Features that were left out as constant or not finite."""

    def lines(self) -> list[str]:
        """What was taken for what."""
        names = f" ({listed(self.features)})" if self.features else ""
        lines = [
            f"{len(self.vectors):,} rows of {self.vectors.shape[1]:,} {self.vectors.dtype} values: "
            f"{self.readout}{names}",
            f"metadata: {', '.join(map(str, self.metadata.columns)) or 'none'}",
        ]
        shorter = {old for old, new in self.renamed.items() if old == METADATA_PREFIX + new}
        if translated := [f"{o} -> {n}" for o, n in self.renamed.items() if o not in shorter]:
            lines.append(f"renamed: {', '.join(translated)}")
        if shorter:
            lines.append(f"without {METADATA_PREFIX} before them: {len(shorter)} others")
        if self.dropped:
            dropped = ", ".join(self.dropped)
            lines.append(f"left out, constant or not finite ({len(self.dropped)}): {dropped}")
        return lines


def read_embeddings(
    path: str | Path,
    readout: str | None = None,
    *,
    features: str | Sequence[str] | None = None,
    drop_unusable: bool = False,
) -> Embeddings:
    """Reads embeddings or profiles.

    Args:
        path: a file, or a folder of `part-*.parquet`.
        readout: which list column, or which `obsm` of AnnData. If it is not given: the only list
            column, or the `readout` of embedding.json; X of AnnData.
        features: prefix or prefixes of the feature columns of a wide table, where their names
            alone do not tell.
        drop_unusable: whether to leave out feature columns that are constant, or that hold NaN or
            infinite values; `dropped` names them.

    Raises:
        ValueError: for a file that is none of these, a read-out that is not there or not chosen,
            rows of different width, or values that are not finite: in which columns, how many.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"There is no table at {path}; give a file, or a folder of embeddings.")
    if path.name.endswith(".h5ad"):
        found = _read_anndata(path, readout)
    elif path.name.endswith(TEXT_ENDINGS):
        _refuse_readout(readout, path)
        found = _read_wide(path, [read_text(path)], features, all_text=True)
    else:
        found = _read_parquet(path, readout, features)
    return _usable(found, path, drop_unusable)


def _read_parquet(
    path: Path, readout: str | None, features: str | Sequence[str] | None
) -> Embeddings:
    files = [path]
    if path.is_dir():
        files = sorted(path.glob("part-*.parquet"))
        if not files:
            raise ValueError(f"{path} holds no part-*.parquet; is it a folder of embeddings?")
    try:
        schemas = [pq.read_schema(file) for file in files]
    except pa.ArrowException as error:
        raise ValueError(
            f"{path} is no Parquet file ({error}); Parquet, .h5ad, or {', '.join(TEXT_ENDINGS)} "
            "is required."
        ) from error
    lists = list_columns(schemas[0])
    if not lists or features is not None:
        _refuse_readout(readout, path)
        return _read_wide(path, [pq.read_table(file) for file in files], features)
    manifest = path / MANIFEST_FILE
    facts = json.loads(manifest.read_text()) if manifest.exists() else {}
    if not facts.get("complete", True):
        raise ValueError(
            f"{path} is not finished: give the same `phenoscale embed` again, which goes on where "
            "it stopped."
        )
    if readout is None:
        readout = facts.get("readout") or (lists[0] if len(lists) == 1 else None)
    if readout not in lists:
        given = "No read-out is chosen" if readout is None else f"There is no read-out {readout}"
        raise ValueError(f"{given}; {path} has {', '.join(lists)}. Name one of them.")
    parts = [
        pq.read_table(file, columns=[name for name in schema.names if name not in lists])
        for file, schema in zip(files, schemas, strict=True)
    ]
    frames = [part.to_pandas(ignore_metadata=True) for part in parts]
    metadata, renamed = _metadata(pd.concat(frames, ignore_index=True), path)
    vectors = read_list_column(files, readout)
    return Embeddings(vectors=vectors, metadata=metadata, readout=readout, renamed=renamed)


def _refuse_readout(readout: str | None, path: Path) -> None:
    if readout is not None:
        raise ValueError(
            f"The read-out {readout} is asked for, but {path} is read as a wide table, which has "
            "one read-out only. Leave it out."
        )


def _read_wide(
    path: Path,
    tables: list[pa.Table],
    features: str | Sequence[str] | None,
    *,
    all_text: bool = False,
) -> Embeddings:
    """A table with a column per feature; text is parsed here, where it is known which they are."""
    try:
        table = pa.concat_tables(tables)
        names = feature_columns(table.column_names, features)
    except (pa.ArrowException, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    columns, bad = {}, []
    for name in names:
        try:
            columns[name] = numbers(table[name])
        except (pa.ArrowException, ValueError):
            bad.append(f"{name} ({table[name].type})")
    if bad:
        raise ValueError(
            f"{path}: {len(bad)} of {len(names)} feature columns hold something else than numbers: "
            f"{listed(bad)}. Begin the names of metadata with Metadata_, or give the prefix of the "
            "feature columns."
        )
    single = all(values.dtype == np.float32 for values in columns.values())
    vectors = np.empty((len(table), len(names)), np.float32 if single else np.float64)
    for place, name in enumerate(names):
        vectors[:, place] = columns.pop(name)
    metadata, renamed = _metadata(
        table.drop_columns(names).to_pandas(ignore_metadata=True), path, all_text=all_text
    )
    return Embeddings(
        vectors=vectors,
        metadata=metadata,
        readout="features",
        features=tuple(names),
        renamed=renamed,
    )


def _read_anndata(path: Path, readout: str | None) -> Embeddings:
    try:
        import anndata
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{path} is AnnData, which needs the package anndata: pip install 'phenoscale[maps]'."
        ) from error
    try:
        data = anndata.read_h5ad(path)
    except (OSError, KeyError) as error:
        raise ValueError(f"{path} is no AnnData file ({error}).") from error
    if readout is not None and readout not in data.obsm:
        raise ValueError(
            f"There is no read-out {readout}; obsm of {path} has {list(data.obsm) or 'nothing'}. "
            "Name one of them, or none for X."
        )
    values: Any = data.X if readout is None else data.obsm[readout]
    if values is None:
        raise ValueError(f"{path} has no X; name one of obsm: {list(data.obsm)}.")
    vectors = np.asarray(values.toarray() if hasattr(values, "toarray") else values)
    if vectors.dtype not in (np.float32, np.float64):
        vectors = vectors.astype(np.float64)
    obs, index = data.obs.copy(), data.obs_names
    if list(index) != [str(row) for row in range(len(index))]:
        obs.insert(0, "obs_name", index.to_numpy(dtype=object))
    metadata, renamed = _metadata(obs.reset_index(drop=True), path)
    return Embeddings(
        vectors=vectors,
        metadata=metadata,
        readout=readout or "X",
        features=tuple(map(str, data.var_names)) if readout is None else (),
        renamed=renamed,
    )


def _metadata(
    table: pd.DataFrame, path: Path, *, all_text: bool = False
) -> tuple[pd.DataFrame, dict[str, str]]:
    try:
        return our_metadata(table, all_text=all_text)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _usable(found: Embeddings, path: Path, drop_unusable: bool) -> Embeddings:
    """Checks that values are finite, or leaves out the columns that cannot be used."""
    if found.vectors.ndim != 2 or 0 in found.vectors.shape:
        raise ValueError(
            f"{path} holds values of shape {found.vectors.shape}; at least one row and one column "
            "are required."
        )
    counts = np.zeros(found.vectors.shape[1], dtype=np.int64)
    bad_rows = 0
    for rows in blocks(len(found.vectors)):
        bad = ~np.isfinite(found.vectors[rows])
        counts += np.count_nonzero(bad, axis=0)
        bad_rows += int(np.count_nonzero(bad.any(axis=1)))
    names = found.features or tuple(f"value {place}" for place in range(len(counts)))
    if not drop_unusable and bad_rows:
        shown = [f"{names[place]} ({counts[place]})" for place in np.flatnonzero(counts)]
        raise ValueError(
            f"{path}: {len(shown)} of {len(counts)} columns of {found.readout} hold NaN or "
            f"infinite values, in {bad_rows} of {len(found.vectors)} rows: {listed(shown)}. "
            "Remove these rows, or leave these columns out (drop_unusable)."
        )
    if not drop_unusable:
        return found
    unusable = counts > 0
    unusable[constant_columns(found.vectors)] = True
    if unusable.all():
        raise ValueError(
            f"{path}: each of the {len(counts)} columns of {found.readout} is constant or holds "
            f"NaN or infinite values ({bad_rows} of {len(found.vectors)} rows have some); none "
            "is left."
        )
    return dataclasses.replace(
        found,
        vectors=np.ascontiguousarray(found.vectors[:, ~unusable])
        if unusable.any()
        else found.vectors,
        features=tuple(np.array(found.features, dtype=object)[~unusable]) if found.features else (),
        dropped=tuple(names[place] for place in np.flatnonzero(unusable)),
    )


def readout_names(path: str | Path) -> list[str]:
    """Names of the list columns of a Parquet file or folder; of other tables none."""
    path = Path(path)
    files = sorted(path.glob("part-*.parquet")) if path.is_dir() else [path]
    if not files or files[0].suffix != ".parquet" or not files[0].exists():
        return []
    return list_columns(pq.read_schema(files[0]))


def column_names(path: str | Path) -> set[str]:
    """Names of the metadata that a table has, as `read_embeddings` would call them.

    Raises:
        ValueError: for a file that is no table.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"There is no table at {path}; give a file, or a folder of embeddings.")
    try:
        if path.name.endswith(".h5ad"):
            return set(_read_anndata(path, None).metadata.columns)
        if path.name.endswith(TEXT_ENDINGS):
            names = read_text(path).column_names
        else:
            names = pq.read_schema(
                sorted(path.glob("part-*.parquet"))[0] if path.is_dir() else path
            ).names
    except pa.ArrowException as error:
        raise ValueError(f"{path} is no Parquet file ({error}).") from error
    renamed = our_names(names)
    return {renamed.get(name, name) for name in names}
