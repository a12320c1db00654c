"""Plates of OME-Zarr: OME-NGFF 0.4 (Zarr 2) and 0.5 (Zarr 3).

    plate.zarr/                 metadata: plate (rows, columns, wells)
    plate.zarr/B/03/            metadata: well (images, one per field)
    plate.zarr/B/03/0/          metadata: multiscales (axes, scales), omero (channels)
    plate.zarr/B/03/0/0         the array of the full resolution

A site's path is the array with its plane, such as `plate.zarr/B/03/0/0?t=0&z=max`.
"""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pandas as pd
import pyarrow as pa

from phenoscale.screens.errors import MissingImageError
from phenoscale.screens.layouts.assemble import ALL_TIMES, MAXIMUM
from phenoscale.screens.layouts.found import Found, Seen, inside, some
from phenoscale.screens.layouts.plate_map import PlateMap, labelled_manifest
from phenoscale.screens.layouts.wells import standard_wells
from phenoscale.screens.storage import Root

_MICROMETERS = {"micrometer": 1.0, "nanometer": 1e-3, "millimeter": 1e3, "angstrom": 1e-4}
_THREADS = 16

Json = dict[str, Any]


def find_sites(
    root: Root,
    *,
    z: str | None = None,
    times: str | None = None,
    plate_map: PlateMap | None = None,
    unmapped: str = "refuse",
    experimental_batch: str | None = None,
    seen: Seen | None = None,
) -> Found:
    """Finds the fields of all plates under a root.

    Args:
        root: a plate, or a folder with plates at any depth (walked, which takes long in a store).
        z: `max` or a plane's number from 0, needed where images have several planes.
        times: `all`, or time points from 0 parted by commas, needed where there are several; each
            becomes a site.
        plate_map: what the wells got.
        unmapped: wells that are not in the map: `refuse`, `unlabelled` or `leave_out`.
        experimental_batch: the batch of all plates, if the map does not name it.
        seen: told how many fields were read.

    Raises:
        ValueError: if there is no plate, its metadata are incomplete, or a choice is missing.
    """
    fields = [field for plate in _plates(root) for field in _fields(root, plate)]
    sites: list[Json] = []
    with ThreadPoolExecutor(_THREADS) as pool:
        for number, rows in enumerate(pool.map(lambda f: _sites(root, f, z, times), fields), 1):
            sites += rows
            if seen is not None:
                seen(number)
    table = pd.DataFrame(sites)
    paths = pa.array([[path] for path in table.pop("path")], pa.list_(pa.string()))
    channels = pa.array(table.pop("channels").tolist(), pa.list_(pa.string()))
    if (table["time"] == 0).all():
        table = table.drop(columns="time")
    table["well"] = standard_wells(table["well"], root.url)
    table = table.assign(experimental_batch=experimental_batch or "")
    manifest, notes = labelled_manifest(table, paths, channels, plate_map, unmapped)
    return Found(manifest=manifest, notes=tuple(notes))


def _plates(root: Root) -> list[str]:
    """Folders of plates, relative to the root; "" if it is a plate itself."""
    if "plate" in _metadata(root, ""):
        return [""]
    names = [
        path.rpartition("/")[0]
        for path, _ in root.files()
        if path.endswith(("/zarr.json", "/.zattrs"))
    ]
    plates = [inside(name, root.url) for name in names if "plate" in _metadata(root, name)]
    if not plates:
        raise ValueError(
            f"{root.url} holds no OME-Zarr plate (a group whose metadata have 'plate'); give a "
            "plate, or a folder of plates."
        )
    return sorted(set(plates))


def _fields(root: Root, plate: str) -> list[Json]:
    """Every field of a plate: its folder, well, number and what else the metadata say."""
    described = _metadata(root, plate)["plate"]
    source = root.named(plate)
    stem = re.sub(r"(\.ome)?\.zarr$", "", source.rpartition("/")[2])
    fields = []
    for well in _required(described, "wells", source):
        path = _required(well, "path", source)
        if path.count("/") != 1:
            raise ValueError(f"{source} has a well at {path!r}; ROW/COLUMN is required.")
        folder = inside(f"{plate}/{path}" if plate else path, source)
        images = _required(_metadata(root, folder).get("well", {}), "images", root.named(folder))
        for position, image in enumerate(images):
            name = _required(image, "path", root.named(folder))
            field = {
                "folder": inside(f"{folder}/{name}", source),
                "plate": described.get("name") or stem,
                "well": path.replace("/", ""),
                "site": int(name) if name.isdigit() else position,
            }
            fields.append(field | {k: v for k, v in image.items() if k == "acquisition"})
    return fields


def _sites(root: Root, field: Json, z: str | None, times: str | None) -> list[Json]:
    """The rows of one field, one for each chosen time point."""
    folder = field["folder"]
    source = root.named(folder)
    metadata = _metadata(root, folder)
    image = _required(metadata, "multiscales", source)[0]
    dataset = _required(image, "datasets", source)[0]
    array = inside(f"{folder}/{_required(dataset, 'path', source)}", source)
    shape = _shape(root, array)
    axes = [axis if isinstance(axis, str) else axis["name"] for axis in image.get("axes", "tczyx")]
    if len(axes) != len(shape):
        raise ValueError(f"{source} has the axes {axes} and an array of shape {shape}.")
    size = dict(zip(axes, shape, strict=True))
    plane = _chosen_plane(z, size.get("z", 1), source)
    row = {name: field[name] for name in field if name != "folder"} | {
        "channels": _channels(metadata, size.get("c", 1), source),
        "pixel_size_um": _pixel_size_um(image, dataset, axes),
    }
    # Both are named even where the array has no such axis: they mark the path as that of an array.
    return [
        row | {"time": time, "path": f"{array}?t={time}&z={plane}"}
        for time in _chosen_times(times, size.get("t", 1), source)
    ]


def _chosen_plane(z: str | None, planes: int, source: str) -> str:
    if planes == 1:
        return "0"
    if z == MAXIMUM:
        return MAXIMUM
    if z is None or not z.isdigit() or int(z) >= planes:
        raise ValueError(
            f"{source} has the planes 0 to {planes - 1}, --z is {z}; choose max (maximum over the "
            "planes) or a plane's number."
        )
    return str(int(z))


def _chosen_times(times: str | None, count: int, source: str) -> list[int]:
    if times == ALL_TIMES or (times is None and count == 1):
        return list(range(count))
    chosen = [part.strip() for part in (times or "").split(",")]
    if not all(part.isdigit() and int(part) < count for part in chosen):
        raise ValueError(
            f"{source} has the time points 0 to {count - 1}, --time is {times}; choose one, "
            "several such as 0,1, or all. Each becomes a site of its own."
        )
    return sorted({int(part) for part in chosen})


def _channels(metadata: Json, count: int, source: str) -> list[str]:
    """Labels of the channels; their numbers from 0 where the metadata have none."""
    described = metadata.get("omero", {}).get("channels", [])
    labels = [str(channel.get("label") or number) for number, channel in enumerate(described)]
    if not labels:
        return [str(number) for number in range(count)]
    if len(labels) != count or len(set(labels)) != count:
        raise ValueError(
            f"{source} describes the channels {some(labels, 12)} and its array has {count}; as "
            "many, each with its own label, are required."
        )
    return labels


def _pixel_size_um(image: Json, dataset: Json, axes: list[str]) -> float | None:
    """Size of a pixel along x; None where no unit says what the scale means."""
    position = axes.index("x")
    described = image.get("axes", [])
    axis = described[position] if described else {}
    unit = axis.get("unit") if isinstance(axis, dict) else None
    if unit not in _MICROMETERS:
        return None
    size = _MICROMETERS[unit]
    scaled = False
    for transform in (
        *dataset.get("coordinateTransformations", []),
        *image.get("coordinateTransformations", []),
    ):
        if transform.get("type") == "scale":
            size, scaled = size * float(transform["scale"][position]), True
    return size if scaled else None


def _shape(root: Root, array: str) -> list[int]:
    for name in (".zarray", "zarr.json"):
        found = _read_json(root, f"{array}/{name}")
        if found is not None:
            return _required(found, "shape", root.named(array))
    raise ValueError(f"{root.named(array)} is no Zarr array: it has neither .zarray nor zarr.json.")


def _metadata(root: Root, folder: str) -> Json:
    """The OME metadata of a group; empty if it has none."""
    prefix = f"{folder}/" if folder else ""
    attributes = _read_json(root, f"{prefix}.zattrs")
    if attributes is None:
        attributes = (_read_json(root, f"{prefix}zarr.json") or {}).get("attributes", {})
    nested = attributes.get("ome")
    return nested if isinstance(nested, dict) else attributes


def _read_json(root: Root, path: str) -> Json | None:
    try:
        found = json.loads(root.read(path))
    except MissingImageError:
        return None
    except ValueError as error:
        raise ValueError(f"{root.named(path)} is no JSON ({error}).") from error
    if not isinstance(found, dict):
        raise ValueError(
            f"{root.named(path)} holds {type(found).__name__}, not the metadata of Zarr."
        )
    return found


def _required(metadata: Json, key: str, source: str) -> Any:
    if not isinstance(metadata, dict) or not metadata.get(key):
        raise ValueError(f"{source} has no {key!r} in its OME-Zarr metadata; is it whole?")
    return metadata[key]
