import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phenoscale.maps import tails as tails_module
from phenoscale.maps.recall import (
    bootstrap_recall,
    paired_difference,
    recall_by_database,
    relationship_recall,
    restrict,
    tail_recall,
)
from phenoscale.maps.relationships import load_relationships

EFAAR = json.loads((Path(__file__).parent / "data" / "efaar_recall.json").read_text())
EFAAR_TAILS = ((0.05, 0.95), (0.1, 0.9), (0.2, 0.8))
KEY = "recall_0.05_0.95"


def frame(pairs: object) -> pd.DataFrame:
    return pd.DataFrame(pairs, columns=["entity1", "entity2"])


def planted(
    complexes: int = 12, d: int = 10, signal: float = 1.0, seed: int = 0
) -> tuple[np.ndarray, list[str], pd.DataFrame]:
    """Genes in complexes of four that share a direction, and their pairs."""
    rng = np.random.default_rng(seed)
    directions = np.repeat(rng.standard_normal((complexes, d)), 4, axis=0)
    vectors = signal * directions + rng.standard_normal(directions.shape)
    names = [f"G{i:03d}" for i in range(len(vectors))]
    pairs = [
        (names[i], names[j])
        for start in range(0, len(names), 4)
        for i in range(start, start + 4)
        for j in range(i + 1, start + 4)
    ]
    return vectors, names, frame(pairs)


# ---- against EFAAR_benchmarking itself (tests/data/make_efaar_reference.py)


@pytest.mark.parametrize("case", EFAAR["maps"])
def test_maps_score_as_in_efaar(case: dict) -> None:
    found = relationship_recall(case["vectors"], case["names"], frame(case["pairs"]), EFAAR_TAILS)
    expected = dict(case["expected"])
    size = expected.pop("null_distribution_size")
    assert found["num_pairs"] == expected.pop("query_distribution_size")
    assert found["num_entities"] * (found["num_entities"] - 1) / 2 == size
    assert len(expected) == 3
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, abs=1e-12), key


@pytest.mark.parametrize("case", EFAAR["tails"])
def test_tails_and_ties_as_in_efaar(case: dict) -> None:
    for tails in EFAAR_TAILS:
        expected = case["expected"][f"recall_{tails[0]}_{tails[1]}"]
        assert tail_recall(case["null"], case["known"], tails) == pytest.approx(expected, abs=1e-12)


# ---- by hand


def test_five_genes_by_hand() -> None:
    # Five genes as directions in the plane. Their ten pairs lie this many degrees apart, from the
    # most similar to the least: 10 20 30 70 90 90 100 160 170 180.
    direction = np.radians([0, 10, 30, 100, 190])
    vectors = np.stack([np.cos(direction), np.sin(direction)], axis=1)
    null = (vectors @ vectors.T)[np.triu_indices(5, 1)]

    def cosine(first: int, second: int) -> float:
        return float(vectors[first] @ vectors[second])

    closest, second, farthest, next_farthest = (
        cosine(0, 1),
        cosine(1, 2),
        cosine(1, 4),
        cosine(0, 4),
    )
    # Tails of a tenth hold one pair each, tails of a fifth two.
    assert tail_recall(null, [closest, farthest], (0.1, 0.9)) == 1.0
    assert tail_recall(null, [second, next_farthest], (0.1, 0.9)) == 0.0
    assert tail_recall(null, [second, next_farthest], (0.2, 0.8)) == 1.0
    assert tail_recall(null, [closest, second, cosine(0, 2), cosine(0, 3)], (0.2, 0.8)) == 0.5


def test_a_block_of_ties_across_the_threshold_is_outside() -> None:
    null = [0.0, 0.0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert tail_recall(null, [0.0], (0.1, 0.9)) == 0.0
    assert tail_recall(null, [0.0], (0.2, 0.8)) == 1.0


def test_chance_and_certainty() -> None:
    vectors, names, pairs = planted(complexes=60, signal=0)
    assert relationship_recall(vectors, names, pairs)[KEY] == pytest.approx(0.1, abs=0.05)
    vectors, names, pairs = planted(complexes=60, signal=20)
    assert relationship_recall(vectors, names, pairs)[KEY] == 1.0


def test_opposed_genes_count_in_the_low_tail() -> None:
    vectors, names, _ = planted(signal=0)
    vectors[:12] = -vectors[12:24]
    pairs = frame(list(zip(names[:12], names[12:24], strict=True)))
    assert relationship_recall(vectors, names, pairs)[KEY] == 1.0


# ---- properties


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), data=st.data())
def test_invariant_to_scale_order_and_names_outside(seed: int, data: st.DataObject) -> None:
    vectors, names, pairs = planted(complexes=6, seed=seed)
    expected = relationship_recall(vectors, names, pairs)
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    scaled = vectors * rng.uniform(1e-3, 1e3, size=(len(names), 1))
    assert relationship_recall(scaled, names, pairs) == expected
    genes = rng.permutation(len(names))
    permuted = relationship_recall(vectors[genes], [names[i] for i in genes], pairs)
    assert permuted == expected
    # Pairs in another order, flipped, repeated, with self pairs and genes that are not in the map.
    flipped = pairs.rename(columns={"entity1": "entity2", "entity2": "entity1"})
    noise = frame([(names[0], names[0]), (names[0], "absent")])
    messy = pd.concat([pairs, flipped, noise]).sample(frac=1, random_state=seed)
    assert relationship_recall(vectors, names, messy) == expected


# ---- bootstrap


def recall_written_out(
    vectors: np.ndarray, names: list[str], pairs: pd.DataFrame, drawn: np.ndarray
) -> float:
    """The sample written out: each gene repeated, pairs of two copies of one gene removed."""
    gene = np.repeat(np.arange(len(names)), drawn)
    unit = vectors[gene] / np.linalg.norm(vectors[gene], axis=1, keepdims=True)
    known = np.zeros((len(names), len(names)), dtype=bool)
    for first, second in pairs.itertuples(index=False):
        known[names.index(first), names.index(second)] = True
    known = (known | known.T)[np.ix_(gene, gene)]
    pair = np.triu(gene[:, None] != gene[None, :])
    cosine = np.round(unit @ unit.T, 12)
    return tail_recall(cosine[pair], cosine[pair & known])


def tied() -> tuple[np.ndarray, list[str], pd.DataFrame]:
    """A map in which nearly all cosines tie: signs, so that ties are exact."""
    rng = np.random.default_rng(5)
    _, names, pairs = planted(complexes=6)
    vectors = np.repeat(rng.choice([-1.0, 1.0], size=(6, 8)), 4, axis=0)
    flips = rng.random(vectors.shape) < 0.15
    return np.where(flips, -vectors, vectors), names, pairs


def hub() -> tuple[np.ndarray, list[str], pd.DataFrame]:
    """One gene is opposed to all others, so that the low tail is empty when it is not drawn."""
    vectors, names, pairs = planted(complexes=6)
    vectors[:, 0] += 30
    vectors[5] *= -1
    return vectors, names, pairs


@pytest.mark.parametrize(
    "case", [planted(complexes=6), tied(), hub()], ids=["plain", "tied", "hub"]
)
def test_bootstrap_equals_the_sample_written_out(case: tuple) -> None:
    vectors, names, pairs = case
    for seed in range(40):
        rng = np.random.default_rng(seed)
        recalls = []
        for _ in range(40):
            drawn = np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names))
            recalls.append(recall_written_out(vectors, names, pairs, drawn))
        found = bootstrap_recall(vectors, names, pairs, rounds=40, seed=seed)
        low, high = np.quantile(recalls, (0.025, 0.975))
        assert (found.low, found.high) == pytest.approx((low, high), abs=1e-12)
        assert found.value == relationship_recall(vectors, names, pairs)[KEY]


def test_with_all_pairs_known_recall_is_the_size_of_the_tails() -> None:
    # 25 genes have 300 pairs, and 5% of them is the whole number 15: the threshold is inclusive.
    vectors, names = (
        np.random.default_rng(0).standard_normal((25, 6)),
        [*"ABCDEFGHIJKLMNOPQRSTUVWXY"],
    )
    pairs = frame([(a, b) for a in names for b in names])
    assert relationship_recall(vectors, names, pairs)[KEY] == pytest.approx(0.1, abs=1e-12)
    assert bootstrap_recall(vectors, names, pairs, rounds=40).value == pytest.approx(0.1, abs=1e-12)


def test_a_constant_direction_scores_nothing() -> None:
    # All cosines are 1: one block of ties, in no tail, whatever the rounding of each.
    _, names, pairs = planted()
    vectors = np.outer(np.linspace(0.1, 3, len(names)), [0.3, 0.7, 0.1])
    found = bootstrap_recall(vectors, names, pairs, rounds=40)
    assert (found.value, found.low, found.high) == (0, 0, 0)


def test_interval_covers_chance_and_narrows_with_genes() -> None:
    wide = bootstrap_recall(*planted(complexes=15, signal=1), rounds=400)
    narrow = bootstrap_recall(*planted(complexes=60, signal=1), rounds=400)
    assert narrow.high - narrow.low < 0.75 * (wide.high - wide.low)
    chance = bootstrap_recall(*planted(complexes=60, signal=0), rounds=400)
    assert chance.low < 0.1 < chance.high
    assert narrow.low > chance.high


def test_seed_decides_the_interval() -> None:
    case = planted()
    assert bootstrap_recall(*case, rounds=60, seed=1) == bootstrap_recall(*case, rounds=60, seed=1)
    assert bootstrap_recall(*case, rounds=60, seed=1) != bootstrap_recall(*case, rounds=60, seed=2)


def test_paired_difference_of_a_map_with_itself_is_zero() -> None:
    vectors, names, pairs = planted()
    found = paired_difference([vectors], [3 * vectors, vectors], names, pairs, rounds=60)
    assert (found.value, found.low, found.high) == (0, 0, 0)
    assert not found.excludes_zero


def test_paired_difference_is_a_difference_of_means_on_one_sample() -> None:
    vectors, names, pairs = planted(complexes=40, signal=2)
    weak = [planted(complexes=40, signal=0.5, seed=seed)[0] for seed in (1, 2)]
    found = paired_difference([vectors], weak, names, pairs, rounds=300)
    scores = [relationship_recall(v, names, pairs)[KEY] for v in (vectors, *weak)]
    assert found.value == pytest.approx(scores[0] - np.mean(scores[1:]), abs=1e-12)
    assert found.low < found.value < found.high
    assert found.excludes_zero
    swapped = paired_difference(weak, [vectors], names, pairs, rounds=300)
    assert (swapped.value, swapped.low, swapped.high) == pytest.approx(
        (-found.value, -found.high, -found.low), abs=1e-12
    )


def test_pairing_narrows_the_interval() -> None:
    vectors, names, pairs = planted(complexes=40)
    nearly = vectors + 0.1 * np.random.default_rng(1).standard_normal(vectors.shape)
    alone = bootstrap_recall(vectors, names, pairs, rounds=300)
    paired = paired_difference([vectors], [nearly], names, pairs, rounds=300)
    assert paired.high - paired.low < 0.5 * (alone.high - alone.low)


def test_samples_without_known_pairs_are_drawn_again() -> None:
    # Ten pairs among five genes of forty: some samples hold fewer than two of the five.
    vectors, names, _ = planted(complexes=10)
    pairs = frame([(names[i], names[j]) for i in range(5) for j in range(i + 1, 5)])
    found = bootstrap_recall(vectors, names, pairs, rounds=400)
    assert 0 <= found.low <= found.high <= 1


# ---- large maps, of which only the tails are looked at


def streamed(monkeypatch: pytest.MonkeyPatch, sampled: int = 500) -> None:
    """As if a map of 20 genes were large, and float32 blocks of 13 rows."""
    monkeypatch.setattr(tails_module, "SORTED_PAIRS", 0)
    monkeypatch.setattr(tails_module, "_SAMPLED_PAIRS", sampled)
    monkeypatch.setattr(tails_module, "_BLOCK_ROWS", 13)


@pytest.mark.parametrize("sampled", [500, 3])
@pytest.mark.parametrize(
    "case", [planted(), planted(d=2), planted(complexes=6), tied(), hub()], ids=str
)
def test_streamed_tails_are_the_sorted_ones(
    case: tuple, sampled: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = [*EFAAR_TAILS, (0.0, 0.5), (0.3, 1.0), (0.01, 0.4), (0.6, 0.99)]
    expected = relationship_recall(*case, tails=many)
    streamed(monkeypatch, sampled)  # 3 pairs say little: brackets miss, and are widened
    assert relationship_recall(*case, tails=many) == expected


@pytest.mark.parametrize("case", EFAAR["maps"])
def test_streamed_maps_score_as_in_efaar(case: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    streamed(monkeypatch)
    test_maps_score_as_in_efaar(case)


def test_a_large_map_in_few_directions_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    streamed(monkeypatch)
    monkeypatch.setattr(tails_module, "_MOST_UNCLEAR", 50)
    _, names, pairs = planted()
    with pytest.raises(ValueError, match="as similar as the threshold"):
        relationship_recall(np.outer(np.arange(1.0, 49), [0.3, 0.7, 0.1]), names, pairs)


# ---- the null held


def test_fixed_null_is_the_recall_of_weighted_known_pairs() -> None:
    vectors, names, pairs = planted(complexes=20)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosine = unit @ unit.T
    low, high = np.quantile(
        cosine[np.triu_indices(80, 1)], (0.05, 0.95), method="closest_observation"
    )
    index = {name: row for row, name in enumerate(names)}
    first, second = (pairs[c].map(index).to_numpy() for c in pairs)
    hit = (cosine[first, second] < low) | (cosine[first, second] > high)
    rng = np.random.default_rng(3)
    samples = []
    for _ in range(60):
        drawn = np.bincount(rng.integers(80, size=80), minlength=80)
        weight = drawn[first] * drawn[second]
        samples.append((weight * hit).sum() / weight.sum())
    found = bootstrap_recall(vectors, names, pairs, rounds=60, seed=3, null="fixed")
    assert found.value == relationship_recall(vectors, names, pairs)[KEY]
    assert (found.low, found.high) == pytest.approx(
        tuple(np.quantile(samples, (0.025, 0.975))), abs=0.02
    )


def test_a_genome_cannot_be_resampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("phenoscale.maps.gene_bootstrap.SORTED_PAIRS", 1000)
    with pytest.raises(ValueError, match=r'48 genes have 1,128 pairs.*null="fixed"'):
        bootstrap_recall(*planted(), rounds=40)
    with pytest.raises(ValueError, match="null is 'none'"):
        bootstrap_recall(*planted(), rounds=40, null="none")  # type: ignore[arg-type]


@pytest.mark.parametrize("null", ["fixed", "resampled"])
def test_intervals_cover_the_truth(null: str) -> None:
    # The truth is the expected recall of the law that the maps are drawn from.
    maps = [planted(signal=0.7, seed=seed) for seed in range(100)]
    truth = np.mean([relationship_recall(*case)[KEY] for case in maps])
    found = [bootstrap_recall(*case, rounds=80, null=null) for case in maps]  # type: ignore[arg-type]
    assert sum(one.low <= truth <= one.high for one in found) >= 90


# ---- several databases, other similarities, fewer genes


def test_databases_share_samples_and_have_what_each_has_alone() -> None:
    vectors, names, pairs = planted(complexes=20)
    half = pairs.iloc[::2]
    both = recall_by_database(
        vectors, names, {"all": pairs, "half": half}, tails=((0.05, 0.95), (0.1, 0.9)), rounds=60
    )
    for name, known in {"all": pairs, "half": half}.items():
        found = both[name]
        assert found.recall[KEY] == bootstrap_recall(vectors, names, known, rounds=60)
        assert (
            found.recall["recall_0.1_0.9"].value
            == (relationship_recall(vectors, names, known, [(0.1, 0.9)])["recall_0.1_0.9"])
        )
        assert (found.num_pairs, found.num_entities) == (len(known), 80)
        assert found.chance == pytest.approx({KEY: 0.1, "recall_0.1_0.9": 0.2})
        assert found.null == "resampled"
    held = recall_by_database(vectors, names, {"all": pairs}, rounds=60, null="fixed")["all"]
    assert held.recall[KEY].value == both["all"].recall[KEY].value and held.null == "fixed"


def test_a_database_without_overlap_is_named() -> None:
    vectors, names, pairs = planted()
    other = frame([("A", "B")] * 12)
    with pytest.raises(ValueError, match="Other: None of 1 relationships"):
        recall_by_database(vectors, names, {"Mine": pairs, "Other": other})
    with pytest.raises(ValueError, match="No database"):
        recall_by_database(vectors, names, {})


def test_distances_score_maps_whose_directions_mean_nothing() -> None:
    vectors, names, pairs = planted(d=2, signal=30)
    far = vectors + 1000  # all cosines are nearly 1, as on a UMAP far from its origin
    near = relationship_recall(far, names, pairs, similarity="euclidean")
    assert near[KEY] > 0.5
    from sklearn.metrics.pairwise import euclidean_distances

    similarity = np.round(-euclidean_distances(vectors), 9)
    index = {name: row for row, name in enumerate(names)}
    known = [similarity[index[a], index[b]] for a, b in pairs.itertuples(index=False)]
    expected = tail_recall(similarity[np.triu_indices(len(names), 1)], known)
    assert near[KEY] == pytest.approx(expected, abs=1e-12)
    one_column = np.arange(48.0)[:, None]
    with pytest.raises(ValueError, match='one column.*similarity="euclidean"'):
        relationship_recall(one_column, names, pairs)
    assert relationship_recall(one_column, names, pairs, similarity="euclidean")[KEY] > 0.3
    with pytest.raises(ValueError, match="similarity is 'l1'"):
        relationship_recall(vectors, names, pairs, similarity="l1")  # type: ignore[arg-type]


def test_restricted_maps_have_their_own_null() -> None:
    vectors, names, pairs = planted(complexes=20)
    part, kept = restrict(vectors, names, [*names[:40], "absent"])
    assert kept == names[:40] and np.array_equal(part, vectors[:40])
    found = relationship_recall(part, kept, pairs)
    assert (found["num_entities"], found["num_pairs"]) == (40, 60)
    with pytest.raises(ValueError, match="None of the 1 genes to keep"):
        restrict(vectors, names, ["absent"])


# ---- refusals


def test_bad_maps_are_refused() -> None:
    vectors, names, pairs = planted()
    broken = vectors.copy()
    broken[2, :3] = np.nan
    for score in (relationship_recall, bootstrap_recall):
        with pytest.raises(ValueError, match=r"3 NaN or infinite values in 1 of 48 rows \(G002\)"):
            score(broken, names, pairs)
        with pytest.raises(ValueError, match="constant vector"):
            score(np.ones_like(vectors), names, pairs)
        with pytest.raises(ValueError, match="has 48 rows but its metadata have 47"):
            score(vectors, names[1:], pairs)
        with pytest.raises(ValueError, match="repeated are G000"):
            score(vectors, [names[0], *names[:-1]], pairs)
        with pytest.raises(ValueError, match="has 19 genes; recall needs at least 20"):
            score(vectors[:19], names[:19], pairs)
        with pytest.raises(ValueError, match="None of 72 relationships.*G000.*g000"):
            score(vectors, names, pairs.apply(lambda column: column.str.lower()))
        with pytest.raises(ValueError, match="9 of 9 relationships.*at least 10"):
            score(vectors, names, pairs.iloc[:9])
    vectors[4] = 0
    with pytest.raises(ValueError, match=r"1 genes have an all-zero vector \(G004\)"):
        relationship_recall(vectors, names, pairs)


def test_bad_settings_are_refused() -> None:
    vectors, names, pairs = planted()
    with pytest.raises(ValueError, match="rounds is 10"):
        bootstrap_recall(vectors, names, pairs, rounds=10)
    with pytest.raises(ValueError, match="0 <= lower < upper <= 1"):
        bootstrap_recall(vectors, names, pairs, tails=(0.95, 0.05))
    with pytest.raises(ValueError, match="each side needs at least one"):
        paired_difference([vectors], [], names, pairs)
    with pytest.raises(ValueError, match="both are required"):
        tail_recall([1.0, 2.0], [])


# ---- a real map


@pytest.mark.parametrize("database", EFAAR["depmap_gene_pca"])
def test_gene_dependencies_score_as_in_efaar(real_data: Path, database: str) -> None:
    table = pd.read_parquet(real_data / "depmap_gene_pca" / "gene_loadings.parquet")
    vectors = table.drop(columns="gene").to_numpy(dtype=np.float64)
    vectors = vectors / vectors.std(axis=0)
    pairs = load_relationships(real_data / "relationships" / f"{database}.txt")
    found = relationship_recall(vectors, table["gene"].tolist(), pairs, EFAAR_TAILS)
    expected = EFAAR["depmap_gene_pca"][database]
    assert found["num_pairs"] == expected["query_distribution_size"]
    for low, high in EFAAR_TAILS:
        key = f"recall_{low}_{high}"
        assert found[key] == pytest.approx(expected[key], abs=1e-9), key
    shuffled = np.random.default_rng(0).permutation(table["gene"]).tolist()
    assert relationship_recall(vectors, shuffled, pairs)[KEY] == pytest.approx(0.1, abs=0.02)
