"""The sampling plan: which crop stands in which place of which step, as arithmetic.

The sequence of global batches is a function of (index fingerprint, seed, step) alone. No order is
stored, and any step can be asked for at once: so 1, 2 or 8 workers and a resumed trial see the same
crops in the same order, of a thousand sites or of a billion.

Sites come in two levels, so that the reader of a batch needs a window of the index and never the
whole of it. Each round (a visit of every site) orders the groups of rows anew, cuts that order into
windows, and orders the sites within each window.

A place in the global batch is a lane. A site that is read for several crops stays in one lane, and
its crops are spread over the steps of a chapter: each site is then read once a round by one worker,
however many workers there are, and no batch holds a site twice in a round.

Shapes: T steps, L lanes of one worker, G groups of rows.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable

import numpy as np

from phenoscale.config import Crops, num_steps

WINDOW_GROUPS = 128
"""Groups of rows in a window: as many experimental batches can meet in one global batch."""
_SPREAD = 8  # steps, at least, over which the crops of one read are spread
# Of the Feistel network; four already pass as a random permutation (Luby & Rackoff 1988).
_ROUNDS = 6
# Streams of random numbers of one plan.
_TOP, _LEFT, _TURN, _SITES, _GROUPS, _SLOTS, _MEMBERS, _CLASSES = range(8)


@dataclasses.dataclass(frozen=True)
class CropBatch:
    """Coordinates of crops; all arrays of one shape, (T, L) or (L,)."""

    site: np.ndarray
    """int64 position of the site in the trial's subset, [0, number of sites)."""
    top: np.ndarray
    """float64 in [0, 1): vertical place of the crop as a share of the room there is."""
    left: np.ndarray
    """float64 in [0, 1): horizontal place."""
    turn: np.ndarray
    """int64 in [0, 8): one of the eight flips and quarter turns of the square."""


@dataclasses.dataclass(frozen=True, eq=False)
class _Round:
    """One visit of every unit: the groups in this round's order, cut into windows."""

    groups: np.ndarray
    """int64 (G,): the groups in order."""
    ends: np.ndarray
    """int64 (G,): units up to and with each of them."""
    windows: np.ndarray
    """int64 (windows + 1,): units before each window; the last is the number of units."""
    bounds: np.ndarray
    """int64 (windows + 1,): positions in `groups` where windows begin."""


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Plan:
    """The crops of one trial over a subset of a screen's sites."""

    key: int
    """64 bits drawn from index fingerprint and seed."""
    group_sizes: np.ndarray
    """int64 (G,): sites of the subset in each group of rows (for plate_wise: in each plate)."""
    global_batch_size: int
    """Crops per step over all workers: the number of lanes."""
    steps: int
    """Steps of the trial, a multiple of `crops_per_read`."""
    crops_per_read: int = 1
    """Crops that one read of a site serves."""
    unit: int = 1
    """Sites drawn together into neighbouring lanes: more than 1 for plate_wise."""
    labels: Callable[[np.ndarray], np.ndarray] | None = None
    """For class_balanced: groups to the classes of all their sites, int64."""
    _rounds: dict[int, _Round] = dataclasses.field(default_factory=dict, repr=False)
    _balanced: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = dataclasses.field(
        default_factory=dict, repr=False
    )

    @classmethod
    def of(
        cls,
        crops: Crops,
        *,
        fingerprint: str,
        seed: int,
        group_sizes: np.ndarray,
        labels: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> Plan:
        """The plan of a trial: `crops.passes` visits of each site, each round in its own order.

        Args:
            crops: which crops.
            fingerprint: of the index.
            seed: of the trial.
            group_sizes: sites of the subset in each group of rows, or plate for plate_wise.
            labels: groups to the classes of their sites, needed for class_balanced.

        Raises:
            ValueError: if that is not one step, or a plate is too small for plate_wise.
        """
        group_sizes = np.asarray(group_sizes, dtype=np.int64)
        unit = crops.unit
        if small := int(np.sum((group_sizes > 0) & (group_sizes < unit))):
            raise ValueError(
                f"{small} plates have fewer sites than the {unit} crops that plate_wise draws "
                "from a plate. Give smaller crops_per_plate, or hold these plates out."
            )
        if crops.sampling == "class_balanced" and labels is None:
            raise ValueError("class_balanced sampling needs the classes of the sites; give labels.")
        digest = hashlib.blake2b(f"{fingerprint}/{seed}".encode(), digest_size=8).digest()
        return cls(
            key=int.from_bytes(digest, "little"),
            group_sizes=group_sizes,
            global_batch_size=crops.global_batch_size,
            steps=num_steps(crops, int(np.sum(group_sizes // unit * unit))),
            crops_per_read=crops.crops_per_read,
            unit=unit,
            labels=labels if crops.sampling == "class_balanced" else None,
        )

    @property
    def chapter_steps(self) -> int:
        """Steps over which the crops of one read are spread; the last chapter may be shorter."""
        return self.crops_per_read * self._reads_per_chapter

    def batch(self, step: int, rank: int = 0, world: int = 1) -> CropBatch:
        """The crops that worker `rank` of `world` sees in `step`, arrays (L,); as `crops`."""
        block = self.crops(step, step + 1, self.lanes(rank, world))
        return CropBatch(block.site[0], block.top[0], block.left[0], block.turn[0])

    def lanes(self, rank: int, world: int) -> range:
        """The places in the global batch that are worker `rank`'s."""
        return lanes(self.global_batch_size, self.unit, rank, world)

    def crops(self, first: int, last: int, lanes: range) -> CropBatch:
        """The crops of steps `first` to `last` - 1 in some lanes, arrays (T, L).

        Raises:
            ValueError: if a step lies outside the plan.
        """
        if not 0 <= first < last <= self.steps:
            raise ValueError(
                f"Steps {first} to {last - 1} are not all inside the plan of {self.steps} steps."
            )
        step = np.arange(first, last, dtype=np.uint64)[:, None]
        lane = np.array(lanes, dtype=np.uint64)[None, :]
        number = step * np.uint64(self.global_batch_size) + lane  # of the crop in the trial
        unit = self._unit_of(step, lane)
        return CropBatch(
            site=self._site_of(unit.ravel(), (lane % np.uint64(self.unit) + 0 * step).ravel())
            .reshape(unit.shape),
            top=_unit(_mix(self._stream(_TOP, number))),
            left=_unit(_mix(self._stream(_LEFT, number))),
            turn=(_mix(self._stream(_TURN, number)) >> np.uint64(61)).astype(np.int64),
        )  # fmt: skip

    @property
    def _reads_per_chapter(self) -> int:
        if self.crops_per_read == 1:
            return 1
        return max(2, -(-_SPREAD // self.crops_per_read))

    def _unit_of(self, step: np.ndarray, lane: np.ndarray) -> np.ndarray:
        """Number of the read, counted over the trial, that serves each crop: uint64 (T, L)."""
        length, reads = np.uint64(self.chapter_steps), np.uint64(self._reads_per_chapter)
        chapter = step // length
        steps_here = np.minimum(length, np.uint64(self.steps) - chapter * length)
        slot = step % length + 0 * lane
        if self.crops_per_read > 1:
            column = lane // np.uint64(self.unit)  # crops of a unit stay together
            key = self._stream(_SLOTS, chapter * np.uint64(self.global_batch_size) + column)
            sizes = np.broadcast_to(steps_here, slot.shape)
            slot = permute(slot.ravel(), sizes.ravel(), key.ravel()).reshape(slot.shape)
            slot = slot.astype(np.uint64)
        read = chapter * reads + slot // np.uint64(self.crops_per_read)
        columns = np.uint64(self.global_batch_size // self.unit)
        return read * columns + lane // np.uint64(self.unit)

    def _site_of(self, unit: np.ndarray, member: np.ndarray) -> np.ndarray:
        """Position in the subset of a member of each unit: int64, both arguments uint64 (n,)."""
        per_round = np.uint64(np.sum(self.group_sizes // self.unit))
        number, place = unit // per_round, (unit % per_round).astype(np.int64)
        starts = np.cumsum(self.group_sizes) - self.group_sizes
        out = np.empty(len(unit), np.int64)
        for visit in np.unique(number):
            at = number == visit
            group, inside = self._place_of(int(visit), place[at])
            if self.unit > 1:  # the plate's sites in an order of this round's own
                key = self._stream(_MEMBERS, visit * np.uint64(len(starts)) + _u64(group))
                inside = inside * self.unit + member[at].astype(np.int64)
                inside = permute(_u64(inside), _u64(self.group_sizes[group]), key)
            out[at] = starts[group] + inside
        return out

    def _place_of(self, visit: int, place: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Group, and unit within it, of places in a round: int64 (n,) each."""
        order = self._round(visit)
        window = np.searchsorted(order.windows, place, side="right") - 1
        start = order.windows[window]
        size = order.windows[window + 1] - start
        if self.labels is not None:
            shuffled = self._balance(visit, window, place - start)
        else:
            key = self._stream(_SITES, _u64(visit * len(order.windows) + window))
            shuffled = permute(_u64(place - start), _u64(size), key)
        position = np.searchsorted(order.ends, start + shuffled, side="right")
        group = order.groups[position]
        before = order.ends[position] - self.group_sizes[group] // self.unit
        return group, start + shuffled - before

    def _round(self, visit: int) -> _Round:
        if visit not in self._rounds:
            count = len(self.group_sizes)
            groups = permute(
                np.arange(count, dtype=np.uint64), count, self._stream(_GROUPS, _u64([visit]))
            )
            windows = max(1, round(count / WINDOW_GROUPS))
            bounds = np.arange(windows + 1) * count // windows
            ends = np.cumsum(self.group_sizes[groups] // self.unit)
            while len(self._rounds) > 1:
                self._rounds.pop(next(iter(self._rounds)))
            self._rounds[visit] = _Round(groups, ends, np.append(0, ends)[bounds], bounds)
        return self._rounds[visit]

    def _balance(self, visit: int, window: np.ndarray, draw: np.ndarray) -> np.ndarray:
        """Unit within its window of each draw, classes drawn evenly: int64 (n,).

        As many draws as the window has sites; every class comes once before any comes again, and
        within a class every site once before any comes again.
        """
        out = np.empty(len(draw), np.int64)
        for w in np.unique(window):
            at = window == w
            order, ends = self._classes(visit, int(w))
            classes = len(ends)
            turn = draw[at] // classes
            key = self._stream(_CLASSES, _u64((visit << 32) + (int(w) << 20)) + _u64(turn))
            chosen = permute(_u64(draw[at] % classes), classes, key)
            sizes = np.diff(ends, prepend=0)
            out[at] = order[ends[chosen] - sizes[chosen] + turn % sizes[chosen]]
        return out

    def _classes(self, visit: int, window: int) -> tuple[np.ndarray, np.ndarray]:
        """Units of a window by class, each class in random order, and where each class ends."""
        if (visit, window) not in self._balanced:
            assert self.labels is not None
            order = self._round(visit)
            labels = self.labels(order.groups[order.bounds[window] : order.bounds[window + 1]])
            shuffle = _mix(
                self._stream(_SITES, _u64(visit * len(order.windows) + window))
                ^ _mix(np.arange(len(labels), dtype=np.uint64))
            )
            by_class = np.lexsort((shuffle, labels))
            counts = np.unique(labels, return_counts=True)[1]
            while len(self._balanced) > 1:
                self._balanced.pop(next(iter(self._balanced)))
            self._balanced[visit, window] = by_class, np.cumsum(counts)
        return self._balanced[visit, window]

    def _stream(self, stream: int, counter: np.ndarray) -> np.ndarray:
        start = _mix(np.array([self.key], dtype=np.uint64) + np.uint64(stream))
        return _mix(start ^ counter)


def lanes(global_batch_size: int, unit: int, rank: int, world: int) -> range:
    """The places in the global batch that are worker `rank`'s of `world`.

    Whole units, shares as even as can be: where the workers do not divide the batch, some have a
    unit more. So a group that lost a worker goes on with the same batches.
    """
    units = global_batch_size // unit
    return range(units * rank // world * unit, units * (rank + 1) // world * unit)


def pieces(
    global_batch_size: int, unit: int, rank: int, world: int, at_once: int | None
) -> list[slice]:
    """A worker's share cut into pieces of at most `at_once` crops: places within the share.

    All workers get as many pieces, whatever their shares: FSDP exchanges gradients after each.
    Where `at_once` is a single unit and shares are uneven, a piece may be a unit larger.
    """
    shares = [len(lanes(global_batch_size, unit, r, world)) for r in range(world)]
    wanted = -(-max(shares) // at_once) if at_once else 1
    count = min(wanted, min(shares) // unit)
    cuts = [lanes(shares[rank], unit, piece, count) for piece in range(count)]
    return [slice(cut.start, cut.stop) for cut in cuts]


def permute(position: np.ndarray, size: int | np.ndarray, key: np.ndarray) -> np.ndarray:
    """Images of `position` under a pseudo-random permutation of range(size), without a table.

    A Feistel network permutes the next power of four; positions that land outside are sent through
    it again until they land inside (cycle walking, Black & Rogaway 2002), four times at the most on
    average.

    Args:
        position: uint64 (n,), in [0, size).
        size: length of the range, at most 2**53; one, or uint64 (n,).
        key: uint64 (n,) or (1,), choosing the permutation for each position.

    Returns:
        int64 (n,).
    """
    size = np.broadcast_to(np.asarray(size, np.uint64), position.shape)
    bits = np.frexp((size - np.uint64(1)).astype(np.float64))[1].astype(np.uint64)
    half = np.maximum(np.uint64(1), (bits + np.uint64(1)) // np.uint64(2))
    low = (np.uint64(1) << half) - np.uint64(1)
    key = np.broadcast_to(key, position.shape)
    out = position.astype(np.uint64)
    todo = np.arange(len(out))
    while len(todo):
        shift, mask = half[todo], low[todo]
        left, right = out[todo] >> shift, out[todo] & mask
        for i in range(_ROUNDS):
            left, right = right, left ^ (_mix(right ^ _mix(key[todo] + np.uint64(i))) & mask)
        out[todo] = (left << shift) | right
        todo = todo[out[todo] >= size[todo]]
    return out.astype(np.int64)


def _u64(x: object) -> np.ndarray:
    return np.asarray(x).astype(np.uint64)


def _mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64 (Steele, Lea & Flood 2014): uint64 to uint64, every bit depends on every bit."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _unit(x: np.ndarray) -> np.ndarray:
    """uint64 to float64 in [0, 1), from the upper 53 bits."""
    return (x >> np.uint64(11)).astype(np.float64) * 2.0**-53
