"""The verbs `phenoscale index LAYOUT`: from images as they lie to an index."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from phenoscale.terminal import clear_errors, progress_bar

if TYPE_CHECKING:
    from phenoscale.screens.layouts.found import Found
    from phenoscale.screens.layouts.plate_map import PlateMap
    from phenoscale.screens.storage import Root

index_app = typer.Typer(help="Make an index of a screen, and check it.", no_args_is_help=True)

RefuseOrLeaveOut = Literal["refuse", "leave-out"]
RootArgument = Annotated[str, typer.Argument(help="Folder or URL (s3://...) of the images.")]
Out = Annotated[Path, typer.Option(help="Index to write.")]
Controls = Annotated[bool, typer.Option(help="Require negative controls in every batch.")]
Percentiles = Annotated[
    tuple[float, float],
    typer.Option(help="Per plate and channel, grey values that become 0 and 255; 16 bit only."),
]
Damaged = Annotated[RefuseOrLeaveOut, typer.Option(help="What to do with sites of bad images.")]
Incomplete = Annotated[
    RefuseOrLeaveOut, typer.Option(help="What to do with sites that lack a channel or plane.")
]
Batch = Annotated[str | None, typer.Option(help="Experimental batch of all plates.")]
Z = Annotated[
    str | None,
    typer.Option(help="max, projection, or a plane's number; CHANNEL=RULE after a comma."),
]
Times = Annotated[str | None, typer.Option("--time", help="all, or time points such as 1,2.")]
Channels = Annotated[
    str | None, typer.Option(help="Wanted channels in order, named: 1=DNA,2=ER (or DNA,ER).")
]
PlateMapFile = Annotated[Path | None, typer.Option("--plate-map", help="CSV: what each well got.")]
PlateMapColumns = Annotated[
    str | None, typer.Option(help="Renamed columns, such as well_position=well,genotype=gene.")
]
NegativeControls = Annotated[
    str | None, typer.Option(help="Perturbations of the plate map that are controls: DMSO,WT.")
]
PerturbationType = Annotated[
    str | None, typer.Option(help="crispr, orf, sirna, compound or none, if the map has no column.")
]
Unmapped = Annotated[
    Literal["refuse", "unlabelled", "leave-out"],
    typer.Option(help="What to do with wells that the plate map does not have."),
]

_OUT = Path("index.parquet")
_PERCENTILES = (0.1, 99.9)


@index_app.command("manifest")
def index_manifest(
    manifest: Annotated[Path, typer.Argument(help="CSV or Parquet table, one row per site.")],
    root: RootArgument,
    out: Out = _OUT,
    controls: Controls = True,
    percentiles: Percentiles = _PERCENTILES,
    damaged: Damaged = "refuse",
) -> None:
    """Index the sites that a manifest lists."""
    with clear_errors():
        from phenoscale.screens.layouts.found import Found
        from phenoscale.screens.layouts.manifest import read_manifest

        found = Found(manifest=read_manifest(manifest))
        _write(found, _root(root), out, controls, percentiles, damaged, str(manifest))


@index_app.command("rxrx1")
def index_rxrx1(
    root: RootArgument,
    out: Out = _OUT,
    incomplete: Incomplete = "refuse",
    controls: Controls = True,
    percentiles: Percentiles = _PERCENTILES,
    damaged: Damaged = "refuse",
) -> None:
    """Index RxRx1: metadata.csv, and PNG under images/."""
    with clear_errors():
        from phenoscale.screens.layouts.rxrx1 import find_sites

        place = _root(root)
        with progress_bar("files") as seen:
            found = find_sites(place, incomplete=_word(incomplete), seen=seen)
        _write(found, place, out, controls, percentiles, damaged)


@index_app.command("rxrx3")
def index_rxrx3(
    root: RootArgument,
    metadata: Annotated[str, typer.Option(help="Metadata in the root.")] = "metadata.csv",
    out: Out = _OUT,
    incomplete: Incomplete = "refuse",
    controls: Controls = True,
    percentiles: Percentiles = _PERCENTILES,
    damaged: Damaged = "refuse",
) -> None:
    """Index RxRx3: metadata.csv, and JPEG 2000 or PNG under images/."""
    with clear_errors():
        from phenoscale.screens.layouts.rxrx3 import find_sites

        place = _root(root)
        with progress_bar("files") as seen:
            found = find_sites(place, metadata=metadata, incomplete=_word(incomplete), seen=seen)
        _write(found, place, out, controls, percentiles, damaged)


@index_app.command("rxrx3-core")
def index_rxrx3_core(
    root: RootArgument,
    metadata: Annotated[
        str, typer.Option(help="Metadata in the root.")
    ] = "metadata_rxrx3_core.csv",
    out: Out = _OUT,
    incomplete: Incomplete = "refuse",
    controls: Controls = True,
    percentiles: Percentiles = _PERCENTILES,
    damaged: Damaged = "refuse",
) -> None:
    """Index RxRx3-core: Parquet files with image bytes, as Hugging Face serves them."""
    with clear_errors():
        from phenoscale.screens.layouts.rxrx3_core import find_sites

        place = _root(root)
        with progress_bar("rows") as seen:
            found = find_sites(place, metadata=metadata, incomplete=_word(incomplete), seen=seen)
        _write(found, place, out, controls, percentiles, damaged)


@index_app.command("jump")
def index_jump(
    root: RootArgument,
    load_data: Annotated[
        str, typer.Option(help="Table, or folder of tables, in the root; all by default.")
    ] = "",
    prefix: Annotated[
        str | None, typer.Option(help="What the tables' paths begin with in place of the root.")
    ] = None,
    tables: Annotated[
        str | None, typer.Option(help="Folder metadata of jump-cellpainting/datasets.")
    ] = None,
    channels: Channels = None,
    plate_map: PlateMapFile = None,
    plate_map_columns: PlateMapColumns = None,
    negative_controls: NegativeControls = None,
    perturbation_type: PerturbationType = None,
    unmapped: Unmapped = "refuse",
    experimental_batch: Batch = None,
    out: Out = _OUT,
    incomplete: Incomplete = "refuse",
    controls: Controls = True,
    percentiles: Percentiles = _PERCENTILES,
    damaged: Damaged = "refuse",
) -> None:
    """Index a data set of the Cell Painting Gallery: load_data tables and 16-bit TIFF."""
    with clear_errors():
        from phenoscale.screens.layouts.jump import find_sites
        from phenoscale.screens.layouts.jump_tables import read_jump_tables

        place = _root(root)
        with progress_bar("sites") as seen:
            found = find_sites(
                place,
                load_data=load_data,
                prefix=prefix,
                tables=None if tables is None else read_jump_tables(_root(tables)),
                plate_map=_map(plate_map, plate_map_columns, negative_controls, perturbation_type),
                unmapped=_word(unmapped),
                experimental_batch=experimental_batch,
                channels=_pairs(channels) or None,
                incomplete=_word(incomplete),
                seen=seen,
            )
        _write(found, place, out, controls, percentiles, damaged)


@index_app.command("ome-zarr")
def index_ome_zarr(
    root: RootArgument,
    z: Z = None,
    times: Times = None,
    plate_map: PlateMapFile = None,
    plate_map_columns: PlateMapColumns = None,
    negative_controls: NegativeControls = None,
    perturbation_type: PerturbationType = None,
    unmapped: Unmapped = "refuse",
    experimental_batch: Batch = None,
    out: Out = _OUT,
    controls: Controls = True,
    percentiles: Percentiles = _PERCENTILES,
    damaged: Damaged = "refuse",
) -> None:
    """Index plates of OME-Zarr, version 0.4 or 0.5."""
    with clear_errors():
        from phenoscale.screens.layouts.ome_zarr import find_sites

        place = _root(root)
        with progress_bar("fields") as seen:
            found = find_sites(
                place,
                z=z,
                times=times,
                plate_map=_map(plate_map, plate_map_columns, negative_controls, perturbation_type),
                unmapped=_word(unmapped),
                experimental_batch=experimental_batch,
                seen=seen,
            )
        _write(found, place, out, controls, percentiles, damaged)


@index_app.command("pattern")
def index_pattern(
    root: RootArgument,
    template: Annotated[
        str | None, typer.Option(help="Such as '{plate}/{well}_s{site}_w{channel}.tif'.")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="imagexpress, phenix or yokogawa, instead of a template.")
    ] = None,
    channels: Channels = None,
    z: Z = None,
    times: Times = None,
    plate_map: PlateMapFile = None,
    plate_map_columns: PlateMapColumns = None,
    negative_controls: NegativeControls = None,
    perturbation_type: PerturbationType = None,
    unmapped: Unmapped = "refuse",
    experimental_batch: Batch = None,
    out: Out = _OUT,
    incomplete: Incomplete = "refuse",
    controls: Controls = True,
    percentiles: Percentiles = _PERCENTILES,
    damaged: Damaged = "refuse",
) -> None:
    """Index any folder tree, through a template or as a microscope writes it."""
    with clear_errors():
        from phenoscale.screens.layouts.assemble import Choices
        from phenoscale.screens.layouts.pattern import find_sites

        place = _root(root)
        with progress_bar("files") as seen:
            found = find_sites(
                place,
                template=template,
                preset=preset,
                choices=Choices(
                    channels=_pairs(channels), z=z, times=times, incomplete=_word(incomplete)
                ),
                plate_map=_map(plate_map, plate_map_columns, negative_controls, perturbation_type),
                unmapped=_word(unmapped),
                experimental_batch=experimental_batch,
                seen=seen,
            )
        _write(found, place, out, controls, percentiles, damaged)


def _write(
    found: Found,
    root: Root,
    out: Path,
    controls: bool,
    percentiles: tuple[float, float],
    damaged: RefuseOrLeaveOut,
    source: str = "The layout",
) -> None:
    """Says what was found, and indexes it."""
    from phenoscale.screens.build import build_index
    from phenoscale.screens.layouts.by_name import summary

    typer.echo("\n".join(summary(found)))
    with progress_bar("sites") as tell:
        index = build_index(
            found.manifest,
            root,
            out,
            require_controls=controls,
            percentiles=percentiles,
            damaged="leave_out" if damaged == "leave-out" else "refuse",
            progress=tell,
            source=source,
        )
    typer.echo(f"{out}: {index.num_sites:,} sites, fingerprint {index.fingerprint[:12]}")


def _root(location: str) -> Root:
    from phenoscale.screens.storage import Root

    return Root.of(location)


def _map(
    path: Path | None, columns: str | None, controls: str | None, kind: str | None
) -> PlateMap | None:
    from phenoscale.screens.layouts.plate_map import read_plate_map

    if path is None:
        if columns or controls or kind:
            raise ValueError("Options on the plate map are given without --plate-map FILE.")
        return None
    names = tuple(_pairs(controls))
    renamed = _pairs(columns)
    return read_plate_map(path, renamed=renamed, negative_controls=names, perturbation_type=kind)


def _pairs(text: str | None) -> dict[str, str]:
    """Reads 1=DNA,2=ER; a part without "=" stands for itself."""
    pairs = {}
    for part in (text or "").split(","):
        left, equals, right = part.strip().partition("=")
        if left:
            pairs[left] = right if equals else left
    return pairs


def _word(option: str) -> str:
    return option.replace("-", "_")
