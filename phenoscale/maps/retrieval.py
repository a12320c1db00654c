"""Retrieval: does a perturbation find its replicates, its sister guides, its target?

Each row (a well, or a consensus of wells) in turn is the query. Its positives and its negatives are
ranked by cosine similarity, and the average precision of the positives is taken; the mean is first
over the queries of a perturbation (of a gene, of a target), then over perturbations. The ranking is
that of the package copairs (see `ranking`). The tasks follow Kalinin et al.
(bioRxiv 2024.04.01.587631): phenotypic activity and phenotypic consistency.

Shapes: n rows, d width of the embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from phenoscale.maps.rankable import Rules
from phenoscale.maps.ranking import DRAWS, Draws, Retrieval, rank_pairs
from phenoscale.maps.vectors import checked_vectors, listed

Plates = Literal["any", "same", "other"]
"""On which plates a query's positives or negatives lie, seen from the query."""


def phenotypic_activity(
    vectors: npt.ArrayLike,
    wells: pd.DataFrame,
    *,
    positives_on: Plates = "any",
    negatives_on: Plates = "same",
    draws: Draws = DRAWS,
) -> Retrieval:
    """Replicates of a perturbation against the negative controls.

    Positive: another well of the same perturbation, on `positives_on` plates. Negative: a well of a
    negative control, on `negatives_on` plates. Controls are never queries.

    Args:
        vectors: (n, d), aligned.
        wells: perturbation, negative_control (bool), plate, and experimental_batch if plate names
            repeat.
        positives_on: "other" asks whether the phenotype is seen again on another plate.
        negatives_on: "same" keeps differences between plates out of the score.
        draws: sizes and seed of the null and of the bootstrap.

    Raises:
        ValueError: for values that are not finite, all-zero or nearly equal rows, missing columns,
            no controls, no positives or negatives, or more pairs than `MAX_PAIRS`.
    """
    vectors, frame = _checked(vectors, wells, ("perturbation", "negative_control", "plate"))
    control = frame["negative_control"].to_numpy(dtype=bool)
    if not control.any():
        raise ValueError(
            f"None of the {len(frame)} wells is a negative control; activity is measured against "
            "them. Mark them in the manifest, or use replicate_retrieval."
        )
    # A number of its own for each control, so that no two controls are a positive pair.
    frame["control_number"] = np.where(control, np.arange(len(frame)), -1)
    rules = Rules(
        positive_same=["perturbation", "control_number", *_same(positives_on)],
        positive_different=_different(positives_on),
        negative_same=_same(negatives_on),
        negative_different=["negative_control", *_different(negatives_on)],
    )
    return rank_pairs(
        "phenotypic_activity", vectors, frame, rules, "perturbation",
        query=~control, draws=draws,
    )  # fmt: skip


def replicate_retrieval(
    vectors: npt.ArrayLike,
    wells: pd.DataFrame,
    *,
    positives_on: Plates = "other",
    negatives_on: Plates = "other",
    draws: Draws = DRAWS,
) -> Retrieval:
    """Replicates of a perturbation against the other perturbations.

    Positive: another well of the same perturbation, on `positives_on` plates. Negative: a well of
    another perturbation, on `negatives_on` plates. Negative controls are left out.

    Where replicate plates share a layout, the well position is confounded with the perturbation
    and scores are too high.

    Args:
        vectors: (n, d), aligned.
        wells: perturbation, plate; negative_control (bool) and experimental_batch where given.
        positives_on: plates of the positives.
        negatives_on: plates of the negatives.
        draws: sizes and seed of the null and of the bootstrap.

    Raises:
        ValueError: as `phenotypic_activity`.
    """
    vectors, frame = _checked(vectors, wells, ("perturbation", "plate"))
    rules = Rules(
        positive_same=["perturbation", *_same(positives_on)],
        positive_different=_different(positives_on),
        negative_same=_same(negatives_on),
        negative_different=["perturbation", *_different(negatives_on)],
    )
    kept = _treated(frame)
    return rank_pairs(
        "replicate_retrieval", vectors[kept], frame[kept], rules, "perturbation",
        draws=draws, num_left_out=int((~kept).sum()),
    )  # fmt: skip


def sister_guides(
    vectors: npt.ArrayLike,
    wells: pd.DataFrame,
    *,
    draws: Draws = DRAWS,
) -> Retrieval:
    """Guides of one gene.

    Positive: a row of another guide of the same gene. Negative: a row of another gene. Negative
    controls and rows without a gene or a guide are left out.

    Args:
        vectors: (n, d), wells or consensus profiles of guides.
        wells: gene, guide; negative_control (bool) where given.
        draws: sizes and seed of the null and of the bootstrap.

    Raises:
        ValueError: as `phenotypic_activity`.
    """
    vectors, frame = _checked(vectors, wells, ("gene", "guide"), nullable=("gene", "guide"))
    kept = _treated(frame) & frame[["gene", "guide"]].notna().all(axis=1).to_numpy()
    rules = Rules(positive_same=["gene"], positive_different=["guide"], negative_different=["gene"])
    return rank_pairs(
        "sister_guides", vectors[kept], frame[kept], rules, "gene",
        draws=draws, num_left_out=int((~kept).sum()),
    )  # fmt: skip


def shared_target(
    vectors: npt.ArrayLike,
    wells: pd.DataFrame,
    *,
    target: str = "target",
    absolute: bool = False,
    draws: Draws = DRAWS,
) -> Retrieval:
    """Compounds of one target.

    A row with several targets is a query for each. Positive: a row of another perturbation with
    the target in question. Negative: a row that shares no target with the query. Negative controls
    and rows without a target are left out. The mean is over targets.

    Args:
        vectors: (n, d), wells or consensus profiles of compounds.
        wells: perturbation, the column `target` (names joined by "|", or null); negative_control
            (bool) where given.
        target: name of the column of targets.
        absolute: rank by the absolute cosine, so that opposite phenotypes are similar.
        draws: sizes and seed of the null and of the bootstrap.

    Raises:
        ValueError: as `phenotypic_activity`, and for a row that shares a target with all others.
    """
    vectors, frame = _checked(vectors, wells, ("perturbation", target), nullable=(target,))
    kept = _treated(frame) & frame[target].notna().to_numpy()
    frame = frame[kept].assign(label=_split(frame[target][kept]))
    rules = Rules(
        positive_same=["label"],
        positive_different=["perturbation"],
        negative_different=["label"],
        label="label",
    )
    return rank_pairs(
        "shared_target", vectors[kept], frame, rules, "label",
        absolute=absolute, draws=draws, num_left_out=int((~kept).sum()),
    )  # fmt: skip


def gene_compound(
    vectors: npt.ArrayLike,
    wells: pd.DataFrame,
    *,
    target: str = "target",
    absolute: bool = False,
    draws: Draws = DRAWS,
) -> Retrieval:
    """Genes perturbed by CRISPR or ORF against compounds with that target, in both directions.

    A row with a gene is genetic, one with a target and no gene is a compound. Positive: a row of
    the other kind with the same gene or target. Negative: a row of the other kind that shares
    none. Targets that no row perturbs as a gene are struck off first, and compounds left without
    one are left out, as are negative controls and rows with neither. The mean is over genes. Give
    one genetic modality at a time.

    Args:
        vectors: (n, d), wells or consensus profiles.
        wells: gene (str or null), the column `target` (names joined by "|", or null);
            negative_control (bool) where given.
        target: name of the column of targets.
        absolute: rank by the absolute cosine, so that opposite phenotypes are similar.
        draws: sizes and seed of the null and of the bootstrap.

    Raises:
        ValueError: as `phenotypic_activity`, and for a row that shares a target with all others of
            the other kind.
    """
    vectors, frame = _checked(vectors, wells, ("gene", target), nullable=("gene", target))
    treated, genetic = _treated(frame), frame["gene"].notna().to_numpy()
    genes = set(frame["gene"][treated & genetic].astype(str))
    names = frame["gene"].where(genetic, frame[target])
    labels = [
        [] if pd.isna(name) else [part for part in str(name).split("|") if part in genes]
        for name in names
    ]
    kept = treated & np.array([bool(label) for label in labels])
    frame = frame.assign(label=pd.Series(labels, index=frame.index), genetic=genetic)[kept]
    rules = Rules(
        positive_same=["label"],
        positive_different=["genetic"],
        negative_different=["label", "genetic"],
        label="label",
    )
    return rank_pairs(
        "gene_compound", vectors[kept], frame, rules, "label",
        absolute=absolute, draws=draws, num_left_out=int((~kept).sum()),
    )  # fmt: skip


def _same(plates: Plates) -> list[str]:
    return ["plate"] if _checked_plates(plates) == "same" else []


def _different(plates: Plates) -> list[str]:
    return ["plate"] if _checked_plates(plates) == "other" else []


def _checked_plates(plates: Plates) -> Plates:
    if plates not in ("any", "same", "other"):
        raise ValueError(f"plates is {plates!r}; 'any', 'same' or 'other' are the choices.")
    return plates


def _split(targets: pd.Series) -> pd.Series:
    """The lists of names in cells joined by "|"."""
    return targets.astype(str).str.split("|").map(lambda names: sorted(set(names) - {""}))


def _treated(frame: pd.DataFrame) -> np.ndarray:
    """Rows (n,) that are no negative controls, as far as the table says."""
    if "negative_control" not in frame.columns:
        return np.ones(len(frame), dtype=bool)
    treated: np.ndarray = ~frame["negative_control"].to_numpy(dtype=bool)
    return treated


def _checked(
    vectors: npt.ArrayLike,
    wells: pd.DataFrame,
    required: Sequence[str],
    nullable: Sequence[str] = (),
) -> tuple[np.ndarray, pd.DataFrame]:
    """Vectors as float64, and the columns of a task with a fresh index and plates as numbers."""
    if missing := [column for column in required if column not in wells.columns]:
        raise ValueError(
            f"The wells lack the columns {missing}; {list(required)} are required, there are "
            f"{listed(list(wells.columns))}."
        )
    vectors = checked_vectors(vectors, name="vectors", rows=len(wells))
    optional = [c for c in ("negative_control", "experimental_batch") if c in wells.columns]
    frame = wells[list(dict.fromkeys([*required, *optional]))].reset_index(drop=True)
    full = [column for column in frame.columns if column not in nullable]
    if empty := [column for column in full if frame[column].isna().any()]:
        rows = np.flatnonzero(frame[empty].isna().any(axis=1)).tolist()
        raise ValueError(
            f"{empty} have empty cells in {len(rows)} wells (rows {listed(rows)}); every well of "
            "this task needs all."
        )
    if "plate" in frame.columns:
        key = [c for c in ("experimental_batch", "plate") if c in frame.columns]
        frame["plate"] = frame.groupby(key, sort=True).ngroup()
    return vectors, frame
