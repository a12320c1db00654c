"""The protocol cpjump1 on a planted screen in the published layout, and on the real table."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from phenoscale.cli import app
from phenoscale.maps.protocols.cpjump1 import (
    consensus,
    from_pycytominer,
    score_cpjump1,
    standardised_per_plate,
)
from phenoscale.maps.ranking import Draws
from phenoscale.maps.retrieval import (
    gene_compound,
    phenotypic_activity,
    replicate_retrieval,
    sister_guides,
)

pytest.importorskip("copairs")

FEW = Draws(null_size=300, rounds=60)
GENES = [f"G{i}" for i in range(8)]


def published(signal: float = 2.5) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Profiles, plates and targets as the pilot names them; three plates of each modality."""
    rng = np.random.default_rng(0)
    direction = {gene: signal * rng.standard_normal(12) for gene in GENES}
    rows, values = [], []
    for modality in ("compound", "crispr", "orf"):
        for plate in range(3):
            barcode = f"{modality}{plate}"
            for gene in GENES:
                for copy in range(1 if modality == "orf" else 2):
                    named = None if modality == "compound" else gene
                    rows.append((barcode, f"{modality}-{gene}-{copy}", "trt", named))
                    values.append(direction[gene] + rng.standard_normal(12))
            for _ in range(6):
                sample = None if modality == "compound" else "control"
                rows.append((barcode, sample, "negcon", None))
                values.append(rng.standard_normal(12))
            rows.append((barcode, None if modality == "orf" else "poscon", "poscon_cp", None))
            values.append(4 * np.ones(12) + rng.standard_normal(12))
    columns = [f"Metadata_{c}" for c in ("Plate", "broad_sample", "control_type", "gene")]
    table = pd.DataFrame(rows, columns=columns)
    table["Metadata_Well"] = "A01"
    features = pd.DataFrame(np.array(values), columns=[f"Cells_{i}" for i in range(12)])
    barcodes = table["Metadata_Plate"].unique()
    plates = pd.DataFrame(
        {
            "Assay_Plate_Barcode": barcodes,
            "Perturbation": [name[:-1] for name in barcodes],
            "Cell_type": "U2OS",
            "Time": [48 if name.startswith("compound") else 96 for name in barcodes],
        }
    )
    targets = pd.DataFrame(
        {
            "broad_sample": [f"compound-{gene}-{copy}" for gene in GENES for copy in range(2)],
            "target_list": [f"{gene}|OTHER" for gene in GENES for copy in range(2)],
        }
    )
    targets["target_list"] = targets["target_list"].str.replace("|OTHER", "", regex=False)
    targets.loc[0, "target_list"] = "G0|UNSEEN"
    return pd.concat([table, features], axis=1), plates, targets


def test_the_tasks_are_those_of_the_functions() -> None:
    vectors, wells = from_pycytominer(*published())
    result = score_cpjump1(vectors, wells, draws=FEW)
    assert (result["protocol"], result["version"]) == ("cpjump1", "1")
    table = result["table"].set_index(["task", "perturbation_type"])
    assert (table["not_scored"] == "").all()
    assert sorted(table.index) == sorted(
        [
            *(("detection", kind) for kind in ("compound", "crispr", "orf")),
            *(("matching", kind) for kind in ("compound", "crispr")),
            *(("gene_compound_matching", "compound"),) * 2,
        ]
    )
    of = {kind: (wells["perturbation_type"] == kind).to_numpy() for kind in ("compound", "crispr")}
    crispr = vectors[of["crispr"]], wells[of["crispr"]]
    active = phenotypic_activity(*crispr, draws=FEW)
    line = table.loc[("detection", "crispr")]
    assert line["against"] == "negative controls of the same plate"
    assert line["mean_average_precision"] == active.mean_average_precision.value
    assert line["fraction_retrieved"] == active.fraction_retrieved > 0.9
    # Medians by hand, then the task itself.
    kept = active.table.loc[active.table["retrieved"], "perturbation"].tolist()
    medians, guides = consensus(*crispr, kept)
    rows = (crispr[1]["perturbation"] == kept[0]).to_numpy()
    np.testing.assert_array_equal(medians[0], np.median(crispr[0][rows], axis=0))
    assert guides["perturbation"].tolist() == sorted(kept)
    gene = guides["gene"].notna().to_numpy()
    sisters = sister_guides(medians[gene], guides[gene], draws=FEW)
    line = table.loc[("matching", "crispr")]
    assert line["mean_average_precision"] == sisters.mean_average_precision.value > 0.9
    drugs = phenotypic_activity(vectors[of["compound"]], wells[of["compound"]], draws=FEW)
    drug_medians, compounds = consensus(
        vectors[of["compound"]],
        wells[of["compound"]],
        drugs.table.loc[drugs.table["retrieved"], "perturbation"].tolist(),
    )
    both = pd.concat([compounds, guides], ignore_index=True)
    across = gene_compound(np.concatenate([drug_medians, medians]), both, absolute=True, draws=FEW)
    lines = result["table"].query("against == 'crispr U2OS 96'")
    assert lines["mean_average_precision"].tolist() == [across.mean_average_precision.value]
    assert across.mean_average_precision.low > 0.9 > 2 * across.chance


def test_wells_of_the_published_tables() -> None:
    table, plates, targets = published()
    vectors, wells = from_pycytominer(table, plates[plates["Perturbation"] != "crispr"], targets)
    # 3 compound plates of 16 + 6 + 1 wells and 3 ORF plates of 8 + 6; the ORF poscon is empty.
    assert wells.attrs["counts"] == {
        "num_wells": 3 * 23 + 3 * 14,
        "num_wells_of_other_plates": 3 * 23,
        "num_empty_wells": 3,
    }
    assert vectors.shape == (111, 12)
    assert set(wells.loc[wells["negative_control"], "perturbation"]) == {"DMSO", "control"}
    assert wells.loc[wells["perturbation_type"] == "compound", "gene"].isna().all()
    assert wells["target"].dropna().nunique() == 9
    assert wells["guide"].isna().all()


def test_without_controls_and_targets_it_is_said() -> None:
    vectors, wells = from_pycytominer(*published()[:2])
    treated = ~wells["negative_control"].to_numpy()
    table = score_cpjump1(vectors[treated], wells[treated], draws=FEW)["table"]
    assert set(table.query("task == 'detection'")["against"]) == {
        "other perturbations of the same plate (no control wells)"
    }
    reasons = table.query("perturbation_type == 'compound' and task != 'detection'")["not_scored"]
    assert len(reasons) == 3
    assert reasons.str.fullmatch(r"none of the \d+ retrieved .* has a target").all()


def test_noise_is_not_matched_and_the_reason_is_given() -> None:
    table = score_cpjump1(*from_pycytominer(*published(signal=0)), draws=FEW)["table"]
    detected = table.query("task == 'detection'")
    assert (detected["fraction_retrieved"] < 0.2).all()
    rest = table.query("task != 'detection'")
    assert (rest["not_scored"] != "").all()
    assert rest["mean_average_precision"].isna().all()


def test_standardised_per_plate_equals_pandas() -> None:
    rng = np.random.default_rng(0)
    vectors, plates = rng.normal(3, 2, size=(30, 4)), np.repeat(["a", "b", "c"], 10)
    groups = pd.DataFrame(vectors).groupby(plates)
    expected = (vectors - groups.transform("mean")) / groups.transform("std", ddof=0)
    np.testing.assert_allclose(standardised_per_plate(vectors, plates), expected, rtol=1e-12)
    vectors[:10, 2] = 1
    with pytest.raises(ValueError, match=r"1 columns are constant on plate a \(2\)"):
        standardised_per_plate(vectors, plates)


def test_bad_tables_are_refused() -> None:
    table, plates, targets = published()
    vectors, wells = from_pycytominer(table, plates, targets)
    with pytest.raises(ValueError, match=r"wells lacks the columns \['time_h'\]"):
        score_cpjump1(vectors, wells.drop(columns="time_h"))
    with pytest.raises(ValueError, match="perturbation_type has sirna"):
        score_cpjump1(vectors, wells.assign(perturbation_type="sirna"))
    with pytest.raises(ValueError, match=r"\['cell_type'\] have empty cells"):
        score_cpjump1(vectors, wells.assign(cell_type=None))
    with pytest.raises(ValueError, match=r"plates lacks the columns \['Time'\]"):
        from_pycytominer(table, plates.drop(columns="Time"))
    with pytest.raises(ValueError, match="No well with a treatment is on a plate of `plates`"):
        from_pycytominer(table, plates.assign(Assay_Plate_Barcode=[f"x{i}" for i in range(9)]))


# The README of the table: z per plate, cosine, other plates only, mean over wells.
REFERENCE = {
    ("crispr", "U2OS", 96): 0.028,
    ("orf", "U2OS", 48): 0.072,
    ("compound", "U2OS", 24): 0.140,
}


def test_the_real_table_gives_its_reference_figures(real_data: Path) -> None:
    table = pd.read_csv(real_data / "cpjump1_phenotypes" / "wells.tsv.gz", sep="\t")
    vectors = standardised_per_plate(table.iloc[:, 7:].to_numpy(), table["Metadata_Plate"])
    wells = table.rename(columns={"Metadata_Plate": "plate", "treatment": "perturbation"})
    for (kind, cell, time), expected in REFERENCE.items():
        of = (table["treatment_type"] == kind) & (table["Cell_type"] == cell)
        rows = np.flatnonzero(of & (table["Time"] == time))
        found = replicate_retrieval(
            vectors[rows], wells.iloc[rows], draws=Draws(null_size=100, rounds=60)
        )
        per_well = np.average(
            found.table["mean_average_precision"], weights=found.table["num_queries"]
        )
        assert per_well == pytest.approx(expected, abs=0.0006), (kind, cell, time)
        assert found.mean_average_precision.low > found.chance


def test_the_command_prints_and_writes_the_protocol(tmp_path: Path) -> None:
    table, plates, targets = published()
    vectors, wells = from_pycytominer(table, plates, targets)
    features = pd.DataFrame(vectors, columns=[f"f_{i}" for i in range(vectors.shape[1])])
    pd.concat([wells, features], axis=1).to_parquet(tmp_path / "wells.parquet", index=False)
    words = ["score", tmp_path / "wells.parquet", "--protocol", "cpjump1", "--rounds", "60",
             "--out", tmp_path / "out.json"]  # fmt: skip
    done = CliRunner().invoke(app, list(map(str, words)))
    assert done.exit_code == 0, done.output
    written = json.loads((tmp_path / "out.json").read_text())
    scaled = standardised_per_plate(vectors, wells["plate"])
    expected = score_cpjump1(scaled, wells, draws=Draws(rounds=60))["table"]
    assert [task["task"] for task in written["tasks"]] == expected["task"].tolist()
    for task, value in zip(written["tasks"], expected["mean_average_precision"], strict=True):
        assert task["mean_average_precision"] == pytest.approx(value, abs=1e-4, nan_ok=True) or (
            task["mean_average_precision"] is None and pd.isna(value)
        )
    assert "detection" in done.stdout and "cpjump1" in done.stdout
