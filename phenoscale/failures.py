"""Why a trial failed, by kind, and how often each kind is tried again."""

from __future__ import annotations

import dataclasses
import re
import traceback
from pathlib import Path

from phenoscale.results import read_optional_json, write_json

FAILURE_FILE = "failure.json"

RETRIES = {
    "lost": 3,
    "storage": 2,
    "memory": 1,
    "stalled": 1,
    "non_finite": 0,
    "bad_sites": 0,
    "error": 0,
}
"""Kind of failure to how often a trial is tried again after it, from its last checkpoint. lost: a
process or its node has gone; storage: the place of images or checkpoints does not answer; memory:
of a process, node or GPU; stalled: no crops, or no word from another worker; non_finite: a loss or
gradient that is no number; bad_sites: more unreadable sites than are tolerated; error: anything
else, which would happen again."""

# Names of errors by kind, in the order in which they decide. By name, since an error may come as
# the text of another process.
_NAMES = {
    "memory": ("OutOfMemoryError", "MemoryError"),
    "storage": ("RootVanishedError",),
    "stalled": ("StalledError",),
    "non_finite": ("NonFiniteError",),
    "bad_sites": ("BadSiteError", "ImageError", "MissingImageError"),
    "lost": (
        "ActorDiedError",
        "ActorUnavailableError",
        "LocalRayletDiedError",
        "NodeDiedError",
        "ObjectLostError",
        "OwnerDiedError",
        "RayActorError",
        "WorkerCrashedError",
    ),
}
_LOW_MEMORY = "running low on memory"  # how Ray's memory monitor says that it ended a process
_LAST_CHARS = 20_000  # of a traceback


@dataclasses.dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a trial's attempt ended without a row."""

    kind: str
    """One of `RETRIES`."""
    reason: str
    """One sentence."""
    traceback: str
    """Where it happened, for whoever mends it."""
    attempts: int
    """Attempts of this kind so far, this one included."""

    @property
    def is_last(self) -> bool:
        """Whether the trial is not tried again."""
        return self.attempts > RETRIES[self.kind]

    def __str__(self) -> str:
        """Kind and reason, on one line."""
        times = f", {self.attempts} times" if self.attempts > 1 else ""
        return f"{self.kind}{times}: {self.reason}"

    def write(self, trial_dir: Path) -> None:
        """Writes `failure.json` into the trial's folder."""
        write_json(trial_dir / FAILURE_FILE, dataclasses.asdict(self))


def read_failure(trial_dir: Path) -> Failure | None:
    """The last failure of a trial that has no row; None if there was none."""
    fields = read_optional_json(trial_dir / FAILURE_FILE, None)
    return None if fields is None else Failure(**fields)


def failure_of(error: BaseException, earlier: dict[str, int]) -> Failure:
    """The failure that an error is, counted in `earlier`, the failures of each kind so far."""
    text = "".join(traceback.format_exception(error))
    chain = _chain(error)
    kind = _kind([type(one).__name__ for one in chain], text)
    # Of a worker group's error, that worker's which decided its kind.
    said = [one for one in chain if type(one).__name__ in _NAMES.get(kind, ())]
    return _failure(kind, _reason(said[0] if said else error, text), text, earlier)


def failure_of_text(text: str, earlier: dict[str, int]) -> Failure:
    """The same of an error that another process died of, by what Ray says about it.

    A text that names no error at all tells of a process that is gone.
    """
    kind = _kind([], text)
    if kind == "error" and not _raised(text):
        kind = "lost"
    return _failure(kind, _sentence(text), text, earlier)


def _failure(kind: str, reason: str, text: str, earlier: dict[str, int]) -> Failure:
    earlier[kind] = earlier.get(kind, 0) + 1
    return Failure(kind=kind, reason=reason, traceback=text[-_LAST_CHARS:], attempts=earlier[kind])


def _kind(names: list[str], text: str) -> str:
    if _LOW_MEMORY in text:
        return "memory"
    raised = {*names, *(name.rpartition(".")[2] for name, _ in _raised(text))}
    for kind, errors in _NAMES.items():
        if raised.intersection(errors):
            return kind
    return "error"


def _raised(text: str) -> list[tuple[str, str]]:
    """Name and message of each error that stands in a traceback."""
    return re.findall(r"^\s*(?:\w+: )?([A-Za-z_][\w.]*(?:Error|Exception))(?:\(.*?\))?: ?(.*)$",
                      text, flags=re.MULTILINE)  # fmt: skip


def _chain(error: BaseException) -> list[BaseException]:
    """An error, what it came from, and what the workers of a group met whose error it is."""
    found: list[BaseException] = []
    following: BaseException | None = error
    while following is not None and following not in found:
        workers = getattr(following, "worker_failures", {}).values()
        # Train (ray 2.60) puts a worker's error into one that holds its traceback's text.
        found += [following, *(getattr(one, "_base_exc", one) for one in workers)]
        following = following.__cause__ or following.__context__
    return found


def _reason(error: BaseException, text: str) -> str:
    name, first = type(error).__name__, (str(error).strip().splitlines() or [""])[0]
    if type(error).__module__.startswith("ray.") and not any(name in n for n in _NAMES.values()):
        return _sentence(text)  # it wraps what another process met
    ours = type(error).__module__.startswith("phenoscale.") and first
    return first if ours else f"{name}: {first}".rstrip(": ")


def _sentence(text: str) -> str:
    if _LOW_MEMORY in text:
        return next(line.strip() for line in text.splitlines() if _LOW_MEMORY in line)
    raised = [(name.rpartition(".")[2], message) for name, message in _raised(text) if message]
    if raised:
        return f"{raised[-1][0]}: {raised[-1][1].strip()}"
    last = (text.strip().splitlines() or ["Its process ended without a word."])[-1].strip()
    return last.partition(". ")[0].rstrip(".") + "."  # Ray adds guesses at the cause
