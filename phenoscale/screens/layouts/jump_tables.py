"""The tables beside the images of JUMP (cpg0016): what each well of each plate got.

They are those of the repository jump-cellpainting/datasets, folder metadata, each as CSV, gzipped
or not, or Parquet: plate and well are required; compound, crispr, orf, perturbation_control and
microscope_config are joined where they are there.
"""

from __future__ import annotations

import dataclasses

import pandas as pd

from phenoscale.screens.layouts.found import some
from phenoscale.screens.layouts.manifest import NEGATIVE_CONTROL
from phenoscale.screens.layouts.tables import as_text, read_table, text_columns
from phenoscale.screens.layouts.wells import standard_wells
from phenoscale.screens.storage import Root

_ID, _SOURCE, _BATCH = "Metadata_JCP2022", "Metadata_Source", "Metadata_Batch"
_PLATE, _WELL = "Metadata_Plate", "Metadata_Well"
_COLUMNS = {
    "plate": (_SOURCE, _BATCH, _PLATE),
    "well": (_SOURCE, _PLATE, _WELL, _ID),
    "compound": (_ID, "Metadata_InChIKey"),
    "crispr": (_ID, "Metadata_Symbol"),
    "orf": (_ID, "Metadata_Symbol", "Metadata_broad_sample"),
    "perturbation_control": (_ID, "Metadata_pert_type", "Metadata_Name", "Metadata_modality"),
    "microscope_config": (_SOURCE, "Metadata_Pixel_Size_Microns"),
}
"""Table -> columns that it must have."""
_REQUIRED = ("plate", "well")
_SUFFIXES = ("csv", "csv.gz", "parquet")


@dataclasses.dataclass(frozen=True, kw_only=True)
class JumpTables:
    """The tables, joined as far as they can be without images."""

    plates: pd.DataFrame
    """Columns source, batch and plate of the tables, pixel_size_um, and further ones."""
    wells: pd.DataFrame
    """Columns source, plate and well of the tables, labels of a manifest, and further ones."""
    folder: str
    """Where they lie."""


def read_jump_tables(root: Root) -> JumpTables:
    """Reads and joins the tables of a folder.

    Raises:
        ValueError: if plate or well is missing, a table lacks a column, or wells name reagents that
            no table knows.
    """
    names = {path for path, _ in root.files() if "/" not in path}
    tables: dict[str, pd.DataFrame] = {}
    for name, columns in _COLUMNS.items():
        path = next((f"{name}.{s}" for s in _SUFFIXES if f"{name}.{s}" in names), None)
        if path is not None:
            table = read_table(root.read(path), root.named(path))
            text_columns(table, columns, root.named(path))
            cells = {n: as_text(table[n]).to_pandas() for n in table.column_names}
            tables[name] = pd.DataFrame(cells)
    if missing := [name for name in _REQUIRED if name not in tables]:
        raise ValueError(
            f"{root.url} holds no table {' and no table '.join(missing)} (.csv, .csv.gz or "
            ".parquet); give the folder metadata of jump-cellpainting/datasets, or label the wells "
            "with a plate map."
        )
    plates = tables["plate"].drop_duplicates([_SOURCE, _PLATE])
    sizes = _pixel_sizes_um(tables.get("microscope_config"))
    wells = tables["well"]
    wells[_WELL] = standard_wells(wells[_WELL], root.url)
    return JumpTables(
        plates=plates.assign(pixel_size_um=plates[_SOURCE].map(sizes)),
        wells=_labelled(wells.drop_duplicates([_SOURCE, _PLATE, _WELL]), tables, root.url),
        folder=root.url,
    )


def join_tables(sites: pd.DataFrame, tables: JumpTables) -> pd.DataFrame:
    """Labels sites.

    The experimental batch is `{source}__{batch}`, since sources name batches alike. The JCP id is
    the perturbation, except that all negative controls are one.

    Args:
        sites: text columns plate and well, and source where the images' tables name it.
        tables: what the wells got.

    Raises:
        ValueError: if a plate or well is in no table, or a plate's name is that of several sources.
    """
    key = [_PLATE] if "source" not in sites.columns else [_SOURCE, _PLATE]
    sites = sites.rename(columns={"plate": _PLATE, "well": _WELL, "source": _SOURCE})
    mine = tables.plates[tables.plates[_PLATE].isin(sites[_PLATE])]
    if (twins := mine.duplicated(key)).any():
        raise ValueError(
            f"The plate {mine[_PLATE][twins].iloc[0]!r} belongs to several sources in "
            f"{tables.folder}, and the images' table has no Metadata_Source. Index each source by "
            "itself."
        )
    joined = sites.merge(mine, on=key, how="left", indicator="known")
    _refuse(joined, "known", [_PLATE], "plates", tables.folder)
    joined = joined.drop(columns="known").merge(
        tables.wells, on=[_SOURCE, _PLATE, _WELL], how="left", indicator="known"
    )
    _refuse(joined, "known", [_PLATE, _WELL], "wells", tables.folder)
    joined["experimental_batch"] = joined[_SOURCE] + "__" + joined[_BATCH]
    joined["negative_control"] = joined["negative_control"].astype(bool)
    return joined.drop(columns="known").rename(columns={_PLATE: "plate", _WELL: "well"})


def _labelled(wells: pd.DataFrame, tables: dict[str, pd.DataFrame], folder: str) -> pd.DataFrame:
    reagents = _reagents(tables)
    unknown = sorted(set(wells[_ID]) - set(reagents[_ID]))
    if unknown:
        raise ValueError(
            f"{len(unknown)} reagents of the wells are in no table of {folder}: {some(unknown)}. "
            "Add the tables compound, crispr, orf and perturbation_control that describe them."
        )
    return wells.merge(reagents, on=_ID, how="left", validate="m:1")


def _reagents(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Labels and further columns of every JCP id."""
    kinds = [
        _kind(tables, "compound", compound="Metadata_InChIKey"),
        _kind(tables, "crispr", gene="Metadata_Symbol"),
        _kind(tables, "orf", gene="Metadata_Symbol", guide="Metadata_broad_sample"),
    ]
    nothing = pd.DataFrame(columns=list(_COLUMNS["perturbation_control"]))
    controls = tables.get("perturbation_control", nothing)
    described = {jcp for kind in kinds for jcp in kind[_ID]}
    others = controls[~controls[_ID].isin(described)]
    kinds.append(
        others[[_ID]].assign(perturbation_type=others["Metadata_modality"].replace("any", "none"))
    )
    reagents = pd.concat(kinds, ignore_index=True)
    role = reagents[_ID].map(controls.set_index(_ID)["Metadata_pert_type"])
    name = reagents[_ID].map(controls.set_index(_ID)["Metadata_Name"])
    negative = role == "negcon"
    aside = reagents["perturbation_type"] == "compound"
    return reagents.assign(
        perturbation=reagents[_ID].where(~negative, NEGATIVE_CONTROL),
        gene=reagents["gene"].where(~negative, None),
        guide=reagents["guide"].mask(negative & ~aside, name),
        compound=reagents["compound"].mask(negative & aside, name),
        negative_control=negative,
        control_role=role.fillna("trt"),
    )


def _kind(tables: dict[str, pd.DataFrame], kind: str, **labels: str) -> pd.DataFrame:
    """One table of reagents; `labels` are what a manifest calls some of its columns."""
    nothing = pd.DataFrame(columns=list(_COLUMNS[kind]))
    table = tables.get(kind, nothing).drop_duplicates(_ID)
    copies = {name: table[column].replace("", None) for name, column in labels.items()}
    blank = {name: None for name in ("gene", "guide", "compound") if name not in labels}
    further = table.drop(columns=list(labels.values()))
    return further.assign(perturbation_type=kind, **copies, **blank)


def _pixel_sizes_um(microscopes: pd.DataFrame | None) -> dict[str, float]:
    """Source -> size of a pixel, where the source has one microscope."""
    if microscopes is None:
        return {}
    one = microscopes.drop_duplicates(_SOURCE, keep=False)
    sizes = pd.to_numeric(one["Metadata_Pixel_Size_Microns"], errors="coerce")
    return dict(zip(one[_SOURCE], sizes, strict=True))


def _refuse(joined: pd.DataFrame, mark: str, key: list[str], what: str, folder: str) -> None:
    absent = joined[joined[mark] != "both"][key].drop_duplicates()
    if len(absent):
        names = [" ".join(names) for names in absent.itertuples(index=False)]
        raise ValueError(
            f"{len(names)} {what} of the images are not in the tables of {folder}: {some(names)}. "
            "Use the tables of the same data set, or index fewer load_data tables with --load-data."
        )
