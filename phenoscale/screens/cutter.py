"""From the plan to pixels: cuts the crops of a step, reads the sites of a range.

Both readers are small values that a Ray task, a thread or a test calls the same way; what they open
is kept once per process.

Shapes: B crops or sites, C channels in the index's order, H W pixels, s side of a crop.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from phenoscale.config import Crops
from phenoscale.crops import CropBatch, Plan
from phenoscale.screens.index import ScreenIndex
from phenoscale.screens.readers import ImageError, read_site, read_window

Batch = dict[str, np.ndarray]


class BadSiteError(ValueError):
    """A site's image cannot be read and the tolerance does not allow to pass it over."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CropCutter:
    """Cuts a trial's crops, or the crops of its held-out plates."""

    index_path: str
    """Parquet index of the screen."""
    crops: Crops
    """Which crops."""
    seed: int
    """Seed of the plan."""
    held_out: bool = False
    """Whether to cut from the held-out plates: one crop of each site, the same for every seed."""

    @property
    def plan(self) -> Plan:
        """The sampling plan over this cutter's rows."""
        return _opened(self)[0]

    @property
    def rows(self) -> np.ndarray:
        """int64 rows of the index that the crops come from."""
        return _opened(self)[1]

    @property
    def crop_bytes(self) -> int:
        """Bytes of one crop."""
        return len(_opened(self)[2].channels) * self.crops.size_px**2

    def cut(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        """The crops of one worker in one step.

        Returns:
            crops uint8 (B, C, s, s); labels int64 (B,), number of the perturbation in
            `ScreenIndex.labels`; rows int64 (B,), rows of the index; bad int64 (B,), the row that
            was planned where it could not be read and the next one of the subset stands in for it,
            else -1; read_cpu_s float64 (B,), CPU seconds of this call shared among its crops.

        Raises:
            BadSiteError: if more images are unreadable than `crops.tolerated_bad_sites` allows.
        """
        began = time.thread_time()
        plan, rows, screen = _opened(self)
        at = plan.batch(step, rank, world)
        size = self.crops.size_px
        count = len(at.site)
        pixels = np.empty((count, len(screen.channels), size, size), dtype=np.uint8)
        used, bad = np.empty(count, np.int64), np.full(count, -1, np.int64)
        for i in range(count):
            used[i], bad[i] = self._cut_one(pixels[i], at, i, rows, screen)
        return {
            "crops": pixels,
            "labels": screen.labels[used],
            "rows": used,
            "bad": bad,
            "read_cpu_s": np.full(count, (time.thread_time() - began) / count),
        }

    def _cut_one(
        self, out: np.ndarray, at: CropBatch, i: int, rows: np.ndarray, screen: _Screen
    ) -> tuple[int, int]:
        allowed = int(self.crops.tolerated_bad_sites * len(rows))
        bad = -1
        for beyond in range(allowed + 1):
            row = int(rows[(at.site[i] + beyond) % len(rows)])
            try:
                out[:] = _turned(
                    screen.window(row, at.top[i], at.left[i], self.crops.size_px), at.turn[i]
                )
            except ImageError as error:
                if beyond == allowed:
                    raise BadSiteError(screen.complaint(row, error, self.crops)) from error
                bad = int(rows[at.site[i]])
            else:
                return row, bad
        raise AssertionError("unreachable: the last try returns or raises")

    def stream(self, first: int, last: int, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """The batches of steps `first` to `last` - 1, cut in this thread: training without Ray."""
        for step in range(first, last):
            yield self.cut(step, rank, world)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SiteReader:
    """Reads whole sites, for embedding."""

    index_path: str
    """Parquet index of the screen."""
    crops: Crops
    """Its tolerance applies; every site of the index is read, whatever the fraction."""

    @property
    def num_sites(self) -> int:
        """Sites of the index."""
        return _screen(self.index_path).index.num_sites

    def read(self, first: int, last: int) -> Batch:
        """Sites of the rows `first` to `last` - 1.

        Returns:
            images uint8 (B, C, H, W); rows int64 (B,); bad int64 (B,): the row where a site could
            not be read and the tolerance allows one (its image is blank and must not be used), else
            -1.

        Raises:
            BadSiteError: if a site is unreadable and none is tolerated, or if sites differ in size.
        """
        began = time.thread_time()
        screen = _screen(self.index_path)
        images, bad = [], np.full(last - first, -1, np.int64)
        for row in range(first, last):
            try:
                images.append(screen.site(row))
            except ImageError as error:
                if int(self.crops.tolerated_bad_sites * screen.index.num_sites) == 0:
                    raise BadSiteError(screen.complaint(row, error, self.crops)) from error
                images.append(np.zeros_like(screen.blank))
                bad[row - first] = row
        if len({image.shape for image in images}) > 1:
            raise BadSiteError(
                f"The sites of rows {first} to {last - 1} have the sizes "
                f"{sorted({image.shape for image in images})}; one study embeds sites of one size."
            )
        return {
            "images": np.stack(images),
            "rows": np.arange(first, last),
            "bad": bad,
            "read_cpu_s": np.full(len(images), (time.thread_time() - began) / len(images)),
        }

    def stream(self, sites_per_batch: int = 2) -> Iterator[Batch]:
        """All sites in the index's order, read in this thread."""
        for first in range(0, self.num_sites, sites_per_batch):
            yield self.read(first, min(first + sites_per_batch, self.num_sites))


class _Screen:
    """An opened index with the columns that cutting needs as plain lists: the hot path."""

    def __init__(self, index_path: str) -> None:
        self.index = ScreenIndex.open(Path(index_path))
        self.channels = self.index.channels
        self.labels = self.index.labels()[0]
        table = self.index.table
        self.paths = table["paths"].to_pylist()
        self.site_channels = table["channels"].to_pylist()
        self.height = table["height_px"].to_numpy()
        self.width = table["width_px"].to_numpy()
        self.site_ids = table["site_id"].to_pylist()
        self.blank = np.zeros((len(self.channels), self.height[0], self.width[0]), np.uint8)

    def window(self, row: int, top: float, left: float, size_px: int) -> np.ndarray:
        room_y, room_x = int(self.height[row]) - size_px, int(self.width[row]) - size_px
        if room_y < 0 or room_x < 0:
            raise BadSiteError(
                f"Site {self.site_ids[row]} is {self.height[row]} x {self.width[row]} px, smaller "
                f"than a crop of {size_px} px. Give size_px of at most that."
            )
        return read_window(
            self.index.root,
            self.paths[row],
            self.site_channels[row],
            self.channels,
            int(top * (room_y + 1)),
            int(left * (room_x + 1)),
            size_px,
        )

    def site(self, row: int) -> np.ndarray:
        return read_site(self.index.root, self.paths[row], self.site_channels[row], self.channels)

    def complaint(self, row: int, error: ImageError, crops: Crops) -> str:
        return (
            f"Row {row} of the index, site {self.site_ids[row]}: {error} The share of bad sites "
            f"tolerated is {crops.tolerated_bad_sites:g}. Mend the file, or give a larger "
            "tolerated_bad_sites."
        )


@functools.lru_cache(maxsize=4)
def _screen(index_path: str) -> _Screen:
    return _Screen(index_path)


@functools.lru_cache(maxsize=8)
def _opened(cutter: CropCutter) -> tuple[Plan, np.ndarray, _Screen]:
    screen, crops, seed = _screen(cutter.index_path), cutter.crops, cutter.seed
    if cutter.held_out:
        rows = screen.index.held_out_rows(crops.held_out)
        if not len(rows):
            raise ValueError(
                "The trial holds out no site, and its held-out loss needs some. Name plates or "
                "experimental batches in crops.held_out."
            )
        # The largest batch that divides them, so that no site is left over.
        size = max(n for n in range(1, crops.global_batch_size + 1) if len(rows) % n == 0)
        crops, seed = dataclasses.replace(crops, passes=1, global_batch_size=size), 0
    else:
        rows = screen.index.rows(crops.data_fraction, crops.held_out)
    plan = Plan.of(crops, fingerprint=screen.index.fingerprint, seed=seed, num_sites=len(rows))
    return plan, rows, screen


def _turned(crop: np.ndarray, turn: int) -> np.ndarray:
    """One of the eight symmetries of the square: `turn` % 4 quarter turns, mirrored from 4 on."""
    crop = np.rot90(crop, turn % 4, axes=(1, 2))
    return crop[:, :, ::-1] if turn >= 4 else crop
