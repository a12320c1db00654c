"""What the layouts of RxRx1, RxRx3 and RxRx3-core share: stains, and metadata joined to images."""

from __future__ import annotations

import pandas as pd

from phenoscale.screens.layouts.assemble import Assembled
from phenoscale.screens.layouts.found import PassedOver, some
from phenoscale.screens.layouts.manifest import NEGATIVE_CONTROL
from phenoscale.screens.layouts.tables import as_text, read_table, text_columns
from phenoscale.screens.storage import Root

CHANNELS = {
    "1": "Hoechst",
    "2": "ConA",
    "3": "Phalloidin",
    "4": "Syto14",
    "5": "MitoTracker",
    "6": "WGA",
}
"""Number in a file's name -> stain."""
EMPTY_CONTROL = "EMPTY_control"
"""Treatment of the unperturbed wells of RxRx3."""
CRISPR_CONTROL = "CRISPR_control"
"""Treatment of wells with a guide that targets nothing, on compound plates of RxRx3."""
RXRX3_PIXEL_UM = 0.65
"""Size of a pixel in micrometers, from the data set's documentation."""


def read_metadata(root: Root, path: str, required: tuple[str, ...]) -> pd.DataFrame:
    """A table of the data set, all cells as text.

    Raises:
        ValueError: if the file or a required column is missing.
    """
    source = f"{path} in {root.url}"
    table = read_table(root.read(path), source)
    text_columns(table, required, source)
    return pd.DataFrame({name: as_text(table[name]).to_pandas() for name in table.column_names})


def join_metadata(
    found: Assembled, metadata: pd.DataFrame, key: list[str], source: str
) -> tuple[pd.DataFrame, Assembled, list[str]]:
    """Puts each site beside its row of metadata.

    Args:
        found: sites of files.
        metadata: columns of `key` and others, a row per site or well.
        key: columns of `found.sites` that tell metadata rows apart.
        source: what sentences call the metadata.

    Returns:
        The sites that have a row, with its columns; `found` with these sites alone, the files of
        the others passed over; and a sentence on rows without images.

    Raises:
        ValueError: if a row stands twice, or no site has one.
    """
    if (twins := metadata.duplicated(key)).any():
        first = " ".join(map(str, metadata[key][twins].iloc[0]))
        raise ValueError(f"{source} has {first} twice; each site or well needs one row.")
    merged = found.sites.merge(metadata, on=key, how="left", indicator=True)
    known = (merged.pop("_merge") == "both").to_numpy()
    if not known.any():
        raise ValueError(
            f"None of the {len(merged)} sites with images stands in {source}; are images and "
            "metadata of the same data set?"
        )
    passed_over: PassedOver = found.passed_over + [
        (path, f"its well is not in {source}") for path in found.paths[~known].reshape(-1)
    ]
    rows = metadata[key].merge(
        found.sites[key].drop_duplicates(), on=key, how="left", indicator=True
    )
    without = rows[rows["_merge"] == "left_only"][key].astype(str)
    names = [" ".join(names) for names in without.itertuples(index=False)]
    notes = [f"{len(names)} rows of {source} have no images: {some(names)}."] if names else []
    chosen = Assembled(
        sites=found.sites[known],
        paths=found.paths[known],
        channels=found.channels,
        passed_over=passed_over,
    )
    return merged[known].reset_index(drop=True), chosen, notes


def rxrx3_labels(sites: pd.DataFrame) -> pd.DataFrame:
    """Labels from the metadata of RxRx3 and RxRx3-core.

    A gene's guides are one perturbation, the gene. Wells with EMPTY_control are the negative
    controls. CRISPR_control, on compound plates, is a label of its own.

    Args:
        sites: text columns gene, treatment, SMILES, concentration, perturbation_type, cell_type.
    """
    treatment, kind = sites["treatment"], sites["perturbation_type"].str.lower()
    control = treatment == EMPTY_CONTROL
    crispr = (kind == "crispr") & ~control
    compound = (kind == "compound") & ~control & (treatment != CRISPR_CONTROL)
    return sites.drop(columns=["treatment"]).assign(
        perturbation=treatment.where(~crispr, sites["gene"]).where(~control, NEGATIVE_CONTROL),
        perturbation_type=kind.where(crispr | compound, "none"),
        gene=sites["gene"].where(crispr, None),
        guide=treatment.where(crispr, None),
        compound=treatment.where(compound, None),
        concentration=pd.to_numeric(sites["concentration"].where(compound, None)),
        negative_control=control,
        cell_type=sites["cell_type"].replace("", None),
        pixel_size_um=RXRX3_PIXEL_UM,
    )
