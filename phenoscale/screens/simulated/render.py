"""Sites of the simulated screen: cells placed in a frame, then what staining and optics do to them.

Stain gain, cell density, illumination, focus, noise and background vary by experimental batch,
plate and well, more strongly than most phenotypes do. A condition (`conditions.py`) says which
channels there are; what it adds draws from generators of its own ("lamp"). Everything is a function
of (seed, names), so a site has the same bytes in whichever process it is drawn. numpy's vectorised
`exp` may differ in the last bit between families of CPU; a few pixels may then differ by one grey
level.

Legend: C channels, H W pixels of the frame, S side of a stamp in pixels, L latents.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import numpy.typing as npt
from scipy import fft

from phenoscale.screens.simulated.cells import (
    CHANNELS,
    LATENT_NAMES,
    FloatArray,
    latent_values,
    render_cell,
    rng_for,
)
from phenoscale.screens.simulated.conditions import BRIGHTFIELD, STANDARD, Condition

_NOISE_VALUES = 1 << 20
_MARGIN_PX = 12  # cells whose centre lies this far outside the frame still reach into it
_PAD_PX = 2  # the frame is drawn with the border that the 5-tap focus blur eats
_HALO_PX = 12  # the border that keeps fringes from coming in again at the opposite edge
_DRY_MASS = np.array([1.0, 0.5, 1.5, 0.6, 0.5, 0.15], np.float32) / 100
"""Optical thickness per grey level of each stain: what a cell is made of, and how much of it."""
_ABSORPTION, _REFRACTION = 0.15, 0.4  # of light, per unit of optical thickness
_COHERENCE_PX = 0.8  # finer fringes wash out: the lamp is no point
_LAMP_NOISE = 0.4  # a lamp gives more photons per grey level than a stain does


@dataclasses.dataclass(frozen=True, kw_only=True)
class Nuisance:
    """What staining, optics and seeding do to one well, whatever its perturbation."""

    gain: FloatArray
    """(C,) factor on the stain; 1 for brightfield."""
    background: FloatArray
    """(C,) grey levels before illumination."""
    slope: FloatArray
    """(C, 2) relative change of illumination over the frame's height and width."""
    log_density: float
    """Added to the logarithm of the cell density."""
    blur_px: float
    """Standard deviation of the focus blur."""
    noise: float
    """Shot noise: its standard deviation at one grey level."""


def draw_nuisance(
    seed: int,
    scale: float,
    experimental_batch: str,
    plate: str,
    well: str,
    condition: Condition = STANDARD,
) -> Nuisance:
    """Draw a well's nuisance from its batch's, its plate's and its own generator.

    Args:
        seed: The screen's seed.
        scale: Multiplies every amplitude; 0 leaves the condition alone: under the standard one
            gain 1, flat light, sharp focus and no noise.
        experimental_batch: Name of the experimental batch.
        plate: Name of the plate, unique within its experimental batch.
        well: Name of the well, unique within its plate.
        condition: How the screen is imaged. What is drawn for a stain does not depend on it.

    Returns:
        The nuisance of that well, shared by its sites; C in the order of the condition.
    """
    count = len(CHANNELS)
    batch_rng = rng_for(seed, "nuisance", experimental_batch)
    plate_rng = rng_for(seed, "nuisance", experimental_batch, plate)
    well_rng = rng_for(seed, "nuisance", experimental_batch, plate, well)
    # The standard deviations of the logarithm, batch > plate > well, as real screens have them.
    levels = ((batch_rng, 0.30, 0.10), (plate_rng, 0.15, 0.05), (well_rng, 0.10, 0.10))
    log_gain, log_density = np.zeros(count), 0.0
    for rng, gain_sd, density_sd in levels:
        log_gain += gain_sd * rng.standard_normal(count)
        log_density += density_sd * rng.standard_normal()
    slope = 0.20 * plate_rng.standard_normal((count, 2)) + 0.05 * well_rng.standard_normal(
        (count, 2)
    )
    log_background = 0.2 * plate_rng.standard_normal(count) + 0.1 * well_rng.standard_normal(count)
    blur_px = scale * 0.7 * (plate_rng.random() + well_rng.random()) / 2

    # Condensers are adjusted for each plate, so light varies less in brightfield.
    lamps = len(BRIGHTFIELD)
    lamp_rng = rng_for(seed, "lamp", experimental_batch, plate)
    well_lamp_rng = rng_for(seed, "lamp", experimental_batch, plate, well)
    lamp_slope = 0.06 * lamp_rng.standard_normal((lamps, 2))
    lamp_slope += 0.02 * well_lamp_rng.standard_normal((lamps, 2))
    log_lamp = 0.05 * lamp_rng.standard_normal(lamps) + 0.02 * well_lamp_rng.standard_normal(lamps)

    drawn = (*CHANNELS, *BRIGHTFIELD)
    order = [drawn.index(name) for name in condition.names]
    log_gain = np.append(log_gain, np.zeros(lamps))[order]
    log_background = np.append(log_background, log_lamp)[order]
    background = np.array([channel.background for channel in condition.channels])
    gain = np.array([channel.gain for channel in condition.channels])
    return Nuisance(
        gain=(gain * np.exp(scale * log_gain)).astype(np.float32),
        background=(background * np.exp(scale * log_background)).astype(np.float32),
        slope=(scale * np.concatenate([slope, lamp_slope])[order]).astype(np.float32),
        log_density=float(scale * log_density),
        blur_px=float(np.hypot(blur_px, condition.blur_px)),
        noise=0.3 * scale,
    )


@functools.cache
def _noise_bank() -> FloatArray:
    """Draw unit normal noise once per process; frames read it from random offsets."""
    return rng_for(0, "noise bank").standard_normal(_NOISE_VALUES, dtype=np.float32)


def _place(count: int, size_px: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Choose (count, 2) centres in px, each the most distant of six draws: cells crowd less."""
    draws = rng.integers(-_MARGIN_PX, size_px + _MARGIN_PX, (count, 6, 2))
    centres = draws[:, 0].copy()
    for i in range(1, count):
        gaps = draws[i, :, None] - centres[None, :i]
        centres[i] = draws[i, (gaps * gaps).sum(-1).min(1).argmax()]
    return centres


def _add(frame: FloatArray, stamp: FloatArray, y: int, x: int) -> None:
    """Add a (C, S, S) stamp centred at pixel (y, x) of the (C, H, W) frame, cut at its edge."""
    half = stamp.shape[-1] // 2
    top, left = y - half, x - half
    up, lo = max(0, -top), max(0, -left)
    bottom = min(stamp.shape[-1], frame.shape[-2] - top)
    right = min(stamp.shape[-1], frame.shape[-1] - left)
    if bottom > up and right > lo:
        frame[:, top + up : top + bottom, left + lo : left + right] += stamp[:, up:bottom, lo:right]


def _blur(image: FloatArray, sd_px: float) -> FloatArray:
    """Gaussian focus blur in five taps per axis, (H + 4, W + 4) -> (H, W)."""
    near, far = (float(np.exp(-0.5 * (k / max(sd_px, 0.05)) ** 2)) for k in (1, 2))
    total = 1 + 2 * near + 2 * far
    for _ in range(2):  # each pass blurs the first axis and swaps the two
        out = image[2:-2] * (1 / total)
        out += (image[1:-3] + image[3:-1]) * (near / total)
        out += (image[:-4] + image[4:]) * (far / total)
        image = out.T
    return image


@functools.cache
def _transfer(side: int, defocus_px2: float) -> FloatArray:
    """Absorbance per optical thickness at each frequency, (side, side // 2 + 1).

    Weak cells out of focus: light bends towards thick places, so an edge gets bright and dark
    fringes, nearly the Laplacian of thickness for a small defocus.
    """
    rows, columns = 2 * np.pi * fft.fftfreq(side), 2 * np.pi * fft.rfftfreq(side)
    squared = rows[:, None] ** 2 + columns[None] ** 2
    phase = defocus_px2 * squared / 2
    absorbance = _ABSORPTION * np.cos(phase) + _REFRACTION * np.sin(phase)
    return (absorbance * np.exp(-squared * _COHERENCE_PX**2 / 2)).astype(np.float32)


def _transmitted(thickness: FloatArray, names: list[str], size_px: int) -> dict[str, FloatArray]:
    """Share of light that passes the cells in each brightfield channel, (size_px, size_px)."""
    side, inner = len(thickness), slice(_HALO_PX, _HALO_PX + size_px)
    spectrum = fft.rfft2(thickness)
    passed = {}
    for name in names:
        absorbance = fft.irfft2(spectrum * _transfer(side, BRIGHTFIELD[name]), s=(side, side))
        passed[name] = np.exp(-absorbance[inner, inner])
    return passed


def _draw_cells(
    z: npt.NDArray[np.float64],
    log_density: float,
    size_px: int,
    rng: np.random.Generator,
    thick: bool,
) -> tuple[FloatArray, FloatArray]:
    """Scatter cells: stains (C, H, W) with their border; optical thickness if `thick`, else 0."""
    count, framed = len(CHANNELS), size_px + 2 * _PAD_PX
    density = latent_values(z)[-1] * np.exp(log_density)
    cells = max(1, int(rng.poisson(density * (size_px + 2 * _MARGIN_PX) ** 2)))
    frame = np.zeros((count, framed, framed), np.float32)
    side = fft.next_fast_len(framed + 2 * _HALO_PX, real=True)
    thickness = np.zeros((1, side, side), np.float32)
    population = rng.standard_normal((cells, len(LATENT_NAMES)))
    uptake = np.exp(rng.normal(0, 0.1, (cells, count))).astype(np.float32)
    for (y, x), variation, stain in zip(
        _place(cells, size_px, rng), population, uptake, strict=True
    ):
        stamp = render_cell(z + variation, rng)
        if thick:
            mass = np.einsum("c,cyx->yx", _DRY_MASS, stamp)[None]
            _add(thickness, mass, y + _PAD_PX + _HALO_PX, x + _PAD_PX + _HALO_PX)
        stamp *= stain[:, None, None]
        _add(frame, stamp, y + _PAD_PX, x + _PAD_PX)
    return frame, thickness[0]


def render_site(
    z: npt.NDArray[np.float64],
    nuisance: Nuisance,
    size_px: int,
    rng: np.random.Generator,
    condition: Condition = STANDARD,
    lamp_rng: np.random.Generator | None = None,
) -> npt.NDArray[np.uint8]:
    """Draw one site.

    Args:
        z: (L,) latents of the well, in units of the cell population's standard deviation.
        nuisance: The well's nuisance under the same condition.
        size_px: Height and width of the frame.
        rng: The site's own generator.
        condition: How the screen is imaged; the same cells lie in the same places under each.
        lamp_rng: The site's generator of noise in brightfield; `rng` by default.

    Returns:
        (C, size_px, size_px) uint8, channels in the order of the condition.
    """
    names = condition.names
    lit = [name for name in BRIGHTFIELD if name in names]
    frame, thickness = _draw_cells(z, nuisance.log_density, size_px, rng, thick=bool(lit))
    passed = _transmitted(thickness, lit, size_px + 2 * _PAD_PX) if lit else {}
    noise = _noise_bank()
    across = np.linspace(-1, 1, size_px, dtype=np.float32)
    site = np.empty((len(names), size_px, size_px), np.uint8)
    # Drawn in one order under every condition, so that a stain has the same noise.
    for drawn, name in enumerate((*CHANNELS, *lit)):
        c, noise_sd, noise_rng = names.index(name), nuisance.noise, rng
        if name in passed:
            image = _blur(passed[name], nuisance.blur_px)
            image *= nuisance.background[c]
            noise_sd, noise_rng = _LAMP_NOISE * noise_sd, lamp_rng or rng
        else:
            image = _blur(frame[drawn], nuisance.blur_px)
            image *= nuisance.gain[c]
            image += nuisance.background[c]
        light = 1 + nuisance.slope[c, 0] * across[:, None] + nuisance.slope[c, 1] * across[None]
        # Clipped above 0: a steep gradient would otherwise give negative light and invalid pixels.
        image *= np.clip(light, 0.15, None)
        offset = int(noise_rng.integers(0, _NOISE_VALUES - size_px * size_px))
        shot = np.sqrt(image) * noise[offset : offset + size_px * size_px].reshape(size_px, size_px)
        image += noise_sd * shot
        image += 0.5  # round to nearest
        site[c] = np.clip(image, 0, 255)
    return site
