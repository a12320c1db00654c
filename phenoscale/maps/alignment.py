"""What every alignment is: groups fitted on their controls, rows transformed block by block.

`align.py` has the three that there are.

Shapes: n rows (wells or sites), d width of the embedding, k components kept.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt
import pandas as pd

from phenoscale.maps.vectors import blocks, checked_vectors, constant_columns, listed

MIN_CONTROLS = 2
"""Negative controls that a group needs: one alone has no spread to scale by."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows to fit on."""

    vectors: np.ndarray
    """(n, d), rows that are not fitted on among them."""
    groups: dict[str, np.ndarray]
    """Group -> numbers of the rows to fit on, ascending."""

    @property
    def all(self) -> np.ndarray:
        """Numbers of the rows of all groups, ascending."""
        return np.sort(np.concatenate(list(self.groups.values())))


class Alignment:
    """What the three have in common: groups fitted on controls, rows transformed block by block.

    Attributes after `fit`:
        mean_: (d,) float64, subtracted from every row.
        components_: (k, d) float64, applied to every row; the identity for `CenterScale`.
        groups_: names of the groups that were fitted, in order.
        num_dropped_: directions that the controls cannot support and that are left out: width d
            less k, before `n_components`.
    """

    _KINDS: ClassVar[dict[str, type[Alignment]]] = {}
    _PER_GROUP: ClassVar[tuple[str, ...]]  # attributes that hold a value for each group

    mean_: np.ndarray
    components_: np.ndarray
    groups_: list[str]
    num_dropped_: int

    def __init_subclass__(cls) -> None:
        Alignment._KINDS[cls.__name__] = cls

    def __init__(self, n_components: int | None = None) -> None:
        """Keeps all components, or the first `n_components` of those that the controls support."""
        if n_components is not None and n_components < 1:
            raise ValueError(f"n_components is {n_components}; give at least 1, or None for all.")
        self.n_components = n_components

    def fit(
        self,
        embeddings: npt.ArrayLike,
        experimental_batch: npt.ArrayLike,
        negative_control: npt.ArrayLike | None = None,
    ) -> Self:
        """Fits on the negative controls.

        Args:
            embeddings: (n, d).
            experimental_batch: (n,) names of the groups; plates, to align plate by plate.
            negative_control: (n,) bool; None to fit on all rows.

        Raises:
            ValueError: for values that are not finite, lengths that differ, columns that are
                constant over all rows, a group with fewer than `MIN_CONTROLS` controls, or controls
                that do not vary.
        """
        rows = checked_controls(embeddings, experimental_batch, negative_control)
        if len(constant := constant_columns(rows.vectors)) == rows.vectors.shape[1]:
            raise ValueError(
                f"All {len(rows.vectors)} embeddings are the same, constant vector; has the "
                "encoder collapsed?"
            )
        if len(constant):
            raise ValueError(
                f"{len(constant)} of {rows.vectors.shape[1]} columns of the embeddings are "
                f"constant over all {len(rows.vectors)} rows (columns "
                f"{listed(constant.tolist())}); they hold nothing to align. Leave them out."
            )
        self._fit_all(rows)
        for name in self._PER_GROUP:
            setattr(self, name, {})
        self.groups_ = []
        self._fit_groups(rows)
        return self

    def extend(
        self,
        embeddings: npt.ArrayLike,
        experimental_batch: npt.ArrayLike,
        negative_control: npt.ArrayLike | None = None,
    ) -> Self:
        """Adds groups that were measured later, by their own controls; what was fitted stays.

        Args:
            embeddings: (n, d) of new groups alone.
            experimental_batch: (n,) their names.
            negative_control: (n,) bool; None for all rows.

        Raises:
            ValueError: before `fit`, for another width, a group that is fitted already, or one with
                too few controls.
        """
        self._check_fitted()
        rows = checked_controls(embeddings, experimental_batch, negative_control)
        self._check_width(rows.vectors)
        if known := sorted(set(rows.groups) & set(self.groups_)):
            raise ValueError(
                f"The experimental batches {listed(known)} are fitted already; give new ones alone."
            )
        self._fit_groups(rows)
        return self

    def transform(self, embeddings: npt.ArrayLike, experimental_batch: npt.ArrayLike) -> np.ndarray:
        """Aligns embeddings.

        Args:
            embeddings: (n, d).
            experimental_batch: (n,) names, all seen by `fit` or `extend`.

        Returns:
            (n, k), float32 for float32 and else float64.

        Raises:
            ValueError: before `fit`, for another width d, or an unseen group.
        """
        self._check_fitted()
        vectors = checked_vectors(embeddings, name="embeddings", keep_float32=True)
        self._check_width(vectors)
        groups = rows_of_groups(experimental_batch, len(vectors))
        if unseen := [name for name in groups if name not in self.groups_]:
            raise ValueError(
                f"No fit for the experimental batches {listed(unseen)}; fitted were "
                f"{listed(sorted(self.groups_))}. Fit on the negative controls of all of them, or "
                "extend the fit."
            )
        aligned = np.empty((len(vectors), len(self.components_)), dtype=vectors.dtype)
        for name, rows in groups.items():
            change = self._change_of(name)
            for part in blocks(len(rows)):
                aligned[rows[part]] = change(vectors[rows[part]])
        return aligned

    def fit_transform(
        self,
        embeddings: npt.ArrayLike,
        experimental_batch: npt.ArrayLike,
        negative_control: npt.ArrayLike | None = None,
    ) -> np.ndarray:
        """Fits on the negative controls and aligns all rows; arguments and errors as in `fit`."""
        return self.fit(embeddings, experimental_batch, negative_control).transform(
            embeddings, experimental_batch
        )

    def save(self, path: str | Path) -> None:
        """Writes the fit as an .npz of plain arrays."""
        self._check_fitted()
        arrays = {name: np.asarray(x) for name, x in vars(self).items() if not isinstance(x, dict)}
        arrays |= {
            name: np.stack([getattr(self, name)[group] for group in self.groups_])
            for name in self._PER_GROUP
        }
        arrays["n_components"] = np.array(self.n_components or 0)
        arrays["kind"] = np.array(type(self).__name__)
        with Path(path).open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)

    @staticmethod
    def load(path: str | Path) -> Alignment:
        """Reads a fit that `save` wrote, of any kind.

        Raises:
            ValueError: if the file is no such fit.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = dict(file)
            kind = Alignment._KINDS[str(arrays.pop("kind"))]
            fit = kind(int(arrays.pop("n_components")) or None)
            fit.groups_ = [str(name) for name in arrays.pop("groups_")]
            fit.num_dropped_ = int(arrays.pop("num_dropped_"))
            for name, x in arrays.items():
                by_group = name in kind._PER_GROUP
                value = dict(zip(fit.groups_, x, strict=True)) if by_group else x
                setattr(fit, name, value)
        except (OSError, KeyError, ValueError) as error:
            raise ValueError(
                f"{path} is no saved alignment ({error!r}); give a file that Alignment.save wrote."
            ) from error
        return fit

    def _fit_all(self, rows: Rows) -> None:
        """Sets what all groups share."""
        raise NotImplementedError

    def _fit_groups(self, rows: Rows) -> None:
        """Adds each group of `rows` by its controls."""
        raise NotImplementedError

    def _change_of(self, name: str) -> Callable[[np.ndarray], np.ndarray]:
        """What aligns rows (m, d) of one group, into (m, k)."""
        raise NotImplementedError

    def _turned(self, vectors: np.ndarray) -> np.ndarray:
        """Rows (m, k), float64, in the coordinates that all groups share."""
        turned: np.ndarray = (vectors.astype(np.float64) - self.mean_) @ self.components_.T
        return turned

    def _keep(self, components: np.ndarray, supported: np.ndarray) -> None:
        """Keeps the supported ones of the components (m, d), and fixes their signs.

        The sign of a singular vector is arbitrary: the largest entry is made positive, so that two
        fits agree.
        """
        self.num_dropped_ = components.shape[1] - len(supported)
        kept = components[supported[: self.n_components]]
        largest = np.abs(kept).argmax(axis=1)
        self.components_ = kept * np.sign(kept[np.arange(len(kept)), largest])[:, None]

    def _check_fitted(self) -> None:
        if not hasattr(self, "groups_"):
            raise ValueError(f"{type(self).__name__} is not fitted; call fit first.")

    def _check_width(self, vectors: np.ndarray) -> None:
        if vectors.shape[1] != self.mean_.size:
            raise ValueError(
                f"embeddings have width {vectors.shape[1]}; the fit was made on {self.mean_.size}."
            )


def rows_of_groups(names: npt.ArrayLike, rows: int) -> dict[str, np.ndarray]:
    """Group -> numbers of its rows, ascending; groups in order of their names.

    Args:
        names: (n,) name of each row's group.
        rows: n, as the embeddings have it.

    Raises:
        ValueError: for another length or empty names.
    """
    column = np.asarray(names, dtype=object)
    if column.shape != (rows,):
        raise ValueError(
            f"experimental_batch has shape {column.shape}; one name for each of the {rows} rows of "
            "embeddings is required."
        )
    if missing := np.flatnonzero(pd.isna(column)).tolist():
        raise ValueError(
            f"experimental_batch is empty in {len(missing)} rows ({listed(missing)}); every row "
            "needs one."
        )
    codes, groups = pd.factorize(column.astype(str))
    order = np.argsort(codes, kind="stable")
    starts = np.searchsorted(codes[order], np.arange(len(groups) + 1))
    members = {
        name: order[starts[number] : starts[number + 1]] for number, name in enumerate(groups)
    }
    return dict(sorted(members.items()))


def checked_controls(
    embeddings: npt.ArrayLike,
    experimental_batch: npt.ArrayLike,
    negative_control: npt.ArrayLike | None,
) -> Rows:
    """The rows to fit on, checked."""
    vectors = checked_vectors(embeddings, name="embeddings", keep_float32=True)
    groups = rows_of_groups(experimental_batch, len(vectors))
    if negative_control is not None:
        control = np.asarray(negative_control)
        if control.dtype != bool or control.shape != (len(vectors),):
            raise ValueError(
                f"negative_control has dtype {control.dtype} and shape {control.shape}; one bool "
                f"for each of the {len(vectors)} rows is required."
            )
        groups = {name: rows[control[rows]] for name, rows in groups.items()}
    short = [f"{name} ({len(rows)})" for name, rows in groups.items() if len(rows) < MIN_CONTROLS]
    if short:
        raise ValueError(
            f"Experimental batches with too few negative controls: {listed(short)}; alignment "
            f"needs at least {MIN_CONTROLS} in each. Mark the controls in the manifest, or leave "
            "these out."
        )
    return Rows(vectors=vectors, groups=groups)
