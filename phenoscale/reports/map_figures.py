"""Pictures of a perturbation map as plain plotly specifications, as in `figures.py`.

A clustered heat map of cosine similarities, and a view in the plane. Which perturbations are shown,
and how many are not, stands in each figure's note.

Shapes: n perturbations of the map, m of them shown, d width of their vectors.
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform

from phenoscale.maps.perturbation_map import PerturbationMap
from phenoscale.maps.relationships import unordered_pairs
from phenoscale.reports.figure_parts import GREY, Figure

HEAT_NAMES = 250
"""Perturbations of the heat map at most: 250 x 250 values are 0.33 MB of the report."""

PLANE_NAMES = 5_000
"""Perturbations of the view in the plane at most: t-SNE takes 10 s of a core for 2,700."""

PLANE_STEPS = 500
"""Of t-SNE: twice as many cost twice the time and lowered its divergence by 6% on 2,732 genes."""

CLUSTER_COSINE = 0.4
"""Where the tree is cut: two clusters stay apart if the mean cosine between them is below."""

MIN_CLUSTER = 3
LABELLED = 60
"""Perturbations up to which the heat map has room for names on its axes."""

COLOURS = (
    *("#3d7fd6", "#d9822b", "#2e9e6b", "#9a63c9", "#c2557a"),
    *("#b0683f", "#2aa5b8", "#8a9a2b", "#6d6fe0", "#d06a5a"),
)
# Blue through the page's own colour to red: right on white and on near-black.
SCALE = (
    (0.0, "rgba(45,110,205,1)"),
    (0.5, "rgba(128,128,128,0)"),
    (1.0, "rgba(205,70,50,1)"),
)


def make_map_figures(
    found: PerturbationMap,
    pairs: pd.DataFrame | None = None,
    groups: Mapping[str, str] | None = None,
) -> list[Figure]:
    """The pictures of a map.

    Args:
        found: the map.
        pairs: known relationships entity1, entity2: the heat map prefers perturbations in them.
        groups: name -> known complex or pathway, the colours of the plane; clusters otherwise.

    Returns:
        The heat map and the view in the plane; none for a map of fewer than 5 perturbations.
        Perturbations whose vector is all zero have no cosine: they are left out, and counted.
    """
    length = np.linalg.norm(found.vectors.astype(np.float64), axis=1)
    rows = np.flatnonzero(length > 0)
    if len(rows) < 5:
        return []
    unit = found.vectors[rows] / length[rows, None]
    names = [found.names[row] for row in rows]
    zeros = len(length) - len(rows)
    without = f"; {zeros} with an all-zero vector are left out" if zeros else ""
    heat = _heat_map(unit, names, length[rows], pairs)
    plane = _plane(unit, names, length[rows], groups)
    return [figure | {"note": figure["note"] + without} for figure in (heat, plane)]


def cluster_order(unit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Average linkage by cosine, leaves in the optimal order (Bar-Joseph et al. 2001).

    Args:
        unit: (m, d) of length 1.

    Returns:
        Rows in the order of the tree's leaves (m,), and the cluster of each row (m,): 0 for those
        in clusters below `MIN_CLUSTER`, 1 for the largest.
    """
    tree = _tree(unit)
    order = hierarchy.leaves_list(hierarchy.optimal_leaf_ordering(tree, _distances(unit)))
    return order, _cut(tree)


def _distances(unit: np.ndarray) -> np.ndarray:
    distance = 1 - unit @ unit.T
    np.fill_diagonal(distance, 0)
    distance = np.maximum((distance + distance.T) / 2, 0)
    condensed: np.ndarray = squareform(np.round(distance, 9), checks=False)
    return condensed


def _tree(unit: np.ndarray) -> np.ndarray:
    tree: np.ndarray = hierarchy.linkage(_distances(unit), method="average")
    return tree


def _cut(tree: np.ndarray) -> np.ndarray:
    """Cluster number of each row, the largest first, 0 for small ones."""
    raw = hierarchy.fcluster(tree, 1 - CLUSTER_COSINE, criterion="distance")
    sizes = sorted(Counter(raw.tolist()).items(), key=lambda item: (-item[1], item[0]))
    number = {c: place for place, (c, size) in enumerate(sizes, 1) if size >= MIN_CLUSTER}
    return np.array([number.get(cluster, 0) for cluster in raw.tolist()])


def _heat_map(
    unit: np.ndarray, names: Sequence[str], length: np.ndarray, pairs: pd.DataFrame | None
) -> Figure:
    rows, which = _chosen(names, length, pairs)
    order, _ = cluster_order(unit[rows])
    rows = rows[order]
    cosines = (unit[rows] @ unit[rows].T).astype("<f4")
    shown = [names[row] for row in rows]
    off_diagonal = np.abs(cosines[~np.eye(len(rows), dtype=bool)])
    limit = max(float(np.ceil(np.quantile(off_diagonal, 0.99) * 20) / 20), 0.05)
    ticks = {
        "showticklabels": len(shown) <= LABELLED,
        "type": "category",
        "showgrid": False,
        "ticks": "",
        "automargin": True,
        "showline": False,
    }
    return {
        "id": "map-heat",
        "title": "Cosine similarities",
        "note": f"{which}; ordered by average linkage, so that what is alike stands together. "
        f"Colours end at ±{limit:.2f}, which 99% of the pairs lie within. Point at a cell for its "
        "names",
        "data": [
            {
                "type": "heatmap",
                "name": "cosine",
                "x": shown,
                "y": shown,
                "z": _packed(cosines),
                "zmin": -limit,
                "zmax": limit,
                "colorscale": [list(stop) for stop in SCALE],
                "colorbar": {
                    "orientation": "h",
                    "yref": "container",
                    "y": 0,
                    "yanchor": "bottom",
                    "thickness": 10,
                    "len": 0.6,
                    "outlinewidth": 0,
                },
                "hovertemplate": "%{x}<br>%{y}<br>%{z:.2f}<extra></extra>",
            }
        ],
        "layout": {
            "xaxis": ticks,
            "yaxis": ticks | {"autorange": "reversed", "scaleanchor": "x", "constrain": "domain"},
            "showlegend": False,
        },
    }


def _chosen(
    names: Sequence[str], length: np.ndarray, pairs: pd.DataFrame | None
) -> tuple[np.ndarray, str]:
    """Rows of the heat map, and in words which they are."""
    if len(names) <= HEAT_NAMES:
        return np.arange(len(names)), f"all {len(names)} perturbations"
    if pairs is not None:
        index = pd.Index(names)
        table = unordered_pairs(pairs)
        inside = table[table["entity1"].isin(index) & table["entity2"].isin(index)]
        number = pd.concat([inside["entity1"], inside["entity2"]]).value_counts()
        known = number.reindex(index, fill_value=0).to_numpy()
        if np.count_nonzero(known) >= 5:
            # Those with most known partners; among equals the strongest.
            order = np.lexsort((-length, -known))[: min(HEAT_NAMES, np.count_nonzero(known))]
            text = f"{len(order)} of {len(names):,} perturbations, those with most known partners"
            return np.sort(order), text
    order = np.argsort(-length, kind="stable")[:HEAT_NAMES]
    return np.sort(order), (
        f"{HEAT_NAMES} of {len(names):,} perturbations, those with the longest vectors"
    )


def _plane(
    unit: np.ndarray,
    names: Sequence[str],
    length: np.ndarray,
    groups: Mapping[str, str] | None,
) -> Figure:
    from sklearn.manifold import TSNE

    which = f"all {len(names):,} perturbations"
    if len(names) > PLANE_NAMES:
        rows = np.sort(np.random.default_rng(0).choice(len(names), PLANE_NAMES, replace=False))
        which = (
            f"{PLANE_NAMES:,} of {len(names):,} perturbations, drawn at random with a fixed seed"
        )
        unit, names = unit[rows], [names[row] for row in rows]
    perplexity = min(30.0, (len(names) - 1) / 3)
    view = TSNE(
        metric="cosine",
        init="pca",
        perplexity=perplexity,
        max_iter=PLANE_STEPS,
        random_state=0,
    )
    places = view.fit_transform(unit.astype(np.float32)).round(2)
    members, what = _grouped(unit, names, groups)
    data = []
    for place, (group, rows_of_group) in enumerate(members):
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": group,
                "x": places[rows_of_group, 0].tolist(),
                "y": places[rows_of_group, 1].tolist(),
                "text": [names[row] for row in rows_of_group],
                "hovertemplate": "%{text}<extra>%{fullData.name}</extra>",
                "marker": {
                    "size": 7 if len(names) <= 1000 else 4,
                    "color": GREY if place == 0 else COLOURS[place - 1],
                    "opacity": 0.45 if place == 0 else 0.9,
                },
            }
        )
    axis = {"visible": False}
    return {
        "id": "map-plane",
        "title": "In the plane",
        "note": f"{which}; t-SNE of cosine distances from a PCA start, seed 0. Near is alike, far "
        f"apart says little, and the axes have no unit. Colours: {what}",
        "data": data,
        "layout": {
            "xaxis": axis,
            "yaxis": axis | {"scaleanchor": "x", "scaleratio": 1},
            "showlegend": len(data) > 1,
        },
    }


def _grouped(
    unit: np.ndarray, names: Sequence[str], groups: Mapping[str, str] | None
) -> tuple[list[tuple[str, np.ndarray]], str]:
    """Rows by group, what belongs to no coloured one first; and in words what the groups are."""
    if groups is not None:
        labels = np.array([groups.get(name, "") for name in names], dtype=object)
        counts = Counter(label for label in labels.tolist() if label)
        ranked = sorted(counts, key=lambda label: (-counts[label], label))
        shown = ranked[: len(COLOURS)]
        what = f"the {len(shown)} largest of {len(ranked)} known groups in the map"
        titles = dict(zip(shown, shown, strict=True))
    else:
        labels = _cut(_tree(unit)).astype(object)
        number = int(max(labels))
        shown = list(range(1, min(number, len(COLOURS)) + 1))
        what = (
            f"the {len(shown)} largest of {number} clusters of {MIN_CLUSTER} or more (average "
            f"linkage, cut at a mean cosine of {CLUSTER_COSINE})"
        )
        titles = {
            c: _title([n for n, o in zip(names, labels, strict=True) if o == c]) for c in shown
        }
    rest = np.flatnonzero(~np.isin(labels, shown)) if shown else np.arange(len(names))
    members = [("others", rest)]
    members += [(titles[label], np.flatnonzero(labels == label)) for label in shown]
    return members, what


def _title(names: Sequence[str]) -> str:
    return ", ".join(names[:2]) + (f" +{len(names) - 2}" if len(names) > 2 else "")


def _packed(values: np.ndarray) -> dict[str, Any]:
    """An array as plotly.js takes it: base64 of its bytes, half the size of decimal digits."""
    content = base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()
    return {"dtype": "f4", "bdata": content, "shape": ", ".join(map(str, values.shape))}
