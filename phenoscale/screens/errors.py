"""What can be wrong with an image, or with the place that all images lie in."""

from __future__ import annotations

import struct

# What decoders raise on damaged files: Pillow SyntaxError for a broken chunk, tifffile TypeError,
# AttributeError or ZeroDivisionError for senseless tags, imagecodecs RuntimeError.
DECODE_ERRORS = (
    OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, ArithmeticError,
    EOFError, MemoryError, SyntaxError, struct.error,
)  # fmt: skip


class ImageError(ValueError):
    """A file that is not a readable image of its site; the message names file and reason."""


class MissingImageError(ImageError):
    """A file that does not exist."""


class RootVanishedError(OSError):
    """The folder or store of all images no longer answers; no file of it is to blame."""
