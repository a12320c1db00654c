"""Known relationships: pairs of genes that a database says work together.

The public databases (CORUM, hu.MAP, Reactome, SIGNOR, StringDB) and the simulated screen share one
form, a CSV with the header `entity1,entity2`. Several list a pair in both orders, so the pairs are
unordered here. The five are read out of the installed package efaar-benchmarking, by name, or from
any file; none is kept here, for two of them may not be used commercially.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from phenoscale.maps.vectors import listed
from phenoscale.screens.storage import open_file

COLUMNS = ("entity1", "entity2")
PUBLIC_DATABASES = ("CORUM", "HuMAP", "Reactome", "SIGNOR", "StringDB")
"""Names of the files that the package efaar-benchmarking 1.0 brings along."""


def load_relationships(path: str | Path) -> pd.DataFrame:
    """Reads a database of relationships.

    Args:
        path: CSV with the header `entity1,entity2`, gene symbols; a path or a URL.

    Returns:
        Columns entity1, entity2 (str): unordered pairs, each once, see `unordered_pairs`.

    Raises:
        ValueError: for a missing file, another header, an empty cell, or no pair at all.
    """
    try:
        # Default NA parsing would read a gene that is called NA or NAN as a missing value.
        table = pd.read_csv(
            _content(path), dtype=str, keep_default_na=False, encoding="utf-8-sig", index_col=False
        )
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} is no CSV of relationships ({error}); the header {','.join(COLUMNS)} and one "
            "pair of gene names a row are required."
        ) from error
    if tuple(table.columns) != COLUMNS:
        raise ValueError(
            f"{path} has the columns {list(table.columns)}; a file of relationships has exactly "
            f"{list(COLUMNS)}. Rename or drop columns."
        )
    try:
        pairs = unordered_pairs(table)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if pairs.empty:
        raise ValueError(f"{path} holds no pair of two different genes; at least one is required.")
    return pairs


def _content(path: str | Path) -> BytesIO:
    try:
        remote = "://" in str(path)
        return BytesIO(open_file(path).read() if remote else Path(path).read_bytes())
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise ValueError(
            f"There is no file of relationships at {path}; give a CSV with the header "
            f"{','.join(COLUMNS)}, one pair of gene names a row."
        ) from error


def load_databases(given: Sequence[str | Path]) -> dict[str, pd.DataFrame]:
    """Reads several databases of relationships.

    Args:
        given: paths or URLs of CSV files, names in `PUBLIC_DATABASES`, or "public" for all of
            these.

    Returns:
        Name of each (the file's stem, or the database's name) to its pairs, as
        `load_relationships` gives them.

    Raises:
        ValueError: as `load_relationships`; for two of one name, and for a public one where the
            package that holds it is not installed.
    """
    expanded = [
        one for item in given for one in (PUBLIC_DATABASES if str(item) == "public" else (item,))
    ]
    databases: dict[str, pd.DataFrame] = {}
    for item in expanded:
        path = _public_file(str(item)) if str(item) in PUBLIC_DATABASES else item
        name = PurePosixPath(str(path).partition("?")[0] if "://" in str(path) else path).stem
        if name in databases:
            raise ValueError(
                f"Two databases are called {name}; give each once, under a name of its own."
            )
        databases[name] = load_relationships(path)
    return databases


def all_pairs(databases: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The pairs of several databases, each once; columns entity1, entity2."""
    return unordered_pairs(pd.concat(databases.values(), ignore_index=True))


def _public_file(name: str) -> Path:
    """Where the installed package keeps a database; the package itself is never imported."""
    package = find_spec("efaar_benchmarking")
    if package is None or not package.submodule_search_locations:
        raise ValueError(
            f"{name} is read out of the package efaar-benchmarking, which is not installed; its "
            "files are enough: pip install --no-deps efaar-benchmarking==1.0. Or give the path of "
            f"a CSV with the header {','.join(COLUMNS)}."
        )
    return Path(package.submodule_search_locations[0]) / "benchmark_annotations" / f"{name}.txt"


def unordered_pairs(table: pd.DataFrame) -> pd.DataFrame:
    """Each unordered pair once, without self pairs.

    Args:
        table: columns entity1, entity2 (str), in any order and with any repeats.

    Returns:
        Columns entity1 < entity2 (str), sorted, with a fresh index.

    Raises:
        ValueError: for missing columns or empty cells.
    """
    if missing := [column for column in COLUMNS if column not in table.columns]:
        raise ValueError(
            f"Relationships have the columns {list(table.columns)} and lack {missing}; "
            f"{list(COLUMNS)} are required."
        )
    cells = table[list(COLUMNS)]
    empty = (cells.isna() | (cells == "")).any(axis=1).to_numpy()
    if empty.any():
        raise ValueError(
            f"{empty.sum()} relationships have an empty cell (rows "
            f"{listed(np.flatnonzero(empty).tolist())}, counted from 0 after the header); both "
            "genes are required. Complete or remove these rows."
        )
    first, second = (cells[column].to_numpy(dtype=object) for column in COLUMNS)
    ordered = first < second
    pairs = pd.DataFrame(
        {
            "entity1": np.where(ordered, first, second),
            "entity2": np.where(ordered, second, first),
        },
        dtype=str,
    )
    pairs = pairs[first != second].drop_duplicates()
    return pairs.sort_values(list(COLUMNS), ignore_index=True)
