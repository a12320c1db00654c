"""Per-channel intensity statistics: the baseline that looks at brightness and at nothing else.

They are a function of each channel's histogram, blind to where the pixels are, so what an encoder
scores beyond them it has from shape, texture and position.

Shapes: B sites, C channels, H W pixels.
"""

from __future__ import annotations

import numpy as np

PERCENTILES = (1, 25, 50, 75, 99)

STATISTICS = ("mean", "sd", "skewness", "kurtosis", *(f"p{p}" for p in PERCENTILES))
"""Names of the statistics of one channel, in order; kurtosis is the excess over a normal "
"distribution."""

_LEVELS = np.arange(256)


def intensity_statistics(images: np.ndarray) -> np.ndarray:
    """Nine statistics of each channel, from its 256-bin histogram.

    Moments are the population's (sd by n); skewness and kurtosis of a constant channel are 0.
    Percentiles interpolate between pixels as `numpy.percentile` does.

    Args:
        images: (B, C, H, W) uint8.

    Returns:
        (B, 9 C) float64: the `STATISTICS` of the first channel, then of the second, ...

    Raises:
        ValueError: for another dtype or shape, or images without pixels.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or 0 in images.shape:
        raise ValueError(
            f"images have dtype {images.dtype} and shape {images.shape}; uint8 (B, C, H, W) with "
            "at least one of each is required."
        )
    num_sites, num_channels, height, width = images.shape
    planes = images.reshape(num_sites * num_channels, height * width)
    counts = np.stack([np.bincount(plane, minlength=256) for plane in planes])
    moments = _moments(counts, height * width)
    percentiles = _percentiles(counts, height * width)
    return np.concatenate([moments, percentiles], axis=1).reshape(num_sites, -1)


def _moments(counts: np.ndarray, num_pixels: int) -> np.ndarray:
    """Mean, sd, skewness, excess kurtosis (planes, 4) of histograms (planes, 256)."""
    mean = counts @ _LEVELS / num_pixels
    centred = _LEVELS - mean[:, None]
    second, third, fourth = ((counts * centred**k).sum(axis=1) / num_pixels for k in (2, 3, 4))
    # The variance of a plane that is not constant is at least 1 / n - 1 / n^2, far above rounding.
    constant = counts.max(axis=1) == num_pixels
    variance = np.where(constant, 1.0, second)
    skewness = np.where(constant, 0.0, third / variance**1.5)
    kurtosis = np.where(constant, 0.0, fourth / variance**2 - 3)
    return np.stack([mean, np.sqrt(np.where(constant, 0.0, second)), skewness, kurtosis], axis=1)


def _percentiles(counts: np.ndarray, num_pixels: int) -> np.ndarray:
    """`PERCENTILES` (planes, 5) of histograms (planes, 256)."""
    cumulative = counts.cumsum(axis=1)
    place = np.array(PERCENTILES) / 100 * (num_pixels - 1)
    lower = np.floor(place).astype(np.int64)
    upper = np.minimum(lower + 1, num_pixels - 1)
    # The k-th smallest pixel (from 0) has the level of the first bin with cumulative count above k.
    low, high = ((cumulative[:, :, None] <= k).sum(axis=1) for k in (lower, upper))
    percentiles: np.ndarray = low + (high - low) * (place - lower)
    return percentiles
