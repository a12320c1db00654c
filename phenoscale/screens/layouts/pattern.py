"""Any folder tree, read through one template; with presets for what microscopes write."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd

from phenoscale.screens.layouts.assemble import NO_NUMBER, Choices, assemble
from phenoscale.screens.layouts.found import Found, Seen, match_files, site_lists
from phenoscale.screens.layouts.plate_map import PlateMap, labelled_manifest
from phenoscale.screens.layouts.template import FIELDS, template_expression
from phenoscale.screens.layouts.wells import row_letters, standard_wells
from phenoscale.screens.storage import Root


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
    """How one kind of microscope names its files."""

    templates: tuple[str, ...]
    """Tried in order; the first that matches reads a path."""
    unused: tuple[tuple[str, str], ...] = ()
    """(RE2 expression, reason) of files that lie beside the images and are none."""


_PHENIX = "r{row}c{column}f{site}p{z}-ch{channel:[0-9]+}sk{time}fk1fl1.tif[f]"
_GUID = "[{_:[0-9a-f]{8}-[0-9a-f-]{27}}]"
PRESETS = {
    # MetaXpress: {date}/{plate id}/[TimePoint_n/][ZStep_n/]{plate}_{well}_s{site}_w{channel}{GUID};
    # the top level beside ZStep folders holds projections.
    "imagexpress": Preset(
        templates=(
            "**/[TimePoint_{time}/][ZStep_{z}/][{plate}_]{well}[_s{site}][_w{channel:[0-9]+}]"
            + _GUID
            + ".tif[f]",
        ),
        unused=((r"(?i)_thumb[^/]*\.tiff?$", "it is a thumbnail"),),
    ),
    # Harmony: {plate}__{date}-Measurement 1/Images/r01c01f01p01-ch1sk1fk1fl1.tiff
    "phenix": Preset(
        templates=(
            f"**/{{plate}}/Images/{_PHENIX}",
            f"Images/{_PHENIX}",
            f"**/{{plate}}/{_PHENIX}",
            _PHENIX,
        ),
        unused=(
            (r"(?i)(^|/)Index(\.idx|\.ref|\.flex)?\.xml$", "it is the microscope's own index"),
        ),
    ),
    # CV7000 and CV8000: L is the timeline, A the action of the measurement protocol.
    "yokogawa": Preset(
        templates=(
            "**/[{plate}_]{well}_T{time}F{site}L{_:[0-9]+}A{_:[0-9]+}Z{z}C{channel:[0-9]+}.tif[f]",
        ),
        unused=((r"(?i)(^|/)[DS]C_[^/]*\.tif$", "it is a dark or shading image of the camera"),),
    ),
}
"""Name -> preset."""


def find_sites(
    root: Root,
    *,
    template: str | None = None,
    preset: str | None = None,
    choices: Choices | None = None,
    plate_map: PlateMap | None = None,
    unmapped: str = "refuse",
    experimental_batch: str | None = None,
    seen: Seen | None = None,
) -> Found:
    """Finds the sites of a folder tree.

    A tree whose paths name no plate is one plate, called as the root's last folder.

    Args:
        root: the folder that the template starts from.
        template: as `template_expression` reads it.
        preset: a name of PRESETS, instead of a template.
        choices: which channels, planes and time points.
        plate_map: what the wells got.
        unmapped: wells that are not in the map: `refuse`, `unlabelled` or `leave_out`.
        experimental_batch: the batch of all plates, where neither path nor map names one.
        seen: told how many files were seen.

    Raises:
        ValueError: if nothing matches, or a choice, batch or label is missing.
    """
    chosen = _preset(template, preset)
    expressions = [template_expression(text) for text in chosen.templates]
    files, passed_over = match_files(root, expressions, chosen.unused, seen=seen)
    if files.empty:
        examples = [path for path, reason in passed_over if reason.endswith("match")][:3]
        raise ValueError(
            f"None of {len(passed_over)} files in {root.url} matches {chosen.templates}. The first "
            f"are {examples}; give a --template such as "
            "'{plate}/{well}_s{site}_w{channel}.tif'."
        )
    files, notes = _typed(files, root, experimental_batch)
    found = assemble(files, choices or Choices())
    manifest, more = labelled_manifest(
        found.sites, site_lists(found.paths), found.channels, plate_map, unmapped
    )
    return Found(
        manifest=manifest,
        passed_over=tuple(sorted(passed_over + found.passed_over)),
        notes=(*notes, *more),
    )


def _preset(template: str | None, preset: str | None) -> Preset:
    if (template is None) == (preset is None):
        raise ValueError(
            f"Give either a template or a preset; the presets are {', '.join(PRESETS)}."
        )
    if template is not None:
        return Preset(templates=(template,))
    if preset not in PRESETS:
        raise ValueError(f"There is no preset {preset!r}; there are {', '.join(PRESETS)}.")
    return PRESETS[preset]


def _typed(
    files: pd.DataFrame, root: Root, experimental_batch: str | None
) -> tuple[pd.DataFrame, list[str]]:
    """Fields as `assemble` takes them, and sentences on what was assumed."""
    notes = []
    files = files.assign(**{name: "" for name in FIELDS if name not in files.columns})
    by_number = files["well"] == ""
    rows = files["row"].map(lambda row: row_letters(int(row)) if row.isdigit() else row.upper())
    files["well"] = files["well"].where(~by_number, rows + files["column"])
    files["well"] = standard_wells(files["well"], root.url)
    if (unnamed := files["plate"] == "").any():
        name = root.url.split("?")[0].rstrip("/").split("/")[-1]
        files["plate"] = files["plate"].where(~unnamed, name)
        notes.append(f"Paths without a plate are of the plate {name!r}, as the root is called.")
    if experimental_batch is not None:
        if (files["experimental_batch"] != "").any():
            raise ValueError("The paths name experimental batches; leave --experimental-batch out.")
        files["experimental_batch"] = experimental_batch
    for name, absent in (("site", 1), ("z", NO_NUMBER), ("time", NO_NUMBER)):
        files[name] = files[name].replace("", str(absent)).astype(np.int64)
    files["channel"] = files["channel"].replace("", "1")
    files["channel"] = files["channel"].map(lambda c: str(int(c)) if c.isdigit() else c)
    return files.drop(columns=["row", "column", "_"]), notes
