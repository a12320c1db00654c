"""Reads the images of one site: TIFF and PNG, uint8, channels selected by name.

Legend: C channels, H and W pixels; an image is always (C, H, W).

A file is opened once, judged by its header alone (`headers.py`), and only then given memory. Raw
TIFFs are read straight into the result; tifffile and Pillow decode the others.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from phenoscale.screens.headers import (
    DECODE_ERRORS,
    PNG_MAGIC,
    ImageError,
    ImageHeader,
    MissingImageError,
    checked_header,
    tiff_series,
)

__all__ = [
    "ImageError",
    "ImageHeader",
    "MissingImageError",
    "read_header",
    "read_site",
    "read_window",
]

Pixels = npt.NDArray[np.uint8]


def read_header(root: Path, paths: Sequence[str], channels: Sequence[str]) -> ImageHeader:
    """Reads and checks the headers of one site, without its pixels.

    Args:
        root: folder that `paths` are relative to.
        paths: one file with all channels, or one file per channel.
        channels: names of the channels, in the order of the file or files.

    Raises:
        ImageError: as `read_site`; damage behind the header shows only when pixels are read.
    """
    headers = []
    for path, expected in _files(paths, channels):
        with _opened(root, path) as (handle, name):
            headers.append(checked_header(handle, name, expected))
        _same_size(headers[0], headers[-1], name)
    if len(headers) == 1:
        return headers[0]
    return dataclasses.replace(headers[0], num_channels=len(channels), offset=None)


def read_site(
    root: Path, paths: Sequence[str], channels: Sequence[str], wanted: Sequence[str]
) -> Pixels:
    """Reads the wanted channels of one site, in the wanted order.

    Args:
        root: folder that `paths` are relative to.
        paths: one file with all channels, or one file per channel.
        channels: names of the channels, in the order of the file or files.
        wanted: names of the channels to return.

    Returns:
        uint8 (len(wanted), H, W), contiguous and owned by the caller.

    Raises:
        ImageError: for a file that is missing, damaged, truncated or absurdly large, is not TIFF
            or PNG, is not uint8, has another number of channels or another size than the site's
            other files, or lies outside `root`.
        ValueError: if `wanted` names a channel that the site does not have.
    """
    return _read(root, paths, channels, wanted, None)


def read_window(
    root: Path,
    paths: Sequence[str],
    channels: Sequence[str],
    wanted: Sequence[str],
    top: int,
    left: int,
    size_px: int,
) -> Pixels:
    """Reads one square crop; of raw TIFFs only the rows of the crop are read.

    Args:
        root: folder that `paths` are relative to.
        paths: one file with all channels, or one file per channel.
        channels: names of the channels, in the order of the file or files.
        wanted: names of the channels to return.
        top: first row of the crop.
        left: first column of the crop.
        size_px: edge of the crop.

    Returns:
        uint8 (len(wanted), size_px, size_px), contiguous; equal to the same part of `read_site`.

    Raises:
        ImageError: as `read_site`.
        ValueError: if the crop does not lie within the site, or a wanted channel does not exist.
    """
    return _read(root, paths, channels, wanted, (top, left, size_px))


def _read(
    root: Path,
    paths: Sequence[str],
    channels: Sequence[str],
    wanted: Sequence[str],
    window: tuple[int, int, int] | None,
) -> Pixels:
    positions = _positions(channels, wanted)
    files = _files(paths, channels)
    if len(files) == 1:
        with _opened(root, paths[0]) as (handle, name):
            header = checked_header(handle, name, len(channels))
            return _pixels(handle, name, header, positions, window)
    headers: list[ImageHeader] = []
    planes: list[Pixels] = []
    for position in positions:
        with _opened(root, paths[position]) as (handle, name):
            headers.append(checked_header(handle, name, 1))
            _same_size(headers[0], headers[-1], name)
            planes.append(_pixels(handle, name, headers[-1], [0], window))
    return np.concatenate(planes)


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


def _files(paths: Sequence[str], channels: Sequence[str]) -> list[tuple[str, int]]:
    """Pairs every path with the number of channels that its file must have."""
    if len(paths) == 1:
        return [(paths[0], len(channels))]
    if not paths or len(paths) != len(channels):
        raise ImageError(
            f"The site has {len(paths)} paths and {len(channels)} channels; give one path that "
            "holds all channels, or one path per channel. "
            f"Paths: {list(paths)}; channels: {list(channels)}."
        )
    return [(path, 1) for path in paths]


@contextlib.contextmanager
def _opened(root: Path, path: str) -> Iterator[tuple[io.FileIO, str]]:
    """Opens a regular file below `root`; every failure is an `ImageError` with its name."""
    parts = path.split("/")
    if not path or path.startswith("/") or ".." in parts or "\0" in path:
        raise ImageError(
            f"{path!r} is refused: a path must be relative to the root {root} and stay within it, "
            "without '..'. Move the file below the root, or index with another root."
        )
    name = os.fspath(root)
    try:
        linked = False
        mode = 0
        for part in parts:
            name = f"{name}/{part}"
            mode = os.lstat(name).st_mode
            linked = linked or stat.S_ISLNK(mode)
        # Only a link below the root can lead out of it, so the slow resolution is kept for links.
        if linked:
            mode = os.stat(name).st_mode
            home = os.path.realpath(root)
            if os.path.commonpath([home, os.path.realpath(name)]) != home:
                raise ImageError(
                    f"{name} is refused: a link leads out of the root {root}. Copy the file below "
                    "the root, or index with a root that holds both."
                )
        if not stat.S_ISREG(mode):
            raise ImageError(f"{name} is not a regular file; give the path of a TIFF or PNG file.")
        handle = open(name, "rb", buffering=0)
    except (FileNotFoundError, NotADirectoryError):
        raise MissingImageError(
            f"{os.path.join(root, path)} does not exist; check the path and the root {root}."
        ) from None
    except OSError as error:
        raise ImageError(f"{name} cannot be opened: {error.strerror or error}.") from error
    with handle:
        yield handle, name


def _pixels(
    handle: io.FileIO,
    name: str,
    header: ImageHeader,
    positions: list[int],
    window: tuple[int, int, int] | None,
) -> Pixels:
    """Reads channels, by position, of one file whose header has been checked."""
    top, left, rows, columns = 0, 0, header.height_px, header.width_px
    if window is not None:
        top, left, rows = window
        columns = rows
        if (
            min(top, left) < 0
            or rows < 1
            or top + rows > header.height_px
            or left + rows > header.width_px
        ):
            raise ValueError(
                f"The crop of {rows} pixels at row {top}, column {left} does not lie within "
                f"{name}, which has {header.height_px} x {header.width_px} pixels. Choose a "
                "smaller crop."
            )
    if header.offset is None:
        image = _decoded(handle, name, header)
        return np.ascontiguousarray(image[positions, top : top + rows, left : left + columns])
    out = np.empty((len(positions), rows, columns), dtype=np.uint8)
    strip = (
        None if columns == header.width_px else np.empty((rows, header.width_px), dtype=np.uint8)
    )
    for plane, position in zip(out, positions, strict=True):
        target = plane if strip is None else strip
        handle.seek(header.offset + (position * header.height_px + top) * header.width_px)
        if handle.readinto(target.data) != target.nbytes:
            raise ImageError(f"{name} became shorter while it was read. Write it again.")
        if strip is not None:
            plane[...] = strip[:, left : left + columns]
    return out


def _decoded(handle: io.FileIO, name: str, header: ImageHeader) -> Pixels:
    """Decodes a whole file with tifffile or Pillow to uint8 (C, H, W)."""
    shape = (header.num_channels, header.height_px, header.width_px)
    try:
        if os.pread(handle.fileno(), 8, 0) == PNG_MAGIC:
            handle.seek(0)
            with Image.open(io.BytesIO(handle.read()), formats=("PNG",)) as png:
                image = np.asarray(png)
            channels_last = image.ndim == 3
        else:
            with tiff_series(handle, name) as series:
                image = np.asarray(series.asarray())
                channels_last = series.axes.endswith("S")
        image = np.moveaxis(image, -1, 0) if channels_last else image
        return image.reshape(shape)
    except ImageError:
        raise
    except DECODE_ERRORS as error:
        raise ImageError(f"{name} cannot be decoded ({error}). Write the file again.") from error


def _same_size(first: ImageHeader, other: ImageHeader, name: str) -> None:
    if (first.height_px, first.width_px) != (other.height_px, other.width_px):
        raise ImageError(
            f"{name} has {other.height_px} x {other.width_px} pixels, the first file of its site "
            f"{first.height_px} x {first.width_px}; all channels of a site must have one size."
        )
