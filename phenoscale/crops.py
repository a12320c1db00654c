"""The sampling plan: which crop is the i-th of step s, as arithmetic.

The sequence of global batches is a function of (index fingerprint, seed, step) alone. Nothing is
stored or shuffled in memory, any step can be asked for at once, and a worker's share is a
contiguous piece of the global batch: so 1, 2 or 8 workers and a resumed trial see the same crops in
the same order.

Shapes: B crops of one worker in one step.
"""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np

from phenoscale.config import Crops, num_steps

# Of the Feistel network; four already pass as a random permutation (Luby & Rackoff 1988).
_ROUNDS = 6
_TOP, _LEFT, _TURN, _PERMUTATION = range(4)  # streams of random numbers of one plan


@dataclasses.dataclass(frozen=True)
class CropBatch:
    """Coordinates of the crops of one worker in one step; all arrays of length B."""

    site: np.ndarray
    """int64 position of the site in the trial's subset, [0, num_sites)."""
    top: np.ndarray
    """float64 in [0, 1): vertical place of the crop as a share of the room there is."""
    left: np.ndarray
    """float64 in [0, 1): horizontal place."""
    turn: np.ndarray
    """int64 in [0, 8): one of the eight flips and quarter turns of the square."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """The crops of one trial over a subset of `num_sites` sites."""

    key: int
    """64 bits drawn from index fingerprint and seed."""
    num_sites: int
    """Sites in the trial's subset."""
    global_batch_size: int
    """Crops per step over all workers."""
    steps: int
    """Steps of the trial."""

    @classmethod
    def of(cls, crops: Crops, *, fingerprint: str, seed: int, num_sites: int) -> Plan:
        """The plan of a trial: `crops.passes` visits of each site, each pass in its own order."""
        digest = hashlib.blake2b(f"{fingerprint}/{seed}".encode(), digest_size=8).digest()
        return cls(
            key=int.from_bytes(digest, "little"),
            num_sites=num_sites,
            global_batch_size=crops.global_batch_size,
            steps=num_steps(crops, num_sites),
        )

    def batch(self, step: int, rank: int = 0, world: int = 1) -> CropBatch:
        """The crops that worker `rank` of `world` sees in `step`.

        Raises:
            ValueError: if the step lies outside the plan or the batch does not divide among the
                workers.
        """
        if not 0 <= step < self.steps:
            raise ValueError(f"Step {step} is outside the plan of {self.steps} steps.")
        share, rest = divmod(self.global_batch_size, world)
        if rest:
            raise ValueError(
                f"A global batch of {self.global_batch_size} does not divide among {world} "
                "workers; give a multiple."
            )
        first = step * self.global_batch_size + rank * share
        number = np.arange(first, first + share, dtype=np.uint64)  # of the crop in the trial
        visit = number // np.uint64(self.num_sites)
        return CropBatch(
            site=permute(
                number % np.uint64(self.num_sites),
                self.num_sites,
                self._stream(_PERMUTATION, visit),
            ),
            top=_unit(_mix(self._stream(_TOP, number))),
            left=_unit(_mix(self._stream(_LEFT, number))),
            turn=(_mix(self._stream(_TURN, number)) >> np.uint64(61)).astype(np.int64),
        )

    def _stream(self, stream: int, counter: np.ndarray) -> np.ndarray:
        start = _mix(np.array([self.key], dtype=np.uint64) + np.uint64(stream))
        return _mix(start ^ counter)


def permute(position: np.ndarray, size: int, key: np.ndarray) -> np.ndarray:
    """Images of `position` under a pseudo-random permutation of range(size), without a table.

    A Feistel network permutes the next power of four; positions that land outside are sent through
    it again until they land inside (cycle walking, Black & Rogaway 2002), four times at the most on
    average.

    Args:
        position: uint64 (B,), in [0, size).
        size: length of the range.
        key: uint64 (B,) or (1,), choosing the permutation for each position.

    Returns:
        int64 (B,).
    """
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    low = np.uint64((1 << int(half)) - 1)
    key = np.broadcast_to(key, position.shape)
    out = position.astype(np.uint64)
    todo = np.arange(len(out))
    while len(todo):
        left, right = out[todo] >> half, out[todo] & low
        for i in range(_ROUNDS):
            left, right = right, left ^ (_mix(right ^ _mix(key[todo] + np.uint64(i))) & low)
        out[todo] = (left << half) | right
        todo = todo[out[todo] >= np.uint64(size)]
    return out.astype(np.int64)


def _mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64 (Steele, Lea & Flood 2014): uint64 to uint64, every bit depends on every bit."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _unit(x: np.ndarray) -> np.ndarray:
    """uint64 to float64 in [0, 1), from the upper 53 bits."""
    return (x >> np.uint64(11)).astype(np.float64) * 2.0**-53
