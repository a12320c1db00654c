"""TIFFs of uncommon layouts, read whole by tifffile."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import tifffile

from phenoscale.screens.errors import ImageError
from phenoscale.screens.images.headers import ImageHeader
from phenoscale.screens.images.image_file import ImageFile


class _Stream(io.RawIOBase):
    """An image file as tifffile wants it."""

    def __init__(self, file: ImageFile) -> None:
        self._file = file
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = (0, self._position, self._file.size)[whence]
        self._position = max(0, start + offset)
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self._file.at(self._position, len(buffer))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


@contextlib.contextmanager
def _series(file: ImageFile) -> Iterator[tifffile.TiffPageSeries]:
    # tifffile reads tags a few bytes at a time.
    buffered = io.BufferedReader(_Stream(file), 1 << 16)
    # is_ome=False: OME metadata may name other files, which tifffile would then open.
    with tifffile.TiffFile(buffered, name=os.path.basename(file.name), is_ome=False) as tiff:
        if len(tiff.series) != 1:
            raise ImageError(
                f"{file.name} holds {len(tiff.series)} images of different shapes or types; one "
                "image per file is required. Write the channels as pages of one size."
            )
        yield tiff.series[0]


def other_tiff_header(file: ImageFile) -> ImageHeader:
    """Reads the header; ImageError if it is no (H, W), (C, H, W) or (H, W, C) image."""
    with _series(file) as series:
        shape, axes = series.shape, series.axes
        if len(shape) not in (2, 3):
            raise ImageError(
                f"{file.name} has the axes {axes} {shape}; (H, W), (C, H, W) or (H, W, C) is "
                "required. Write one file per site and time point, with z projected."
            )
        if axes.endswith("S"):
            shape = (shape[-1], *shape[:-1])
        pieces = [(series.dataoffset, series.nbytes)] if series.dataoffset is not None else []
        for page in series.pages:
            if page is not None:
                pieces += zip(page.dataoffsets, page.databytecounts, strict=True)
        if any(not length or offset + length > file.size for offset, length in pieces):
            raise ImageError(
                f"{file.name} is truncated or lacks pixels: a strip is empty, or ends behind the "
                f"file's end at byte {file.size}. Write it again."
            )
        return ImageHeader(
            num_channels=shape[0] if len(shape) == 3 else 1,
            height_px=shape[-2], width_px=shape[-1], dtype=str(series.dtype), offset=None,
        )  # fmt: skip


def decode_other_tiff(file: ImageFile) -> npt.NDArray[np.generic]:
    """Decodes the whole file to (H, W) or (C, H, W)."""
    with _series(file) as series:
        image = np.asarray(series.asarray())
        return np.moveaxis(image, -1, 0) if series.axes.endswith("S") else image
