import numpy as np
import pandas as pd
import pytest

from phenoscale.maps.aggregate import genes_from_wells, wells_from_sites


def sites() -> pd.DataFrame:
    rows = [
        # The same plate and well names in two experimental batches are different wells.
        ("b2", "p1", "A01", 1, "G1", "g1a", False),
        ("b1", "p1", "A01", 1, "G1", "g1a", False),
        ("b1", "p1", "A02", 1, None, None, True),
        ("b1", "p1", "A01", 2, "G1", "g1a", False),
        ("b1", "p2", "A01", 1, "G2", None, False),
        ("b1", "p1", "A01", 3, "G1", "g1a", False),
    ]
    columns = ["experimental_batch", "plate", "well", "site", "gene", "guide", "negative_control"]
    return pd.DataFrame(rows, columns=columns)


def test_wells_are_means_of_their_sites() -> None:
    vectors = np.array([[10, 0], [1, 1], [5, 5], [2, 3], [7, 7], [6, 2]], dtype=np.float32)
    means, wells = wells_from_sites(vectors, sites())
    assert means.dtype == np.float64
    np.testing.assert_allclose(means, [[3, 2], [5, 5], [7, 7], [10, 0]])
    key = wells[["experimental_batch", "plate", "well"]].agg("/".join, axis=1).tolist()
    assert key == ["b1/p1/A01", "b1/p1/A02", "b1/p2/A01", "b2/p1/A01"]
    assert wells["num_sites"].tolist() == [3, 1, 1, 1]
    assert wells["gene"].fillna("-").tolist() == ["G1", "-", "G2", "G1"]
    assert wells["negative_control"].tolist() == [False, True, False, False]
    assert "site" not in wells


def test_wells_match_pandas_on_a_random_screen() -> None:
    rng = np.random.default_rng(0)
    metadata = pd.DataFrame(
        {
            "experimental_batch": rng.choice(["b1", "b2"], 300),
            "plate": rng.choice(["p1", "p2", "p3"], 300),
            "well": rng.choice(["A01", "A02", "B01", "B02"], 300),
        },
        index=rng.permutation(300),
    )
    vectors = rng.standard_normal((300, 5))
    means, wells = wells_from_sites(vectors, metadata)
    expected = pd.DataFrame(vectors, index=metadata.index).groupby(
        [metadata[c] for c in metadata.columns]
    )
    np.testing.assert_allclose(means, expected.mean().to_numpy(), atol=1e-12)
    assert wells["num_sites"].tolist() == expected.size().tolist()


def test_sites_of_a_well_must_agree() -> None:
    metadata = sites()
    metadata.loc[3, "gene"] = "G9"
    with pytest.raises(ValueError, match="well b1/p1/A01 disagree on gene: 'G1' and 'G9'"):
        wells_from_sites(np.ones((6, 2)), metadata)


def test_missing_metadata_do_not_differ_from_each_other() -> None:
    metadata = sites().assign(concentration=np.nan, compound=[None, np.nan] * 3)
    _, wells = wells_from_sites(np.ones((6, 2)), metadata)
    assert wells["compound"].isna().all()


def test_bad_sites_are_refused() -> None:
    with pytest.raises(ValueError, match=r"lack the columns \['plate'\]"):
        wells_from_sites(np.ones((6, 2)), sites().drop(columns="plate"))
    with pytest.raises(ValueError, match="has 5 rows but its metadata have 6"):
        wells_from_sites(np.ones((5, 2)), sites())
    with pytest.raises(ValueError, match=r"\['well'\] have empty cells"):
        wells_from_sites(np.ones((6, 2)), sites().assign(well=None))
    with pytest.raises(ValueError, match="12 NaN"):
        wells_from_sites(np.full((6, 2), np.nan), sites())


def wells() -> pd.DataFrame:
    rows = [
        ("G2", "g1", False),
        ("G1", "g1", False),
        ("G1", "g1", False),
        ("G1", "g2", False),
        (None, None, True),
        ("G3", None, False),
        ("G3", None, False),
        (None, None, False),  # a compound
    ]
    return pd.DataFrame(rows, columns=["gene", "guide", "negative_control"])


def test_genes_are_means_of_guides_not_of_wells() -> None:
    vectors = np.array([[8.0], [1], [3], [10], [99], [4], [6], [99]])
    means, names, counts = genes_from_wells(vectors, wells())
    assert names == ["G1", "G2", "G3"]
    # G1: guide means 2 and 10. The mean of its wells would be 4.67; g1 of G2 is another guide.
    np.testing.assert_allclose(means, [[6], [8], [5]])
    assert counts.tolist() == [3, 1, 2]


def test_controls_with_a_gene_name_are_dropped() -> None:
    table = wells().fillna({"gene": "negative_control"})
    table["negative_control"] |= table["gene"] == "negative_control"
    _, names, _ = genes_from_wells(np.ones((8, 1)), table)
    assert names == ["G1", "G2", "G3"]


def test_order_of_wells_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    vectors, order = rng.standard_normal((8, 3)), rng.permutation(8)
    means, names, counts = genes_from_wells(vectors, wells())
    other = genes_from_wells(vectors[order], wells().iloc[order])
    np.testing.assert_allclose(other[0], means, atol=1e-12)
    assert other[1] == names
    assert other[2].tolist() == counts.tolist()


def test_bad_wells_are_refused() -> None:
    with pytest.raises(ValueError, match=r"None of the 8 wells has a gene \(8 are negative"):
        genes_from_wells(np.ones((8, 1)), wells().assign(negative_control=True))
    with pytest.raises(ValueError, match=r"lack the columns \['guide'\]"):
        genes_from_wells(np.ones((8, 1)), wells().drop(columns="guide"))
    with pytest.raises(ValueError, match="negative_control has empty cells"):
        genes_from_wells(np.ones((8, 1)), wells().assign(negative_control=None))
