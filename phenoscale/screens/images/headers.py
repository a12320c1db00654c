"""What an image file says of its pixels, judged before they are given memory."""

from __future__ import annotations

import dataclasses

from phenoscale.screens.errors import DECODE_ERRORS as DECODE_ERRORS
from phenoscale.screens.errors import ImageError
from phenoscale.screens.errors import MissingImageError as MissingImageError

MAX_PIXELS = 2**26
"""Most pixels of one channel (8192 x 8192)."""
MAX_CHANNELS = 64
"""Most channels, or pages, of one file."""

DTYPES = ("uint8", "uint16")
"""Types of pixels that are read."""


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
    """Type of the pixels, uint8 or uint16; everything else is refused."""
    offset: int | None
    """Byte at which raw (C, H, W) pixels begin; None if they are encoded or in several files."""


def check_header(header: ImageHeader, name: str, expected_channels: int) -> None:
    """Refuses what cannot be a file with that many channels of readable pixels.

    Raises:
        ImageError: for another type, number of channels, or an absurd size.
    """
    if header.dtype not in DTYPES:
        raise ImageError(
            f"{name} has {header.dtype} pixels; uint8 or uint16 is required. Convert the images "
            "first and index the converted files."
        )
    if header.num_channels != expected_channels:
        raise ImageError(
            f"{name} has {header.num_channels} channels, its site needs {expected_channels} from "
            "it. Correct the columns paths and channels."
        )
    check_size(header.height_px, header.width_px, name)


def check_size(height_px: int, width_px: int, name: str) -> None:
    """Refuses an image without pixels, or with absurdly many."""
    if height_px < 1 or width_px < 1:
        raise ImageError(f"{name} has no pixels ({height_px} x {width_px}).")
    if height_px * width_px > MAX_PIXELS:
        raise ImageError(
            f"{name} claims {height_px} x {width_px} pixels; at most {MAX_PIXELS} per channel are "
            "read. Write the file again, or cut the image into sites first."
        )


def check_same(first: ImageHeader, other: ImageHeader, name: str) -> None:
    """Refuses a file that does not fit the first one of its site."""
    if (first.height_px, first.width_px) != (other.height_px, other.width_px):
        raise ImageError(
            f"{name} has {other.height_px} x {other.width_px} pixels, the first file of its site "
            f"{first.height_px} x {first.width_px}; all channels of a site must have one size."
        )
    if first.dtype != other.dtype:
        raise ImageError(
            f"{name} has {other.dtype} pixels, the first file of its site {first.dtype}; all "
            "channels of a site must have one type."
        )
