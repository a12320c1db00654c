"""The plate map: which well got what, written by the lab as a CSV, joined to the sites."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa

from phenoscale.screens.layouts.found import as_manifest, some
from phenoscale.screens.layouts.manifest import (
    MANIFEST_SCHEMA,
    NEGATIVE_CONTROL,
    PERTURBATION_TYPES,
    RESERVED,
    row_number,
)
from phenoscale.screens.layouts.tables import as_text, read_table
from phenoscale.screens.layouts.wells import standard_wells, well_name

UNLABELLED = "unlabelled"
"""Perturbation of sites that no plate map labels; their perturbation_type is none."""
UNMAPPED = ("refuse", "unlabelled", "leave_out")
"""What happens to wells that have images and no row in the plate map."""
LABELS = (
    "perturbation",
    "perturbation_type",
    "gene",
    "guide",
    "compound",
    "concentration",
    "negative_control",
    "cell_type",
)
"""Columns of a manifest that a plate map may give."""

_PLATE_KEY = ["experimental_batch", "plate"]
_TRUE, _FALSE = ("true", "1", "yes"), ("false", "0", "no", "")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlateMap:
    """Wells and their labels."""

    rows: pd.DataFrame
    """Columns of `key`, LABELS and whatever else the file has; one row per well."""
    key: tuple[str, ...]
    """What a well is looked up by: well, and plate and experimental_batch if the file has them."""
    source: str
    """The file."""


def read_plate_map(
    path: Path,
    *,
    renamed: Mapping[str, str] | None = None,
    negative_controls: tuple[str, ...] = (),
    perturbation_type: str | None = None,
) -> PlateMap:
    """Reads a plate map.

    Args:
        path: CSV, TSV or Parquet. Columns: well (A1 or A01), or row and column; optionally plate
            and experimental_batch, if wells differ between plates; those of LABELS; and others,
            which pass through. Without perturbation, the compound or else the gene stands for it.
        renamed: the file's name of a column -> the name that it stands for here.
        negative_controls: perturbations that are negative controls; or the file has a column
            negative_control.
        perturbation_type: of all wells that are no controls, if the file has no such column.

    Raises:
        ValueError: if columns are missing or unknown, a well stands twice or is none, a name in
            `negative_controls` never occurs, or a cell does not fit its column.
    """
    if not path.is_file():
        raise ValueError(f"The plate map {path} does not exist; give a CSV file.")
    source = str(path)
    table = read_table(path.read_bytes(), source)
    table = _rename(table, renamed or {}, source)
    rows = pd.DataFrame({name: as_text(table[name]).to_pandas() for name in table.column_names})
    rows = _with_wells(rows, source)
    key = [name for name in (*_PLATE_KEY, "well") if name in rows.columns]
    twins = rows.duplicated(key, keep=False)
    if twins.any():
        number = [row_number(position) for position in rows.index[twins][:2]]
        raise ValueError(
            f"{source} gives the well {rows['well'][twins].iloc[0]} twice, in rows {number}. Each "
            "well needs one row; add a column plate if plates differ."
        )
    rows = _with_perturbation(rows, source)
    rows = _with_controls(rows, negative_controls, source)
    rows = _with_types(rows, perturbation_type, source)
    rows = _with_concentration(rows, source)
    rows = rows.assign(**{name: rows[name].replace("", None) for name in _texts(rows)})
    return PlateMap(rows=rows, key=tuple(key), source=source)


def label_sites(
    sites: pd.DataFrame, plate_map: PlateMap | None, unmapped: str = "refuse"
) -> tuple[pd.DataFrame, pd.Series, list[str]]:
    """Labels sites by their wells.

    Without a plate map, every site has the perturbation `unlabelled` of type none.

    Args:
        sites: columns plate and well, experimental_batch if it is known.
        plate_map: what the wells got, if anyone wrote it down.
        unmapped: wells that are not in the map: `refuse`, `unlabelled` or `leave_out`.

    Returns:
        The sites with LABELS and the map's other columns; which rows of `sites` they are (bool);
        and sentences on wells without images or without labels.

    Raises:
        ValueError: if wells are not in the map and `unmapped` refuses them.
    """
    if unmapped not in UNMAPPED:
        raise ValueError(f"unmapped is {unmapped!r}; one of {UNMAPPED} is required.")
    everything = pd.Series(True, index=sites.index)
    if plate_map is None:
        blank = dict.fromkeys(LABELS) | _UNLABELLED
        return sites.assign(**blank), everything, [f"Without a plate map, all are {UNLABELLED!r}."]
    rows, key = plate_map.rows, list(plate_map.key)
    if sites["experimental_batch"].isna().all() and "experimental_batch" in key:
        key.remove("experimental_batch")  # the map then says which batch a plate belongs to
        sites = sites.drop(columns="experimental_batch")
        _one_batch_per_well(rows, key, plate_map.source)
    if clash := sorted(set(rows.columns) & set(sites.columns) - set(key)):
        raise ValueError(
            f"{plate_map.source} has the columns {clash}, which the layout itself gives. Rename "
            "them with --plate-map-columns OLD=NEW."
        )
    merged = sites.merge(rows, on=key, how="left", indicator=True, validate="m:1")
    merged.index = sites.index
    known = merged.pop("_merge") == "both"
    notes = _unused_wells(rows, sites, key, plate_map.source)
    if not known.all():
        notes += [_unmapped_wells(sites[~known], plate_map, unmapped)]
        for name, value in _UNLABELLED.items():
            merged[name] = merged[name].where(known, value)
    kept = everything if unmapped != "leave_out" else known
    merged["negative_control"] = merged["negative_control"].astype(bool)
    return merged[kept], kept, notes


def labelled_manifest(
    sites: pd.DataFrame,
    paths: pa.Array,
    channels: pa.Array | Sequence[str],
    plate_map: PlateMap | None,
    unmapped: str = "refuse",
) -> tuple[pa.Table, list[str]]:
    """Labels sites by their wells and builds the manifest.

    Args:
        sites: one row per site; experimental_batch "" where the layout names none.
        paths: list of paths per site.
        channels: list of names per site, or the names that all sites have.
        plate_map: what the wells got, if anyone wrote it down.
        unmapped: as in `label_sites`.

    Returns:
        The manifest, and sentences on what the map does not cover.

    Raises:
        ValueError: as `label_sites`, or if neither layout nor map names the experimental batch.
    """
    sites = sites.assign(experimental_batch=sites["experimental_batch"].replace("", None))
    sites, kept, notes = label_sites(sites, plate_map, unmapped)
    if sites["experimental_batch"].isna().any():
        raise ValueError(
            "Nothing says which experimental batch the plates belong to. Give one for all with "
            "--experimental-batch NAME, a column experimental_batch in the plate map, or "
            "{experimental_batch} in the template."
        )
    chosen = pa.array(kept.to_numpy(dtype=bool))
    names = channels if isinstance(channels, Sequence) else channels.filter(chosen)
    return as_manifest(sites.reset_index(drop=True), paths.filter(chosen), names), notes


_UNLABELLED = {"perturbation": UNLABELLED, "perturbation_type": "none", "negative_control": False}


def _rename(table: pa.Table, renamed: Mapping[str, str], source: str) -> pa.Table:
    if unknown := [name for name in renamed if name not in table.column_names]:
        raise ValueError(
            f"{source} has no columns {unknown} to rename; it has {table.column_names}."
        )
    names = [renamed.get(name, name) for name in table.column_names]
    twice = sorted({name for name in names if names.count(name) > 1})
    taken = (set(MANIFEST_SCHEMA.names) - {*LABELS, *_PLATE_KEY, "well"}) | set(RESERVED)
    if twice or (bad := sorted(taken & set(names))):
        raise ValueError(
            f"{source} has the columns {twice or bad}, "
            f"{'twice' if twice else 'whose names the index needs itself'}. Rename them with "
            "--plate-map-columns OLD=NEW."
        )
    return table.rename_columns(names)


def _with_wells(rows: pd.DataFrame, source: str) -> pd.DataFrame:
    if "well" not in rows.columns and {"row", "column"} <= set(rows.columns):
        pairs = zip(rows.pop("row"), rows.pop("column"), strict=True)
        rows["well"] = [well_name(row, column) for row, column in pairs]
    if "well" not in rows.columns:
        raise ValueError(
            f"{source} has the columns {list(rows.columns)}, none of them well (or row and "
            "column). Say which it is, such as --plate-map-columns well_position=well."
        )
    return rows.assign(well=standard_wells(rows["well"], source))


def _with_perturbation(rows: pd.DataFrame, source: str) -> pd.DataFrame:
    stands = next((n for n in ("perturbation", "compound", "gene") if n in rows.columns), None)
    if stands is None:
        raise ValueError(
            f"{source} has the columns {list(rows.columns)}, none of which is perturbation, "
            "compound or gene. Say which it is, such as --plate-map-columns genotype=perturbation."
        )
    rows = rows.assign(perturbation=rows[stands])
    empty = (rows["perturbation"] == "") & (rows.get("negative_control", "") == "")
    return rows[~empty]  # a well that the lab left blank is a well without a label


def _with_controls(rows: pd.DataFrame, names: tuple[str, ...], source: str) -> pd.DataFrame:
    """Adds negative_control; controls become one class, and their reagent's name moves aside."""
    if absent := sorted(set(names) - set(rows["perturbation"])):
        raise ValueError(
            f"--negative-controls names {absent}, which {source} does not have; its perturbations "
            f"are {some(sorted(rows['perturbation'].unique()), 20)}."
        )
    given = rows.get("negative_control", pd.Series("", rows.index)).str.lower()
    if (bad := ~given.isin([*_TRUE, *_FALSE])).any():
        raise ValueError(
            f"{source}, row {row_number(rows.index[bad][0])}, column negative_control: "
            f"{given[bad].iloc[0]!r} is given; true or false is required."
        )
    control = given.isin(_TRUE) | rows["perturbation"].isin([*names, NEGATIVE_CONTROL])
    aside = "compound" if "compound" in rows.columns else "guide"
    rows = rows.assign(**{name: rows.get(name, "") for name in LABELS if name != "concentration"})
    moved = control & (rows[aside] == "") & (rows["perturbation"] != NEGATIVE_CONTROL)
    rows[aside] = rows[aside].where(~moved, rows["perturbation"])
    rows["perturbation"] = rows["perturbation"].where(~control, NEGATIVE_CONTROL)
    return rows.assign(negative_control=control)


def _with_types(rows: pd.DataFrame, given: str | None, source: str) -> pd.DataFrame:
    kinds = rows["perturbation_type"].str.lower()
    if given is not None:
        if (kinds != "").any():
            raise ValueError(f"{source} has perturbation types; leave --perturbation-type out.")
        kinds = kinds.mask(~rows["negative_control"], given)
    kinds = kinds.mask(rows["negative_control"] & (kinds == ""), "none")
    bad = ~kinds.isin(PERTURBATION_TYPES)
    if bad.any():
        raise ValueError(
            f"{source}, row {row_number(rows.index[bad][0])}: {kinds[bad].iloc[0]!r} is the "
            f"perturbation_type; one of {PERTURBATION_TYPES} is required. Give one for all wells "
            "with --perturbation-type, or add the column."
        )
    return rows.assign(perturbation_type=kinds)


def _with_concentration(rows: pd.DataFrame, source: str) -> pd.DataFrame:
    """Turns concentration into a number; it has one column, whatever the file has."""
    if "concentration" not in rows.columns:
        rows = rows.assign(concentration="")
    numbers = pd.to_numeric(rows["concentration"].replace("", None), errors="coerce")
    bad = numbers.isna() & (rows["concentration"] != "")
    if bad.any():
        raise ValueError(
            f"{source}, row {row_number(rows.index[bad][0])}, column concentration: "
            f"{rows['concentration'][bad].iloc[0]!r} is given; a number without a unit is required."
        )
    return rows.assign(concentration=numbers.astype(float))


def _texts(rows: pd.DataFrame) -> list[str]:
    return [name for name in rows.columns if name not in ("concentration", "negative_control")]


def _one_batch_per_well(rows: pd.DataFrame, key: list[str], source: str) -> None:
    twins = rows.duplicated(key)
    if twins.any():
        raise ValueError(
            f"{source} gives {' '.join(rows[key][twins].iloc[0])} in several experimental batches, "
            "and the files do not say which is theirs. Give --experimental-batch, or a template "
            "with {experimental_batch}."
        )


def _unused_wells(
    rows: pd.DataFrame, sites: pd.DataFrame, key: list[str], source: str
) -> list[str]:
    wells = rows[key].merge(sites[key].drop_duplicates(), on=key, how="left", indicator=True)
    unused = wells[wells["_merge"] == "left_only"][key]
    if unused.empty:
        return []
    names = [" ".join(names) for names in unused.itertuples(index=False)]
    return [f"{len(names)} of {len(rows)} wells in {source} have no images: {some(names)}."]


def _unmapped_wells(sites: pd.DataFrame, plate_map: PlateMap, unmapped: str) -> str:
    wells = (sites["plate"] + " " + sites["well"]).drop_duplicates().tolist()
    text = f"{len(wells)} wells have images and no label in {plate_map.source}: {some(wells)}"
    if unmapped == "refuse":
        raise ValueError(
            f"{text}. Add them, or give --unmapped unlabelled (they are kept as {UNLABELLED!r}) or "
            "--unmapped leave-out."
        )
    return f"{text}; they are {'left out' if unmapped == 'leave_out' else UNLABELLED}."
