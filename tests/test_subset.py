"""Subsets: nested, of whole wells, exact in size, without what is held out."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phenoscale.screens.index import ScreenIndex
from phenoscale.screens.index_format import GROUP_ROWS
from phenoscale.screens.subset import Subset
from tests.screen_on_disk import index_of, large_index, screen_rows, wells_of

LARGE_ROWS = 65 * GROUP_ROWS + 123  # more than is read in one piece of a pass
FRACTION = st.floats(0.02, 1.0)
LAYOUT = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(5, 30), st.integers(1, 3))
Names = tuple[str, ...]


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> ScreenIndex:
    return large_index(tmp_path_factory.mktemp("large") / "i.parquet", LARGE_ROWS)


@pytest.fixture(scope="module")
def frame(large: ScreenIndex) -> pd.DataFrame:
    return large.metadata()


def chosen_by_hand(frame: pd.DataFrame, fraction: float, held_out: Names) -> np.ndarray:
    """The rule, written out: it must never change, or studies of one screen would disagree."""
    plate = frame["experimental_batch"] + "/" + frame["plate"]
    inside = ~(frame["experimental_batch"].isin(held_out) | plate.isin(held_out))
    well = plate + "/" + frame["well"]
    wells = sorted(
        set(well[inside]), key=lambda name: hashlib.blake2b(name.encode(), digest_size=8).digest()
    )
    kept = wells[: int(fraction * len(wells) + 0.5)]
    return np.flatnonzero(inside & well.isin(kept))


def rows_by_group(subset: Subset) -> np.ndarray:
    """As the readers find them."""
    groups = range(subset.index.num_groups)
    return np.concatenate([subset.rows_of(g, subset.index.sites(g).well_hash) for g in groups])


def check_counts(subset: Subset, rows: np.ndarray) -> None:
    """Counts per group and plate, and the length, are those of the rows."""
    assert rows.dtype == np.int64 and len(subset) == len(rows)
    np.testing.assert_array_equal(rows_by_group(subset), rows)
    per_group = np.bincount(rows // GROUP_ROWS, minlength=subset.index.num_groups)
    np.testing.assert_array_equal(subset.counts, per_group)
    plates = subset.index.plates
    per_plate = [
        np.sum((rows >= first) & (rows < first + count))
        for first, count in zip(plates["first_row"], plates["rows"], strict=True)
    ]
    np.testing.assert_array_equal(subset.plate_counts(), per_plate)


@settings(max_examples=60)
@given(layout=LAYOUT, one=FRACTION, two=FRACTION, data=st.data())
def test_subsets_nest_keep_wells_whole_and_avoid_what_is_held_out(
    layout: tuple[int, int, int, int], one: float, two: float, data: st.DataObject
):
    batches, plates, wells, sites = layout
    names = [f"b{b}/p{p}" for b in range(batches) for p in range(plates)]
    names += [f"b{b}" for b in range(batches)]
    held_out = tuple(data.draw(st.lists(st.sampled_from(names), unique=True, max_size=2)))
    with tempfile.TemporaryDirectory() as folder:
        index = index_of(screen_rows(*layout), Path(folder) / "i.parquet")
        out = index.held_out_rows(held_out)
        num_wells = (index.num_sites - len(out)) // sites
        small, large = sorted((one, two))
        if int(small * num_wells + 0.5) == 0:
            with pytest.raises(ValueError, match="is no well. Hold out less"):
                Subset.of(index, small, held_out)
            return
        subsets = [Subset.of(index, fraction, held_out) for fraction in (small, large, 1.0)]
        chosen = [subset.rows() for subset in subsets]
        assert set(chosen[0]) <= set(chosen[1]) <= set(chosen[2])
        everything = np.sort(np.concatenate([chosen[2], out]))
        np.testing.assert_array_equal(everything, np.arange(index.num_sites))
        for fraction, subset, rows in zip((small, large, 1.0), subsets, chosen, strict=True):
            check_counts(subset, rows)
            assert len(rows) == sites * len(wells_of(index, rows))
            assert len(wells_of(index, rows)) == int(fraction * num_wells + 0.5)
            expected = chosen_by_hand(index.metadata(), fraction, held_out)
            np.testing.assert_array_equal(rows, expected)


@pytest.mark.parametrize("fraction", [1e-4, 0.1, 0.7, 1.0])
@pytest.mark.parametrize("held_out", [(), ("b0003", "b0011/p00056", "b0010/p00050", "b0143")])
def test_a_large_index_is_divided_as_a_small_one(
    large: ScreenIndex, frame: pd.DataFrame, fraction: float, held_out: Names
):
    subset = Subset.of(large, fraction, held_out)
    rows = chosen_by_hand(frame, fraction, held_out)
    np.testing.assert_array_equal(subset.rows(), rows)
    check_counts(subset, rows)


def test_subsets_depend_on_names_alone(tmp_path: Path):
    """Another perturbation, other images or more sites choose the same wells."""
    index = index_of(screen_rows(), tmp_path / "a.parquet")
    relabelled = [r | {"perturbation": "X", "guide": "y"} for r in screen_rows()]
    other = index_of(relabelled, tmp_path / "b.parquet")
    more = index_of(screen_rows(sites=3), tmp_path / "c.parquet")
    chosen = [wells_of(x, Subset.of(x, 0.3).rows()) for x in (index, other, more)]
    assert chosen[0] == chosen[1] == chosen[2]
    # Wells are spread: neither one batch nor one plate is taken first.
    assert len({well[:2] for well in chosen[0]}) == 4


def test_what_is_no_subset_is_refused(tmp_path: Path):
    index = index_of(screen_rows(), tmp_path / "i.parquet")
    for fraction in (0.0, -0.1, 1.01, float("nan")):
        with pytest.raises(ValueError, match=r"data_fraction is .*; a share in \(0, 1\]"):
            Subset.of(index, fraction)
    with pytest.raises(ValueError, match=r"0.01 of the 32 wells that held_out=\(\) leaves is no"):
        Subset.of(index, 0.01)
    for fraction in (0.5, 1.0):
        with pytest.raises(ValueError, match="of the 0 wells that held_out=.* leaves is no well"):
            Subset.of(index, fraction, ("b0", "b1"))
    with pytest.raises(ValueError, match=r"held_out names \['b9'\]"):
        Subset.of(index, 0.5, ("b9",))
