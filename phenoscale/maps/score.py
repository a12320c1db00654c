"""From site embeddings to the one number of a results row, by the study's metric.

Every read-out goes the same way; which one is the headline is fixed by the study before training.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import pandas as pd
import pyarrow as pa

from phenoscale.maps.aggregate import genes_from_wells, wells_from_sites
from phenoscale.maps.align import PcaCenterScale
from phenoscale.maps.interval import Interval
from phenoscale.maps.probes import linear_probe
from phenoscale.maps.recall import bootstrap_recall, relationship_recall

CONTROLS_PER_COMPONENT = 3
"""Wells of negative controls, at least, that each component of the alignment rests on.

Scaled to unit variance, a component that its few controls fit by chance is noise as loud as any
other. On the simulated screen, 192 control wells, embeddings of 192 values lost three quarters of
their recall with all components, and least with 48 to 64 (experiments/LOG.md)."""
ALIGNMENT = (
    f"PCA-CS fitted on negative controls, at most a component per {CONTROLS_PER_COMPONENT} of them"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
    """A trial's score and what it was taken over."""

    headline: Interval
    """Score of the study's read-out."""
    by_readout: dict[str, float]
    """Score of every read-out."""
    num_genes: int
    """Genes in the map, or classes told apart."""
    num_relationships: int
    """Annotated pairs in the map, or held-out sites."""


def perturbation_map(
    vectors: np.ndarray, metadata: pd.DataFrame
) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Sites to wells, alignment on negative controls (PCA-CS), wells to guides to genes.

    Args:
        vectors: (number of sites, d).
        metadata: one row per site: experimental_batch, plate, well, gene, guide, negative_control.

    Returns:
        (number of genes, d) float64, the gene names and the number of wells of each.
    """
    wells, table = wells_from_sites(vectors, metadata)
    batches = table["experimental_batch"].to_numpy()
    control = table["negative_control"].to_numpy(dtype=bool)
    components = max(1, int(np.count_nonzero(control)) // CONTROLS_PER_COMPONENT)
    align = PcaCenterScale(components).fit(wells, batches, control)
    return genes_from_wells(align.transform(wells, batches), table)


def score_recall(
    embeddings: Mapping[str, np.ndarray],
    metadata: pd.DataFrame,
    pairs: pd.DataFrame,
    *,
    readout: str,
    rounds: int,
) -> tuple[Score, pa.Table]:
    """Recall of known relationships at the 5% and 95% tails.

    Args:
        embeddings: read-out to (number of sites, d).
        metadata: one row per site, as `perturbation_map` needs it.
        pairs: entity1, entity2.
        readout: the headline's.
        rounds: bootstrap samples of genes.

    Returns:
        The score, and the map as a table: gene, num_wells, one list column per read-out.
    """
    by_readout: dict[str, float] = {}
    columns: dict[str, pa.Array] = {}
    headline = facts = None
    for name, vectors in embeddings.items():
        genes, names, counts = perturbation_map(vectors, metadata)
        result = relationship_recall(genes, names, pairs)
        by_readout[name] = result["recall_0.05_0.95"]
        columns |= {"gene": pa.array(names), "num_wells": pa.array(counts)}
        columns[name] = pa.array(list(genes))
        if name == readout:
            headline, facts = bootstrap_recall(genes, names, pairs, rounds=rounds), result
    assert headline is not None and facts is not None, f"no read-out {readout}"
    score = Score(
        headline=headline,
        by_readout=by_readout,
        num_genes=int(facts["num_entities"]),
        num_relationships=int(facts["num_pairs"]),
    )
    return score, pa.table(columns)


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
        name: linear_probe(
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
        headline=found[readout],
        by_readout={name: interval.value for name, interval in found.items()},
        num_genes=len(set(labels[~held_out])),
        num_relationships=int(held_out.sum()),
    )
