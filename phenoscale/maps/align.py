"""PCA-CS: alignment of embeddings across experimental batches on their negative controls.

Negative controls look the same in every experimental batch but for nuisance, so what differs
between them is what to remove. A PCA is fitted on the controls of all experimental batches; in its
coordinates a standard scaler is fitted on the controls of each experimental batch and applied to
that batch (Kraus et al. 2024, arXiv 2404.10242, section 4.2; `centerscale_on_controls` in
EFAAR_benchmarking). Scaling every component to unit variance of the controls whitens: directions in
which controls hardly vary count as much as those in which they vary a lot.

Shapes: n rows (wells or sites), d width of the embedding, k components kept.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from phenoscale.maps.vectors import checked_vectors, listed

MIN_CONTROLS = 2
"""Negative controls that an experimental batch needs: one alone has no spread to scale by."""

RELATIVE_FLOOR = 1e-6
"""Share of the largest sd below which a component is dropped: whitening would blow up rounding."""

SCALE_FLOOR = 0.1
"""Least scale of a component in one experimental batch, as a share of its sd pooled over all.

With few controls the sd of some component is small by chance, and dividing by it would let that
component rule the experimental batch. From about eight controls on it is practically never reached.
"""


class PcaCenterScale:
    """PCA on all negative controls, then centre and scale per experimental batch on its controls.

    Attributes after `fit`:
        components_: (k, d) float64, orthonormal rows, the largest first.
        mean_: (d,) float64, mean of the negative controls.
        centers_: experimental batch -> (k,) float64, mean of its controls in PCA coordinates.
        scales_: experimental batch -> (k,) float64, their sd (see `SCALE_FLOOR`).
        num_dropped_: components that the controls cannot support: width d less k, before
            `n_components`.
    """

    components_: np.ndarray
    mean_: np.ndarray
    centers_: dict[str, np.ndarray]
    scales_: dict[str, np.ndarray]
    num_dropped_: int

    def __init__(self, n_components: int | None = None) -> None:
        """Keeps all components, or the first `n_components` of those that the controls support."""
        if n_components is not None and n_components < 1:
            raise ValueError(f"n_components is {n_components}; give at least 1, or None for all.")
        self.n_components = n_components

    def fit(
        self,
        embeddings: npt.ArrayLike,
        experimental_batch: npt.ArrayLike,
        negative_control: npt.ArrayLike,
    ) -> PcaCenterScale:
        """Fits on the negative controls.

        At most (number of controls - 1) components exist; those whose sd within experimental
        batches is below `RELATIVE_FLOOR` of the largest sd, or below float32 rounding of the
        values, are dropped (`num_dropped_`). With fewer controls than a few times d the last
        components are overfitted.

        Args:
            embeddings: (n, d).
            experimental_batch: (n,) names.
            negative_control: (n,) bool.

        Raises:
            ValueError: for values that are not finite, lengths that differ, an experimental batch
                with fewer than `MIN_CONTROLS` negative controls, or controls that do not vary.
        """
        embeddings = checked_vectors(embeddings, name="embeddings")
        batches = _checked_batches(experimental_batch, len(embeddings))
        control = np.asarray(negative_control)
        if control.dtype != bool or control.shape != (len(embeddings),):
            raise ValueError(
                f"negative_control has dtype {control.dtype} and shape {control.shape}; one bool "
                f"for each of the {len(embeddings)} rows is required."
            )
        _check_controls(batches, control)

        controls, control_batches = embeddings[control], batches[control]
        self.mean_ = controls.mean(axis=0)
        _, singular, components = np.linalg.svd(controls - self.mean_, full_matrices=False)
        scores = (controls - self.mean_) @ components.T
        moments = {
            name: _mean_and_sd(scores[control_batches == name]) for name in np.unique(batches)
        }
        counts = {name: np.count_nonzero(control_batches == name) for name in moments}
        pooled_sd = np.sqrt(
            sum(counts[name] * sd**2 for name, (_, sd) in moments.items()) / len(controls)
        )
        rounding = float(np.finfo(np.float32).eps) * np.abs(controls).max()
        floor = max(RELATIVE_FLOOR * singular[0] / np.sqrt(len(controls)), rounding)
        supported = np.flatnonzero(pooled_sd > floor)[: len(controls) - 1]
        if supported.size == 0:
            raise ValueError(
                f"The embeddings of all {len(controls)} negative controls are constant within "
                f"their experimental batches (largest sd {pooled_sd.max():.2g}); they must vary. "
                "Has the encoder collapsed?"
            )
        self.num_dropped_ = embeddings.shape[1] - len(supported)
        kept = supported[: self.n_components]
        # The sign of a singular vector is arbitrary; fix it so that two fits agree.
        largest = np.abs(components[kept]).argmax(axis=1)
        signs = np.sign(components[kept, largest])
        self.components_ = components[kept] * signs[:, None]
        self.centers_ = {name: mean[kept] * signs for name, (mean, _) in moments.items()}
        self.scales_ = {
            name: np.maximum(sd, SCALE_FLOOR * pooled_sd)[kept] for name, (_, sd) in moments.items()
        }
        return self

    def transform(self, embeddings: npt.ArrayLike, experimental_batch: npt.ArrayLike) -> np.ndarray:
        """Aligns embeddings.

        Args:
            embeddings: (n, d).
            experimental_batch: (n,) names, all seen by `fit`.

        Returns:
            (n, k) float64; controls of each experimental batch have mean 0 and sd 1 per component.

        Raises:
            ValueError: before `fit`, for another width d, or an experimental batch that `fit` did
                not see.
        """
        if not hasattr(self, "components_"):
            raise ValueError("PcaCenterScale is not fitted; call fit first.")
        embeddings = checked_vectors(embeddings, name="embeddings")
        if embeddings.shape[1] != self.mean_.size:
            raise ValueError(
                f"embeddings have width {embeddings.shape[1]}; the fit was made on "
                f"{self.mean_.size}."
            )
        batches = _checked_batches(experimental_batch, len(embeddings))
        names = np.unique(batches)
        if unseen := [name for name in names if name not in self.centers_]:
            raise ValueError(
                f"No fit for the experimental batches {listed(unseen)}; fitted were "
                f"{listed(sorted(self.centers_))}. Fit on the negative controls of all of them."
            )
        aligned: np.ndarray = (embeddings - self.mean_) @ self.components_.T
        for name in names:
            rows = batches == name
            aligned[rows] = (aligned[rows] - self.centers_[name]) / self.scales_[name]
        return aligned

    def fit_transform(
        self,
        embeddings: npt.ArrayLike,
        experimental_batch: npt.ArrayLike,
        negative_control: npt.ArrayLike,
    ) -> np.ndarray:
        """Fits on the negative controls and aligns all rows; arguments and errors as in `fit`."""
        return self.fit(embeddings, experimental_batch, negative_control).transform(
            embeddings, experimental_batch
        )


def _mean_and_sd(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return scores.mean(axis=0), scores.std(axis=0)


def _checked_batches(experimental_batch: npt.ArrayLike, rows: int) -> np.ndarray:
    names = np.asarray(experimental_batch, dtype=object)
    if names.shape != (rows,):
        raise ValueError(
            f"experimental_batch has shape {names.shape}; one name for each of the {rows} rows of "
            "embeddings is required."
        )
    if missing := np.flatnonzero(pd.isna(names)).tolist():
        raise ValueError(
            f"experimental_batch is empty in {len(missing)} rows ({listed(missing)}); every row "
            "needs one."
        )
    return names.astype(str)


def _check_controls(batches: np.ndarray, control: np.ndarray) -> None:
    short = []
    for name in np.unique(batches):
        count = np.count_nonzero(control & (batches == name))
        if count < MIN_CONTROLS:
            short.append(f"{name} ({count})")
    if short:
        raise ValueError(
            f"Experimental batches with too few negative controls: {listed(short)}; alignment "
            f"needs at least {MIN_CONTROLS} in each. Mark the controls in the manifest, or leave "
            "these out."
        )
