from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import imagecodecs
import numcodecs
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from phenoscale.screens.images.readers import (
    ImageError,
    MissingImageError,
    read_header,
    read_native,
    read_site,
    read_windows,
)
from phenoscale.screens.storage import Root

NAMES = ["dna", "er", "rna"]
CORNERS = [(0, 0), (17, 9), (3, 26), (17, 9)]
SCALE = [(100.0, 3000.0), (0.0, 65535.0), (7.0, 7.0)]


def deep(seed: int, *shape: int) -> np.ndarray:
    """Random uint16 of 12 bits with a few larger values."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 4096, shape, dtype=np.uint16)
    image[rng.random(shape) < 0.01] = 65535
    return image


def check(root: Root, paths: list[str], oracle: np.ndarray) -> None:
    """All functions of the readers against (C, H, W) pixels."""
    names = NAMES[: len(oracle)]
    header = read_header(root, paths, names)
    assert (header.num_channels, header.height_px, header.width_px) == oracle.shape
    assert header.dtype == oracle.dtype.name
    native = read_native(root, paths, names, names)
    assert native.dtype == oracle.dtype and native.flags.c_contiguous and native.flags.writeable
    np.testing.assert_array_equal(native, oracle)
    np.testing.assert_array_equal(read_native(root, paths, names, names[::-1]), oracle[::-1])
    site = read_site(root, paths, names, names, SCALE[: len(oracle)])
    expected = oracle if oracle.dtype == np.uint8 else scaled(oracle)
    np.testing.assert_array_equal(site, expected)
    windows = read_windows(root, paths, names, names[-1:], CORNERS, 14, SCALE[: len(oracle)])
    assert windows.shape == (4, 1, 14, 14) and windows.dtype == np.uint8
    for window, (top, left) in zip(windows, CORNERS, strict=True):
        np.testing.assert_array_equal(window, expected[-1:, top : top + 14, left : left + 14])


def scaled(image: np.ndarray) -> np.ndarray:
    out = np.zeros(image.shape, dtype=np.uint8)
    for plane, target, (low, high) in zip(image, out, SCALE, strict=False):
        if high > low:
            grey = np.round((plane.astype(float) - low) / (high - low) * 255)
            target[...] = np.clip(grey, 0, 255)
    return out


TIFF_OPTIONS: list[dict[str, Any]] = [
    {},
    {"rowsperstrip": 7},
    {"byteorder": ">"},
    {"bigtiff": True, "tile": (16, 32)},
    {"tile": (16, 16), "compression": "lzw", "predictor": True},
    {"compression": "lzw", "rowsperstrip": 7},
    {"compression": "lzw", "predictor": True, "byteorder": ">"},
    {"compression": "zlib", "predictor": True, "rowsperstrip": 5, "byteorder": ">"},
    {"compression": "zstd", "rowsperstrip": 40},
    {"compression": "packbits", "rowsperstrip": 3},
    {"compression": "zlib", "planarconfig": "separate"},
    {"compression": "jpegxl"},
    {"compression": "lzma", "rowsperstrip": 8},
    {"imagej": True},
]


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("options", TIFF_OPTIONS, ids=str)
def test_tiffs(tmp_path: Path, options: dict[str, Any], dtype: str) -> None:
    image = deep(0, 3, 33, 41).astype(dtype)
    tifffile.imwrite(
        tmp_path / "a.tif", image, **{"photometric": "minisblack", "metadata": None} | options
    )
    check(Root.of(tmp_path), ["a.tif"], image)
    for channel, plane in enumerate(image):
        single = {key: value for key, value in options.items() if key != "planarconfig"}
        tifffile.imwrite(tmp_path / f"{channel}.tif", plane, metadata=None, **single)
    check(Root.of(tmp_path), ["0.tif", "1.tif", "2.tif"], image)
    colour = np.ascontiguousarray(np.moveaxis(image, 0, -1))
    if not options.keys() & {"planarconfig", "imagej"}:
        tifffile.imwrite(tmp_path / "rgb.tif", colour, photometric="rgb", **options)
        check(Root.of(tmp_path), ["rgb.tif"], image)


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 40)),
    options=st.sampled_from(TIFF_OPTIONS[3:10]),
    data=st.data(),
)
def test_windows_of_strips_and_tiles_agree_with_tifffile(
    tmp_path_factory: pytest.TempPathFactory,
    shape: tuple[int, int, int],
    options: dict[str, Any],
    data: st.DataObject,
) -> None:
    folder = tmp_path_factory.mktemp("tiff")
    image = deep(1, *shape)
    tifffile.imwrite(folder / "a.tif", image, photometric="minisblack", metadata=None, **options)
    size = data.draw(st.integers(1, min(shape[1:])))
    corner = st.tuples(st.integers(0, shape[1] - size), st.integers(0, shape[2] - size))
    corners = data.draw(st.lists(corner, min_size=1, max_size=4))
    names = NAMES[: shape[0]]
    scale = [(0.0, 65535.0)] * len(names)
    found = read_windows(Root.of(folder), ["a.tif"], names, names, corners, size, scale)
    whole = read_site(Root.of(folder), ["a.tif"], names, names, scale)
    np.testing.assert_array_equal(tifffile.imread(folder / "a.tif").reshape(shape), image)
    for window, (top, left) in zip(found, corners, strict=True):
        np.testing.assert_array_equal(window, whole[:, top : top + size, left : left + size])


def jpeg2000_in_tiles(plane: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(plane).save(file, "JPEG2000", tile_size=(16, 16), irreversible=False)
    return file.getvalue()


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_png_and_jpeg_2000(tmp_path: Path, dtype: str) -> None:
    image = deep(2, 3, 33, 41).astype(dtype)
    encoders = {
        "png": imagecodecs.png_encode,
        "jp2": lambda plane: imagecodecs.jpeg2k_encode(plane, level=0),
        "j2k": lambda plane: imagecodecs.jpeg2k_encode(plane, level=0, codecformat="j2k"),
        # Pillow writes tiles of 16 bits wrongly: it does not read them back itself.
        "tiles.jp2": jpeg2000_in_tiles if dtype == "uint8" else imagecodecs.jpeg2k_encode,
    }
    for suffix, encode in encoders.items():
        for channel, plane in enumerate(image):
            # By the first bytes, never by the name.
            (tmp_path / f"{channel}.{suffix}.tif").write_bytes(encode(plane))
        check(Root.of(tmp_path), [f"{c}.{suffix}.tif" for c in range(3)], image)
    colour = np.ascontiguousarray(np.moveaxis(image, 0, -1))
    (tmp_path / "rgb.png").write_bytes(imagecodecs.png_encode(colour))
    (tmp_path / "rgb.jp2").write_bytes(imagecodecs.jpeg2k_encode(colour, level=0))
    check(Root.of(tmp_path), ["rgb.png"], image)
    check(Root.of(tmp_path), ["rgb.jp2"], image)


def test_jpeg_2000_of_twelve_bits_is_read_as_sixteen(tmp_path: Path) -> None:
    image = deep(3, 1, 33, 41) & 4095
    data = imagecodecs.jpeg2k_encode(image[0], level=0, bitspersample=12)
    (tmp_path / "a.jp2").write_bytes(data)
    check(Root.of(tmp_path), ["a.jp2"], image)


@pytest.mark.parametrize("kind", ["binary", "large_binary", "struct"])
def test_cells_of_parquet_tables(tmp_path: Path, kind: str) -> None:
    images = [deep(seed, 1, 33, 41) for seed in range(12)]
    cells: list[Any] = [imagecodecs.png_encode(image[0]) for image in images]
    if kind == "struct":
        cells = [{"bytes": cell, "path": None} for cell in cells]
        array = pa.array(cells, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    else:
        array = pa.array(cells, pa.large_binary() if kind == "large_binary" else pa.binary())
    table = pa.table({"key": [str(i) for i in range(12)], "image": array})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=5)
    root = Root.of(tmp_path)
    for row in (0, 11, 4, 5, 3, 7, 6):
        check(root, [f"a.parquet?row={row}"], images[row])
    paths = [f"a.parquet?row={row}&column=image" for row in (6, 7, 8)]
    check(root, paths, np.concatenate(images[6:9]))
    for path, reason in {
        "a.parquet?row=12": "does not exist: the table has 12 rows",
        "a.parquet?row=0&column=key": "no column 'key' can hold images; .*'image'",
        "a.parquet?row=-1": "is refused: rows, sites, t and z are numbers from 0",
        "a.parquet?row=1&z=0": "is refused: its options do not go together",
        "a.parquet?line=1": "is refused: the option 'line=1' is unknown",
    }.items():
        with pytest.raises(ImageError, match=reason):
            read_header(root, [path], ["dna"])
    with pytest.raises(MissingImageError, match="none.parquet does not exist"):
        read_header(root, ["none.parquet?row=1"], ["dna"])
    with pytest.raises(ImageError, match="is refused: a path must be relative"):
        read_header(root, ["../a.parquet?row=1"], ["dna"])


def write_zarr(folder: Path, image: np.ndarray, axes: str, version: int, **options: Any) -> None:
    """An image group with one array "0", as OME-Zarr 0.4 (v2) and 0.5 (v3) lay it out."""
    group = zarr.open_group(folder, mode="w", zarr_format=version)
    scales = [{"axes": [{"name": axis} for axis in axes], "datasets": [{"path": "0"}]}]
    ome = {"multiscales": scales}
    group.attrs.update(ome if version == 2 else {"ome": ome})
    array = group.create_array("0", shape=image.shape, dtype=image.dtype, **options)
    array[...] = image


ZARR_OPTIONS: list[tuple[int, dict[str, Any]]] = [
    (2, {"chunks": (1, 1, 2, 16, 10)}),
    (2, {"chunks": (1, 2, 1, 33, 41), "compressors": None}),
    (2, {"chunks": (2, 3, 3, 7, 50), "compressors": numcodecs.Zlib(level=1), "order": "F"}),
    (3, {"chunks": (1, 1, 2, 16, 10)}),
    (3, {"chunks": (1, 2, 1, 20, 20), "compressors": zarr.codecs.GzipCodec()}),
    (3, {"chunks": (1, 2, 1, 20, 20), "compressors": zarr.codecs.BloscCodec()}),
    (3, {"chunks": (1, 1, 1, 8, 8), "shards": (1, 2, 1, 16, 32)}),
    (3, {"chunks": (1, 1, 1, 8, 8),
         "compressors": [zarr.codecs.ZstdCodec(), zarr.codecs.Crc32cCodec()]}),
    (3, {"chunks": (1, 1, 3, 16, 16),
         "filters": [zarr.codecs.TransposeCodec(order=(4, 2, 0, 1, 3))]}),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(ZARR_OPTIONS)))
def test_ome_zarr_arrays(tmp_path: Path, number: int) -> None:
    version, options = ZARR_OPTIONS[number]
    image = deep(4, 2, 3, 4, 33, 41)
    image[1, :, 2] = 0  # chunks that are not stored
    write_zarr(tmp_path / "p.zarr/A/1/0", image, "tczyx", version, **options)
    root = Root.of(tmp_path)
    check(root, ["p.zarr/A/1/0/0?t=0&z=3"], image[0, :, 3])
    check(root, ["p.zarr/A/1/0/0?t=1&z=2"], image[1, :, 2])
    check(root, ["p.zarr/A/1/0/0?t=1&z=max"], image[1].max(axis=1))
    for path, reason in {
        "p.zarr/A/1/0/0": "has 2 planes along t; name one in the path with .t=N",
        "p.zarr/A/1/0/0?t=0": "has 4 planes along z; name one in the path with .z=N, or z=max",
        "p.zarr/A/1/0/0?t=0&z=4": "has 4 planes along z; z=4 does not exist",
    }.items():
        with pytest.raises(ImageError, match=reason):
            read_header(root, [path], NAMES)
    with pytest.raises(MissingImageError, match="p.zarr/A/1/0/1 is no OME-Zarr array: .*does not"):
        read_header(root, ["p.zarr/A/1/0/1?t=0&z=0"], NAMES)


@pytest.mark.parametrize("axes", ["yx", "cyx", "zyx", "czyx", "tcyx"])
@pytest.mark.parametrize("version", [2, 3])
def test_axes_of_ome_zarr_may_be_absent(tmp_path: Path, axes: str, version: int) -> None:
    extents = {"t": 1, "c": 2, "z": 3, "y": 33, "x": 41}
    image = deep(5, *[extents[axis] for axis in axes]).astype("uint8" if "t" in axes else "uint16")
    write_zarr(tmp_path / "a.zarr", image, axes, version)
    oracle = image[0] if "t" in axes else image
    if "z" in axes:
        oracle = oracle.max(axis=axes.index("z"))
    path = "a.zarr/0?z=max" if "z" in axes else "a.zarr/0"
    check(Root.of(tmp_path), [path], oracle.reshape(-1, 33, 41))


def test_the_maximum_of_files(tmp_path: Path) -> None:
    stack = deep(6, 3, 2, 33, 41)
    for z, image in enumerate(stack):
        options = {"compression": "zlib"} if z else {}
        tifffile.imwrite(tmp_path / f"{z}.tif", image, photometric="minisblack", **options)
    root = Root.of(tmp_path)
    check(root, ["0.tif*1.tif*2.tif"], stack.max(axis=0))
    tifffile.imwrite(tmp_path / "small.tif", stack[0, :, :32], photometric="minisblack")
    with pytest.raises(ImageError, match="small.tif has 32 x 41 pixels, the first file of its"):
        read_header(root, ["0.tif*small.tif"], NAMES[:2])
    with pytest.raises(MissingImageError, match="none.tif does not exist"):
        read_header(root, ["0.tif*none.tif"], NAMES[:2])


def test_sixteen_bits_need_a_scale_and_eight_ignore_it(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", deep(7, 20, 20))
    root = Root.of(tmp_path)
    with pytest.raises(ImageError, match="a.tif has uint16 pixels, and no scale .* Index the scr"):
        read_site(root, ["a.tif"], ["dna"], ["dna"])
    for low, high in ((2.0, 1.0), (float("nan"), 1.0), (0.0, float("inf"))):
        with pytest.raises(ValueError, match=f"scale from {low} to {high} is refused"):
            read_site(root, ["a.tif"], ["dna"], ["dna"], [(low, high)])
    with pytest.raises(ValueError, match="scale of 2 channels is given, the site has 1"):
        read_site(root, ["a.tif"], ["dna"], ["dna"], SCALE[:2])
    tifffile.imwrite(tmp_path / "b.tif", np.zeros((20, 20), np.uint8))
    with pytest.raises(ImageError, match="b.tif has uint8 pixels, the first file of its site uint"):
        read_header(root, ["a.tif", "b.tif"], ["dna", "er"])


def test_real_files_are_read_as_tifffile_reads_them(real_data: Path) -> None:
    for folder in ("jump_br00117006", "pediatric_atlas_br00143976", "transfluor_row_o"):
        paths = sorted((real_data / folder).glob("*.[tT][iI][fF]*"))[:6]
        if not paths:
            pytest.skip(f"{folder} is absent")
        for path in paths:
            oracle = tifffile.imread(path)
            oracle = np.moveaxis(oracle, -1, 0) if oracle.ndim == 3 else oracle[None]
            check(Root.of(real_data), [path.relative_to(real_data).as_posix()], oracle)
