import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from phenoscale.maps.intensity import (
    PERCENTILES,
    STATISTICS,
    density_statistics,
    intensity_statistics,
)


def oracle(plane: np.ndarray) -> np.ndarray:
    pixels = plane.ravel().astype(np.float64)
    constant = pixels.min() == pixels.max()
    shape = [0.0, 0.0] if constant else [stats.skew(pixels), stats.kurtosis(pixels)]
    return np.array([pixels.mean(), pixels.std(), *shape, *np.percentile(pixels, PERCENTILES)])


def test_matches_scipy_on_images_like_real_ones() -> None:
    rng = np.random.default_rng(0)
    images = rng.gamma(2.0, 15.0, size=(3, 2, 37, 41)).clip(0, 255).astype(np.uint8)
    found = intensity_statistics(images)
    assert found.shape == (3, 2 * len(STATISTICS))
    assert found.dtype == np.float64
    expected = [np.concatenate([oracle(plane) for plane in image]) for image in images]
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10)


@settings(deadline=None, max_examples=60)
@given(
    hnp.arrays(
        np.uint8,
        hnp.array_shapes(min_dims=4, max_dims=4, max_side=5),
        elements=st.sampled_from([0, 1, 2, 128, 254, 255]),
    )
)
def test_matches_scipy_on_few_pixels_and_constant_channels(images: np.ndarray) -> None:
    expected = [np.concatenate([oracle(plane) for plane in image]) for image in images]
    np.testing.assert_allclose(intensity_statistics(images), expected, rtol=1e-9, atol=1e-9)


def test_blind_to_the_place_of_pixels() -> None:
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (1, 1, 16, 16), dtype=np.uint8)
    shuffled = rng.permutation(image.ravel()).reshape(image.shape)
    np.testing.assert_array_equal(intensity_statistics(image), intensity_statistics(shuffled))


def test_views_that_are_not_contiguous() -> None:
    images = np.random.default_rng(2).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    view = images.transpose(0, 3, 1, 2)
    expected = intensity_statistics(np.ascontiguousarray(view))
    np.testing.assert_array_equal(intensity_statistics(view), expected)


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((1, 1, 4, 4), dtype=np.uint16),
        np.zeros((1, 4, 4), dtype=np.uint8),
        np.zeros((1, 1, 0, 4), dtype=np.uint8),
    ],
)
def test_other_arrays_are_refused(images: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"uint8 \(B, C, H, W\)"):
        intensity_statistics(images)


# ---- density


def test_stained_share_and_pieces_by_hand() -> None:
    plane = np.full((20, 20), 10, np.uint8)
    plane[2:6, 2:6] = 200  # 16 pixels
    plane[10:12, 10:15] = 180  # 10 pixels
    plane[12, 15] = 220  # touches by a corner only: a piece of its own
    images = np.stack([plane, np.full_like(plane, 7)])[None]
    found = density_statistics(np.concatenate([images, images[:, ::-1]]))
    np.testing.assert_allclose(found, [[27 / 400, 3, 0, 0], [0, 0, 27 / 400, 3]])


def test_threshold_has_the_largest_variance_between() -> None:
    rng = np.random.default_rng(0)
    bright = rng.random((2, 3, 24, 24)) < rng.uniform(0.1, 0.6, (2, 3, 1, 1))
    images = np.clip(rng.normal(np.where(bright, 170, 60), 35), 0, 255).astype(np.uint8)
    found = density_statistics(images).reshape(2, 3, 2)[..., 0]
    for site in range(2):
        for channel in range(3):
            plane = images[site, channel].astype(float)
            variances = []
            for level in range(plane.max().astype(int)):
                low, high = plane[plane <= level], plane[plane > level]
                apart = (low.mean() - high.mean()) ** 2 if len(low) else 0
                variances.append(len(low) * len(high) * apart)
            best = int(np.argmax(variances))
            assert found[site, channel] == pytest.approx(np.mean(plane > best))


def test_density_refuses_what_statistics_refuse() -> None:
    with pytest.raises(ValueError, match="uint8"):
        density_statistics(np.ones((1, 1, 4, 4)))
