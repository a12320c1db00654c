"""The protocol cpjump1: the retrieval tasks of the JUMP pilot CPJUMP1.

CPJUMP1 holds about 300 compounds and 160 genes, each gene by two CRISPR guides and by ORF, in two
cell types at two times (Chandrasekaran et al. 2024, Nature Methods 21, 1114). The tasks follow the
notebook benchmark/1.0.calculate-map-cp.ipynb of jump-cellpainting/2024_Chandrasekaran_NatureMethods
(commit 4fc61dba), for each condition, that is perturbation type, cell type and time:

- detection: replicates on any plate against the negative controls of the same plate.
- matching: of the perturbations that detection retrieved, median profile of each; compounds by
  shared target (absolute cosine), CRISPR guides by gene (cosine), genes without a sister left out.
- gene-compound matching: the same profiles, a genetic condition against a compound condition of the
  same cell type (absolute cosine), both ways.

A table without control wells is scored against the other perturbations of the same plate instead,
and the result says so; figures of the two kinds do not compare.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from phenoscale.maps.ranking import DRAWS, Draws, Retrieval
from phenoscale.maps.retrieval import (
    gene_compound,
    phenotypic_activity,
    replicate_retrieval,
    shared_target,
    sister_guides,
)
from phenoscale.maps.vectors import checked_vectors, listed

PROTOCOL = "cpjump1"
VERSION = "1"
"""Goes up with every change that can change a figure."""

CONDITION = ("perturbation_type", "cell_type", "time_h")
WELL_COLUMNS = (*CONDITION, "plate", "perturbation", "negative_control")
TYPES = ("compound", "crispr", "orf")


def score_cpjump1(
    vectors: npt.ArrayLike, wells: pd.DataFrame, *, draws: Draws = DRAWS
) -> dict[str, Any]:
    """All tasks of the protocol.

    Args:
        vectors: (number of wells, d), normalised per plate.
        wells: perturbation_type (compound, crispr, orf), cell_type, time_h, plate, perturbation,
            negative_control; gene (null for compounds), guide, target (names joined by "|") where
            known.
        draws: sizes and seed of the null and of the bootstrap.

    Returns:
        protocol, version, and table (pandas): one row per task with task, the condition, against
        (the second condition, or what the negatives are), mean_average_precision, low, high,
        chance, fraction_retrieved, num_perturbations, num_queries, num_unpaired, num_left_out, and
        not_scored: why a task has no figures, else "".

    Raises:
        ValueError: for values that are not finite, missing columns, empty cells or another
            perturbation type; and for detection as `phenotypic_activity`.
    """
    _require(wells, list(WELL_COLUMNS), "wells")
    vectors = checked_vectors(vectors, name="vectors", rows=len(wells))
    wells = wells.reset_index(drop=True)
    if empty := [column for column in CONDITION if wells[column].isna().any()]:
        raise ValueError(f"{empty} have empty cells; every well needs its condition.")
    if unknown := sorted(set(wells["perturbation_type"]) - set(TYPES)):
        raise ValueError(f"perturbation_type has {listed(unknown)}; {list(TYPES)} are known.")
    lines: list[dict[str, Any]] = []
    profiles: dict[tuple[Any, ...], tuple[np.ndarray, pd.DataFrame]] = {}
    conditions = wells[list(CONDITION)].drop_duplicates().sort_values(list(CONDITION))
    for condition in conditions.itertuples(index=False, name=None):
        rows = np.flatnonzero((wells[list(CONDITION)] == condition).all(axis=1))
        table, values = wells.iloc[rows], vectors[rows]
        found, against = _detection(values, table, draws)
        lines.append(_line("detection", condition, against, found))
        retrieved = found.table.loc[found.table["retrieved"], "perturbation"]
        profiles[condition] = consensus(values, table, retrieved.tolist())
        lines += _matching(condition, *profiles[condition], draws)
    for first, second in itertools.product(profiles, profiles):
        if first[0] == "compound" and second[0] != "compound" and first[1] == second[1]:
            lines.append(_cross(first, second, profiles, draws))
    return {"protocol": PROTOCOL, "version": VERSION, "table": pd.DataFrame(lines)}


def consensus(
    vectors: np.ndarray, wells: pd.DataFrame, perturbations: list[str]
) -> tuple[np.ndarray, pd.DataFrame]:
    """Median profile of each of these perturbations, controls left out.

    Returns:
        (number of perturbations, d), and the metadata of the first well of each, sorted by
        perturbation.
    """
    kept = wells["perturbation"].isin(perturbations) & ~wells["negative_control"].astype(bool)
    names = wells["perturbation"][kept]
    medians = pd.DataFrame(vectors[kept.to_numpy()]).groupby(names.to_numpy()).median()
    first = wells[kept].drop_duplicates("perturbation").set_index("perturbation", drop=False)
    return medians.to_numpy(), first.loc[medians.index].reset_index(drop=True)


def standardised_per_plate(vectors: npt.ArrayLike, plates: npt.ArrayLike) -> np.ndarray:
    """Each column less its mean over the plate, divided by its sd there (population).

    Args:
        vectors: (number of wells, d).
        plates: (number of wells,) names.

    Raises:
        ValueError: for values that are not finite, or a column that is constant on a plate.
    """
    vectors, names = checked_vectors(vectors, name="vectors"), np.asarray(plates, dtype=object)
    standard = np.empty_like(vectors)
    for plate in pd.unique(names):
        rows = names == plate
        spread = vectors[rows].std(axis=0)
        if constant := np.flatnonzero(spread == 0).tolist():
            raise ValueError(
                f"{len(constant)} columns are constant on plate {plate} ({listed(constant)}); they "
                "cannot be standardised. Leave them out."
            )
        standard[rows] = (vectors[rows] - vectors[rows].mean(axis=0)) / spread
    return standard


def from_pycytominer(
    table: pd.DataFrame, plates: pd.DataFrame, targets: pd.DataFrame | None = None
) -> tuple[np.ndarray, pd.DataFrame]:
    """Vectors and wells from the tables of the pilot.

    The wells of plates that `plates` lacks are dropped, and wells without a treatment on plates of
    genes (empty wells); on compound plates these are DMSO. `attrs["counts"]` of the wells tells
    both. Positive controls stay as perturbations, as in the notebook.

    Args:
        table: profiles of pycytominer: Metadata_Plate, Metadata_Well, Metadata_broad_sample,
            Metadata_control_type ("negcon" for negative controls), Metadata_gene on plates of
            genes; every column without the prefix Metadata is a feature.
        plates: experiment-metadata.tsv, cut down to the plates of the study:
            Assay_Plate_Barcode, Perturbation, Cell_type, Time. The notebook takes the batch
            2020_11_04_CPJUMP1, Density 100, Antibiotics absent, no compounds on Cas9 cells.
        targets: broad_sample, target_list of the compounds (JUMP-Target-1).

    Raises:
        ValueError: for missing columns, no plate in common, or features that are not finite.
    """
    profile = [f"Metadata_{name}" for name in ("Plate", "Well", "broad_sample", "control_type")]
    _require(table, profile, "table")
    _require(plates, ["Assay_Plate_Barcode", "Perturbation", "Cell_type", "Time"], "plates")
    known = plates.set_index(plates["Assay_Plate_Barcode"].astype(str))
    plate = table["Metadata_Plate"].astype(str)
    kind = plate.map(known["Perturbation"].str.lower())
    sample = table["Metadata_broad_sample"].astype(object)
    sample = sample.where(sample.notna() | (kind != "compound"), "DMSO")
    kept = kind.notna() & sample.notna()
    if not kept.any():
        raise ValueError(
            f"No well with a treatment is on a plate of `plates`; the profiles are of "
            f"{listed(plate.unique().tolist())}, `plates` has {listed(known.index.tolist())}."
        )
    gene = table.get("Metadata_gene", pd.Series(None, index=table.index, dtype=object))
    wells = pd.DataFrame(
        {
            "perturbation_type": kind,
            "cell_type": plate.map(known["Cell_type"]),
            "time_h": plate.map(known["Time"]),
            "plate": plate,
            "well": table["Metadata_Well"],
            "perturbation": sample,
            "negative_control": table["Metadata_control_type"] == "negcon",
            "gene": gene.where(kind != "compound"),
            "guide": sample.where(kind == "crispr"),
        }
    )
    if targets is not None:
        wells["target"] = sample.map(targets.set_index("broad_sample")["target_list"])
    features = [column for column in table.columns if not str(column).startswith("Metadata")]
    vectors = checked_vectors(table.loc[kept, features].to_numpy(np.float64), name="features")
    wells = wells[kept].reset_index(drop=True)
    wells.attrs["counts"] = {
        "num_wells": len(wells),
        "num_wells_of_other_plates": int(kind.isna().sum()),
        "num_empty_wells": int((kind.notna() & sample.isna()).sum()),
    }
    return vectors, wells


def _require(table: pd.DataFrame, columns: list[str], name: str) -> None:
    if missing := [column for column in columns if column not in table.columns]:
        raise ValueError(
            f"{name} lacks the columns {missing}; {columns} are required, there are "
            f"{listed(list(table.columns))}."
        )


def _detection(vectors: np.ndarray, wells: pd.DataFrame, draws: Draws) -> tuple[Retrieval, str]:
    if wells["negative_control"].any():
        found = phenotypic_activity(vectors, wells, draws=draws)
        return found, "negative controls of the same plate"
    found = replicate_retrieval(
        vectors, wells, positives_on="any", negatives_on="same", draws=draws
    )
    return found, "other perturbations of the same plate (no control wells)"


def _matching(
    condition: tuple[Any, ...], vectors: np.ndarray, wells: pd.DataFrame, draws: Draws
) -> list[dict[str, Any]]:
    """Compounds by target, or guides by gene; an ORF has no sister."""
    if condition[0] == "orf":
        return []
    column = "target" if condition[0] == "compound" else "guide"
    against = f"retrieved perturbations of another {'target' if column == 'target' else 'gene'}"
    if column not in wells.columns or not wells[column].notna().any():
        reason = f"none of the {len(wells)} retrieved perturbations has a {column}"
        return [_line("matching", condition, against, reason)]
    try:
        if column == "target":
            found = shared_target(vectors, wells, absolute=True, draws=draws)
        else:
            sisters = wells.groupby("gene")["guide"].transform("nunique").gt(1).to_numpy()
            found = sister_guides(vectors[sisters], wells[sisters], draws=draws)
    except ValueError as error:
        return [_line("matching", condition, against, str(error))]
    return [_line("matching", condition, against, found)]


def _cross(
    first: tuple[Any, ...],
    second: tuple[Any, ...],
    profiles: dict[tuple[Any, ...], tuple[np.ndarray, pd.DataFrame]],
    draws: Draws,
) -> dict[str, Any]:
    """Compounds of one condition and genes of another."""
    against = " ".join(str(part) for part in second)
    (vectors, wells), (gene_vectors, gene_wells) = profiles[first], profiles[second]
    both = pd.concat([wells, gene_wells], ignore_index=True)
    if not {"gene", "target"} <= set(both.columns) or not both["target"].notna().any():
        reason = f"none of the {len(wells)} retrieved compounds has a target"
        return _line("gene_compound_matching", first, against, reason)
    try:
        found: Retrieval | str = gene_compound(
            np.concatenate([vectors, gene_vectors]), both, absolute=True, draws=draws
        )
    except ValueError as error:
        found = str(error)
    return _line("gene_compound_matching", first, against, found)


def _line(
    task: str, condition: tuple[Any, ...], against: str, found: Retrieval | str
) -> dict[str, Any]:
    """One row of the table; `found` is the reason where a task has no figures."""
    head = {"task": task, **dict(zip(CONDITION, condition, strict=True)), "against": against}
    if isinstance(found, str):
        return head | {"not_scored": found}
    return head | {
        "mean_average_precision": found.mean_average_precision.value,
        "low": found.mean_average_precision.low,
        "high": found.mean_average_precision.high,
        "chance": found.chance,
        "fraction_retrieved": found.fraction_retrieved,
        "num_perturbations": found.num_perturbations,
        "num_queries": found.num_queries,
        "num_unpaired": found.num_unpaired,
        "num_left_out": found.num_left_out,
        "not_scored": "",
    }
