"""From sites to wells, and from wells to guides, genes and other perturbations.

Two steps from wells to genes, guide by guide, so that a guide with many wells weighs no more than
its sister (Kraus et al. 2024, arXiv 2404.10242, section 4.2).

Shapes: d width of the embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import sparse

from phenoscale.maps.vectors import blocks, checked_vectors, listed

Method = Literal["mean", "median"]

WELL_KEY = ("experimental_batch", "plate", "well")
"""What names a well: plates are unique only within their experimental batch."""

WELL_COLUMNS = (
    "perturbation",
    "perturbation_type",
    "gene",
    "guide",
    "compound",
    "concentration",
    "negative_control",
    "cell_type",
)
"""Metadata that belong to the well, so that all its sites must agree on them."""


def wells_from_sites(
    site_vectors: npt.ArrayLike, metadata: pd.DataFrame
) -> tuple[np.ndarray, pd.DataFrame]:
    """Means over the sites of each well.

    Args:
        site_vectors: (number of sites, d).
        metadata: one row per site, aligned: experimental_batch, plate, well, and any of
            `WELL_COLUMNS`; other columns are ignored.

    Returns:
        (number of wells, d) float64, and the wells in the same order, sorted by `WELL_KEY`: these
        three, the `WELL_COLUMNS` that were given, and num_sites (int).

    Raises:
        ValueError: for values that are not finite, lengths that differ, missing columns, or a well
            whose sites disagree on one of `WELL_COLUMNS`.
    """
    _require_columns(metadata, WELL_KEY, "site metadata")
    vectors = checked_vectors(
        site_vectors, name="site_vectors", rows=len(metadata), keep_float32=True
    )
    key, given = list(WELL_KEY), [c for c in WELL_COLUMNS if c in metadata.columns]
    sites = metadata[key + given].reset_index(drop=True)
    if missing := [column for column in key if sites[column].isna().any()]:
        raise ValueError(f"{missing} have empty cells in the site metadata; every site needs all.")
    well = sites.groupby(key, sort=True).ngroup().to_numpy()
    num_wells = int(well.max()) + 1
    _, first = np.unique(well, return_index=True)
    for column in given:
        codes, _ = pd.factorize(sites[column])  # all nulls are one code, -1
        if (differs := codes != codes[first][well]).any():
            row = int(np.flatnonzero(differs)[0])
            values = sites[column].iloc[[first[well[row]], row]].tolist()
            name = "/".join(str(sites[part].iloc[row]) for part in key)
            raise ValueError(
                f"The sites of well {name} disagree on {column}: {values[0]!r} and {values[1]!r}; "
                "all sites of a well share its metadata. Correct the manifest."
            )
    wells = sites.iloc[first].reset_index(drop=True)
    wells["num_sites"] = np.bincount(well, minlength=num_wells)
    return _group_averages(vectors, well, "mean"), wells


def aggregate(
    vectors: npt.ArrayLike, table: pd.DataFrame, by: Sequence[str], method: Method = "mean"
) -> tuple[np.ndarray, pd.DataFrame]:
    """Means or medians of the rows that agree in some columns, such as a perturbation's wells.

    `aggregate` of EFAAR_benchmarking with one column. An empty cell is a value of its own (genes
    have no concentration): rows that are not to be counted are left out before.

    Args:
        vectors: (n, d).
        table: one row per vector.
        by: columns of the table.
        method: mean, or median, which a few bad wells do not move.

    Returns:
        (number of groups, d) float64, and the groups in the same order, sorted: the columns `by`,
        and count (int), the rows of each.

    Raises:
        ValueError: for values that are not finite, lengths that differ, missing columns, or another
            method.
    """
    _require_columns(table, by, "metadata")
    _check_method(method)
    vectors = checked_vectors(vectors, name="vectors", rows=len(table), keep_float32=True)
    rows = table[list(by)].reset_index(drop=True)
    group = rows.groupby(list(by), sort=True, dropna=False).ngroup().to_numpy()
    counts = np.bincount(group)
    _, first = np.unique(group, return_index=True)
    groups = rows.iloc[first].reset_index(drop=True).assign(count=counts)
    return _group_averages(vectors, group, method), groups


def genes_from_wells(
    vectors: npt.ArrayLike, wells: pd.DataFrame, method: Method = "mean"
) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Means over the wells of each guide, then over the guides of each gene.

    Negative controls and wells without a gene (compounds) are dropped. A gene whose guide is null
    counts as its own guide. The same guide name under two genes is two guides.

    Args:
        vectors: (number of wells, d), aligned.
        wells: one row per well: gene (str or null), guide (str or null), negative_control (bool).
        method: mean, or median, of both steps.

    Returns:
        (number of genes, d) float64; the gene names, sorted; the number of wells of each, int64.

    Raises:
        ValueError: for values that are not finite, lengths that differ, missing columns, no gene
            left, or another method.
    """
    _require_columns(wells, ("gene", "guide", "negative_control"), "well metadata")
    _check_method(method)
    vectors = checked_vectors(vectors, name="vectors", rows=len(wells), keep_float32=True)
    if wells["negative_control"].isna().any():
        raise ValueError("negative_control has empty cells; every well needs True or False.")
    control = wells["negative_control"].to_numpy(dtype=bool)
    kept = ~control & wells["gene"].notna().to_numpy()
    if not kept.any():
        raise ValueError(
            f"None of the {len(wells)} wells has a gene ({control.sum()} are negative controls); a "
            "map of genes needs wells with the column gene filled in."
        )
    gene_of_well, names = pd.factorize(wells["gene"].to_numpy(dtype=object)[kept], sort=True)
    guide_of_well, _ = pd.factorize(wells["guide"].to_numpy(dtype=object)[kept])
    guides, well_guide = np.unique(
        np.stack([gene_of_well, guide_of_well], axis=1), axis=0, return_inverse=True
    )
    of_guides = np.full(len(wells), -1)
    of_guides[kept] = well_guide.ravel()
    guide_means = _group_averages(vectors, of_guides, method)
    gene_means = _group_averages(guide_means, guides[:, 0], method)
    return gene_means, [str(name) for name in names], np.bincount(gene_of_well)


def _group_averages(vectors: np.ndarray, group: np.ndarray, method: Method) -> np.ndarray:
    """Means or medians (groups, d), float64, of the rows that share a group number 0, 1, ...

    None is empty. Rows of the group -1 belong to none.
    """
    counts = np.bincount(group[group >= 0])
    if method == "median":
        order = np.argsort(group, kind="stable")
        members = np.split(order, np.searchsorted(group[order], np.arange(len(counts))))[1:]
        return np.stack([np.median(vectors[m].astype(np.float64), axis=0) for m in members])
    sums = np.zeros((len(counts), vectors.shape[1]))
    for part in blocks(len(vectors)):
        kept = np.flatnonzero(group[part] >= 0)
        here, inverse = np.unique(group[part][kept], return_inverse=True)
        members_here = sparse.csr_array(
            (np.ones(len(kept)), (inverse, kept)), shape=(len(here), part.stop - part.start)
        )
        sums[here] += members_here @ vectors[part].astype(np.float64)
    means: np.ndarray = sums / counts[:, None]
    return means


def _check_method(method: str) -> None:
    if method not in get_args(Method):
        raise ValueError(f"method is {method!r}; give one of {', '.join(get_args(Method))}.")


def _require_columns(table: pd.DataFrame, required: Sequence[str], name: str) -> None:
    if missing := [column for column in required if column not in table.columns]:
        raise ValueError(
            f"The {name} lack the columns {missing}; {list(required)} are required, there are "
            f"{listed(list(table.columns))}."
        )
