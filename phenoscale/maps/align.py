"""Alignment of embeddings across experimental batches, on their negative controls.

Negative controls look the same in every experimental batch but for nuisance, so what differs
between them is what to remove. Three ways, each fitted once and applied to any rows of the same
experimental batches, saved, and taken on to new ones (`extend`):

- `CenterScale`: mean 0 and sd 1 of the controls of each group (`centerscale_on_controls` in
  EFAAR_benchmarking; on all rows instead of controls, `centerscale_by_batch`).
- `PcaCenterScale`, PCA-CS: a PCA of all controls, then the same in its coordinates (Kraus et al.
  2024, arXiv 2404.10242, section 4.2). Scaling every component to unit variance whitens: directions
  in which controls hardly vary count as much as those in which they vary a lot.
- `TypicalVariation`, TVN: whitening on all controls, then CORAL: the covariance of each group's
  controls, plus half of the identity, is made round (Ando et al. 2017; Sun et al. 2016;
  `tvn_on_controls` in EFAAR_benchmarking).

A group is an experimental batch, or a plate, as the caller names it. Sums run over blocks of rows,
so a table of a million wells is never copied; float32 comes out as float32, all else as float64.

Shapes: n rows (wells or sites), d width of the embedding, k components kept.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from phenoscale.maps.alignment import Alignment, Rows
from phenoscale.maps.moments import moments_of, triangle_of
from phenoscale.maps.vectors import blocks, listed

RELATIVE_FLOOR = 1e-6
"""Share of the largest sd below which a component is dropped: whitening would blow up rounding."""

SCALE_FLOOR = 0.1
"""Least scale of a component of PCA-CS in one group, as a share of its sd pooled over all.

With few controls the sd of some component is small by chance, and dividing by it would let that
component rule the group. From about eight controls on it is practically never reached.
"""

CORAL_RIDGE = 0.5
"""What TVN adds to the variances of each group's controls before it makes them round."""

_ROUNDING = float(np.finfo(np.float32).eps)


class CenterScale(Alignment):
    """Mean 0 and sd 1 (by n) of the controls of each group, column by column.

    Attributes after `fit`, beside those of `Alignment`:
        centers_: group -> (d,) float64, mean of its controls.
        scales_: group -> (d,) float64, their sd.
    """

    _PER_GROUP = ("centers_", "scales_")
    centers_: dict[str, np.ndarray]
    scales_: dict[str, np.ndarray]

    def __init__(self, n_components: None = None) -> None:
        """All columns are kept."""
        super().__init__(n_components)

    def _fit_all(self, rows: Rows) -> None:
        width = rows.vectors.shape[1]
        self.mean_, self.components_, self.num_dropped_ = np.zeros(width), np.eye(width), 0

    def _fit_groups(self, rows: Rows) -> None:
        for name, members in rows.groups.items():
            found = moments_of(rows.vectors, members)
            # The sd of equal numbers is 0 up to the rounding of their mean.
            flat = np.flatnonzero(found.sd <= 1e-12 * np.abs(found.mean))
            if len(flat):
                raise ValueError(
                    f"{len(flat)} columns are constant over the {len(members)} controls of "
                    f"experimental batch {name} (columns {listed(flat.tolist())}) and cannot be "
                    "scaled by them. Leave them out, or align by PcaCenterScale, which leaves out "
                    "directions that the controls cannot support."
                )
            self.centers_[name], self.scales_[name] = found.mean, found.sd
            self.groups_.append(name)

    def _turned(self, vectors: np.ndarray) -> np.ndarray:
        return vectors.astype(np.float64)

    def _change_of(self, name: str) -> Callable[[np.ndarray], np.ndarray]:
        center, scale = self.centers_[name], self.scales_[name]
        return lambda vectors: (self._turned(vectors) - center) / scale


class PcaCenterScale(Alignment):
    """PCA on all controls, then centre and scale per group on its controls.

    At most (number of controls - 1) components exist; those whose sd within groups is below
    `RELATIVE_FLOOR` of the largest sd, or below float32 rounding of the values, are dropped. With
    fewer controls than a few times d the last components are overfitted.

    Attributes after `fit`, beside those of `Alignment`:
        centers_: group -> (k,) float64, mean of its controls in PCA coordinates.
        scales_: group -> (k,) float64, their sd (see `SCALE_FLOOR`).
        pooled_sd_: (k,) float64, their sd within groups, over all of them.
    """

    _PER_GROUP = ("centers_", "scales_")
    centers_: dict[str, np.ndarray]
    scales_: dict[str, np.ndarray]
    pooled_sd_: np.ndarray

    def _fit_all(self, rows: Rows) -> None:
        everyone = rows.all
        whole = moments_of(rows.vectors, everyone)
        self.mean_ = whole.mean
        _, singular, components = np.linalg.svd(triangle_of(rows.vectors, everyone, whole.mean))
        components = components[: min(len(singular), len(everyone) - 1)]
        self.components_ = components
        found = [moments_of(rows.vectors, m, self._turned) for m in rows.groups.values()]
        pooled_sd = np.sqrt(sum(m.squares for m in found) / len(everyone))
        floor = max(
            RELATIVE_FLOOR * singular[0] / np.sqrt(len(everyone)), _ROUNDING * whole.largest.max()
        )
        supported = np.flatnonzero(pooled_sd > floor)
        if not len(supported):
            raise ValueError(
                f"The embeddings of all {len(everyone)} negative controls are constant within "
                f"their experimental batches (largest sd {pooled_sd.max():.2g}); they must vary. "
                "Has the encoder collapsed?"
            )
        self._keep(components, supported)
        self.pooled_sd_ = pooled_sd[supported[: self.n_components]]

    def _fit_groups(self, rows: Rows) -> None:
        for name, members in rows.groups.items():
            found = moments_of(rows.vectors, members, self._turned)
            self.centers_[name] = found.mean
            self.scales_[name] = np.maximum(found.sd, SCALE_FLOOR * self.pooled_sd_)
            self.groups_.append(name)

    def _change_of(self, name: str) -> Callable[[np.ndarray], np.ndarray]:
        center, scale = self.centers_[name], self.scales_[name]
        return lambda vectors: (self._turned(vectors) - center) / scale


class TypicalVariation(Alignment):
    """TVN: columns scaled, whitened by a PCA on all controls, then CORAL per group.

    Directions in which the controls do not vary, beyond `RELATIVE_FLOOR` or float32 rounding, are
    dropped; the reference would divide by their rounding errors.

    Attributes after `fit`, beside those of `Alignment`:
        round_: group -> (k, k) float64, inverse square root of the covariance of its controls in
            the shared coordinates, plus `CORAL_RIDGE` on the diagonal.
    """

    _PER_GROUP = ("round_",)
    round_: dict[str, np.ndarray]

    def _fit_all(self, rows: Rows) -> None:
        everyone = rows.all
        whole = moments_of(rows.vectors, everyone)
        varies = whole.sd > _ROUNDING * whole.largest
        if not varies.any():
            raise ValueError(
                f"The embeddings of all {len(everyone)} negative controls are constant (largest sd "
                f"{whole.sd.max():.2g}); they must vary. Has the encoder collapsed?"
            )
        self.mean_ = whole.mean
        weight = np.divide(1.0, whole.sd, out=np.zeros_like(whole.sd), where=varies)
        triangle = triangle_of(rows.vectors, everyone, whole.mean) * weight
        _, singular, components = np.linalg.svd(triangle)
        sd = singular[: len(everyone) - 1] / np.sqrt(len(everyone))
        noise = _ROUNDING * np.sqrt(np.mean((whole.largest * weight) ** 2))
        supported = np.flatnonzero(sd > max(RELATIVE_FLOOR * sd[0], noise))
        self._keep(components, supported)
        self.components_ = self.components_ * weight / sd[supported[: self.n_components], None]

    def _fit_groups(self, rows: Rows) -> None:
        for name, members in rows.groups.items():
            found = moments_of(rows.vectors, members, self._turned, scatter=True)
            assert found.scatter is not None
            covariance = found.scatter / (found.count - 1)
            values, turned = np.linalg.eigh(covariance + CORAL_RIDGE * np.eye(len(covariance)))
            self.round_[name] = (turned / np.sqrt(values)) @ turned.T
            self.groups_.append(name)

    def _change_of(self, name: str) -> Callable[[np.ndarray], np.ndarray]:
        both = self.components_.T @ self.round_[name]
        return lambda vectors: (vectors.astype(np.float64) - self.mean_) @ both


def reduce_by_pca(
    embeddings: npt.ArrayLike, experimental_batch: npt.ArrayLike, num_components: int
) -> np.ndarray:
    """Wide features made narrow: scaled per group on all its rows, then their first components.

    `embed_by_pca` of EFAAR_benchmarking, for features wider than their controls are many.

    Args:
        embeddings: (n, d).
        experimental_batch: (n,) names of the groups.
        num_components: kept, at most the smaller of n and d.

    Returns:
        (n, num_components) float64 (float32 for float32).

    Raises:
        ValueError: as `CenterScale.fit`, and for more components than there are.
    """
    scaled = CenterScale().fit_transform(embeddings, experimental_batch)
    if not 1 <= num_components <= min(scaled.shape):
        raise ValueError(
            f"num_components is {num_components}; {len(scaled)} rows of width {scaled.shape[1]} "
            f"have 1 to {min(scaled.shape)}."
        )
    everyone = np.arange(len(scaled))
    mean = moments_of(scaled, everyone).mean
    _, _, components = np.linalg.svd(triangle_of(scaled, everyone, mean))
    components = components[:num_components]
    largest = np.abs(components).argmax(axis=1)
    components = components * np.sign(components[np.arange(num_components), largest])[:, None]
    reduced = np.empty((len(scaled), num_components), dtype=scaled.dtype)
    for part in blocks(len(scaled)):
        reduced[part] = (scaled[part].astype(np.float64) - mean) @ components.T
    return reduced
