"""Judges an image file by its header alone: size, channels, type, and where its raw pixels lie.

Nothing is allocated for pixels here, so a damaged or malicious header cannot ask for memory.
Uncompressed TIFFs whose channels lie one after another (what `tifffile.imwrite(path, chw,
photometric="minisblack")` writes) are understood by a small parser of our own: opening a file with
tifffile costs more than reading such a site. Everything else goes to tifffile or Pillow.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import struct
from collections.abc import Iterator
from typing import Any

import tifffile

MAX_PIXELS = 2**26
"""Most pixels of one channel (8192 x 8192); Pillow itself warns of a bomb only above it."""
MAX_CHANNELS = 64
"""Most channels, or pages, of one file."""

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"IEND\xaeB`\x82"
_PNG_CHANNELS = {0: 1, 2: 3}
_PNG_REFUSED = {3: "a colour palette", 4: "an alpha channel", 6: "an alpha channel"}
_TIFF_ORDER = {b"II*\0": "<", b"MM\0*": ">"}
_BIG_TIFF = (b"II+\0", b"MM\0+")
# What decoders raise on damaged files: Pillow SyntaxError for a broken chunk, tifffile TypeError,
# AttributeError or ZeroDivisionError for senseless tags, imagecodecs RuntimeError.
DECODE_ERRORS = (
    OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, ArithmeticError,
    EOFError, MemoryError, SyntaxError, struct.error,
)  # fmt: skip


(_SUBFILE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC) = (254, 256, 257, 258, 259, 262)
(_FILL_ORDER, _DESCRIPTION, _OFFSETS, _SAMPLES, _BYTE_COUNTS) = (266, 270, 273, 277, 279)
(_PLANAR, _TILE_WIDTH, _SUB_IFDS, _SAMPLE_FORMAT) = (284, 322, 330, 339)
_REQUIRED = (_WIDTH, _HEIGHT, _BITS, _OFFSETS, _BYTE_COUNTS)
# Value of a tag in a raw greyscale page, and whether a page without the tag has it by default.
_RAW_TAGS = (
    (_BITS, 8, False), (_COMPRESSION, 1, True), (_PHOTOMETRIC, 1, False), (_FILL_ORDER, 1, True),
    (_SAMPLE_FORMAT, 1, True), (_SUBFILE, 0, True), (_DESCRIPTION, 0, True),
)  # fmt: skip


class ImageError(ValueError):
    """A file that is not a readable image of its site; the message names file and reason."""


class MissingImageError(ImageError):
    """A file that does not exist."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageHeader:
    """What a file, or all files of a site together, say about their pixels."""

    num_channels: int
    """Number of channels."""
    height_px: int
    """Rows of every channel."""
    width_px: int
    """Columns of every channel."""
    dtype: str
    """Type of the pixels; always uint8, everything else is refused."""
    offset: int | None
    """Byte at which raw (C, H, W) pixels begin; None if they are encoded or in several files."""


def checked_header(handle: io.FileIO, name: str, expected_channels: int) -> ImageHeader:
    """Reads a header and refuses what cannot be a file with that many uint8 channels."""
    size = os.fstat(handle.fileno()).st_size
    try:
        magic = os.pread(handle.fileno(), 8, 0)
        if magic == PNG_MAGIC:
            header = _png_header(handle.fileno(), name, size)
        elif magic[:4] in _TIFF_ORDER:
            pages = _tiff_pages(handle.fileno(), name, size, _TIFF_ORDER[magic[:4]])
            _check_one_size(pages, name)
            header = _raw_header(pages, name, size) or _tiff_header(handle, name, size)
        elif magic[:4] in _BIG_TIFF:
            header = _tiff_header(handle, name, size)
        else:
            found = f"begins with {magic!r}" if size else "is empty (0 bytes)"
            raise ImageError(f"{name} {found}; a TIFF or PNG file is required. Write it again.")
    except ImageError:
        raise
    except DECODE_ERRORS as error:
        raise ImageError(f"{name} has a damaged header ({error}). Write the file again.") from error
    if header.dtype != "uint8":
        raise ImageError(
            f"{name} has {header.dtype} pixels; uint8 is required. Convert the images first, for "
            "example by scaling each channel between two percentiles of its plate, and index the "
            "converted files."
        )
    if header.num_channels != expected_channels:
        raise ImageError(
            f"{name} has {header.num_channels} channels, its site needs {expected_channels} from "
            "it. Correct the columns paths and channels."
        )
    if not (header.height_px and header.width_px):
        raise ImageError(f"{name} has no pixels ({header.height_px} x {header.width_px}).")
    if header.height_px * header.width_px > MAX_PIXELS:
        raise ImageError(
            f"{name} claims {header.height_px} x {header.width_px} pixels; at most {MAX_PIXELS} "
            "per channel are read. Write the file again, or cut the image into sites first."
        )
    return header


def _png_header(fd: int, name: str, size: int) -> ImageHeader:
    # Not left to Pillow: it hands 16-bit colour out as 8-bit without a word.
    head = os.pread(fd, 33, 0)
    if (
        len(head) < 33
        or head[12:16] != b"IHDR"
        or _PNG_END not in os.pread(fd, 4096, max(0, size - 4096))
    ):
        raise ImageError(
            f"{name} is truncated or damaged: a PNG of {size} bytes without IHDR at its start, or "
            "IEND at its end. Write it again."
        )
    width, height, bits, colour = struct.unpack(">IIBB", head[16:26])
    if colour not in _PNG_CHANNELS:
        raise ImageError(
            f"{name} is a PNG with {_PNG_REFUSED.get(colour, f'colour type {colour}')}; greyscale "
            "or RGB without it is required. Convert the file."
        )
    return ImageHeader(
        num_channels=_PNG_CHANNELS[colour], height_px=height, width_px=width,
        dtype=f"uint{bits}", offset=None,
    )  # fmt: skip


def _tiff_pages(fd: int, name: str, size: int, order: str) -> list[dict[int, tuple[int, ...]]]:
    """Reads the integer tags of all pages of a classic TIFF (TIFF 6.0, section 2)."""
    pages: list[dict[int, tuple[int, ...]]] = []
    (offset,) = struct.unpack(f"{order}I", os.pread(fd, 4, 4))
    while offset and len(pages) <= MAX_CHANNELS:
        page = len(pages) + 1
        if offset + 2 > size:
            raise ImageError(
                f"{name} is truncated: page {page} begins at byte {offset}, the file ends at byte "
                f"{size}. Write it again."
            )
        block = os.pread(fd, 512, offset)
        (count,) = struct.unpack_from(f"{order}H", block)
        if len(block) < 6 + 12 * count:
            block = os.pread(fd, 6 + 12 * count, offset)
        if len(block) < 6 + 12 * count:
            raise ImageError(f"{name} is truncated within the header of page {page}.")
        tags: dict[int, tuple[int, ...]] = {}
        for code, kind, number, value in struct.iter_unpack(
            f"{order}HHI4s", block[2 : 2 + 12 * count]
        ):
            letter = {2: "s", 3: "H", 4: "I"}.get(kind)
            if letter is None:
                continue
            number = min(number, MAX_PIXELS)
            length = number * struct.calcsize(f"{order}{letter}")
            if length > 4:
                (place,) = struct.unpack(f"{order}I", value)
                if code in _REQUIRED and place + length > size:
                    raise ImageError(f"{name} is truncated within the header of page {page}.")
                value = os.pread(fd, length, place)
            if code == _DESCRIPTION:
                # ImageJ, and tifffile when told to truncate, describe channels that have no page.
                tags[code] = (int(value.startswith(b"ImageJ") or b"truncated" in value),)
            elif letter != "s" and len(value) >= length:
                tags[code] = struct.unpack_from(f"{order}{number}{letter}", value)
        pages.append(tags)
        (offset,) = struct.unpack_from(f"{order}I", block, 2 + 12 * count)
    if len(pages) > MAX_CHANNELS:
        raise ImageError(
            f"{name} has more than {MAX_CHANNELS} pages; a site has one page per channel."
        )
    return pages


def _check_one_size(pages: list[dict[int, tuple[int, ...]]], name: str) -> None:
    # tifffile drops pages of another size without a word. Thumbnails (bit 0) may be dropped.
    full = [tags for tags in pages if not tags.get(_SUBFILE, (0,))[0] & 1]
    sizes = {tags.get(_HEIGHT, ()) + tags.get(_WIDTH, ()) for tags in full}
    if len(sizes) > 1:
        raise ImageError(
            f"{name} has pages of different sizes (height, width): {sorted(sizes)}; a site's "
            "channels have one size. Write one image per file."
        )


def _raw_header(pages: list[dict[int, Any]], name: str, size: int) -> ImageHeader | None:
    """Header of an uncompressed uint8 (C, H, W) block, or None where tifffile must decide."""
    begin = end = -1
    shape = (0, 0)
    channels = 0
    for page in pages:
        for tag, value, absent_is_fine in _RAW_TAGS:
            if any(v != value for v in page[tag]) if tag in page else not absent_is_fine:
                return None
        samples = page.get(_SAMPLES, (1,))[0]
        planar = page.get(_PLANAR, (1,))[0]
        if _TILE_WIDTH in page or _SUB_IFDS in page or any(tag not in page for tag in _REQUIRED):
            return None
        if samples > 1 and (planar != 2 or len(pages) > 1):
            return None
        if pages[0] is page:
            shape = (page[_HEIGHT][0], page[_WIDTH][0])
            begin = end = page[_OFFSETS][0]
        if shape != (page[_HEIGHT][0], page[_WIDTH][0]):
            return None
        page_begin = end
        for offset, length in zip(page[_OFFSETS], page[_BYTE_COUNTS], strict=False):
            if offset != end:
                return None
            end += length
        if end - page_begin != samples * shape[0] * shape[1]:
            return None
        channels += samples
    if channels == 0:
        return None
    if end > size:
        raise ImageError(
            f"{name} is truncated: its pixels end at byte {end}, the file ends at byte {size}. "
            "Write it again."
        )
    return ImageHeader(
        num_channels=channels, height_px=shape[0], width_px=shape[1], dtype="uint8", offset=begin
    )


@contextlib.contextmanager
def tiff_series(handle: io.FileIO, name: str) -> Iterator[tifffile.TiffPageSeries]:
    """Opens the only image of a TIFF with tifffile, for headers and pixels alike."""
    handle.seek(0)
    # tifffile reads tags a few bytes at a time. Detached at the end: the caller owns the handle.
    buffered = io.BufferedReader(handle, 1 << 16)
    try:
        # is_ome=False: OME metadata may name other files, which tifffile would then open.
        with tifffile.TiffFile(buffered, name=os.path.basename(name), is_ome=False) as tiff:
            if len(tiff.series) != 1:
                raise ImageError(
                    f"{name} holds {len(tiff.series)} images of different shapes or types; one "
                    "image per file is required. Write the channels as pages of one size."
                )
            yield tiff.series[0]
    finally:
        buffered.detach()


def _tiff_header(handle: io.FileIO, name: str, size: int) -> ImageHeader:
    with tiff_series(handle, name) as series:
        shape, axes = series.shape, series.axes
        if len(shape) not in (2, 3):
            raise ImageError(
                f"{name} has the axes {axes} {shape}; (H, W), (C, H, W) or (H, W, C) is required. "
                "Write one file per site and time point, with z projected."
            )
        if axes.endswith("S"):
            shape = (shape[-1], *shape[:-1])
        pieces = [(series.dataoffset, series.nbytes)] if series.dataoffset is not None else []
        for page in series.pages:
            if page is not None:
                pieces += zip(page.dataoffsets, page.databytecounts, strict=True)
        if any(not length or offset + length > size for offset, length in pieces):
            raise ImageError(
                f"{name} is truncated or lacks pixels: a strip is empty, or ends behind the file's "
                f"end at byte {size}. Write it again."
            )
        return ImageHeader(
            num_channels=shape[0] if len(shape) == 3 else 1,
            height_px=shape[-2], width_px=shape[-1], dtype=str(series.dtype), offset=None,
        )  # fmt: skip
