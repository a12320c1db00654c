"""From embeddings to the numbers of a results row, by the study's metric.

Every read-out goes the same way; which one is the headline is fixed by the study before training.
Recall stands under two alignments, for alignment alone can decide a conclusion: PCA-CS is the
headline, TVN stands beside it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import pandas as pd
import pyarrow as pa

from phenoscale.maps.aggregate import genes_from_wells, wells_from_sites
from phenoscale.maps.align import CenterScale, PcaCenterScale, TypicalVariation
from phenoscale.maps.interval import Interval, percentile_interval
from phenoscale.maps.nuisance import predict_nuisance
from phenoscale.maps.perturbation_map import PerturbationMap
from phenoscale.maps.probes import linear_probe_samples
from phenoscale.maps.recall import recall_samples, relationship_recall
from phenoscale.maps.relationships import all_pairs
from phenoscale.maps.vectors import constant_columns

CONTROLS_PER_COMPONENT = 3
"""Wells of negative controls, at least, that each component of the alignment rests on.

Scaled to unit variance, a component that its few controls fit by chance is noise as loud as any
other. On the simulated screen, 192 control wells, embeddings of 192 values lost three quarters of
their recall with all components, and least with 48 to 64 (experiments/LOG.md)."""
ALIGNMENTS = {
    "pca_cs": f"PCA-CS fitted on negative controls, at most a component per "
    f"{CONTROLS_PER_COMPONENT} of them",
    "tvn": f"TVN fitted on negative controls, at most a component per {CONTROLS_PER_COMPONENT} of "
    "them",
    "center_scale": "centred and scaled on the negative controls of each experimental batch",
    "none": "not aligned",
}
"""Name of each alignment, and what it is."""
HEADLINE_ALIGNMENT = "pca_cs"
STUDY_ALIGNMENTS = ("pca_cs", "tvn")
"""Those under which a study's scores stand."""

NUISANCE_PLATES = 100
"""Plates, at most, that a row's nuisance is measured on."""

RECALL_PROTOCOL = "perturbation-map/2"
PROBE_PROTOCOL = "linear-probe/1"
"""How a row was scored; the number grows when the same embeddings would score differently."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
    """A trial's score and what it was taken over."""

    headline: Interval
    """Score of the study's read-out."""
    samples: np.ndarray
    """(rounds,) that score on each bootstrap sample."""
    by_readout: dict[str, float]
    """Score of every read-out."""
    by_alignment: dict[str, float]
    """Score of the study's read-out under each alignment, where the metric has any."""
    by_database: dict[str, float]
    """Score of the study's read-out for each database of relationships by itself."""
    nuisance: dict[str, float]
    """How well the headline's embeddings tell plates, experimental batches and positions apart."""
    protocol: str
    """Name and version of the way of scoring."""
    num_genes: int
    """Genes in the map, or classes told apart."""
    num_relationships: int
    """Annotated pairs in the map, or held-out sites."""


def align_wells(
    vectors: np.ndarray, wells: pd.DataFrame, alignment: str
) -> tuple[np.ndarray, dict[str, int]]:
    """Aligns wells on the negative controls of their experimental batches.

    Columns that are constant over all wells hold nothing and are left out first.

    Args:
        vectors: (number of wells, d).
        wells: experimental_batch, negative_control (bool).
        alignment: a name in `ALIGNMENTS`.

    Returns:
        (number of wells, k), and what was left out: constant_columns, dropped_directions.

    Raises:
        ValueError: for an unknown alignment, and as the alignment's `fit`.
    """
    if alignment not in ALIGNMENTS:
        raise ValueError(f"alignment is {alignment!r}; give one of {', '.join(ALIGNMENTS)}.")
    constant = constant_columns(vectors)
    if 0 < len(constant) < vectors.shape[1]:
        vectors = np.delete(vectors, constant, axis=1)
    left_out = {"constant_columns": len(constant), "dropped_directions": 0}
    if alignment == "none":
        return vectors, left_out
    control = wells["negative_control"].to_numpy(dtype=bool)
    components = max(1, int(np.count_nonzero(control)) // CONTROLS_PER_COMPONENT)
    fits = {
        "pca_cs": PcaCenterScale(components),
        "tvn": TypicalVariation(components),
        "center_scale": CenterScale(),
    }
    batches = wells["experimental_batch"].to_numpy()
    aligned = fits[alignment].fit_transform(vectors, batches, control)
    return aligned, left_out | {"dropped_directions": vectors.shape[1] - aligned.shape[1]}


def perturbation_map(
    vectors: np.ndarray,
    metadata: pd.DataFrame,
    *,
    alignment: str = HEADLINE_ALIGNMENT,
    readout: str = "vector",
) -> PerturbationMap:
    """Sites to wells, alignment on negative controls, wells to guides to genes.

    Args:
        vectors: (number of sites, d).
        metadata: one row per site: experimental_batch, plate, well, gene, guide, negative_control.
        alignment: a name in `ALIGNMENTS`.
        readout: name of the vectors, for the facts of the map.

    Returns:
        A map of genes, with num_wells of each, and as facts what was left out on the way.
    """
    wells, table = wells_from_sites(vectors, metadata)
    aligned, left_out = align_wells(wells, table, alignment)
    genes, names, counts = genes_from_wells(aligned, table)
    return PerturbationMap(
        vectors=genes,
        names=tuple(names),
        table=pd.DataFrame({"num_wells": counts}),
        facts={"alignment": alignment, "readout": readout, **left_out},
    )


def score_recall(
    embeddings: Mapping[str, np.ndarray],
    metadata: pd.DataFrame,
    databases: Mapping[str, pd.DataFrame],
    *,
    readout: str,
    rounds: int,
) -> tuple[Score, pa.Table]:
    """Recall of known relationships at the 5% and 95% tails.

    The headline is over the pairs of all databases together, each pair once.

    Args:
        embeddings: read-out to (number of sites, d).
        metadata: one row per site, as `perturbation_map` needs it.
        databases: name to its entity1, entity2.
        readout: the headline's.
        rounds: bootstrap samples of genes.

    Returns:
        The score, and the map as a table: gene, num_wells, one list column per read-out.
    """
    pairs = all_pairs(databases)
    maps = {
        name: perturbation_map(vectors, metadata, readout=name)
        for name, vectors in embeddings.items()
    }
    found = {name: relationship_recall(one.vectors, one.names, pairs) for name, one in maps.items()}
    columns: dict[str, pa.Array] = {}
    for name, one in maps.items():
        columns |= {"gene": pa.array(one.names), "num_wells": pa.array(one.table["num_wells"])}
        columns[name] = pa.array(list(one.vectors))
    headline = maps[readout]
    by_alignment = {HEADLINE_ALIGNMENT: found[readout]["recall_0.05_0.95"]}
    wells, table = wells_from_sites(embeddings[readout], metadata)
    for alignment in STUDY_ALIGNMENTS:
        aligned, _ = align_wells(wells, table, alignment)
        if alignment == HEADLINE_ALIGNMENT:
            nuisance = nuisance_accuracy(aligned, table)
        else:
            genes, names, _ = genes_from_wells(aligned, table)
            by_alignment[alignment] = relationship_recall(genes, names, pairs)["recall_0.05_0.95"]
    values = recall_samples(headline.vectors, headline.names, pairs, rounds=rounds)
    score = Score(
        headline=percentile_interval(values[0], values[1:]),
        samples=values[1:],
        by_readout={name: scores["recall_0.05_0.95"] for name, scores in found.items()},
        by_alignment=by_alignment,
        by_database={
            name: relationship_recall(headline.vectors, headline.names, one)["recall_0.05_0.95"]
            for name, one in databases.items()
        },
        nuisance=nuisance,
        protocol=RECALL_PROTOCOL,
        num_genes=int(found[readout]["num_entities"]),
        num_relationships=int(found[readout]["num_pairs"]),
    )
    return score, pa.table(columns)


def nuisance_accuracy(aligned: np.ndarray, wells: pd.DataFrame) -> dict[str, float]:
    """How well the negative controls give away where they stood; empty where that cannot be asked.

    Of more than `NUISANCE_PLATES` plates as many are looked at, evenly spread over all: the effort
    grows with their square, and a hundred plates say what there is to say.

    Args:
        aligned: (number of wells, k).
        wells: experimental_batch, plate, well, negative_control.

    Returns:
        Balanced accuracy of plate, experimental_batch, row and column, as far as there are enough
        controls for each, and NAME_chance of each.
    """
    plate = wells.groupby(["experimental_batch", "plate"], sort=True).ngroup().to_numpy()
    count = int(plate.max()) + 1
    if count > NUISANCE_PLATES:
        kept = np.isin(plate, np.linspace(0, count - 1, NUISANCE_PLATES).astype(int))
        aligned, wells = aligned[kept], wells[kept]
    try:
        report = predict_nuisance(aligned, wells, rounds=40)
    except ValueError:  # wells are not called A01, ..., so rows and columns have no meaning
        return {}
    found = {one.target: one.accuracy.value for one in report.predictions}
    return found | {f"{one.target}_chance": one.chance for one in report.predictions}


def score_probe(
    embeddings: Mapping[str, np.ndarray],
    metadata: pd.DataFrame,
    held_out: np.ndarray,
    *,
    readout: str,
    rounds: int,
) -> Score:
    """Balanced accuracy of a linear probe on held-out plates, fitted on the other plates.

    Args:
        embeddings: read-out to (number of sites, d).
        metadata: one row per site: experimental_batch, plate, perturbation.
        held_out: bool (number of sites,), whether a site's plate is held out.
        readout: the headline's.
        rounds: bootstrap samples of held-out plates.
    """
    labels = metadata["perturbation"].to_numpy()
    plates = (metadata["experimental_batch"] + "/" + metadata["plate"]).to_numpy()
    found = {
        name: linear_probe_samples(
            train_vectors=vectors[~held_out],
            train_labels=labels[~held_out],
            train_groups=plates[~held_out],
            test_vectors=vectors[held_out],
            test_labels=labels[held_out],
            test_groups=plates[held_out],
            rounds=rounds,
        )
        for name, vectors in embeddings.items()
    }
    return Score(
        headline=percentile_interval(found[readout][0], found[readout][1:]),
        samples=found[readout][1:],
        by_readout={name: float(values[0]) for name, values in found.items()},
        by_alignment={},
        by_database={},
        nuisance={},
        protocol=PROBE_PROTOCOL,
        num_genes=len(set(labels[~held_out])),
        num_relationships=int(held_out.sum()),
    )
