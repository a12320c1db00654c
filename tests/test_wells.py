from __future__ import annotations

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phenoscale.screens.layouts.wells import natural_key, row_letters, standard_wells, well_name


@pytest.mark.parametrize(
    ("row", "letters"), [(1, "A"), (16, "P"), (26, "Z"), (27, "AA"), (32, "AF"), (52, "AZ")]
)
def test_rows_of_plates_of_any_size(row: int, letters: str) -> None:
    assert row_letters(row) == letters


@given(st.integers(1, 32), st.integers(1, 48))
def test_every_way_to_write_a_well_is_one_well(row: int, column: int) -> None:
    letters = row_letters(row)
    name = well_name(str(row), str(column))
    ways = [f"{letters}{column}", f"{letters.lower()}{column:02d}", f" {letters}{column:03d}", name]
    assert set(standard_wells(pd.Series(ways), "here")) == {name}
    assert well_name(letters.lower(), f"{column:02d}") == name


@pytest.mark.parametrize("text", ["", "A", "12", "A100", "ABC1", "A1 B2", "nan"])
def test_what_is_no_well(text: str) -> None:
    with pytest.raises(ValueError, match=r"here has the well .*\(1 rows are like it\)"):
        standard_wells(pd.Series(["A1", text]), "here")


def test_numbers_sort_as_numbers() -> None:
    assert sorted(["w10", "w2", "dapi", "1"], key=natural_key) == ["1", "dapi", "w2", "w10"]
