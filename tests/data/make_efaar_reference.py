"""Writes efaar_recall.json: recalls that EFAAR_benchmarking 1.0 itself computes.

The package pulls in scVI and geomloss, so it is no test dependency. To make the file again:

    pip download efaar-benchmarking==1.0 --no-deps -d SOME_DIR && unzip SOME_DIR/*.whl -d SOME_DIR
    PYTHONPATH=SOME_DIR python tests/data/make_efaar_reference.py [FOLDER_OF_REAL_DATA]
"""

import json
import sys
import tempfile
import types
from pathlib import Path

import numpy as np
import pandas as pd

# benchmarking.py imports it for a score that is not used here.
geomloss = types.ModuleType("geomloss")
geomloss.SamplesLoss = None
sys.modules["geomloss"] = geomloss

from efaar_benchmarking.benchmarking import (  # noqa: E402
    compute_recall,
    known_relationship_benchmark,
)
from sklearn.utils import Bunch  # noqa: E402

TAILS = [(0.05, 0.95), (0.1, 0.9), (0.2, 0.8)]


def map_case(vectors: np.ndarray, rng: np.random.Generator) -> dict:
    names = [f"G{i}" for i in range(len(vectors))]
    # Repeats in both orders, self pairs and genes outside the map, as real databases have them.
    pairs = rng.choice([*names, "X1", "X2"], size=(150, 2)).tolist()
    pairs += [[second, first] for first, second in pairs[:30]] + [["G0", "G0"]]
    with tempfile.TemporaryDirectory() as folder:
        table = pd.DataFrame(pairs, columns=["entity1", "entity2"])
        table.to_csv(Path(folder) / "db.txt", index=False)
        scores = known_relationship_benchmark(
            Bunch(metadata=pd.DataFrame({"gene": names}), features=pd.DataFrame(vectors)),
            "gene",
            benchmark_sources=["db"],
            recall_thr_pairs=TAILS,
            benchmark_data_dir=folder,
        )
    expected = scores.drop(columns="source").iloc[0].to_dict()
    return {"names": names, "vectors": vectors.tolist(), "pairs": pairs, "expected": expected}


def tail_case(null: np.ndarray, known: np.ndarray) -> dict:
    expected = compute_recall(null, known, TAILS)
    values = {key: float(value) for key, value in expected.items()}
    return {"null": null.tolist(), "known": known.tolist(), "expected": values}


def real_case(folder: Path) -> dict:
    """Recall of the five databases in the DepMap components, each scaled to unit variance."""
    table = pd.read_parquet(folder / "depmap_gene_pca" / "gene_loadings.parquet")
    vectors = table.drop(columns="gene").to_numpy(dtype=np.float64)
    scores = known_relationship_benchmark(
        Bunch(metadata=table[["gene"]], features=pd.DataFrame(vectors / vectors.std(axis=0))),
        "gene",
        recall_thr_pairs=TAILS,
        benchmark_data_dir=str(folder / "relationships"),
    )
    return {row.pop("source"): row for row in scores.to_dict("records")}


def main() -> None:
    rng = np.random.default_rng(7)
    maps = [
        map_case(rng.standard_normal((30, 5)).round(3), rng),
        # Signs of length 4 or 16: all cosines are exact in binary, and most of them tie.
        map_case(rng.choice([-1.0, 1.0], size=(25, 4)), rng),
        map_case(rng.choice([-1.0, 1.0], size=(60, 16)), rng),
    ]
    tails = [
        tail_case(np.arange(1, 21), np.array([1, 2, 19, 20])),
        tail_case(np.array([0, 0, 1, 1, 1, 2, 3, 3, 3, 3]), np.array([0, 1, 2, 3])),
        tail_case(rng.integers(0, 30, 200), rng.integers(-2, 33, 50)),
        tail_case(rng.standard_normal(400).round(4), rng.standard_normal(60).round(4)),
    ]
    out = Path(__file__).with_name("efaar_recall.json")
    found = {"maps": maps, "tails": tails}
    if len(sys.argv) > 1:
        found["depmap_gene_pca"] = real_case(Path(sys.argv[1]))
    out.write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
