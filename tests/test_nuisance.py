from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from phenoscale.maps.nuisance import predict_nuisance
from phenoscale.maps.position import position_means, position_null

ROWS, COLUMNS = "ABCDEF", range(1, 9)


def plates(
    num_plates: int = 6, *, layouts: int = 6, control_column: int = 4, seed: int = 0
) -> pd.DataFrame:
    """Wells of plates of 48; a column of controls, one gene in each other well of a layout."""
    rng = np.random.default_rng(seed)
    names = [f"{row}{column:02}" for row in ROWS for column in COLUMNS]
    orders = [rng.permutation(len(names)) for _ in range(layouts)]
    tables = [
        pd.DataFrame(
            {
                "experimental_batch": f"b{plate // 3}",
                "plate": f"p{plate % 3}",
                "well": names,
                "perturbation": [f"G{g}" for g in orders[plate % layouts]],
                "negative_control": [name.endswith(f"{control_column:02}") for name in names],
            }
        )
        for plate in range(num_plates)
    ]
    wells = pd.concat(tables, ignore_index=True)
    wells.loc[wells["negative_control"], "perturbation"] = "control"
    return wells


def embedded(wells: pd.DataFrame, *, by: str | None, strength: float, seed: int = 0) -> np.ndarray:
    """Noise, and a vector for each value of the column `by`."""
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((len(wells), 10))
    if by is not None:
        codes, names = pd.factorize(wells[by])
        vectors += strength * rng.standard_normal((len(names), 10))[codes]
    return vectors


@pytest.mark.parametrize("among", ["negative_controls", "all"])
def test_positions_that_show_are_found(among: str) -> None:
    wells = plates()
    found = position_null(embedded(wells, by="well", strength=1.5), wells, among=among)  # type: ignore[arg-type]
    assert found.share > 0.9
    assert found.pairs.mean_same > 0.4 > found.pairs.mean_random + 0.3
    assert found.pairs.ks_statistic > 0.5
    # Among all wells the controls are one perturbation, so their column has nothing to compare.
    assert len(found.table) == (6 if among == "negative_controls" else 42)


@pytest.mark.parametrize("by", [None, "plate", "perturbation"])
def test_what_is_no_position_effect_gives_five_percent(by: str | None) -> None:
    # Plates differ, or genes do, and each plate has its own layout: position itself does nothing.
    shares = []
    for seed in range(4):
        wells = plates(seed=seed)
        found = position_null(embedded(wells, by=by, strength=2.0, seed=seed), wells, among="all")
        shares.append(found.share)
        assert found.pairs.ks_statistic < 0.1
    # 5% of 192 positions: 95% of such means lie within 0.03.
    assert np.mean(shares) == pytest.approx(0.05, abs=0.04)


def test_replicates_of_a_gene_at_one_position_are_not_its_effect() -> None:
    # Two layouts, three plates each: replicates of a gene share their position.
    wells = plates(layouts=2)
    vectors = embedded(wells, by="perturbation", strength=3.0)
    found = position_null(vectors, wells, among="all")
    assert found.share < 0.2 and found.pairs.ks_statistic < 0.15
    genes = wells.groupby("well")["perturbation"].nunique()
    assert found.num_wells == genes.sum()
    assert found.num_wells_left_out == len(wells) - genes.sum()
    assert found.num_one_perturbation == (genes == 1).sum() >= 6  # the column of controls


def test_position_figures_are_those_of_the_matrix() -> None:
    wells = plates(layouts=3)
    vectors = embedded(wells, by="well", strength=0.5)
    table = position_null(vectors, wells).table.set_index("well")
    control = wells["negative_control"].to_numpy()
    unit = vectors[control] / np.linalg.norm(vectors[control], axis=1, keepdims=True)
    for well in ("A04", "F04"):
        own = unit[(wells.loc[control, "well"] == well).to_numpy()]
        expected = (own @ own.T)[np.tril_indices(len(own), k=-1)].mean()
        assert table.loc[well, "mean_cosine"] == pytest.approx(expected)
        assert table.loc[well, "num_wells"] == 6
    assert (table["replicates"] == (table["mean_cosine"] > table["threshold"])).all()


def test_position_means_leave_out_pairs_of_one_perturbation() -> None:
    rng = np.random.default_rng(0)
    unit = rng.standard_normal((40, 3)) + 1
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    position, apart = rng.integers(8, size=40), rng.integers(3, size=40)
    position[position == 7] = 6
    position[0] = 7  # one well, so no pair
    found = position_means(unit, position, apart)
    for number in range(8):
        rows = np.flatnonzero(position == number)
        cosines = [unit[i] @ unit[j] for i in rows for j in rows if i < j and apart[i] != apart[j]]
        expected = np.mean(cosines) if cosines else np.nan
        assert found[number] == pytest.approx(expected, nan_ok=True)
    assert np.isnan(found[7])


def test_confounded_positions_are_refused_with_the_reason() -> None:
    wells = plates(layouts=1)
    vectors = embedded(wells, by="perturbation", strength=1.0)
    with pytest.raises(ValueError, match="All 48 positions hold one perturbation each .* told apa"):
        position_null(vectors, wells, among="all")
    # The controls can still be asked; if they are several guides at fixed places, it is told.
    assert position_null(vectors, wells).num_one_perturbation == 0
    guides = wells.assign(perturbation=wells["well"])
    assert position_null(vectors, guides).num_one_perturbation == 6


def test_refusals_of_position() -> None:
    wells = plates(2)
    vectors = embedded(wells, by=None, strength=0)
    with pytest.raises(ValueError, match="stand in several rows"):
        position_null(np.vstack([vectors, vectors]), pd.concat([wells, wells]))
    with pytest.raises(ValueError, match="0 negative-control wells"):
        position_null(vectors, wells.assign(negative_control=False))
    one_plate = (wells["plate"] == "p0").to_numpy()
    with pytest.raises(ValueError, match="position on 2 plates"):
        position_null(vectors[one_plate], wells[one_plate])
    with pytest.raises(ValueError, match="at most 2 at one position and 1 on one plate"):
        one_well = (wells["well"] == "A04").to_numpy()
        position_null(vectors[one_well], wells[one_well])
    with pytest.raises(ValueError, match=r"lack the columns \['plate'\]"):
        position_null(vectors, wells.drop(columns="plate"))
    with pytest.raises(ValueError, match="negative_control has dtype int"):
        position_null(vectors, wells.assign(negative_control=wells["negative_control"].astype(int)))
    with pytest.raises(ValueError, match="'negative_controls' or 'all'"):
        position_null(vectors, wells, among="controls")  # type: ignore[arg-type]


@pytest.mark.parametrize("target", ["plate", "experimental_batch", "row", "column"])
def test_each_nuisance_is_predicted_where_it_was_planted_and_nowhere_else(target: str) -> None:
    wells = plates()
    wells["row"], wells["column"] = wells["well"].str[0], wells["well"].str[1:]
    by = "plate_key" if target == "plate" else target
    wells["plate_key"] = wells["experimental_batch"] + wells["plate"]
    vectors = embedded(wells, by=by, strength=3.0)
    report = predict_nuisance(vectors, wells, among="all", folds=3, rounds=50)
    found = {x.target: x for x in report.predictions}
    assert not report.missing and report.num_wells == len(wells)
    assert {x: found[x].num_classes for x in found} == {
        "plate": 6,
        "experimental_batch": 2,
        "row": 6,
        "column": 8,
    }
    assert found[target].accuracy.low > 0.9
    # A plate tells its experimental batch, and a batch narrows down the plate.
    related = {"plate": "experimental_batch", "experimental_batch": "plate"}.get(target)
    for other, prediction in found.items():
        assert prediction.chance == pytest.approx(1 / prediction.num_classes)
        if other not in (target, related):
            assert prediction.accuracy.value < prediction.chance + 0.1


def test_sites_of_one_well_never_help_each_other() -> None:
    # Each well has a vector of its own and no plate does; sites of a well are nearly the same. A
    # split by site would find each test site's sister in training and read its plate off it.
    wells = plates(4)
    sites = wells.loc[wells.index.repeat(6)].reset_index(drop=True)
    rng = np.random.default_rng(0)
    vectors = np.repeat(rng.standard_normal((len(wells), 150)), 6, axis=0)
    vectors += 0.01 * rng.standard_normal(vectors.shape)
    report = predict_nuisance(vectors, sites, among="all", rounds=50)
    plate = report.predictions[0]
    assert plate.target == "plate" and plate.num_wells == len(wells)
    assert plate.accuracy.value == pytest.approx(0.25, abs=0.12)


def test_what_cannot_be_predicted_is_told() -> None:
    wells = plates()
    wells = wells[~((wells["plate"] == "p2") & wells["well"].isin(["A04", "B04"]))]
    report = predict_nuisance(embedded(wells, by=None, strength=0), wells, rounds=50)
    assert report.num_wells == int(wells["negative_control"].sum()) == 32
    assert report.missing == {
        "column": "1 classes, 1 of them with at least 5 wells; 2 such classes are required"
    }
    plate = report.predictions[0]
    assert (plate.num_classes, plate.num_classes_left_out, plate.num_wells) == (4, 2, 24)


def test_refusals_of_prediction() -> None:
    wells = plates(2)
    vectors = embedded(wells, by=None, strength=0)
    with pytest.raises(ValueError, match="have no row and column"):
        predict_nuisance(vectors, wells.assign(well="well 1"))
    with pytest.raises(ValueError, match="None of 96 wells is a negative control"):
        predict_nuisance(vectors, wells.assign(negative_control=False))
    with pytest.raises(ValueError, match="at least 2 folds"):
        predict_nuisance(vectors, wells, folds=1)
    with pytest.raises(ValueError, match="95 rows"):
        predict_nuisance(vectors[1:], wells)


def test_real_controls_show_their_plate_and_position(real_data: Path) -> None:
    wells = pd.read_parquet(real_data / "hd2013sgi_rnai" / "wells.parquet")
    # Every eighth plate, to be quick: 14 plates of 7 controls.
    kept = wells["plate"].isin(sorted(wells["plate"].unique())[::8])
    wells = wells[kept & (wells["well_type"] == "negctrl")].reset_index(drop=True)
    wells = wells.assign(
        experimental_batch=wells["query_gene"], perturbation="neg", negative_control=True
    )
    vectors = wells.filter(like="f_").to_numpy()
    report = predict_nuisance(vectors, wells, rounds=100)
    plate = report.predictions[0]
    assert plate.num_classes == 14 and plate.accuracy.low > 2 * plate.chance
    centred = vectors - wells.filter(like="f_").groupby(wells["plate"]).transform("mean")
    found = position_null(centred.to_numpy(), wells)
    assert len(found.table) == 7 and found.pairs.num_same_pairs == 7 * 14 * 13 // 2
