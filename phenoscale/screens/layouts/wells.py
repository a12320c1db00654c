"""Names of wells: A1 and a01 are the well A01; the row after Z is AA, as on plates of 1,536."""

from __future__ import annotations

import re

import pandas as pd

_WELL = r"^([A-Z]{1,2})0*([0-9]{1,2})$"


def standard_wells(wells: pd.Series, source: str) -> pd.Series:
    """Writes wells as letters and two digits.

    Args:
        wells: text such as A1, a01, AF48.
        source: what errors call the table.

    Raises:
        ValueError: for text that is no well; names the first.
    """
    parts = wells.astype(str).str.strip().str.upper().str.extract(_WELL)
    bad = parts[0].isna()
    if bad.any():
        raise ValueError(
            f"{source} has the well {wells[bad].iloc[0]!r} ({int(bad.sum())} rows are like it); "
            "wells are letters and a number, such as A1, A01 or AF48."
        )
    return parts[0] + parts[1].str.zfill(2)


def well_name(row: str, column: str) -> str:
    """Name of the well in a row (letters, or a number from 1) and column (a number from 1)."""
    letters = row_letters(int(row)) if row.isdigit() else row.upper()
    return f"{letters}{int(column):02d}"


def row_letters(row: int) -> str:
    """Letters of a row that is numbered from 1: 1 is A, 26 Z, 27 AA."""
    letters = ""
    while row > 0:
        row, rest = divmod(row - 1, 26)
        letters = chr(ord("A") + rest) + letters
    return letters


def natural_key(text: str) -> list[tuple[int, int | str]]:
    """Sort key under which 2 comes before 10."""
    return [
        (0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", text) if part
    ]
