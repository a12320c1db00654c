"""Neighbours in a perturbation map: against brute force, SciPy and relationship recall itself."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import hypergeom, percentileofscore

from phenoscale.maps import neighbours as module
from phenoscale.maps.neighbours import ALL_PAIRS, OWN_PAIRS, known_to, neighbours
from phenoscale.maps.perturbation_map import PerturbationMap
from phenoscale.maps.recall import tail_recall
from phenoscale.maps.relationships import load_relationships


def make_map(rows: int = 40, width: int = 5, seed: int = 0) -> PerturbationMap:
    values = np.random.default_rng(seed).normal(size=(rows, width))
    return PerturbationMap(vectors=values, names=tuple(f"G{row:03}" for row in range(rows)))


def cosine(first: np.ndarray, second: np.ndarray) -> float:
    return float(first @ second / np.linalg.norm(first) / np.linalg.norm(second))


def brute_force(found: PerturbationMap, name: str) -> tuple[dict[str, float], list[float]]:
    row = found.names.index(name)
    own = {
        other: cosine(found.vectors[row], vector)
        for other, vector in zip(found.names, found.vectors, strict=True)
        if other != name
    }
    return own, [cosine(first, second) for first, second in combinations(found.vectors, 2)]


@pytest.mark.parametrize("block", [7, 1024])
def test_neighbours_are_those_of_brute_force(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK", block)
    found = make_map()
    own, null = brute_force(found, "G011")
    ranked = sorted(own, key=lambda other: -own[other])
    table = neighbours(found, "G011", top=6)
    assert table["name"].tolist() == ranked[:6] + ranked[-6:]
    assert table["rank"].tolist() == [1, 2, 3, 4, 5, 6, 34, 35, 36, 37, 38, 39]
    assert set(table["null"]) == {ALL_PAIRS}
    for row in table.to_dict("records"):
        assert row["similarity"] == pytest.approx(own[row["name"]], abs=1e-11)
        expected = percentileofscore(null, own[row["name"]] + 1e-10, kind="weak") / 100
        assert row["percentile"] == pytest.approx(expected)


def test_tails_are_those_of_relationship_recall() -> None:
    found = make_map()
    tails = []
    for name in found.names[:8]:
        own, null = brute_force(found, name)
        rounded = np.round(null, 10)
        for row in neighbours(found, name, top=40).to_dict("records"):
            counts = tail_recall(rounded, np.round([own[row["name"]]], 10))
            assert (row["tail"] != "") == bool(counts)
            assert row["tail"] in (("high", "") if row["similarity"] > 0 else ("low", ""))
            tails.append(row["tail"])
    assert {"high", "low", ""} == set(tails)


def test_equal_similarities_share_their_percentile_and_stay_out_of_the_tail() -> None:
    """Twelve equal vectors: their 66 pairs of cosine 1 are over half of all, so no tail."""
    values = np.concatenate([np.tile([1.0, 2.0, 3.0], (12, 1)), np.eye(3)])
    found = PerturbationMap(vectors=values, names=tuple("abcdefghijklxyz"))
    table = neighbours(found, "a", top=11)[:11]
    assert table["name"].tolist() == list("bcdefghijkl")  # ties in the order of the map
    assert (table["percentile"] == 1).all() and (table["tail"] == "").all()


def test_a_small_map_lists_each_other_once() -> None:
    table = neighbours(make_map(6), "G000", top=4)
    assert sorted(table["name"]) == ["G001", "G002", "G003", "G004", "G005"]
    assert table["rank"].tolist() == [1, 2, 3, 4, 5]


def test_a_large_map_counts_its_own_pairs_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EXACT_NAMES", 39)
    table = neighbours(make_map(), "G005", top=3)
    assert set(table["null"]) == {OWN_PAIRS}
    assert table["percentile"].tolist() == [(40 - rank) / 39 for rank in table["rank"]]


def test_known_partners_carry_their_databases() -> None:
    first = pd.DataFrame({"entity1": ["A", "B", "C"], "entity2": ["B", "A", "A"]})
    second = pd.DataFrame({"entity1": ["A", "X"], "entity2": ["C", "Y"]})
    known = known_to("A", {"CORUM": first, "SIGNOR": second})
    assert known == {"B": ["CORUM"], "C": ["CORUM", "SIGNOR"]}
    assert known_to("Z", {"CORUM": first}) == {}


def test_refusals_say_what_to_do() -> None:
    found = make_map()
    with pytest.raises(
        ValueError, match=r"G0310 is not in .* of 40 perturbations. Near are G031, "
    ):
        neighbours(found, "G0310")
    with pytest.raises(ValueError, match="Near are G017, "):
        neighbours(found, "g017")
    with pytest.raises(ValueError, match="It holds G000, G001"):
        neighbours(found, "completely different")
    with pytest.raises(ValueError, match="top is 0; at least 1"):
        neighbours(found, "G000", top=0)
    with pytest.raises(ValueError, match="holds one perturbation"):
        neighbours(make_map(1), "G000")
    flat = PerturbationMap(vectors=np.array([[1.0, 2.0], [0.0, 0.0]]), names=("a", "b"))
    with pytest.raises(ValueError, match=r"1 perturbations have an all-zero vector \(b\)"):
        neighbours(flat, "a")


def test_real_complexes_are_near_in_a_real_map(real_data: Path) -> None:
    depmap = pd.read_parquet(real_data / "depmap_gene_pca" / "gene_loadings.parquet")
    values = depmap.drop(columns="gene")
    found = PerturbationMap(vectors=(values / values.std()).to_numpy(), names=tuple(depmap["gene"]))
    corum = load_relationships(real_data / "relationships" / "CORUM.txt")
    known = known_to("PSMA1", {"CORUM": corum})
    table = neighbours(found, "PSMA1", top=10)
    nearest = table[:10]
    among_ten = nearest["name"].isin(list(known)).sum()
    in_map = len(known.keys() & set(found.names))
    assert hypergeom.sf(among_ten - 1, len(found.names) - 1, in_map, 10) < 1e-3
    assert (nearest["tail"] == "high").all() and (table[10:]["tail"] == "low").all()
