from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import mannwhitneyu

from phenoscale.maps.proximity import correct_proximity_bias, load_arms, proximity_bias


def biased_map(
    strength: float, *, genes: int = 320, num_arms: int = 4, seed: int = 0
) -> tuple[np.ndarray, list[str], pd.DataFrame]:
    """Vectors of genes that share a vector with their arm; four in ten are not expressed."""
    rng = np.random.default_rng(seed)
    arm = np.arange(genes) % num_arms
    expressed = rng.random(genes) > 0.4
    vectors = rng.standard_normal((genes, 12)) + strength * rng.standard_normal((num_arms, 12))[arm]
    # Expressed genes have effects of their own, in pathways of ten across arms.
    pathway = np.arange(genes) // 10
    vectors += 2 * rng.standard_normal((pathway.max() + 1, 12))[pathway] * expressed[:, None]
    names = [f"G{i:03}" for i in range(genes)]
    arms = pd.DataFrame({"gene": names, "arm": [f"{a + 1}p" for a in arm], "expressed": expressed})
    return vectors, names, arms


def every_pair(vectors: np.ndarray, arm: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    one, two = np.triu_indices(len(unit), k=1)
    return (unit @ unit.T)[one, two].round(12), one, two


def test_correction_and_probability_are_those_of_the_papers_code() -> None:
    case = json.loads((Path(__file__).parent / "data" / "efaar_signal.json").read_text())["arms"]
    names = [f"G{i}" for i in range(80)]
    arms = pd.DataFrame({"gene": names, "arm": case["arm"], "expressed": case["expressed"]})
    result = correct_proximity_bias(case["vectors"], names, arms)
    assert result.arms_left == ("chr2p",)
    np.testing.assert_allclose(result.vectors, case["corrected"], atol=1e-12)
    found = proximity_bias(case["vectors"], names, arms, shuffles=1)
    assert found.probability == pytest.approx(case["probability"], abs=1e-9)
    assert dict(zip(found.arms["arm"], found.arms["probability"], strict=True)) == pytest.approx(
        case["by_arm"], abs=1e-9
    )


def test_probability_is_the_mann_whitney_effect_of_all_pairs() -> None:
    vectors, names, arms = biased_map(0.7, genes=60)
    found = proximity_bias(vectors, names, arms, shuffles=5)
    arm = arms["arm"].to_numpy()
    cosines, one, two = every_pair(vectors, arm)
    within = arm[one] == arm[two]

    def effect(chosen: np.ndarray, others: np.ndarray) -> float:
        pairs = len(chosen) * len(others)
        return float(mannwhitneyu(chosen, others, method="asymptotic").statistic) / pairs

    assert found.exact and found.num_within == within.sum() == 4 * 15 * 14 // 2
    assert found.probability == pytest.approx(effect(cosines[within], cosines[~within]), abs=1e-12)
    assert found.mean_within == pytest.approx(cosines[within].mean())
    assert found.mean_between == pytest.approx(cosines[~within].mean())
    for row in found.arms.itertuples():
        own = (arm[one] == row.arm) & (arm[two] == row.arm)
        touching = ((arm[one] == row.arm) | (arm[two] == row.arm)) & ~own
        assert (row.num_genes, row.num_within, row.num_between) == (15, 105, touching.sum())
        assert row.probability == pytest.approx(effect(cosines[own], cosines[touching]), abs=1e-12)


def test_the_correction_takes_off_what_was_planted_and_leaves_biology() -> None:
    vectors, names, arms = biased_map(1.5)
    unbiased = biased_map(0.0)[0]
    result = correct_proximity_bias(vectors, names, arms)
    assert result.arms["corrected"].all() and not result.arms_left
    expressed = arms["expressed"].to_numpy()
    chosen = [name for name, keep in zip(names, expressed, strict=True) if keep]
    before, after, never = (
        proximity_bias(x[expressed], chosen, arms, shuffles=50)
        for x in (vectors, result.vectors, unbiased)
    )
    assert before.probability > 0.6 and before.p_value == 1 / 51
    assert after.probability == pytest.approx(never.probability, abs=0.02)
    assert abs(after.probability - 0.5) < 0.03

    def pathway_gap(x: np.ndarray) -> float:
        cosines, one, two = every_pair(x, arms["arm"].to_numpy())
        both = expressed[one] & expressed[two]
        same = one // 10 == two // 10
        return float(cosines[both & same].mean() - cosines[both & ~same].mean())

    # The arm's vector hides part of the pathways; without it they are as clear as without bias.
    assert pathway_gap(vectors) < pathway_gap(unbiased) - 0.1
    assert pathway_gap(result.vectors) == pytest.approx(pathway_gap(unbiased), abs=0.05)


def test_the_correction_is_the_mean_of_the_unexpressed() -> None:
    vectors, names, arms = biased_map(1.0)
    # Arm 2p keeps 20 unexpressed genes, one too few; the last gene is on no arm.
    on_second = np.flatnonzero((arms["arm"] == "2p") & ~arms["expressed"])
    arms.loc[on_second[20:], "expressed"] = True
    given = arms.iloc[:-1].sample(frac=1, random_state=0)
    result = correct_proximity_bias(vectors, names, given)
    assert result.arms_left == ("2p",) and result.genes_without_arm == (names[-1],)
    for row in result.arms.itertuples():
        own = (arms["arm"] == row.arm).to_numpy() & (np.arange(len(arms)) < len(arms) - 1)
        unexpressed = own & ~arms["expressed"].to_numpy()
        assert (row.num_genes, row.num_unexpressed) == (own.sum(), unexpressed.sum())
        expected = vectors[own]
        if row.arm != "2p":
            expected = expected - vectors[unexpressed].mean(axis=0)
        np.testing.assert_allclose(result.vectors[own], expected, atol=1e-12)
    np.testing.assert_array_equal(result.vectors[-1], vectors[-1])
    lower = correct_proximity_bias(vectors, names, given, min_unexpressed=20)
    assert not lower.arms_left


def test_without_bias_p_values_are_not_small() -> None:
    # Genes' own vectors make pairs that share a gene dependent; shuffling genes allows for it.
    p_values = [
        proximity_bias(*biased_map(0.0, genes=80, seed=seed), shuffles=99).p_value
        for seed in range(40)
    ]
    assert 0.3 < np.mean(p_values) < 0.7 and np.mean(np.array(p_values) <= 0.1) < 0.25


def test_many_genes_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, names, arms = biased_map(1.0)
    exact = proximity_bias(vectors, names, arms, shuffles=1)
    monkeypatch.setattr("phenoscale.maps.proximity.MAX_PAIRS", 20_000)
    drawn = proximity_bias(vectors, names, arms, shuffles=1)
    assert not drawn.exact and drawn.num_within + drawn.num_between == 20_000
    assert drawn.probability == pytest.approx(exact.probability, abs=0.015)
    assert drawn.mean_within == pytest.approx(exact.mean_within, abs=0.03)
    again = proximity_bias(vectors, names, arms, shuffles=1)
    assert again.probability == drawn.probability


def test_real_map_with_shuffled_arms_has_no_bias(
    real_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("phenoscale.maps.proximity.MAX_PAIRS", 200_000)
    table = pd.read_parquet(real_data / "depmap_gene_pca" / "gene_loadings.parquet")
    names = table["gene"].tolist()
    vectors = table.drop(columns="gene").to_numpy()
    rng = np.random.default_rng(0)
    arms = pd.DataFrame({"gene": names, "arm": rng.choice([f"arm{i}" for i in range(39)], 2732)})
    found = proximity_bias(vectors, names, arms, shuffles=20)
    assert not found.exact and len(found.arms) == 39
    assert found.probability == pytest.approx(0.5, abs=0.02) and found.p_value > 1 / 21


def test_arms_are_read(tmp_path: Path) -> None:
    path = tmp_path / "arms.csv"
    path.write_text("gene,arm,band,expressed\nNA,1p,x,True\nB,1q,y,0\nB,1q,z,false\n")
    table = load_arms(path)
    assert table.to_dict("list") == {
        "gene": ["NA", "B"],
        "arm": ["1p", "1q"],
        "expressed": [True, False],
    }
    assert table["expressed"].dtype == bool
    path.write_text("gene,arm\nA,1p\n")
    assert list(load_arms(path).columns) == ["gene", "arm"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gene,chromosome\nA,1\n", "gene and arm are required"),
        ("gene,arm\nA,1p\nA,1q\n", r"gives 1 genes different arms or expression \(A\)"),
        ("gene,arm\nA,\n", "1 of them with an empty cell"),
        ("gene,arm\n", "0 rows"),
        ("gene,arm,expressed\nA,1p,maybe\n", "maybe in expressed"),
    ],
)
def test_refusals_of_tables(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "arms.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_arms(path)
    with pytest.raises(ValueError, match="There is no table of arms"):
        load_arms(tmp_path / "other.csv")


def test_refusals_of_maps() -> None:
    vectors, names, arms = biased_map(1.0, genes=40)
    with pytest.raises(ValueError, match="the correction needs expressed"):
        correct_proximity_bias(vectors, names, arms.drop(columns="expressed"))
    with pytest.raises(ValueError, match="None of 4 arms has 21 unexpressed genes"):
        correct_proximity_bias(vectors, names, arms)
    with pytest.raises(ValueError, match="G000 stand in the map more than once"):
        proximity_bias(vectors, [names[0], names[0], *names[2:]], arms)
    with pytest.raises(ValueError, match="None of 40 genes in the table of arms is in the map"):
        proximity_bias(vectors, [f"x{name}" for name in names], arms)
    with pytest.raises(ValueError, match="40 genes on 1 arms give 780 pairs within an arm and 0"):
        proximity_bias(vectors, names, arms.assign(arm="1p"))
    with pytest.raises(ValueError, match=r"NaN or infinite values in 1 of 40 rows \(G003\)"):
        broken = vectors.copy()
        broken[3] = np.nan
        proximity_bias(broken, names, arms)
