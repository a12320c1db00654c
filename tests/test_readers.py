from __future__ import annotations

import os
import re
import struct
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from phenoscale.screens.images.headers import MAX_PIXELS
from phenoscale.screens.images.readers import (
    ImageError,
    MissingImageError,
    read_header,
    read_site,
    read_windows,
)
from phenoscale.screens.storage import Root
from tests.screen_on_disk import pixels

NAMES = ["dna", "er", "rna", "actin", "golgi", "mito"]
LAYOUTS: dict[str, dict[str, Any]] = {
    "pages": {"metadata": None},
    "pages_described": {},
    "planes": {"metadata": None, "planarconfig": "separate"},
    "strips": {"metadata": None, "rowsperstrip": 5},
    "big_endian": {"metadata": None, "byteorder": ">"},
    "zlib": {"compression": "zlib"},
    "tiles": {"tile": (16, 16)},
    "bigtiff": {"bigtiff": True},
    "imagej": {"imagej": True},
    "one_page": {"contiguous": True, "metadata": {"axes": "CYX"}},
}
RAW = {"pages", "pages_described", "planes", "strips", "big_endian", "one_page", "bigtiff"}


def write_tiff(path: Path, image: np.ndarray, layout: str = "planes") -> str:
    options = {"photometric": "minisblack"} | LAYOUTS[layout]
    if image.ndim == 2 or len(image) == 1:
        options.pop("planarconfig", None)  # tifffile asks for two or more planes
    tifffile.imwrite(path, image, **options)
    return path.name


def write_png(path: Path, image: np.ndarray) -> str:
    Image.fromarray(image).save(path)
    return path.name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_tiff_layout_gives_its_channels_by_name(tmp_path: Path, layout: str) -> None:
    image = pixels(1, 6, 21, 17)
    paths = [write_tiff(tmp_path / "site.tif", image, layout)]
    header = read_header(Root.of(tmp_path), paths, NAMES)
    assert (header.num_channels, header.height_px, header.width_px) == (6, 21, 17)
    assert header.dtype == "uint8" and (header.offset is not None) == (layout in RAW)
    site = read_site(Root.of(tmp_path), paths, NAMES, NAMES)
    assert site.dtype == np.uint8 and site.flags.c_contiguous and site.flags.writeable
    np.testing.assert_array_equal(site, image)
    np.testing.assert_array_equal(
        read_site(Root.of(tmp_path), paths, NAMES, ["mito", "dna"]), image[[5, 0]]
    )
    windows = read_windows(Root.of(tmp_path), paths, NAMES, ["er", "actin"], [(3, 2), (9, 0)], 11)
    np.testing.assert_array_equal(windows[0], image[[1, 3], 3:14, 2:13])
    np.testing.assert_array_equal(windows[1], image[[1, 3], 9:20, 0:11])
    assert windows.flags.c_contiguous and windows.flags.owndata


def test_one_file_per_channel_equals_one_file(tmp_path: Path) -> None:
    image = pixels(2, 3, 20, 30)
    single = [write_tiff(tmp_path / "all.tif", image)]
    several = [
        write_png(tmp_path / "0.png", image[0]),
        write_tiff(tmp_path / "1.tif", image[1], "zlib"),
        write_tiff(tmp_path / "2.tif", image[2], "pages"),
    ]
    for wanted in (NAMES[:3], ["rna", "dna"]):
        np.testing.assert_array_equal(
            read_site(Root.of(tmp_path), several, NAMES[:3], wanted),
            read_site(Root.of(tmp_path), single, NAMES[:3], wanted),
        )
    np.testing.assert_array_equal(
        read_windows(Root.of(tmp_path), several, NAMES[:3], ["rna", "dna"], [(4, 9)], 16)[0],
        image[[2, 0], 4:20, 9:25],
    )
    header = read_header(Root.of(tmp_path), several, NAMES[:3])
    assert (header.num_channels, header.height_px, header.width_px) == (3, 20, 30)


def test_colour_png_and_interleaved_tiff_are_channels(tmp_path: Path) -> None:
    image = pixels(3, 3, 8, 9)
    last = np.ascontiguousarray(np.moveaxis(image, 0, -1))
    png = [write_png(tmp_path / "rgb.png", last)]
    tifffile.imwrite(tmp_path / "rgb.tif", last, photometric="rgb")
    for paths in (png, ["rgb.tif"]):
        np.testing.assert_array_equal(
            read_site(Root.of(tmp_path), paths, NAMES[:3], ["rna", "er", "dna"]), image[::-1]
        )


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 7), st.integers(2, 40), st.integers(2, 40)),
    layout=st.sampled_from(sorted(LAYOUTS)),
    data=st.data(),
)
def test_windows_agree_with_tifffile(
    shape: tuple[int, int, int], layout: str, data: st.DataObject
) -> None:
    channels, height, width = shape
    size = data.draw(st.integers(1, min(height, width)))
    top, left = data.draw(st.integers(0, height - size)), data.draw(st.integers(0, width - size))
    names = [f"c{i}" for i in range(channels)]
    wanted = data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=4))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "site.tif"
        write_tiff(path, pixels(0, *shape), layout)
        oracle = tifffile.imread(path).reshape(shape)
        found = read_windows(
            Root.of(folder), ["site.tif"], names, wanted, np.array([(top, left), (0, 0)]), size
        )
    picks = [names.index(name) for name in wanted]
    np.testing.assert_array_equal(found[0], oracle[picks, top : top + size, left : left + size])
    np.testing.assert_array_equal(found[1], oracle[picks, :size, :size])


@settings(max_examples=300, deadline=None)
@given(
    layout=st.sampled_from(["pages", "planes", "zlib", "bigtiff", "png"]),
    flips=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=4),
    keep=st.floats(0, 1),
)
def test_damage_is_an_image_error_or_an_image_of_the_right_shape(
    layout: str, flips: list[tuple[int, int]], keep: float
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "site"
        if layout == "png":
            Image.fromarray(pixels(0, 1, 12, 12)[0]).save(path, format="PNG")
        else:
            write_tiff(path, pixels(0, 1, 12, 12), layout)
        raw = bytearray(path.read_bytes())
        for position, value in flips:
            raw[position % len(raw)] = value
        path.write_bytes(raw[: max(1, round(len(raw) * keep))])
        try:
            header = read_header(Root.of(folder), ["site"], ["dna"])
            site = read_site(Root.of(folder), ["site"], ["dna"], ["dna"])
        except ImageError as error:
            assert str(path) in str(error)
        else:
            assert site.shape == (1, header.height_px, header.width_px)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_truncation_is_found(tmp_path: Path, layout: str) -> None:
    path = tmp_path / "site.tif"
    write_tiff(path, pixels(4, 6, 32, 32), layout)
    raw = path.read_bytes()
    for size in [1, 4, 8, 20, 150, len(raw) // 2, len(raw) * 3 // 4]:
        path.write_bytes(raw[:size])
        with pytest.raises(ImageError, match="site.tif (is truncated|has a damaged|begins with)"):
            read_header(Root.of(tmp_path), ["site.tif"], NAMES)
        with pytest.raises(ImageError, match="site.tif"):
            read_site(Root.of(tmp_path), ["site.tif"], NAMES, NAMES)
    path.write_bytes(raw)
    assert read_site(Root.of(tmp_path), ["site.tif"], NAMES, NAMES).shape == (6, 32, 32)


def bomb_png(width: int, height: int, bits: int = 8, colour: int = 0) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + check

    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def test_absurd_headers_are_refused_before_pixels_are_given_memory(tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(bomb_png(60_000, 60_000))
    with pytest.raises(ImageError, match=f"bomb.png claims 60000 x 60000 .* {MAX_PIXELS}"):
        read_site(Root.of(tmp_path), ["bomb.png"], ["dna"], ["dna"])
    for layout in ("planes", "zlib"):
        path = tmp_path / "bomb.tif"
        write_tiff(path, pixels(0, 1, 12, 12), layout)
        raw = path.read_bytes()
        for tag in (256, 257):
            edge = struct.pack("<HHII", tag, 4, 1, 12)
            assert raw.count(edge) == 1
            raw = raw.replace(edge, struct.pack("<HHII", tag, 4, 1, 90_000))
        path.write_bytes(raw)
        with pytest.raises(ImageError, match="bomb.tif (claims 90000 x 90000 pixels|is truncated)"):
            read_site(Root.of(tmp_path), ["bomb.tif"], ["dna"], ["dna"])


def test_other_types_than_uint8_and_uint16_are_refused(tmp_path: Path) -> None:
    root = Root.of(tmp_path)
    for dtype in ("uint32", "float32", "int8", "int16"):
        tifffile.imwrite(
            tmp_path / "a.tif", pixels(0, 2, 4, 4).astype(dtype), photometric="minisblack"
        )
        with pytest.raises(ImageError, match=f"a.tif has {dtype} pixels; uint8 or uint16 is requ"):
            read_site(root, ["a.tif"], NAMES[:2], NAMES[:1])
    (tmp_path / "c.png").write_bytes(bomb_png(8, 8, bits=4))
    with pytest.raises(ImageError, match="c.png has uint4 pixels; uint8 or uint16 is required"):
        read_header(root, ["c.png"], ["dna"])
    for colour, reason in ((3, "a colour palette"), (6, "an alpha channel")):
        (tmp_path / "p.png").write_bytes(bomb_png(8, 8, colour=colour))
        with pytest.raises(ImageError, match=f"p.png is a PNG with {reason}; greyscale or RGB"):
            read_header(Root.of(tmp_path), ["p.png"], ["dna"])


def test_files_that_do_not_fit_their_site_are_refused(tmp_path: Path) -> None:
    five = write_tiff(tmp_path / "five.tif", pixels(0, 5, 8, 8))
    with pytest.raises(ImageError, match="five.tif has 5 channels, its site needs 6 from it"):
        read_site(Root.of(tmp_path), [five], NAMES, NAMES[:1])
    small = write_tiff(tmp_path / "small.tif", pixels(0, 1, 8, 7)[0])
    large = write_tiff(tmp_path / "large.tif", pixels(0, 1, 8, 8)[0])
    for read in (read_header, lambda *site: read_site(*site, NAMES[:2])):
        with pytest.raises(ImageError, match="small.tif has 8 x 7 pixels, the first file of"):
            read(Root.of(tmp_path), [large, small], NAMES[:2])
    with pytest.raises(ImageError, match="has 2 paths and 6 channels; give one path that"):
        read_site(Root.of(tmp_path), [large, small], NAMES, NAMES)
    with pytest.raises(ImageError, match="five.tif has 5 channels, its site needs 1 from it"):
        read_site(Root.of(tmp_path), [large, five], NAMES[:2], NAMES[:2])


def test_stacks_that_are_no_site_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "time.tif", np.zeros((2, 2, 8, 8), np.uint8), imagej=True)
    with pytest.raises(ImageError, match="time.tif has the axes ZCYX.*with z projected"):
        read_header(Root.of(tmp_path), ["time.tif"], NAMES)
    tifffile.imwrite(tmp_path / "many.tif", pixels(0, 65, 8, 8), metadata=None)
    with pytest.raises(ImageError, match="many.tif has more than 64 pages"):
        read_header(Root.of(tmp_path), ["many.tif"], NAMES)
    with tifffile.TiffWriter(tmp_path / "mixed.tif") as tiff:
        tiff.write(pixels(0, 1, 8, 8)[0], metadata=None)
        tiff.write(pixels(0, 1, 4, 4)[0], metadata=None)
    with pytest.raises(ImageError, match=r"mixed.tif has pages of different sizes .*\(4, 4\)"):
        read_header(Root.of(tmp_path), ["mixed.tif"], NAMES)


def test_ome_metadata_cannot_pull_in_other_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    other, mine = pixels(8, 2, 8, 8), pixels(9, 2, 8, 8)
    options: dict[str, Any] = {"compression": "zlib", "photometric": "minisblack"}
    tifffile.imwrite(tmp_path / "other.ome.tif", other, ome=True, metadata={"axes": "CYX"})
    with tifffile.TiffFile(tmp_path / "other.ome.tif") as tiff:
        description = re.sub(
            "<TiffData ([^>]*)/>",
            r'<TiffData \1><UUID FileName="other.ome.tif">urn:uuid:1</UUID></TiffData>',
            str(tiff.ome_metadata),
        )
    path = tmp_path / "mine.ome.tif"
    tifffile.imwrite(path, mine, description=description, metadata=None, **options)
    # tifffile by itself opens the named file, and returns bytes of it.
    assert not np.array_equal(tifffile.imread(path), mine)
    found = read_site(Root.of(tmp_path), [path.name], NAMES[:2], NAMES[:2])
    np.testing.assert_array_equal(found, mine)


def test_what_is_no_image_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.tif").write_bytes(b"")
    (tmp_path / "text.tif").write_text("Hello, this is text")
    (tmp_path / "folder.tif").mkdir()
    os.mkfifo(tmp_path / "pipe.tif")
    for path, reason in [
        ("empty.tif", "is empty \\(0 bytes\\); a TIFF, PNG or JPEG 2000 file"),
        ("text.tif", "begins with b'Hello, t'; a TIFF, PNG"),
        ("folder.tif", "is not a regular file"),
        ("pipe.tif", "is not a regular file"),
        ("text.tif/under.tif", "does not exist; check the path and the root"),
    ]:
        with pytest.raises(ImageError, match=f"{path} {reason}"):
            read_site(Root.of(tmp_path), [path], ["dna"], ["dna"])
    with pytest.raises(MissingImageError, match="a/none.tif does not exist; check the path and"):
        read_header(Root.of(tmp_path), ["a/none.tif"], ["dna"])


def test_no_path_leaves_the_root(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "root_outside"
    (root / "sub").mkdir(parents=True)
    outside.mkdir()
    write_tiff(outside / "a.tif", pixels(0, 1, 4, 4))
    image = pixels(1, 1, 4, 4)
    write_tiff(root / "a.tif", image)
    (root / "file.tif").symlink_to(outside / "a.tif")
    (root / "folder").symlink_to(outside)
    (root / "within.tif").symlink_to(root / "a.tif")
    for path in (
        str(outside / "a.tif"),
        str(root / "a.tif"),
        "../root_outside/a.tif",
        "sub/../a.tif",
    ):
        with pytest.raises(ImageError, match="is refused: a path must be relative to the root"):
            read_site(Root.of(root), [path], ["dna"], ["dna"])
    for path in ("file.tif", "folder/a.tif"):
        with pytest.raises(ImageError, match=f"{path} is refused: a link leads out of the root"):
            read_header(Root.of(root), [path], ["dna"])
    with pytest.raises(ImageError, match="is refused"):
        read_site(Root.of(root), ["a\0.tif"], ["dna"], ["dna"])
    (tmp_path / "alias").symlink_to(root)  # a root that is itself a link is fine
    for path in ("a.tif", "within.tif"):
        np.testing.assert_array_equal(
            read_site(Root.of(tmp_path / "alias"), [path], ["dna"], ["dna"]), image
        )


def test_impossible_requests_are_no_image_errors(tmp_path: Path) -> None:
    paths = [write_tiff(tmp_path / "a.tif", pixels(0, 2, 8, 9))]
    with pytest.raises(ValueError, match=r"no channels \['rna'\]; it has \['dna', 'er'\]") as error:
        read_site(Root.of(tmp_path), paths, NAMES[:2], ["dna", "rna"])
    assert not isinstance(error.value, ImageError)
    with pytest.raises(ValueError, match="No channel is wanted"):
        read_site(Root.of(tmp_path), paths, NAMES[:2], [])
    for top, left, size in [(-1, 0, 4), (0, 0, 9), (5, 0, 4), (0, 6, 4), (0, 0, 0)]:
        with pytest.raises(ValueError, match=f"crop of {size} pixels at row {top}.*8 x 9") as error:
            read_windows(Root.of(tmp_path), paths, NAMES[:2], ["er"], [(0, 0), (top, left)], size)
        assert not isinstance(error.value, ImageError)


def test_a_file_that_is_replaced_is_read_anew(tmp_path: Path) -> None:
    for seed, layout in enumerate(("planes", "pages", "zlib", "planes")):
        image = pixels(seed, 3, 8 + seed, 9)
        paths = [write_tiff(tmp_path / "a.tif", image, layout)]
        np.testing.assert_array_equal(
            read_site(Root.of(tmp_path), paths, NAMES[:3], NAMES[:3]), image
        )
