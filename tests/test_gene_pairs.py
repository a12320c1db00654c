import numpy as np
import pytest

from phenoscale.maps import gene_pairs
from phenoscale.maps.gene_pairs import pair_cosines, pair_position, prepared


def test_cosines_by_blocks_equal_the_whole_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gene_pairs, "_BLOCK", 7)
    vectors = np.random.default_rng(0).standard_normal((23, 4))
    unit = prepared(vectors, [f"G{i}" for i in range(23)])
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1)
    expected = (unit @ unit.T)[np.triu_indices(23, 1)]
    np.testing.assert_allclose(pair_cosines(unit), expected, atol=1e-12)


def test_position_is_that_of_the_upper_triangle() -> None:
    first, second = np.triu_indices(9, 1)
    assert pair_position(first, second, 9).tolist() == list(range(36))
