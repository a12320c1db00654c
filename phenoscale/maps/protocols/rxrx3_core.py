"""The protocol rxrx3-core: the benchmark of the RxRx3-core release on its published tables.

The recipe is that of the notebook rxrx3_core_benchmarks_openphenom.ipynb of EFAAR_benchmarking
(recursionpharma, commit 1ff8a788); the data set is described in arXiv 2503.20158.

1. Mean of the embedding rows of a well. The perturbation is the treatment up to the first "_",
   unless it contains "_control".
2. PCA fitted on the wells EMPTY_control, all components; then per experiment centre and scale on
   its EMPTY_control.
3. Control wells of type COMPOUND are dropped; mean per (perturbation_type, perturbation,
   concentration); concentrations outside `CONCENTRATIONS` are dropped.
4. Relationship recall at (0.05, 0.95). The null is all rows of the map, compounds at each
   concentration included, as there.
5. Compound against gene, see `compound_gene`.

Where it differs from the notebook:
- A name in a relationship, or in the column gene_symbol of the truth, means the CRISPR row, and a
  treatment means the COMPOUND rows. The notebook looks names up in all rows: it stops where a
  compound has the name of a gene, and counts a compound of one concentration that a database names.
- Genes of the truth that are not in the map are dropped before negatives are drawn, and counted.
  The notebook stops there with a KeyError.
- It draws negatives from a Python set, whose order depends on the hash seed of the process, so its
  draws cannot be repeated; here the genes are sorted first.
- Concentrations without a compound are left out. There they score 0.

Shapes: n wells, m rows of the map, d width of the embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from phenoscale.maps.protocols.compound_gene import compound_gene
from phenoscale.maps.recall import relationship_recall
from phenoscale.maps.vectors import checked_vectors, listed

PROTOCOL = "rxrx3-core"
VERSION = "1"
"""Goes up with every change that can change a figure."""

CONTROL = "EMPTY_control"
CONCENTRATIONS = (0.0025, 0.01, 0.025, 0.1, 0.25, 1.0, 2.5, 10.0)
"""Micromolar, as published."""

TAILS = (0.05, 0.95)

METADATA_COLUMNS = (
    "well_id",
    "experiment_name",
    "treatment",
    "concentration",
    "perturbation_type",
)


def score_rxrx3_core(
    embeddings_path: str | Path,
    metadata_path: str | Path,
    truth_path: str | Path,
    relationships: Mapping[str, pd.DataFrame],
    *,
    seeds: int = 100,
) -> dict[str, Any]:
    """All figures of the protocol.

    Args:
        embeddings_path: Parquet with well_id and feature_0, feature_1, ...; several rows of a well
            are averaged.
        metadata_path: CSV as metadata_rxrx3_core.csv, with `METADATA_COLUMNS`.
        truth_path: CSV with gene_symbol, nM_value, treatment.
        relationships: database name -> entity1, entity2.
        seeds: draws of negatives, with the seeds 0, 1, ....

    Returns:
        protocol, version, counts (name -> int), recall (database -> the result of
        `relationship_recall`), compound_gene (see there).

    Raises:
        ValueError: for missing columns, wells named twice, no well in common, an experiment without
            control, values that are not finite, and as `relationship_recall` and `compound_gene`.
    """
    wells, vectors = load_wells(embeddings_path, metadata_path)
    counts = {"num_wells": len(wells)} | wells.attrs["counts"]
    control = (wells["perturbation"] == CONTROL).to_numpy()
    align_on_controls(vectors, wells["experiment_name"].to_numpy(dtype=object), control)
    rows, means = map_rows(wells, vectors)
    counts |= {
        "num_controls": int(control.sum()),
        "num_experiments": int(wells["experiment_name"].nunique()),
        "num_map_rows": len(rows),
        "num_map_crispr_rows": int((rows["perturbation_type"] == "CRISPR").sum()),
    }
    del vectors, wells
    truth = _read_csv(truth_path, ("gene_symbol", "nM_value", "treatment"))
    names = row_names(rows)
    return {
        "protocol": PROTOCOL,
        "version": VERSION,
        "counts": counts,
        "recall": {
            database: relationship_recall(means, names, pairs, tails=(TAILS,))
            for database, pairs in relationships.items()
        },
        "compound_gene": compound_gene(rows, means, truth, seeds=seeds),
    }


def load_wells(
    embeddings_path: str | Path, metadata_path: str | Path
) -> tuple[pd.DataFrame, np.ndarray]:
    """Wells with an embedding, in the order of the metadata, and their embeddings (n, d) float64.

    `attrs["counts"]` of the table holds the wells that only one of the two files has.
    """
    metadata = _read_csv(metadata_path, METADATA_COLUMNS)
    if metadata["well_id"].duplicated().any():
        repeated = metadata["well_id"][metadata["well_id"].duplicated()].unique().tolist()
        raise ValueError(f"{len(repeated)} wells stand twice in the metadata ({listed(repeated)}).")
    if (empty := metadata["treatment"].isna()).any():
        raise ValueError(
            f"{empty.sum()} wells have no treatment ({listed(metadata['well_id'][empty].tolist())}"
            "); every well needs one, a control too."
        )
    embeddings = pd.read_parquet(embeddings_path)
    features = [name for name in embeddings.columns if str(name).startswith("feature_")]
    if "well_id" not in embeddings.columns or not features:
        raise ValueError(
            f"{embeddings_path} has the columns {listed(list(embeddings.columns))}; well_id and "
            "feature_0, feature_1, ... are required."
        )
    embeddings = embeddings[["well_id", *features]]
    if embeddings["well_id"].duplicated().any():
        embeddings = embeddings.groupby("well_id", sort=False).mean().reset_index()
    place = pd.Index(embeddings["well_id"]).get_indexer(pd.Index(metadata["well_id"]))
    if not (place >= 0).any():
        raise ValueError(
            f"None of the {len(embeddings)} wells of {embeddings_path} is in the metadata; they "
            f"are named like {embeddings['well_id'].iloc[0]!r} there and "
            f"{metadata['well_id'].iloc[0]!r} here."
        )
    wells = metadata[place >= 0].reset_index(drop=True)
    values = embeddings[features].to_numpy()[place[place >= 0]]
    vectors = checked_vectors(
        values.astype(np.float64), name="embeddings", row_names=wells["well_id"].tolist()
    )
    treatment = wells["treatment"].astype(str)
    wells["perturbation"] = treatment.where(
        treatment.str.contains("_control", regex=False), treatment.str.split("_").str[0]
    )
    wells.attrs["counts"] = {
        "num_wells_without_embedding": int((place < 0).sum()),
        "num_embedded_wells_without_metadata": len(embeddings) - len(wells),
    }
    return wells, vectors


def align_on_controls(vectors: np.ndarray, experiment: np.ndarray, control: np.ndarray) -> None:
    """PCA on the controls, then centre and scale per experiment on its controls, in place.

    Equal to `pca_centerscale_on_controls` of EFAAR_benchmarking: scikit-learn's PCA with all
    components, population sd, a constant component divided by 1.

    Args:
        vectors: (n, d) float64, overwritten; with fewer controls than d the columns past the
            number of components become 0.
        experiment: (n,) names.
        control: (n,) bool.

    Raises:
        ValueError: for an experiment without control.
    """
    names = pd.unique(pd.Series(experiment))
    held = set(experiment[control])
    if without := [name for name in names if name not in held]:
        raise ValueError(
            f"{len(without)} experiments have no well {CONTROL} ({listed(without)}); each is "
            "centred and scaled on its own. Leave these out or complete the embeddings."
        )
    pca = PCA().fit(vectors[control])
    kept = pca.n_components_
    for name in names:
        rows = np.flatnonzero(experiment == name)
        scores = pca.transform(vectors[rows])
        scaler = StandardScaler().fit(scores[control[rows]])
        vectors[rows, :kept] = scaler.transform(scores)
    vectors[:, kept:] = 0.0


def map_rows(wells: pd.DataFrame, vectors: np.ndarray) -> tuple[pd.DataFrame, np.ndarray]:
    """Means per (perturbation_type, perturbation, concentration), without compound controls.

    Args:
        wells: n rows with these columns; a null concentration is a group of its own.
        vectors: (n, d).

    Returns:
        The m rows, sorted by the three columns, and their means (m, d).
    """
    key = ["perturbation_type", "perturbation", "concentration"]
    dropped = (wells["perturbation_type"] == "COMPOUND") & wells["perturbation"].str.contains(
        "_control", regex=False
    )
    kept = ~dropped.to_numpy()
    grouped = wells.loc[kept, key].groupby(key, dropna=False, sort=True)
    group = grouped.ngroup().to_numpy()
    rows = grouped.size().reset_index()[key]
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    sizes = np.diff(starts, append=len(order))
    means = np.empty((len(rows), vectors.shape[1]))
    wanted = np.flatnonzero(kept)[order]
    for row, (start, size) in enumerate(zip(starts, sizes, strict=True)):
        means[row] = vectors[wanted[start : start + size]].mean(axis=0)
    published = (
        rows["concentration"].isin(CONCENTRATIONS) | rows["concentration"].isna()
    ).to_numpy()
    return rows[published].reset_index(drop=True), means[published]


def row_names(rows: pd.DataFrame) -> list[str]:
    """Unique names (m,): the gene for a CRISPR row, with type and concentration for another."""
    named = [
        name if kind == "CRISPR" and pd.isna(concentration) else f"{kind} {name} {concentration}"
        for kind, name, concentration in rows[
            ["perturbation_type", "perturbation", "concentration"]
        ].itertuples(index=False)
    ]
    return named


def _read_csv(path: str | Path, required: Sequence[str]) -> pd.DataFrame:
    table = pd.read_csv(path)
    if missing := [column for column in required if column not in table.columns]:
        raise ValueError(
            f"{path} lacks the columns {missing}; {list(required)} are required, there are "
            f"{listed(list(table.columns))}."
        )
    return table
