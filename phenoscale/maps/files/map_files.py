"""Perturbation maps as files: Parquet, AnnData, and wide tables as pycytominer has them.

| ending | naming | holds |
| --- | --- | --- |
| .parquet | phenoscale | gene (or name), the table's columns, a list column per read-out; facts |
| .h5ad | phenoscale | X float32, obs by name, uns["phenoscale"] the facts |
| .csv, .csv.gz, .tsv, .parquet | pycytominer | Metadata_ columns, feature_0, feature_1, ... |
| .csv, .csv.gz, .tsv | phenoscale | the same without Metadata_ |

Text holds no facts. It keeps every digit: read again, float32 values are float64 that round to the
same bits. AnnData keeps float32, as its tools expect; Parquet keeps what the map has.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from phenoscale.maps.files.columns import pycytominer_name
from phenoscale.maps.files.list_columns import list_columns
from phenoscale.maps.files.tables import read_embeddings
from phenoscale.maps.perturbation_map import Fact, PerturbationMap
from phenoscale.results import ROW_FILE, whole_file
from phenoscale.study_files import MAP_FILE, STUDY_FILE

Naming = Literal["phenoscale", "pycytominer"]

_FACTS_KEY = b"phenoscale"
_NAME_COLUMNS = ("name", "gene")
_FACTS_OF_TRIAL = ("trial_id", "readout", "index_fingerprint", "code_version", "alignment")


def write_map(found: PerturbationMap, path: str | Path, *, naming: Naming = "phenoscale") -> Path:
    """Writes a perturbation map, whole or not at all.

    Args:
        found: the map.
        path: its ending says the format, see the head of this file.
        naming: what columns are called.

    Returns:
        The path.

    Raises:
        ValueError: for another ending, or pycytominer's names in AnnData.
    """
    path = Path(path)
    text = path.name.endswith((".csv", ".csv.gz", ".tsv", ".tsv.gz"))
    if not text and path.suffix not in (".parquet", ".h5ad"):
        raise ValueError(f"{path} ends in {path.suffix!r}; .parquet, .h5ad or .csv is required.")
    if path.suffix == ".h5ad" and naming == "pycytominer":
        raise ValueError(
            f"{path}: AnnData has obs and X instead of Metadata_ columns; give .csv or .parquet "
            "for pycytominer's naming."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as part:
        if path.suffix == ".h5ad":
            to_anndata(found).write_h5ad(part)
        elif text:
            table = _wide_table(found, naming)
            delimiter = "\t" if ".tsv" in path.name else ","
            compression = "gzip" if path.suffix == ".gz" else None
            with pa.output_stream(part, compression=compression) as stream:
                pacsv.write_csv(table, stream, pacsv.WriteOptions(delimiter=delimiter))
        else:
            table = _wide_table(found, naming) if naming == "pycytominer" else _list_table(found)
            facts = {_FACTS_KEY: json.dumps(dict(found.facts)).encode()}
            pq.write_table(table.replace_schema_metadata(facts), part)
    return path


def read_map(
    path: str | Path,
    readout: str | None = None,
    *,
    features: str | Sequence[str] | None = None,
) -> PerturbationMap:
    """Reads a perturbation map that `write_map` or a trial wrote.

    Args:
        path: a file, or the folder of a trial, which holds `map.parquet`.
        readout: which list column. If it is not given: the one that the file's facts name, the
            headline of the trial's row, or the only one.
        features: prefix or prefixes of the feature columns of a wide table, where their names alone
            do not tell.

    Raises:
        ValueError: if there is no such file or read-out, no column of names, or the content is no
            perturbation map.
    """
    path = Path(path)
    if path.is_dir():
        path = path / MAP_FILE
    if not path.is_file():
        raise ValueError(
            f"There is no perturbation map at {path}; give a .parquet, .h5ad or .csv, or the "
            "folder of a trial that was scored by recall."
        )
    facts: dict[str, Fact] = {}
    if path.suffix == ".parquet":
        facts, wide = _facts_of_parquet(path)
        readout = readout or (None if wide else str(facts.get("readout", "")) or None)
    elif path.suffix == ".h5ad":
        facts = _facts_of_anndata(path)
    found = read_embeddings(path, readout, features=features)
    table = found.metadata
    column = next((name for name in ("obs_name", *_NAME_COLUMNS) if name in table.columns), None)
    if column is None:
        raise ValueError(
            f"{path} has no column {' or '.join(_NAME_COLUMNS)} that names its perturbations; its "
            f"metadata are {list(table.columns)}."
        )
    if found.readout not in ("features", "X"):
        facts["readout"] = found.readout
    names = table[column].where(table[column].notna(), "").astype(str)
    try:
        return PerturbationMap(
            vectors=found.vectors,
            names=tuple(names),
            table=table.drop(columns=column),
            facts=facts,
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def to_anndata(found: PerturbationMap) -> Any:
    """The map as an AnnData object: X float32, obs by name, uns["phenoscale"] the facts."""
    try:
        import anndata
    except ModuleNotFoundError as error:
        raise ValueError(
            "AnnData needs the package anndata: pip install 'phenoscale[maps]'."
        ) from error
    # Arrow's strings, pandas' own since 3.0, are beyond what anndata can write: plain objects.
    obs = pd.DataFrame(index=pd.Index(found.names, dtype=object))
    for name in found.table.columns:
        column = found.table[name]
        values: Any = column.to_numpy()
        if not (pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column)):
            text = column.astype(object).where(column.notna(), None).to_numpy(dtype=object)
            kinds = pd.Index(sorted({str(v) for v in text if v is not None}), dtype=object)
            values = pd.Categorical([None if v is None else str(v) for v in text], categories=kinds)
        obs[name] = values
    width = found.vectors.shape[1]
    var = pd.DataFrame(index=pd.Index(_value_names(found.readout, width), dtype=object))
    return anndata.AnnData(
        X=found.vectors.astype(np.float32), obs=obs, var=var, uns={"phenoscale": dict(found.facts)}
    )


def _list_table(found: PerturbationMap) -> pa.Table:
    num_rows, width = found.vectors.shape
    values = pa.array(np.ascontiguousarray(found.vectors).ravel())
    offsets = np.arange(num_rows + 1, dtype=np.int32) * width
    columns = _metadata_columns(found)
    if found.readout in columns:
        raise ValueError(
            f"The read-out is called {found.readout}, as a column of the table is; rename one."
        )
    return pa.table(columns | {found.readout: pa.ListArray.from_arrays(offsets, values)})


def _wide_table(found: PerturbationMap, naming: Naming) -> pa.Table:
    columns = _metadata_columns(found)
    if naming == "pycytominer":
        columns = {pycytominer_name(name): column for name, column in columns.items()}
    names = _value_names("feature", found.vectors.shape[1])
    if taken := [name for name in columns if name in names]:
        raise ValueError(f"The table has columns called like features: {taken}; rename them.")
    values = np.ascontiguousarray(found.vectors.T)
    return pa.table(columns | dict(zip(names, map(pa.array, values), strict=True)))


def _metadata_columns(found: PerturbationMap) -> dict[str, pa.Array]:
    """The names, as gene unless the table says which gene, and the table's columns."""
    columns = {"name" if "gene" in found.table.columns else "gene": pa.array(found.names)}
    for name in found.table.columns:
        values = pa.array(found.table[name], from_pandas=True)
        columns[str(name)] = pc.cast(values, values.type.value_type) if _coded(values) else values
    return columns


def _coded(values: pa.Array) -> bool:
    return bool(pa.types.is_dictionary(values.type))


def _value_names(prefix: str, width: int) -> list[str]:
    return [f"{prefix}_{place}" for place in range(width)]


def _facts_of_parquet(path: Path) -> tuple[dict[str, Fact], bool]:
    """Facts within the file, or of the trial's row beside it; and whether the table is wide."""
    try:
        schema = pq.read_schema(path)
    except pa.ArrowException as error:
        raise ValueError(f"{path} is no Parquet file ({error}).") from error
    wide = not list_columns(schema)
    if _FACTS_KEY in (schema.metadata or {}):
        return json.loads(schema.metadata[_FACTS_KEY]), wide
    return (_facts_of_trial(path.parent) if path.name == MAP_FILE else {}), wide


def _facts_of_trial(folder: Path) -> dict[str, Fact]:
    """What a trial's row and its study say of its map, as far as they are there."""
    found: dict[str, Fact] = {}
    for file in (folder / ROW_FILE, folder.parents[1] / STUDY_FILE):
        said = json.loads(file.read_text()) if file.is_file() else {}
        found |= {key: said[key] for key in _FACTS_OF_TRIAL if said.get(key)}
    return found


def _facts_of_anndata(path: Path) -> dict[str, Fact]:
    import h5py
    from anndata.io import read_elem

    with h5py.File(path) as file:
        facts = read_elem(file["uns/phenoscale"]) if "uns/phenoscale" in file else {}
    return {key: value.item() if hasattr(value, "item") else value for key, value in facts.items()}
