"""Small screens on disk, as the layouts have them. Every writer returns the pixels it wrote.

Pixels are keyed by (experimental_batch, plate, well, site), as an index names them: (C, H, W).
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import imagecodecs
import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import tifffile
import zarr
from PIL import Image

Pixels = npt.NDArray[Any]
Sites = dict[tuple[str, str, str, int], Pixels]

DYES = ("Hoechst", "ConA", "Phalloidin", "Syto14", "MitoTracker", "WGA")
JUMP_CHANNELS = ("DNA", "ER", "RNA", "AGP", "Mito")
HEIGHT, WIDTH = 24, 20


def pixels(seed: int, channels: int, dtype: type = np.uint8) -> Pixels:
    """Random (C, H, W) over the whole range of the type."""
    high = np.iinfo(dtype).max
    shape = (channels, HEIGHT, WIDTH)
    return np.random.default_rng(seed).integers(0, high, shape, dtype=dtype, endpoint=True)


def png(image: Pixels) -> bytes:
    """An image (H, W) as PNG."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


def jp2(image: Pixels) -> bytes:
    """An image (H, W) as JPEG 2000 without loss."""
    return imagecodecs.jpeg2k_encode(image, level=0, codecformat="jp2")


def put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def put_tiff(path: Path, image: Pixels) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, image, compression="zlib")


RXRX1_HEADER = (
    "site_id,well_id,cell_type,dataset,experiment,plate,well,site,well_type,sirna,sirna_id"
)


def write_rxrx1(root: Path) -> Sites:
    """Two experiments x one plate x two wells x two sites: a control and an siRNA."""
    lines, sites = [RXRX1_HEADER], {}
    for experiment in ("HUVEC-01", "HEPG2-02"):
        for well, kind, sirna in (
            ("B02", "negative_control", "EMPTY"),
            ("AA03", "treatment", "s1"),
        ):
            for site in (1, 2):
                image = pixels(len(sites), 6)
                sites[experiment, "1", well, site] = image
                folder = root / "images" / experiment / "Plate1"
                for number, channel in enumerate(image, 1):
                    put(folder / f"{well}_s{site}_w{number}.png", png(channel))
                name = f"{experiment}_1_{well}"
                cell = experiment.partition("-")[0]
                lines.append(
                    f"{name}_{site},{name},{cell},train,{experiment},1,{well},{site},{kind},{sirna},7"
                )
    (root / "metadata.csv").write_text("\n".join(lines) + "\n")
    return sites


RXRX3_HEADER = (
    "well_id,experiment_name,plate,address,gene,treatment,SMILES,concentration,perturbation_type,"
    "cell_type"
)
RXRX3_WELLS = {
    # As the data set's documentation shows them, one of each kind.
    ("gene-079", "8", "H29"): "RPLP2,RPLP2_guide_4,,,CRISPR,HUVEC",
    ("gene-079", "8", "P28"): "EMPTY_control,EMPTY_control,,,CRISPR,HUVEC",
    ("compound-001", "19", "D20"): ',Dequalinium,"CC1 |c:1,13|",0.25,COMPOUND,HUVEC',
    ("compound-001", "19", "U08"): ",EMPTY_control,,,COMPOUND,HUVEC",
    ("compound-001", "19", "B08"): ",CRISPR_control,,,COMPOUND,HUVEC",
}


def _rxrx3_metadata(path: Path) -> None:
    lines = [RXRX3_HEADER]
    lines += [f"{e}_{p}_{w},{e},{p},{w},{rest}" for (e, p, w), rest in RXRX3_WELLS.items()]
    path.write_text("\n".join(lines) + "\n")


def write_rxrx3(root: Path) -> Sites:
    """One site in each of five wells, 8-bit JPEG 2000."""
    sites: Sites = {}
    for experiment, plate, well in RXRX3_WELLS:
        image = pixels(len(sites), 6)
        sites[experiment, plate, well, 1] = image
        for number, channel in enumerate(image, 1):
            name = f"images/{experiment}/Plate{plate}/{well}_s1_{number}.jp2"
            put(root / name, jp2(channel))
    _rxrx3_metadata(root / "metadata.csv")
    return sites


def write_rxrx3_core(root: Path, rows_per_file: int = 13) -> Sites:
    """The same wells in Parquet files that part sites, images as the datasets library has them."""
    sites: Sites = {}
    rows = []
    for experiment, plate, well in RXRX3_WELLS:
        image = pixels(100 + len(sites), 6)
        sites[experiment, plate, well, 1] = image
        for number, channel in enumerate(image, 1):
            key = f"{experiment}/Plate{plate}/{well}_s1_{number}"
            rows.append({"__key__": key, "jp2": {"bytes": jp2(channel), "path": f"{key}.jp2"}})
    np.random.default_rng(0).shuffle(rows)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("__key__", pa.string()), ("jp2", kind)])
    (root / "data").mkdir(parents=True)
    for part, begin in enumerate(range(0, len(rows), rows_per_file)):
        table = pa.Table.from_pylist(rows[begin : begin + rows_per_file], schema=schema)
        pq.write_table(table, root / f"data/train-{part:05d}-of-00003.parquet", row_group_size=4)
    _rxrx3_metadata(root / "metadata_rxrx3_core.csv")
    return sites


def write_load_data(
    root: Path,
    source: str,
    batch: str,
    plate: str,
    wells: Iterable[str],
    *,
    channels: Sequence[str] = JUMP_CHANNELS,
    prefix: str = "s3://cellpainting-gallery/cpg0016-jump",
    form: Literal["csv", "csv.gz", "parquet"] = "csv",
) -> Sites:
    """A plate of the Cell Painting Gallery: its load_data table, and a TIFF per channel."""
    sites: Sites = {}
    rows = []
    for well in wells:
        for site in (1, 2):
            image = pixels(len(plate) + len(sites), len(channels), np.uint16)
            sites[f"{source}__{batch}", plate, well, site] = image
            folder = f"{source}/images/{batch}/images/{plate}/Images"
            row: dict[str, Any] = {"Metadata_Source": source, "Metadata_Batch": batch}
            row |= {"Metadata_Plate": plate, "Metadata_Well": well, "Metadata_Site": site}
            for name, channel in zip(channels, image, strict=True):
                put_tiff(root / folder / f"{well}_f{site}_{name}.tiff", channel)
                row[f"FileName_Orig{name}"] = f"{well}_f{site}_{name}.tiff"
                row[f"PathName_Orig{name}"] = f"{prefix}/{folder}/"
            rows.append(row)
    path = root / source / "workspace/load_data_csv" / batch / plate / f"load_data.{form}"
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(rows)
    if form == "parquet":
        table.to_parquet(path, index=False)
    else:
        table.to_csv(path, index=False)
    return sites


def write_ome_zarr(
    plate: Path,
    *,
    zarr_format: Literal[2, 3],
    wells: Sequence[str] = ("A/1", "B/12"),
    axes: str = "tczyx",
    planes: int = 3,
    times: int = 1,
    channels: Sequence[str] = ("DNA", "ER"),
    unit: str = "micrometer",
) -> dict[tuple[str, int, int], Pixels]:
    """A plate with two fields per well. Returns (well, site, time) -> uint16 (Z, C, H, W)."""
    version = "0.4" if zarr_format == 2 else "0.5"
    written = {}
    group = zarr.open_group(plate, mode="w", zarr_format=zarr_format)
    rows = sorted({well.split("/")[0] for well in wells})
    columns = sorted({well.split("/")[1] for well in wells})
    described = [
        {"path": w, "rowIndex": rows.index(w[0]), "columnIndex": columns.index(w.split("/")[1])}
        for w in wells
    ]
    _attributes(group, version, plate={
        "name": "plate-7", "wells": described, "field_count": 2,
        "rows": [{"name": r} for r in rows], "columns": [{"name": c} for c in columns],
    })  # fmt: skip
    sizes = {"t": times, "c": len(channels), "z": planes, "y": HEIGHT, "x": WIDTH}
    units = [{"name": a} | ({"type": "space", "unit": unit} if a in "zyx" else {}) for a in axes]
    for well in wells:
        of_well = group.create_group(well)
        _attributes(of_well, version, well={"images": [{"path": "0"}, {"path": "1"}]})
        for site in (0, 1):
            seed = 1000 * site + wells.index(well)
            full = np.random.default_rng(seed).integers(
                0, 65536, (times, len(channels), planes, HEIGHT, WIDTH), dtype=np.uint16
            )
            for time in range(times):
                written[well, site, time] = full[time].transpose(1, 0, 2, 3)
            image = of_well.create_group(str(site))
            scale = [0.65 if axis in "yx" else 1.0 for axis in axes]
            transform = {"type": "scale", "scale": scale}
            _attributes(
                image,
                version,
                multiscales=[
                    {
                        "axes": units,
                        "datasets": [{"path": "0", "coordinateTransformations": [transform]}],
                    }
                ],
                omero={"channels": [{"label": name} for name in channels]},
            )
            absent = tuple(i for i, axis in enumerate("tczyx") if axis not in axes)
            image.create_array(
                "0",
                data=full.squeeze(absent) if absent else full,
                chunks=tuple(1 if axis in "tcz" else sizes[axis] // 2 for axis in axes),
            )
    return written


def _attributes(group: zarr.Group, version: str, **metadata: Any) -> None:
    """Writes OME metadata where its version wants them."""
    metadata = json.loads(json.dumps(metadata))
    if version == "0.5":
        group.attrs["ome"] = {"version": version, **metadata}
    else:
        group.attrs.update(metadata)
