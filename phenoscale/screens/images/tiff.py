"""Understands the header of a TIFF: its pages, and where their pixels lie.

Opening a file with tifffile costs more than reading a crop, so the common layouts (TIFF 6.0 and
BigTIFF; strips or tiles, raw or compressed without loss) are understood by a small parser of our
own. Every other TIFF goes to tifffile.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable
from typing import Any

import imagecodecs

from phenoscale.screens.errors import ImageError
from phenoscale.screens.images.headers import MAX_CHANNELS, MAX_PIXELS, ImageHeader, check_size
from phenoscale.screens.images.image_file import ImageFile
from phenoscale.screens.images.other_tiff import other_tiff_header

# Byte order, and whether it is a BigTIFF.
MAGIC = {
    b"II*\0": ("<", False), b"MM\0*": (">", False), b"II+\0": ("<", True), b"MM\0+": (">", True),
}  # fmt: skip
DECODERS: dict[int, Callable[..., Any] | None] = {
    1: None,
    5: imagecodecs.lzw_decode,
    8: imagecodecs.deflate_decode,
    32773: imagecodecs.packbits_decode,
    32946: imagecodecs.deflate_decode,
    50000: imagecodecs.zstd_decode,
}
"""Codec of every compression whose segments we decode one by one; each heeds the size of `out`."""
RAW, LZW = 1, 5

(_SUBFILE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC) = (254, 256, 257, 258, 259, 262)
(_FILL_ORDER, _DESCRIPTION, _OFFSETS, _SAMPLES, _ROWS, _BYTE_COUNTS) = (
    266,
    270,
    273,
    277,
    278,
    279,
)
(_PLANAR, _PREDICTOR, _TILE_WIDTH, _TILE_HEIGHT) = (284, 317, 322, 323)
(_TILE_OFFSETS, _TILE_BYTE_COUNTS, _SUB_IFDS, _SAMPLE_FORMAT) = (324, 325, 330, 339)
_METAMORPH_PLANES = 33629
_EXTENT = (_WIDTH, _HEIGHT, _BITS, _OFFSETS, _BYTE_COUNTS, _TILE_OFFSETS, _TILE_BYTE_COUNTS)
_LETTERS = {2: "s", 3: "H", 4: "I", 16: "Q"}
_BYTES = {2: 1, 3: 2, 4: 4, 16: 8}
# Values that a page must have to be understood here; absent tags have the first.
_PLAIN = {
    _FILL_ORDER: (1,), _SAMPLE_FORMAT: (1,), _SUBFILE: (0,), _DESCRIPTION: (0,),
    _METAMORPH_PLANES: (0,), _COMPRESSION: tuple(DECODERS), _PREDICTOR: (1, 2),
}  # fmt: skip
_KNOWN = frozenset(
    (
        *_EXTENT,
        *_PLAIN,
        _PHOTOMETRIC,
        _SAMPLES,
        _ROWS,
        _PLANAR,
        _TILE_WIDTH,
        _TILE_HEIGHT,
        _SUB_IFDS,
    )
)

Tags = dict[int, tuple[int, ...]]
Pieces = list[tuple[int, int]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TiffLayout:
    """Where the pixels of a TIFF lie."""

    byte_order: str
    """"<" or ">", as numpy takes it."""
    compression: int
    """Number of the codec, a key of DECODERS."""
    predictor: bool
    """Whether rows hold differences of neighbours."""
    segment_height_px: int
    """Rows of a strip or tile; the last strip may have fewer."""
    segment_width_px: int
    """Columns of a strip or tile."""
    samples: int
    """Channels that are interleaved in a segment; 1 if each has segments of its own."""
    tiled: bool
    """Whether segments at the lower edge are padded to their full height."""
    pieces: list[Pieces]
    """Offset and length of every segment, by rows, for each plane."""


def read_tiff_header(file: ImageFile) -> tuple[ImageHeader, TiffLayout | None]:
    """Reads header and layout; no layout where tifffile must decide, as then the header is its.

    Raises:
        ImageError: if pages differ in size, or pixels lie behind the end of the file.
        struct.error, and others: for damage.
    """
    order, big = MAGIC[file.at(0, 4)]
    pages = _pages(file, order, big)
    _check_one_size(pages, file.name)
    layout = _layout(pages, file, order)
    if layout is None:
        return other_tiff_header(file), None
    first = pages[0]
    height, width, bits = first[_HEIGHT][0], first[_WIDTH][0], first[_BITS][0]
    return ImageHeader(
        num_channels=len(layout.pieces) * layout.samples, height_px=height, width_px=width,
        dtype=f"uint{bits}", offset=_raw_offset(layout, height * width * bits // 8),
    ), layout  # fmt: skip


def _pages(file: ImageFile, order: str, big: bool) -> list[Tags]:
    """Reads the integer tags of all pages (TIFF 6.0, section 2; BigTIFF has wider numbers)."""
    count_form, entry_form, offset_form = (
        (f"{order}Q", f"{order}HHQ8s", f"{order}Q") if big else
        (f"{order}H", f"{order}HHI4s", f"{order}I")
    )  # fmt: skip
    prefix, entry, width = (8, 20, 8) if big else (2, 12, 4)
    pages: list[Tags] = []
    (offset,) = struct.unpack(offset_form, file.at(8 if big else 4, width))
    while offset and len(pages) <= MAX_CHANNELS:
        page = len(pages) + 1
        if offset + prefix > file.size:
            raise ImageError(
                f"{file.name} is truncated: page {page} begins at byte {offset}, the file ends at "
                f"byte {file.size}. Write it again."
            )
        block = file.at(offset, 512)
        (count,) = struct.unpack_from(count_form, block)
        length = prefix + entry * min(count, 1 << 16)
        if len(block) < length + width:
            block = file.at(offset, length + width)
        if len(block) < length + width:
            raise ImageError(f"{file.name} is truncated within the header of page {page}.")
        pages.append(_tags(file, block[prefix:length], order, entry_form, page))
        (offset,) = struct.unpack_from(offset_form, block, length)
    if len(pages) > MAX_CHANNELS:
        raise ImageError(
            f"{file.name} has more than {MAX_CHANNELS} pages; a site has one page per channel."
        )
    if not pages:
        raise ImageError(f"{file.name} has no page. Write it again.")
    return pages


def _tags(file: ImageFile, block: bytes, order: str, form: str, page: int) -> Tags:
    tags: Tags = {}
    for code, kind, number, value in struct.iter_unpack(form, block):
        if code not in _KNOWN:
            continue
        if code == _METAMORPH_PLANES:
            # One page of a MetaMorph stack stands for many planes.
            tags[code] = (int(number > 1),)
        letter = _LETTERS.get(kind)
        if letter is None:
            continue
        number = min(number, MAX_PIXELS)
        length = number * _BYTES[kind]
        if length > len(value):
            (place,) = struct.unpack(f"{order}{'I' if len(value) == 4 else 'Q'}", value)
            if code in _EXTENT and place + length > file.size:
                raise ImageError(f"{file.name} is truncated within the header of page {page}.")
            value = file.at(place, length)
        if code == _DESCRIPTION:
            # ImageJ, and tifffile when told to truncate, describe channels that have no page.
            tags[code] = (int(value.startswith(b"ImageJ") or b"truncated" in value),)
        elif letter != "s" and len(value) >= length:
            tags[code] = struct.unpack_from(f"{order}{number}{letter}", value)
    return tags


def _check_one_size(pages: list[Tags], name: str) -> None:
    # tifffile drops pages of another size without a word. Thumbnails (bit 0) may be dropped.
    full = [tags for tags in pages if not tags.get(_SUBFILE, (0,))[0] & 1]
    sizes = {tags.get(_HEIGHT, ()) + tags.get(_WIDTH, ()) for tags in full}
    if len(sizes) > 1:
        raise ImageError(
            f"{name} has pages of different sizes (height, width): {sorted(sizes)}; a site's "
            "channels have one size. Write one image per file."
        )


def _layout(pages: list[Tags], file: ImageFile, order: str) -> TiffLayout | None:
    """Layout of pages that are all alike and plain, or None."""
    first = pages[0]
    kind = _kind(first)
    if kind is None or any(_kind(page) != kind for page in pages[1:]):
        return None
    _, compression, predictor, samples, planar, _ = kind
    if samples > 1 and len(pages) > 1:
        return None
    height, width = first[_HEIGHT][0], first[_WIDTH][0]
    check_size(height, width, file.name)
    tiled = _TILE_WIDTH in first
    if tiled:
        down, across = first[_TILE_HEIGHT][0], first[_TILE_WIDTH][0]
        check_size(down, across, file.name)
    else:
        down, across = min(first.get(_ROWS, (height,))[0], height), width
        if down < 1:
            return None
    planes = samples if samples > 1 and planar == 2 else 1
    number = -(-height // down) * -(-width // across)
    pieces: list[Pieces] = []
    for page in pages:
        offsets = page[_TILE_OFFSETS if tiled else _OFFSETS]
        counts = page[_TILE_BYTE_COUNTS if tiled else _BYTE_COUNTS]
        if len(offsets) != number * planes or len(counts) != len(offsets):
            raise ImageError(
                f"{file.name} is damaged: it has {len(offsets)} strips or tiles, "
                f"{number * planes} are required. Write it again."
            )
        every = list(zip(offsets, counts, strict=True))
        pieces += [every[i : i + number] for i in range(0, len(every), number)]
    _check_inside(pieces, file)
    return TiffLayout(
        byte_order=order, compression=compression, predictor=predictor == 2,
        segment_height_px=down, segment_width_px=across, samples=samples // planes, tiled=tiled,
        pieces=pieces,
    )  # fmt: skip


def _kind(page: Tags) -> tuple[int, int, int, int, int, tuple[bool, tuple[int, ...]]] | None:
    """What must be the same for all pages; None for a page that is not plain."""
    tiled = _TILE_WIDTH in page
    required = (
        (_TILE_HEIGHT, _TILE_OFFSETS, _TILE_BYTE_COUNTS) if tiled else (_OFFSETS, _BYTE_COUNTS)
    )
    if any(tag not in page for tag in (_WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC, *required)):
        return None
    for tag, values in _PLAIN.items():
        if tag in page and any(value not in values for value in page[tag]):
            return None
    samples = page.get(_SAMPLES, (1,))[0]
    bits = set(page[_BITS])
    if (
        _SUB_IFDS in page
        or len(bits) != 1
        or not bits <= {8, 16}
        or not 1 <= samples <= MAX_CHANNELS
    ):
        return None
    if page[_PHOTOMETRIC][0] != 1 and (page[_PHOTOMETRIC][0], samples) != (2, 3):
        return None
    shape = (page[_HEIGHT][0], page[_WIDTH][0])
    segments = (page[_TILE_HEIGHT][0], page[_TILE_WIDTH][0]) if tiled else page.get(_ROWS, ())
    return (
        page[_BITS][0], page.get(_COMPRESSION, (1,))[0], page.get(_PREDICTOR, (1,))[0], samples,
        page.get(_PLANAR, (1,))[0], (tiled, shape + segments),
    )  # fmt: skip


def _check_inside(pieces: list[Pieces], file: ImageFile) -> None:
    size = file.size
    for plane in pieces:
        for offset, length in plane:
            if not length or offset + length > size:
                raise ImageError(
                    f"{file.name} is truncated or lacks pixels: a strip or tile of {length} bytes "
                    f"begins at byte {offset}, the file ends at byte {size}. Write it again."
                )


def _raw_offset(layout: TiffLayout, plane_bytes: int) -> int | None:
    """Where (C, H, W) pixels begin if they are raw and follow one another, else None."""
    if layout.compression != RAW or layout.predictor or layout.tiled or layout.samples > 1:
        return None
    begin = end = layout.pieces[0][0][0]
    for number, plane in enumerate(layout.pieces, 1):
        for offset, length in plane:
            if offset != end:
                return None
            end += length
        if end != begin + number * plane_bytes:
            return None
    return begin
