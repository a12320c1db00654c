"""Writes efaar_alignment.json: alignments and aggregates as EFAAR_benchmarking 1.0 computes them.

The package pulls in scVI, so it is no test dependency. To make the file again:

    pip download efaar-benchmarking==1.0 --no-deps -d SOME_DIR && unzip SOME_DIR/*.whl -d SOME_DIR
    PYTHONPATH=SOME_DIR python tests/data/make_efaar_alignment.py [FOLDER_OF_REAL_DATA]
"""

import json
import sys
import types
from pathlib import Path

import numpy as np
import pandas as pd

# efaar.py imports it for an embedding that is not used here.
scvi, scvi_model = types.ModuleType("scvi"), types.ModuleType("scvi.model")
scvi_model.SCVI = None
sys.modules |= {"scvi": scvi, "scvi.model": scvi_model}

from efaar_benchmarking.efaar import (  # noqa: E402
    aggregate,
    centerscale_by_batch,
    centerscale_on_controls,
    embed_by_pca,
    tvn_on_controls,
)

SHOWN = 3


def screen(d: int, wells: int, batches: int, seed: int) -> tuple[np.ndarray, pd.DataFrame]:
    rng = np.random.default_rng(seed)
    table = pd.DataFrame(
        {
            "batch": rng.choice([f"b{i}" for i in range(batches)], wells),
            "pert": rng.choice(["neg", "G1", "G2", "G3"], wells, p=[0.4, 0.2, 0.2, 0.2]),
        }
    )
    vectors = rng.standard_normal((wells, d)) @ rng.standard_normal((d, d)) + 5
    return vectors.round(3), table


def aligned(vectors: np.ndarray, table: pd.DataFrame, components: int) -> dict[str, np.ndarray]:
    """Every alignment, each with what it is called."""
    controls = {"pert_col": "pert", "control_key": "neg"}
    return {
        "centerscale_by_batch": centerscale_by_batch(vectors, table, "batch"),
        "centerscale_on_controls": centerscale_on_controls(
            vectors, table, batch_col="batch", **controls
        ),
        "tvn": tvn_on_controls(vectors, table, batch_col="batch", **controls),
        "tvn_without_coral": tvn_on_controls(vectors, table, **controls),
        "pca": embed_by_pca(vectors, table, components, "batch"),
    }


def random_case(d: int, wells: int, batches: int, seed: int) -> dict:
    vectors, table = screen(d, wells, batches, seed)
    aggregates = {
        method: aggregate(vectors, table, "pert", ["neg"], method)["features"].to_numpy().tolist()
        for method in ("mean", "median")
    }
    return {
        "vectors": vectors.tolist(),
        "batch": table["batch"].tolist(),
        "pert": table["pert"].tolist(),
        "components": d // 2,
        "aligned": {k: v.tolist() for k, v in aligned(vectors, table, d // 2).items()},
        "aggregate": aggregates,
    }


def real_case(folder: Path) -> dict:
    """HD2013SGI wells: of each alignment the first rows, and the sum of absolute values."""
    table = pd.read_parquet(folder / "hd2013sgi_rnai" / "wells.parquet")
    vectors = table.filter(like="f_").to_numpy(dtype=np.float64)
    names = pd.DataFrame({"batch": table["plate"], "pert": table["target_gene"].fillna("neg")})
    names.loc[table["well_type"] == "negctrl", "pert"] = "neg"
    return {
        name: {"first": x[:SHOWN].tolist(), "sum": float(np.abs(x).sum())}
        for name, x in aligned(vectors, names, 5).items()
    }


def main() -> None:
    result = {"random": [random_case(4, 40, 2, 1), random_case(5, 70, 3, 2)]}
    if len(sys.argv) > 1:
        result["hd2013sgi_rnai"] = real_case(Path(sys.argv[1]))
    out = Path(__file__).with_name("efaar_alignment.json")
    out.write_text(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
