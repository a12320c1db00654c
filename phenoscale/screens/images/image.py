"""Opens one entry of a site's paths, whatever its format, as an image with a header and windows."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from phenoscale.screens.errors import DECODE_ERRORS, ImageError
from phenoscale.screens.images import encoded, tiff, tiff_pixels
from phenoscale.screens.images.entries import Entry
from phenoscale.screens.images.headers import ImageHeader, check_header, check_same
from phenoscale.screens.images.image_file import ImageFile, open_file
from phenoscale.screens.images.other_tiff import decode_other_tiff
from phenoscale.screens.images.parquet_images import read_cell
from phenoscale.screens.images.zarr_pixels import read_zarr, read_zarr_header
from phenoscale.screens.packed import reader as packed
from phenoscale.screens.storage import Root

Pixels = npt.NDArray[np.generic]
Corners = Sequence[tuple[int, int]]


class Image(Protocol):
    """An opened image."""

    name: str
    """For messages."""
    header: ImageHeader
    """Checked."""

    def read(self, positions: Sequence[int], corners: Corners, out: Pixels) -> None:
        """Fills (k, n, h, w) `out`, of the header's type, with windows of the n channels."""


def open_image(
    root: Root, entry: Entry, expected_channels: int, stack: contextlib.ExitStack
) -> Image:
    """Opens an entry and checks its header; `stack` closes it.

    Raises:
        OSError: as the system says, for local files.
        ImageError: for whatever is no image of that many channels.
        RootVanishedError: if the root no longer answers.
    """
    image: Image
    if entry.kind == "file":
        image = _File(open_file(root, entry.path, stack))
    elif entry.kind == "cell":
        image = _File(read_cell(root, entry.path, entry.number, entry.column))
    elif entry.kind == "zarr":
        image = _Zarr(root, entry)
    elif entry.kind == "packed":
        image = _Packed(root, entry)
    else:
        image = _Maximum([open_image(root, p, expected_channels, stack) for p in entry.parts])
    check_header(image.header, image.name, expected_channels)
    return image


class _File:
    """A TIFF, PNG or JPEG 2000 file, known by its first bytes."""

    def __init__(self, file: ImageFile) -> None:
        self.name = file.name
        self._file = file
        self._layout: tiff.TiffLayout | None = None
        magic = file.at(0, 8)
        try:
            if magic[:4] in tiff.MAGIC:
                self._decode = decode_other_tiff
                self.header, self._layout = tiff.read_tiff_header(file)
            elif magic == encoded.PNG_MAGIC:
                self._decode = encoded.decode_png
                self.header = encoded.read_png_header(file)
            elif magic == encoded.JP2_MAGIC or magic[:4] == encoded.CODESTREAM_MAGIC:
                self._decode = encoded.decode_jpeg2000
                self.header = encoded.read_jpeg2000_header(file)
            else:
                found = f"begins with {magic!r}" if file.size else "is empty (0 bytes)"
                raise ImageError(
                    f"{self.name} {found}; a TIFF, PNG or JPEG 2000 file is required. Write it "
                    "again."
                )
        except (ImageError, OSError):
            raise
        except DECODE_ERRORS as error:
            raise ImageError(
                f"{self.name} has a damaged header ({error}). Write the file again."
            ) from error

    def read(self, positions: Sequence[int], corners: Corners, out: Pixels) -> None:
        if self._layout is not None:
            raw = self.header.offset is not None
            read = tiff_pixels.read_raw if raw else tiff_pixels.read_segments
            read(self._file, self.header, self._layout, positions, corners, out)
            return
        image = self._decoded()
        for window, (top, left) in zip(out, corners, strict=True):
            for plane, position in zip(window, positions, strict=True):
                rows, columns = plane.shape
                plane[...] = image[position, top : top + rows, left : left + columns]

    def _decoded(self) -> Pixels:
        """The whole image, (C, H, W)."""
        header = self.header
        self._file.whole()
        try:
            image = self._decode(self._file)
        except ImageError:
            raise
        except DECODE_ERRORS as error:
            raise ImageError(
                f"{self.name} cannot be decoded ({error}). Write the file again."
            ) from error
        shape = (header.num_channels, header.height_px, header.width_px)
        if image.dtype.name != header.dtype or image.shape not in (shape, shape[1:]):
            raise ImageError(
                f"{self.name} decodes to {image.dtype} {image.shape}, its header says "
                f"{header.dtype} {shape}. Write the file again."
            )
        return image.reshape(shape)


class _Zarr:
    """An OME-Zarr array."""

    def __init__(self, root: Root, entry: Entry) -> None:
        self.name = root.named(entry.path)
        self._root, self._entry = root, entry
        self.header = read_zarr_header(root, entry.path, entry.t, entry.z)

    def read(self, positions: Sequence[int], corners: Corners, out: Pixels) -> None:
        entry = self._entry
        read_zarr(self._root, entry.path, entry.t, entry.z, positions, corners, out)


class _Packed:
    """A site of a packed array."""

    def __init__(self, root: Root, entry: Entry) -> None:
        self.name = root.named(entry.path)
        self._root, self._entry = root, entry
        self.header = packed.read_header(root, entry.path, entry.number)

    def read(self, positions: Sequence[int], corners: Corners, out: Pixels) -> None:
        path, site = self._entry.path, self._entry.number
        if out.shape[2] == out.shape[3]:
            size = out.shape[2]
            out[...] = packed.read_windows(self._root, path, site, positions, corners, size)
        else:
            out[0] = packed.read_site(self._root, path, site, positions)


class _Maximum:
    """The pixelwise maximum of several images, such as the planes of a z stack."""

    def __init__(self, parts: list[Image]) -> None:
        self._parts = parts
        for part in parts[1:]:
            check_same(parts[0].header, part.header, part.name)
        self.name = parts[0].name
        self.header = dataclasses.replace(parts[0].header, offset=None)

    def read(self, positions: Sequence[int], corners: Corners, out: Pixels) -> None:
        self._parts[0].read(positions, corners, out)
        other = np.empty_like(out)
        for part in self._parts[1:]:
            part.read(positions, corners, other)
            np.maximum(out, other, out=out)
