"""Which columns of a wide table are features, and what its metadata are called here.

Three kinds of table are told apart by the names of their columns alone, in this order:

1. A prefix (or several) that the caller gives: columns that begin with it are the features.
2. pycytominer: at least one column begins with `Metadata_`. All such are metadata, all others
   features, but for a written-out row index (`INDEX_COLUMNS`).
3. Plain: the columns that begin with one of `FEATURE_PREFIXES` are the features; if columns begin
   with two of them, the caller has to say which.
"""

from __future__ import annotations

from collections.abc import Sequence

from phenoscale.maps.vectors import listed

METADATA_PREFIX = "Metadata_"
FEATURE_PREFIXES = ("feature_", "f_", "g_")
INDEX_COLUMNS = ("", "Unnamed: 0", "__index_level_0__")
"""Names that pandas gives to a row index that it wrote out."""

PYCYTOMINER_NAMES: dict[str, tuple[str, ...]] = {
    "experimental_batch": ("Metadata_Batch", "Metadata_Batch_Number"),
    "plate": ("Metadata_Plate", "Metadata_Assay_Plate_Barcode"),
    "well": ("Metadata_Well", "Metadata_well_position"),
    "site": ("Metadata_Site",),
    "perturbation": ("Metadata_JCP2022", "Metadata_broad_sample"),
    "gene": ("Metadata_gene", "Metadata_Gene", "Metadata_Symbol", "Metadata_gene_name"),
    "guide": ("Metadata_sgRNA", "Metadata_guide"),
    "compound": ("Metadata_pert_iname", "Metadata_compound"),
    "concentration": ("Metadata_mmoles_per_liter",),
    "cell_type": ("Metadata_cell_line", "Metadata_Cell_type", "Metadata_cell_id"),
    "target": ("Metadata_target", "Metadata_target_list"),
}
"""Our name of a column -> its names in profiles of the Cell Painting Gallery and of pycytominer.

The first that a table has is translated; what is left loses its prefix alone, as does a column that
has our own name behind the prefix. The first is also the one that we write, except that our
perturbation and concentration go by their own names: theirs are identifiers and units that ours
need not be. A compound's annotated target is kept apart from gene, the gene that was perturbed.
"""

_OWN_NAMES = ("perturbation", "concentration")


def feature_columns(names: Sequence[str], features: str | Sequence[str] | None) -> list[str]:
    """The feature columns of a table by the rule at the head of this file.

    Args:
        names: all columns of the table.
        features: prefix or prefixes, or None to go by the names.

    Returns:
        Names in the order of the table.

    Raises:
        ValueError: if no column is a feature, or prefixes compete.
    """
    if features is not None:
        prefixes = (features,) if isinstance(features, str) else tuple(features)
        found = [name for name in names if name.startswith(prefixes)]
        asked = f"the prefix {' or '.join(prefixes)}"
    elif any(name.startswith(METADATA_PREFIX) for name in names):
        other = [name for name in names if not name.startswith(METADATA_PREFIX)]
        found = [name for name in other if name not in INDEX_COLUMNS]
        asked = f"{METADATA_PREFIX} for metadata and another beginning for features"
    else:
        competing = [p for p in FEATURE_PREFIXES if any(name.startswith(p) for name in names)]
        if len(competing) > 1:
            raise ValueError(
                f"Columns begin with {' and with '.join(competing)}; which are the features? Say "
                "it by their prefix."
            )
        found = [name for name in names if name.startswith(tuple(competing))] if competing else []
        asked = f"{', '.join(FEATURE_PREFIXES)} for features, or {METADATA_PREFIX} for metadata"
    if not found:
        raise ValueError(
            f"No column holds features: names beginning with {asked} are required, or one list "
            f"column per read-out; there are {listed(list(names))}. Give the prefix of the feature "
            "columns."
        )
    return found


def our_names(columns: Sequence[str]) -> dict[str, str]:
    """What metadata columns are called here, for those that have another name.

    A column whose new name is taken keeps the name that it has.
    """
    taken = {name for name in columns if not name.startswith(METADATA_PREFIX)}
    renamed: dict[str, str] = {}

    def rename(old: str, new: str) -> None:
        if old in columns and old not in renamed and new not in taken:
            renamed[old] = new
            taken.add(new)

    for ours, theirs in PYCYTOMINER_NAMES.items():
        for old in (METADATA_PREFIX + ours, *theirs):
            rename(old, ours)
    for old in columns:
        if old.startswith(METADATA_PREFIX) and old != METADATA_PREFIX:
            rename(old, old.removeprefix(METADATA_PREFIX))
    return renamed


def pycytominer_name(name: str) -> str:
    """What pycytominer would call one of our columns; `our_names` brings it back."""
    theirs = PYCYTOMINER_NAMES.get(name, ())
    return theirs[0] if theirs and name not in _OWN_NAMES else METADATA_PREFIX + name
