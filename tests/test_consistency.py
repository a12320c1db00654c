from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import false_discovery_control, kstest

from phenoscale.maps.align import PcaCenterScale
from phenoscale.maps.consistency import (
    replicate_consistency,
    signal_consistency,
    signal_magnitude,
    significant_share,
)
from phenoscale.maps.replicate_pairs import pairs_across, random_pairs
from phenoscale.maps.signal_null import energy_distance, mean_pairwise_cosine

EFAAR = json.loads((Path(__file__).parent / "data" / "efaar_signal.json").read_text())


@pytest.mark.parametrize("case", EFAAR["signal"], ids=["normal", "ties"])
@pytest.mark.parametrize("which", ["consistency", "magnitude"])
def test_signal_is_efaars(case: dict, which: str) -> None:
    names = np.array(case["names"])
    signal = {"consistency": signal_consistency, "magnitude": signal_magnitude}[which]
    found = signal(
        case["vectors"], names, null_perturbations=case["null"], controls=names == "control"
    )
    expected = case["expected"][which]
    assert found.table["perturbation"].tolist() == sorted(expected)
    figures = np.array([expected[name] for name in sorted(expected)], dtype=np.float64)
    np.testing.assert_allclose(found.table[["value", "p_value"]], figures, atol=1e-9, rtol=0)
    few = int(np.isnan(figures[:, 0]).sum())
    assert found.num_too_few == few > 0
    assert not found.matched and len(found.null) == 9
    # The valid p-value is never below EFAAR's where that counts ties, and never 0.
    if which == "consistency":
        tested = found.table.dropna()
        assert (tested["p_value_plus_one"] >= tested["p_value"]).all()
        np.testing.assert_allclose(
            tested["p_value_plus_one"], (tested["p_value"] * 9 + 1) / 10, rtol=1e-12
        )


def test_efaar_counts_replicates_as_a_cluster() -> None:
    [case] = EFAAR["clusters"]
    vectors, count = np.array(case["vectors"]), case["num_replicates"]
    names = ["A"] * count + ["B"]
    found = replicate_consistency(vectors, names, [f"b{i}" for i in range(len(vectors))])
    assert found.num_random_pairs == count
    assert found.num_same_pairs == found.num_same_pairs_in_all == count * (count - 1) // 2
    figures = [found.mean_same, found.mean_random, found.ks_statistic, found.ks_p_value]
    np.testing.assert_allclose(figures, list(case["expected"].values()), atol=1e-9)
    assert (found.num_perturbations, found.num_without_pair) == (1, 1)


@settings(max_examples=30)
@given(st.integers(1, 40), st.integers(1, 6), st.integers(0, 1000))
def test_mean_pairwise_cosine_is_that_of_the_matrix(rows: int, groups: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    unit = rng.standard_normal((rows, 3))
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    group = rng.integers(groups, size=rows)
    found = mean_pairwise_cosine(unit)(np.arange(rows), group, groups)
    for number in range(groups):
        own = unit[group == number]
        if len(own) < 2:
            assert np.isnan(found[number])
        else:
            expected = (own @ own.T)[np.tril_indices(len(own), k=-1)].mean()
            assert found[number] == pytest.approx(expected, abs=1e-11)


def test_energy_distance_is_plain_where_no_distance_is_clamped() -> None:
    rng = np.random.default_rng(0)
    # Far from the origin, where squares lose digits unless the points are centred.
    wells = rng.standard_normal((60, 7)) + 1e5
    distance = np.linalg.norm(wells[:, None] - wells[None], axis=2)
    one, two = np.arange(12), np.arange(12, 60)
    within = [distance[np.ix_(x, x)].mean() + 1e-4 / len(x) for x in (one, two)]
    expected = 2 * distance[np.ix_(one, two)].mean() - sum(within)
    found = energy_distance(wells, two)(one, np.zeros(12, dtype=int), 1)
    assert found == pytest.approx([expected], abs=1e-8)


def screen(
    strength: float, *, genes: int = 40, replicates: int = 6, controls: int = 600, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Vectors and names: the first half of the genes has an effect, the rest none."""
    rng = np.random.default_rng(seed)
    effects = rng.standard_normal((genes, 8)) * strength
    effects[genes // 2 :] = 0
    names = np.repeat([f"G{i:02}" for i in range(genes)], replicates)
    vectors = np.repeat(effects, replicates, axis=0) + rng.standard_normal((len(names), 8))
    names = np.append(names, ["control"] * controls)
    return np.vstack([vectors, rng.standard_normal((controls, 8))]), names


@pytest.mark.parametrize("signal", [signal_consistency, signal_magnitude])
def test_pseudo_perturbations_find_what_was_planted(signal: object) -> None:
    vectors, names = screen(2.0)
    found = signal(vectors, names, controls=names == "control", draws=400, seed=1)  # type: ignore[operator]
    assert found.matched and set(found.null["num_replicates"]) == {6} and len(found.null) == 400
    active, inert = found.table[:20], found.table[20:]
    assert significant_share(active["p_value_plus_one"]).share == 1
    # Without effect p-values are uniform: neither all small nor all large.
    assert kstest(inert["p_value_plus_one"], "uniform").pvalue > 0.01
    again = signal(vectors, names, controls=names == "control", draws=400, seed=1)  # type: ignore[operator]
    pd.testing.assert_frame_equal(found.table, again.table)


def test_the_null_is_matched_in_replicates() -> None:
    vectors, names = screen(0.0, genes=30)
    # Without effect, a gene of 2 replicates varies more than one of 6: one null would flag it.
    kept = np.ones(len(names), dtype=bool)
    kept[: 15 * 6] = np.tile([True, True, False, False, False, False], 15)
    found = signal_consistency(vectors[kept], names[kept], controls=(names == "control")[kept])
    spread = found.null.groupby("num_replicates")["value"].std()
    assert spread[2] > 2 * spread[6]
    for row in found.table.itertuples():
        own = found.null.loc[found.null["num_replicates"] == row.num_replicates, "value"]
        assert row.p_value == pytest.approx((own >= row.value).mean(), abs=1e-12)


def test_controls_are_halved_so_that_no_well_meets_itself() -> None:
    means = []
    for seed in range(30):
        vectors, names = screen(0.0, controls=24, genes=20, seed=seed)
        found = signal_magnitude(vectors, names, names == "control", draws=40)
        means.append((found.null["value"].mean(), found.table["value"].mean()))
    # Compared with themselves, pseudo-perturbations would be nearer than genes without effect.
    null, genes = np.mean(means, axis=0)
    assert null == pytest.approx(genes, rel=0.05)


def test_controls_are_drawn_by_seed() -> None:
    vectors, names = screen(1.0)
    null, control = ["G30", "G31", "G32"], names == "control"
    one, same, other = (
        signal_magnitude(vectors, names, control, null, max_controls=50, seed=seed).table
        for seed in (0, 0, 1)
    )
    pd.testing.assert_frame_equal(one, same)
    assert not one.equals(other)


def test_null_perturbations_that_are_absent_or_alone_are_told() -> None:
    vectors, names = screen(1.0, genes=6)
    kept = np.ones(len(names), dtype=bool)
    kept[5 * 6 + 1 : 6 * 6] = False  # G05 keeps one replicate
    found = signal_consistency(
        vectors[kept], names[kept], ["G04", "G05", "X"], controls=(names == "control")[kept]
    )
    assert (found.num_null_absent, found.num_null_too_few, found.num_too_few) == (1, 1, 0)
    assert found.null["perturbation"].tolist() == ["G04"]
    assert found.table["perturbation"].tolist() == ["G00", "G01", "G02", "G03"]
    with pytest.raises(ValueError, match=r"None of 2 null perturbations .* 1 have too few"):
        signal_consistency(vectors[kept], names[kept], ["G05", "X"])


def test_significant_share_is_benjamini_hochberg() -> None:
    p_values = np.array([0.001, 0.012, 0.03, np.nan, 0.04, 0.6])
    found = significant_share(p_values)
    adjusted = false_discovery_control(p_values[~np.isnan(p_values)])
    assert found.num_significant == (adjusted <= 0.05).sum() == 4
    assert (found.num_tested, found.num_missing, found.share) == (5, 1, 0.8)
    assert significant_share([0.05, 0.05], level=0.05).num_significant == 2
    with pytest.raises(ValueError, match="None of 2 p-values"):
        significant_share([np.nan, np.nan])
    with pytest.raises(ValueError, match="all lie in 0 to 1"):
        significant_share([0.2, 1.2])


@settings(max_examples=40)
@given(st.integers(2, 30), st.integers(1, 4), st.integers(1, 4), st.integers(0, 1000))
def test_pairs_are_those_of_a_double_loop(rows: int, labels: int, groups: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    label, group = rng.integers(labels, size=rows), rng.integers(groups, size=rows)
    every = [(i, j) for i in range(rows) for j in range(i)]
    same = {(i, j) for i, j in every if label[i] == label[j] and group[i] != group[j]}
    first, second, total = pairs_across(label, group, 10_000, rng)
    found = {(max(i, j), min(i, j)) for i, j in zip(first, second, strict=True)}
    assert found == same and len(first) == total == len(same)
    drawn = pairs_across(label, group, 3, rng)
    assert len(drawn[0]) == min(3, total) and drawn[2] == total
    assert {(max(i, j), min(i, j)) for i, j in zip(*drawn[:2], strict=True)} <= same
    first, second = random_pairs([label, group], 10_000, rng)
    found = {(max(i, j), min(i, j)) for i, j in zip(first, second, strict=True)}
    assert found == {(i, j) for i, j in every if label[i] != label[j] and group[i] != group[j]}


def test_a_screen_of_many_wells_needs_no_matrix() -> None:
    rng = np.random.default_rng(0)
    wells, genes, batches = 100_000, 20_000, 5
    label, group = np.arange(wells) % genes, np.arange(wells) // genes % batches
    vectors = rng.standard_normal((genes, 8))[label] + rng.standard_normal((wells, 8))
    tracemalloc.start()
    found = replicate_consistency(vectors, label, group, num_pairs=50_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200e6  # a matrix of float32 would be 40 GB
    assert found.num_same_pairs_in_all == genes * batches * (batches - 1) // 2
    assert found.num_same_pairs == found.num_random_pairs == 50_000
    # Half the variance is the gene's: the mean cosine of replicates is near 1/2.
    assert found.mean_same == pytest.approx(0.47, abs=0.05)
    assert found.mean_random == pytest.approx(0, abs=0.01)
    assert found.ks_statistic > 0.4
    shuffled = replicate_consistency(vectors, rng.permutation(label), group, num_pairs=50_000)
    assert shuffled.ks_statistic < 0.02 and shuffled.ks_p_value > 1e-3


def test_random_pairs_of_many_wells_differ_and_are_even() -> None:
    rng = np.random.default_rng(0)
    label, group = rng.integers(3, size=4000), rng.integers(2, size=4000)
    first, second = random_pairs([label, group], 30_000, rng)
    assert len(first) == 30_000
    assert (label[first] != label[second]).all() and (group[first] != group[second]).all()
    assert np.bincount(first // 1000).min() > 7000
    assert random_pairs([np.zeros(4000), group], 100, rng)[0].size == 0


def test_real_replicates_agree_across_plates(real_data: Path) -> None:
    wells = pd.read_parquet(real_data / "hd2013sgi_rnai" / "wells.parquet")
    features = wells.filter(like="f_").to_numpy()
    control = (wells["well_type"] == "negctrl").to_numpy()
    plate = wells["plate"].to_numpy()
    aligned = PcaCenterScale().fit(features, plate, control).transform(features, plate)
    # One query is enough: the same siRNA on its plates, and other siRNAs on them.
    chosen = (wells["query_gene"] == wells["query_gene"].iloc[0]).to_numpy() & ~control
    name = (wells["target_gene"] + "/" + wells["target_sirna"].astype(str))[chosen]
    name += "/" + wells["query_sirna"][chosen].astype(str)
    found = replicate_consistency(aligned[chosen], name, plate[chosen])
    assert found.ks_statistic > 0.3 and found.mean_same > found.mean_random + 0.2
    control_name = np.where(control, "control", wells["target_gene"])
    signal = signal_consistency(
        aligned[control | chosen],
        control_name[control | chosen],
        controls=control[control | chosen],
        draws=500,
    )
    share = significant_share(signal.table["p_value_plus_one"])
    assert share.num_tested == 282 and share.share > 0.3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vectors": np.full((4, 2), np.nan)}, "NaN or infinite"),
        ({"vectors": np.zeros((4, 2))}, "4 of 4 vectors are all zero"),
        ({"perturbations": ["a", None, "b", "b"]}, "perturbations is empty in 1 of 4"),
        ({"groups": ["p", "p", "p", "p"]}, "0 pairs of one perturbation .* and 0 of diff"),
        ({"perturbations": ["a", "a", "a", "a"]}, "4 pairs of one perturbation .* and 0 of diff"),
        ({"num_pairs": 1}, "at least 2 of each"),
        ({"groups": ["p", "q"]}, r"groups has shape \(2,\)"),
    ],
)
def test_refusals_of_replicates(change: dict, message: str) -> None:
    given_ = {
        "vectors": np.eye(4, 2) + 1,
        "perturbations": ["a", "a", "b", "b"],
        "groups": ["p", "q", "p", "q"],
    }
    with pytest.raises(ValueError, match=message):
        replicate_consistency(**(given_ | change))


def test_refusals_of_signal() -> None:
    vectors, names = screen(1.0, genes=2, controls=5)
    control = names == "control"
    with pytest.raises(ValueError, match="Neither null_perturbations nor negative controls"):
        signal_consistency(vectors, names)
    with pytest.raises(ValueError, match="6 replicates and pseudo-perturbations are drawn from 5"):
        signal_consistency(vectors, names, controls=control)
    with pytest.raises(ValueError, match="drawn from 2"):
        signal_magnitude(vectors, names, control)
    with pytest.raises(ValueError, match="0 wells are negative controls"):
        signal_magnitude(vectors, names, np.zeros(len(names), dtype=bool), ["G00"])
    with pytest.raises(ValueError, match="one bool for each"):
        signal_consistency(vectors, names, controls=control.astype(int))
    with pytest.raises(ValueError, match="No perturbation is left to test"):
        signal_consistency(vectors, names, ["G00", "G01"], controls=control)
