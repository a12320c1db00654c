import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from phenoscale.maps.aggregate import aggregate
from phenoscale.maps.align import (
    SCALE_FLOOR,
    CenterScale,
    PcaCenterScale,
    TypicalVariation,
    reduce_by_pca,
)
from phenoscale.maps.alignment import Alignment

EFAAR = json.loads((Path(__file__).parent / "data" / "efaar_alignment.json").read_text())


def screen(
    d: int = 6, per_batch: int = 40, batches: int = 3, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Correlated embeddings whose offset and scale differ by experimental batch; half controls."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((d, d))
    names = np.repeat([f"batch{i}" for i in range(batches)], per_batch)
    vectors = rng.standard_normal((len(names), d)) @ mixing + rng.standard_normal(d)
    for i in range(batches):
        vectors[names == f"batch{i}"] *= 1 + 0.5 * i
        vectors[names == f"batch{i}"] += 3 * rng.standard_normal(d)
    control = np.tile(np.arange(per_batch) % 2 == 0, batches)
    return vectors, names, control


def cosines(vectors: np.ndarray) -> np.ndarray:
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit @ unit.T


@pytest.mark.parametrize("n_components", [None, 3])
def test_matches_scikit_learn(n_components: int | None) -> None:
    vectors, names, control = screen()
    aligned = PcaCenterScale(n_components).fit_transform(vectors, names, control)
    scores = PCA(n_components, svd_solver="full").fit(vectors[control]).transform(vectors)
    for name in np.unique(names):
        scaler = StandardScaler().fit(scores[(names == name) & control])
        scores[names == name] = scaler.transform(scores[names == name])
    assert aligned.shape == (len(vectors), n_components or 6)
    # The sign of a component is arbitrary and cosines do not see it.
    np.testing.assert_allclose(np.abs(aligned), np.abs(scores), atol=1e-9)
    np.testing.assert_allclose(cosines(aligned), cosines(scores), atol=1e-9)


def test_controls_of_each_batch_have_mean_0_and_sd_1() -> None:
    vectors, names, control = screen()
    aligned = PcaCenterScale().fit_transform(vectors, names, control)
    for name in np.unique(names):
        rows = aligned[(names == name) & control]
        np.testing.assert_allclose(rows.mean(axis=0), 0, atol=1e-12)
        np.testing.assert_allclose(rows.std(axis=0), 1, atol=1e-12)


def test_only_controls_decide() -> None:
    vectors, names, control = screen()
    changed = np.where(control[:, None], vectors, 100.0)
    fit = PcaCenterScale().fit(vectors, names, control)
    again = PcaCenterScale().fit(changed, names, control)
    np.testing.assert_array_equal(fit.components_, again.components_)
    np.testing.assert_array_equal(fit.transform(vectors, names), again.transform(vectors, names))


def test_offset_and_scale_of_a_batch_are_removed() -> None:
    vectors, names, control = screen(batches=1)
    doubled = np.concatenate([vectors, 2 * vectors + 5])
    both = np.concatenate([names, np.repeat("other", len(names))])
    aligned = PcaCenterScale().fit_transform(doubled, both, np.tile(control, 2))
    np.testing.assert_allclose(aligned[: len(names)], aligned[len(names) :], atol=1e-8)


def test_more_dimensions_than_controls() -> None:
    vectors, names, control = screen(d=100, per_batch=20)
    fit = PcaCenterScale().fit(vectors, names, control)
    assert fit.components_.shape[0] <= control.sum() - 1
    assert fit.num_dropped_ == 100 - fit.components_.shape[0]
    assert np.abs(fit.transform(vectors, names)[control]).max() < 10
    assert len(PcaCenterScale(500).fit(vectors, names, control).components_) == len(fit.components_)


def test_rounding_noise_is_not_whitened() -> None:
    vectors, names, control = screen()
    # Two redundant columns far from 0, in float32: their residual is rounding, not biology.
    redundant = 1000 + np.concatenate([vectors, vectors[:, :2] + vectors[:, 2:4]], axis=1)
    fit = PcaCenterScale().fit(redundant.astype(np.float32), names, control)
    assert len(fit.components_) == 6
    assert fit.num_dropped_ == 2


def test_a_component_that_is_constant_in_one_batch_does_not_explode() -> None:
    # Controls on the axes, so that the components are the axes; in batch c the second is constant.
    both, first_only = [[10, 0], [-10, 0], [0, 1], [0, -1]], [[10, 0], [-10, 0]] * 2
    vectors = np.array([*both, *both, *first_only, [0, 1]], dtype=np.float64)
    names = np.array([*"aaaabbbbccccc"])
    control = np.arange(13) < 12
    fit = PcaCenterScale().fit(vectors, names, control)
    pooled = np.sqrt((0.5 + 0.5 + 0) / 3)
    np.testing.assert_allclose(fit.scales_["a"], [np.sqrt(50), np.sqrt(0.5)])
    np.testing.assert_allclose(fit.scales_["c"], [10, SCALE_FLOOR * pooled])
    np.testing.assert_allclose(
        np.abs(fit.transform(vectors, names)[-1]), [0, 1 / (SCALE_FLOOR * pooled)], atol=1e-12
    )


def test_same_fit_for_another_order_of_rows() -> None:
    vectors, names, control = screen()
    order = np.random.default_rng(1).permutation(len(vectors))
    aligned = PcaCenterScale().fit_transform(vectors, names, control)
    shuffled = PcaCenterScale().fit_transform(vectors[order], names[order], control[order])
    np.testing.assert_allclose(shuffled, aligned[order], atol=1e-9)


def test_a_batch_without_controls_is_named() -> None:
    vectors, names, control = screen()
    with pytest.raises(ValueError, match=r"too few negative controls: batch1 \(0\)"):
        PcaCenterScale().fit(vectors, names, control & (names != "batch1"))
    control[np.flatnonzero(names == "batch2")[1:]] = False
    with pytest.raises(ValueError, match=r"batch2 \(1\)"):
        PcaCenterScale().fit(vectors, names, control)


def test_bad_input_is_refused() -> None:
    vectors, names, control = screen()
    broken = vectors.copy()
    broken[[3, 7], 0] = np.nan, np.inf
    with pytest.raises(ValueError, match=r"2 NaN or infinite values in 2 of 120 rows \(3, 7\)"):
        PcaCenterScale().fit(broken, names, control)
    with pytest.raises(ValueError, match="constant within"):
        PcaCenterScale().fit(vectors * ~control[:, None], names, control)
    with pytest.raises(ValueError, match=r"experimental_batch has shape \(119,\)"):
        PcaCenterScale().fit(vectors, names[1:], control)
    with pytest.raises(ValueError, match="negative_control has dtype int"):
        PcaCenterScale().fit(vectors, names, control.astype(int))
    with pytest.raises(ValueError, match=r"empty in 1 rows \(4\)"):
        PcaCenterScale().fit(vectors, [*names[:4], None, *names[5:]], control)
    with pytest.raises(ValueError, match="n_components is 0"):
        PcaCenterScale(0)


def test_transform_refuses_what_fit_has_not_seen() -> None:
    vectors, names, control = screen()
    with pytest.raises(ValueError, match="call fit"):
        PcaCenterScale().transform(vectors, names)
    fit = PcaCenterScale().fit(vectors, names, control)
    with pytest.raises(ValueError, match="No fit for the experimental batches batch9"):
        fit.transform(vectors, np.where(names == "batch0", "batch9", names))
    with pytest.raises(ValueError, match="width 5; the fit was made on 6"):
        fit.transform(vectors[:, :5], names)


# ---- against EFAAR_benchmarking itself (tests/data/make_efaar_alignment.py)


def everything(
    vectors: np.ndarray, batch: np.ndarray, control: np.ndarray, components: int
) -> dict[str, np.ndarray]:
    one = np.full(len(batch), "all")
    # Without CORAL the covariance of all controls is the identity, by n, and the ridge is added.
    count = np.count_nonzero(control)
    round_ = np.sqrt(count / (count - 1) + 0.5)
    return {
        "centerscale_by_batch": CenterScale().fit_transform(vectors, batch),
        "centerscale_on_controls": CenterScale().fit_transform(vectors, batch, control),
        "tvn": TypicalVariation().fit_transform(vectors, batch, control),
        "tvn_without_coral": round_ * TypicalVariation().fit_transform(vectors, one, control),
        "pca": reduce_by_pca(vectors, batch, components),
    }


@pytest.mark.parametrize("case", EFAAR["random"])
def test_alignments_are_those_of_efaar(case: dict) -> None:
    vectors, batch = np.array(case["vectors"]), np.array(case["batch"])
    control = np.array(case["pert"]) == "neg"
    found = everything(vectors, batch, control, case["components"])
    for name, expected in case["aligned"].items():
        if name.startswith("tvn_without"):  # the sign of a component is arbitrary
            expected = np.abs(expected)
            found[name] = np.abs(found[name])
        np.testing.assert_allclose(found[name], expected, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("case", EFAAR["random"])
def test_aggregates_are_those_of_efaar(case: dict) -> None:
    table = pd.DataFrame({"pert": case["pert"]})
    kept = table["pert"] != "neg"
    for method, expected in case["aggregate"].items():
        found, groups = aggregate(np.array(case["vectors"])[kept], table[kept], ["pert"], method)
        np.testing.assert_allclose(found, expected, atol=1e-12)
        assert groups["pert"].tolist() == ["G1", "G2", "G3"]
        assert groups["count"].tolist() == table["pert"][kept].value_counts().sort_index().tolist()


def test_real_wells_are_aligned_as_by_efaar(real_data: Path) -> None:
    table = pd.read_parquet(real_data / "hd2013sgi_rnai" / "wells.parquet")
    vectors = table.filter(like="f_").to_numpy(dtype=np.float64)
    control = (table["well_type"] == "negctrl").to_numpy()
    found = everything(vectors, table["plate"].to_numpy(), control, 5)
    for name, expected in EFAAR["hd2013sgi_rnai"].items():
        first = found[name][: len(expected["first"])]
        np.testing.assert_allclose(np.abs(first), np.abs(expected["first"]), atol=1e-9)
        assert np.abs(found[name]).sum() == pytest.approx(expected["sum"], rel=1e-12)


# ---- what they have in common

ALL = pytest.mark.parametrize("kind", [CenterScale, PcaCenterScale, TypicalVariation])


@ALL
def test_a_saved_fit_is_the_same_and_takes_new_batches(kind: type, tmp_path: Path) -> None:
    vectors, names, control = screen(batches=3)
    old = names != "batch2"
    fit = kind().fit(vectors[old], names[old], control[old])
    before = fit.transform(vectors[old], names[old])
    fit.save(tmp_path / "fit.npz")
    loaded = Alignment.load(tmp_path / "fit.npz")
    assert type(loaded) is kind and loaded.groups_ == fit.groups_
    assert loaded.num_dropped_ == fit.num_dropped_ and loaded.n_components is None
    np.testing.assert_array_equal(loaded.transform(vectors[old], names[old]), before)
    with pytest.raises(ValueError, match="No fit for the experimental batches batch2"):
        loaded.transform(vectors, names)
    loaded.extend(vectors[~old], names[~old], control[~old])
    after = loaded.transform(vectors, names)
    np.testing.assert_array_equal(after[old], before)
    new = after[~old & control]
    if kind is not TypicalVariation:  # which leaves the offset of a group
        np.testing.assert_allclose(new.mean(axis=0), 0, atol=1e-12)
    with pytest.raises(ValueError, match="batch2 are fitted already"):
        loaded.extend(vectors[~old], names[~old], control[~old])


def test_a_file_that_is_no_fit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "fit.npz"
    for content in ({"kind": np.array("Other")}, {"x": np.ones(3)}, {"kind": np.array([None])}):
        np.savez(path, **content)
        with pytest.raises(ValueError, match="no saved alignment"):
            Alignment.load(path)
    with pytest.raises(ValueError, match="no saved alignment"):
        Alignment.load(tmp_path / "absent.npz")


@ALL
def test_float32_stays_and_many_blocks_are_as_one(kind: type, monkeypatch) -> None:
    vectors, names, control = screen(d=5, per_batch=50)
    whole = kind().fit_transform(vectors, names, control)
    monkeypatch.setattr("phenoscale.maps.vectors._BLOCK_ROWS", 7)
    parts = kind().fit_transform(vectors, names, control)
    np.testing.assert_allclose(parts, whole, atol=1e-10)
    narrow = kind().fit_transform(vectors.astype(np.float32), names, control)
    assert narrow.dtype == np.float32
    np.testing.assert_allclose(narrow, whole, rtol=1e-4, atol=1e-4)


@ALL
def test_constant_columns_are_named(kind: type) -> None:
    vectors, names, control = screen()
    vectors[:, [1, 4]] = 3.5
    with pytest.raises(ValueError, match=r"2 of 6 columns .* constant .* \(columns 1, 4\)"):
        kind().fit(vectors, names, control)
    with pytest.raises(ValueError, match="All 120 embeddings are the same, constant vector"):
        kind().fit(np.ones_like(vectors), names, control)


def test_a_column_that_only_controls_hold_constant() -> None:
    vectors, names, control = screen()
    vectors[control & (names == "batch1"), 2] = 7
    with pytest.raises(
        ValueError, match=r"1 columns are constant over the 20 controls of .*batch1"
    ):
        CenterScale().fit(vectors, names, control)
    vectors[control, 2] = 7
    assert TypicalVariation().fit(vectors, names, control).num_dropped_ == 1
    assert PcaCenterScale().fit(vectors, names, control).num_dropped_ == 1


def test_tvn_with_fewer_controls_than_columns_drops_what_they_cannot_support() -> None:
    vectors, names, control = screen(d=100, per_batch=20)
    fit = TypicalVariation().fit(vectors, names, control)
    assert len(fit.components_) == control.sum() - 1 and fit.num_dropped_ == 71
    assert np.isfinite(fit.transform(vectors, names)).all()
    assert np.abs(fit.transform(vectors, names)[control]).max() < 10
    assert len(TypicalVariation(12).fit(vectors, names, control).components_) == 12


def test_tvn_makes_controls_rounder_in_every_batch() -> None:
    vectors, names, control = screen(d=4, per_batch=400)
    aligned = TypicalVariation().fit_transform(vectors, names, control)
    for name in np.unique(names):
        values = np.linalg.eigvalsh(np.cov(aligned[(names == name) & control], rowvar=False))
        before = np.linalg.eigvalsh(np.cov(vectors[(names == name) & control], rowvar=False))
        assert values.max() <= 1 and values.max() / values.min() < before.max() / before.min()


def test_reduction_refuses_more_components_than_there_are() -> None:
    vectors, names, _ = screen()
    with pytest.raises(ValueError, match="num_components is 7; 120 rows of width 6"):
        reduce_by_pca(vectors, names, 7)
