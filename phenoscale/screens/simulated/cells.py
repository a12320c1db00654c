"""Cells of the simulated screen: latent phenotype parameters in, one stamp per channel out.

A cell is drawn, with numpy alone, from geometry (nucleus, cytoplasm, organelles) times crops of
precomputed texture banks. Each channel of a stamp sums to a constant, whatever the cell's shape: a
phenotype moves stain around and never adds any, so that mean intensity is nearly blind to it.

Legend: C channels, S side of a stamp in pixels, L latents, P side of a texture bank in pixels.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]

CHANNELS = ("DNA", "ER", "RNA", "AGP", "Mito", "Golgi")
STAIN_PER_CELL = np.array([21e3, 52e3, 48e3, 56e3, 44e3, 15e3], np.float32)
"""Grey levels that one cell adds up to in each channel; bright structures reach some 100 to 180."""
CELLS_PER_PX = 15 / 256**2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Latent:
    """One phenotype parameter: value = centre * exp(log_step * z), held within [low, high]."""

    name: str
    """Column name after `latent_`."""
    centre: float
    """Value of an average unperturbed cell, in the unit the renderer's line names."""
    log_step: float
    """Change of the logarithm per unit of z; the cell population has standard deviation 1 in z."""
    low: float
    """Smallest value drawn."""
    high: float
    """Largest value drawn."""


def _latent(name: str, centre: float, log_step: float, low: float, high: float) -> Latent:
    return Latent(name=name, centre=centre, log_step=log_step, low=low, high=high)


LATENTS = (
    _latent("nucleus_size", 9.5, 0.08, 6.0, 15.0),  # radius, px
    _latent("nucleus_aspect", 1.25, 0.07, 1.0, 2.0),  # long over short axis
    _latent("nucleus_texture_scale", 1.3, 0.15, 0.7, 4.0),  # period / 2 pi of the chromatin, px
    _latent("nucleoli_size", 1.9, 0.12, 1.0, 4.0),  # sd, px
    _latent("cell_size", 23.0, 0.07, 15.0, 34.0),  # radius, px
    _latent("cell_elongation", 1.4, 0.08, 1.0, 2.4),  # long over short axis
    _latent("er_extent", 0.6, 0.10, 0.3, 1.1),  # decay length, cell radii
    _latent("er_texture_scale", 1.8, 0.15, 0.7, 4.0),  # period / 2 pi of the net, px
    _latent("mito_position", 0.62, 0.09, 0.3, 1.0),  # radius of the ring, cell radii
    _latent("mito_texture_scale", 1.6, 0.15, 0.7, 4.0),  # period / 2 pi of the net, px
    _latent("mito_amplitude", 1.0, 0.20, 0.3, 3.0),  # contrast of the network over its haze
    _latent("actin_rim", 0.42, 0.14, 0.08, 0.92),  # share of the stain in the cell's edge
    _latent("actin_fibre_scale", 1.5, 0.15, 0.7, 4.0),  # period / 2 pi across the fibres, px
    _latent("golgi_spread", 4.2, 0.13, 1.8, 9.0),  # sd of the cisternae's positions, px
    _latent("golgi_offset", 10.0, 0.12, 3.0, 20.0),  # distance from the nucleus' centre, px
    _latent("density", CELLS_PER_PX, 0.10, CELLS_PER_PX / 3, CELLS_PER_PX * 3),  # cells per px
)
LATENT_NAMES = tuple(latent.name for latent in LATENTS)
_CENTRE, _LOG_STEP, _LOW, _HIGH = (
    np.array([getattr(latent, field) for latent in LATENTS])
    for field in ("centre", "log_step", "low", "high")
)

_BANK_PX = 512
_SCALES_PX = np.geomspace(0.7, 4.0, 12)
_OUTLINE_SCALE_PX = 6.0
_ANGLES = 12
_MAX_HALF_PX = 56
_GRID = np.arange(-_MAX_HALF_PX, _MAX_HALF_PX + 1, dtype=np.float32)


def rng_for(seed: int, *names: str) -> np.random.Generator:
    """Return the generator of one named thing (a plate, a site): the same in every process."""
    digest = hashlib.sha256("\0".join((str(seed), *names)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little"))


@functools.cache
def _banks() -> dict[str, npt.NDArray[np.float32]]:
    """Build the texture banks once per process (0.6 s, 65 MB); all screens share them.

    Returns:
        outline (P, P) and grain (scales, P, P), both mean 0 and sd 1; ridge (scales, P, P) and
        fibre (angles, scales, P / 2, P / 2), both within [0, 1].
    """
    rng = rng_for(0, "texture banks")

    def field(size: int, transfer: npt.NDArray[np.float64]) -> FloatArray:
        white = np.fft.rfft2(rng.standard_normal((size, size)))
        image = np.fft.irfft2(white * transfer, s=(size, size))
        return (image / image.std()).astype(np.float32)

    def axes(size: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        return 2 * np.pi * np.fft.fftfreq(size)[:, None], 2 * np.pi * np.fft.rfftfreq(size)[None]

    def ring(scale: float) -> npt.NDArray[np.float64]:
        """Pass the frequencies around 1 / scale: granules of one size."""
        return np.exp(-(((np.hypot(*axes(_BANK_PX)) * scale - 1) / 0.4) ** 2))

    grain = [field(_BANK_PX, ring(scale)) for scale in _SCALES_PX]
    # Where such a field crosses zero there is a net of filaments with the same spacing.
    ridge = [np.exp(-((field(_BANK_PX, ring(scale)) / 0.45) ** 2)) for scale in _SCALES_PX]
    fibre = []
    rows, columns = axes(_BANK_PX // 2)
    for angle in np.arange(_ANGLES) * np.pi / _ANGLES:
        along = columns * np.cos(angle) + rows * np.sin(angle)
        across = rows * np.cos(angle) - columns * np.sin(angle)
        for scale in _SCALES_PX:
            band = np.exp(-(((np.abs(across) * scale - 1) / 0.4) ** 2))
            streaks = field(_BANK_PX // 2, band * np.exp(-((along * scale * 6) ** 2)))
            fibre.append(np.clip(0.5 + 0.5 * streaks, 0, 1))
    return {
        "outline": field(_BANK_PX, ring(_OUTLINE_SCALE_PX)),
        "grain": np.stack(grain),
        "ridge": np.stack(ridge),
        "fibre": np.stack(fibre).reshape(_ANGLES, len(_SCALES_PX), _BANK_PX // 2, -1),
    }


def _texture(bank: FloatArray, side: int, rng: np.random.Generator) -> FloatArray:
    """Crop (side, side) from a (P, P) texture at a random offset."""
    top, left = rng.integers(0, bank.shape[-1] - side, 2)
    return bank[top : top + side, left : left + side]


def _scale_index(scale_px: float) -> int:
    return int(np.abs(np.log(_SCALES_PX / scale_px)).argmin())


def _spots(centres: FloatArray, sd: npt.ArrayLike, grid: FloatArray) -> FloatArray:
    """Add up Gaussian spots: (spots, 2) centres as (y, x) px from the stamp's middle -> (S, S)."""
    sd = np.broadcast_to(np.asarray(sd, np.float32), (len(centres),))[:, None]
    vertical = np.exp(-(((grid - centres[:, :1]) / sd) ** 2) / 2)
    horizontal = np.exp(-(((grid - centres[:, 1:]) / sd) ** 2) / 2)
    return vertical.T @ horizontal


def _ellipse(
    grid: FloatArray, angle: float, radius: float, aspect: float, centre: FloatArray
) -> FloatArray:
    """Elliptic radius at each pixel, (S, S): 1 on the outline whose area is pi * radius^2."""
    long, short = radius * aspect**0.5, radius / aspect**0.5
    y, x = grid[:, None] - centre[0], grid[None] - centre[1]
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    along = x * (cos / np.float32(long)) + y * (sin / np.float32(long))
    across = y * (cos / np.float32(short)) - x * (sin / np.float32(short))
    along *= along
    across *= across
    along += across
    return np.sqrt(along, out=along)


def latent_values(z: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Turn latents (..., L), in units of the population's sd, into values in each row's unit."""
    return np.clip(_CENTRE * np.exp(_LOG_STEP * z), _LOW, _HIGH)


def render_cell(z: npt.NDArray[np.float64], rng: np.random.Generator) -> FloatArray:
    """Draw one cell.

    Args:
        z: (L,) latents of this cell, in units of the cell population's standard deviation.
        rng: Source of orientation, outline and texture offsets.

    Returns:
        (C, S, S) grey levels, S odd, the cell in the middle; channel c sums to STAIN_PER_CELL[c].
    """
    value = dict(zip(LATENT_NAMES, latent_values(z).tolist(), strict=True))
    banks = _banks()
    radius, elongation = value["cell_size"], value["cell_elongation"]
    half = min(int(1.25 * radius * elongation**0.5) + 2, _MAX_HALF_PX)
    side = 2 * half + 1
    grid = _GRID[_MAX_HALF_PX - half : _MAX_HALF_PX + half + 1]
    angle = rng.uniform(0, np.pi)
    origin = np.zeros(2, np.float32)

    def texture(bank: str, latent: str) -> FloatArray:
        return _texture(banks[bank][_scale_index(value[latent])], side, rng)

    rho = _ellipse(grid, angle, radius, elongation, origin)
    rho *= 1 + 0.06 * _texture(banks["outline"], side, rng)  # an irregular outline
    body = np.clip((1 - rho) * np.float32(radius / 2), 0, 1)  # an edge two pixels wide
    nucleus_at = (rng.normal(0, 0.06 * radius, 2)).astype(np.float32)
    nuclear_angle = angle + rng.normal(0, 0.3)
    nuclear_rho = _ellipse(
        grid, nuclear_angle, value["nucleus_size"], value["nucleus_aspect"], nucleus_at
    )
    nucleus = np.clip((1 - nuclear_rho) * np.float32(value["nucleus_size"] / 1.5), 0, 1)
    cytoplasm = body * (1 - nucleus)

    dna = nucleus * (1 + 0.35 * np.clip(texture("grain", "nucleus_texture_scale"), -2, 2))

    er = cytoplasm * np.exp(-((rho / np.float32(value["er_extent"])) ** 2))
    er *= 0.25 + texture("ridge", "er_texture_scale")

    nucleoli = rng.integers(2, 5)
    at = rng.normal(0, 0.4 * value["nucleus_size"], (nucleoli, 2)).astype(np.float32) + nucleus_at
    rna = nucleus * (0.5 + 2.5 * _spots(at, value["nucleoli_size"], grid))
    rna += cytoplasm * (1.05 - 0.7 * rho)

    fibre_bank = banks["fibre"][round(angle / np.pi * _ANGLES) % _ANGLES]
    fibres = body * _texture(fibre_bank[_scale_index(value["actin_fibre_scale"])], side, rng)
    rim = body * np.exp(-(((rho - 0.92) / 0.08) ** 2))
    share = np.float32(value["actin_rim"])
    agp = rim * (share / rim.sum()) + fibres * ((1 - share) / fibres.sum())

    mito = cytoplasm * np.exp(-(((rho - np.float32(value["mito_position"])) / 0.22) ** 2))
    mito *= 0.3 + np.float32(value["mito_amplitude"]) * texture("ridge", "mito_texture_scale")

    side_of_nucleus = rng.uniform(0, 2 * np.pi)
    towards = np.array([np.sin(side_of_nucleus), np.cos(side_of_nucleus)])
    at = (
        nucleus_at + value["golgi_offset"] * towards + rng.normal(0, value["golgi_spread"], (10, 2))
    )
    golgi = (0.02 + _spots(at.astype(np.float32), rng.uniform(1.0, 1.9, 10), grid)) * body

    stamp = np.stack([dna, er, rna, agp, mito, golgi])
    stamp *= (STAIN_PER_CELL / stamp.sum((1, 2)))[:, None, None]
    return stamp
