"""Real profile tables under every alignment: `python -m benchmarks.real_maps DATA [--json FILE]`.

DATA is the folder of real data sets. Prints the Markdown table of docs/biology.md: relationship
recall and mean average precision of each table under each alignment, beside chance and what is
known. Where a table has no control wells, the alignment is fitted on all wells.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from phenoscale.maps.aggregate import aggregate
from phenoscale.maps.align import CenterScale, PcaCenterScale, TypicalVariation
from phenoscale.maps.ranking import Draws, Retrieval
from phenoscale.maps.recall import recall_by_database
from phenoscale.maps.relationships import load_databases
from phenoscale.maps.retrieval import phenotypic_activity, replicate_retrieval, sister_guides

ALIGNMENTS = ("none", "center_scale", "pca_cs", "tvn")
ROUNDS = 200
DRAWS = Draws(rounds=ROUNDS)
DATABASES = ("CORUM", "HuMAP", "Reactome", "SIGNOR", "StringDB")

Found = Iterator[tuple[str, float, float, float, float, int]]
"""Score, value, low, high, chance, count."""


def aligned(
    vectors: np.ndarray, groups: np.ndarray, control: np.ndarray | None, alignment: str
) -> np.ndarray:
    """Wells under one alignment; components are capped at a third of the controls."""
    if alignment == "none":
        return vectors
    count = len(vectors) if control is None else int(control.sum())
    components = max(1, count // 3)
    kinds = {"pca_cs": PcaCenterScale(components), "tvn": TypicalVariation(components)}
    return kinds.get(alignment, CenterScale()).fit_transform(vectors, groups, control)


def recalls(data: Path, vectors: np.ndarray, names: list[str], similarity: str = "cosine") -> Found:
    """Recall of the five databases, where enough of their pairs are in the map."""
    for name in DATABASES:
        database = load_databases([data / "relationships" / f"{name}.txt"])
        try:
            found = recall_by_database(
                vectors,
                names,
                database,
                rounds=ROUNDS,
                similarity=similarity,  # type: ignore[arg-type]
            )[name]
        except ValueError:
            continue  # fewer than ten pairs
        interval = found.recall["recall_0.05_0.95"]
        yield (
            f"recall {name}", interval.value, interval.low, interval.high, 0.1, found.num_pairs,
        )  # fmt: skip


def precision(name: str, found: Retrieval) -> tuple[str, float, float, float, float, int]:
    """A retrieval as a line."""
    interval = found.mean_average_precision
    return (
        f"mAP {name}", interval.value, interval.low, interval.high, found.chance,
        found.num_perturbations,
    )  # fmt: skip


def rnai(data: Path, alignment: str) -> Found:
    """HD2013SGI: plates aligned one by one, their 28 profiles of a siRNA side by side."""
    table = pd.read_parquet(data / "hd2013sgi_rnai" / "wells.parquet")
    x = table.filter(like="f_").to_numpy(dtype=np.float64)
    control = (table["well_type"] == "negctrl").to_numpy()
    x = aligned(x, table["plate"].to_numpy(), control, alignment)[~control]
    wells = table[~control].reset_index(drop=True)
    key = ["target_gene", "target_sirna", "replicate"]
    means, rows = aggregate(x, wells, [*key, "query_gene", "query_sirna"])
    _, sizes = aggregate(x, wells, key)
    profiles = means.reshape(len(sizes), -1)  # sorted by key, then query: all keys have all queries
    assert len(rows) == len(sizes) * 28
    gene, guide = sizes["target_gene"].astype(str), sizes["target_sirna"].astype(str)
    frame = pd.DataFrame(
        {"perturbation": gene + "_" + guide, "gene": gene, "guide": gene + "_" + guide}
    ).assign(plate=sizes["replicate"].astype(str), negative_control=False)
    yield precision("replicates", replicate_retrieval(profiles, frame, draws=DRAWS))
    yield precision("sister siRNAs", sister_guides(profiles, frame, draws=DRAWS))
    genes, names = aggregate(profiles, frame, ["gene"])
    yield from recalls(data, genes, names["gene"].tolist())


def orf(data: Path, alignment: str) -> Found:
    """Target Accelerator ORFs, 978 transcripts: vector controls of three plates."""
    table = pd.read_parquet(data / "ta_orf_l1000" / "wells.parquet")
    table = table[table["pert_type"] != "ctl_untrt"].reset_index(drop=True)
    x = table.filter(like="g_").to_numpy(dtype=np.float64)
    control = (table["pert_type"] == "ctl_vector").to_numpy()
    x = aligned(x, table["plate"].to_numpy(), control, alignment)
    frame = table.assign(perturbation=table["pert_id"], negative_control=control)
    yield precision("replicates", replicate_retrieval(x, frame, draws=DRAWS))
    genes, names = aggregate(x[~control], table[~control], ["gene"])
    yield from recalls(data, genes, names["gene"].tolist())


def compounds(data: Path, alignment: str) -> Found:
    """LINCS plate: a compound's other doses, and its wells against DMSO."""
    path = data / "lincs_plate_sq00015054" / "SQ00015054_normalized_feature_select.csv.gz"
    table = pd.read_csv(path)
    x = table.filter(regex="^(?!Metadata_)").to_numpy(dtype=np.float64)
    name = table["Metadata_broad_sample"]
    control = (table["Metadata_broad_sample"] == "DMSO").to_numpy()
    x = aligned(x, np.full(len(x), "plate"), control, alignment)
    frame = pd.DataFrame({"perturbation": name, "plate": "plate", "negative_control": control})
    doses = replicate_retrieval(x, frame, positives_on="any", negatives_on="any", draws=DRAWS)
    yield precision("other doses", doses)
    yield precision("against DMSO", phenotypic_activity(x, frame, draws=DRAWS))


def cpjump1(data: Path, alignment: str) -> Found:
    """JUMP pilot: replicates on other plates; no controls, so all wells stand for them."""
    table = pd.read_csv(data / "cpjump1_phenotypes" / "wells.tsv.gz", sep="\t")
    table = table.rename(columns={"Metadata_Plate": "plate"})
    features = table.columns[7:]
    for kind, cell, hours in (
        ("compound", "A549", 24),
        ("crispr", "A549", 144),
        ("orf", "U2OS", 48),
    ):
        chosen = (table["treatment_type"] == kind) & (table["Cell_type"] == cell)
        some = table[chosen & (table["Time"] == hours)].reset_index(drop=True)
        if some.empty:
            raise ValueError(f"{kind} {cell} {hours} h is not in the table.")
        x = aligned(
            some[features].to_numpy(dtype=np.float64), some["plate"].to_numpy(), None, alignment
        )
        frame = some.assign(perturbation=some["treatment"], negative_control=False)
        yield precision(
            f"replicates, {kind} {cell} {hours} h", replicate_retrieval(x, frame, draws=DRAWS)
        )
        if kind == "crispr":
            genes, names = aggregate(x, some, ["treatment"])
            yield from recalls(data, genes, names["treatment"].tolist())


def dependencies(data: Path, alignment: str) -> Found:
    """DepMap components, a map without images: as they are, and each scaled to unit variance."""
    if alignment not in ("none", "center_scale"):
        return
    table = pd.read_parquet(data / "depmap_gene_pca" / "gene_loadings.parquet")
    x = table.drop(columns="gene").to_numpy(dtype=np.float64)
    if alignment == "center_scale":
        x = x / x.std(axis=0)
    yield from recalls(data, x, table["gene"].tolist())


def periscope(data: Path, alignment: str) -> Found:
    """PERISCOPE HeLa: changed features by channel, on unexpressed genes; the 2,000 strongest."""
    table = pd.read_csv(data / "periscope_gene_maps" / "hela_dmem_channel_hits.csv")
    channels = ["mito", "cona", "dapi", "wga", "phalloidin"]
    x = np.log1p(table[channels].to_numpy(dtype=np.float64))
    control = (table["expressed"] == 0).to_numpy()
    x = aligned(x, np.full(len(x), "screen"), control, alignment)
    order = table["sum"].where(~control, -1).to_numpy().argsort(kind="stable")[::-1][:2000]
    strongest = np.sort(order)
    yield from recalls(data, x[strongest], table["gene"][strongest].tolist())


def umap(data: Path, alignment: str) -> Found:
    """PERISCOPE's frozen UMAP, by distance."""
    if alignment != "none":
        return
    table = pd.read_csv(data / "periscope_gene_maps" / "hela_dmem_umap.csv")
    yield from recalls(data, table[["x", "y"]].to_numpy(), table["gene"].tolist(), "euclidean")


TABLES: dict[str, Callable[[Path, str], Found]] = {
    "HD2013SGI, RNAi, 282 genes": rnai,
    "TA-ORF, L1000": orf,
    "LINCS plate, compounds": compounds,
    "CPJUMP1, 15 phenotypes": cpjump1,
    "DepMap, no images": dependencies,
    "PERISCOPE, 5 counts": periscope,
    "PERISCOPE, UMAP (distance)": umap,
}


def main() -> None:
    """Scores every table and prints what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", choices=tuple(TABLES))
    options = parser.parse_args()
    lines: dict[tuple[str, str], dict[str, tuple[float, float, float]]] = {}
    facts: dict[tuple[str, str], tuple[float, int]] = {}
    for name, score in TABLES.items():
        for alignment in ALIGNMENTS if options.only in (None, name) else ():
            print(f"{name}: {alignment}", flush=True)
            for what, value, low, high, chance, count in score(options.data, alignment):
                lines.setdefault((name, what), {})[alignment] = (value, low, high)
                facts[name, what] = (chance, count)
    print(f"| table | score | {' | '.join(ALIGNMENTS)} | chance | over |")
    print("| --- " * (len(ALIGNMENTS) + 4) + "|")
    for (name, what), values in lines.items():
        cells = [
            "{:.3f} [{:.3f}, {:.3f}]".format(*values[a]) if a in values else "" for a in ALIGNMENTS
        ]
        chance, count = facts[name, what]
        print(f"| {name} | {what} | {' | '.join(cells)} | {chance:.3g} | {count:,} |")
    if options.json:
        found = [{"table": n, "score": w, **v} for (n, w), v in lines.items()]
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
