import numpy as np
import pytest

from phenoscale.maps.vectors import checked_vectors, listed


def test_good_vectors_become_float64() -> None:
    half = np.ones((2, 3), dtype=np.float16)
    assert checked_vectors(half, name="v", rows=2).dtype == np.float64


@pytest.mark.parametrize("bad", [np.ones(3), np.ones((0, 3)), np.ones((3, 0)), [["a"]]])
def test_other_shapes_and_dtypes_are_refused(bad: object) -> None:
    with pytest.raises(ValueError, match="v must be a table of numbers"):
        checked_vectors(bad, name="v")


def test_many_bad_rows_are_counted_and_some_named() -> None:
    with pytest.raises(ValueError, match=r"v has 16 NaN .* 8 of 8 rows \(0, 1, 2, 3, 4, \.\.\.\)"):
        checked_vectors(np.full((8, 2), np.inf), name="v")


def test_long_lists_are_cut() -> None:
    assert listed("abc") == "a, b, c"
    assert listed(range(8)) == "0, 1, 2, 3, 4 and 3 more"
