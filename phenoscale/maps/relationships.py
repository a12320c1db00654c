"""Known relationships: pairs of genes that a database says work together.

The public databases (CORUM, hu.MAP, Reactome, SIGNOR, StringDB) and the simulated screen share one
form, a CSV with the header `entity1,entity2`. Several list a pair in both orders, so the pairs are
unordered here.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from phenoscale.maps.vectors import listed

COLUMNS = ("entity1", "entity2")


def load_relationships(path: str | Path) -> pd.DataFrame:
    """Reads a database of relationships.

    Args:
        path: CSV with the header `entity1,entity2`, gene symbols.

    Returns:
        Columns entity1, entity2 (str): unordered pairs, each once, see `unordered_pairs`.

    Raises:
        ValueError: for a missing file, another header, an empty cell, or no pair at all.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(
            f"There is no file of relationships at {path}; give a CSV with the header "
            f"{','.join(COLUMNS)}, one pair of gene names a row."
        )
    try:
        # Default NA parsing would read a gene that is called NA or NAN as a missing value.
        table = pd.read_csv(
            path, dtype=str, keep_default_na=False, encoding="utf-8-sig", index_col=False
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
