"""Every score of a table of embeddings, under several alignments, beside what nuisance gives.

One number alone can mislead: alignment can decide it, and so can cell count, brightness, the plate
or the place on it. So each score of `phenoscale score` stands under at least two alignments, with
its chance level, and beside the same score of whatever else was given: untrained encoders,
intensity statistics, a column such as the cell count.

Shapes: n rows (sites or wells), d width of an embedding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from phenoscale.maps.aggregate import WELL_KEY, wells_from_sites
from phenoscale.maps.perturbation_map import PerturbationMap
from phenoscale.maps.score import ALIGNMENTS, align_wells
from phenoscale.maps.score_lines import Card, Line, Options
from phenoscale.maps.vectors import checked_vectors, listed

PROTOCOL = "scorecard/1"
"""Name and version of the way of scoring."""
REQUIRED = (*WELL_KEY, "perturbation", "negative_control")
"""Columns that a table of wells or sites must have."""


def scorecard(
    embeddings: Mapping[str, tuple[np.ndarray, pd.DataFrame]],
    databases: Mapping[str, pd.DataFrame],
    options: Options | None = None,
    tell: Callable[[str], None] = lambda what: None,
) -> dict[str, Any]:
    """Scores embeddings of one screen.

    Args:
        embeddings: name to (vectors (n, d), metadata of the rows: `REQUIRED`, and gene, guide,
            target where there are any); the first is the one in question, the others stand beside
            it.
        databases: name to known relationships, entity1 and entity2; none for screens without genes.
        options: what is scored.
        tell: called with what is being done.

    Returns:
        protocol, alignments (name to what it is), num_wells, num_controls, num_genes of the first,
        and lines: list of `Line` as mappings.

    Raises:
        ValueError: for values that are not finite, missing columns, an experimental batch with too
            few controls, or a database without overlap. Other scores that the data cannot have are
            lines without a value that say why.
    """
    options = options or Options()
    if not embeddings or not options.alignments:
        raise ValueError("At least one embedding and one alignment are required.")
    if unknown := sorted(set(options.alignments) - set(ALIGNMENTS)):
        raise ValueError(f"There is no alignment {listed(unknown)}; give {', '.join(ALIGNMENTS)}.")
    first = next(iter(embeddings.values()))[1]
    if absent := [column for column in options.nuisance_columns if column not in first]:
        raise ValueError(
            f"The metadata have no column {listed(absent)}; there are "
            f"{listed(list(first.columns))}."
        )
    lines: list[Line] = []
    facts: dict[str, int] = {}
    for name, (vectors, metadata) in embeddings.items():
        tell(f"{name}: sites to wells")
        wells, table = _wells(vectors, metadata)
        facts = facts or _facts(table)
        for alignment in options.alignments:
            tell(f"{name}: {alignment}")
            aligned, left_out = align_wells(wells, table, alignment)
            card = Card(name, alignment, options)
            lines += card.recalls(aligned, table, databases, left_out)
            lines += card.retrievals(aligned, table)
            lines += card.signals(aligned, table)
            lines += card.nuisances(aligned, table)
    for column in options.nuisance_columns:
        tell(column)
        lines += _of_column(column, first, databases, options)
    return {
        "protocol": PROTOCOL,
        "alignments": {name: ALIGNMENTS[name] for name in options.alignments},
        **facts,
        "lines": [dataclasses.asdict(line) for line in lines],
    }


def map_scorecard(
    maps: Mapping[str, PerturbationMap],
    databases: Mapping[str, pd.DataFrame],
    options: Options | None = None,
) -> dict[str, Any]:
    """Scores perturbation maps, which are aligned and aggregated already: relationship recall.

    Args:
        maps: name to map; the first is the one in question.
        databases: name to known relationships, one at least.
        options: of which tails, genes, arms, rounds and seed matter.

    Returns:
        As `scorecard`; the alignment of a line is what the map's facts say.

    Raises:
        ValueError: as `recall_by_database`.
    """
    options = options or Options()
    lines: list[Line] = []
    for name, one in maps.items():
        card = Card(name, str(one.facts.get("alignment", "as it is")), options)
        lines += card.map_recalls(one.vectors, list(one.names), databases, [])
    return {
        "protocol": PROTOCOL,
        "num_genes": len(next(iter(maps.values())).names),
        "lines": [dataclasses.asdict(line) for line in lines],
    }


def _of_column(
    column: str,
    metadata: pd.DataFrame,
    databases: Mapping[str, pd.DataFrame],
    options: Options,
) -> Iterator[Line]:
    """Recall of one column of numbers, by distance, centred and scaled on controls."""
    numbers = pd.to_numeric(metadata[column], errors="coerce").to_numpy(dtype=np.float64)
    wells, table = _wells(numbers[:, None], metadata)
    aligned, left_out = align_wells(wells, table, "center_scale")
    card = Card(f"column {column}", "center_scale", options)
    yield from card.recalls(aligned, table, databases, left_out, "euclidean")


def _wells(vectors: np.ndarray, metadata: pd.DataFrame) -> tuple[np.ndarray, pd.DataFrame]:
    """Wells, (number of wells, d), with `REQUIRED` and what else belongs to a well."""
    if missing := [column for column in REQUIRED if column not in metadata]:
        raise ValueError(
            f"The metadata lack {', '.join(missing)}; a scorecard needs {', '.join(REQUIRED)}, "
            f"there are {listed(list(metadata.columns))}. Say which column is which "
            "(--column OURS=THEIRS, --control COLUMN=VALUE)."
        )
    vectors = checked_vectors(vectors, name="embeddings", rows=len(metadata), keep_float32=True)
    metadata = metadata.reset_index(drop=True)
    for column in ("gene", "guide"):
        if column not in metadata:
            metadata[column] = None
    key = [metadata[column].astype(str) for column in WELL_KEY]
    metadata = metadata.assign(**dict(zip(WELL_KEY, key, strict=True)))
    wells, table = wells_from_sites(vectors, metadata)
    if "target" in metadata:
        target = metadata.groupby(list(WELL_KEY), sort=True)["target"].first()
        table["target"] = target.to_numpy()
    return wells, table


def _facts(table: pd.DataFrame) -> dict[str, int]:
    control = table["negative_control"].to_numpy(dtype=bool)
    return {
        "num_wells": len(table),
        "num_controls": int(control.sum()),
        "num_perturbations": int(table["perturbation"][~control].nunique()),
        "num_genes": int(table["gene"][~control].nunique()),
    }
