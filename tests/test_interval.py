import numpy as np
import pytest

from phenoscale.maps.interval import Interval, checked_rounds, percentile_interval


def test_percentiles() -> None:
    found = percentile_interval(7.0, np.arange(1001) / 10)
    assert (found.value, found.low, found.high) == pytest.approx((7.0, 2.5, 97.5))


def test_excludes_zero_only_when_all_of_it_is_on_one_side() -> None:
    assert Interval(value=1, low=0.5, high=2).excludes_zero
    assert Interval(value=-1, low=-2, high=-0.5).excludes_zero
    assert not Interval(value=1, low=-0.5, high=2).excludes_zero
    assert not Interval(value=0, low=0, high=0).excludes_zero


def test_bad_intervals_are_refused() -> None:
    with pytest.raises(ValueError, match="low must not exceed high"):
        Interval(value=1, low=2, high=1)
    with pytest.raises(ValueError, match="finite"):
        Interval(value=float("nan"), low=0, high=1)


def test_short_bootstraps_are_refused() -> None:
    assert checked_rounds(40) == 40
    with pytest.raises(ValueError, match="rounds is 39; a 95% interval needs at least 40"):
        checked_rounds(39)
