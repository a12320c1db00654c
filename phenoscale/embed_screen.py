"""From a screen to its embeddings: every site of an index, plate by plate."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

import numpy as np

from phenoscale.embed import adapt_to_plate, embed_sites
from phenoscale.maps.intensity import density_statistics, intensity_statistics
from phenoscale.models.build import AnyEncoder
from phenoscale.models.densenet import ADAPTING_CROPS, DenseNetEncoder, evenly
from phenoscale.screens.site_reader import SiteReader

_SITES_AT_ONCE = 2
_TELL_EVERY_S = 1.0


def embed_screen(
    reader: SiteReader,
    encoder: AnyEncoder | None,
    size_px: int,
    tell: Callable[[int, int], None],
    *,
    channels: Sequence[str] | None = None,
    every_block: bool = False,
) -> tuple[dict[str, np.ndarray], list[int]]:
    """Embeds every site, or takes its intensity statistics and density instead.

    Args:
        reader: of the screen.
        encoder: on the CPU or a GPU; None for intensity statistics and density.
        size_px: side of the tiles.
        tell: called now and then with (sites done, sites in all).
        channels: names of those to use, by default all of the screen's.
        every_block: whether to read each block of a transformer too.

    Returns:
        Read-out to float32 (number of sites, d), rows in the index's order, and the unreadable
        rows, whose vectors mean nothing.

    Raises:
        ValueError: if more sites are unreadable than the reader tolerates, or the encoder does not
            take these channels.
    """
    names = tuple(channels or reader.channels)
    picked = channel_numbers(names, reader.channels)
    # Filled in place: small arrays kept between a step's large temporaries would fragment the heap.
    whole: dict[str, np.ndarray] = {}
    bad: list[int] = []
    told = 0.0
    if encoder is not None:
        encoder.eval()
    for plate in reader.plates:
        if isinstance(encoder, DenseNetEncoder):
            adapt(encoder, reader, plate, size_px, names, picked)
        for first in range(plate.start, plate.stop, _SITES_AT_ONCE):
            batch = reader.read(first, min(first + _SITES_AT_ONCE, plate.stop))
            images = batch["images"] if picked is None else batch["images"][:, picked]
            if encoder is None:
                part = {
                    "statistics": intensity_statistics(images),
                    "density": density_statistics(images),
                }
            else:
                part = embed_sites(encoder, images, size_px, names, every_block=every_block)
            for name, vectors in part.items():
                if name not in whole:
                    whole[name] = np.empty((reader.num_sites, vectors.shape[1]), vectors.dtype)
                whole[name][batch["rows"]] = vectors
            bad += [int(row) for row in batch["bad"] if row >= 0]
            if time.monotonic() - told > _TELL_EVERY_S:
                told = time.monotonic()
                tell(int(batch["rows"][-1]) + 1, reader.num_sites)
    tolerated = reader.crops.tolerated_bad_sites
    if len(bad) > tolerated * reader.num_sites:
        raise ValueError(
            f"{len(bad)} of {reader.num_sites} sites cannot be read, more than the tolerated share "
            f"of {tolerated:g}: index rows {bad[:10]}. Run phenoscale index check."
        )
    return whole, bad


def channel_numbers(wanted: Sequence[str], there: Sequence[str]) -> list[int] | None:
    """Where the wanted channels stand; None if they are all, in this order."""
    if missing := sorted(set(wanted) - set(there)):
        raise ValueError(
            f"The screen has no channel {', '.join(missing)}; it has {', '.join(there)}."
        )
    return None if tuple(wanted) == tuple(there) else [there.index(name) for name in wanted]


def adapt(
    encoder: DenseNetEncoder,
    reader: SiteReader,
    plate: range,
    size_px: int,
    names: Sequence[str],
    picked: list[int] | None,
) -> None:
    """Gives the encoder the statistics of a plate, from readable sites evenly spread over it.

    Where none of these can be read, from the first that can: never from another plate.

    Args:
        encoder: with adaptive batch norm.
        reader: of the screen.
        plate: its rows.
        size_px: side of the tiles.
        names: of the channels to use.
        picked: where these stand among the reader's (`channel_numbers`).
    """
    spread = [plate[i] for i in evenly(len(plate), ADAPTING_CROPS // 2)]
    images = list(_readable(reader, spread)) or list(islice(_readable(reader, plate), 1))
    if images:
        sites = np.concatenate(images)
        adapt_to_plate(encoder, sites if picked is None else sites[:, picked], size_px, names)


def _readable(reader: SiteReader, rows: Iterable[int]) -> Iterator[np.ndarray]:
    """The sites of some rows that can be read, uint8 (1, C, H, W)."""
    for row in rows:
        batch = reader.read(row, row + 1)
        if batch["bad"][0] < 0:
            yield batch["images"]
