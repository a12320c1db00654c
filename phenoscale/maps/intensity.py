"""Per-channel intensity statistics and density: the baseline that looks at how bright and how full.

The statistics are a function of each channel's histogram, blind to where the pixels are, so what an
encoder scores beyond them it has from shape, texture and position. Density is how much of the site
is stained, and in how many pieces: what a cell count would say, without segmenting cells.

Shapes: B sites, C channels, H W pixels.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

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
    counts, num_pixels = _histograms(images), images.shape[2] * images.shape[3]
    moments = _moments(counts, num_pixels)
    percentiles = _percentiles(counts, num_pixels)
    return np.concatenate([moments, percentiles], axis=1).reshape(len(images), -1)


def density_statistics(images: np.ndarray) -> np.ndarray:
    """Stained share of each channel, and the number of pieces that it lies in.

    A pixel is stained where it is brighter than Otsu's threshold of its plane (Otsu 1979); pieces
    are joined by their sides. A constant channel has nothing stained.

    Args:
        images: (B, C, H, W) uint8.

    Returns:
        (B, 2 C) float64: share and pieces of the first channel, then of the second, ...

    Raises:
        ValueError: as `intensity_statistics`.
    """
    thresholds = _otsu(_histograms(images))
    planes = images.reshape(-1, *images.shape[2:])
    stained = planes > thresholds[:, None, None]
    pieces = [ndimage.label(plane)[1] for plane in stained]
    found = np.stack([stained.mean(axis=(1, 2)), np.array(pieces, dtype=np.float64)], axis=1)
    return found.reshape(len(images), -1)


def _histograms(images: np.ndarray) -> np.ndarray:
    """Pixels of each level (planes, 256), of uint8 images (B, C, H, W)."""
    if images.dtype != np.uint8 or images.ndim != 4 or 0 in images.shape:
        raise ValueError(
            f"images have dtype {images.dtype} and shape {images.shape}; uint8 (B, C, H, W) with "
            "at least one of each is required."
        )
    planes = images.reshape(images.shape[0] * images.shape[1], -1)
    return np.stack([np.bincount(plane, minlength=256) for plane in planes])


def _otsu(counts: np.ndarray) -> np.ndarray:
    """Levels (planes,) that part histograms (planes, 256) with the largest variance between parts.

    The lowest of several; the brightest level for a constant plane.
    """
    below = counts.cumsum(axis=1)
    above = below[:, -1:] - below
    sums = (counts * _LEVELS).cumsum(axis=1)
    mean_below = sums / np.maximum(below, 1)
    mean_above = (sums[:, -1:] - sums) / np.maximum(above, 1)
    between = below * above * (mean_below - mean_above) ** 2
    levels = between.argmax(axis=1)
    return np.where(between.max(axis=1) > 0, levels, 255)


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
