"""Metadata columns as files have them, under our names and with our types."""

from __future__ import annotations

import numpy as np
import pandas as pd

from phenoscale.maps.files.columns import our_names
from phenoscale.maps.vectors import listed

_NAMES = (
    *("experimental_batch", "plate", "well", "site", "perturbation", "perturbation_type"),
    *("gene", "guide", "compound", "cell_type"),
)
"""Columns that name something: text, whatever a file makes of them."""

_FLAGS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


def our_metadata(
    table: pd.DataFrame, *, all_text: bool = False
) -> tuple[pd.DataFrame, dict[str, str]]:
    """Translates names and types.

    Args:
        table: metadata columns.
        all_text: whether the file was text, so that columns of numbers are still to be found: all
            that are none of our names, whose every cell is a number, none with a leading zero.

    Returns:
        The table with negative_control bool, concentration float, names as text, and which columns
        were renamed.

    Raises:
        ValueError: for a negative_control that is neither true nor false, or a concentration that
            is no number.
    """
    renamed = our_names(list(table.columns))
    table = table.rename(columns=renamed)
    typed: dict[str, pd.Series] = {}
    for name in table.columns:
        column = table[name]
        if isinstance(column.dtype, pd.CategoricalDtype):  # ours compare and join plain columns
            column = column.astype(column.cat.categories.dtype)
        if name == "negative_control":
            typed[name] = _flags(column)
        elif name == "concentration":
            typed[name] = _concentrations(column)
        elif name in _NAMES:
            typed[name] = _text(column)
        else:
            typed[name] = _numbers_if_all(column) if all_text else column
    return pd.DataFrame(typed, index=table.index), renamed


def _flags(column: pd.Series) -> pd.Series:
    flags = column.astype(str).str.lower().map(_FLAGS)
    if (bad := flags.isna()).any():
        values = list(map(repr, column[bad].unique()))
        raise ValueError(
            f"negative_control holds {listed(values)} in {bad.sum()} rows; true or false is "
            "required in each."
        )
    return flags.astype(bool)


def _concentrations(column: pd.Series) -> pd.Series:
    numbers = pd.to_numeric(column, errors="coerce")
    if (bad := numbers.isna() & column.notna()).any():
        values = list(map(repr, column[bad].unique()))
        raise ValueError(
            f"concentration holds {listed(values)} in {bad.sum()} rows; a number without a "
            "unit, or an empty cell, is required."
        )
    return numbers.astype(float)


def _text(column: pd.Series) -> pd.Series:
    if not pd.api.types.is_numeric_dtype(column) or column.isna().all():
        return column
    present = column.dropna()
    if (present % 1 == 0).all():  # pandas makes 7.0 of a 7 in a column with empty cells
        present = present.astype(np.int64)
    return present.astype(str).reindex(column.index)


def _numbers_if_all(column: pd.Series) -> pd.Series:
    present = column.dropna().astype(str)
    if present.empty or present.str.match(r"\s*[+-]?0\d").any():
        return column
    numbers = pd.to_numeric(present, errors="coerce")
    return column if numbers.isna().any() else pd.to_numeric(column)
