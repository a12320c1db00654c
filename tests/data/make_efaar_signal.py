"""Writes efaar_signal.json: figures that EFAAR_benchmarking 1.0 and proxbias 0.11.0 compute.

Signal and KS figures are EFAAR's, chromosome arms are proxbias's (the code of Lazar et al. 2024).
Both pull in much, so they are no test dependencies. To make the file again (statsmodels needed):

    pip download efaar-benchmarking==1.0 geomloss==0.3.1 proxbias==0.11.0 --no-deps -d SOME_DIR
    (cd SOME_DIR && for wheel in *.whl; do unzip -oq $wheel; done)
    PYTHONPATH=SOME_DIR python tests/data/make_efaar_signal.py
"""

import json
import sys
import tempfile
from importlib import resources
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pandas as pd
from efaar_benchmarking.benchmarking import (
    cluster_benchmark,
    pert_signal_consistency_benchmark,
    pert_signal_magnitude_benchmark,
)
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.utils import Bunch

# proxbias wants an older EFAAR_benchmarking, numba and a backport for scores not used here.
for module in ("efaar_benchmarking.utils", "numba", "numba.typed"):
    sys.modules[module] = MagicMock()
sys.modules["importlib_resources"] = resources

from proxbias.arm_centering import build_arm_centering_df, perform_arm_centering  # noqa: E402
from proxbias.metrics import bm_metrics  # noqa: E402


def signal_case(vectors: np.ndarray, names: list[str], null: list[str]) -> dict:
    metadata = pd.DataFrame({"gene": names})
    consistency = pert_signal_consistency_benchmark(
        vectors, metadata, "gene", null, keys_to_drop=["control"], n_jobs=1
    )
    magnitude = pert_signal_magnitude_benchmark(
        vectors, metadata, "gene", null, control_key="control", n_jobs=1
    )
    # The controls themselves are scored too, against themselves; nobody reads that row.
    magnitude = magnitude[magnitude["pert"] != "control"]
    expected = {
        name: {
            row[0]: [None if np.isnan(x) else float(x) for x in row[1:]]
            for row in table.itertuples(index=False)
        }
        for name, table in (("consistency", consistency), ("magnitude", magnitude))
    }
    return {"names": names, "vectors": vectors.tolist(), "null": null, "expected": expected}


def cluster_case(vectors: np.ndarray, num_replicates: int) -> dict:
    """Replicates as a cluster, one other well: their pairs against all pairs with the other."""
    names = [f"w{i}" for i in range(len(vectors))]
    with tempfile.TemporaryDirectory() as folder:
        line = "A\t" + " ".join(names[:num_replicates]) + "\n"
        (Path(folder) / "CORUM_clusters.tsv").write_text(line)
        table = cluster_benchmark(
            Bunch(metadata=pd.DataFrame({"gene": names}), features=pd.DataFrame(vectors)),
            "gene",
            benchmark_data_dir=folder,
            min_genes=2,
        )
    keys = ["within_cossim_mean", "between_cossim_mean", "ks_stat", "ks_pval"]
    expected = {key: float(table[key].iloc[0]) for key in keys}
    return {"vectors": vectors.tolist(), "num_replicates": num_replicates, "expected": expected}


def arms_case(rng: np.random.Generator) -> dict:
    """A map of 80 genes on three arms, of which the third has 20 unexpressed genes: too few."""
    arm = np.repeat(["chr1p", "chr1q", "chr2p"], [30, 26, 24])
    expressed = np.concatenate([np.arange(30) < 8, np.arange(26) < 5, np.arange(24) < 4])
    vectors = rng.standard_normal((80, 4)) + rng.standard_normal((3, 4))[pd.factorize(arm)[0]]
    vectors = vectors.round(3)
    metadata = pd.DataFrame({"gene": [f"G{i}" for i in range(80)], "chromosome_arm": arm})
    metadata["expressed"] = expressed.astype(int)
    columns = list(metadata)
    data = metadata.join(pd.DataFrame(vectors, columns=list("abcd")))
    centres = build_arm_centering_df(data, columns, subset_query="expressed == 0")
    corrected = perform_arm_centering(data, columns, centres)[list("abcd")]
    index = pd.MultiIndex.from_frame(metadata[["chromosome_arm", "gene"]])
    cosines = pd.DataFrame(cosine_similarity(vectors), index=index, columns=index)
    everything, by_arm = bm_metrics(cosines, arms_ord=sorted(set(arm)))
    return {
        "vectors": vectors.tolist(),
        "arm": arm.tolist(),
        "expressed": expressed.tolist(),
        "corrected": corrected.to_numpy().tolist(),
        "probability": float(everything["prob"].iloc[0]),
        "by_arm": {name: float(value) for name, value in by_arm["prob"].items()},
    }


def main() -> None:
    rng = np.random.default_rng(11)
    # Replicates from 1 to 8, so that some have no pair, and some no energy distance.
    replicates = rng.integers(1, 9, size=14).tolist()
    strength = np.linspace(0, 2, 14)
    names, rows = [], []
    for gene, (count, shift) in enumerate(zip(replicates, strength, strict=True)):
        names += [f"G{gene}"] * count
        rows += list(rng.standard_normal((count, 4)) + shift * rng.standard_normal(4))
    null = [f"N{i}" for i in range(9)]
    for name in null:
        names += [name] * 6
        rows += list(rng.standard_normal((6, 4)))
    names += ["control"] * 40
    rows += list(rng.standard_normal((40, 4)))
    vectors = np.array(rows).round(3)
    # Signs: cosines are exact, so values tie with the null; and many wells are the same point,
    # where geomloss's floor of distances counts.
    signs = rng.choice([-1.0, 1.0], size=(len(names), 4))
    signs[: replicates[0] + replicates[1]] = 1.0
    cases = [signal_case(vectors, names, null), signal_case(signs, names, null)]
    wells = rng.standard_normal((13, 5)).round(3) + np.array([1, 0, 0, 0, 0])
    out = Path(__file__).with_name("efaar_signal.json")
    figures = {"signal": cases, "clusters": [cluster_case(wells, 12)], "arms": arms_case(rng)}
    out.write_text(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
