import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phenoscale.scaling.repeats import REPEATS_HALF_LIFE, effective_crops


def test_fresh_crops_count_in_full():
    np.testing.assert_allclose(effective_crops([5.0, 1e9], [5.0, 1e9]), [5.0, 1e9])


def test_each_repeat_is_worth_less_by_the_same_factor():
    # D' is the integral of exp(-R / R*) over the repeats, so passes 2, 3, 4 shrink geometrically.
    passes = np.diff(effective_crops(np.arange(1.0, 6.0), np.ones(5)))
    np.testing.assert_allclose(passes[1:] / passes[:-1], np.exp(-1 / REPEATS_HALF_LIFE))
    assert 0.9 < passes[0] < 1


def test_after_a_half_life_repeats_are_worth_1_less_1_over_e_of_fresh_crops():
    worth = effective_crops([1 + REPEATS_HALF_LIFE], [1.0]) - 1
    np.testing.assert_allclose(worth / REPEATS_HALF_LIFE, 1 - np.exp(-1))


@given(unique=st.floats(1, 1e9), passes=st.floats(1, 1e4), more=st.floats(1.001, 10))
def test_more_passes_help_less_and_less_but_never_hurt(unique, passes, more):
    crops = unique * passes
    few, many = effective_crops([crops, crops * more], [unique, unique])
    assert unique <= few * (1 + 1e-12) and few <= many
    assert many <= min(crops * more, unique * (1 + REPEATS_HALF_LIFE)) * (1 + 1e-12)


@pytest.mark.parametrize("unique", [0.0, -1.0, 11.0, np.nan])
def test_impossible_numbers_are_refused(unique):
    with pytest.raises(ValueError, match="exceed num_crops"):
        effective_crops([10.0], [unique])
