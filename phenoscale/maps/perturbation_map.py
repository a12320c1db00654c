"""A perturbation map as a value: one vector per perturbation, what is known of each, and facts.

How it is written and read: `map_files.py`.

Shapes: n perturbations, d width of their vectors.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
import pandas as pd

from phenoscale.maps.vectors import checked_vectors, listed

Fact = str | int | float | bool


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PerturbationMap:
    """One vector per perturbation, aligned and aggregated.

    Raises:
        ValueError: for values that are not finite, lengths that differ, names that are empty or not
            unique, or facts that are no text, number or flag.
    """

    vectors: np.ndarray
    """(n, d) float32 or float64; other numbers become float64."""
    names: tuple[str, ...]
    """(n) unique names: genes, compounds, ...."""
    table: pd.DataFrame = dataclasses.field(default_factory=pd.DataFrame)
    """(n) rows, aligned: num_wells, perturbation_type, ...; may have no column."""
    facts: Mapping[str, Fact] = dataclasses.field(default_factory=dict)
    """How it came about: readout, alignment, protocol, index_fingerprint, ...."""

    def __post_init__(self) -> None:
        names = tuple(self.names)
        bad = [row for row, name in enumerate(names) if not isinstance(name, str) or not name]
        if bad:
            raise ValueError(
                f"{len(bad)} perturbations have no name (rows {listed(bad)}); every row of a "
                "perturbation map needs one, as text."
            )
        index = pd.Index(names)
        if repeated := index[index.duplicated()].unique().tolist():
            raise ValueError(
                f"Names must be unique in a perturbation map; repeated are {listed(repeated)}. "
                "Aggregate their rows, or say in the name how they differ (compound and "
                "concentration)."
            )
        vectors = checked_vectors(
            self.vectors, name="vectors", rows=len(names), row_names=names, keep_float32=True
        )
        table = self.table if len(self.table.columns) else pd.DataFrame(index=range(len(names)))
        if len(table) != len(names):
            raise ValueError(
                f"The table has {len(table)} rows, the perturbation map {len(names)}; rows must "
                "correspond one to one."
            )
        for key, value in self.facts.items():
            if not isinstance(value, Fact) or (isinstance(value, float) and math.isnan(value)):
                raise ValueError(
                    f"The fact {key} is {value!r}; text, a number or a flag is required, so that "
                    "every format can hold it."
                )
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "vectors", vectors)
        object.__setattr__(self, "table", table.reset_index(drop=True))
        object.__setattr__(self, "facts", dict(self.facts))

    @property
    def readout(self) -> str:
        """Name of its read-out, as far as it is known."""
        return str(self.facts.get("readout", "vector"))
