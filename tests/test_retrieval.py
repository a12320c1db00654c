"""Retrieval against scikit-learn by hand, against copairs itself, and on planted truth."""

import importlib
import itertools

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score

from phenoscale.maps import ranking
from phenoscale.maps.rankable import num_pairs
from phenoscale.maps.ranking import Draws, Retrieval
from phenoscale.maps.retrieval import (
    gene_compound,
    phenotypic_activity,
    replicate_retrieval,
    shared_target,
    sister_guides,
)

pytest.importorskip("copairs")

FEW = Draws(null_size=500, rounds=100)


def screen(
    perturbations: int = 12, plates: int = 3, controls: int = 8, signal: float = 1.0, seed: int = 0
) -> tuple[np.ndarray, pd.DataFrame]:
    """Each perturbation once and `controls` control wells on each plate; plates shift all wells."""
    rng = np.random.default_rng(seed)
    names = [f"P{i:02d}" for i in range(perturbations)] + ["DMSO"] * controls
    directions = np.vstack([signal * rng.standard_normal((perturbations, 10)), np.zeros((1, 10))])
    rows, vectors = [], []
    for plate in range(plates):
        for position, name in enumerate(names):
            rows.append((f"plate{plate}", f"A{position:02d}", name, name == "DMSO"))
            vectors.append(directions[min(position, perturbations)] + rng.standard_normal(10))
    columns = ["plate", "well", "perturbation", "negative_control"]
    return np.array(vectors), pd.DataFrame(rows, columns=columns)


def compounds(signal: float = 2.0, seed: int = 0) -> tuple[np.ndarray, pd.DataFrame]:
    """Six genes by two guides each, and two compounds for each; one compound has two targets."""
    rng = np.random.default_rng(seed)
    genes = [f"G{i}" for i in range(6)]
    direction = {gene: signal * rng.standard_normal(12) for gene in genes}
    rows, vectors = [], []
    for gene in genes:
        for copy in range(2):
            rows.append((f"{gene}_{copy}", gene, f"{gene}_{copy}", None))
            vectors.append(direction[gene] + rng.standard_normal(12))
            rows.append((f"C{gene}{copy}", None, None, gene))
            vectors.append(direction[gene] + rng.standard_normal(12))
    table = pd.DataFrame(rows, columns=["perturbation", "gene", "guide", "target"])
    table.loc[table["perturbation"] == "CG00", "target"] = "G0|G1|UNSEEN"
    return np.array(vectors), table


def by_hand(vectors: np.ndarray, positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """Average precision (n,) by scikit-learn from masks (n, n); NaN without a positive."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosine = unit @ unit.T
    scores = np.full(len(vectors), np.nan)
    for row in range(len(vectors)):
        used = positive[row] | negative[row]
        if positive[row].any() and negative[row].any():
            scores[row] = average_precision_score(positive[row][used], cosine[row][used])
    return scores


def expected_of_random_pair(total: int) -> float:
    """Mean average precision of two positives over all their places among `total`."""
    places = itertools.combinations(range(1, total + 1), 2)
    return float(np.mean([(1 / first + 2 / second) / 2 for first, second in places]))


def same(column: pd.Series) -> np.ndarray:
    values = column.to_numpy()
    return (values[:, None] == values[None, :]) & ~np.eye(len(values), dtype=bool)


def agrees(found: Retrieval, entity: pd.Series, scores: np.ndarray) -> None:
    expected = pd.Series(scores).dropna().groupby(entity.to_numpy()[~np.isnan(scores)]).mean()
    table = found.table.set_index(found.table.columns[0])["mean_average_precision"]
    pd.testing.assert_series_equal(
        table, expected, check_names=False, check_index_type=False, rtol=1e-5
    )
    assert found.mean_average_precision.value == pytest.approx(expected.mean(), abs=1e-6)
    assert found.num_queries == np.count_nonzero(~np.isnan(scores))


# ---- by hand, through scikit-learn


@pytest.mark.parametrize("on", ["any", "same"])
def test_activity_by_hand(on: str) -> None:
    vectors, wells = screen(signal=0.7)
    treated, plate = ~wells["negative_control"].to_numpy(), same(wells["plate"])
    positive = same(wells["perturbation"]) & treated[:, None]
    negative = treated[:, None] & ~treated[None, :] & (plate if on == "same" else True)
    found = phenotypic_activity(vectors, wells, negatives_on=on, draws=FEW)
    agrees(found, wells["perturbation"], by_hand(vectors, positive, negative))
    assert (found.num_perturbations, found.num_unpaired) == (12, 0)
    total = 2 + (8 if on == "same" else 24)
    assert found.chance == pytest.approx(expected_of_random_pair(total), abs=1e-12)


@pytest.mark.parametrize("negatives_on", ["same", "other", "any"])
def test_replicates_by_hand(negatives_on: str) -> None:
    vectors, wells = screen(signal=0.7)
    treated, plate = ~wells["negative_control"].to_numpy(), same(wells["plate"])
    both = treated[:, None] & treated[None, :]
    other = ~plate & ~np.eye(len(wells), dtype=bool)
    where = {"same": plate, "other": other, "any": np.ones_like(plate)}[negatives_on]
    different = ~same(wells["perturbation"]) & ~np.eye(len(wells), dtype=bool)
    found = replicate_retrieval(vectors, wells, negatives_on=negatives_on, draws=FEW)
    scores = by_hand(vectors, same(wells["perturbation"]) & both & other, different & both & where)
    agrees(found, wells["perturbation"], scores)
    assert found.num_left_out == 24


def test_sister_guides_by_hand() -> None:
    vectors, wells = compounds(signal=0.7)
    genetic = wells["gene"].notna().to_numpy()
    both = genetic[:, None] & genetic[None, :]
    gene = same(wells["gene"].fillna("-"))
    different = both & ~gene & ~np.eye(len(wells), dtype=bool)
    found = sister_guides(vectors, wells, draws=FEW)
    agrees(found, wells["gene"], by_hand(vectors, gene & both, different))
    assert (found.num_perturbations, found.num_left_out) == (6, 12)


@pytest.mark.parametrize("absolute", [False, True])
def test_targets_and_genes_by_hand(absolute: bool) -> None:
    vectors, wells = compounds(signal=0.7)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosine = np.abs(unit @ unit.T) if absolute else unit @ unit.T
    genetic = wells["gene"].notna().to_numpy()
    sets = [set(str(name).split("|")) for name in wells["gene"].fillna(wells["target"])]
    for task, kinds in ((shared_target, "compounds"), (gene_compound, "across")):
        scores: dict[str, list[float]] = {}
        for row, names in enumerate(sets):
            if kinds == "compounds":
                others = [j for j in range(len(sets)) if not genetic[j] and j != row]
            else:
                others = [j for j in range(len(sets)) if genetic[j] != genetic[row]]
            if kinds == "compounds" and genetic[row]:
                continue
            for name in names:
                used = [j for j in others if name in sets[j] or not names & sets[j]]
                truth = [name in sets[j] for j in used]
                if any(truth):
                    score = average_precision_score(truth, cosine[row, used])
                    scores.setdefault(name, []).append(float(score))
        found = task(vectors, wells, absolute=absolute, draws=FEW)
        expected = {name: np.mean(values) for name, values in sorted(scores.items())}
        assert found.table["label"].tolist() == list(expected)
        np.testing.assert_allclose(
            found.table["mean_average_precision"], list(expected.values()), rtol=1e-5
        )
        assert found.num_queries == sum(len(values) for values in scores.values())


# ---- against copairs called directly


def test_equals_copairs_called_directly(tmp_path: object) -> None:
    copairs_map = importlib.import_module("copairs.map")
    vectors, wells = screen(perturbations=20, signal=1.2)
    meta = wells.assign(reference=np.where(wells["negative_control"], np.arange(len(wells)), -1))
    scores = copairs_map.average_precision(
        meta, vectors, ["perturbation", "reference"], [], ["plate"], ["negative_control"],
        progress_bar=False,
    )  # fmt: skip
    direct = copairs_map.mean_average_precision(
        scores[~scores["negative_control"]], ["perturbation"], null_size=500, threshold=0.05,
        seed=0, progress_bar=False, cache_dir=tmp_path,
    )  # fmt: skip
    found = phenotypic_activity(vectors, wells, draws=FEW)
    for ours, theirs in (
        ("mean_average_precision", "mean_average_precision"),
        ("p_value", "p_value"),
        ("corrected_p_value", "corrected_p_value"),
        ("retrieved", "below_corrected_p"),
    ):
        np.testing.assert_array_equal(found.table[ours], direct[theirs], err_msg=ours)
    assert found.fraction_retrieved == direct["below_corrected_p"].mean()
    assert 0.1 < found.fraction_retrieved < 1


def test_a_filled_cache_in_the_home_folder_changes_nothing(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    vectors, wells = screen(perturbations=20, signal=0.8)
    before = phenotypic_activity(vectors, wells, draws=FEW)
    # copairs itself would now keep a null for the same pair counts, from another place in its list.
    compute = importlib.import_module("copairs.compute")
    compute.get_null_dists(np.array([[1, 5], [2, 10]]), 500, 0, progress_bar=False)
    after = phenotypic_activity(vectors, wells, draws=FEW)
    pd.testing.assert_frame_equal(before.table, after.table)


# ---- planted truth and properties


def test_planted_signal_is_found_and_noise_is_not() -> None:
    strong, none = screen(signal=3), screen(perturbations=60, signal=0)
    for task in (phenotypic_activity, replicate_retrieval):
        found = task(*strong, draws=FEW)
        assert found.mean_average_precision.low > 0.8
        assert found.fraction_retrieved == 1
        found = task(*none, draws=FEW)
        assert found.mean_average_precision.low < found.chance < found.mean_average_precision.high
        assert found.fraction_retrieved < 0.1
    vectors, wells = compounds(signal=3)
    for task in (sister_guides, shared_target, gene_compound):
        assert task(vectors, wells, draws=FEW).mean_average_precision.low > 0.7


def test_opposite_phenotypes_count_only_as_absolute() -> None:
    vectors, wells = compounds(signal=3)
    vectors[wells["gene"].isna().to_numpy()] *= -1
    signed = gene_compound(vectors, wells, draws=FEW).mean_average_precision
    assert signed.value < 0.4
    assert gene_compound(vectors, wells, absolute=True, draws=FEW).mean_average_precision.low > 0.7


def test_order_scale_and_repeated_plate_names_do_not_matter() -> None:
    vectors, wells = screen(signal=0.8)
    found = phenotypic_activity(vectors, wells, draws=FEW)
    order = np.random.default_rng(1).permutation(len(wells))
    scale = np.random.default_rng(2).uniform(0.1, 10, size=(len(wells), 1))
    shuffled = phenotypic_activity((scale * vectors)[order], wells.iloc[order], draws=FEW)
    pd.testing.assert_frame_equal(found.table, shuffled.table)
    # The same plates, named alike in different experimental batches.
    again = wells.assign(experimental_batch=wells["plate"], plate="1")
    pd.testing.assert_frame_equal(found.table, phenotypic_activity(vectors, again, draws=FEW).table)


def test_the_interval_is_over_perturbations() -> None:
    narrow = phenotypic_activity(*screen(perturbations=80, signal=0.7), draws=FEW)
    wide = phenotypic_activity(*screen(perturbations=10, signal=0.7), draws=FEW)
    scores = narrow.table["mean_average_precision"]
    half = 1.96 * scores.std() / np.sqrt(len(scores))
    interval = narrow.mean_average_precision
    assert (interval.high - interval.low) / 2 == pytest.approx(half, rel=0.3)
    spread = wide.mean_average_precision.high - wide.mean_average_precision.low
    assert spread > 1.5 * (interval.high - interval.low)


def test_rows_without_partners_are_counted() -> None:
    vectors, wells = screen()
    wells.loc[0, "perturbation"] = "alone"
    # Plate 2 loses its controls: its wells have no negatives on the same plate.
    kept = ~((wells["plate"] == "plate2") & wells["negative_control"]).to_numpy()
    found = phenotypic_activity(vectors[kept], wells[kept], draws=FEW)
    assert found.num_unpaired == 12 + 1
    assert found.num_queries == 2 * 12 - 1
    assert "alone" not in set(found.table["perturbation"])


def test_pairs_are_counted_as_listed() -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.integers(0, 4, size=(40, 3)), columns=list("abc"))
    values = frame.to_numpy()
    equal = values[:, None, :] == values[None, :, :]
    upper = np.triu(np.ones((40, 40), dtype=bool), 1)
    assert num_pairs(frame, "a", "bc") == (upper & equal[..., 0] & ~equal[..., 1:].any(-1)).sum()
    assert num_pairs(frame, [], "c") == (upper & ~equal[..., 2]).sum()
    assert num_pairs(frame, "ab", []) == (upper & equal[..., :2].all(-1)).sum()


# ---- refusals


def test_bad_tables_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, wells = screen()
    with pytest.raises(ValueError, match=r"lack the columns \['plate'\]"):
        replicate_retrieval(vectors, wells.drop(columns="plate"))
    with pytest.raises(ValueError, match=r"\['perturbation'\] have empty cells in 1 wells"):
        replicate_retrieval(vectors, wells.assign(perturbation=[None, *wells["perturbation"][1:]]))
    with pytest.raises(ValueError, match="None of the 60 wells is a negative control"):
        phenotypic_activity(vectors, wells.assign(negative_control=False))
    with pytest.raises(ValueError, match="'any', 'same' or 'other'"):
        replicate_retrieval(vectors, wells, negatives_on="all")
    with pytest.raises(ValueError, match="has 59 rows but its metadata have 60"):
        phenotypic_activity(vectors[1:], wells)
    with pytest.raises(ValueError, match="replicate_retrieval: Unable to find positive pairs"):
        replicate_retrieval(vectors, wells.assign(plate="one"))
    with pytest.raises(ValueError, match="1 rows have an all-zero vector"):
        phenotypic_activity(np.where(np.arange(60)[:, None] == 3, 0.0, vectors), wells)
    with pytest.raises(ValueError, match="point nearly the same way.*Align on negative controls"):
        phenotypic_activity(100 + 0.1 * vectors, wells)
    broken = vectors.copy()
    broken[5, 0] = np.nan
    with pytest.raises(ValueError, match="1 NaN or infinite values"):
        phenotypic_activity(broken, wells)
    targets = wells.assign(target=["A|B" if i % 2 else "A" for i in range(60)])
    with pytest.raises(ValueError, match="share a label with every row"):
        shared_target(vectors, targets)
    monkeypatch.setattr(ranking, "MAX_NULL", 5000)
    with pytest.raises(ValueError, match="A query has 10 pairs and null_size is 10000"):
        phenotypic_activity(vectors, wells)
    monkeypatch.setattr("phenoscale.maps.rankable.MAX_PAIRS", 300)
    with pytest.raises(ValueError, match=r"The 60 rows make 324 pairs to rank; at most 300"):
        phenotypic_activity(vectors, wells)


def test_without_copairs_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str, *_: object) -> object:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(ValueError, match=r"pip install 'phenoscale\[maps\]'"):
        phenotypic_activity(*screen(), draws=FEW)
