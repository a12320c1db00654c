"""What crops that were seen before are still worth (Muennighoff et al. 2023, arXiv 2305.16264)."""

from __future__ import annotations

import numpy as np

REPEATS_HALF_LIFE = 15.387756
"""R*_D as the paper's appendix A fits it to language models; on crops nobody has measured it. After
so many repeats they were worth 1 - 1/e of fresh data on average, and however many there are, they
are worth no more than this many fresh passes."""


def effective_crops(
    num_crops: np.ndarray, num_unique: np.ndarray, *, half_life: float = REPEATS_HALF_LIFE
) -> np.ndarray:
    """Fresh crops that would have taught as much: D' = U + U R* (1 - exp(-R / R*)).

    U are the unique crops and R = D / U - 1 is how often they were repeated (Muennighoff et al.
    2023, section 3). The first pass counts in full; 4 passes count as 3.7, 40 as 15.2.

    Args:
        num_crops: (...) crops seen, D, repeats included.
        num_unique: (...) crops among them that do not overlap, U, above 0 and at most D.
        half_life: R*.

    Returns:
        (...) D', from U to U (1 + R*).

    Raises:
        ValueError: if a number of unique crops is not above 0 or exceeds the crops seen.
    """
    num_crops = np.asarray(num_crops, dtype=np.float64)
    num_unique = np.asarray(num_unique, dtype=np.float64)
    if not (np.all(num_unique > 0) and np.all(num_unique <= num_crops)):
        raise ValueError(
            "num_unique has values that are not above 0 or exceed num_crops; give the crops among "
            "those seen that do not overlap."
        )
    repeats = num_crops / num_unique - 1
    return np.asarray(num_unique * (1 - half_life * np.expm1(-repeats / half_life)))
