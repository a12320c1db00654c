"""Reads windows from a TIFF: only the rows, strips or tiles that they meet.

Legend: k windows, n channels, h and w pixels of a window; `out` is (k, n, h, w).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

import imagecodecs
import numpy as np
import numpy.typing as npt

from phenoscale.screens.errors import DECODE_ERRORS, ImageError
from phenoscale.screens.images.headers import ImageHeader
from phenoscale.screens.images.image_file import ImageFile
from phenoscale.screens.images.tiff import DECODERS, LZW, RAW, TiffLayout

_NATIVE = "<" if sys.byteorder == "little" else ">"

Pixels = npt.NDArray[np.generic]
Corners = Sequence[tuple[int, int]]


def read_raw(
    file: ImageFile,
    header: ImageHeader,
    layout: TiffLayout,
    positions: Sequence[int],
    corners: Corners,
    out: Pixels,
) -> None:
    """Reads windows of raw (C, H, W) pixels into `out`, row blocks straight from the file.

    Raises:
        ImageError: if the file ends before.
    """
    assert header.offset is not None
    rows, columns = out.shape[2:]
    row_bytes = header.width_px * out.itemsize
    tops = [top for top, _ in corners]
    first, end = min(tops), max(tops) + rows
    # Rows that several windows share are read once, unless the rows between windows cost more.
    together = len(corners) > 1 and end - first <= len(corners) * rows
    blocks = [(first, end - first)] if together else [(top, rows) for top in tops]
    begins = [
        [header.offset + (position * header.height_px + top) * row_bytes for top, _ in blocks]
        for position in positions
    ]
    height = blocks[0][1]
    file.expect([(begin, height * row_bytes) for plane in begins for begin in plane])
    if columns == header.width_px and not together:
        for channel, plane in enumerate(begins):
            for number, begin in enumerate(plane):
                file.fill(out[number, channel].data, begin)
    else:
        strip = np.empty((height, header.width_px), dtype=out.dtype)
        for channel, plane in enumerate(begins):
            for block, begin in enumerate(plane):
                file.fill(strip.data, begin)
                for number in range(len(corners)) if together else [block]:
                    top, left = corners[number]
                    row = top - blocks[block][0]
                    out[number, channel] = strip[row : row + rows, left : left + columns]
    if out.itemsize > 1 and layout.byte_order != _NATIVE:
        out.byteswap(inplace=True)


def read_segments(
    file: ImageFile,
    header: ImageHeader,
    layout: TiffLayout,
    positions: Sequence[int],
    corners: Corners,
    out: Pixels,
) -> None:
    """Decodes each strip or tile that any window meets, once, and cuts the windows from it.

    Raises:
        ImageError: if the file ends before, or a strip or tile cannot be decoded.
    """
    height, width = out.shape[2:]
    down, across = layout.segment_height_px, layout.segment_width_px
    planes: dict[int, list[tuple[int, int]]] = {}
    for channel, position in enumerate(positions):
        plane, sample = divmod(position, layout.samples)
        planes.setdefault(plane, []).append((channel, sample))
    meeting = list(_meeting(header, layout, corners, (height, width)))
    file.expect([layout.pieces[plane][cell[0]] for plane in planes for cell in meeting])
    scratch = np.empty(down * across * layout.samples, dtype=out.dtype)
    for plane, channels in planes.items():
        for index, row, column, numbers in meeting:
            top, left = row * down, column * across
            last = min(max(corners[n][0] for n in numbers) + height, top + down, header.height_px)
            full = down if layout.tiled else min(down, header.height_px - top)
            pixels = _segment(file, layout, layout.pieces[plane][index], scratch, last - top, full)
            for number in numbers:
                y, x = corners[number]
                y0, x0 = max(y, top), max(x, left)
                y1, x1 = min(y + height, top + down), min(x + width, left + across)
                for channel, sample in channels:
                    out[number, channel, y0 - y : y1 - y, x0 - x : x1 - x] = pixels[
                        y0 - top : y1 - top, x0 - left : x1 - left, sample
                    ]


def _meeting(
    header: ImageHeader, layout: TiffLayout, corners: Corners, shape: tuple[int, int]
) -> Iterator[tuple[int, int, int, list[int]]]:
    """Index, row and column of each segment that windows meet, with their numbers."""
    down, across = layout.segment_height_px, layout.segment_width_px
    per_row = -(-header.width_px // across)
    cells: dict[tuple[int, int], list[int]] = {}
    for number, (top, left) in enumerate(corners):
        for row in range(top // down, (top + shape[0] - 1) // down + 1):
            for column in range(left // across, (left + shape[1] - 1) // across + 1):
                cells.setdefault((row, column), []).append(number)
    for (row, column), numbers in sorted(cells.items()):
        yield row * per_row + column, row, column, numbers


def _segment(
    file: ImageFile,
    layout: TiffLayout,
    piece: tuple[int, int],
    scratch: Pixels,
    rows: int,
    full_rows: int,
) -> Pixels:
    """Decodes the first rows of a strip or tile to (rows, width, samples)."""
    offset, length = piece
    per_row = layout.segment_width_px * layout.samples
    wanted = scratch[: rows * per_row]
    if layout.compression == RAW:
        length = min(length, wanted.nbytes)
    data = file.at(offset, length)
    if len(data) != length:
        raise ImageError(f"{file.name} became shorter while it was read. Write it again.")
    decode = DECODERS[layout.compression]
    # LZW alone can stop early; the other codecs refuse to decode more than `target` holds, so that
    # a bomb is an error. The last strip may be padded to the height of the others.
    target = wanted if layout.compression == LZW else scratch
    try:
        if decode is None:
            decoded = np.frombuffer(data, dtype=np.uint8)
        else:
            decoded = decode(data, out=target.view(np.uint8))
        found = decoded.nbytes
        if decode is None and found == wanted.nbytes:
            wanted.view(np.uint8)[:] = decoded
    except DECODE_ERRORS as error:
        raise ImageError(
            f"{file.name} cannot be decoded ({error}). Write the file again."
        ) from error
    required = (
        wanted.nbytes
        if decode is None or layout.compression == LZW
        else (full_rows * per_row * scratch.itemsize)
    )
    if found < required:
        raise ImageError(
            f"{file.name} cannot be decoded: a strip or tile has {found} of {required} bytes. "
            "Write the file again."
        )
    if wanted.itemsize > 1 and layout.byte_order != _NATIVE:
        wanted.byteswap(inplace=True)
    pixels = wanted.reshape(rows, layout.segment_width_px, layout.samples)
    if layout.predictor:
        imagecodecs.delta_decode(pixels, axis=1, out=pixels)
    return pixels
