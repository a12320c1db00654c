import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from phenoscale.maps.align import SCALE_FLOOR, PcaCenterScale


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
        PcaCenterScale().fit(np.ones_like(vectors), names, control)
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
