"""The image cases of the data benchmark: their files, their pixels and the crops that are cut.

Pixels are drawn by the simulator, 512 px frames that are turned, tiled and cut to the case's size;
the 16-bit case uses a real site instead where one is given. What every way must deliver is kept as
one uint8 array per case, and as checksums of its crops.

Legend: S sites, C channels, H W pixels, R reads, k crops of one read, s side of a crop.
"""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections import Counter
from pathlib import Path

import imagecodecs
import numpy as np
import numpy.typing as npt
import tifffile

from phenoscale.screens.simulated.cells import LATENT_NAMES, rng_for
from phenoscale.screens.simulated.render import draw_nuisance, render_site

Pixels = npt.NDArray[np.uint8]
Scale = npt.NDArray[np.float64]

REAL_SITE = "pediatric_atlas_br00143976/r03c03f03p01-ch{channel}sk1fk1fl1.tiff"

_FRAMES, _FRAME_PX = 8, 512
_JPEG2000_PSNR = 45  # dB; a tenth of the pixels' bytes, as published screens are kept


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One kind of screen."""

    name: str
    """Name on the command line."""
    codec: str
    """png, jp2 or tiff: one file per channel."""
    channels: int
    """Files of a site."""
    site_px: int
    """Height and width of a site."""
    dtype: str
    """uint8, or uint16, whose sites are scaled to uint8."""
    sites: int
    """Sites of the screen."""
    crops_per_read: int
    """Crops that are cut from a site each time that it is read."""
    raw_visits: int
    """Times that a run over the raw files reads each site."""
    packed_visits: int
    """Times that a run over packed sites reads each site: they cost less, so a run takes more."""
    plan_batch: int
    """Global batch of our plan, which reads 16 steps of it at once: small enough that this is not
    more than all sites, for a site that came twice would be read once."""
    crop_px: int = 256
    """Side of a crop."""
    global_batch: int = 64
    """Crops of a batch of every other way; a multiple of `crops_per_read`."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the channels, in order."""
        return tuple(f"channel{c + 1}" for c in range(self.channels))

    def crops(self, packed: bool) -> int:
        """Crops of one run."""
        return self.sites * self.crops_per_read * self.visits(packed)

    def visits(self, packed: bool) -> int:
        """Reads of each site in one run."""
        return self.packed_visits if packed else self.raw_visits

    def path(self, site: int, channel: int) -> str:
        """File of one channel, relative to the folder of the screen."""
        return f"plate1/s{site:03d}_{self.names[channel]}.{self.codec}"


CASES = {
    case.name: case
    for case in (
        Case(name="png512", codec="png", channels=6, site_px=512, dtype="uint8", sites=256,
             crops_per_read=4, raw_visits=2, packed_visits=8, plan_batch=64),
        Case(name="jp2-2048", codec="jp2", channels=6, site_px=2048, dtype="uint8", sites=16,
             crops_per_read=16, raw_visits=1, packed_visits=8, plan_batch=8),
        Case(name="tiff1080", codec="tiff", channels=5, site_px=1080, dtype="uint16", sites=64,
             crops_per_read=8, raw_visits=1, packed_visits=8, plan_batch=32),
    )
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Reads:
    """The crops of one run, in groups that are cut from one site in one read."""

    site: npt.NDArray[np.int64]
    """(R,) site of each read."""
    top: npt.NDArray[np.int64]
    """(R, k) first rows, pixels."""
    left: npt.NDArray[np.int64]
    """(R, k) first columns, pixels."""

    def __len__(self) -> int:
        return len(self.site)

    def batches(self, global_batch: int) -> list[npt.NDArray[np.int64]]:
        """Numbers of the reads of each batch."""
        per_batch = max(1, global_batch // self.top.shape[1])
        return np.split(np.arange(len(self)), range(per_batch, len(self), per_batch))

    def of_site(self) -> list[list[int]]:
        """Numbers of the reads of each site, in the order of its visits."""
        lists: list[list[int]] = [[] for _ in range(int(self.site.max()) + 1)]
        for read, site in enumerate(self.site):
            lists[site].append(read)
        return lists


def grouped(
    site: npt.NDArray[np.int64],
    top: npt.NDArray[np.int64],
    left: npt.NDArray[np.int64],
    per_read: int,
    seed: int = 0,
) -> Reads:
    """Groups planned crops by site, `per_read` to a read, and shuffles the reads.

    Args:
        site: (N,) site of each crop; each site's crops are a multiple of `per_read`.
        top: (N,) first row.
        left: (N,) first column.
        per_read: crops of one read.
        seed: of the shuffle.

    Raises:
        ValueError: if a site's crops do not divide so.
    """
    order = np.argsort(site, kind="stable")
    if len(site) % per_read or (np.bincount(site) % per_read).any():
        raise ValueError(
            f"The crops of a site do not divide into reads of {per_read}; give each site a "
            f"multiple of {per_read} crops."
        )
    by_site = order.reshape(-1, per_read)
    # Visits in turn, as epochs do: each visit of the screen in an order of its own.
    rng = np.random.default_rng(seed)
    visit = np.zeros(len(by_site), np.int64)
    first = site[by_site[:, 0]]
    for one in np.unique(first):
        visit[first == one] = np.arange((first == one).sum())
    by_site = by_site[np.lexsort((rng.random(len(by_site)), visit))]
    return Reads(site[by_site[:, 0]], top[by_site], left[by_site])


def _turned(image: npt.NDArray[np.generic], turn: int) -> npt.NDArray[np.generic]:
    """One of the eight symmetries of the square: `turn` % 4 quarter turns, mirrored from 4 on."""
    image = np.rot90(image, turn % 4, axes=(1, 2))
    return image[:, :, ::-1] if turn >= 4 else image


def scaled(image: npt.NDArray[np.generic], scale: Scale) -> Pixels:
    """uint16 (C, ...) to uint8 by each channel's (low, high) grey value, (C, 2)."""
    return looked_up(tables(scale), image)


def looked_up(table: Pixels, image: npt.NDArray[np.generic]) -> Pixels:
    """Each channel of a uint16 image (C, ...) through its row of `tables`."""
    return np.stack([row[plane] for row, plane in zip(table, image, strict=True)])


def tables(scale: Scale) -> Pixels:
    """(C, 65536) uint8: the scaling rule, spelled out for every grey value."""
    low, high = scale[:, :1], scale[:, 1:]
    span = np.where(high > low, high - low, np.inf)
    return np.clip(np.round((np.arange(2**16) - low) / span * 255), 0, 255).astype(np.uint8)


def checksums(crops: Pixels) -> list[int]:
    """CRC-32 of each crop of a batch (B, C, s, s)."""
    return [zlib.crc32(np.ascontiguousarray(crop).data) for crop in crops]


def expected(truth: Pixels, reads: Reads, crop_px: int) -> Counter[int]:
    """How often each checksum must come, whatever the order of the crops."""
    count: Counter[int] = Counter()
    for r, site in enumerate(reads.site):
        for top, left in zip(reads.top[r], reads.left[r], strict=True):
            window = truth[site, :, top : top + crop_px, left : left + crop_px]
            count[zlib.crc32(np.ascontiguousarray(window).data)] += 1
    return count


@functools.cache
def _frames() -> Pixels:
    """(frames, 6, 512, 512) simulated sites with their batch, plate and well effects."""
    return np.stack(
        [
            render_site(
                np.zeros(len(LATENT_NAMES)),
                draw_nuisance(0, 1.0, "batch1", "plate1", str(i)),
                _FRAME_PX,
                rng_for(0, str(i)),
            )
            for i in range(_FRAMES)
        ]
    )


def _simulated(case: Case, site: int) -> npt.NDArray[np.generic]:
    """(C, H, W) uint8, or uint16 with twelve bits of light and the noise of a camera."""
    rng = rng_for(1, case.name, str(site))
    across = -(-case.site_px // _FRAME_PX)
    rows = []
    for _ in range(across):
        tiles = [
            _turned(_frames()[rng.integers(_FRAMES)], int(rng.integers(8))) for _ in range(across)
        ]
        rows.append(np.concatenate(tiles, axis=2))
    image = np.concatenate(rows, axis=1)[: case.channels, : case.site_px, : case.site_px]
    if case.dtype == "uint8":
        return np.ascontiguousarray(image)
    light = 200 + 16.0 * image + rng.normal(0, 12, image.shape)
    return np.clip(light, 0, 2**16 - 1).astype(np.uint16)


def _real(case: Case, site: int, folder: Path) -> npt.NDArray[np.generic]:
    """(C, H, W) uint16: the real site of six channels, shifted and turned to look like another."""
    planes = [tifffile.imread(folder / REAL_SITE.format(channel=c + 2)) for c in range(5)]
    rng = rng_for(1, case.name, str(site))
    moved = np.roll(np.stack(planes), rng.integers(0, case.site_px, 2), axis=(1, 2))
    return np.ascontiguousarray(_turned(moved, int(rng.integers(8))))


def write_files(case: Case, folder: Path, real_data: Path | None) -> str:
    """Writes the image files of a case, one per channel and site, below `folder`.

    Args:
        case: the case.
        folder: root of the screen.
        real_data: folder of real data sets, used by the 16-bit case where it holds the site.

    Returns:
        Where the pixels come from, in words.
    """
    use_real = (
        case.dtype == "uint16"
        and case.site_px == 1080
        and real_data is not None
        and (real_data / REAL_SITE.format(channel=2)).exists()
    )
    for site in range(case.sites):
        if use_real and real_data is not None:
            image = _real(case, site, real_data)
        else:
            image = _simulated(case, site)
        for channel, plane in enumerate(image):
            path = folder / case.path(site, channel)
            path.parent.mkdir(parents=True, exist_ok=True)
            if case.codec == "png":
                path.write_bytes(imagecodecs.png_encode(plane, level=6))
            elif case.codec == "jp2":
                path.write_bytes(
                    imagecodecs.jpeg2k_encode(plane, level=_JPEG2000_PSNR, codecformat="jp2")
                )
            else:
                # Five strips of 1080 rows, as microscopes write them.
                tifffile.imwrite(path, plane, compression="lzw", rowsperstrip=243, metadata=None)
    return "one real site, shifted and turned" if use_real else "simulated, tiled"


def decode_file(codec: str, data: bytes) -> npt.NDArray[np.generic]:
    """(H, W) pixels of one channel's file."""
    if codec == "png":
        return imagecodecs.png_decode(data)
    if codec == "jp2":
        return imagecodecs.jpeg2k_decode(data)
    return imagecodecs.tiff_decode(data)


def decode_site(case: Case, folder: Path, site: int) -> npt.NDArray[np.generic]:
    """(C, H, W) pixels of a site as its files hold them."""
    paths = (folder / case.path(site, channel) for channel in range(case.channels))
    return np.stack([decode_file(case.codec, path.read_bytes()) for path in paths])
