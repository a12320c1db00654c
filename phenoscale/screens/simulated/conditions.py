"""Conditions under which a simulated screen is imaged: which channels, how bright, how sharp.

The same seed under another condition has the same wells, cells and batch effects; staining and
optics alone differ. "standard" is the screen of the quickstart study. "other_lab" asks what an
encoder carries over to a screen that it was not trained on, as JUMP-CP is to the encoders of Kraus
et al. 2024: its stains come in another order and in other strengths, its focus is softer, and two
brightfield channels stand among them.
"""

from __future__ import annotations

import dataclasses

from phenoscale.screens.simulated.cells import CHANNELS

BACKGROUND = 6.0
"""Grey levels of an empty field."""
BRIGHTFIELD = {"Brightfield": 0.8, "BrightfieldDefocused": 6.0}
"""Brightfield channel -> defocus in square pixels: wavelength x distance / 2 pi."""
LAMP = 120.0
"""Grey levels of an empty field in brightfield."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Channel:
    """One channel of an image."""

    name: str
    """A stain of `CHANNELS`, or a key of `BRIGHTFIELD`."""
    gain: float
    """Factor on the stain's grey levels; without meaning for brightfield."""
    background: float
    """Grey levels of an empty field before illumination."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Condition:
    """How a laboratory stains and images its cells, whatever the seed."""

    name: str
    """What `ScreenSpec.condition` says."""
    channels: tuple[Channel, ...]
    """Channels in the order of the image; every stain of `CHANNELS` is among them once."""
    blur_px: float
    """Standard deviation of the blur in every well, added in quadrature to the well's own."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the channels, in the order of the image."""
        return tuple(channel.name for channel in self.channels)


def _channel(name: str, gain: float, background: float) -> Channel:
    return Channel(name=name, gain=gain, background=background)


STANDARD = Condition(
    name="standard",
    channels=tuple(_channel(name, 1.0, BACKGROUND) for name in CHANNELS),
    blur_px=0.0,
)
OTHER_LAB = Condition(
    name="other_lab",
    channels=(
        _channel("Brightfield", 1.0, LAMP),
        _channel("RNA", 0.7, 16.0),
        _channel("Mito", 1.3, 13.0),
        _channel("Golgi", 1.5, 11.0),
        _channel("BrightfieldDefocused", 1.0, LAMP),
        _channel("ER", 1.2, 14.0),
        _channel("DNA", 0.8, 12.0),
        _channel("AGP", 0.5, 9.0),
    ),
    blur_px=0.8,
)
CONDITIONS = {condition.name: condition for condition in (STANDARD, OTHER_LAB)}
