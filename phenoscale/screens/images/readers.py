"""Reads the images of one site: whole, or k crops at once; channels selected by name.

Legend: C channels, H and W pixels, k windows of s x s pixels; an image is always (C, H, W).

A file is opened once, judged by its header alone, and only then given memory. Where the format
allows (raw TIFF, strips and tiles, Zarr chunks) only the parts that windows meet are read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from phenoscale.screens.errors import ImageError, MissingImageError, RootVanishedError
from phenoscale.screens.images.entries import parse_entry
from phenoscale.screens.images.headers import ImageHeader, check_header, check_same
from phenoscale.screens.images.image import Image, open_image
from phenoscale.screens.packed import reader as packed
from phenoscale.screens.storage import Root

__all__ = [
    "ImageError",
    "ImageHeader",
    "MissingImageError",
    "Scale",
    "cut_windows",
    "is_mapped",
    "read_header",
    "read_native",
    "read_site",
    "read_windows",
]

Pixels = npt.NDArray[np.uint8]
Native = npt.NDArray[np.generic]
Corners = Sequence[tuple[int, int]] | npt.NDArray[np.integer]
Scale = Sequence[tuple[float, float]]
Recorded = tuple[int, int, str]
"""height_px, width_px and dtype of a site, as an index has them."""
T = TypeVar("T")


def read_header(root: Root, paths: Sequence[str], channels: Sequence[str]) -> ImageHeader:
    """Reads and checks the headers of one site, without its pixels.

    Args:
        root: what `paths` are relative to.
        paths: one entry with all channels, or one per channel; see `entries.py`.
        channels: names of the channels, in the order of the entry or entries.

    Raises:
        ImageError: as `read_site`; damage behind the header shows only when pixels are read.
        RootVanishedError: as `read_site`.
    """
    headers: list[ImageHeader] = []
    for path, expected in _entries(paths, channels):
        headers.append(_with_image(root, path, expected, lambda image: image.header))
        check_same(headers[0], headers[-1], path)
    if len(headers) == 1:
        return headers[0]
    return dataclasses.replace(headers[0], num_channels=len(channels), offset=None)


def read_native(
    root: Root, paths: Sequence[str], channels: Sequence[str], wanted: Sequence[str]
) -> Native:
    """Reads the wanted channels of one site as they are stored.

    Args:
        root: what `paths` are relative to.
        paths: one entry with all channels, or one per channel; see `entries.py`.
        channels: names of the channels, in the order of the entry or entries.
        wanted: names of the channels to return, in that order.

    Returns:
        uint8 or uint16 (len(wanted), H, W), contiguous and owned by the caller.

    Raises:
        ImageError, RootVanishedError, ValueError: as `read_site`.
    """
    return _read(root, paths, channels, _positions(channels, wanted), None, 0)[0]


def read_site(
    root: Root,
    paths: Sequence[str],
    channels: Sequence[str],
    wanted: Sequence[str],
    scale: Scale | None = None,
    recorded: Recorded | None = None,
) -> Pixels:
    """Reads the wanted channels of one site, in the wanted order.

    Args:
        root: what `paths` are relative to.
        paths: one entry with all channels, or one per channel; see `entries.py`.
        channels: names of the channels, in the order of the entry or entries.
        wanted: names of the channels to return, in that order.
        scale: for each of `channels` the grey values that become 0 and 255; needed for uint16,
            ignored for uint8.
        recorded: what the image must be; None accepts any size and type.

    Returns:
        uint8 (len(wanted), H, W), contiguous and owned by the caller.

    Raises:
        ImageError: for an image that is missing, damaged, truncated or absurdly large, of another
            format or type, with another number of channels or another size than its site's other
            images, not as recorded, outside `root`, or of 16 bits without a scale.
        RootVanishedError: if the root no longer answers.
        ValueError: if `wanted` names a channel that the site does not have.
    """
    positions = _positions(channels, wanted)
    native = _read(root, paths, channels, positions, None, 0, recorded)
    return _scaled(native, positions, scale, paths, channels)[0]


def read_windows(
    root: Root,
    paths: Sequence[str],
    channels: Sequence[str],
    wanted: Sequence[str],
    corners: Corners,
    size_px: int,
    scale: Scale | None = None,
    recorded: Recorded | None = None,
) -> Pixels:
    """Reads k square crops of one site; each part of a file that any of them meets is read once.

    Args:
        root: what `paths` are relative to.
        paths: one entry with all channels, or one per channel; see `entries.py`.
        channels: names of the channels, in the order of the entry or entries.
        wanted: names of the channels to return, in that order.
        corners: int (k, 2), top row and left column of each crop.
        size_px: edge of a crop.
        scale: as `read_site`.
        recorded: as `read_site`.

    Returns:
        uint8 (k, len(wanted), s, s), contiguous; equal to the same parts of `read_site`.

    Raises:
        ImageError, RootVanishedError: as `read_site`.
        ValueError: if a crop does not lie within the site, or a wanted channel does not exist.
    """
    positions = _positions(channels, wanted)
    plain = corners.tolist() if isinstance(corners, np.ndarray) else list(corners)
    native = _read(root, paths, channels, positions, plain, size_px, recorded)
    return _scaled(native, positions, scale, paths, channels)


def cut_windows(
    out: Sequence[Pixels],
    root: Root,
    paths: Sequence[str],
    channels: Sequence[str],
    wanted: Sequence[str],
    corners: Corners,
    scale: Scale | None = None,
    recorded: Recorded | None = None,
) -> None:
    """As `read_windows`, into memory of the caller's: a packed site is copied once, not twice.

    Args:
        out: k arrays, uint8 (len(wanted), s, s).
        root: as `read_windows`, like all that follows.
        paths: entries of the site.
        channels: its channels.
        wanted: those to read.
        corners: int (k, 2).
        scale: for uint16.
        recorded: what the image must be.
    """
    size_px = out[0].shape[1]
    entry = parse_entry(paths[0])
    if len(paths) > 1 or entry.kind != "packed":
        windows = read_windows(root, paths, channels, wanted, corners, size_px, scale, recorded)
        for target, window in zip(out, windows, strict=True):
            target[...] = window
        return
    header = packed.read_header(root, entry.path, entry.number)
    check_header(header, paths[0], len(channels))
    _check_recorded(header, recorded, paths[0])
    positions = _positions(channels, wanted)
    packed.cut_windows(root, entry.path, entry.number, positions, corners, size_px, out)


def is_mapped(root: Root, paths: Sequence[str]) -> bool:
    """Whether windows of a site are copied out of a mapped file, with nothing to decode."""
    entry = parse_entry(paths[0])
    return entry.kind == "packed" and packed.is_mapped(root, entry.path)


def _read(
    root: Root,
    paths: Sequence[str],
    channels: Sequence[str],
    positions: list[int],
    corners: list[tuple[int, int]] | None,
    size_px: int,
    recorded: Recorded | None = None,
) -> Native:
    """Windows (k, C, s, s) as stored; without corners the whole site as the only window."""
    entries = _entries(paths, channels)
    windows = _Windows(len(positions), corners, size_px, recorded)
    if len(entries) == 1:
        path, expected = entries[0]
        _with_image(root, path, expected, functools.partial(windows.take, positions, 0))
    else:
        for column, position in enumerate(positions):
            path, expected = entries[position]
            _with_image(root, path, expected, functools.partial(windows.take, [0], column))
    return windows.out


class _Windows:
    """The windows of a site, while one image after another fills its channels."""

    out: Native
    """(k, C, h, w), given memory once the first header has been checked."""

    def __init__(
        self,
        num_channels: int,
        corners: list[tuple[int, int]] | None,
        size_px: int,
        recorded: Recorded | None,
    ) -> None:
        self._num_channels = num_channels
        self._corners = corners
        self._size_px = size_px
        self._recorded = recorded
        self._first: ImageHeader | None = None

    def take(self, positions: list[int], column: int, image: Image) -> None:
        """Fills the channels from `column` on with those at `positions` of an image."""
        header = image.header
        if self._first is None:
            self._first = header
            _check_recorded(header, self._recorded, image.name)
            self._allocate(header, image.name)
        check_same(self._first, header, image.name)
        corners = [(0, 0)] if self._corners is None else self._corners
        image.read(positions, corners, self.out[:, column : column + len(positions)])

    def _allocate(self, header: ImageHeader, name: str) -> None:
        shape: tuple[int, ...] = (1, self._num_channels, header.height_px, header.width_px)
        if self._corners is not None:
            size = self._size_px
            shape = (len(self._corners), self._num_channels, size, size)
            for top, left in self._corners:
                if (
                    min(top, left) < 0
                    or size < 1
                    or top + size > header.height_px
                    or left + size > header.width_px
                ):
                    raise ValueError(
                        f"The crop of {size} pixels at row {top}, column {left} does not lie "
                        f"within {name}, which has {header.height_px} x {header.width_px} pixels. "
                        "Choose a smaller crop."
                    )
        self.out = np.empty(shape, dtype=header.dtype)


def _check_recorded(header: ImageHeader, recorded: Recorded | None, name: str) -> None:
    found = header.height_px, header.width_px, header.dtype
    if recorded is not None and found != recorded:
        raise ImageError(
            f"{name} is {found[0]} x {found[1]} {found[2]}, the index says {recorded[0]} x "
            f"{recorded[1]} {recorded[2]}. Mend the file, or build the index again."
        )


def _with_image(root: Root, path: str, expected: int, use: Callable[[Image], T]) -> T:
    """Opens an image and uses it, again and again while a disturbance may pass."""
    entry = parse_entry(path)

    def attempt() -> T:
        with contextlib.ExitStack() as stack:
            return use(open_image(root, entry, expected, stack))

    try:
        return attempt()
    except RootVanishedError:
        raise
    except OSError:
        return root.patiently(path, attempt)


def _scaled(
    native: Native,
    positions: list[int],
    scale: Scale | None,
    paths: Sequence[str],
    channels: Sequence[str],
) -> Pixels:
    """Maps the grey values of each channel of (k, C, h, w) to 8 bits."""
    if native.dtype == np.uint8:
        return native  # type: ignore[return-value]
    if scale is None:
        raise ImageError(
            f"{paths[0]} has uint16 pixels, and no scale to 8 bits is given. Index the screen "
            "again: an index holds the scale of every plate and channel."
        )
    if len(scale) != len(channels):
        raise ValueError(
            f"A scale of {len(scale)} channels is given, the site has {len(channels)}: "
            f"{list(channels)}. Give one pair (low, high) for each of them."
        )
    out = np.empty(native.shape, dtype=np.uint8)
    for channel, position in enumerate(positions):
        low, high = scale[position]
        table = _table(float(low), float(high))
        for window, target in zip(native[:, channel], out[:, channel], strict=True):
            np.take(table, window, out=target, mode="clip")
    return out


@functools.lru_cache(maxsize=1024)
def _table(low: float, high: float) -> Pixels:
    """The 8-bit value of every 16-bit grey value."""
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise ValueError(
            f"The scale from {low} to {high} is refused: two finite grey values are required, the "
            "lower first. Index the screen again."
        )
    if low == high:
        return np.zeros(1 << 16, dtype=np.uint8)
    grey = (np.arange(1 << 16) - low) / (high - low) * 255
    return np.clip(np.rint(grey), 0, 255).astype(np.uint8)


def _positions(channels: Sequence[str], wanted: Sequence[str]) -> list[int]:
    try:
        positions = [channels.index(channel) for channel in wanted]
    except ValueError:
        unknown = [channel for channel in wanted if channel not in channels]
        raise ValueError(
            f"The site has no channels {unknown}; it has {list(channels)}. Name channels that the "
            "index has."
        ) from None
    if not positions:
        raise ValueError(f"No channel is wanted; name at least one of {list(channels)}.")
    return positions


def _entries(paths: Sequence[str], channels: Sequence[str]) -> list[tuple[str, int]]:
    """Pairs every path with the number of channels that its image must have."""
    if len(paths) == 1:
        return [(paths[0], len(channels))]
    if not paths or len(paths) != len(channels):
        raise ImageError(
            f"The site has {len(paths)} paths and {len(channels)} channels; give one path that "
            "holds all channels, or one path per channel. "
            f"Paths: {list(paths)}; channels: {list(channels)}."
        )
    return [(path, 1) for path in paths]
