"""Whole sites of an index, for embedding.

Shapes: S sites, C channels in the index's order, H W pixels.
"""

from __future__ import annotations

import dataclasses
import time

import numpy as np

from phenoscale.config import Crops
from phenoscale.screens.errors import ImageError
from phenoscale.screens.opened import BadSiteError, Batch, complaint, opened_screen


@dataclasses.dataclass(frozen=True, kw_only=True)
class SiteReader:
    """Reads whole sites, for embedding."""

    index_path: str
    """Parquet index of the screen, a path or a URL."""
    crops: Crops
    """Its tolerance applies; every site of the index is read, whatever the fraction."""

    @property
    def num_sites(self) -> int:
        """Sites of the index."""
        return opened_screen(self.index_path).index.num_sites

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the images' channels."""
        return opened_screen(self.index_path).index.channels

    @property
    def plates(self) -> list[range]:
        """Rows of each plate, in order."""
        plates = opened_screen(self.index_path).index.plates
        return [
            range(first, first + rows)
            for first, rows in zip(plates["first_row"], plates["rows"], strict=True)
        ]

    def read(self, first: int, last: int) -> Batch:
        """Sites of the rows `first` to `last` - 1.

        Returns:
            images uint8 (S, C, H, W); rows int64 (S,); bad int64 (S,): the row where a site could
            not be read and the tolerance allows one (its image is blank and must not be used), else
            -1.

        Raises:
            BadSiteError: if a site is unreadable and none is tolerated, or if sites differ in size.
        """
        began = time.thread_time()
        screen = opened_screen(self.index_path)
        images, bad = [], np.full(last - first, -1, np.int64)
        for number in range(first, last):
            row = screen.row(number)
            try:
                images.append(screen.whole(row))
            except ImageError as error:
                if int(self.crops.tolerated_bad_sites * screen.index.num_sites) == 0:
                    raise BadSiteError(complaint(number, error, self.crops)) from error
                shape = (len(screen.index.channels), row.height_px, row.width_px)
                images.append(np.zeros(shape, np.uint8))
                bad[number - first] = number
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
