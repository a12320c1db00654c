"""An index as its readers have it open: rows, window by window, and what is said of a bad one.

What a reader opens is kept once per process, and no more of the index than a window of it.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from phenoscale.config import Crops
from phenoscale.crops import WINDOW_GROUPS
from phenoscale.screens.errors import ImageError
from phenoscale.screens.images.readers import read_site
from phenoscale.screens.index import ScreenIndex, Sites

Batch = dict[str, np.ndarray]
CACHED_GROUPS = 2 * WINDOW_GROUPS  # the window that is being read, and the one before or after it


class BadSiteError(ValueError):
    """Sites cannot be read, and the tolerance does not allow to pass them over."""


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One site, as the readers want it."""

    number: int
    label: int
    paths: list[str]
    channels: tuple[str, ...]
    height_px: int
    width_px: int
    dtype: str
    scale: tuple[tuple[float, float], ...] | None

    @property
    def recorded(self) -> tuple[int, int, str]:
        """What its files must be."""
        return self.height_px, self.width_px, self.dtype


class OpenedScreen:
    """An opened index and the groups of rows that were read last."""

    def __init__(self, index_path: str) -> None:
        self.index = ScreenIndex.open(index_path)
        self.sites = functools.lru_cache(maxsize=CACHED_GROUPS)(self.index.sites)
        self._group_rows = len(self.index.group_rows(0))

    def row(self, number: int) -> Row:
        """A row of the index."""
        group, i = divmod(number, self._group_rows)
        sites: Sites = self.sites(group)
        channel_set = int(sites.channel_set[i])
        return Row(
            number=number,
            label=int(sites.label[i]),
            paths=sites.paths[i].as_py(),
            channels=self.index.channel_sets[channel_set],
            height_px=int(sites.height_px[i]),
            width_px=int(sites.width_px[i]),
            dtype=sites.dtype[i].as_py(),
            scale=self.index.scale(number, channel_set),
        )

    def whole(self, row: Row) -> np.ndarray:
        """A site's image, uint8 (C, H, W)."""
        return read_site(
            self.index.root,
            row.paths,
            row.channels,
            self.index.channels,
            row.scale,
            row.recorded,
        )


@functools.lru_cache(maxsize=4)
def opened_screen(index_path: str) -> OpenedScreen:
    """The index at a path or URL, opened once per process."""
    return OpenedScreen(index_path)


def complaint(row: int, error: ImageError, crops: Crops) -> str:
    """What is said of a site that cannot be read, and what to do."""
    return (
        f"Row {row} of the index: {error} The share of bad sites tolerated is "
        f"{crops.tolerated_bad_sites:g}. Mend the file, or give a larger tolerated_bad_sites."
    )
