"""RxRx3: CRISPR knock-outs and compounds in HUVEC, a JPEG 2000 or PNG file per channel.

metadata.csv
images/{experiment}/Plate{plate}/{well}_s{site}_{1..6}.jp2      (or ..._w{1..6}.png)
"""

from __future__ import annotations

from phenoscale.screens.layouts.assemble import NO_NUMBER, Choices, assemble
from phenoscale.screens.layouts.found import Found, Seen, as_manifest, match_files, site_lists
from phenoscale.screens.layouts.rxrx import CHANNELS, join_metadata, read_metadata, rxrx3_labels
from phenoscale.screens.storage import Root

COLUMNS = (
    "well_id", "experiment_name", "plate", "address", "gene", "treatment", "SMILES",
    "concentration", "perturbation_type", "cell_type",
)  # fmt: skip
"""Columns that the metadata must have; it has one row per well."""
WELL_KEY = ["experimental_batch", "plate", "well"]
AS_WELLS = {"experiment_name": "experimental_batch", "address": "well"}

_PATH = (
    "^images/(?P<experimental_batch>[^/]+)/Plate(?P<plate>[0-9]+)/"
    r"(?P<well>[A-Z]{1,2}[0-9]{2})_s(?P<site>[0-9]+)_w?(?P<channel>[0-9])\.(?:jp2|png)$"
)


def find_sites(
    root: Root,
    *,
    metadata: str = "metadata.csv",
    incomplete: str = "refuse",
    seen: Seen | None = None,
) -> Found:
    """Finds the sites of RxRx3.

    Args:
        root: the folder with the metadata and images/.
        metadata: path of the metadata in the root.
        incomplete: sites without all six channels: `refuse` or `leave_out`.
        seen: told how many files were seen.

    Raises:
        ValueError: if there are no images, or metadata and images do not go together.
    """
    wells = read_metadata(root, metadata, COLUMNS).rename(columns=AS_WELLS)
    unused = ((rf"^\Q{metadata}\E$", "it is the metadata"),)
    files, passed_over = match_files(root, [_PATH], unused, seen=seen)
    if files.empty:
        raise ValueError(
            f"{root.url} holds no images/EXPERIMENT/PlateN/WELL_sN_N.jp2; give the folder that "
            "holds the metadata and images/."
        )
    files = files.assign(site=files["site"].astype(int), z=NO_NUMBER, time=NO_NUMBER)
    found = assemble(files, Choices(channels=CHANNELS, incomplete=incomplete))
    sites, found, notes = join_metadata(found, wells, WELL_KEY, metadata)
    return Found(
        manifest=as_manifest(rxrx3_labels(sites), site_lists(found.paths), found.channels),
        passed_over=tuple(sorted(passed_over + found.passed_over)),
        notes=tuple(notes),
    )
