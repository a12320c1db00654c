import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from phenoscale.maps.intensity import PERCENTILES, STATISTICS, intensity_statistics


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
