from __future__ import annotations

import gzip
import json
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from phenoscale.screens.images.readers import ImageError, read_header, read_site
from phenoscale.screens.storage import Root
from tests.screen_on_disk import pixels
from tests.test_image_formats import deep, write_zarr
from tests.test_readers import bomb_png

IMAGE = deep(0, 24, 20)
SCALE = [(0.0, 65535.0)]


def tiff(path: Path, **options: Any) -> None:
    tifffile.imwrite(path, IMAGE, metadata=None, **options)


def parquet(path: Path) -> None:
    cell = imagecodecs.png_encode(IMAGE)
    pq.write_table(pa.table({"image": pa.array([cell] * 3, pa.binary())}), path)


WRITERS: dict[str, Callable[[Path], object]] = {
    "raw": tiff,
    "lzw": lambda path: tiff(path, compression="lzw", predictor=True),
    "deflate tiles": lambda path: tiff(path, compression="zlib", tile=(16, 16)),
    "zstd": lambda path: tiff(path, compression="zstd", rowsperstrip=5),
    "bigtiff": lambda path: tiff(path, bigtiff=True, rowsperstrip=5),
    "png": lambda path: path.write_bytes(imagecodecs.png_encode(IMAGE)),
    "jp2": lambda path: path.write_bytes(imagecodecs.jpeg2k_encode(IMAGE, level=0)),
    "j2k": lambda path: path.write_bytes(
        imagecodecs.jpeg2k_encode(IMAGE, level=0, codecformat="j2k")
    ),
    "parquet": parquet,
}


def outcome(folder: Path, entry: str) -> np.ndarray | None:
    """The site, or None for an ImageError that names the file; any other error is a failure."""
    root = Root.of(folder)
    try:
        header = read_header(root, [entry], ["dna"])
        site = read_site(root, [entry], ["dna"], ["dna"], SCALE)
    except ImageError as error:
        assert entry.partition("?")[0] in str(error)
        return None
    assert site.shape == (1, header.height_px, header.width_px)
    return site


@pytest.mark.parametrize("writer", WRITERS)
def test_truncation_at_any_byte_is_an_image_error(tmp_path: Path, writer: str) -> None:
    WRITERS[writer](tmp_path / "image")
    raw = (tmp_path / "image").read_bytes()
    query = "?row=1" if writer == "parquet" else ""
    assert outcome(tmp_path, f"image{query}") is not None
    for size in {*range(0, len(raw), max(1, len(raw) // 60)), *range(len(raw) - 8, len(raw))}:
        (tmp_path / f"{size}").write_bytes(raw[:size])
        assert outcome(tmp_path, f"{size}{query}") is None, f"{size} of {len(raw)} bytes are read"


@settings(max_examples=250, deadline=None)
@given(
    writer=st.sampled_from(sorted(WRITERS)),
    flips=st.lists(st.tuples(st.integers(0, 300), st.integers(0, 255)), min_size=1, max_size=4),
    at_end=st.booleans(),
    number=st.uuids(),
)
def test_flipped_bytes_are_an_image_error_or_an_image_of_the_size_that_the_header_says(
    tmp_path_factory: pytest.TempPathFactory,
    writer: str,
    flips: list[tuple[int, int]],
    at_end: bool,
    number: object,
) -> None:
    path = tmp_path_factory.getbasetemp() / f"{number}"
    WRITERS[writer](path)
    raw = bytearray(path.read_bytes())
    for position, value in flips:
        raw[-1 - position % len(raw) if at_end else position % len(raw)] = value
    path.write_bytes(raw)
    outcome(path.parent, f"{path.name}{'?row=1' if writer == 'parquet' else ''}")
    path.unlink()


@pytest.mark.parametrize("version", [2, 3])
def test_damaged_zarr_arrays_are_image_errors(tmp_path: Path, version: int) -> None:
    options: dict[str, Any] = {"shards": (24, 20)} if version == 3 else {}
    write_zarr(tmp_path / "a.zarr", IMAGE, "yx", version, chunks=(12, 10), **options)
    files = [f for f in sorted((tmp_path / "a.zarr").rglob("*")) if f.is_file()]
    assert len(files) == (3 if version == 3 else 8)
    for file in files:
        if file.name == ".zgroup" or (file.parent.name, file.name) == ("0", ".zattrs"):
            continue  # neither says anything of pixels
        raw = file.read_bytes()
        for number, damaged in enumerate(
            [raw[: len(raw) // 2], b"", b"[]", raw[:-1], b"\xff" * len(raw)]
        ):
            # Metadata is kept by name, so that each damage needs a name of its own.
            copy = tmp_path / f"{files.index(file)}_{number}.zarr"
            (tmp_path / "a.zarr").rename(copy)
            (copy / file.relative_to(tmp_path / "a.zarr")).write_bytes(damaged)
            assert outcome(tmp_path, f"{copy.name}/0") is None
            (copy / file.relative_to(tmp_path / "a.zarr")).write_bytes(raw)
            copy.rename(tmp_path / "a.zarr")


ABSURD: dict[str, Any] = {
    "shape": [2**20, 2**20], "chunks": [2**31, 2**31], "dtype": "<f4", "fill_value": 70000,
    "compressor": {"id": "pickle"}, "filters": [{"id": "delta"}], "order": "K",
    "dimension_separator": "/../../",
}  # fmt: skip


@pytest.mark.parametrize("key", ABSURD)
def test_absurd_zarr_metadata_is_refused(tmp_path: Path, key: str) -> None:
    write_zarr(tmp_path / "a.zarr", IMAGE, "yx", 2, chunks=(12, 10))
    path = tmp_path / "a.zarr/0/.zarray"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: ABSURD[key]}))
    with pytest.raises(ImageError, match="a.zarr/0 (has|claims) "):
        read_header(Root.of(tmp_path), ["a.zarr/0"], ["dna"])


def test_files_of_a_site_that_do_not_fit_are_named(tmp_path: Path) -> None:
    root = Root.of(tmp_path)
    tiff(tmp_path / "a.tif", compression="lzw")
    (tmp_path / "b.png").write_bytes(imagecodecs.png_encode(IMAGE[:-1]))
    (tmp_path / "c.jp2").write_bytes(imagecodecs.jpeg2k_encode(pixels(0, 1, 24, 20)[0], level=0))
    write_zarr(tmp_path / "d.zarr", deep(1, 2, 24, 20), "cyx", 3)
    for other, reason in {
        "b.png": "b.png has 23 x 20 pixels, the first file of its site 24 x 20",
        "c.jp2": "c.jp2 has uint8 pixels, the first file of its site uint16",
        "d.zarr/0": "d.zarr/0 has 2 channels, its site needs 1 from it",
    }.items():
        for read in (read_header, lambda *site: read_site(*site, ["dna", "er"], SCALE * 2)):
            with pytest.raises(ImageError, match=reason):
                read(root, ["a.tif", other], ["dna", "er"])


def edited_tiff(path: Path, tag: int, value: int, **options: Any) -> None:
    tiff(path, **options)
    with tifffile.TiffFile(path, mode="r+") as file:
        file.pages[0].tags[tag].overwrite(value)  # type: ignore[union-attr]


def write_bombs(folder: Path) -> list[str]:
    """Small files that claim, or decode to, far more than a site has."""
    zeros = bytes(1 << 28)
    squeezed = zlib.compress(zeros, 1)
    (folder / "claims.png").write_bytes(bomb_png(60_000, 60_000, bits=16))
    edited_tiff(folder / "width.tif", 256, 2**31 - 1, compression="zlib")
    edited_tiff(folder / "height.tif", 257, 2**31 - 1, compression="lzw")
    edited_tiff(folder / "tile.tif", 322, 2**30, compression="zlib", tile=(16, 16))
    for name, codec, data in [
        ("deflate.tif", "zlib", squeezed),
        ("zstd.tif", "zstd", imagecodecs.zstd_encode(zeros)),
    ]:
        tiff(folder / name, compression=codec)
        raw = (folder / name).read_bytes()
        with tifffile.TiffFile(folder / name) as file:
            begin = file.pages[0].dataoffsets[0]  # type: ignore[union-attr]
        (folder / name).write_bytes(raw[:begin] + data)
        with tifffile.TiffFile(folder / name, mode="r+") as file:
            file.pages[0].tags[279].overwrite(len(data))  # type: ignore[union-attr]
    stream = bytearray(imagecodecs.jpeg2k_encode(IMAGE, level=0, codecformat="j2k"))
    stream[8:16] = struct.pack(">II", 2**31 - 1, 2**31 - 1)
    (folder / "claims.j2k").write_bytes(stream)
    stream[8:16] = struct.pack(">II", 8192, 8192)
    stream[24:32] = struct.pack(">II", 1, 1)
    (folder / "tiles.j2k").write_bytes(stream)
    entries = [path.name for path in folder.iterdir()]
    for name, data in {
        "gzip": gzip.compress(zeros, 1),
        "zstd": imagecodecs.zstd_encode(zeros),
        "blosc": imagecodecs.blosc_encode(zeros),
    }.items():
        codec = {"gzip": zarr.codecs.GzipCodec(), "zstd": zarr.codecs.ZstdCodec(),
                 "blosc": zarr.codecs.BloscCodec()}[name]  # fmt: skip
        write_zarr(folder / f"{name}.zarr", IMAGE, "yx", 3, chunks=IMAGE.shape, compressors=codec)
        (folder / f"{name}.zarr/0/c/0/0").write_bytes(data)
        entries.append(f"{name}.zarr/0")
    return entries


def test_bombs_are_refused_in_little_memory(tmp_path: Path) -> None:
    entries = write_bombs(tmp_path)
    assert len(entries) == 11
    # The limit holds for all that a decoder asks for, not only for Python's own objects.
    script = """
import resource, sys
from phenoscale.screens.images.readers import ImageError, read_site
from phenoscale.screens.storage import Root
root = Root.of(sys.argv[1])
with open("/proc/self/statm") as file:
    now = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + (200 << 20),) * 2)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for entry in sys.argv[2:]:
    try:
        read_site(root, [entry], ["dna"], ["dna"], [(0.0, 65535.0)])
        print("read", entry)
    except ImageError as error:
        assert entry in str(error)
        if "memory" in str(error).lower():
            print("asked for memory", entry, error)
grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
print("grown by more than 64 MiB:", grown) if grown > 64 else None
"""
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path, *entries], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
