from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.preprocessing import StandardScaler

from phenoscale.maps.probes import linear_probe, paired_probe_difference


def split(signal: float = 1.0, d: int = 4, groups: int = 12, seed: int = 0) -> dict[str, Any]:
    """Three classes of unequal size on plates; each plate has its own offset."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(["a", "b", "c"], p=[0.6, 0.3, 0.1], size=60 * groups)
    plates = np.repeat([f"plate{i:02d}" for i in range(groups)], 60)
    centre = {name: signal * rng.standard_normal(d) for name in "abc"}
    offset = {name: 0.5 * rng.standard_normal(d) for name in np.unique(plates)}
    vectors = np.array([centre[x] + offset[p] for x, p in zip(labels, plates, strict=True)])
    vectors = (vectors + rng.standard_normal(vectors.shape)) * np.logspace(-2, 2, d)
    train = plates < f"plate{groups // 2:02d}"
    return {
        "train_vectors": vectors[train],
        "train_labels": labels[train],
        "train_groups": plates[train],
        "test_vectors": vectors[~train],
        "test_labels": labels[~train],
        "test_groups": plates[~train],
    }


def labels_only(case: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in case.items() if not name.endswith("vectors")}


def predictions(case: dict[str, Any]) -> np.ndarray:
    scaler = StandardScaler().fit(case["train_vectors"])
    probe = LogisticRegression(class_weight="balanced", max_iter=2000)
    probe.fit(scaler.transform(case["train_vectors"]), case["train_labels"])
    return probe.predict(scaler.transform(case["test_vectors"]))


def test_value_is_scikit_learns_balanced_accuracy() -> None:
    case = split()
    expected = balanced_accuracy_score(case["test_labels"], predictions(case))
    found = linear_probe(**case, rounds=200)
    assert found.value == pytest.approx(expected, abs=1e-12)
    assert 1 / 3 < found.low < found.value < found.high < 1


def test_interval_resamples_whole_groups() -> None:
    case = split()
    predicted, groups = predictions(case), case["test_groups"]
    names = np.unique(groups)
    picks = np.random.default_rng(5).integers(len(names), size=(60, len(names)))
    scores = []
    for pick in picks:
        rows = np.concatenate([np.flatnonzero(groups == names[g]) for g in pick])
        scores.append(balanced_accuracy_score(case["test_labels"][rows], predicted[rows]))
    found = linear_probe(**case, rounds=60, seed=5)
    low, high = np.quantile(scores, (0.025, 0.975))
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-12)


def test_no_signal_is_chance() -> None:
    found = linear_probe(**split(signal=0), rounds=200)
    assert found.value == pytest.approx(1 / 3, abs=0.1)
    assert found.low < 1 / 3 < found.high


def test_scale_of_features_does_not_matter() -> None:
    case = split()
    scaled = case | {side: case[side] * (1e-3, 1, 10, 1e4) for side in case if "vectors" in side}
    assert linear_probe(**scaled, rounds=40).value == linear_probe(**case, rounds=40).value


def test_paired_difference() -> None:
    case, weak = split(), split(signal=0)
    strong_pair = (case["train_vectors"], case["test_vectors"])
    # Embeddings without signal for the labels of `case`.
    weak_pairs = [
        (weak["train_vectors"], weak["test_vectors"]),
        (weak["train_vectors"][:, :2], weak["test_vectors"][:, :2]),
    ]
    labels = labels_only(case)
    found = paired_probe_difference(
        embeddings_a=[strong_pair], embeddings_b=weak_pairs, **labels, rounds=200
    )
    values = [
        linear_probe(train_vectors=train, test_vectors=test, **labels, rounds=40).value
        for train, test in (strong_pair, *weak_pairs)
    ]
    assert found.value == pytest.approx(values[0] - np.mean(values[1:]), abs=1e-12)
    assert found.excludes_zero and found.value > 0
    same = paired_probe_difference(
        embeddings_a=[strong_pair], embeddings_b=[strong_pair], **labels, rounds=40
    )
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_a_group_on_both_sides_is_refused() -> None:
    case = split()
    case["test_groups"][0] = "plate00"
    with pytest.raises(ValueError, match=r"1 groups stand on both sides.*plate00"):
        linear_probe(**case)


def test_bad_splits_are_refused() -> None:
    case = split()
    with pytest.raises(ValueError, match="come from 1 group"):
        linear_probe(**case | {"test_groups": np.full(len(case["test_groups"]), "p")})
    with pytest.raises(ValueError, match=r"1 test classes have no training sites \(c\)"):
        train = np.where(case["train_labels"] == "c", "b", case["train_labels"])
        linear_probe(**case | {"train_labels": train})
    with pytest.raises(ValueError, match="training labels are all"):
        linear_probe(**case | {"train_labels": np.full(len(case["train_labels"]), "a")})
    with pytest.raises(ValueError, match="test_labels has shape"):
        linear_probe(**case | {"test_labels": case["test_labels"][1:]})
    with pytest.raises(ValueError, match="train_labels is empty for 1 sites"):
        labels = case["train_labels"].astype(object)
        labels[3] = None
        linear_probe(**case | {"train_labels": labels})
    with pytest.raises(ValueError, match="train_vectors have width 4, test_vectors 3"):
        linear_probe(**case | {"test_vectors": case["test_vectors"][:, :3]})
    with pytest.raises(ValueError, match="test_vectors has .* NaN"):
        linear_probe(**case | {"test_vectors": case["test_vectors"] * np.nan})
    with pytest.raises(ValueError, match="each side needs at least one"):
        paired_probe_difference(embeddings_a=[], embeddings_b=[], **labels_only(case))
