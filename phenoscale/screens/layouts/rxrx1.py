"""RxRx1: 8-bit PNG per channel, siRNA knock-downs in four cell types.

metadata.csv
images/{experiment}/Plate{plate}/{well}_s{site}_w{1..6}.png
"""

from __future__ import annotations

import pandas as pd

from phenoscale.screens.layouts.assemble import NO_NUMBER, Choices, assemble
from phenoscale.screens.layouts.found import Found, Seen, as_manifest, match_files, site_lists
from phenoscale.screens.layouts.manifest import NEGATIVE_CONTROL
from phenoscale.screens.layouts.rxrx import CHANNELS, join_metadata, read_metadata
from phenoscale.screens.storage import Root

METADATA = "metadata.csv"

_PATH = (
    "^images/(?P<experimental_batch>[^/]+)/Plate(?P<plate>[0-9]+)/"
    r"(?P<well>[A-Z]{1,2}[0-9]{2})_s(?P<site>[0-9]+)_w(?P<channel>[0-9])\.png$"
)
_UNUSED = ((f"^{METADATA}$", "it is the metadata"),)
_COLUMNS = ("site_id", "experiment", "plate", "well", "site", "cell_type", "well_type", "sirna")


def find_sites(root: Root, *, incomplete: str = "refuse", seen: Seen | None = None) -> Found:
    """Finds the sites of RxRx1.

    Args:
        root: the folder with metadata.csv and images/.
        incomplete: sites without all six channels: `refuse` or `leave_out`.
        seen: told how many files were seen.

    Raises:
        ValueError: if there are no images, or metadata and images do not go together.
    """
    metadata = read_metadata(root, METADATA, _COLUMNS).rename(
        columns={"experiment": "experimental_batch"}
    )
    metadata["site"] = metadata["site"].astype(int)
    files, passed_over = match_files(root, [_PATH], _UNUSED, seen=seen)
    if files.empty:
        raise ValueError(
            f"{root.url} holds no images/EXPERIMENT/PlateN/WELL_sN_wN.png; give the folder that "
            "holds metadata.csv and images/."
        )
    files = files.assign(site=files["site"].astype(int), z=NO_NUMBER, time=NO_NUMBER)
    found = assemble(files, Choices(channels=CHANNELS, incomplete=incomplete))
    key = ["experimental_batch", "plate", "well", "site"]
    sites, found, notes = join_metadata(found, metadata, key, METADATA)
    return Found(
        manifest=as_manifest(_labels(sites), site_lists(found.paths), found.channels),
        passed_over=tuple(sorted(passed_over + found.passed_over)),
        notes=tuple(notes),
    )


def _labels(sites: pd.DataFrame) -> pd.DataFrame:
    """The siRNA is the perturbation and the guide; the data set does not say which gene it hits."""
    control = sites["well_type"] == NEGATIVE_CONTROL
    return sites.assign(
        perturbation=sites["sirna"].where(~control, NEGATIVE_CONTROL),
        perturbation_type="sirna",
        guide=sites["sirna"],
        negative_control=control,
    ).drop(columns="sirna")
